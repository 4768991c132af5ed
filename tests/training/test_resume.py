"""A run that is stopped or killed, at whatever moment and however often, ends with the bits of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.errors import StoppedError
from bilstm_cls.training.loop import EvaluationReport
from bilstm_cls.training.record import SIGNALS
from bilstm_cls.training.run import train
from tests.training.runs import StoppedHereError, result, stop_at

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def undisturbed(whole_run: Path) -> dict[str, Any]:
    """What a run leaves behind that nothing ever happened to: 2 epochs of 11 steps."""
    return result(whole_run)


@pytest.fixture
def often(short_config: Make, tmp_path: Path) -> Config:
    """The config of the undisturbed run elsewhere, with a checkpoint after every step."""
    return short_config(f"output_dir={tmp_path}", "train.checkpoint_seconds=0")


def where(config: Config) -> Path:
    return Path(config.output_dir) / config.name


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("steps", [[1], [11], [12], [22], [4, 8, 8], [3, 13, 14, 15, 20]], ids=str)
def test_a_run_that_was_cut_short_goes_on_to_the_same_bits(
    often: Config, undisturbed: dict[str, Any], steps: list[int]
) -> None:
    for step in steps:
        with pytest.raises(StoppedHereError):
            train(often, resume=True, on_report=stop_at(step))
    train(often, resume=True)
    assert result(where(often)) == undisturbed


@pytest.mark.usefixtures("light")
def test_a_run_with_few_checkpoints_repeats_what_was_lost(
    short_config: Make, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    config = short_config(f"output_dir={tmp_path}", "train.checkpoint_seconds=1000")
    for step in (5, 9, 20):
        with pytest.raises(StoppedHereError):
            train(config, resume=True, on_report=stop_at(step))
    train(config, resume=True)
    assert result(tmp_path / "tiny") == undisturbed


@pytest.mark.usefixtures("light")
def test_a_run_that_is_cut_short_at_an_evaluation_repeats_it(often: Config, undisturbed: dict[str, Any]) -> None:
    def stop(report: Any) -> None:
        if isinstance(report, EvaluationReport):
            raise StoppedHereError

    with pytest.raises(StoppedHereError):
        train(often, on_report=stop)
    train(often, resume=True)
    assert result(where(often)) == undisturbed


VARIANTS = [
    ["train.optimizer=sgd", "train.learning_rate=0.5", "train.ema_decay=null"],
    ["embedding.init=ppmi", "embedding.freeze=true", "model.cell=gru", "model.pooling=attention"],
    ["train.class_weights=balanced", "train.label_smoothing=0.1", "model.num_layers=2", "model.layer_dropout=0.2"],
    ["train.batch_tokens=200", "train.evaluate_every=7", "train.select_by=valid/log_loss", "train.patience=3"],
]


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_a_run_of_any_kind_goes_on_to_the_same_bits(short_config: Make, tmp_path: Path, overrides: list[str]) -> None:
    overrides = [*overrides, f"output_dir={tmp_path}", "train.checkpoint_seconds=0"]
    train(short_config(*overrides, "name=whole"))
    for step in (2, 6, 13):
        with pytest.raises(StoppedHereError):
            train(short_config(*overrides), resume=True, on_report=stop_at(step))
    train(short_config(*overrides), resume=True)
    assert result(tmp_path / "tiny") == result(tmp_path / "whole")


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals that are not ignored, even where the tests themselves run under nohup."""
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("light", "heeded")
@pytest.mark.parametrize(
    ("number", "at"),
    [(signal.SIGINT, 3), (signal.SIGINT, 11), (signal.SIGINT, 22), (signal.SIGTERM, 5), (signal.SIGHUP, 13)],
)
def test_a_signal_saves_the_step_it_found_and_no_more(
    short_config: Make, tmp_path: Path, undisturbed: dict[str, Any], number: signal.Signals, at: int
) -> None:
    config = short_config(f"output_dir={tmp_path}", "train.checkpoint_seconds=1000")

    def interrupt(report: Any) -> None:
        if getattr(report, "step", None) == at:
            signal.raise_signal(number)

    with pytest.raises(StoppedError, match=f"stopped by {number.name}") as caught:
        train(config, on_report=interrupt)
    assert caught.value.exit_code == 128 + number
    status = json.loads((tmp_path / "tiny" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("stopped", 128 + number)
    last = json.loads((tmp_path / "tiny" / "checkpoints" / "last.json").read_text())
    assert last["checkpoint"]["step"] == at
    train(config, resume=True)
    assert result(tmp_path / "tiny") == undisturbed


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    ("call", "first"), [("fsync", 39), ("replace", 31), ("fsync", 63), ("replace", 32), ("replace", 33)]
)
def test_a_second_signal_in_the_middle_of_saving_does_no_harm(
    often: Config, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: str, first: int
) -> None:
    """Both come between two system calls of a save, so the second one finds a file half written or not yet renamed."""
    original, count = getattr(os, call), iter(range(1, 10_000))

    def interrupted(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if next(count) == first:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        with pytest.raises(StoppedError):
            train(often)
    assert not list(where(often).rglob("*.tmp"))
    train(often, resume=True)
    assert result(where(often)) == undisturbed


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("what", ["preparing", "evaluating"])
def test_a_signal_outside_of_the_loop_stops_at_once_and_loses_nothing(
    often: Config, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    name = {"preparing": "prepare", "evaluating": "write_results"}[what]
    with monkeypatch.context() as patch:
        patch.setattr(f"bilstm_cls.training.run.{name}", lambda *args, **options: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(often)
    has_begun = (where(often) / "status.json").exists()
    assert has_begun == (what == "evaluating")
    assert not has_begun or json.loads((where(often) / "status.json").read_text())["status"] == "stopped"
    train(often, resume=True)
    assert result(where(often)) == undisturbed


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("renamed", ["step-00000011.safetensors", "history.jsonl", "best.json", "last.json"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_checkpoint_that_was_half_written_is_made_good(
    often: Config, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, renamed: str, is_done: bool
) -> None:
    """The run ends just before or after a rename in the save that follows the evaluation of step 11."""
    replace, progress = os.replace, []

    def ending(source: Any, target: Any) -> None:
        is_here = Path(target).name == renamed and bool(progress)
        if not is_here or is_done:
            replace(source, target)
        if is_here:
            raise StoppedHereError

    def watch(report: Any) -> None:
        if isinstance(report, EvaluationReport) and report.row["step"] == 11:
            progress.append(report)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", ending)
        with pytest.raises(StoppedHereError):
            train(often, on_report=watch)
    train(often, resume=True)
    assert result(where(often)) == undisturbed


@pytest.fixture(scope="module")
def long(short_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Config]:
    """Configs of one run that is long enough to be met in the middle, by name."""
    output = tmp_path_factory.mktemp("long")
    return lambda name: short_config(f"output_dir={output}", f"name={name}", "train.epochs=30")


@pytest.fixture(scope="module")
def long_undisturbed(long: Callable[[str], Config], light: None) -> dict[str, Any]:
    return result(train(long("undisturbed")).run.path)


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_says_so_and_goes_on_to_the_same_bits(
    long: Callable[[str], Config],
    long_undisturbed: dict[str, Any],
    tmp_path: Path,
    number: signal.Signals,
    exit_code: int,
) -> None:
    config = long(number.name)
    (tmp_path / "config.yaml").write_text(dump_config(config), "utf-8")
    command = [sys.executable, "-m", "bilstm_cls", "train", "-c", str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if line.startswith("epoch 1, step 11"))
        process.send_signal(number)
        output, errors = process.communicate()
    assert (process.returncode, output) == (exit_code, ""), told + errors
    assert f"stopped by {number.name}" in errors
    assert "Traceback" not in errors
    status = json.loads((where(config) / "status.json").read_text("utf-8"))
    assert (status["status"], status["exit_code"]) == ("stopped", exit_code)
    assert not (where(config) / "model.safetensors").exists()
    train(config, resume=True)
    assert result(where(config)) == long_undisturbed
