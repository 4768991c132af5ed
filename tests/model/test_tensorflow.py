"""TensorFlow's own numbers, its equations in a plain loop, and its names.

`fixtures/tf_bidirectional.npz` holds what `bidirectional_dynamic_rnn` of TensorFlow 2.21 computed with the cells of
TensorFlow 1; `fixtures/make_tf_classifier.py` made the others there.
"""

import importlib.util
import io
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.pooling import POOLINGS
from bilstm_cls.model.recurrent import BidirectionalLSTM
from bilstm_cls.model.tensorflow import find_cells, find_model, read_variables
from tests.model.test_recurrent import reference

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
CLASSIFIER = FIXTURES / "tf_classifier_variables.npz"
PARITY = read_variables(FIXTURES / "tf_bidirectional.npz")
INPUTS = PARITY["inputs"]  # [B, T, E]
LENGTHS = PARITY["lengths"]
E, H, T = 7, 5, 11
STARTS = ("zero", "state")
HEAD_NAMES = {"embedding": "word_embeddings", "project_kernel": "output/W", "project_bias": "output/b"}

Arrays = tuple[np.ndarray, ...]
Step = Callable[[np.ndarray, Arrays, Arrays], Arrays]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_step(x: np.ndarray, state: Arrays, weights: Arrays) -> Arrays:
    """TensorFlow's `LSTMCell` for one token of one text: the forget bias is the third weight."""
    h, c = state
    kernel, bias, forget_bias = weights
    i, j, f, o = np.split(np.concatenate([x, h]) @ kernel + bias, 4)
    c = sigmoid(f + forget_bias) * c + sigmoid(i) * np.tanh(j)
    return sigmoid(o) * np.tanh(c), c


def gru_step(x: np.ndarray, state: Arrays, weights: Arrays) -> Arrays:
    """TensorFlow's `GRUCell`: the reset gate acts on h before the matrix product."""
    (h,) = state
    gates_kernel, gates_bias, candidate_kernel, candidate_bias = weights
    r, u = np.split(sigmoid(np.concatenate([x, h]) @ gates_kernel + gates_bias), 2)
    candidate = np.tanh(np.concatenate([x, r * h]) @ candidate_kernel + candidate_bias)
    return (u * h + (1 - u) * candidate,)


def read_by_equations(
    step: Step, weights: tuple[Arrays, Arrays], inputs: np.ndarray, lengths: np.ndarray, starts: tuple[Arrays, Arrays]
) -> tuple[np.ndarray, tuple[Arrays, Arrays]]:
    """One text and one token at a time, in 64 bits; outputs `[B, T, 2H]`, states per direction `[B, H]` each."""
    hidden_size = starts[0][0].shape[1]
    outputs = np.zeros((*inputs.shape[:2], 2 * hidden_size))
    finals = tuple(tuple(part.astype(np.float64) for part in start) for start in starts)
    for direction, final in enumerate(finals):
        units = slice(direction * hidden_size, (direction + 1) * hidden_size)
        double = tuple(np.asarray(weight, np.float64) for weight in weights[direction])
        for b, length in enumerate(lengths):
            state = tuple(part[b] for part in final)
            for t in range(length) if direction == 0 else reversed(range(length)):
                state = step(inputs[b, t].astype(np.float64), state, double)
                outputs[b, t, units] = state[0]
            for part, value in zip(final, state, strict=True):
                part[b] = value
    return outputs, finals


def initial_states(cell: str, start: str) -> tuple[Arrays, Arrays]:
    """Per direction `(h, c)`, or `(h,)` of a GRU."""
    parts = ("h", "c") if cell == "lstm" else ("h",)
    zeros = np.zeros((len(LENGTHS), H), np.float32)
    given = start == "state"
    return tuple(tuple(PARITY[f"{cell}/state/{d}/{p}0"] if given else zeros for p in parts) for d in ("fw", "bw"))


def expected_states(cell: str, start: str) -> tuple[Arrays, Arrays]:
    parts = ("h", "c") if cell == "lstm" else ("h",)
    return tuple(tuple(PARITY[f"{cell}/{start}/final/{d}/{p}"] for p in parts) for d in ("fw", "bw"))


