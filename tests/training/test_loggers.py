import importlib
import importlib.util
import json
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.errors import ConfigError, StoppedError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training import loggers
from bilstm_cls.training.loggers import LOGGERS, RECORD, Entry, check_installed
from bilstm_cls.training.loop import StepReport
from bilstm_cls.training.run import train
from tests.training.runs import StoppedHereError, history, result, stop_at

pytestmark = pytest.mark.usefixtures("light")

Make = Callable[..., Config]
STEPS = [10, 20]
EVALUATED = [11, 22]


class Notebook:
    """A logger that keeps what it is given, by run."""

    runs: ClassVar[dict[str, "Notebook"]] = {}

    def __new__(cls, run: RunDirectory, config: Config, known: str | None) -> "Notebook":
        if known is None:
            known = f"run-{len(cls.runs)}"
            cls.runs[known] = super().__new__(cls)
            cls.runs[known].settings, cls.runs[known].entries, cls.runs[known].ends = [], [], []
        return cls.runs[known]

    def __init__(self, run: RunDirectory, config: Config, known: str | None) -> None:
        self.identity = next(name for name, one in self.runs.items() if one is self)
        self.is_finished: bool | None = None
        self.settings: list[dict[str, Any]]
        self.entries: list[Entry]
        self.ends: list[Entry]

    def begin(self, settings: Any) -> None:
        self.settings.append(settings)

    def log(self, entries: Any) -> None:
        self.entries += entries

    def end(self, settings: Any, scores: Entry) -> None:
        self.ends.append(scores)

    def close(self, *, is_finished: bool) -> None:
        self.is_finished = is_finished

    def steps(self, name: str) -> list[int]:
        return [entry.step for entry in self.entries if name in entry.values]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Notebook]:
    """Puts the notebook in the place of MLflow and returns what gives the only run in it."""
    monkeypatch.setattr(Notebook, "runs", {})
    monkeypatch.setitem(LOGGERS, "mlflow", ("json", Notebook))

    def only() -> Notebook:
        (one,) = Notebook.runs.values()
        return one

    return only


@pytest.fixture
def logged(short_config: Make, tmp_path: Path) -> Callable[..., Config]:
    """Returns the config of a run of 22 steps that logs."""
    return lambda *names: short_config(f"output_dir={tmp_path}", f"train.loggers={json.dumps(names)}")


def test_a_logger_hears_settings_steps_evaluations_and_final_scores(
    logged: Make, notebook: Callable[[], Notebook]
) -> None:
    done = train(logged("mlflow"))
    one = notebook()
    assert [settings["train.epochs"] for settings in one.settings] == [2]
    assert one.settings[0]["run.seed"] == 1
    assert one.steps("step/loss") == STEPS
    assert one.steps("valid/accuracy") == EVALUATED
    rows = [entry.values for entry in one.entries if "valid/accuracy" in entry.values]
    assert [row["valid/accuracy"] for row in rows] == [row["valid/accuracy"] for row in history(done.run.path)]
    (scores,) = one.ends
    assert scores.step == 22
    assert scores.values["test/accuracy"] == done.metrics["test/accuracy"]
    assert scores.values["best/valid/accuracy"] == done.metrics["valid/accuracy"]
    assert one.is_finished is True


def test_a_run_without_loggers_leaves_no_record(whole_run: Path) -> None:
    assert not (whole_run / RECORD).exists()


class Broken(Notebook):
    """Fails where its attribute says."""

    at = ""

    def begin(self, settings: Any) -> None:
        self.fail("begin")

    def log(self, entries: Any) -> None:
        self.fail("log")

    def end(self, settings: Any, scores: Entry) -> None:
        self.fail("end")

    def close(self, *, is_finished: bool) -> None:
        self.fail("close")

    def fail(self, place: str) -> None:
        if place == self.at:
            raise ConnectionError("no route to host\nand more")


