"""Pretraining: it learns what is there, and ends with the same bits however it was interrupted."""

import json
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilstm_cls import device
from bilstm_cls.checkpoint import load_tensors
from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.prepare import encoder_folder, prepare
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.errors import ConfigError, StoppedError
from bilstm_cls.evaluation.report import score_table
from bilstm_cls.files import sha256_of
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.loop import StepReport
from bilstm_cls.training.pretrain import make_encoder, pretrain
from bilstm_cls.training.run import train
from tests.command_line import run_cli
from tests.conftest import PRETRAINED, TINY
from tests.training.runs import StoppedHereError, stop_at, without_time

pytestmark = pytest.mark.usefixtures("light")

Make = Callable[..., Config]


def result(folder: Path) -> dict[str, Any]:
    """All that two runs of one seed have in common."""
    return {
        "encoder": sha256_of(folder / "encoder.safetensors"),
        "tokenizer": sha256_of(folder / "tokenizer.json"),
        "metrics": without_time(json.loads((folder / "metrics.json").read_text("utf-8"))),
        "files": sorted(path.name for path in folder.iterdir() if path.name != ".lock"),
    }


def test_an_encoder_has_its_files_and_metrics_of_every_epoch_in_both_directions(
    tiny_config: Make, encoder: Path
) -> None:
    assert result(encoder)["files"] == [
        "config.yaml", "encoder.safetensors", "environment.json", "metrics.json", "status.json", "tokenizer.json",
        "train.log",
    ]  # fmt: skip
    assert RunDirectory(encoder).read_status()["status"] == "finished"
    metrics = RunDirectory(encoder).read_object("metrics.json")
    assert np.shape(metrics["held_out/perplexities"]) == (2, 2)
    last = [metrics[f"held_out/{name}_perplexity"] for name in ("forward", "backward")]
    assert metrics["held_out/perplexities"][-1] == last
    assert metrics["held_out/texts"] + metrics["pretrain/texts"] == 168
    lengths = prepare(tiny_config()).corpora["train"].num_tokens  # whole, whatever text.max_length is
    longest_two = 2 * (int(lengths.max()) - 1)  # one in a hundred is held out
    read = metrics["pretrain/tokens"] / 2  # epochs
    assert (lengths - 1).sum() - longest_two <= read <= (lengths - 1).sum()
    assert read > (np.minimum(lengths, 20) - 1).sum()


