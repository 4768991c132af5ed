"""The gates of a trained model while it reads one text, drawn over its tokens and units.

The fused kernels return outputs only. Here the last layer is computed step by step from its equations, so that every
gate is kept. Shapes: T tokens, E input size, H hidden size.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilstm_cls.classifier import LoadedModel
from bilstm_cls.data.tokenizer import UNKNOWN
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import read_tokens, reading_tensors
from bilstm_cls.evaluation.plots import drawable, font_families, new_figure, save_figure
from bilstm_cls.model.recurrent import BidirectionalLSTM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Activations = dict[str, Tensor]
MAX_SHOWN, MAX_TOKEN_LENGTH = 40, 14
"""Tokens in a picture, more could not be read; and characters of a token."""

SHOWN = {
    "lstm": {
        "forget": "forget gate f", "input": "input gate i", "candidate": "candidate g", "cell": "cell state c",
        "output": "output gate o",
    },
    "gru": {"reset": "reset gate r", "update": "update gate z", "candidate": "candidate g", "hidden": "output h"},
}  # fmt: skip
_MEMORY = {"lstm": "cell", "gru": "hidden"}
_SIGNED = ("candidate", "cell", "hidden")  # around 0; gates are between 0 and 1
_DIRECTIONS = ("read from the left →", "read from the right ←")


class Gates(NamedTuple):
    """At most `MAX_SHOWN` tokens, and for each direction by name `[tokens, H]`, units sorted by their mean memory."""

    cell: str
    tokens: list[str]
    caption: str
    values: list[dict[str, npt.NDArray[Any]]]


def write_gates(loaded: LoadedModel, text: str, target: Path) -> None:
    """Draws the gates, candidate and memory of the last layer in both directions while it reads a text.

    Args:
        loaded: a run's model, of cell `lstm` or `gru`.
        text: the first `MAX_SHOWN` of its tokens are drawn.
        target: a `.png`.

    Raises:
        ConfigError: another ending, a cell without gates, or the file cannot be written.
    """
    if target.suffix.lower() != ".png":
        raise ConfigError(f"--gates: {target} must end in .png")
    if loaded.model.encoder.cell not in STEPS:
        raise ConfigError(f"--gates: cell {loaded.model.encoder.cell!r} has no gates; {' and '.join(STEPS)} have")
    save_figure(_draw(read_gates(loaded, text)), target)
    logger.info(f"wrote {target}")


def read_gates(loaded: LoadedModel, text: str) -> Gates:
    """Computes what is drawn of one text."""
    model, reading = loaded.model, read_tokens(loaded, text)
    with torch.inference_mode():
        steps = model.embed(*reading_tensors(reading, model))[:, 0]  # [T, E]
        directions = gate_activations(model.encoder, steps)
    cell, values = model.encoder.cell, []
    for direction in directions:
        arrays = {name: value.cpu().numpy() for name, value in direction.items()}  # [T, H]
        order = np.argsort(-arrays[_MEMORY[cell]].mean(0), kind="stable")
        values.append({name: array[:MAX_SHOWN, order] for name, array in arrays.items()})
    tokens, layers = [text[slice(*place)] or UNKNOWN for place in reading.places], len(model.encoder.layers)
    caption = (
        f"{model.encoder.hidden_size} {cell} units per direction, layer {layers} of {layers}, sorted by their mean "
        f"{SHOWN[cell][_MEMORY[cell]]}, {len(tokens[:MAX_SHOWN])} of {len(tokens)} tokens"
    )
    return Gates(cell, tokens[:MAX_SHOWN], caption, values)


def gate_activations(layer: BidirectionalLSTM, steps: Tensor) -> list[Activations]:
    """Returns the gates, candidates and states of the last layer: for each direction by name `[T, H]`.

    Args:
        layer: of cell `lstm` or `gru`.
        steps: `[T, E]`, one text.
    """
    directions: list[Activations] = []
    for rnns in layer.layers:
        forward, *backward = cast("Iterable[nn.RNNBase]", rnns)
        directions = [_read(layer.cell, forward, steps)]
        for rnn in backward:
            read = _read(layer.cell, rnn, steps.flip(0))
            directions.append({name: value.flip(0) for name, value in read.items()})
        steps = torch.cat([values["hidden"] for values in directions], 1)
    return directions


def _read(cell: str, rnn: nn.RNNBase, steps: Tensor) -> Activations:
    weight_ih, weight_hh, bias_ih, bias_hh = rnn.all_weights[0]
    values, read = {"hidden": steps.new_zeros(rnn.hidden_size), "cell": steps.new_zeros(rnn.hidden_size)}, []
    for step in steps:
        values = STEPS[cell](F.linear(step, weight_ih, bias_ih), F.linear(values["hidden"], weight_hh, bias_hh), values)
        read.append(values)
    return {name: torch.stack([values[name] for values in read]) for name in read[0]}


def _lstm_step(x: Tensor, h: Tensor, before: Activations) -> Activations:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997, Gers et al. 2000); rows of the weights: i, f, g, o."""
    input_gate, forget_gate, candidate, output_gate = (x + h).chunk(4)
    values = {"forget": forget_gate.sigmoid(), "input": input_gate.sigmoid(), "output": output_gate.sigmoid()}
    values["candidate"] = candidate.tanh()
    values["cell"] = values["forget"] * before["cell"] + values["input"] * values["candidate"]
    return {**values, "hidden": values["output"] * values["cell"].tanh()}


