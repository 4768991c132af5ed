"""A whole training run: prepare, train, evaluate, and write the run directory."""

import logging
from dataclasses import dataclass
from pathlib import Path

from bilstm_cls.classifier import LoadedModel
from bilstm_cls.config import Config, PretrainConfig
from bilstm_cls.data.prepare import PreparedData, prepare, untrained_start, with_dim
from bilstm_cls.device import Precision, choose_device, set_threads, watch_load
from bilstm_cls.evaluation.evaluate import write_results
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training import distributed, record
from bilstm_cls.training.calibration import ask_first, calibrate, taught
from bilstm_cls.training.loop import Row
from bilstm_cls.training.pretrain import make_encoder
from bilstm_cls.training.session import OnReport, Report, Session

logger = logging.getLogger(__name__)

FREE_KEYS = (
    "name", "output_dir", "train.max_minutes", "train.checkpoint_seconds", "train.device", "train.threads",
    "train.processes", "train.baselines", "train.loggers",
    *(f"pretrain.{key}" for key in PretrainConfig.model_fields if key != "enabled"),
)  # fmt: skip
"""Keys that may change when a run is resumed: its result does not depend on them, but for the last bits."""


@dataclass(frozen=True)
class TrainResult:
    """Where the run is, and its `metrics.json`; empty in those of several processes that write nothing."""

    run: RunDirectory
    metrics: Row


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_report: OnReport = lambda report: None,
    can_launch: bool = False,
) -> TrainResult:
    """Trains, evaluates on the test split once, and writes the run directory `output_dir/name`.

    Args:
        config: everything that decides the result.
        resume: continue from the newest checkpoint, to the same bits as if the run had never stopped; start where there
            is none; return the result of a run that is finished.
        overwrite: delete an earlier run in the directory first.
        on_report: called after every step and evaluation.
        can_launch: whether the caller, a command, can start itself again in several processes.

    Raises:
        ConfigError: the directory is taken or cannot be written, the config differs from the one to resume, or what
            `train.processes` or `train.loggers` asks for is not here.
        DataError, CheckpointError: data or checkpoints cannot be read, or are not those of the run to resume.
        DivergedError, ResourceError: a number is not finite; the disk or memory is full.
        StoppedError: a signal asked to stop; the state is saved.
        SeveralProcessesError: with `can_launch`, the data are prepared and several processes are to train.
    """
    distributed.end_with_launcher()
    if (first := untrained_start(config)) is not None:
        logger.info(f"training {config.model.init_from} first, to start from")
        train(first, resume=True, on_report=on_report, can_launch=can_launch)
    config = with_dim(config)
    run = RunDirectory(Path(config.output_dir) / config.name)
    with record.StopSignals() as signals:
        if distributed.rank_by_torchrun() > 0:
            if not (resume and record.is_finished(run, "model.safetensors")):
                data = _prepare(run, config, overwrite=overwrite, can_launch=False, on_report=on_report)
                _learn(run, config, data, signals, on_report, on_report)
            return TrainResult(run, {})
        with run.locked(), record.remembered_log() as earlier:
            record.check_resumable(run, config, free=FREE_KEYS, resume=resume, overwrite=overwrite)
            if resume and record.is_finished(run, "model.safetensors"):
                logger.info(f"{run.path} is finished already; --overwrite trains it again")
                return TrainResult(run, run.read_object("metrics.json"))
            record.check_installed(config.train.loggers)
            # An earlier run is not deleted before it is clear that a new one can start.
            data = _prepare(run, config, overwrite=overwrite, can_launch=can_launch, on_report=on_report)
            with record.recorded(run, config, earlier, "training", overwrite):
                return TrainResult(run, _train(run, config, data, signals, on_report))


def _prepare(
    run: RunDirectory, config: Config, *, overwrite: bool, can_launch: bool, on_report: OnReport
) -> PreparedData:
    """Makes the data and the encoder, or waits for another process of this machine that makes them."""
    device = choose_device(config.train.device)
    Precision.named(config.train.precision, device)  # better to know now than after hours of pretraining
    data = prepare(config)
    size = 1
    if distributed.size_by_torchrun() == 1:
        size = distributed.number_of_processes(config.train, data.corpora["train"], device, can_launch=can_launch)
    if overwrite or not run.checkpoints.exists():
        make_encoder(config, data, on_report=on_report)
    if size > 1:
        raise distributed.SeveralProcessesError(size)
    return data


def _train(
    run: RunDirectory, config: Config, data: PreparedData, signals: record.StopSignals, on_report: OnReport
) -> Row:
    """Trains as the process that writes, evaluates, and returns `metrics.json`."""
    with record.RunLoggers(run, config) as loggers:

        def take(report: Report) -> None:
            on_report(report)
            loggers.take(report)

        session = _learn(run, config, data, signals, on_report, take)
        set_threads(config.train.threads)
        model = session.load_best_weights()
        ngrams, task, facts = calibrate(model, data, config)
        loaded = LoadedModel(model, data.tokenizer, data.dataset.labels, config, ngrams, task=task)
        run.save_model(loaded)
        progress = session.trainer.progress
        facts = progress.facts() | session.facts | facts
        metrics = write_results(run, loaded, data, history=progress.history, facts=facts)
        run.write_status("finished", "trained and evaluated")
        loggers.finish(metrics)
    return metrics


def _learn(
    run: RunDirectory, config: Config, data: PreparedData, signals: record.StopSignals, on_first: OnReport,
    on_report: OnReport,
) -> Session:  # fmt: skip
    """Trains to the end, as one process or in step with the others; `on_first` gets the reports of a teacher."""
    others = ask_first(run, config, data)
    with distributed.joined(choose_device(config.train.device)) as group:
        data, facts = taught(run, config, data, group, signals, on_first, others)
        session = Session.start(run, config, data, group)
        session.facts |= facts
        if group.rank == 0:
            run.write_json("environment.json", session.environment())
        loads = watch_load(distributed.processes_here(group.size), session.identity["fingerprint"]["threads"])

        def take(report: Report) -> None:
            on_report(report)
            if group.rank == 0 and (warning := next(loads)):
                logger.warning(warning)

        session.learn(signals, take)
    return session
