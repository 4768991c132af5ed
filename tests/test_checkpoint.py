"""Tensor files and checkpoints: whole or not there, verified, and the newest intact one found."""

import ast
import errno
import hashlib
import json
import os
import pickle
import random
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


@pytest.mark.parametrize(("role", "step"), [("last", 5), ("best", 2)])
def test_each_role_gives_back_what_was_saved_under_it(folder: Path, role: str, step: int) -> None:
    loaded, numbers = load_checkpoint(folder, role)
    assert torch.equal(loaded["weight"], tensors(step)["weight"])
    assert numbers["step"] == step
    assert {key: numbers[key] for key in NUMBERS} == NUMBERS


def test_only_the_tensors_in_use_are_kept(folder: Path) -> None:
    expected = ["best.json", "last.json", "step-00000002.safetensors", "step-00000005.safetensors"]
    assert names(folder) == expected
    save_checkpoint(folder, 7, tensors(7), NUMBERS, roles=("best", "last"))
    assert names(folder) == ["best.json", "last.json", "step-00000007.safetensors"]


def test_what_a_killed_save_left_behind_goes_with_the_next_save(folder: Path) -> None:
    for name in (".last.json.x8s.tmp", ".step-00000006.safetensors.a_1.tmp", "step-00000006.safetensors"):
        (folder / name).write_bytes(b"half")
    (folder / "notes.txt").write_text("the user's own")
    save_checkpoint(folder, 7, tensors(7), NUMBERS, roles=("best", "last"))
    assert names(folder) == ["best.json", "last.json", "notes.txt", "step-00000007.safetensors"]


def test_a_step_saved_again_under_another_role_serves_both(folder: Path) -> None:
    save_checkpoint(folder, 5, tensors(5), NUMBERS, roles=("best", "last"))
    assert names(folder) == ["best.json", "last.json", "step-00000005.safetensors"]
    assert load_checkpoint(folder, "best")[1] == load_checkpoint(folder, "last")[1]


def test_the_best_one_is_the_newest_when_the_save_was_killed_before_the_last_one_followed(folder: Path) -> None:
    save_checkpoint(folder, 8, tensors(8), NUMBERS, roles=("best",))
    loaded = load_newest(folder)
    assert loaded is not None
    assert loaded[1]["step"] == 8


