"""Run directories: who may write where, what is deleted, and how a trained model is read back."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bilstm_cls.config import Config
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.ngrams import NgramCounts, NgramModel
from bilstm_cls.run_directory import RUN_FILES, LoadedModel, RunDirectory, build_model, environment
from tests.command_line import contents

TEXTS = ["a fine film", "a dull film"]
BATCH = torch.tensor([[2, 3, 4], [3, 1, 0]]), torch.tensor([3, 2])


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "one")


@pytest.fixture
def copied(trained_run: Path, tmp_path: Path) -> RunDirectory:
    """A finished run that may be damaged."""
    return RunDirectory(shutil.copytree(trained_run, tmp_path / "copied"))


def test_a_directory_is_made_and_held_for_one_writer(run: RunDirectory) -> None:
    with run.locked():
        with pytest.raises(ConfigError, match=r"another run is writing here; use another"):  # it still reads its data
            run.locked().__enter__()
        run.write_status("running", "training")
        with pytest.raises(ConfigError, match=rf"another run is writing here \(process {os.getpid()} on "):
            run.locked().__enter__()
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    with run.locked():
        assert run.read_status()["status"] == "running"


@pytest.mark.parametrize("status", [None, "", "[]", "{}", "not JSON", '"status"'])
def test_a_directory_with_other_files_is_refused_and_left_alone(run: RunDirectory, status: str | None) -> None:
    (run.path / "plots").mkdir(parents=True)
    for name in ("README.md", "config.yaml", "plots/curve.png", "train.log"):
        (run / name).write_text("of the user")
    if status is not None:
        (run / "status.json").write_text(status)
    before = contents(run.path)
    assert run.read_status() == {}
    with pytest.raises(ConfigError, match="choose another place"):
        assert run.is_taken
    with pytest.raises(ConfigError, match="nothing is written or deleted"):
        run.clear()
    assert contents(run.path) == before


def test_clearing_deletes_all_files_of_a_run_and_no_others(copied: RunDirectory) -> None:
    assert copied.is_taken
    known = {path for pattern in RUN_FILES for path in copied.path.glob(pattern)}
    assert {path for path in copied.path.rglob("*") if path.is_file()} - known <= {copied / ".lock"}
    (copied / "predictions_valid.csv").touch()
    others = {"notes.txt", "plots/notes.txt", "checkpoints/keep/step-1.safetensors", "labels.json.bak"}
    for name in others:
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("of the user")
    copied.clear()
    assert set(contents(copied.path)) - {".lock"} == others


def saved(run: RunDirectory, config: Config, number: int = 1) -> LoadedModel:
    """Writes an untrained model, or an ensemble of some, and returns it."""
    torch.manual_seed(1)
    tokenizer = Tokenizer.train(TEXTS, kind="words")
    models = [build_model(config, len(tokenizer), 2).eval() for _ in range(number)]
    ngrams = NgramModel.train(NgramCounts.of(TEXTS), np.array([1, 0]), 2) if config.model.ngrams else None
    loaded = LoadedModel(models[0], tokenizer, ["neg", "pos"], config, ngrams, tuple(models[1:]))
    run.save_model(loaded)
    return loaded


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        ([], 1),
        (["model.cell=gru", "model.num_layers=2", "model.pooling=concat"], 1),
        (["model.bidirectional=false", "model.pooling=[attention, last]"], 2),
        (["embedding.init=ppmi", "embedding.freeze=true", "text.truncate=head"], 1),
        (["model.ngrams=nbsvm"], 1),
        (["model.ngrams=nbsvm"], 3),
    ],
)
def test_a_model_comes_back_as_it_was_saved(
    run: RunDirectory, tiny_config: Callable[..., Config], overrides: list[str], number: int
) -> None:
    expected = saved(run, tiny_config(*overrides), number)
    loaded = run.load_model()
    for found, member in zip(loaded.members, expected.members, strict=True):
        assert torch.equal(found(*BATCH), member(*BATCH))
        assert not found.training
    assert (loaded.labels, loaded.config) == (expected.labels, expected.config)
    assert loaded.tokenizer.encode_batch(["a fine film"]) == [[2, 5, 3]]
    assert (loaded.ngrams is None) == (expected.ngrams is None)
    if loaded.ngrams is not None and expected.ngrams is not None:
        assert np.array_equal(loaded.ngrams.logits(TEXTS), expected.ngrams.logits(TEXTS))


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json", "labels.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\x80\x04\x95 {[%"], ids=["a folder", "empty", "garbage"])
def test_a_file_of_the_model_that_is_damaged_is_named(copied: RunDirectory, name: str, content: bytes | None) -> None:
    (copied / name).unlink()
    if content is None:
        (copied / name).mkdir()
    else:
        (copied / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        copied.load_model()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("pooling: mean", "pooling: max", r"config\.yaml: model\.pooling is "),
        ("lowercase: true", "lowercase: false", r"config\.yaml: text\.lowercase is "),
        ("dim: 8", "dim: 7", r"model\.safetensors does not fit config\.yaml"),
    ],
)
def test_a_config_that_does_not_fit_the_model_is_refused(
    copied: RunDirectory, before: str, after: str, message: str
) -> None:
    text = (copied / "config.yaml").read_text("utf-8")
    assert before in text
    (copied / "config.yaml").write_text(text.replace(before, after), "utf-8")
    with pytest.raises(CheckpointError, match=message):
        copied.load_model()


def test_a_repository_that_cannot_be_read_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    assert "git_commit" in environment("cpu", 1)


def test_the_commit_is_found_where_references_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    for words in ("init -q", "commit -q --allow-empty -m first", "pack-refs --all"):
        subprocess.run([*git, *words.split()], check=True)
    monkeypatch.chdir(tmp_path)
    assert len(environment("cpu", 1)["git_commit"]) == 40
