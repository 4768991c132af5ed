"""What a run leaves of how it went: its log, its status and what loggers keep; and how it is asked to stop.

A logger (TensorBoard, MLflow, Weights & Biases) receives what the run reports and cannot change it: one that fails is
left out with a warning. A resumed run continues in the same place; steps since its last checkpoint may be there twice.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from logging.handlers import MemoryHandler
from typing import Any

from bilstm_cls.config import Config
from bilstm_cls.config_file import changed_keys, dump_config, flat_config
from bilstm_cls.data.prepare import start_folder
from bilstm_cls.errors import ConfigError, ResourceError, StoppedError, UserError, is_out_of_memory
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.distributed import STOP_SIGNALS
from bilstm_cls.training.loop import EvaluationReport, StepReport

RECORD, STEPS_BETWEEN = "loggers.json", 10
PROJECT = "bilstm-cls"  # or experiment, where the environment names none

logger = logging.getLogger(__name__)


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP: which of them has asked to stop, and whether it may interrupt right now.

    Use as a context manager around a whole run. Outside of `deferred` a signal raises `StoppedError` where it finds
    the program; inside, the first one is only noted in `received` and the second one raises. A signal that the program
    was started to ignore, as `nohup` does with SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            heeded = [n for n in STOP_SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets the block reach a place where it can save: it has to look at `received`, as this does at its end."""
        before, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = before
        if self.received is not None:
            raise self.error()

    def error(self) -> StoppedError:
        """Returns the error that ends the program; a signal that another process received is taken for a SIGTERM."""
        received = self.received or signal.SIGTERM
        return StoppedError(f"stopped by {received.name}", signal_number=int(received))

    def _handle(self, number: int, _: object) -> None:
        is_first = self.received is None
        self.received = signal.Signals(number)
        if not (self._is_deferred and is_first):
            raise self.error()


def is_finished(run: RunDirectory, product: str) -> bool:
    """Returns whether a directory holds a finished run with the file that it was to make."""
    return run.read_status().get("status") == "finished" and (run / product).exists()


def check_resumable(run: RunDirectory, config: Config, *, free: Collection[str], resume: bool, overwrite: bool) -> None:
    """Raises `ConfigError` where a directory is taken, or its run was started with another config.

    Of a run to be resumed the keys `free` may differ, where a section stands for all of its keys.
    """
    if (start := start_folder(config)) is not None and start.resolve() == run.path.resolve():
        raise ConfigError(f"{run.path}: is the run to start from; choose another place with --set name=NAME")
    if not run.is_taken or overwrite:
        return
    if not resume:
        raise ConfigError(
            f"{run.path}: already holds a run that is {run.read_status()['status']}; add --resume to continue it, "
            f"--overwrite to delete it, or choose another place with --set name=NAME"
        )
    if (run / "config.yaml").exists() or run.checkpoints.exists():
        changes = changed_keys(run.load_config(), config)
        listed = "\n  ".join(c for c in changes if not {c.partition(":")[0], c.partition(".")[0]} & set(free))
        if listed:
            raise ConfigError(
                f"{run.path}: cannot be resumed with another config, it would not be the same run:\n  {listed}\n"
                f"undo these changes, or add --overwrite, or --set name=NAME"
            )


@contextlib.contextmanager
def remembered_log() -> Iterator[MemoryHandler]:
    """Keeps what is logged before the run has a file for it."""
    memory = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    package = logging.getLogger("bilstm_cls")
    level = package.level
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))  # Python's default drops all below a warning
    package.addHandler(memory)
    try:
        yield memory
    finally:
        package.removeHandler(memory)
        package.setLevel(level)
        memory.close()