def test_there_is_none_before_the_first_one_was_saved(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints") is None


def test_tensors_without_their_json_are_no_checkpoint(folder: Path) -> None:
    (folder / "last.json").unlink()
    (folder / "best.json").unlink()
    assert load_newest(folder) is None


def test_a_missing_role_is_named(folder: Path) -> None:
    (folder / "best.json").unlink()
    with pytest.raises(CheckpointError, match=r"best\.json: file is missing"):
        load_checkpoint(folder, "best")


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


LAST = ["last.json", "step-00000005.safetensors"]


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


def forge(folder: Path, content: Any) -> None:
    """Writes `last.json` as someone would who knows how it is sealed."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "last.json").write_text(json.dumps({"sha256": digest, "checkpoint": content}, indent=1))


@pytest.mark.parametrize(
    "content",
    [
        [],
        None,
        {"step": 1},
        {"step": 1, "tensors": "step-00000005.safetensors"},
        {"step": "1", "tensors": "step-00000005.safetensors", "tensors_sha256": ""},
        {"tensors": "step-00000005.safetensors"},
        {"tensors": 5, "tensors_sha256": ""},
        {"tensors": "../elsewhere.safetensors", "tensors_sha256": ""},
        {"tensors": "/etc/passwd", "tensors_sha256": ""},
        {"tensors": "..", "tensors_sha256": ""},
        {"tensors": "", "tensors_sha256": ""},
        {"tensors": "a\0b", "tensors_sha256": ""},
        {"tensors": "step-00000005.safetensors", "tensors_sha256": None},
    ],
)
def test_a_forged_checkpoint_is_an_error_of_the_checkpoint(folder: Path, content: Any) -> None:
    forge(folder, content)
    with pytest.raises(CheckpointError, match=r"checkpoints"):
        load_checkpoint(folder, "last")


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"sha256": 1}', "[" * 100_000, "\xff", '{"checkpoint": []}'])
def test_a_json_of_another_kind_is_an_error_of_the_checkpoint(folder: Path, text: str) -> None:
    (folder / "last.json").write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match=r"last\.json: damaged"):
        load_checkpoint(folder, "last")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("step-00000005.safetensors", Path.unlink),
        ("step-00000005.safetensors", lambda path: cut(path, 0.5)),
        ("step-00000005.safetensors", lambda path: flip(path, 2222)),
        ("last.json", lambda path: cut(path, 0.5)),
        ("last.json", lambda path: flip(path, 2222)),
    ],
)
def test_the_other_checkpoint_stands_in_for_a_damaged_one_with_a_warning(
    folder: Path, log: pytest.LogCaptureFixture, name: str, harm: Callable[[Path], None]
) -> None:
    harm(folder / name)
    loaded = load_newest(folder)
    assert loaded is not None
    assert loaded[1]["step"] == 2
    assert name in log.text
    assert "continuing from step 2 instead" in log.text


def test_a_damaged_best_one_is_reported_though_the_last_is_intact(folder: Path, log: pytest.LogCaptureFixture) -> None:
    flip(folder / "best.json", 99)
    loaded = load_newest(folder)
    assert loaded is not None
    assert loaded[1]["step"] == 5
    assert "best.json: damaged" in log.text


def test_nothing_is_loaded_when_all_are_damaged(folder: Path) -> None:
    flip(folder / "last.json", 99)
    cut(folder / "step-00000002.safetensors", 0.7)
    with pytest.raises(CheckpointError) as caught:
        load_newest(folder)
    assert "last.json: damaged" in str(caught.value)
    assert "step-00000002.safetensors: damaged" in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_the_best_weights_are_found_by_the_step_that_the_run_says_they_are_of(folder: Path) -> None:
    assert torch.equal(load_best(folder, 2)["weight"], tensors(2)["weight"])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: None, r"best\.json: is of step 2 instead of step 3"),
        (Path.unlink, r"best\.json: file is missing"),
        (lambda path: flip(path, 99), r"best\.json: damaged"),
    ],
)
def test_other_weights_than_the_best_are_never_taken_for_them(
    folder: Path, harm: Callable[[Path], None], told: str
) -> None:
    harm(folder / "best.json")
    with pytest.raises(CheckpointError, match=rf"{told}(.|\n)*the best weights are lost; start again with --overwrite"):
        load_best(folder, 3)


def test_a_save_next_to_a_damaged_checkpoint_deletes_nothing_that_could_be_needed(
    folder: Path, log: pytest.LogCaptureFixture
) -> None:
    flip(folder / "best.json", 99)
    save_checkpoint(folder, 7, tensors(7), NUMBERS, roles=("last",))
    assert {"step-00000002.safetensors", "step-00000005.safetensors"} <= set(names(folder))
    assert "best.json: damaged" in log.text


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Lets the system call `name` fail for want of room at its call `number`, counted from 1."""
    call, count = getattr(os, name), iter(range(1, 1000))

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if next(count) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args, **kwargs)

    monkeypatch.setattr(os, name, sometimes)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_intact_checkpoints(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, name, number)
        with pytest.raises(ResourceError, match="no room left"):
            save_checkpoint(folder, 9, tensors(9), NUMBERS, roles=("best", "last"))
    assert not list(folder.glob(".*"))
    for role in ("last", "best"):
        loaded, numbers = load_checkpoint(folder, role)
        assert loaded["step"].item() == numbers["step"]


def test_a_json_is_written_only_after_its_tensors_are_on_the_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    replace = os.replace

    def recording(source: str, target: str) -> None:
        renamed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", recording)
    save_checkpoint(folder, 9, tensors(9), NUMBERS, roles=("best", "last"))
    assert renamed == ["step-00000009.safetensors", "best.json", "last.json"]


@pytest.mark.parametrize("name", LAST)
def test_a_pickle_in_its_place_is_refused_and_not_run(folder: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (folder / "canary",)

    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        load_checkpoint(folder, "last")
    assert not (folder / "canary").exists()


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
    "number": torch.tensor(7.0),
    "nothing": torch.empty(0, 4),
    "whole": torch.tensor([[1, -2]]),
    "short": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
}
METADATA = {"step": "3", "wörd": "ä\n"}


@pytest.fixture(scope="module")
def tensor_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "weights.safetensors"
    save_tensors(path, TENSORS, METADATA)
    return path


@pytest.fixture
def written(tensor_file: Path, tmp_path: Path) -> Path:
    return shutil.copy(tensor_file, tmp_path / tensor_file.name)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_with_its_type_shape_and_bits(written: Path, name: str) -> None:
    tensor, expected = load_tensors(written)[0][name], TENSORS[name]
    assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
    assert torch.equal(tensor.nan_to_num(9), expected.nan_to_num(9))


