"""Gates computed from the equations, beside the kernel that keeps them to itself."""

import pytest
import torch

from bilstm_cls.model.gates import gate_activations
from bilstm_cls.model.recurrent import BidirectionalLSTM

LENGTHS = torch.tensor([7, 1, 4, 7])
SHAPES = [(1, True), (1, False), (2, True), (3, False)]
NAMES = {
    "lstm": {"forget", "input", "output", "candidate", "cell", "hidden"},
    "gru": {"reset", "update", "candidate", "hidden"},
}


def layer_and_inputs(cell: str, num_layers: int, bidirectional: bool) -> tuple[BidirectionalLSTM, torch.Tensor]:
    torch.manual_seed(0)
    layer = BidirectionalLSTM(3, 5, cell=cell, num_layers=num_layers, bidirectional=bidirectional).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer, torch.randn(4, 7, 3)


@pytest.mark.parametrize("cell", NAMES)
@pytest.mark.parametrize(("num_layers", "bidirectional"), SHAPES)
@torch.no_grad()
def test_outputs_are_those_of_the_kernel(cell: str, num_layers: int, bidirectional: bool) -> None:
    layer, inputs = layer_and_inputs(cell, num_layers, bidirectional)
    outputs, _ = layer(inputs, LENGTHS)
    directions = gate_activations(layer, inputs, LENGTHS)
    assert len(directions) == len(outputs)
    for values, output in zip(directions, outputs, strict=True):
        assert values.keys() == NAMES[cell]
        assert all(value.shape == (4, 7, 5) for value in values.values())
        torch.testing.assert_close(values["hidden"], output, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stop", range(1, 8))
@torch.no_grad()
def test_the_cell_state_at_every_token_is_that_of_the_kernel(stop: int) -> None:
    layer, inputs = layer_and_inputs("lstm", 1, True)
    forward, backward = gate_activations(layer, inputs, torch.full((4,), 7))
    from_left = layer(inputs[:, :stop], torch.full((4,), stop))[1][0]
    from_right = layer(inputs[:, -stop:], torch.full((4,), stop))[1][1]
    torch.testing.assert_close((forward["hidden"][:, stop - 1], forward["cell"][:, stop - 1]), from_left)
    torch.testing.assert_close((backward["hidden"][:, -stop], backward["cell"][:, -stop]), from_right)


@torch.no_grad()
def test_final_states_are_those_after_each_texts_own_last_step() -> None:
    layer, inputs = layer_and_inputs("lstm", 1, True)
    _, (forward_state, backward_state) = layer(inputs, LENGTHS)
    forward, backward = gate_activations(layer, inputs, LENGTHS)
    own_last = torch.arange(4), LENGTHS - 1
    torch.testing.assert_close((forward["hidden"][own_last], forward["cell"][own_last]), forward_state)
    torch.testing.assert_close((backward["hidden"][:, 0], backward["cell"][:, 0]), backward_state)


@pytest.mark.parametrize("cell", NAMES)
@torch.no_grad()
def test_nothing_stands_past_a_texts_end(cell: str) -> None:
    layer, inputs = layer_and_inputs(cell, 1, True)
    padding = torch.arange(7) >= LENGTHS.unsqueeze(1)  # [B, T]
    for values in gate_activations(layer, inputs, LENGTHS):
        assert all(value[padding].eq(0).all() and value[~padding].ne(0).all() for value in values.values())


@torch.no_grad()
def test_values_of_a_gru_make_its_output() -> None:
    layer, inputs = layer_and_inputs("gru", 1, False)
    (values,) = gate_activations(layer, inputs, torch.full((4,), 7))
    before = torch.nn.functional.pad(values["hidden"][:, :-1], (0, 0, 1, 0))
    made = values["update"] * before + (1 - values["update"]) * values["candidate"]
    torch.testing.assert_close(made, values["hidden"])
    assert ((values["reset"] > 0) & (values["reset"] < 1)).all()


def test_a_cell_without_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="cell 'rnn' has no gates, only lstm, gru have"):
        gate_activations(BidirectionalLSTM(3, 5, cell="rnn"), torch.randn(4, 7, 3), LENGTHS)


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths must lie between 1 and 7"):
        gate_activations(BidirectionalLSTM(3, 5), torch.randn(4, 7, 3), LENGTHS + 1)
