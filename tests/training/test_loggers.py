import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.errors import ConfigError, StoppedError
from bilstm_cls.training.loggers import LOGGERS, RECORD
from bilstm_cls.training.run import train
from tests.training.runs import StoppedHereError, history, result, stop_at

pytestmark = pytest.mark.usefixtures("light")

Make = Callable[..., Config]
STEPS = [10, 20]
EVALUATED = [11, 22]


class Notebook:
    """A logger that keeps what it is given, and fails where its attribute says."""

    def __init__(self) -> None:
        self.known: list[str | None] = []
        self.settings: dict[str, Any] = {}
        self.entries: list[tuple[int, dict[str, float]]] = []
        self.endings: list[BaseException | None] = []
        self.fails_in = ""

    @contextlib.contextmanager
    def __call__(self, run: Any, name: str, settings: Any, known: str | None) -> Iterator[Any]:
        self.known.append(known)
        self.settings = settings
        self.fail("opening")
        try:
            yield "run-0", self.log
        except BaseException as error:
            self.endings.append(error)
            raise
        self.endings.append(None)
        self.fail("closing")

    def log(self, values: dict[str, float], step: int) -> None:
        self.fail("logging")
        self.entries.append((step, values))

    def fail(self, place: str) -> None:
        if place == self.fails_in:
            raise ConnectionError("no route to host\nand more")

    def steps(self, name: str) -> list[int]:
        return [step for step, values in self.entries if name in values]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """Puts the notebook in the place of MLflow."""
    found = Notebook()
    monkeypatch.setitem(LOGGERS, "mlflow", found)
    monkeypatch.setitem(sys.modules, "mlflow", installed("mlflow"))
    return found


def installed(name: str) -> types.ModuleType:
    """Returns a module that counts as installed."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


@pytest.fixture
def logged(short_config: Make, tmp_path: Path) -> Callable[..., Config]:
    """Returns the config of a run of 22 steps that logs."""
    return lambda *names: short_config(f"output_dir={tmp_path}", f"train.loggers={json.dumps(names)}")


def test_a_logger_receives_settings_steps_evaluations_and_final_scores(logged: Make, notebook: Notebook) -> None:
    done = train(logged("mlflow"))
    assert notebook.settings["train.epochs"] == 2
    assert notebook.steps("step/loss") == STEPS
    assert notebook.steps("valid/accuracy") == EVALUATED
    rows = [values["valid/accuracy"] for _, values in notebook.entries if "valid/accuracy" in values]
    assert rows == [row["valid/accuracy"] for row in history(done.run.path)]
    step, scores = notebook.entries[-1]
    assert step == 22
    assert scores["test/accuracy"] == done.metrics["test/accuracy"]
    assert scores["best/valid/accuracy"] == done.metrics["valid/accuracy"]
    assert notebook.endings == [None]


@pytest.mark.parametrize("place", ["opening", "logging", "closing"])
def test_a_logger_that_fails_warns_once_and_changes_nothing(
    place: str, logged: Make, whole_run: Path, notebook: Notebook, log: pytest.LogCaptureFixture
) -> None:
    notebook.fails_in = place
    assert result(train(logged("mlflow")).run.path)["weights"] == result(whole_run)["weights"]
    warnings = [record.getMessage() for record in log.records if "train.loggers" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].endswith("(ConnectionError: no route to host)")


def test_a_resumed_run_continues_in_the_same_place(logged: Make, whole_run: Path, notebook: Notebook) -> None:
    with pytest.raises(StoppedHereError):
        train(logged("mlflow"), on_report=stop_at(12))
    assert result(train(logged("mlflow"), resume=True).run.path) == result(whole_run)
    assert notebook.known == [None, "run-0"]
    assert [type(ending) for ending in notebook.endings] == [StoppedHereError, type(None)]
    assert set(notebook.steps("valid/accuracy")) == set(EVALUATED)
    train(logged("mlflow"), overwrite=True)
    assert notebook.known[-1] is None
    assert not (whole_run / RECORD).exists()


def test_a_second_signal_in_a_logger_stops_the_run(
    logged: Make, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(values: Any, step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(notebook, "log", stopped)
    with pytest.raises(StoppedError):
        train(logged("mlflow"))


def test_a_missing_package_is_named_before_any_work(
    logged: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'wandb' is not installed; run: pip install 'bilstm-cls\[wandb\]'"):
        train(logged("wandb"))
    assert not (tmp_path / "tiny" / "status.json").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra tensorboard")
@pytest.mark.filterwarnings("default")
def test_tensorboard_reads_what_was_logged(logged: Make, whole_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train(logged("tensorboard"))
    assert result(done.run.path)["weights"] == result(whole_run)["weights"]
    read = EventAccumulator(str(done.run / "tensorboard")).Reload()
    assert [event.step for event in read.Scalars("step/loss")] == STEPS
    rows = [row["valid/log_loss"] for row in history(done.run.path)]
    assert [event.value for event in read.Scalars("valid/log_loss")] == pytest.approx(rows)
    assert [event.value for event in read.Scalars("test/accuracy")] == pytest.approx([done.metrics["test/accuracy"]])
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    train.learning_rate: 0.02" in text


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow")
@pytest.mark.filterwarnings("default")
def test_mlflow_has_one_run_though_it_was_resumed(
    logged: Make, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(StoppedHereError):
        train(logged("mlflow"), on_report=stop_at(12))
    done = train(logged("mlflow"), resume=True)
    assert result(done.run.path)["weights"] == result(whole_run)["weights"]
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("bilstm-cls")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny")
    assert run.data.params["train.learning_rate"] == "0.02"
    assert run.data.metrics["test/accuracy"] == done.metrics["test/accuracy"]
    steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "valid/accuracy")}
    assert steps == set(EVALUATED)


def test_weights_and_biases_is_called_as_it_expects(logged: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    rows: list[tuple[int, dict[str, float]]] = []

    @contextlib.contextmanager
    def init(**options: Any) -> Iterator[Any]:
        calls.append(options)
        yield types.SimpleNamespace(id=options["id"] or "abc", log=lambda values, step: rows.append((step, values)))

    stand_in = installed("wandb")
    stand_in.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setenv("WANDB_PROJECT", "films")
    train(logged("wandb"))
    assert [(call["project"], call["name"], call["id"], call["resume"]) for call in calls] == [
        ("films", "tiny", None, "allow")
    ]
    assert calls[0]["config"]["train.learning_rate"] == 0.02
    assert [step for step, row in rows if "valid/accuracy" in row] == EVALUATED
    assert [step for step, _ in rows] == sorted(step for step, _ in rows)  # wandb takes no step back


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra wandb")
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_writes_an_offline_run(
    logged: Make, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert result(train(logged("wandb")).run.path)["weights"] == result(whole_run)["weights"]
    assert "left out" not in log.text
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert run.stat().st_size > 0