def test_metadata_come_back_with_the_digest(written: Path) -> None:
    tensors, metadata = load_tensors(written)
    assert metadata == {**METADATA, "sha256": digest_of(TENSORS, METADATA)}
    assert tensors.keys() == TENSORS.keys()


def test_the_same_tensors_and_metadata_give_the_same_bytes(written: Path) -> None:
    again = written.with_name("again")
    save_tensors(again, TENSORS, METADATA)
    assert again.read_bytes() == written.read_bytes()


def test_a_tensor_that_wants_a_gradient_can_be_written(tmp_path: Path) -> None:
    save_tensors(tmp_path / "file", {"a": torch.ones(2, requires_grad=True)}, {})
    assert not load_tensors(tmp_path / "file")[0]["a"].requires_grad


BASE = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0])}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(BASE | {"a": BASE["a"].reshape(4)}, id="shape"),
        pytest.param(BASE | {"a": BASE["a"].view(torch.int32)}, id="type"),
        pytest.param(BASE | {"a": BASE["a"].t()}, id="order of the elements"),
        pytest.param(BASE | {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0000005]])}, id="last bit"),
        pytest.param(BASE | {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * -1}, id="sign"),
        pytest.param({"a": BASE["a"], "c": BASE["b"]}, id="name"),
        pytest.param({"a": BASE["a"]}, id="one less"),
        pytest.param(BASE | {"c": torch.empty(0)}, id="an empty one more"),
    ],
)
def test_the_digest_covers_the_tensors(changed: dict[str, Tensor]) -> None:
    assert digest_of(changed, {"step": "1"}) != digest_of(BASE, {"step": "1"})


@pytest.mark.parametrize("metadata", [{}, {"step": "2"}, {"stop": "1"}, {"step": "1", "more": ""}])
def test_the_digest_covers_the_metadata(metadata: dict[str, str]) -> None:
    assert digest_of(BASE, metadata) != digest_of(BASE, {"step": "1"})


def test_the_digest_knows_zero_from_minus_zero() -> None:
    assert digest_of({"a": torch.tensor(0.0)}, {}) != digest_of({"a": torch.tensor(-0.0)}, {})


@settings(deadline=None)
@given(st.permutations(list(BASE)), st.permutations(["x", "y", "z"]))
def test_the_digest_does_not_hang_on_the_order(names: list[str], keys: list[str]) -> None:
    reordered = digest_of({name: BASE[name] for name in names}, dict.fromkeys(keys, ""))
    assert reordered == digest_of(BASE, dict.fromkeys("xyz", ""))


@settings(deadline=None)
@given(st.data())
def test_any_two_ways_to_name_the_same_bytes_differ_in_the_digest(data: st.DataObject) -> None:
    tensors = st.dictionaries(st.text(max_size=2), st.lists(st.integers(0, 1), max_size=3), max_size=3)
    one, other = data.draw(tensors), data.draw(tensors)
    digests = [digest_of({name: torch.tensor(v) for name, v in each.items()}, {}) for each in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


@pytest.mark.parametrize("case", range(20))
def test_a_flipped_bit_is_found(written: Path, case: int) -> None:
    content = bytearray(written.read_bytes())
    place = random.Random(case).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    written.write_bytes(content)
    with pytest.raises(CheckpointError, match=written.name):
        load_tensors(written)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_found(written: Path, share: float) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=rf"{written.name}: damaged"):
        load_tensors(written)


def test_a_file_with_something_after_its_end_is_found(written: Path) -> None:
    written.write_bytes(written.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(written)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: file is missing"):
        load_tensors(tmp_path / "gone.safetensors")


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: damaged"):
        load_tensors(tmp_path)


@pytest.mark.parametrize("metadata", [None, {}, {"step": "1"}, {"sha256": "0"}, {"bilstm_cls": "[]"}])
def test_a_file_of_another_program_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file(BASE, tmp_path / "file", metadata)
    with pytest.raises(CheckpointError, match="carries no digest"):
        load_tensors(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "no JSON", "[" * 100_000, '{"sha256": 1}', '{"sha256": "0"}'])
def test_metadata_that_were_forged_are_refused(tmp_path: Path, text: str) -> None:
    save_file(BASE, tmp_path / "file", {"bilstm_cls": text})
    with pytest.raises(CheckpointError, match="file: damaged"):
        load_tensors(tmp_path / "file")


def test_a_write_that_fails_leaves_the_old_tensors(written: Path) -> None:
    with pytest.raises(TypeError):
        save_tensors(written, BASE, {"step": object()})  # type: ignore[dict-item]
    assert load_tensors(written)[0].keys() == TENSORS.keys()
