"""A whole run: what it writes, that it is the same each time, however often it was stopped, and what it refuses."""

import json
import math
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bilstm_cls.checkpoint import load_newest
from bilstm_cls.config import Config, PretrainConfig
from bilstm_cls.config_file import load_config
from bilstm_cls.errors import ConfigError, DataError, DivergedError, StoppedError
from bilstm_cls.evaluation.evaluate import evaluate
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.distributed import STOP_SIGNALS
from bilstm_cls.training.loop import StepReport, Trainer
from bilstm_cls.training.run import FREE_KEYS, train
from tests.command_line import contents
from tests.training.runs import StoppedHereError, result, stop_at

Make = Callable[..., Config]

pytestmark = pytest.mark.usefixtures("light")

RUN_FILES = {
    "config.yaml", "model.safetensors", "tokenizer.json", "labels.json", "metrics.json", "history.jsonl",
    "predictions_test.csv", "report.html", "environment.json", "status.json", "train.log", "README.md", "plots",
    "checkpoints",
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped_run(short_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same config as `whole_run` that came to an end after step 15 of 22."""
    output = tmp_path_factory.mktemp("stopped")
    with pytest.raises(StoppedHereError):
        train(short_config(f"output_dir={output}", "train.checkpoint_seconds=0"), on_report=stop_at(16))
    return output / "tiny"


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(stopped_run, tmp_path / "tiny"))


def resume(run: RunDirectory, make: Make, *overrides: str) -> RunDirectory:
    return train(make(f"output_dir={run.path.parent}", *overrides), resume=True).run


def test_a_finished_run_holds_its_files_and_no_others(trained_run: Path, tiny_config: Make) -> None:
    run = RunDirectory(trained_run)
    assert {path.name for path in trained_run.iterdir()} - {".lock"} == RUN_FILES
    assert {path.suffix for path in (trained_run / "plots").iterdir()} == {".png"}
    names = {path.name for path in (trained_run / "checkpoints").iterdir()}
    assert {"best.json", "last.json"} < names
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    assert load_config(trained_run / "config.yaml") == tiny_config()
    assert run.read_status()["status"] == "finished"
    environment = run.read_json("environment.json")
    assert (environment["threads"], environment["processes"], environment["device"]) == (1, 1, "cpu")
    assert environment["precision"] == "float32"
    assert len(environment["data_digest"]) == 64
    log = (trained_run / "train.log").read_text("utf-8")
    assert "epoch 4, step 44: train/loss" in log
    assert "INFO train: 168 texts" in log


def test_only_the_seed_and_the_config_decide_the_bits(short_config: Make, whole_run: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)
    same = train(short_config(f"output_dir={tmp_path}"), on_report=lambda report: torch.rand(1)).run
    assert result(same.path) == result(whole_run)
    for name in ("tokenizer.json", "labels.json"):
        assert (same / name).read_bytes() == (whole_run / name).read_bytes()
    for override in ("seed=2", "train.class_weights={neg: 1.0, pos: 5.0}"):
        other = train(short_config(f"output_dir={tmp_path}", override), overwrite=True).run
        assert (other / "model.safetensors").read_bytes() != (whole_run / "model.safetensors").read_bytes()


def test_without_a_test_split_the_scores_are_those_of_valid_and_say_so(short_config: Make, tmp_path: Path) -> None:
    result = train(short_config(f"output_dir={tmp_path}", "data.test=null", "train.epochs=1"))
    assert "valid/confusion_matrix" in result.metrics
    assert not [key for key in result.metrics if key.startswith("test/")]
    assert (result.run / "predictions_valid.csv").exists()
    assert not (result.run / "predictions_test.csv").exists()
    assert result.metrics["valid/log_loss"] == pytest.approx(evaluate(result.run.path, split="valid")[1].log_loss)
    for name in ("report.html", "README.md"):
        assert "scores of the valid split, which also chose the weights" in (result.run / name).read_text("utf-8")


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["train.epochs=9", "seed=2"], "seed: 1 -> 2\n  train.epochs: 2 -> 9"),
        (["pretrain.enabled=true"], "pretrain.enabled: false -> true"),
        (["model.pooling=max"], 'model.pooling: "mean" -> "max"'),
    ],
)
def test_another_config_is_refused_with_the_keys_that_changed(
    stopped: RunDirectory, short_config: Make, overrides: list[str], changed: str
) -> None:
    before = contents(stopped.path)
    with pytest.raises(ConfigError, match=re.escape(f"\n  {changed}\n")):
        resume(stopped, short_config, *overrides)
    assert contents(stopped.path) == before


OTHER_VALUES = {
    "train.max_minutes": "99", "train.checkpoint_seconds": "17", "train.device": "cpu", "train.threads": "1",
    "train.processes": "1", "train.baselines": "false",
}  # fmt: skip


def test_keys_that_do_not_change_the_result_may_change(
    stopped: RunDirectory, short_config: Make, whole_run: Path, tmp_path: Path
) -> None:
    pretraining = {f"pretrain.{key}" for key in PretrainConfig.model_fields if key != "enabled"}
    assert {"name", "output_dir", "train.loggers", *pretraining, *OTHER_VALUES} == set(FREE_KEYS)
    moved = stopped.path.rename(tmp_path / "elsewhere")
    overrides = [f"{key}={value}" for key, value in OTHER_VALUES.items()] + ["pretrain.epochs=9"]
    run = resume(RunDirectory(moved), short_config, "name=elsewhere", *overrides)
    assert (run / "model.safetensors").read_bytes() == (whole_run / "model.safetensors").read_bytes()
    assert run.load_config().train.max_minutes == 99


@pytest.mark.parametrize(
    ("step", "seconds", "found"),
    [(5, 0, "a weight is not finite"), (11, 99, "the logits of valid"), (22, 99, "the logits of valid")],
)
def test_weights_that_are_not_finite_are_neither_evaluated_nor_saved(
    short_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, seconds: int, found: str
) -> None:
    take_step = Trainer.step

    def spoiling(trainer: Trainer) -> StepReport:
        report = take_step(trainer)
        if report.step == step:
            with torch.no_grad():
                trainer.model.project.bias[0] = math.nan
        return report

    monkeypatch.setattr(Trainer, "step", spoiling)
    config = short_config(f"output_dir={tmp_path}", f"train.checkpoint_seconds={seconds}", "train.ema_decay=null")
    with pytest.raises(DivergedError, match=rf"diverged at step {step}: {found}.*, learning rate [\de.-]+; lower"):
        train(config)
    assert RunDirectory(tmp_path / "tiny").read_status()["exit_code"] == 5
    newest = load_newest(tmp_path / "tiny" / "checkpoints")
    assert newest is None or newest[1]["step"] < step


def test_changed_data_are_refused(short_config: Make, reviews_csv: Path, tmp_path: Path) -> None:
    text, data = reviews_csv.read_text("utf-8"), tmp_path / "reviews.csv"
    data.write_text(text, "utf-8")
    config = short_config(f"output_dir={tmp_path}", f"data.train={data}", "train.checkpoint_seconds=0")
    with pytest.raises(StoppedHereError):
        train(config, on_report=stop_at(3))
    data.write_text(text.replace("good", "great", 1), "utf-8")
    with pytest.raises(DataError, match=r"the data are not those this run started with \(data differs\)"):
        train(config, resume=True)


VARIANTS: list[list[str]] = [
    [],
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
    short_config: Make, tmp_path: Path, whole_run: Path, number: signal.Signals, at: int
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
    assert result(tmp_path / "tiny") == result(whole_run)
