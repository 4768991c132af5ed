"""A whole training run: data in, run directory out. It consumes the loop's reports, saves, judges and writes files."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bilstm_cls.checkpoint import load_best, load_newest, save_checkpoint
from bilstm_cls.classifier import predict_logits, softmax
from bilstm_cls.config import Config, PretrainConfig, TrainConfig
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.prepare import PreparedData, prepare
from bilstm_cls.device import choose_device, freed_memory_kept, set_threads, threads_of_each, usable_cores
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.evaluation.evaluate import write_results
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import LoadedModel, RunDirectory, build_model, environment, flat_json, text_digest
from bilstm_cls.training.calibration import calibrate
from bilstm_cls.training.distributed import Group, is_started_by_torchrun, joined_by_torchrun, rank_by_torchrun, started
from bilstm_cls.training.loggers import check_installed, open_loggers
from bilstm_cls.training.loop import EvaluationReport, Row, StepReport, Trainer, autocast_type, training
from bilstm_cls.training.pretrain import make_encoder
from bilstm_cls.training.record import is_finished, log_file, recorded_status, remembered_log
from bilstm_cls.training.signals import StopSignals
from bilstm_cls.training.start import class_weights, initialize_weights

logger = logging.getLogger(__name__)

Report = StepReport | EvaluationReport

MIN_TOKENS_TO_SHARE = 2_000_000
"""Tokens in all epochs from which more processes pay for the seconds that their start takes."""

FREE_KEYS = (
    "name", "output_dir", "train.max_minutes", "train.checkpoint_seconds", "train.device", "train.threads",
    "train.processes", "train.baselines", "train.loggers",
    *(f"pretrain.{key}" for key in PretrainConfig.model_fields if key != "enabled"),
)  # fmt: skip
"""Keys that may change when a run is resumed: the first bits of its result do not hang on them."""


@dataclass(frozen=True)
class TrainResult:
    """Where the run is, and its `metrics.json`; empty in those processes of `torchrun` that write nothing."""

    run: RunDirectory
    metrics: Row


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_report: Callable[[Report], None] = lambda report: None,
) -> TrainResult:
    """Trains, judges on the test split once, and writes the run directory `output_dir/name`.

    Args:
        config: everything that decides the result.
        resume: go on from the newest checkpoint, to the same bits as if the run had never stopped; start where there
            is none; return the result of a run that is finished.
        overwrite: delete an earlier run in the directory first.
        on_report: called after every step and evaluation.

    Raises:
        ConfigError: the directory is taken or cannot be written, the config differs from the one to resume, or a
            package that `train.loggers` needs is missing.
        DataError: the data cannot be read, or are not those of the run to resume.
        CheckpointError: the checkpoints to resume from are damaged.
        DivergedError: training produced a number that is not finite.
        ResourceError: the disk or memory is full.
        StoppedError: a signal asked to stop; the state is saved.
    """
    run = RunDirectory(Path(config.output_dir) / config.name)
    if rank_by_torchrun() > 0:
        with StopSignals() as signals, joined_by_torchrun(choose_device(config.train.device)) as group:
            is_finished_already = group.any(False)  # process 0 prepares the data, or finds that nothing is left to do
            if not is_finished_already:
                follow(run, config, group, signals)
        return TrainResult(run, {})
    with StopSignals() as signals, run.locked(), remembered_log() as earlier:
        if is_finished(run, config, product="model.safetensors", free=FREE_KEYS, resume=resume, overwrite=overwrite):
            logger.info(f"{run.path} is finished already; --overwrite trains it again")
            if is_started_by_torchrun():
                with joined_by_torchrun(choose_device(config.train.device)) as group:
                    group.any(True)  # the others wait to be told
            return TrainResult(run, run.read_object("metrics.json"))
        check_installed(config.train.loggers)
        device = choose_device(config.train.device)
        autocast_type(config.train.precision, device)  # better to know now than after hours of pretraining
        data = prepare(config)  # an earlier run is not deleted before it is clear that a new one can start
        if overwrite or not run.checkpoints.exists():
            make_encoder(config, data, on_report=on_report)
        if overwrite:
            run.clear()
        run.remove_leftovers()
        run.write_status("running", "training")
        write_atomic(run / "config.yaml", dump_config(config))
        with log_file(run / "train.log", earlier), recorded_status(run), open_loggers(run, config) as loggers:

            def tell(report: Report) -> None:
                on_report(report)
                loggers.take(report)

            metrics = _train(run, config, data, device, signals, tell)
            loggers.finish(metrics)
        return TrainResult(run, metrics)


def _train(
    run: RunDirectory,
    config: Config,
    data: PreparedData,
    device: torch.device,
    signals: StopSignals,
    on_report: Callable[[Report], None],
) -> Row:
    """Trains as process 0, judges, and writes everything."""
    size = number_of_processes(config.train, data.corpora["train"], device)
    with _group(run, size, device) as group:
        session = Session.start(run, config, data, group)
        run.write_json("environment.json", session.environment())
        with signals.deferred():
            for report in session.reports(signals):
                on_report(report)
    set_threads(config.train.threads or threads_of_each())
    trainer = session.trainer
    trainer.load_weights(load_best(run.checkpoints, trainer.progress.best_step))
    ngrams, facts = calibrate(trainer.model, data, config)
    loaded = LoadedModel(trainer.model, data.tokenizer, data.dataset.labels, config, ngrams)
    run.save_model(loaded)
    facts = trainer.progress.facts() | session.facts | facts
    metrics = write_results(run, loaded, data, history=trainer.progress.history, facts=facts)
    run.write_status("finished", "trained and judged")
    return metrics


def follow(run: RunDirectory, config: Config, group: Group, signals: StopSignals) -> None:
    """Trains as a process that writes nothing, in step with process 0."""
    session = Session.start(run, config, prepare(config), group)
    with signals.deferred():
        for _ in session.reports(signals):
            pass


@contextlib.contextmanager
def _group(run: RunDirectory, size: int, device: torch.device) -> Iterator[Group]:
    if is_started_by_torchrun():
        with joined_by_torchrun(device) as group:
            group.wait()  # the others may read what was prepared
            yield group
    else:
        with started(run.path, size, device) as group:
            yield group


def number_of_processes(config: TrainConfig, corpus: Corpus, device: torch.device) -> int:
    """Returns how many processes `train.processes` stands for; under `torchrun` that decides alone.

    `auto` is one for every two CPU cores where there is enough to do for their start to pay, and one on CUDA: two
    threads of one process do a step as fast as two processes (`scripts/benchmark steps`), more threads do not keep up.

    Raises:
        ConfigError: several processes were asked for on one GPU.
    """
    if config.processes == "auto":
        num_tokens = config.epochs * int(corpus.lengths.sum())
        is_worthwhile = device.type == "cpu" and num_tokens >= MIN_TOKENS_TO_SHARE
        return max(1, min(usable_cores() // 2, config.batch_size)) if is_worthwhile else 1
    if config.processes > 1 and device.type == "cuda" and not is_started_by_torchrun():
        raise ConfigError(
            f"train.processes: {config.processes} processes on CUDA are started by torchrun, one for each GPU: "
            f"torchrun --nproc-per-node {config.processes} -m bilstm_cls train ..."
        )
    return config.processes


@dataclass
class Session:
    """What one process holds while a run trains.

    Attributes:
        facts: what `metrics.json` will say of how the run started and went on.
        identity: what a checkpoint must fit to be gone on from.
    """

    run: RunDirectory
    data: PreparedData
    trainer: Trainer
    facts: Row
    identity: Row

    @classmethod
    def start(cls, run: RunDirectory, config: Config, data: PreparedData, group: Group) -> "Session":
        """Builds the model and goes on from the newest checkpoint, the same one in all processes of the group.

        In a group of several, process 0 writes the first checkpoint for the others to begin with.
        """
        device = group.device if group.size > 1 else choose_device(config.train.device)
        threads = set_threads(config.train.threads or threads_of_each(group.size))
        labels = data.dataset.labels
        torch.manual_seed(config.seed)
        model = build_model(config, len(data.tokenizer), len(labels)).to(device)
        weights = class_weights(config.train.class_weights, data.dataset.splits["train"].label_ids, labels)
        trainer = Trainer(
            model, data.corpora["train"], config.train, seed=config.seed, class_weights=weights,
            unlabelled=data.corpora.get("unlabelled"), group=group,
        )  # fmt: skip
        fingerprint = {"torch": torch.__version__, "device": device.type, "threads": threads, "processes": group.size}
        identity = {
            "data_digest": data.dataset.digest,
            "text_digest": text_digest(data.tokenizer, labels),
            "fingerprint": fingerprint,
        }
        session = cls(run, data, trainer, {}, identity)
        if group.rank == 0 and not session.resume():
            session.facts = initialize_weights(model, config, data)
            if group.size > 1:
                session.save("last")
        group.wait()
        if group.rank > 0 and not session.resume():
            raise CheckpointError(f"{run.checkpoints}: process {group.rank} finds no checkpoint there; is it shared?")
        group.wait()
        return session

    def environment(self) -> Row:
        """Returns the content of `environment.json`."""
        fingerprint = self.identity["fingerprint"]
        return {
            **environment(str(self.trainer.device), fingerprint["threads"]),
            "processes": fingerprint["processes"],
            "data_digest": self.identity["data_digest"],
        }

    def resume(self) -> bool:
        """Loads the newest sound checkpoint into the trainer, and returns whether there was one.

        Raises:
            CheckpointError: there are checkpoints, but none to go on from to the same result.
        """
        loaded = load_newest(self.run.checkpoints)
        if loaded is None:
            return False
        tensors, numbers = loaded
        for key in ("data_digest", "text_digest"):
            if numbers.get(key) != self.identity[key]:
                raise DataError(
                    f"{self.run.path}: the data are not those this run started with ({key.partition('_')[0]} differs); "
                    f"bring them back, or add --overwrite"
                )
        try:
            self.trainer.load_state(tensors, numbers["trainer"])
            self.facts, before = numbers["facts"], numbers["fingerprint"]
        except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.run.checkpoints}: does not fit this version or config ({error}); start again with --overwrite"
            ) from error
        here = self.identity["fingerprint"]
        if before != here:
            changes = ", ".join(
                f"{key} {before.get(key)} -> {now}" for key, now in here.items() if before.get(key) != now
            )
            logger.warning(f"resuming elsewhere ({changes}): the result may differ in the last bits")
            self.facts |= {"run/bitwise": False}
        step, best_step = self.trainer.progress.step, self.trainer.progress.best_step
        if step:
            logger.info(f"resuming after step {step:,}")
        if step > best_step > 0:
            load_best(self.run.checkpoints, best_step)  # the end of the run needs it: better to know now
        elif best_step and self.trainer.group.rank == 0:
            self.save("best", "last")  # where one of them is missing or damaged, the other mends it
        return True

    def save(self, *roles: str) -> None:
        """Writes a checkpoint.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
        """
        tensors, numbers = self.trainer.state()
        step = self.trainer.progress.step
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise self.trainer.diverged(step - 1, "a weight is not finite")
        content = {**self.identity, "facts": self.facts, "trainer": numbers}
        save_checkpoint(self.run.checkpoints, step, tensors, content, roles=roles)

    def reports(self, signals: StopSignals) -> Iterator[Report]:
        """Trains to the end and yields what happens; process 0 keeps checkpoints and the history up to date.

        Raises:
            StoppedError: one of the processes was asked to stop; the state is saved.
        """
        trainer = self.trainer
        is_first = trainer.group.rank == 0
        if is_first:
            _write_history(self.run, trainer)
        saved_at = time.monotonic()
        with freed_memory_kept() as bound_memory:
            for report in training(trainer, self._judge_valid):
                yield report
                is_stopping = trainer.group.any(signals.received is not None)
                is_due = time.monotonic() - saved_at >= trainer.config.checkpoint_seconds
                is_evaluation = isinstance(report, EvaluationReport)
                if is_first and (is_evaluation or is_due or is_stopping):
                    if isinstance(report, EvaluationReport):
                        _write_history(self.run, trainer)
                        _log_evaluation(report, trainer)
                    self.save(*(["best"] if isinstance(report, EvaluationReport) and report.is_best else []), "last")
                    saved_at = time.monotonic()
                bound_memory()
                if is_stopping:
                    raise signals.error()

    def _judge_valid(self) -> Row:
        corpus = self.data.corpora["valid"]
        assert corpus.label_ids is not None
        group = self.trainer.group
        with self.trainer.averaged():
            own = predict_logits(self.trainer.model, corpus, rank=group.rank, size=group.size)
        probabilities = softmax(group.sum_array(own))
        if not np.isfinite(probabilities).all():
            raise self.trainer.diverged(self.trainer.progress.step - 1, "the answers on valid are not finite")
        metrics = compute_metrics(probabilities, corpus.label_ids, self.data.dataset.labels)
        return metrics.scalars("valid")


def _write_history(run: RunDirectory, trainer: Trainer) -> None:
    rows = "".join(flat_json(row) + "\n" for row in trainer.progress.history)
    write_atomic(run / "history.jsonl", rows)


def _log_evaluation(report: EvaluationReport, trainer: Trainer) -> None:
    row = report.row
    selected = trainer.config.select_by
    logger.info(
        f"epoch {row['epoch']:.4g}, step {row['step']:,}: train/loss {row['train/loss']:.4f}, "
        f"valid/log_loss {row['valid/log_loss']:.4f}, {selected} {row[selected]:.4f}{' (best)' * report.is_best}"
    )