def to_tensors(states: tuple[Arrays, ...], dtype: torch.dtype = torch.float32) -> tuple[tuple[torch.Tensor, ...], ...]:
    return tuple(tuple(torch.tensor(part, dtype=dtype) for part in state) for state in states)


def loaded_layer(start: str, dtype: torch.dtype = torch.float32) -> BidirectionalLSTM:
    layer = BidirectionalLSTM(E, H).to(dtype)
    layer.load_tensorflow(*find_cells(PARITY, scope=f"lstm/{start}"))
    return layer


def run(layer: BidirectionalLSTM, start: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Any]:
    given = to_tensors(initial_states(layer.cell, start), dtype) if start == "state" else None
    outputs, state = layer(torch.tensor(INPUTS, dtype=dtype), torch.tensor(LENGTHS).long(), initial_state=given)
    return torch.cat(outputs, 2).detach(), state


def error(result: Any, expected: Any) -> float:
    """Largest absolute difference."""
    return float(np.abs(np.asarray(result.detach() if torch.is_tensor(result) else result) - expected).max())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("time_major", [False, True])
def test_outputs_equal_tensorflows(start: str, time_major: bool) -> None:
    inputs = torch.tensor(INPUTS.swapaxes(0, 1) if time_major else INPUTS)
    given = to_tensors(initial_states("lstm", start)) if start == "state" else None
    outputs, _ = loaded_layer(start)(inputs, torch.tensor(LENGTHS).long(), given, time_major)
    expected = PARITY[f"lstm/{start}/outputs"]
    for output, part in zip(outputs, np.split(expected, 2, 2), strict=True):
        assert error(output, part.swapaxes(0, 1) if time_major else part) < 1e-5


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("direction", [0, 1], ids=["forward", "backward"])
@pytest.mark.parametrize("part", [0, 1], ids=["h", "c"])
def test_final_states_equal_tensorflows(start: str, direction: int, part: int) -> None:
    _, state = run(loaded_layer(start), start)
    assert error(state[direction][part], expected_states("lstm", start)[direction][part]) < 1e-5


@pytest.mark.parametrize("start", STARTS)
def test_reduce_mean_equals_tensorflows(start: str) -> None:
    outputs, _ = run(loaded_layer(start), start)
    pooled = POOLINGS["reduce_mean"](outputs.transpose(0, 1), torch.tensor(LENGTHS).long(), T)
    assert error(pooled, PARITY[f"lstm/{start}/reduce_mean"]) < 1e-5


@pytest.mark.parametrize("start", STARTS)
def test_layer_equals_tensorflows_equations_in_64_bits(start: str) -> None:
    fw_kernel, fw_bias, bw_kernel, bw_bias = find_cells(PARITY, scope=f"lstm/{start}")
    weights = (fw_kernel, fw_bias, 1.0), (bw_kernel, bw_bias, 1.0)
    expected, finals = read_by_equations(lstm_step, weights, INPUTS, LENGTHS, initial_states("lstm", start))
    outputs, state = run(loaded_layer(start, torch.float64), start, torch.float64)
    assert error(outputs, expected) < 1e-12
    for ours, theirs in zip(state, finals, strict=True):
        assert error(torch.stack(ours), np.stack(theirs)) < 1e-12


