"""A whole training run: data in, run directory out. It consumes the loop's reports, saves, judges and writes files."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bilstm_cls.config import Config, changed_keys, dump_config
from bilstm_cls.data.preparation import PreparedData, prepare
from bilstm_cls.device import choose_device, set_threads
from bilstm_cls.errors import CheckpointError, ConfigError, DataError, DivergedError, StoppedError, UserError
from bilstm_cls.evaluation.inference import predict_probabilities
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import RunDirectory, build_model, environment, flat_json, text_digest
from bilstm_cls.training.checkpoint import load_checkpoint, load_newest, save_checkpoint
from bilstm_cls.training.loop import EvaluationReport, Row, StepReport, Trainer, training
from bilstm_cls.training.signals import StopSignals
from bilstm_cls.training.start import class_weights, initialize_embedding
from bilstm_cls.training.summary import write_summary

logger = logging.getLogger(__name__)

Report = StepReport | EvaluationReport

FREE_KEYS = (
    "name", "output_dir", "train.max_minutes", "train.checkpoint_seconds", "train.device", "train.threads",
    "train.baselines",
)  # fmt: skip
"""Keys that may change when a run is resumed: the first bits of its result do not hang on them."""


@dataclass(frozen=True)
class TrainResult:
    """Where the run is, and its `metrics.json`."""

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
        ConfigError: the directory is taken or cannot be written, or the config differs from the one to resume.
        DataError: the data cannot be read, or are not those of the run to resume.
        CheckpointError: the checkpoints to resume from are damaged.
        DivergedError: training produced a number that is not finite.
        ResourceError: the disk or memory is full.
        StoppedError: a signal asked to stop; the state is saved.
    """
    run = RunDirectory(Path(config.output_dir) / config.name)
    with StopSignals() as signals, run.locked():
        if _claim(run, config, resume=resume, overwrite=overwrite):
            logger.info(f"{run.path} is finished already; --overwrite trains it again")
            return TrainResult(run, run.read_json("metrics.json"))
        with _log_file(run / "train.log"), _recorded_status(run):
            metrics = _train(run, config, signals, on_report)
        return TrainResult(run, metrics)


def _claim(run: RunDirectory, config: Config, *, resume: bool, overwrite: bool) -> bool:
    """Makes the directory ours, and returns whether a finished run is there to be returned as it is."""
    if overwrite:
        run.clear()
    elif run.is_taken:
        status = run.read_status()
        if not resume:
            state = f"a run that is {status['status']}" if "status" in status else "other files"
            raise ConfigError(
                f"{run.path}: already holds {state}; add --resume to go on with it, --overwrite to delete it, "
                f"or choose another place with --set name=NAME"
            )
        if (run / "config.yaml").exists():
            _check_same_config(run, config)
        if status.get("status") == "finished" and (run / "model.safetensors").exists():
            return True
    run.write_status("running", "training")
    write_atomic(run / "config.yaml", dump_config(config))
    return False


def _check_same_config(run: RunDirectory, config: Config) -> None:
    changes = [c for c in changed_keys(run.load_config(), config) if not c.startswith(FREE_KEYS)]
    if changes:
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"{run.path}: cannot be resumed with another config, it would not be the same run:\n  {listed}\n"
            f"take these back, or add --overwrite, or --set name=NAME"
        )


def _train(run: RunDirectory, config: Config, signals: StopSignals, on_report: Callable[[Report], None]) -> Row:
    device = choose_device(config.train.device)
    threads = set_threads(config.train.threads)
    data = prepare(config)
    labels = data.dataset.labels
    run.write_json("environment.json", environment(str(device), threads) | {"data_digest": data.dataset.digest})
    torch.manual_seed(config.seed)
    model = build_model(config, len(data.tokenizer), len(labels)).to(device)
    weights = class_weights(config.train.class_weights, data.dataset.splits["train"].label_ids, labels)
    trainer = Trainer(model, data.corpora["train"], config.train, seed=config.seed, class_weights=weights)
    identity: dict[str, Any] = {
        "data_digest": data.dataset.digest,
        "text_digest": text_digest(data.tokenizer, labels),
        "fingerprint": {"torch": torch.__version__, "device": device.type, "threads": threads},
        "facts": {},
    }
    if not _resume(run, trainer, identity):
        identity["facts"] = initialize_embedding(model, config, data)
    with signals.deferred():
        _consume(run, trainer, data, identity, signals, on_report)
    _load_best(run, trainer)
    run.save_model(model, data.tokenizer, labels, config)
    metrics = write_summary(run, config, data, model, trainer.progress, identity["facts"])
    run.write_status("finished", "trained and judged")
    return metrics