@contextlib.contextmanager
def recorded(run: RunDirectory, config: Config, earlier: MemoryHandler, doing: str, overwrite: bool) -> Iterator[None]:
    """Starts a run in its locked directory: its status `doing`, config and log, and in the end why it did not finish.

    `earlier` is what was logged before, and `overwrite` deletes an earlier run.
    """
    if overwrite:
        run.clear()
    run.remove_leftovers()
    run.write_status("running", doing)
    write_atomic(run / "config.yaml", dump_config(config))
    handler = logging.FileHandler(run / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    earlier.setTarget(handler)
    earlier.flush()
    package = logging.getLogger("bilstm_cls")
    package.removeHandler(earlier)
    package.addHandler(handler)
    try:
        yield
    except BaseException as error:
        reason = str(error) if isinstance(error, UserError | StoppedError) else f"{type(error).__name__}: {error}"
        exit_code = ResourceError.exit_code if is_out_of_memory(error) else getattr(error, "exit_code", 1)
        if isinstance(error, UserError):
            logger.error(reason)
        with contextlib.suppress(UserError):  # a full disk, say: what ended the run matters more
            run.write_status("stopped" if isinstance(error, StoppedError) else "failed", reason, exit_code=exit_code)
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


Log = Callable[[dict[str, float], int], object]  # takes numbers such as `step/loss`, and their step


@contextlib.contextmanager
def _tensorboard(run: RunDirectory, name: str, settings: Mapping[str, Any], _: str | None) -> Iterator[tuple[str, Log]]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard")) as writer:
        writer.add_text("config", "".join(f"    {key}: {value}\n" for key, value in settings.items()), 0)
        yield name, lambda values, step: [writer.add_scalar(key, value, step) for key, value in values.items()]


@contextlib.contextmanager
def _mlflow(_: RunDirectory, name: str, settings: Mapping[str, Any], known: str | None) -> Iterator[tuple[str, Log]]:
    # By itself it waits for minutes for a server that does not answer, and the training with it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    with mlflow.start_run(run_id=known, run_name=name) as opened:
        if known is None:
            mlflow.log_params(dict(settings))
        yield opened.info.run_id, mlflow.log_metrics


@contextlib.contextmanager
def _wandb(_: RunDirectory, name: str, settings: Mapping[str, Any], known: str | None) -> Iterator[tuple[str, Log]]:
    import wandb

    options = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": name, "config": dict(settings)}
    with wandb.init(id=known, resume="allow", **options) as opened:
        yield opened.id, lambda values, step: opened.log(values, step=step)


LOGGERS: dict[str, Any] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
"""By the name of the package. Each yields what the place calls the run, which a resumed one is opened with."""


class RunLoggers:
    """The open loggers of a run, as a context manager."""

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self.logs: dict[str, Log] = {}
        self._stack = contextlib.ExitStack()
        settings = {key: json.loads(text) for key, text in flat_config(config).items()}
        record: dict[str, Any] = run.read_object(RECORD) if (run / RECORD).exists() else {}
        for name in map(str, config.train.loggers):
            with self._guarded(name):
                opened = LOGGERS[name](run, config.name, settings, record.get(name))
                record[name], self.logs[name] = self._stack.enter_context(opened)
                run.write_json(RECORD, record)

    def __enter__(self) -> "RunLoggers":
        return self

    def __exit__(self, *error: Any) -> None:
        with self._guarded("all"):
            self._stack.__exit__(*error)

    def take(self, report: StepReport | EvaluationReport) -> None:
        """Logs an evaluation, or one step of ten."""
        if isinstance(report, EvaluationReport):
            self._log(report.row, report.row["step"])
        elif report.step % STEPS_BETWEEN == 0:
            names = ("loss", "learning_rate", "grad_norm")
            self._log({f"step/{name}": getattr(report, name) for name in names}, report.step)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Logs what `metrics.json` holds; the valid scores of the chosen weights as `best/valid/...`."""
        values = {f"best/{key}" if key.startswith("valid/") else key: value for key, value in metrics.items()}
        self._log(values, metrics["train/steps"])

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        kept = {key: value for key, value in values.items() if type(value) in (int, float) and math.isfinite(value)}
        for name, log in list(self.logs.items()):
            with self._guarded(name):
                log(kept, step)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Leaves a logger out from its first failure on, whatever its library raises."""
        try:
            yield
        except Exception as error:
            self.logs.pop(name, None)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            logger.warning(f"train.loggers: {name!r} is left out from here on, the training continues ({reason})")


def check_installed(names: Collection[str]) -> None:
    """Raises `ConfigError` where a package that `train.loggers` names is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.loggers: {name!r} is not installed; run: pip install 'bilstm-cls[{name}]'")