def test_loaded_layer_equals_pytorchs_equations_in_64_bits() -> None:
    layer = loaded_layer("zero", torch.float64)
    texts, finals = reference(layer, torch.tensor(INPUTS).double(), torch.tensor(LENGTHS))
    outputs, state = run(layer, "zero", torch.float64)
    for output, text in zip(outputs, texts, strict=True):
        assert error(output[: len(text)], text.detach().numpy()) < 1e-12
    for ours, theirs in zip(state, finals, strict=True):
        assert error(torch.stack(ours, 1), torch.stack(theirs).detach().numpy()) < 1e-12


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.floats(-2, 2),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_any_cells_and_forget_bias_equal_tensorflows_equations(
    input_size: int, hidden_size: int, lengths: list[int], forget_bias: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kernels = rng.normal(size=(2, input_size + hidden_size, 4 * hidden_size))
    biases = rng.normal(size=(2, 4 * hidden_size))
    inputs = rng.normal(size=(len(lengths), max(lengths), input_size))
    starts = tuple(tuple(rng.normal(size=(2, len(lengths), hidden_size))) for _ in range(2))
    layer = BidirectionalLSTM(input_size, hidden_size).double()
    layer.load_tensorflow(kernels[0], biases[0], kernels[1], biases[1], forget_bias=forget_bias)
    outputs, state = layer(torch.tensor(inputs), torch.tensor(lengths), to_tensors(starts, torch.float64))
    weights = tuple((kernel, bias, forget_bias) for kernel, bias in zip(kernels, biases, strict=True))
    expected, finals = read_by_equations(lstm_step, weights, inputs, np.array(lengths), starts)
    assert error(torch.cat(outputs, 2), expected) < 1e-12
    for ours, theirs in zip(state, finals, strict=True):
        assert error(torch.stack(ours), np.stack(theirs)) < 1e-12


def test_gradients_flow_through_inputs_and_states_as_finite_differences_say() -> None:
    layer = loaded_layer("state", torch.float64)
    rows = [0, 1, 2]  # lengths 11, 3 and 1 cut at 4
    lengths = torch.tensor(LENGTHS[rows]).long().clamp(max=4)
    inputs = torch.tensor(INPUTS[rows, :4]).double().requires_grad_()
    starts = [torch.tensor(part[rows]).double().requires_grad_() for s in initial_states("lstm", "state") for part in s]

    def flat(inputs: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, state = layer(inputs, lengths, (parts[:2], parts[2:]))
        return (*outputs, *state[0], *state[1])

    assert torch.autograd.gradcheck(flat, (inputs, *starts), fast_mode=True)


@pytest.mark.parametrize(
    "convert",
    [
        torch.tensor,
        lambda array: torch.tensor(array).requires_grad_(),
        lambda array: array.astype(np.float64),
        lambda array: array.astype(">f4"),
        np.asfortranarray,
        lambda array: np.broadcast_to(array, array.shape),
    ],
    ids=["tensor", "tensor with gradient", "64 bits", "big-endian", "Fortran order", "read-only"],
)
def test_any_kind_of_array_is_taken(convert: Callable[[np.ndarray], Any]) -> None:
    layer = BidirectionalLSTM(E, H)
    layer.load_tensorflow(*(convert(array) for array in find_cells(PARITY, scope="lstm/zero")))
    torch.testing.assert_close(layer.state_dict(), loaded_layer("zero").state_dict(), atol=0, rtol=0)


def test_arrays_are_copied_and_left_alone() -> None:
    cells = find_cells(PARITY, scope="lstm/zero")
    copies = [array.copy() for array in cells]
    layer = BidirectionalLSTM(E, H)
    layer.load_tensorflow(*copies)
    for array, copy in zip(cells, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        copy[:] = 0
    torch.testing.assert_close(layer.state_dict(), loaded_layer("zero").state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("position", "array", "message"),
    [
        (2, np.zeros((12, 16)), r"bw_kernel has shape \[12, 16\], .*input_size 7 and hidden_size 5 takes? \[12, 20\]"),
        (2, np.zeros((20, 12)), r"bw_kernel has shape \[20, 12\]"),
        (3, np.zeros((20, 1)), r"bw_bias has shape \[20, 1\], .* \[20\]"),
        (1, torch.zeros(10), r"fw_bias has shape \[10\]"),
        (3, np.full(20, np.nan), "bw_bias holds a number that is not finite"),
        (3, np.zeros(20, int), "bw_bias must hold floating-point numbers, not int64"),
        (3, np.full(20, "x"), "bw_bias must hold floating-point numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_change_nothing(position: int, array: Any, message: str) -> None:
    layer = BidirectionalLSTM(E, H)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    arrays: list[Any] = list(find_cells(PARITY, scope="lstm/zero"))
    arrays[position] = array
    with pytest.raises(ValueError, match=message):
        layer.load_tensorflow(*arrays)
    torch.testing.assert_close(layer.state_dict(), before, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "gru"}, "cell 'gru'"),
        ({"bidirectional": False}, r"1 direction\(s\)"),
        ({"num_layers": 2}, r"2 layer\(s\)"),
    ],
)
def test_layers_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"one bidirectional lstm layer, .*{message}"):
        BidirectionalLSTM(E, H, **options).load_tensorflow(*find_cells(PARITY, scope="lstm/zero"))


def cell_variables(prefix: str = "bidirectional_rnn/", cell: str = "lstm_cell") -> dict[str, np.ndarray]:
    arrays = find_cells(PARITY, scope="lstm/zero")
    ends = (f"{direction}/{cell}/{part}" for direction in ("fw", "bw") for part in ("kernel", "bias"))
    return {prefix + end: array for end, array in zip(ends, arrays, strict=True)}


def head_variables() -> dict[str, np.ndarray]:
    return {"output/W": np.ones((10, 3)), "output/b": np.ones(3), "word_embeddings": np.ones((23, 7))}


@pytest.mark.parametrize(
    "variables",
    [
        cell_variables(),
        cell_variables(prefix=""),
        cell_variables(prefix="a/b/my_rnn/", cell="basic_lstm_cell"),
        {f"{name}:0": array for name, array in cell_variables().items()},
        {**cell_variables(), **{f"{name}/Adam": array for name, array in cell_variables().items()}},
        {**cell_variables(), **{f"train/{name}/Momentum": array for name, array in cell_variables().items()}},
        {**cell_variables(), "swfw/dense/kernel": np.ones((2, 2)), "fw": np.ones(3), "final/fw/c": np.ones((2, 5))},
    ],
    ids=["default names", "no prefix", "own names", "output number", "slots", "slots in a scope", "other variables"],
)
def test_cells_are_found_by_name(variables: dict[str, np.ndarray]) -> None:
    for found, expected in zip(find_cells(variables), find_cells(PARITY, scope="lstm/zero"), strict=True):
        assert found is expected


def test_cells_of_any_name_can_be_named() -> None:
    cells = find_cells(PARITY, scope="lstm/zero")
    roles = dict(zip(("fw_kernel", "fw_bias", "bw_kernel", "bw_bias"), "abcd", strict=True))
    assert find_cells(dict(zip("abcd", cells, strict=True)), names=roles) == cells


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({}, {}, "no variables like .*: there are no variables"),
        (head_variables(), {}, r"no variables like .*fw_kernel.*: output/W \[10, 3\], output/b \[3\]"),
        (cell_variables(), {"scope": "other"}, "no variables like"),
        (PARITY, {}, "several bidirectional layers, choose one by its scope: lstm/zero/bidirectional_rnn/, lstm/state"),
        (PARITY, {"scope": "gru/zero"}, r"must be one LSTM cell .*fw_gru/gates/kernel \[12, 10\]"),
        ({**cell_variables(), "bidirectional_rnn/fw/lstm_cell/w_f_diag": np.ones(5)}, {}, "peepholes.*w_f_diag"),
        ({**cell_variables(), "bidirectional_rnn/fw/lstm_cell/projection/kernel": np.ones((5, 2))}, {}, "projections"),
        (cell_variables(cell="multi_rnn_cell/cell_0/lstm_cell"), {}, "several layers"),
        (cell_variables() | cell_variables(cell="gru_cell/gates"), {}, "GRU cells"),
        (cell_variables() | cell_variables(cell="other_cell"), {}, "each direction must be one LSTM cell"),
        (dict(list(cell_variables().items())[:2]), {}, "each direction must be"),
        (dict(zip(cell_variables(), [np.ones((5, 20)), np.ones(20)] * 2, strict=True)), {}, r"kernel \[5, 20\]"),
        (dict(zip(cell_variables(), [np.ones((12, 18)), np.ones(18)] * 2, strict=True)), {}, r"kernel \[12, 18\]"),
        ({**cell_variables(), "bidirectional_rnn/bw/lstm_cell/bias": np.ones(16)}, {}, r"two kernels \[E \+ H, 4H\]"),
        (
            {**cell_variables(), "bidirectional_rnn/bw/lstm_cell/bias": np.ones(20, int)},
            {},
            "bw/lstm_cell/bias must hold",
        ),
        (cell_variables(), {"names": {"fw_kernel": "x"}}, "name all of fw_kernel, fw_bias, bw_kernel, bw_bias or none"),
        (cell_variables(), {"names": {"kernel": "x"}}, r"unknown roles \['kernel'\]"),
        (
            cell_variables(),
            {"names": dict.fromkeys(["fw_kernel", "fw_bias", "bw_kernel", "bw_bias"], "x")},
            "no variable 'x': bi",
        ),
    ],
)
def test_cells_that_are_missing_ambiguous_or_of_another_kind_are_refused(
    variables: dict[str, np.ndarray], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_cells(variables, **options)


def test_long_lists_of_variables_are_cut() -> None:
    with pytest.raises(ValueError, match=r"v39 \[1\], and 60 more$"):
        find_cells({f"v{number}": np.ones(1) for number in range(100)})


def test_imported_classifier_gives_tensorflows_probabilities() -> None:
    found = find_model(read_variables(CLASSIFIER))
    expected = read_variables(FIXTURES / "tf_classifier_expected.npz")
    vocab_size, embedding_dim = found.embedding.shape
    model = BiLSTMClassifier(
        vocab_size, 3, embedding_dim=embedding_dim, hidden_size=5, pooling=["reduce_mean"], max_length=11
    ).eval()
    model.set_embedding(torch.from_numpy(found.embedding))
    model.encoder.load_tensorflow(*found.cells)
    with torch.no_grad():
        model.project.weight.copy_(torch.from_numpy(found.project_kernel).t())
        model.project.bias.copy_(torch.from_numpy(found.project_bias))
        logits = model(torch.from_numpy(expected["token_ids"]).long(), torch.from_numpy(expected["lengths"]).long())
    assert np.abs(found.embedding[0]).min() > 0  # TensorFlow's padding row is not zero, and no matter
    assert error(logits.softmax(1), expected["probabilities"]) < 1e-5
    assert error(logits, expected["logits"]) < 1e-5


@pytest.mark.parametrize(
    "variables",
    [
        {**head_variables(), **cell_variables()},
        {**cell_variables(), **head_variables(), "global_step": np.array(3), "beta1_power": np.array(0.9)},
        {**cell_variables(), **head_variables(), "word_embeddings/Adam": np.ones((23, 7)), "output/b/ema": np.ones(3)},
        {f"{name}:0": array for name, array in {**cell_variables(), **head_variables()}.items()},
        {f"model/{name}": array for name, array in {**cell_variables(), **head_variables()}.items()},
    ],
    ids=["any order", "scalars", "slots", "output number", "scope"],
)
def test_embedding_and_projection_are_found_by_shape(variables: dict[str, np.ndarray]) -> None:
    found = find_model(variables)
    assert (found.embedding.shape, found.project_kernel.shape, found.project_bias.shape) == ((23, 7), (10, 3), (3,))


def test_of_two_matrices_with_one_shape_the_embedding_is_the_one_called_so() -> None:
    projection, embedding = np.ones((10, 7)), np.ones((10, 7))
    variables = {**cell_variables(), "W": projection, "b": np.ones(7), "Embed/W": embedding}
    found = find_model(variables)
    assert found.embedding is embedding
    assert found.project_kernel is projection


def test_named_head_is_taken_and_what_is_left_over_is_passed_over() -> None:
    embedding = np.ones((30, 7))
    variables = {**cell_variables(), **head_variables(), "fasttext": embedding}
    assert find_model(variables, names={**HEAD_NAMES, "embedding": "fasttext:0"}).embedding is embedding


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({"attention/v": np.ones(10)}, {}, r"leave out .*: output/W \[10, 3\], .*attention/v \[10\]"),
        ({"output/W": np.ones((5, 3))}, {}, r"an embedding \[V, 7\], a projection \[10, C\] and its bias \[C\]"),
        ({"word_embeddings": np.ones((23, 8))}, {}, r"an embedding \[V, 7\].*word_embeddings \[23, 8\]"),
        ({"output/b": np.ones(4)}, {}, "and nothing else"),
        ({"output/W": np.ones(10), "output/b": np.array(1.0)}, HEAD_NAMES, r"output/W \[10\], output/b \[\]"),
        ({"output/b": np.ones((3, 1))}, {}, "and nothing else"),
        ({"output/b": np.array([1, np.inf, 0])}, {}, "output/b holds a number that is not finite"),
        (
            {},
            {**HEAD_NAMES, "embedding": "output/W", "project_kernel": "word_embeddings"},
            "nothing else",
        ),
        ({}, {"embedding": "word_embeddings"}, "name all of embedding, project_kernel, project_bias or none"),
        ({}, {**HEAD_NAMES, "embedding": "x"}, "no variable 'x'"),
    ],
)
def test_heads_that_are_missing_ambiguous_or_left_over_are_refused(
    change: dict[str, np.ndarray], names: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_model({**cell_variables(), **head_variables(), **change}, names=names)


def test_two_matrices_with_one_shape_and_no_telling_name_are_refused() -> None:
    variables = {**cell_variables(), "Variable": np.ones((10, 7)), "Variable_1": np.ones((10, 7)), "b": np.ones(7)}
    with pytest.raises(ValueError, match=r"name embedding, project_kernel, project_bias: Variable \[10, 7\]"):
        find_model(variables)


def test_a_head_without_bias_is_refused() -> None:
    variables = {**cell_variables(), **head_variables()}
    del variables["output/b"]
    with pytest.raises(ValueError, match="and its bias"):
        find_model(variables)


def npz_bytes(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zip_bytes(**members: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        npz_bytes(a=np.ones(3))[:-40],
        npz_bytes(a=np.ones(300)).replace(np.ones(300).tobytes(), np.zeros(300).tobytes()),
        npz_bytes(a=np.array([{}], object)),
        zip_bytes(name="text"),
    ],
    ids=["empty", "text", "cut short", "changed", "pickled objects", "other members"],
)
def test_files_that_are_no_npz_of_plain_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "variables.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_variables(path)


def test_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"array\.npy: not an \.npz"):
        read_variables(tmp_path / "array.npy")