def _resume(run: RunDirectory, trainer: Trainer, identity: dict[str, Any]) -> bool:
    """Loads the newest sound checkpoint into the trainer, and returns whether there was one.

    What the checkpoint says of the run so far replaces `identity["facts"]`.
    """
    loaded = load_newest(run.checkpoints)
    if loaded is None:
        return False
    tensors, numbers = loaded
    for key in ("data_digest", "text_digest"):
        if numbers.get(key) != identity[key]:
            raise DataError(
                f"{run.path}: the data are not those this run started with ({key.partition('_')[0]} differs); "
                f"bring them back, or add --overwrite"
            )
    try:
        trainer.load_state(tensors, numbers["trainer"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.checkpoints}: does not fit this version or config ({error})") from error
    identity["facts"] = numbers["facts"]
    if numbers["fingerprint"] != identity["fingerprint"]:
        before, here = numbers["fingerprint"], identity["fingerprint"]
        logger.warning(f"resuming on another machine ({before} -> {here}): the result may differ in the last bits")
        identity["facts"] |= {"run/bitwise": False}
    logger.info(f"resuming after step {trainer.progress.step:,}")
    return True


def _consume(
    run: RunDirectory,
    trainer: Trainer,
    data: PreparedData,
    identity: dict[str, Any],
    signals: StopSignals,
    on_report: Callable[[Report], None],
) -> None:
    """Trains to the end, keeping checkpoints and the history up to date."""

    def save(*roles: str) -> None:
        tensors, numbers = trainer.state()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise DivergedError(
                f"weights are no longer finite after step {trainer.progress.step}; lower train.learning_rate"
            )
        numbers = {**identity, "trainer": numbers}
        save_checkpoint(run.checkpoints, trainer.progress.step, tensors, numbers, roles=roles)

    def evaluate() -> Row:
        return _judge_valid(trainer, data)

    _write_history(run, trainer)
    saved_at = time.monotonic()
    for report in training(trainer, evaluate):
        on_report(report)
        is_due = time.monotonic() - saved_at >= trainer.config.checkpoint_seconds
        if isinstance(report, EvaluationReport):
            _write_history(run, trainer)
            _log_evaluation(report, trainer)
            save(*(("best", "last") if report.is_best else ("last",)))
            saved_at = time.monotonic()
        elif is_due or signals.received:
            save("last")
            saved_at = time.monotonic()
        if signals.received:
            raise signals.error()


def _judge_valid(trainer: Trainer, data: PreparedData) -> Row:
    corpus = data.corpora["valid"]
    assert corpus.label_ids is not None
    with trainer.averaged():
        probabilities = predict_probabilities(trainer.model, corpus)
    metrics = compute_metrics(probabilities, corpus.label_ids, data.dataset.labels, intervals=False)
    return metrics.scalars("valid")


def _load_best(run: RunDirectory, trainer: Trainer) -> None:
    tensors, _ = load_checkpoint(run.checkpoints, "best")
    trainer.load_weights(tensors)


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


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("bilstm_cls")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _recorded_status(run: RunDirectory) -> Iterator[None]:
    """Leaves in `status.json` why a run did not finish."""
    try:
        yield
    except StoppedError as error:
        run.write_status("stopped", str(error), exit_code=error.exit_code)
        raise
    except UserError as error:
        logger.error(str(error))
        run.write_status("failed", str(error), exit_code=error.exit_code)
        raise
    except BaseException as error:
        run.write_status("failed", f"{type(error).__name__}: {error}", exit_code=1)
        raise
