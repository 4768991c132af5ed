"""Tensor files: what comes back is what was written, or an error."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from bilstm_cls.checkpoint import digest_of, load_tensors, save_tensors
from bilstm_cls.errors import CheckpointError

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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "weights.safetensors"
    save_tensors(path, TENSORS, METADATA)
    return path


@pytest.fixture
def written(saved: Path, tmp_path: Path) -> Path:
    return shutil.copy(saved, tmp_path / saved.name)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_with_its_type_shape_and_bits(written: Path, name: str) -> None:
    tensor, expected = load_tensors(written)[0][name], TENSORS[name]
    assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
    assert torch.equal(tensor.nan_to_num(9), expected.nan_to_num(9))


def test_metadata_come_back_with_the_digest(written: Path) -> None:
    tensors, metadata = load_tensors(written)
    assert metadata == {**METADATA, "sha256": digest_of(TENSORS, METADATA)}
    assert tensors.keys() == TENSORS.keys()


def test_writing_returns_the_digest_that_reading_finds(tmp_path: Path) -> None:
    digest = save_tensors(tmp_path / "file", TENSORS, {})
    assert load_tensors(tmp_path / "file")[1] == {"sha256": digest}


@pytest.mark.parametrize("attempt", range(5))
def test_the_same_tensors_and_metadata_give_the_same_bytes(written: Path, attempt: int) -> None:
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


@pytest.mark.parametrize("case", range(40))
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


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def test_a_pickle_in_its_place_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "canary"), tmp_path / "file")
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(tmp_path / "file")
    assert not (tmp_path / "canary").exists()


def test_a_write_that_fails_leaves_the_old_tensors(written: Path) -> None:
    with pytest.raises(TypeError):
        save_tensors(written, BASE, {"step": object()})  # type: ignore[dict-item]
    assert load_tensors(written)[0].keys() == TENSORS.keys()