@pytest.mark.parametrize("place", ["begin", "log", "end", "close"])
def test_a_logger_that_fails_warns_once_and_changes_nothing(
    place: str,
    logged: Make,
    whole_run: Path,
    notebook: Callable[[], Notebook],
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Broken, "at", place)
    monkeypatch.setitem(LOGGERS, "mlflow", ("json", Broken))
    assert result(train(logged("mlflow")).run.path)["weights"] == result(whole_run)["weights"]
    warnings = [record.getMessage() for record in log.records if "train.loggers" in record.getMessage()]
    assert warnings == [
        "train.loggers: 'mlflow' is left out from here on, the training goes on (ConnectionError: no route to host)"
    ]


def test_the_others_go_on_when_one_fails(
    logged: Make, notebook: Callable[[], Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setitem(LOGGERS, "wandb", ("json", absent))
    train(logged("wandb", "mlflow"))
    assert notebook().steps("valid/accuracy") == EVALUATED


def test_logging_changes_no_bit_of_a_run(logged: Make, whole_run: Path, notebook: Callable[[], Notebook]) -> None:
    assert result(train(logged("mlflow")).run.path) == result(whole_run)


@pytest.mark.parametrize("step", [5, 10, 11, 12, 21])
def test_a_resumed_run_goes_on_in_the_same_logs_without_a_step_twice(
    step: int, logged: Make, notebook: Callable[[], Notebook]
) -> None:
    config = logged("mlflow")
    with pytest.raises(StoppedHereError):
        train(config, on_report=stop_at(step))
    assert notebook().is_finished is False
    train(config, resume=True)
    one = notebook()
    assert len(one.settings) == len(one.ends) == 1
    assert one.steps("step/loss") == STEPS
    assert one.steps("valid/accuracy") == EVALUATED
    assert one.is_finished is True


def test_a_kill_between_record_and_logger_leaves_no_step_twice(
    logged: Make, notebook: Callable[[], Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = loggers.RunLoggers.take
    config = logged("mlflow")

    def cut(self: Any, report: Any) -> None:
        take(self, report)
        if not isinstance(report, StepReport):
            raise StoppedHereError  # the evaluation is logged, and no checkpoint knows of it

    with monkeypatch.context() as patch:
        patch.setattr(loggers.RunLoggers, "take", cut)
        with pytest.raises(StoppedHereError):
            train(config)
    train(config, resume=True)
    assert notebook().steps("valid/accuracy") == EVALUATED


def test_a_finished_run_is_not_logged_again(logged: Make, notebook: Callable[[], Notebook]) -> None:
    train(logged("mlflow"))
    train(logged("mlflow"), resume=True)
    assert len(notebook().ends) == 1


def test_overwriting_logs_a_new_run(logged: Make, notebook: Callable[[], Notebook]) -> None:
    train(logged("mlflow"))
    train(logged("mlflow"), overwrite=True)
    assert [one.steps("valid/accuracy") for one in Notebook.runs.values()] == [EVALUATED] * 2


def test_loggers_may_change_when_a_run_is_resumed(logged: Make, whole_run: Path, notebook: Any) -> None:
    with pytest.raises(StoppedHereError):
        train(logged(), on_report=stop_at(12))
    assert result(train(logged("mlflow"), resume=True).run.path) == result(whole_run)
    assert notebook().steps("valid/accuracy") == EVALUATED[1:]


def test_a_second_signal_in_a_logger_stops_the_run(
    logged: Make, notebook: Callable[[], Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any, entries: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Notebook, "log", stopped)
    with pytest.raises(StoppedError):
        train(logged("mlflow"))


def test_a_missing_package_is_named_before_any_work(
    logged: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(LOGGERS, "wandb", ("no_such_module", Notebook))
    with pytest.raises(ConfigError, match=r"'wandb' is not installed; run: pip install 'bilstm-cls\[wandb\]'"):
        train(logged("wandb"))
    assert not (tmp_path / "tiny" / "status.json").exists()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [("[tensorflow]", "did you mean 'tensorboard'"), ("[mlflow, mlflow]", "without duplicates"), ("3", "a list")],
)
def test_only_known_loggers_are_taken(value: str, complaint: str, short_config: Make) -> None:
    with pytest.raises(ConfigError, match=complaint):
        short_config(f"train.loggers={value}")


def test_one_logger_needs_no_list(short_config: Make) -> None:
    assert short_config("train.loggers=mlflow").train.loggers == ["mlflow"]


def test_nothing_is_imported_where_nothing_is_logged() -> None:
    heavy = "{'tensorboard', 'mlflow', 'wandb', 'torch.utils.tensorboard'}"
    script = f"import sys, bilstm_cls.training.run; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def events(run: RunDirectory) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard")).Reload()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra tensorboard")
@pytest.mark.filterwarnings("default")
def test_tensorboard_reads_what_was_logged_once_though_the_run_was_resumed(logged: Make, whole_run: Path) -> None:
    config = logged("tensorboard")
    with pytest.raises(StoppedHereError):
        train(config, on_report=stop_at(12))
    done = train(config, resume=True)
    assert result(done.run.path)["weights"] == result(whole_run)["weights"]
    read = events(done.run)
    assert [event.step for event in read.Scalars("step/loss")] == STEPS
    assert [event.step for event in read.Scalars("valid/accuracy")] == EVALUATED
    rows = history(done.run.path)
    assert [event.value for event in read.Scalars("valid/log_loss")] == pytest.approx(
        [row["valid/log_loss"] for row in rows]
    )
    assert [event.value for event in read.Scalars("test/accuracy")] == pytest.approx([done.metrics["test/accuracy"]])
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    learning_rate: 0.02" in text
    hyperparameters = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"train.learning_rate" in hyperparameters
    train(config, overwrite=True)
    assert [event.step for event in events(done.run).Scalars("valid/accuracy")] == EVALUATED


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("store", ["sqlite:///{}/mlflow.db", "file://{}/store"])
def test_mlflow_has_what_was_logged_once_though_the_run_was_resumed(
    store: str, logged: Make, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = logged("mlflow")
    with pytest.raises(StoppedHereError):
        train(config, on_report=stop_at(12))
    done = train(config, resume=True)
    assert result(done.run.path)["weights"] == result(whole_run)["weights"]
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("bilstm-cls")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.params["train.learning_rate"] == "0.02"
    assert run.data.metrics["test/accuracy"] == done.metrics["test/accuracy"]
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "valid/accuracy")]
    assert sorted(steps) == EVALUATED


class StandIn(types.ModuleType):
    """Keeps what Weights & Biases would be given, and lets steps go forward only, as it does."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.scores: dict[str, float] = {}
        self.codes: list[int] = []

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        return types.SimpleNamespace(
            id=options["id"] or "abc",
            config=types.SimpleNamespace(update=self.settings.update),
            summary=types.SimpleNamespace(update=self.scores.update),
            log=self.log,
            finish=lambda exit_code: self.codes.append(exit_code),
        )

    def log(self, row: dict[str, float], step: int) -> None:
        assert not self.rows or step >= self.rows[-1][0]
        self.rows.append((step, row))


def test_weights_and_biases_is_spoken_to_in_its_own_words(logged: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setenv("WANDB_PROJECT", "films")
    config = logged("wandb")
    with pytest.raises(StoppedHereError):
        train(config, on_report=stop_at(12))
    done = train(config, resume=True)
    options = {"project": "films", "name": "tiny", "resume": "allow"}
    assert stand_in.inits == [{**options, "id": None}, {**options, "id": "abc"}]
    assert [step for step, row in stand_in.rows if "valid/accuracy" in row] == EVALUATED
    assert stand_in.settings["train.learning_rate"] == 0.02
    assert stand_in.scores["test/accuracy"] == done.metrics["test/accuracy"]
    assert stand_in.codes == [1, 0]


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
    importlib.import_module("wandb").teardown()  # its own process writes the rest
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"valid/accuracy" in run.read_bytes()


def test_every_logger_that_the_config_names_is_there() -> None:
    check_installed([])
    schema = load_config(None, ["data.train=x.csv", f"train.loggers={json.dumps(list(LOGGERS))}"])
    assert schema.train.loggers == list(LOGGERS)
