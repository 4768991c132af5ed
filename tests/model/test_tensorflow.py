"""TensorFlow's numbers, and its equations in a plain loop.

`fixtures/tf_bidirectional.npz` holds what `bidirectional_dynamic_rnn` of TensorFlow 2.21 computed with the cells of
TensorFlow 1; `fixtures/make_tf_classifier.py` made the others there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls.model.pooling import POOLINGS
from bilstm_cls.model.recurrent import BidirectionalLSTM
from bilstm_cls.model.tensorflow import load_cells

FIXTURES = Path(__file__).parent / "fixtures"
PARITY = dict(np.load(FIXTURES / "tf_bidirectional.npz"))
INPUTS = PARITY["inputs"]  # [B, T, E]
LENGTHS = PARITY["lengths"]
E, H, T = 7, 5, 11
STARTS = ("zero", "state")

Arrays = tuple[np.ndarray, ...]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_step(x: np.ndarray, state: Arrays, weights: Arrays) -> Arrays:
    """TensorFlow's `LSTMCell` for one token of one text: the forget bias is the third weight."""
    h, c = state
    kernel, bias, forget_bias = weights
    i, j, f, o = np.split(np.concatenate([x, h]) @ kernel + bias, 4)
    c = sigmoid(f + forget_bias) * c + sigmoid(i) * np.tanh(j)
    return sigmoid(o) * np.tanh(c), c


def read_by_equations(
    weights: tuple[Arrays, Arrays], inputs: np.ndarray, lengths: np.ndarray, starts: tuple[Arrays, Arrays]
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
                state = lstm_step(inputs[b, t].astype(np.float64), state, double)
                outputs[b, t, units] = state[0]
            for part, value in zip(final, state, strict=True):
                part[b] = value
    return outputs, finals


def initial_states() -> tuple[Arrays, Arrays]:
    """Per direction `(h, c)`."""
    return tuple(tuple(PARITY[f"lstm/state/{d}/{p}0"] for p in ("h", "c")) for d in ("fw", "bw"))


def expected_states(start: str) -> tuple[Arrays, Arrays]:
    return tuple(tuple(PARITY[f"lstm/{start}/final/{d}/{p}"] for p in ("h", "c")) for d in ("fw", "bw"))


def to_tensors(states: tuple[Arrays, ...], dtype: torch.dtype = torch.float32) -> tuple[tuple[torch.Tensor, ...], ...]:
    return tuple(tuple(torch.tensor(part, dtype=dtype) for part in state) for state in states)


def cells(start: str) -> list[np.ndarray]:
    scope = f"lstm/{start}/bidirectional_rnn"
    return [PARITY[f"{scope}/{d}/{d}_lstm/{part}"] for d in ("fw", "bw") for part in ("kernel", "bias")]


def loaded_layer(start: str, dtype: torch.dtype = torch.float32) -> BidirectionalLSTM:
    layer = BidirectionalLSTM(E, H).to(dtype)
    load_cells(layer, *cells(start))
    return layer


def error(result: Any, expected: Any) -> float:
    """Largest absolute difference."""
    return float(np.abs(np.asarray(result.detach() if torch.is_tensor(result) else result) - expected).max())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("time_major", [False, True])
def test_outputs_states_and_mean_equal_tensorflows(start: str, time_major: bool) -> None:
    inputs = torch.tensor(INPUTS.swapaxes(0, 1) if time_major else INPUTS)
    given = to_tensors(initial_states()) if start == "state" else None
    lengths = torch.tensor(LENGTHS).long()
    outputs, state = loaded_layer(start)(inputs, lengths, given, time_major)
    expected = PARITY[f"lstm/{start}/outputs"]
    steps = torch.cat(outputs, 2) if time_major else torch.cat(outputs, 2).transpose(0, 1)
    assert error(steps, expected.swapaxes(0, 1)) < 1e-5
    assert error(POOLINGS["reduce_mean"](steps, lengths, T), PARITY[f"lstm/{start}/reduce_mean"]) < 1e-5
    for ours, theirs in zip(state, expected_states(start), strict=True):
        assert max(map(error, ours, theirs)) < 1e-5


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
    load_cells(layer, kernels[0], biases[0], kernels[1], biases[1], forget_bias=forget_bias)
    outputs, state = layer(torch.tensor(inputs), torch.tensor(lengths), to_tensors(starts, torch.float64))
    weights = tuple((kernel, bias, forget_bias) for kernel, bias in zip(kernels, biases, strict=True))
    expected, finals = read_by_equations(weights, inputs, np.array(lengths), starts)
    assert error(torch.cat(outputs, 2), expected) < 1e-12
    for ours, theirs in zip(state, finals, strict=True):
        assert error(torch.stack(ours), np.stack(theirs)) < 1e-12


@pytest.mark.parametrize(
    ("position", "array", "message"),
    [
        (2, np.zeros((12, 16)), r"bw_kernel has shape \[12, 16\], .* \[12, 20\]"),
        (2, np.zeros((20, 12)), r"bw_kernel has shape \[20, 12\]"),
        (3, np.zeros((20, 1)), r"bw_bias has shape \[20, 1\], .* \[20\]"),
        (1, torch.zeros(10), r"fw_bias has shape \[10\]"),
        (3, np.full(20, np.nan), "bw_bias"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_change_nothing(position: int, array: Any, message: str) -> None:
    layer = BidirectionalLSTM(E, H)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    arrays: list[Any] = cells("zero")
    arrays[position] = array
    with pytest.raises(ValueError, match=message):
        load_cells(layer, *arrays)
    torch.testing.assert_close(layer.state_dict(), before, atol=0, rtol=0)


@pytest.mark.parametrize("options", [{"cell": "gru"}, {"bidirectional": False}, {"num_layers": 2}])
def test_layers_of_another_kind_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one bidirectional lstm layer"):
        load_cells(BidirectionalLSTM(E, H, **options), *cells("zero"))
