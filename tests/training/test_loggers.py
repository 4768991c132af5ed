import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.errors import ConfigError
from bilstm_cls.training.record import LOGGERS, RECORD
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