def test_missing_file_stays_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_variables(tmp_path / "nowhere.npz")


@pytest.fixture
def dump_tensorflow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dump_tensorflow", ROOT / "scripts" / "dump_tensorflow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeReader:
    """Stands for a checkpoint: what `tf.train.load_checkpoint` returns."""

    def __init__(self, path: str, variables: dict[str, Any]) -> None:
        if path != "model.ckpt-7":
            raise ValueError(f"no files for {path}")
        self.get_tensor = variables.__getitem__
        self.get_variable_to_shape_map = lambda: dict.fromkeys(variables)


def use_fake_tensorflow(monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any]) -> None:
    load = SimpleNamespace(load_checkpoint=lambda path: FakeReader(path, variables))
    fake = SimpleNamespace(train=load, errors=SimpleNamespace(OpError=OSError))
    monkeypatch.setitem(sys.modules, "tensorflow", fake)


@pytest.mark.parametrize("suffix", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_dumped_checkpoint_is_read_back(
    dump_tensorflow: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str
) -> None:
    variables = {**cell_variables(), "global_step": 7, "_CHECKPOINTABLE_OBJECT_GRAPH": b"graph", "words": [b"a", b"b"]}
    use_fake_tensorflow(monkeypatch, variables)
    output = tmp_path / "out.npz"
    monkeypatch.setattr(sys, "argv", ["dump_tensorflow.py", f"model.ckpt-7{suffix}", "-o", str(output)])
    dump_tensorflow.main()
    read = read_variables(output)
    assert read.keys() == {*cell_variables(), "global_step"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    for name, array in cell_variables().items():
        np.testing.assert_array_equal(read[name], array)


def test_dump_widens_what_numpy_cannot_write(dump_tensorflow: ModuleType) -> None:
    assert dump_tensorflow.widen(np.ones(2, np.float16)).dtype == np.float16
    bfloat16 = SimpleNamespace(dtype=np.dtype("V2"), astype=np.ones(2).astype)
    assert dump_tensorflow.widen(bfloat16).dtype == np.float32


@pytest.mark.parametrize(
    ("has_tensorflow", "message"), [(False, "TensorFlow is needed"), (True, "other.ckpt: no checkpoint")]
)
def test_dump_says_what_is_missing(
    dump_tensorflow: ModuleType, monkeypatch: pytest.MonkeyPatch, has_tensorflow: bool, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # the import fails
    if has_tensorflow:
        use_fake_tensorflow(monkeypatch, {})
    monkeypatch.setattr(sys, "argv", ["dump_tensorflow.py", "other.ckpt"])
    with pytest.raises(SystemExit, match=message):
        dump_tensorflow.main()


def gru_variables(start: str, direction: str) -> Arrays:
    scope = f"gru/{start}/bidirectional_rnn/{direction}/{direction}_gru"
    return tuple(PARITY[f"{scope}/{gate}/{part}"] for gate in ("gates", "candidate") for part in ("kernel", "bias"))


def gru_layer(start: str) -> BidirectionalLSTM:
    """PyTorch's cell with TensorFlow's weights: the candidate's bias outside the reset gate's reach."""
    layer = BidirectionalLSTM(E, H, cell="gru")
    with torch.no_grad():
        for rnn, direction in zip(layer.layers[0], ("fw", "bw"), strict=True):
            gates_kernel, gates_bias, candidate_kernel, candidate_bias = gru_variables(start, direction)
            rows = torch.tensor(np.concatenate([gates_kernel, candidate_kernel], 1)).t()  # [3H, E + H]: r, z, n
            rnn.weight_ih_l0.copy_(rows[:, :E])
            rnn.weight_hh_l0.copy_(rows[:, E:])
            rnn.bias_ih_l0.copy_(torch.tensor(np.concatenate([gates_bias, candidate_bias])))
            rnn.bias_hh_l0.zero_()
    return layer


@pytest.mark.parametrize("start", STARTS)
def test_tensorflows_gru_resets_before_the_matrix_product(start: str) -> None:
    weights = gru_variables(start, "fw"), gru_variables(start, "bw")
    outputs, finals = read_by_equations(gru_step, weights, INPUTS, LENGTHS, initial_states("gru", start))
    assert error(outputs, PARITY[f"gru/{start}/outputs"]) < 1e-5
    assert error(outputs.mean(1), PARITY[f"gru/{start}/reduce_mean"]) < 1e-5
    for ours, theirs in zip(finals, expected_states("gru", start), strict=True):
        assert error(ours[0], theirs[0]) < 1e-5


def test_pytorchs_gru_agrees_with_tensorflows_only_where_there_is_no_state_to_reset() -> None:
    outputs, _ = run(gru_layer("zero"), "zero")
    forward = np.abs(outputs[..., :H].numpy() - PARITY["gru/zero/outputs"][..., :H])
    assert forward[:, 0].max() < 1e-6
    assert forward[LENGTHS > 1, 1].max() > 0.01


@pytest.mark.parametrize("start", STARTS)
def test_no_biases_make_pytorchs_gru_tensorflows(start: str) -> None:
    layer = gru_layer(start)
    biases = [parameter for name, parameter in layer.named_parameters() if "bias" in name]
    expected = torch.tensor(PARITY[f"gru/{start}/outputs"])
    inputs, lengths = torch.tensor(INPUTS), torch.tensor(LENGTHS).long()
    given = to_tensors(initial_states("gru", start))
    optimizer = torch.optim.LBFGS(biases, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        outputs, _ = layer(inputs, lengths, given)
        distance = (torch.cat(outputs, 2) - expected).pow(2).sum()
        distance.backward()
        return distance

    optimizer.step(loss)
    assert error(run(layer, start)[0], expected.numpy()) > 0.01


def test_every_python_block_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tensorflow.md").read_text("utf-8"), re.M | re.S)
    assert blocks
    shutil.copy(CLASSIFIER, tmp_path / "variables.npz")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/tensorflow.md", "exec"), namespace)