def _gru_step(x: Tensor, h: Tensor, before: Activations) -> Activations:
    """One step of PyTorch's GRU (Cho et al. 2014), which resets after the matrix product; rows: r, z, n."""
    (x_reset, x_update, x_candidate), (h_reset, h_update, h_candidate) = x.chunk(3), h.chunk(3)
    reset, update = (x_reset + h_reset).sigmoid(), (x_update + h_update).sigmoid()
    candidate = (x_candidate + reset * h_candidate).tanh()
    hidden = (1 - update) * candidate + update * before["hidden"]
    return {"reset": reset, "update": update, "candidate": candidate, "hidden": hidden}


STEPS: dict[str, Callable[[Tensor, Tensor, Activations], Activations]] = {"lstm": _lstm_step, "gru": _gru_step}


def _draw(gates: Gates) -> "Figure":
    """Draws a row for each name and a column for each direction."""
    titles, columns = SHOWN[gates.cell], len(gates.values)
    figure = new_figure(columns * max(3.6, 0.235 * len(gates.tokens)) + 1.6, 2.15 * len(titles) + 1.2)
    grid = figure.subplots(len(titles), columns, squeeze=False, sharex="col")
    for (name, title), row in zip(titles.items(), grid, strict=True):
        arrays = [values[name].T for values in gates.values]  # [H, tokens]
        limit = max(float(np.percentile(np.abs(np.concatenate(arrays, 1)), 99)), 1e-6)  # 1 % of the values lie beyond
        scale: dict[str, Any] = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}
        if name in _SIGNED:
            scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        for axes, array, direction in zip(row, arrays, _DIRECTIONS, strict=False):
            image = axes.imshow(array, aspect="auto", interpolation="nearest", **scale)
            axes.set_title(f"{title}, {direction}", fontsize=10)
            axes.set_ylabel("unit")
        figure.colorbar(image, ax=list(row), fraction=0.03, pad=0.01, extend="both" if name in _SIGNED else "neither")
    labels = [drawable(token, i)[:MAX_TOKEN_LENGTH] for i, token in enumerate(gates.tokens, 1)]
    style: dict[str, Any] = {"fontsize": 9, "fontfamily": font_families(), "parse_math": False}
    for axes in grid[-1]:
        axes.set_xticks(range(len(labels)), labels, rotation=90, **style)
    figure.suptitle(gates.caption, fontsize=11, parse_math=False)
    return figure
