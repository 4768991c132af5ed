"""Tensor files and checkpoints: whole or not there, verified, and the newest intact one found."""

import ast
import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilstm_cls
from bilstm_cls.checkpoint import (
    digest_of,
    load_best,
    load_checkpoint,
    load_newest,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from bilstm_cls.errors import CheckpointError, ResourceError
from tests.training.runs import flip

NUMBERS: dict[str, Any] = {"trainer": {"loss": 0.1 + 0.2, "rows": [{"score": None, "läbel": "ä"}]}, "facts": {}}


def tensors(step: int) -> dict[str, Tensor]:
    return {"weight": torch.full((3, 5), float(step)), "step": torch.tensor(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save_checkpoint(folder, 2, tensors(2), NUMBERS, roles=("best", "last"))
    save_checkpoint(folder, 5, tensors(5), NUMBERS, roles=("last",))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """The checkpoints of a run whose best step is 2 and whose last is 5."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(folder: Path) -> int | None:
    loaded = load_newest(folder)
    return None if loaded is None else loaded[1]["step"]


@pytest.mark.parametrize(("number", "best", "newest"), [(1, 2, 5), (2, 2, 5), (3, 7, 7)])
def test_a_disk_that_is_full_during_a_save_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, best: int, newest: int
) -> None:
    """At the tensors, at `best.json` and at `last.json`."""
    writes = itertools.count(1)

    def full(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode) and next(writes) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no room left") as caught:
        save_checkpoint(folder, 7, tensors(7), NUMBERS, roles=("best", "last"))
    assert (caught.value.exit_code, newest_step(folder), list(folder.glob(".*.tmp"))) == (6, newest, [])
    assert torch.equal(load_best(folder, best)["weight"], tensors(best)["weight"])


def test_a_save_removes_tensors_out_of_use_and_what_a_killed_save_left_and_nothing_else(folder: Path) -> None:
    assert names(folder) == ["best.json", "last.json", "step-00000002.safetensors", "step-00000005.safetensors"]
    for name in (".last.json.x8s.tmp", ".step-00000006.safetensors.a_1.tmp", "step-00000006.safetensors"):
        (folder / name).write_bytes(b"half")
    (folder / "notes.txt").write_text("the user's own")
    save_checkpoint(folder, 5, tensors(5), NUMBERS, roles=("best", "last"))
    assert names(folder) == ["best.json", "last.json", "notes.txt", "step-00000005.safetensors"]
    assert load_checkpoint(folder, "best")[1] == load_checkpoint(folder, "last")[1]


def test_the_newest_checkpoint_may_be_the_best_one_and_there_may_be_none(folder: Path) -> None:
    save_checkpoint(folder, 8, tensors(8), NUMBERS, roles=("best",))  # killed before the last one followed
    assert newest_step(folder) == 8
    (folder / "last.json").unlink()
    (folder / "best.json").unlink()
    assert newest_step(folder) is None
    assert newest_step(folder / "none") is None


def forged(content: Any) -> str:
    """A role's file as someone would write it who knows how it is sealed."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": digest, "checkpoint": content}, indent=1)


TENSOR_FILE = "step-00000005.safetensors"
FORGED = [
    [], None, {"step": 1}, {"step": 1, "tensors": TENSOR_FILE}, {"tensors": TENSOR_FILE},
    {"step": "1", "tensors": TENSOR_FILE, "tensors_sha256": ""},
    {"step": 1, "tensors": TENSOR_FILE, "tensors_sha256": None},
    *({"step": 1, "tensors": name, "tensors_sha256": ""} for name in (5, "../x.safetensors", "/etc/passwd", "a\0b")),
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [*map(forged, FORGED), "", "[]", "{}", '{"sha256": 1}', "[" * 100_000, "\xff", '{"checkpoint": []}'],
    ids=lambda text: text[-60:],
)
def test_a_forged_json_is_an_error_of_the_checkpoint(folder: Path, text: str) -> None:
    (folder / "last.json").write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match=r"last\.json"):
        load_checkpoint(folder, "last")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [Path.unlink, cut, flip])
@pytest.mark.parametrize(
    ("name", "other"), [(TENSOR_FILE, 2), ("last.json", 2), ("best.json", 5), ("step-00000002.safetensors", 5)]
)
def test_the_other_checkpoint_stands_in_for_a_damaged_one_with_a_warning(
    folder: Path, log: pytest.LogCaptureFixture, name: str, other: int, harm: Callable[[Path], None]
) -> None:
    harm(folder / name)
    assert newest_step(folder) == other
    never_given = harm is Path.unlink and name.endswith(".json")
    assert (f"{name}: " in log.text) != never_given


def test_where_no_checkpoint_is_intact_all_are_named(folder: Path) -> None:
    for name in ("best.json", "last.json"):
        flip(folder / name)
    with pytest.raises(CheckpointError, match=r"best\.json: damaged(.|\n)*last\.json: damaged(.|\n)*--overwrite"):
        load_newest(folder)


@pytest.mark.parametrize("harm", [lambda path: None, Path.unlink, flip])
def test_other_weights_than_the_best_are_never_taken_for_them(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder / "best.json")
    with pytest.raises(CheckpointError, match=r"best\.json: (.|\n)*--overwrite"):
        load_best(folder, 3)


FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
SOURCES = sorted(Path(bilstm_cls.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_file_reads_or_writes_anything_that_could_run(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if [alias.name for alias in node.names] == ["UnpicklingError"]:  # a class of errors runs nothing
                continue
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not FORBIDDEN & {module.split(".")[0] for module in modules}, ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "torch.jit.load", "eval", "exec", "__import__"}, called
            if called in {"np.load", "np.save", "numpy.load", "numpy.save"}:
                assert "allow_pickle=False" in ast.unparse(node), ast.unparse(node)


TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "number": torch.tensor(7.0, requires_grad=True),
    "nothing": torch.empty(0, 4),
    "whole": torch.tensor([[1, -2]]),
    "short": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
}
METADATA = {"step": "3", "wörd": "ä\n"}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_tensors(path, TENSORS, METADATA)
    return path


def test_tensors_come_back_with_type_shape_and_bits_and_metadata_with_the_digest(written: Path) -> None:
    tensors, metadata = load_tensors(written)
    assert metadata == {**METADATA, "sha256": digest_of({name: t.detach() for name, t in TENSORS.items()}, METADATA)}
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert not tensors[name].requires_grad
        assert tensors[name].shape == expected.shape
        torch.testing.assert_close(tensors[name], expected.detach(), rtol=0, atol=0, equal_nan=True)


@settings(deadline=None)
@given(st.data())
def test_any_two_ways_to_name_the_same_bytes_differ_in_the_digest(data: st.DataObject) -> None:
    tensors = st.dictionaries(st.text(max_size=2), st.lists(st.integers(0, 1), max_size=3), max_size=3)
    one, other = data.draw(tensors), data.draw(tensors)
    digests = [digest_of({name: torch.tensor(v) for name, v in each.items()}, {}) for each in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)
