"""What happens inside a recurrent layer at each token, computed step by step from its equations.

The fused kernels return outputs only. Here every gate is kept, so that it can be looked at; it is slow and meant for a
few texts.

Shapes: B texts, T tokens (padded), E input size, H hidden size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilstm_cls.model.recurrent import BidirectionalLSTM, check_lengths

Activations = dict[str, Tensor]
"""Values by name: of an LSTM forget, input, output, candidate, cell and hidden; of a GRU reset, update, candidate and
hidden."""


def gate_activations(layer: BidirectionalLSTM, inputs: Tensor, lengths: Tensor) -> tuple[Activations, ...]:
    """Returns the gates, candidates and states of the last layer at every token.

    Args:
        layer: of cell `lstm` or `gru`.
        inputs: `[B, T, E]`.
        lengths: `[B]` int64 on the CPU, tokens of each text, 1 to T.

    Returns:
        For each direction (forward, backward) the values by name, each `[B, T, H]` in the order of the text, zero past
        each length. `hidden` is the layer's output.

    Raises:
        ValueError: a cell without gates, or `lengths` do not fit `inputs`.
    """
    if layer.cell not in STEPS:
        raise ValueError(f"cell {layer.cell!r} has no gates, only {', '.join(STEPS)} have")
    steps = inputs.transpose(0, 1)  # [T, B, E]
    check_lengths(lengths, steps)
    directions: list[Activations] = []
    for rnns in layer.layers:
        assert isinstance(rnns, nn.ModuleList)
        directions = [_read(layer.cell, rnn, steps, lengths, backward=i == 1) for i, rnn in enumerate(rnns)]
        steps = torch.cat([values["hidden"] for values in directions], 2)
    return tuple({name: value.transpose(0, 1) for name, value in values.items()} for values in directions)


def _read(cell: str, rnn: nn.Module, steps: Tensor, lengths: Tensor, *, backward: bool) -> Activations:
    """One direction over `[T, B, E]`. From the right, a text's state stays zero until its own last token is reached."""
    assert isinstance(rnn, nn.RNNBase)
    weight_ih, weight_hh, bias_ih, bias_hh = rnn.all_weights[0]
    state = {"hidden": steps.new_zeros(steps.shape[1], rnn.hidden_size)}
    if cell == "lstm":
        state["cell"] = state["hidden"]
    read: list[Activations] = []
    for i in reversed(range(len(steps))) if backward else range(len(steps)):
        x = F.linear(steps[i], weight_ih, bias_ih)
        h = F.linear(state["hidden"], weight_hh, bias_hh)
        is_token = (lengths > i).to(x.device).unsqueeze(1)  # [B, 1]
        read.append({name: value * is_token for name, value in STEPS[cell](x, h, state).items()})
        state = {name: read[-1][name] for name in state}
    in_order = read[::-1] if backward else read
    return {name: torch.stack([values[name] for values in in_order]) for name in read[0]}


def _lstm_step(x: Tensor, h: Tensor, state: Activations) -> Activations:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997, Gers et al. 2000); rows of the weights: i, f, g, o.

    Args:
        x: `[B, 4H]`, the token's share of all gates.
        h: `[B, 4H]`, the last output's share.
        state: `hidden` and `cell` after the step before, each `[B, H]`.
    """
    input_gate, forget_gate, candidate, output_gate = (x + h).chunk(4, 1)
    values = {"forget": forget_gate.sigmoid(), "input": input_gate.sigmoid(), "output": output_gate.sigmoid()}
    values["candidate"] = candidate.tanh()
    values["cell"] = values["forget"] * state["cell"] + values["input"] * values["candidate"]
    return {**values, "hidden": values["output"] * values["cell"].tanh()}


def _gru_step(x: Tensor, h: Tensor, state: Activations) -> Activations:
    """One step of PyTorch's GRU (Cho et al. 2014), which resets after the matrix product; rows: r, z, n."""
    (x_reset, x_update, x_candidate), (h_reset, h_update, h_candidate) = x.chunk(3, 1), h.chunk(3, 1)
    reset, update = (x_reset + h_reset).sigmoid(), (x_update + h_update).sigmoid()
    candidate = (x_candidate + reset * h_candidate).tanh()
    hidden = (1 - update) * candidate + update * state["hidden"]
    return {"reset": reset, "update": update, "candidate": candidate, "hidden": hidden}


STEPS: dict[str, Callable[[Tensor, Tensor, Activations], Activations]] = {"lstm": _lstm_step, "gru": _gru_step}
