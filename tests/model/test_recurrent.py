import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bilstm_cls.model.recurrent import CELLS, BidirectionalLSTM

LENGTHS = torch.tensor([7, 3, 1, 5, 7, 2])


def reference(layer: BidirectionalLSTM, inputs: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """PyTorch's own layer over packed texts: outputs `[B, T, D]`, final h `[L * directions, B, H]`, and its weights."""
    options = {"num_layers": len(layer.layers), "bidirectional": layer.num_directions == 2, "batch_first": True}
    packing = CELLS[layer.cell](4, 5, **options)
    weights = list(packing.parameters())
    with torch.no_grad():
        for theirs, ours in zip(weights, layer.parameters(), strict=True):  # by layer, direction, and part
            theirs.copy_(ours)
    packed, state = packing(pack_padded_sequence(inputs, LENGTHS, batch_first=True, enforce_sorted=False))
    final = state[0] if layer.cell == "lstm" else state
    return pad_packed_sequence(packed, batch_first=True)[0], final, weights


def make(cell: str = "lstm", num_layers: int = 1, bidirectional: bool = True) -> tuple[BidirectionalLSTM, Tensor]:
    torch.manual_seed(0)
    layer = BidirectionalLSTM(4, 5, cell=cell, num_layers=num_layers, bidirectional=bidirectional)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer, torch.randn(6, 7, 4)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_outputs_states_and_gradients_are_those_of_packed_sequences(
    cell: str, num_layers: int, bidirectional: bool
) -> None:
    layer, inputs = make(cell, num_layers, bidirectional)
    inputs.requires_grad_()
    expected, final, weights = reference(layer, inputs)
    outputs, state = layer(inputs, LENGTHS)
    joined = torch.cat(outputs, 2)
    torch.testing.assert_close(joined, expected, atol=1e-5, rtol=0)
    for direction, found in enumerate(state):
        torch.testing.assert_close(
            found[0].reshape(num_layers, 6, 5), final[direction :: len(state)], atol=1e-5, rtol=0
        )
    steps = torch.arange(1, 8).unsqueeze(1)
    ours = torch.autograd.grad((joined * steps).pow(2).sum(), [inputs, *layer.parameters()])
    theirs = torch.autograd.grad((expected * steps).pow(2).sum(), [inputs, *weights])
    scale = max(float(gradient.abs().max()) for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine / scale, other / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_fast_path_equals_the_exact_layer(cell: str, num_layers: int) -> None:
    layer, inputs = make(cell, num_layers)
    inputs.requires_grad_()
    (forward, backward), _ = layer(inputs, LENGTHS)
    fast = layer.encode(inputs.transpose(0, 1), LENGTHS, aligned=True)
    is_token = (torch.arange(7) < LENGTHS.unsqueeze(1)).unsqueeze(2)
    for exact, quick in zip((forward, backward), fast, strict=True):
        torch.testing.assert_close(exact, quick.transpose(0, 1) * is_token, atol=1e-6, rtol=0)
    (exact_gradient,) = torch.autograd.grad(torch.cat([forward, backward], 2).pow(2).sum(), inputs)
    masked = torch.cat(fast, 2).transpose(0, 1) * is_token
    (fast_gradient,) = torch.autograd.grad(masked.pow(2).sum(), inputs)
    torch.testing.assert_close(exact_gradient, fast_gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_unaligned_backward_direction_ends_at_its_last_token(cell: str) -> None:
    layer, inputs = make(cell)
    _, state = layer(inputs, LENGTHS)
    _, backward = layer.encode(inputs.transpose(0, 1), LENGTHS, aligned=False)
    torch.testing.assert_close(backward[LENGTHS - 1, torch.arange(6)], state[1][0], atol=1e-6, rtol=0)


def test_padding_is_neither_read_nor_written() -> None:
    layer, inputs = make(num_layers=2)
    is_padding = torch.arange(7) >= LENGTHS.unsqueeze(1)
    spoiled = torch.where(is_padding.unsqueeze(2), torch.tensor(1e6), inputs)
    clean, dirty = layer(inputs, LENGTHS), layer(spoiled, LENGTHS)
    torch.testing.assert_close(clean, dirty, atol=0, rtol=0)
    assert all(output[is_padding].abs().max() == 0 for output in clean[0])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_reading_on_from_a_state_equals_reading_at_once(num_layers: int) -> None:
    layer, inputs = make(num_layers=num_layers, bidirectional=False)
    whole = torch.full((6,), 7)
    (at_once,), state = layer(inputs, whole)
    (_,), half = layer(inputs[:, :3], torch.full((6,), 3))
    (second,), final = layer(inputs[:, 3:], torch.full((6,), 4), initial_state=half)
    torch.testing.assert_close(at_once[:, 3:], second, atol=1e-6, rtol=0)
    torch.testing.assert_close(state, final, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "lengths",
    [
        torch.tensor([7, 3, 0, 5, 7, 2]),
        torch.tensor([8, 3, 1, 5, 7, 2]),
        torch.tensor([7, 3, 1]),
        torch.tensor([7.0, 3, 1, 5, 7, 2]),
        torch.tensor([7, 3, 1, 5, 7, 2], dtype=torch.int32),
    ],
    ids=["zero", "longer than T", "too few", "float", "int32"],
)
def test_lengths_that_do_not_fit_are_refused(lengths: Tensor) -> None:
    layer, inputs = make()
    with pytest.raises(ValueError, match="lengths must"):
        layer(inputs, lengths)


def test_forget_gate_starts_open_and_recurrent_weights_orthogonal() -> None:
    layer = BidirectionalLSTM(4, 5)
    rnn = layer.layers[0][1]
    torch.testing.assert_close(rnn.bias_ih_l0, torch.tensor([0.0] * 5 + [1.0] * 5 + [0.0] * 10))
    for gate in rnn.weight_hh_l0.split(5):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(5), atol=1e-5, rtol=0)


def test_recurrent_dropout_acts_on_recurrent_weights_while_training_only() -> None:
    layer = BidirectionalLSTM(4, 5, recurrent_dropout=0.5)
    inputs = torch.randn(6, 7, 4)
    first, second = layer(inputs, LENGTHS)[0][0], layer(inputs, LENGTHS)[0][0]
    torch.testing.assert_close(first[:, 0], second[:, 0], atol=0, rtol=0)  # the first step has no recurrent input
    assert (first[:, 1] - second[:, 1]).abs().max() > 0
    layer.eval()
    torch.testing.assert_close(layer(inputs, LENGTHS), layer(inputs, LENGTHS), atol=0, rtol=0)


def test_layer_dropout_acts_between_layers_while_training_only() -> None:
    layer = BidirectionalLSTM(4, 5, num_layers=2, layer_dropout=0.5)
    steps = torch.randn(7, 6, 4)
    assert not torch.equal(*(layer.encode(steps, LENGTHS, aligned=True)[0] for _ in range(2)))
    layer.eval()
    assert torch.equal(*(layer.encode(steps, LENGTHS, aligned=True)[0] for _ in range(2)))