@pytest.mark.parametrize(("wanted", "passes"), [(0.1, 2), (3.0, 3), (99.0, 8)])
def test_a_small_corpus_is_read_more_often(
    wanted: float, passes: int, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tokens = int(prepare(tiny_config()).corpora["train"].num_tokens.sum())
    monkeypatch.setattr("bilstm_cls.training.pretrain.WANTED_TOKENS", wanted * num_tokens)
    metrics = pretrain(tiny_config(*PRETRAINED, "pretrain.epochs=null"), tmp_path / "encoder")
    assert len(metrics["held_out/perplexities"]) == passes


@pytest.fixture
def ordered(tmp_path: Path) -> list[str]:
    """Overrides of texts in which each token is followed by one of two, of thirty."""
    chooser, lines = random.Random(0), []
    for _ in range(200):
        place, words = chooser.randrange(30), []
        for _ in range(chooser.randint(10, 20)):
            words.append(f"w{place}")
            place = (place + chooser.choice([1, 7])) % 30
        lines.append(" ".join(words))
    rows = "".join(f"{line},{i % 2}\n" for i, line in enumerate(lines))
    (tmp_path / "ordered.csv").write_text(f"text,label\n{rows}", "utf-8")
    sizes = ["embedding.dim=16", "model.hidden_size=24", "train.threads=1", "pretrain.learning_rate=2e-2"]
    chunks = ["pretrain.batch_size=8", "pretrain.bptt=10", "pretrain.num_samples=20", "pretrain.epochs=4"]
    dropouts = ["pretrain.dropout=0", "pretrain.embedding_dropout=0"]
    return [f"data.train={tmp_path / 'ordered.csv'}", *sizes, *chunks, *dropouts]


def test_perplexity_falls_to_what_is_left_to_chance(ordered: list[str], tmp_path: Path) -> None:
    perplexities = pretrain(load_config(None, ordered), tmp_path / "encoder")["held_out/perplexities"]
    assert all(1.9 < value < 3 for value in perplexities[-1])
    assert perplexities[0] > perplexities[-1]


@pytest.mark.parametrize("steps", [[1], [17], [9, 18, 30]], ids=str)
def test_pretraining_that_was_cut_short_goes_on_to_the_same_bits(
    steps: list[int], tiny_config: Make, encoder: Path, tmp_path: Path
) -> None:
    config = tiny_config(*PRETRAINED, "train.checkpoint_seconds=0")
    for step in steps:
        with pytest.raises(StoppedHereError):
            pretrain(config, tmp_path / "encoder", resume=True, on_report=stop_at(step))
    pretrain(config, tmp_path / "encoder", resume=True)
    assert result(tmp_path / "encoder") == result(encoder)


def test_a_signal_in_the_middle_of_a_long_text_ends_it_at_once_and_it_goes_on_to_the_same_bits(
    tiny_config: Make, tmp_path: Path
) -> None:
    (tmp_path / "books.csv").write_text(
        "text,label\n"
        + "".join(f"{'good film it was ' * 200},pos\n{'bad film it was ' * 200},neg\n" for _ in range(4)),
        "utf-8",
    )
    config = tiny_config(
        *PRETRAINED, f"data.train={tmp_path / 'books.csv'}", "data.test=null", "data.valid=0.25", "pretrain.epochs=1",
        "train.checkpoint_seconds=1000",
    )  # fmt: skip

    def stop_soon(report: StepReport) -> None:
        if report.step in (9, 30):
            signal.raise_signal(signal.SIGTERM)

    for step in (9, 30):
        with pytest.raises(StoppedError):
            pretrain(config, tmp_path / "parts", resume=True, on_report=stop_soon)
        numbers = json.loads((tmp_path / "parts/checkpoints/last.json").read_text())["checkpoint"]
        assert (numbers["step"], numbers["pretrainer"]["progress"]["batch"]) == (step, 0)
    assert RunDirectory(tmp_path / "parts").read_status()["status"] == "stopped"
    pretrain(config, tmp_path / "parts", resume=True)
    pretrain(config, tmp_path / "whole")
    assert result(tmp_path / "parts") == result(tmp_path / "whole")


def test_a_taken_folder_is_left_alone_and_a_finished_one_returned(tiny_config: Make, encoder: Path) -> None:
    before = result(encoder)
    with pytest.raises(ConfigError, match="already holds a run that is finished"):
        pretrain(tiny_config(*PRETRAINED), encoder)
    with pytest.raises(ConfigError, match=r"pretrain\.epochs: 2 -> 3"):
        pretrain(tiny_config(*PRETRAINED, "pretrain.epochs=3"), encoder, resume=True)
    assert without_time(pretrain(tiny_config(*PRETRAINED, "train.epochs=9"), encoder, resume=True)) == before["metrics"]
    assert result(encoder) == before


def test_one_config_is_for_the_encoder_and_for_the_run_that_starts_from_it(reviews_csv: Path, tmp_path: Path) -> None:
    given = [*TINY, *PRETRAINED, f"data.train={reviews_csv}", "data.test=0.2", f"model.init_from={tmp_path / 'own'}"]
    options = [part for key in [*given, f"output_dir={tmp_path / 'runs'}"] for part in ("--set", key)]
    missing = run_cli("train", *options)
    assert (missing.code, f"{tmp_path / 'own'} holds no encoder" in missing.stderr) == (2, True)
    shown = run_cli("pretrain", *options)
    assert shown.code == 0, shown.stderr
    assert shown.stdout.startswith("perplexity of 2 texts that were held out: ")
    assert shown.stdout.endswith(f"start from it with --set model.init_from={tmp_path / 'own'}\n")
    metrics = json.loads((tmp_path / "own" / "metrics.json").read_text("utf-8"))
    assert run_cli("pretrain", *options, "--json", "--resume").json == metrics
    assert "init_from: null" in (tmp_path / "own" / "config.yaml").read_text("utf-8")
    assert run_cli("train", *options, "--json").code == 0


def test_a_run_pretrains_its_own_encoder_once(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    given = (*PRETRAINED, f"output_dir={tmp_path}")
    reports: list[Any] = []
    first = train(tiny_config(*given, "pretrain.enabled=true", "name=first"), on_report=reports.append)
    assert {report.total_steps for report in reports if isinstance(report, StepReport)} == {54, 44}
    pretrain(tiny_config(*given), tmp_path / "encoder")
    apart = train(tiny_config(*given, f"model.init_from={tmp_path / 'encoder'}", "name=apart"))
    ours, theirs = (load_tensors(run / "model.safetensors")[0] for run in (first.run, apart.run))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert first.metrics["encoder/sha256"] == apart.metrics["encoder/sha256"]
    assert first.run.load_config().pretrain.enabled
    assert re.search(r"; pretrained in [\d.]+ minutes, trained 44 steps in", score_table(first.metrics, first.run.path))

    reports.clear()
    second = train(
        tiny_config(*given, "pretrain.enabled=true", "name=second", "train.epochs=1"), on_report=reports.append
    )
    assert {report.total_steps for report in reports if isinstance(report, StepReport)} == {11}
    assert second.metrics["encoder/sha256"] == first.metrics["encoder/sha256"]
    assert len(list((tmp_path / "cache" / "encoders").iterdir())) == 1
    train(tiny_config(*given, "pretrain.enabled=true", "name=third", "train.epochs=1", "seed=2"))
    assert len(list((tmp_path / "cache" / "encoders").iterdir())) == 2


def test_a_second_run_that_needs_the_same_encoder_waits_for_the_first(
    tiny_config: Make, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    config = tiny_config(*PRETRAINED, "pretrain.enabled=true")
    data, steps = prepare(config), list[StepReport]()
    folder = encoder_folder(config, data.dataset.digest)
    second = threading.Thread(target=make_encoder, args=(config, data), kwargs={"on_report": steps.append})
    with RunDirectory(folder).locked():
        second.start()
        while "waiting" not in log.text:
            second.join(0.01)
        shutil.copytree(encoder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))
    second.join()
    assert steps == []


def test_a_busy_machine_is_named_once_for_pretraining_and_training(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bilstm_cls.device.LOAD_SECONDS", 0.0)
    monkeypatch.setattr("bilstm_cls.device.usable_cores", lambda: 10**6)  # any load is too much
    device.watch_load.cache_clear()
    pretrain(tiny_config(*PRETRAINED, "train.threads=1"), tmp_path / "encoder")
    assert log.text.count("other programs keep") == 1
    train(tiny_config("train.threads=1", "train.epochs=1", "name=busy"))
    assert log.text.count("other programs keep") == 1
    device.watch_load.cache_clear()


def test_a_text_is_encoded_once_between_its_file_and_the_metrics(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    split: list[str] = []
    original = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: split.extend(texts) or original(self, texts))
    train(tiny_config(*PRETRAINED, "pretrain.enabled=true", "train.epochs=1", "name=split-once"))
    assert len(split) == len(set(split)) == 240
