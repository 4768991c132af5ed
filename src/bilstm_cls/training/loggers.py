"""Where a training run can be followed from outside: TensorBoard, MLflow and Weights & Biases.

A logger receives what the run reports and cannot change it: one that fails is left out with a warning. A resumed run
continues in the same place; steps since its last checkpoint may be there twice.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bilstm_cls.config import Config
from bilstm_cls.config_file import flat_config
from bilstm_cls.errors import ConfigError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.loop import EvaluationReport, StepReport

logger = logging.getLogger(__name__)

RECORD = "loggers.json"
STEPS_BETWEEN = 10
PROJECT = "bilstm-cls"
"""Experiment or project where the environment names none."""

Log = Callable[[dict[str, float], int], object]
"""Takes numbers such as `step/loss` or `valid/accuracy`, and their step."""


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


LOGGERS: dict[str, Callable[..., contextlib.AbstractContextManager[tuple[str, Log]]]] = {
    "tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb
}  # fmt: skip
"""By the name of the package. Each yields what the place calls the run, which a resumed one is opened with."""


def check_installed(names: Sequence[str]) -> None:
    """Raises `ConfigError` where a package that `train.loggers` names is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.loggers: {name!r} is not installed; run: pip install 'bilstm-cls[{name}]'")


class RunLoggers:
    """The open loggers of a run."""

    def __init__(self) -> None:
        self.logs: dict[str, Log] = {}

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
            with self.guarded(name):
                log(kept, step)

    def close(self, name: str, place: contextlib.AbstractContextManager[Any], *error: Any) -> None:
        """Tells the place that the run has ended, or by which error."""
        with self.guarded(name):
            place.__exit__(*error)

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Leaves a logger out from its first failure on, whatever its library raises."""
        try:
            yield
        except Exception as error:
            self.logs.pop(name, None)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            logger.warning(f"train.loggers: {name!r} is left out from here on, the training continues ({reason})")


@contextlib.contextmanager
def open_loggers(run: RunDirectory, config: Config) -> Iterator[RunLoggers]:
    """Opens the loggers that `train.loggers` names, and closes them however the block ends."""
    settings = {key: json.loads(text) for key, text in flat_config(config).items()}
    record: dict[str, Any] = run.read_object(RECORD) if (run / RECORD).exists() else {}
    opened = RunLoggers()
    with contextlib.ExitStack() as stack:
        for name in map(str, config.train.loggers):
            with opened.guarded(name):
                place = LOGGERS[name](run, config.name, settings, record.get(name))
                record[name], opened.logs[name] = place.__enter__()
                stack.push(functools.partial(opened.close, name, place))
                run.write_json(RECORD, record)
        yield opened
