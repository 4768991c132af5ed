"""Tensor files and checkpoints: whole or not there, verified, and the newest intact one found."""

import ast
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
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


@pytest.mark.parametrize(("role", "step"), [("last", 5), ("best", 2)])
def test_each_role_gives_back_what_was_saved_under_it(folder: Path, role: str, step: int) -> None:
    loaded, numbers = load_checkpoint(folder, role)
    assert torch.equal(loaded["weight"], tensors(step)["weight"])
    assert numbers["step"] == step
    assert {key: numbers[key] for key in NUMBERS} == NUMBERS


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


@pytest.mark.parametrize(
    ("before", "after"),
    [('": ', '":  '), ("0.30000000000000004", "0.30000000000000003"), ("\\u00e4", "\\u00E4"), ("null", "null ")],
)
def test_a_change_that_means_the_same_is_found_all_the_same(folder: Path, before: str, after: str) -> None:
    path = folder / "last.json"
    changed = path.read_text("utf-8").replace(before, after)
    assert json.loads(changed) == json.loads(path.read_text("utf-8"))
    path.write_text(changed, "utf-8")
    with pytest.raises(CheckpointError, match=r"last\.json: damaged"):
        load_checkpoint(folder, "last")


def test_tensors_of_another_moment_are_not_taken_for_those_of_the_checkpoint(folder: Path) -> None:
    shutil.copy(folder / "step-00000002.safetensors", folder / "step-00000005.safetensors")
    with pytest.raises(CheckpointError, match=r"step-00000005\.safetensors: not the file that last\.json was written"):
        load_checkpoint(folder, "last")


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
    assert (f"continuing from step {other} instead" in log.text) != never_given


def test_nothing_is_loaded_when_all_are_damaged(folder: Path) -> None:
    flip(folder / "last.json")
    cut(folder / "step-00000002.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_newest(folder)
    assert "last.json: damaged" in str(caught.value)
    assert "step-00000002.safetensors: damaged" in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_the_best_weights_are_found_by_the_step_that_the_run_says_they_are_of(folder: Path) -> None:
    assert torch.equal(load_best(folder, 2)["weight"], tensors(2)["weight"])


@pytest.mark.parametrize("harm", [lambda path: None, Path.unlink, flip])
def test_other_weights_than_the_best_are_never_taken_for_them(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder / "best.json")
    with pytest.raises(CheckpointError, match=r"best\.json: (.|\n)*--overwrite"):
        load_best(folder, 3)


def test_a_save_next_to_a_damaged_checkpoint_deletes_nothing_that_could_be_needed(
    folder: Path, log: pytest.LogCaptureFixture
) -> None:
    flip(folder / "best.json")
    save_checkpoint(folder, 7, tensors(7), NUMBERS, roles=("last",))
    assert {"step-00000002.safetensors", "step-00000005.safetensors"} <= set(names(folder))
    assert "best.json: damaged" in log.text


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_intact_checkpoints(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """The system call fails at its call `number`."""
    call, count = getattr(os, name), iter(range(1, 1000))

    def sometimes(*args: Any) -> Any:
        if next(count) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, sometimes)
        with pytest.raises(ResourceError, match="no room left"):
            save_checkpoint(folder, 9, tensors(9), NUMBERS, roles=("best", "last"))
    assert not list(folder.glob(".*"))
    for role in ("last", "best"):
        loaded, numbers = load_checkpoint(folder, role)
        assert loaded["step"].item() == numbers["step"]


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


def test_the_same_tensors_and_metadata_give_the_same_bytes(written: Path) -> None:
    again = written.with_name("again")
    save_tensors(again, dict(reversed(TENSORS.items())), METADATA)
    assert again.read_bytes() == written.read_bytes()


BASE = {"a": torch.tensor([[0.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0])}


@pytest.mark.parametrize(
    ("changed", "metadata"),
    [
        pytest.param(BASE | {"a": BASE["a"].reshape(4)}, {"step": "1"}, id="shape"),
        pytest.param(BASE | {"a": BASE["a"].view(torch.int32)}, {"step": "1"}, id="type"),
        pytest.param(BASE | {"a": BASE["a"].t()}, {"step": "1"}, id="order of the elements"),
        pytest.param(BASE | {"a": torch.tensor([[0.0, 2.0], [3.0, 4.0000005]])}, {"step": "1"}, id="last bit"),
        pytest.param(BASE | {"a": torch.tensor([[-0.0, 2.0], [3.0, 4.0]])}, {"step": "1"}, id="sign of zero"),
        pytest.param({"a": BASE["a"], "c": BASE["b"]}, {"step": "1"}, id="name"),
        pytest.param(BASE | {"c": torch.empty(0)}, {"step": "1"}, id="an empty one more"),
        pytest.param(BASE, {}, id="no metadata"),
        pytest.param(BASE, {"step": "2"}, id="value of the metadata"),
        pytest.param(BASE, {"stop": "1"}, id="key of the metadata"),
        pytest.param(BASE, {"step": "1", "more": ""}, id="more metadata"),
    ],
)
def test_the_digest_covers_tensors_and_metadata(changed: dict[str, Tensor], metadata: dict[str, str]) -> None:
    assert digest_of(changed, metadata) != digest_of(BASE, {"step": "1"})


@settings(deadline=None)
@given(st.data())
def test_any_two_ways_to_name_the_same_bytes_differ_in_the_digest(data: st.DataObject) -> None:
    tensors = st.dictionaries(st.text(max_size=2), st.lists(st.integers(0, 1), max_size=3), max_size=3)
    one, other = data.draw(tensors), data.draw(tensors)
    digests = [digest_of({name: torch.tensor(v) for name, v in each.items()}, {}) for each in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_a_missing_file_a_folder_and_more_bytes_than_there_were_are_named(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: file is missing"):
        load_tensors(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: damaged"):
        load_tensors(tmp_path)
    written.write_bytes(written.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=rf"{written.name}: damaged"):
        load_tensors(written)


@pytest.mark.parametrize(
    "metadata",
    [
        None, {"step": "1"}, {"sha256": "0"}, {"bilstm_cls": "[]"},
        *({"bilstm_cls": text} for text in ("", "no JSON", "[" * 100_000, '{"sha256": 1}', '{"sha256": "0"}')),
    ],
    ids=lambda metadata: str(metadata)[:40],
)  # fmt: skip
def test_a_file_of_another_program_and_forged_metadata_are_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file(BASE, tmp_path / "file", metadata)
    with pytest.raises(CheckpointError, match=r"file: (damaged|carries no digest)"):
        load_tensors(tmp_path / "file")


def test_a_write_that_fails_leaves_the_old_tensors(written: Path) -> None:
    with pytest.raises(TypeError):
        save_tensors(written, BASE, {"step": object()})  # type: ignore[dict-item]
    assert load_tensors(written)[0].keys() == TENSORS.keys()
