"""The gates of a trained model while it reads one text, drawn over its tokens and units.

The fused kernels return outputs only. Here the last layer is computed step by step from its equations, so that every
gate is kept. Shapes: T tokens, E input size, H hidden size.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilstm_cls.classifier import LoadedModel
from bilstm_cls.data.tokenizer import UNKNOWN
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import read_tokens, reading_tensors
from bilstm_cls.evaluation.pages import render
from bilstm_cls.evaluation.plots import drawable, font_families, new_figure, save_figure
from bilstm_cls.files import write_atomic
from bilstm_cls.model.recurrent import BidirectionalLSTM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Activations = dict[str, Tensor]
MAX_SHOWN, MAX_TOKEN_LENGTH = 40, 14
"""Tokens in a picture, more could not be read; and characters of a token."""


@dataclass(frozen=True, slots=True)
class Panel:
    """How the values of one name are shown; `is_gate` for values between 0 and 1, not around 0."""

    title: str
    meaning: str
    is_gate: bool = True


PANELS = {
    "forget": Panel("forget gate f", "How much of the cell state is kept from the token read before: 1 keeps all."),
    "input": Panel("input gate i", "How much of the candidate is written into the cell state: 0 writes nothing."),
    "candidate": Panel("candidate g", "What this token would write into the cell state.", is_gate=False),
    "cell": Panel("cell state c", "The memory after this token: f times the one before, and i times g.", is_gate=False),
    "output": Panel("output gate o", "How much of the memory is shown: the output is o times tanh(c)."),
    "reset": Panel("reset gate r", "How much of the last output the candidate is made from: 0 starts afresh."),
    "update": Panel("update gate z", "How much of the last output is kept: 1 keeps all and writes nothing."),
    "hidden": Panel("output h", "What the layer above sees after this token.", is_gate=False),
}
SHOWN = {
    "lstm": ("forget", "input", "candidate", "cell", "output"),
    "gru": ("reset", "update", "candidate", "hidden"),
}
_MEMORY = {"lstm": "cell", "gru": "hidden"}
_DIRECTIONS = ("read from the left →", "read from the right ←")


@dataclass(frozen=True)
class Gates:
    """What is drawn.

    Attributes:
        cell: `lstm` or `gru`.
        tokens: of the text, as it was given; at most `MAX_SHOWN`.
        caption: what the picture shows.
        values: for each direction by name `[tokens, H]`, units sorted by their mean memory, the highest first.
    """

    cell: str
    tokens: list[str]
    caption: str
    values: list[dict[str, npt.NDArray[Any]]]


def write_gates(loaded: LoadedModel, text: str, target: Path) -> None:
    """Draws the gates, candidate and memory of the last layer in both directions while it reads a text.

    Args:
        loaded: a run's model, of cell `lstm` or `gru`.
        text: the first `MAX_SHOWN` of its tokens are drawn.
        target: a `.png` with all of them, or an `.html` page with one picture each and what it means.

    Raises:
        ConfigError: another ending, a cell without gates, or the file cannot be written.
    """
    if target.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"--gates: {target} must end in .png or .html")
    if loaded.model.encoder.cell not in STEPS:
        raise ConfigError(f"--gates: cell {loaded.model.encoder.cell!r} has no gates; {' and '.join(STEPS)} have")
    gates = read_gates(loaded, text)
    names = SHOWN[gates.cell]
    if target.suffix.lower() == ".png":
        save_figure(_draw(gates, names), target)
    else:
        with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
            files = [Path(folder) / f"{name}.png" for name in names]
            for name, file in zip(names, files, strict=True):
                save_figure(_draw(gates, [name]), file)
            pictures = list(zip([PANELS[name] for name in names], files, strict=True))
            page = render("gates.html", title="Gates", text=text, caption=gates.caption, pictures=pictures)
        write_atomic(target, page)
    logger.info(f"wrote {target}")


def read_gates(loaded: LoadedModel, text: str) -> Gates:
    """Computes what is drawn of one text."""
    model, reading = loaded.model, read_tokens(loaded, text)
    with torch.inference_mode():
        steps = model.embed(*reading_tensors(reading, model))[:, 0]  # [T, E]
        activations = gate_activations(model.encoder, steps)
    cell, values = model.encoder.cell, []
    for direction in activations:
        arrays = {name: value.cpu().numpy() for name, value in direction.items()}  # [T, H]
        order = np.argsort(-arrays[_MEMORY[cell]].mean(0), kind="stable")
        values.append({name: array[:MAX_SHOWN, order] for name, array in arrays.items()})
    tokens = [text[start:stop] or UNKNOWN for start, stop in reading.places[:MAX_SHOWN]]
    layers, total = len(model.encoder.layers), len(reading.token_ids)
    facts = [f"{model.encoder.hidden_size} {cell} units per direction"]
    facts += [f"layer {layers} of {layers}"] if layers > 1 else []
    facts += [f"sorted by their mean {PANELS[_MEMORY[cell]].title}"]
    facts += [f"the first {len(tokens)} of {total} tokens"] if total > len(tokens) else []
    return Gates(cell, tokens, ", ".join(facts), values)


def gate_activations(layer: BidirectionalLSTM, steps: Tensor) -> list[Activations]:
    """Returns the gates, candidates and states of the last layer: for each direction by name `[T, H]`.

    Args:
        layer: of cell `lstm` or `gru`.
        steps: `[T, E]`, one text.
    """
    directions: list[Activations] = []
    for rnns in layer.layers:
        assert isinstance(rnns, nn.ModuleList)
        directions = [_read(layer.cell, rnn, steps, backward=i == 1) for i, rnn in enumerate(rnns)]
        steps = torch.cat([values["hidden"] for values in directions], 1)
    return directions


def _read(cell: str, rnn: nn.Module, steps: Tensor, *, backward: bool) -> Activations:
    assert isinstance(rnn, nn.RNNBase)
    weight_ih, weight_hh, bias_ih, bias_hh = rnn.all_weights[0]
    values = {"hidden": steps.new_zeros(rnn.hidden_size), "cell": steps.new_zeros(rnn.hidden_size)}
    read: list[Activations] = []
    for step in steps.flip(0) if backward else steps:
        values = STEPS[cell](F.linear(step, weight_ih, bias_ih), F.linear(values["hidden"], weight_hh, bias_hh), values)
        read.append(values)
    in_order = read[::-1] if backward else read
    return {name: torch.stack([values[name] for values in in_order]) for name in read[0]}


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


def _draw(gates: Gates, names: Sequence[str]) -> "Figure":
    """Draws a row for each name and a column for each direction; a single name in rows."""
    rows, columns = (len(names), len(gates.values)) if len(names) > 1 else (len(gates.values), 1)
    figure = new_figure(columns * max(3.6, 0.235 * len(gates.tokens)) + 1.6, 2.15 * rows + 1.2)
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col").reshape(len(names), -1)
    for name, places in zip(names, grid, strict=True):
        panel, arrays = PANELS[name], [values[name].T for values in gates.values]  # [H, tokens]
        limit = max(float(np.percentile(np.abs(np.concatenate(arrays, 1)), 99)), 1e-6)  # 1 % of the values lie beyond
        scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        scale = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0} if panel.is_gate else scale
        for axes, array, direction in zip(places, arrays, _DIRECTIONS, strict=False):
            image = axes.imshow(array, aspect="auto", interpolation="nearest", **scale)
            axes.set_title(f"{panel.title}, {direction}", fontsize=10)
            axes.set_ylabel("unit")
        figure.colorbar(image, ax=list(places), fraction=0.03, pad=0.01, extend="neither" if panel.is_gate else "both")
    for axes in grid[-1] if len(names) > 1 else grid[-1][-1:]:
        labels = [drawable(token, i)[:MAX_TOKEN_LENGTH] for i, token in enumerate(gates.tokens, 1)]
        style: dict[str, Any] = {"fontsize": 9, "fontfamily": font_families(), "parse_math": False}
        axes.set_xticks(range(len(labels)), labels, rotation=90, **style)
    if len(names) > 1:
        figure.suptitle(gates.caption, fontsize=11, parse_math=False)
    return figure
