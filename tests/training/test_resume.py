"""A run that is stopped or killed, at whatever moment and however often, ends with the bits of an undisturbed one."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.errors import StoppedError
from bilstm_cls.training.distributed import STOP_SIGNALS
from bilstm_cls.training.run import train
from tests.training.runs import StoppedHereError, result, stop_at

Make = Callable[..., Config]

pytestmark = pytest.mark.usefixtures("light")


@pytest.fixture(scope="module")
def undisturbed(whole_run: Path) -> dict[str, Any]:
    """What a run leaves behind that nothing ever happened to: 2 epochs of 11 steps."""
    return result(whole_run)


@pytest.mark.parametrize(("seconds", "steps"), [(0, [11]), (0, [3, 13, 14, 22]), (1000, [5, 20])], ids=str)
def test_a_run_that_was_cut_short_goes_on_to_the_same_bits(
    short_config: Make, tmp_path: Path, undisturbed: dict[str, Any], seconds: int, steps: list[int]
) -> None:
    config = short_config(f"output_dir={tmp_path}", f"train.checkpoint_seconds={seconds}")
    for step in steps:
        with pytest.raises(StoppedHereError):
            train(config, resume=True, on_report=stop_at(step))
    train(config, resume=True)
    assert result(tmp_path / "tiny") == undisturbed


VARIANTS = [
    ["train.optimizer=sgd", "train.learning_rate=0.5", "train.ema_decay=null"],
    ["embedding.init=ppmi", "embedding.freeze=true", "model.cell=gru", "model.pooling=attention"],
    ["train.class_weights=balanced", "train.label_smoothing=0.1", "model.num_layers=2", "model.layer_dropout=0.2"],
    ["train.batch_tokens=200", "train.evaluate_every=7", "train.select_by=valid/log_loss", "train.patience=3"],
]


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
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 11), (signal.SIGTERM, 5), (signal.SIGHUP, 22)])
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
