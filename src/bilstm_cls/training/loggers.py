"""Where a training run can be followed from outside: TensorBoard, MLflow and Weights & Biases behind one door.

A logger hears what the run reports and can do nothing to it: one that fails is left out with a warning. What was
logged is noted in the run directory first and sent second, so that a resumed run goes on in the same place and no step
is there twice. To add a logger, write a class like these and a line in `LOGGERS`.
"""

import contextlib
import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.errors import ConfigError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.loop import EvaluationReport, Row, StepReport

logger = logging.getLogger(__name__)

RECORD = "loggers.json"
STEPS_BETWEEN = 10
"""Every so many steps one is logged: by its number, so that a resumed run logs the same ones."""

SECONDS_BETWEEN = 10.0
"""After so long, what was gathered is sent even if there was no evaluation."""

PROJECT = "bilstm-cls"
"""Experiment or project where the environment names none."""


@dataclass(frozen=True)
class Entry:
    """Numbers of one step, such as `step/loss` or `valid/accuracy`."""

    step: int
    values: dict[str, float]
    time: float = field(default_factory=time.time)


class Logger(Protocol):
    """A place to log to. All of it may raise whatever it likes.

    Attributes:
        identity: what the place calls this run; a resumed run is opened with it.
    """

    identity: str

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Takes all keys of the config, once for a run."""

    def log(self, entries: Sequence[Entry]) -> None:
        """Takes numbers, by rising step."""

    def end(self, settings: Mapping[str, Any], scores: Entry) -> None:
        """Takes the final scores, once for a run."""

    def close(self, *, is_finished: bool) -> None:
        """Waits until everything has arrived."""


class TensorBoard:
    """Event files in the run directory: `tensorboard --logdir runs`."""

    def __init__(self, run: RunDirectory, config: Config, known: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.identity = "tensorboard"
        self._config = dump_config(config)
        self._writer = SummaryWriter(str(run / self.identity))

    def begin(self, settings: Mapping[str, Any]) -> None:
        indented = "".join(f"    {line}\n" for line in self._config.splitlines())  # code, in Markdown
        self._writer.add_text("config", indented, 0)

    def log(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            for name, value in entry.values.items():
                self._writer.add_scalar(name, value, entry.step, walltime=entry.time)
        self._writer.flush()

    def end(self, settings: Mapping[str, Any], scores: Entry) -> None:
        kinds = (bool, int, float, str)
        known = {key: value if isinstance(value, kinds) else str(value) for key, value in settings.items()}
        self._writer.add_hparams(known, scores.values, run_name=".", global_step=scores.step)

    def close(self, *, is_finished: bool) -> None:
        self._writer.close()


class Mlflow:
    """A run of MLflow, where `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say."""

    def __init__(self, run: RunDirectory, config: Config, known: str | None) -> None:
        # Its own patience with a server that does not answer is minutes, which the training would wait for.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            known = self._client.create_run(experiment, run_name=config.name).info.run_id
        else:
            self._client.update_run(known, status="RUNNING")
        self.identity = known

    def begin(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(params), 100):  # as many as a request takes
            self._client.log_batch(self.identity, params=params[first : first + 100])

    def log(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(entry.time * 1000), entry.step)
            for entry in entries
            for name, value in entry.values.items()
        ]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(self.identity, metrics=metrics[first : first + 1000])

    def end(self, settings: Mapping[str, Any], scores: Entry) -> None:
        self.log([scores])

    def close(self, *, is_finished: bool) -> None:
        self._client.set_terminated(self.identity, "FINISHED" if is_finished else "KILLED")


class Wandb:
    """A run of Weights & Biases, where `WANDB_PROJECT`, `WANDB_MODE` and its other variables say."""

    def __init__(self, run: RunDirectory, config: Config, known: str | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(project=project, name=config.name, id=known, resume="allow")
        self.identity = str(self._run.id)

    def begin(self, settings: Mapping[str, Any]) -> None:
        self._run.config.update(dict(settings))

    def log(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._run.log(entry.values, step=entry.step)

    def end(self, settings: Mapping[str, Any], scores: Entry) -> None:
        self._run.summary.update(scores.values)

    def close(self, *, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)


LOGGERS: dict[str, tuple[str, Callable[[RunDirectory, Config, str | None], Logger]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "mlflow": ("mlflow", Mlflow),
    "wandb": ("wandb", Wandb),
}
"""By their name in `train.loggers`: the module that must be there, and the class."""


def check_installed(names: Sequence[str]) -> None:
    """Makes sure that what `train.loggers` names is there, before any work is done.

    Raises:
        ConfigError: a package is missing.
    """
    for name in names:
        if not _is_installed(LOGGERS[name][0]):
            raise ConfigError(f"train.loggers: {name!r} is not installed; run: pip install 'bilstm-cls[{name}]'")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that was put there by hand has no spec
        return True


class RunLoggers:
    """All loggers of a run, and the record of what they were given."""

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self._run = run
        self._settings = {f"{s}.{key}": value for s, part in _sections(config) for key, value in part.items()}
        self._record: Row = run.read_object(RECORD) if (run / RECORD).exists() else {}
        self._entries: list[Entry] = []
        self._sent_at = time.monotonic()
        self._is_finished = False
        self._open: dict[str, Logger] = {}
        for name in config.train.loggers:
            with self._guarded(name):
                self._start(name, config)

    def _start(self, name: str, config: Config) -> None:
        known = self._record.get("runs", {}).get(name)
        self._open[name] = LOGGERS[name][1](self._run, config, known)
        if known is None:
            self._note(runs={**self._record.get("runs", {}), name: self._open[name].identity})
            self._open[name].begin(self._settings)

    def take(self, report: StepReport | EvaluationReport) -> None:
        """Logs a report of the loop, unless that was done before the run was interrupted."""
        if not self._open:
            return
        if isinstance(report, StepReport):
            if report.step % STEPS_BETWEEN == 0 and report.step > self._record.get("step", 0):
                names = ("loss", "learning_rate", "grad_norm")
                row = {f"step/{name}": getattr(report, name) for name in names}
                self._entries.append(Entry(report.step, _numbers(row)))
        elif report.row["step"] > self._record.get("evaluated_step", 0):
            row = {key: value for key, value in report.row.items() if key != "step"}
            self._entries.append(Entry(report.row["step"], _numbers(row)))
        is_due = time.monotonic() - self._sent_at >= SECONDS_BETWEEN
        if isinstance(report, EvaluationReport) or is_due:
            self._send()

    def finish(self, metrics: Row) -> None:
        """Logs what `metrics.json` holds; the valid scores of the chosen weights as `best/valid/...`."""
        self._is_finished = True
        if not self._open or self._record.get("is_finished"):
            return
        self._send()
        values = {f"best/{key}" if key.startswith("valid/") else key: value for key, value in metrics.items()}
        scores = Entry(metrics["train/steps"], _numbers(values))
        self._note(is_finished=True)
        self._tell_all(lambda opened: opened.end(self._settings, scores))

    def close(self) -> None:
        """Sends the rest and lets go of all loggers."""
        self._send()
        self._tell_all(lambda opened: opened.close(is_finished=self._is_finished))

    def _send(self) -> None:
        entries, self._entries, self._sent_at = self._entries, [], time.monotonic()
        if not entries:
            return
        steps = [entry.step for entry in entries if "step/loss" in entry.values]
        evaluated = [entry.step for entry in entries if "step/loss" not in entry.values]
        self._note(
            step=max(steps, default=self._record.get("step", 0)),
            evaluated_step=max(evaluated, default=self._record.get("evaluated_step", 0)),
        )
        self._tell_all(lambda opened: opened.log(entries))

    def _tell_all(self, tell: Callable[[Logger], None]) -> None:
        for name, opened in list(self._open.items()):
            with self._guarded(name):
                tell(opened)

    def _note(self, **news: Any) -> None:
        self._record |= news
        self._run.write_json(RECORD, self._record)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Leaves a logger out from its first failure on."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            logger.warning(f"train.loggers: {name!r} is left out from here on, the training goes on ({reason})")
            self._open.pop(name, None)


@contextlib.contextmanager
def open_loggers(run: RunDirectory, config: Config) -> Iterator[RunLoggers]:
    """Opens the loggers that `train.loggers` names, and closes them however the block ends."""
    loggers = RunLoggers(run, config)
    try:
        yield loggers
    finally:
        loggers.close()


def _sections(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in config.model_dump().items():
        yield (name, value) if isinstance(value, dict) else ("run", {name: value})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
