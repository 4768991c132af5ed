import pytest
import torch
from torch import Tensor

from bilstm_cls.model.recurrent import BidirectionalLSTM

LENGTHS = torch.tensor([7, 3, 1, 5, 7, 2])
CELLS = ("lstm", "gru", "rnn")


def lstm_step(x: Tensor, h: Tensor, c: Tensor, w: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The equations of Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000."""
    i, f, g, o = (w[0] @ x + w[2] + w[1] @ h + w[3]).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(x: Tensor, h: Tensor, c: Tensor, w: list[Tensor]) -> tuple[Tensor, Tensor]:
    ri, zi, ni = (w[0] @ x + w[2]).chunk(3)
    rh, zh, nh = (w[1] @ h + w[3]).chunk(3)
    z = torch.sigmoid(zi + zh)
    return (1 - z) * torch.tanh(ni + torch.sigmoid(ri + rh) * nh) + z * h, c


def rnn_step(x: Tensor, h: Tensor, c: Tensor, w: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.tanh(w[0] @ x + w[2] + w[1] @ h + w[3]), c


STEPS = {"lstm": lstm_step, "gru": gru_step, "rnn": rnn_step}


def reference(layer: BidirectionalLSTM, inputs: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    """One text at a time, one token at a time, from the equations."""
    texts = [inputs[b, : int(n)] for b, n in enumerate(lengths)]
    finals: list[list[Tensor]] = [[] for _ in range(layer.num_directions)]
    for directions in layer.layers:
        read: list[list[Tensor]] = [[] for _ in texts]
        for d, rnn in enumerate(directions):
            weights = list(rnn.all_weights[0])
            for b, text in enumerate(texts):
                h = c = torch.zeros(layer.hidden_size, dtype=inputs.dtype)
                outputs = []
                for x in text if d == 0 else text.flip(0):
                    h, c = STEPS[layer.cell](x, h, c, weights)
                    outputs.append(h)
                ordered = torch.stack(outputs)
                read[b].append(ordered if d == 0 else ordered.flip(0))
                finals[d].append(torch.stack([h, c]))
        texts = [torch.cat(parts, 1) for parts in read]
    return texts, finals


def make(cell: str = "lstm", num_layers: int = 1, bidirectional: bool = True) -> tuple[BidirectionalLSTM, Tensor]:
    torch.manual_seed(0)
    layer = BidirectionalLSTM(4, 5, cell=cell, num_layers=num_layers, bidirectional=bidirectional)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer, torch.randn(6, 7, 4)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_outputs_and_gradients_equal_the_equations(cell: str, num_layers: int, bidirectional: bool) -> None:
    layer, inputs = make(cell, num_layers, bidirectional)
    inputs.requires_grad_()
    weights = [inputs, *layer.parameters()]
    texts, _ = reference(layer, inputs, LENGTHS)
    expected = sum((text * torch.arange(1, len(text) + 1).unsqueeze(1)).pow(2).sum() for text in texts)
    assert isinstance(expected, Tensor)
    steps = torch.arange(1, 8).unsqueeze(1)
    outputs, _ = layer(inputs, LENGTHS)
    joined = torch.cat(outputs, 2)
    for b, text in enumerate(texts):
        torch.testing.assert_close(joined[b, : len(text)], text, atol=1e-5, rtol=0)
    by_layer = torch.autograd.grad((joined * steps).pow(2).sum(), weights)
    by_equations = torch.autograd.grad(expected, weights)
    scale = max(float(g.abs().max()) for g in by_equations)
    for mine, theirs in zip(by_layer, by_equations, strict=True):
        torch.testing.assert_close(mine / scale, theirs / scale, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("cell", CELLS)
def test_final_states_are_those_after_each_texts_own_last_step(cell: str) -> None:
    layer, inputs = make(cell)
    _, finals = reference(layer, inputs, LENGTHS)
    _, state = layer(inputs, LENGTHS)
    for direction in range(2):
        expected = torch.stack(finals[direction])  # [B, 2, H]
        for part in range(len(state[direction])):
            torch.testing.assert_close(state[direction][part], expected[:, part], atol=1e-5, rtol=0)


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
