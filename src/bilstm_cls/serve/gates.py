"""The gates of a trained model at work on one text, drawn over its tokens and units."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from bilstm_cls.data.tokenizer import UNKNOWN
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import read_tokens, reading_tensors
from bilstm_cls.evaluation.page import picture, section, whole_page
from bilstm_cls.evaluation.plots import drawable, font_families, new_figure, save_figure
from bilstm_cls.files import write_atomic
from bilstm_cls.model.gates import STEPS, gate_activations
from bilstm_cls.run_directory import LoadedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MAX_SHOWN = 40
"""Tokens in a picture: more could not be read."""

MAX_TOKEN_LENGTH = 14


@dataclass(frozen=True, slots=True)
class Panel:
    """How the values of one name are shown.

    Attributes:
        title: names them.
        meaning: what they do, in a sentence.
        is_gate: whether they lie between 0 and 1, not around 0.
    """

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
        num_tokens: that the model read.
        layer: in words, which one of how many.
        values: for each direction by name `[tokens, H]`, units sorted by their mean memory, the highest first.
    """

    cell: str
    tokens: list[str]
    num_tokens: int
    layer: str
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
    write = WRITERS.get(target.suffix.lower())
    if write is None:
        raise ConfigError(f"--gates: {target} must end in {' or '.join(WRITERS)}")
    if loaded.model.encoder.cell not in STEPS:
        raise ConfigError(f"--gates: cell {loaded.model.encoder.cell!r} has no gates; {' and '.join(STEPS)} have")
    write(read_gates(loaded, text), text, target)
    logger.info(f"wrote {target}")


def read_gates(loaded: LoadedModel, text: str) -> Gates:
    """Computes what is drawn of one text."""
    model, reading = loaded.model, read_tokens(loaded, text)
    token_ids, lengths = reading_tensors(reading, model)
    with torch.inference_mode():
        embedded = model.embed(token_ids, lengths).transpose(0, 1)  # [1, T, E]
        activations = gate_activations(model.encoder, embedded, lengths)
    values = []
    for direction in activations:
        arrays = {name: value[0].cpu().numpy() for name, value in direction.items()}  # [T, H]
        order = np.argsort(-arrays[_MEMORY[model.encoder.cell]].mean(0), kind="stable")
        values.append({name: array[:MAX_SHOWN, order] for name, array in arrays.items()})
    number = len(model.encoder.layers)
    return Gates(
        cell=model.encoder.cell,
        tokens=[text[start:stop] or UNKNOWN for start, stop in reading.places[:MAX_SHOWN]],
        num_tokens=len(reading.token_ids),
        layer="" if number == 1 else f", layer {number} of {number}",
        values=values,
    )


def _write_png(gates: Gates, text: str, target: Path) -> None:
    save_figure(_draw_all(gates), target)


def _write_html(gates: Gates, text: str, target: Path) -> None:
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SHOWN[gates.cell]:
            path, panel = Path(folder) / f"{name}.png", PANELS[name]
            save_figure(_draw_one(gates, name), path)
            sections.append(section(panel.title, f"<p>{escape(panel.meaning)}</p>{picture(path, panel.title)}"))
    introduction = f'<p class="words" dir="auto">{escape(text)}</p><p class="quiet">{escape(_title(gates))}</p>'
    write_atomic(target, whole_page("Gates at work", "\n".join([introduction, *sections])))


WRITERS: dict[str, Callable[[Gates, str, Path], None]] = {".png": _write_png, ".html": _write_html}


def _title(gates: Gates) -> str:
    cut = f"the first {len(gates.tokens)} of {gates.num_tokens} tokens" if gates.num_tokens > len(gates.tokens) else ""
    units = gates.values[0][_MEMORY[gates.cell]].shape[1]
    memory = PANELS[_MEMORY[gates.cell]].title
    facts = [f"{units} {gates.cell} units a direction{gates.layer}", f"sorted by their mean {memory}", cut]
    return ", ".join(filter(None, facts))


def _draw_all(gates: Gates) -> "Figure":
    """One row for each name, one column for each direction."""
    names, columns = SHOWN[gates.cell], len(gates.values)
    figure = new_figure(columns * max(3.4, 0.235 * len(gates.tokens)) + 1.6, 2.15 * len(names) + 1.5)
    grid = figure.subplots(len(names), columns, squeeze=False, sharex="col")
    for row, name in zip(grid, names, strict=True):
        _fill(figure, list(row), gates, name)
    for axes in grid[-1]:
        _name_tokens(axes, gates.tokens)
    figure.suptitle(_title(gates), fontsize=11, parse_math=False)
    return figure


def _draw_one(gates: Gates, name: str) -> "Figure":
    """One direction under the other."""
    number = len(gates.values)
    figure = new_figure(min(9.5, max(4.5, 0.3 * len(gates.tokens) + 1.2)), 3.1 * number)
    column = list(figure.subplots(number, 1, squeeze=False)[:, 0])
    _fill(figure, column, gates, name)
    for axes in column:
        _name_tokens(axes, gates.tokens)
    return figure


def _fill(figure: "Figure", places: Sequence["Axes"], gates: Gates, name: str) -> None:
    """Draws one name in every direction on one scale of colours."""
    panel, arrays = PANELS[name], [values[name].T for values in gates.values]  # [H, tokens]
    scale = _scale(panel, arrays)
    for axes, array, direction in zip(places, arrays, _DIRECTIONS, strict=False):
        image = axes.imshow(array, aspect="auto", interpolation="nearest", **scale)
        axes.set_title(f"{panel.title}, {direction}", fontsize=10)
        axes.set_ylabel("unit")
        _rank_units(axes, len(array))
    figure.colorbar(image, ax=places, fraction=0.03, pad=0.01, extend="neither" if panel.is_gate else "both")


def _scale(panel: Panel, arrays: Sequence[npt.NDArray[Any]]) -> Mapping[str, Any]:
    """Gates from 0 to 1; what lies around 0 in two colours, so far out that 1 % of the values lie beyond."""
    if panel.is_gate:
        return {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}
    limit = max(float(np.percentile(np.abs(np.concatenate(arrays, 1)), 99)), 1e-6)
    return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}


def _rank_units(axes: "Axes", number: int) -> None:
    ranks = sorted({1, *(round(number * share) for share in (0.25, 0.5, 0.75)), number} - {0})
    axes.set_yticks([rank - 1 for rank in ranks], [str(rank) for rank in ranks], fontsize=8)


def _name_tokens(axes: "Axes", tokens: Sequence[str]) -> None:
    """Writes each token under its column, and the number of one that no font here can draw."""
    names = [_short(drawable(token, i)) for i, token in enumerate(tokens, 1)]
    axes.set_xticks(range(len(names)), names, fontsize=9, fontfamily=font_families(), parse_math=False)
    for label, name in zip(axes.get_xticklabels(), names, strict=True):
        label.set_rotation(90 if len(name) > 1 else 0)


def _short(name: str) -> str:
    return name if len(name) <= MAX_TOKEN_LENGTH else name[: MAX_TOKEN_LENGTH - 1] + "…"
