"""The gates of a trained LSTM while it reads one text, drawn over its tokens and units.

The fused kernel returns outputs only. Here every layer is computed step by step from its equations, so that every gate
is kept. Shapes: T tokens, E input size, H hidden size.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilstm_cls.classifier import LoadedModel
from bilstm_cls.data.tokenizer import UNKNOWN
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import read_tokens
from bilstm_cls.evaluation.plots import drawable, drawing
from bilstm_cls.model.recurrent import BidirectionalLSTM

logger = logging.getLogger(__name__)

Activations = dict[str, Tensor]
MAX_SHOWN, MAX_TOKEN_LENGTH = 40, 14
"""Tokens in a picture, more could not be read; and characters of a token."""

SHOWN = {
    "forget": "forget gate f", "input": "input gate i", "candidate": "candidate g", "cell": "cell state c",
    "output": "output gate o",
}  # fmt: skip
_DIRECTIONS = ("read from the left →", "read from the right ←")


def write_gates(loaded: LoadedModel, text: str, target: Path) -> None:
    """Draws the gates, candidate and cell state of the last layer in both directions while it reads a text.

    Args:
        loaded: a run's model, of cell `lstm`.
        text: the first `MAX_SHOWN` of its tokens are drawn.
        target: a `.png`.

    Raises:
        ConfigError: another ending, another cell, or the file cannot be written.
    """
    model, encoder = loaded.model, loaded.model.encoder
    if target.suffix.lower() != ".png":
        raise ConfigError(f"--gates: {target} must end in .png")
    if encoder.cell != "lstm":
        raise ConfigError(f"--gates: only the gates of cell 'lstm' are drawn, and the run has {encoder.cell!r}")
    ids, places = read_tokens(loaded, text)
    with torch.inference_mode():
        token_ids = torch.tensor([ids], device=model.embedding.weight.device)
        directions = gate_activations(encoder, model.embed(token_ids, torch.tensor([len(ids)]))[:, 0])
    _draw(directions, [text[slice(*place)] or UNKNOWN for place in places], target)
    logger.info(f"wrote {target}")


def gate_activations(layer: BidirectionalLSTM, steps: Tensor) -> list[Activations]:
    """Returns the gates, candidates and states of the last layer: for each direction by name `[T, H]`.

    Args:
        layer: of cell `lstm`.
        steps: `[T, E]`, one text.
    """
    directions: list[Activations] = []
    for rnns in layer.layers:
        forward, *backward = cast("Iterable[nn.LSTM]", rnns)
        directions = [_read(forward, steps)]
        directions += [{name: value.flip(0) for name, value in _read(rnn, steps.flip(0)).items()} for rnn in backward]
        steps = torch.cat([values["hidden"] for values in directions], 1)
    return directions


def _read(rnn: nn.LSTM, steps: Tensor) -> Activations:
    """Reads a text by the equations of Hochreiter & Schmidhuber 1997 and Gers et al. 2000; rows: i, f, g, o."""
    weight_ih, weight_hh, bias_ih, bias_hh = rnn.all_weights[0]
    hidden, cell, read = steps.new_zeros(rnn.hidden_size), steps.new_zeros(rnn.hidden_size), []
    for step in steps:
        parts = (F.linear(step, weight_ih, bias_ih) + F.linear(hidden, weight_hh, bias_hh)).chunk(4)
        input_gate, forget, output = parts[0].sigmoid(), parts[1].sigmoid(), parts[3].sigmoid()
        candidate = parts[2].tanh()
        cell = forget * cell + input_gate * candidate
        hidden = output * cell.tanh()
        read.append(torch.stack([input_gate, forget, candidate, output, cell, hidden]))
    names = ("input", "forget", "candidate", "output", "cell", "hidden")
    return dict(zip(names, torch.stack(read, dim=1), strict=True))


def _draw(directions: list[Activations], tokens: list[str], path: Path) -> None:
    """Draws a row for each name and a column for each direction, units sorted by their mean cell state."""
    shown, columns = tokens[:MAX_SHOWN], len(directions)
    labels = [drawable(token, i)[:MAX_TOKEN_LENGTH] for i, token in enumerate(shown, 1)]
    orders = [values["cell"].mean(0).argsort(descending=True, stable=True) for values in directions]
    with drawing(path, columns * max(3.6, 0.235 * len(shown)) + 1.6, 2.15 * len(SHOWN) + 1.2) as figure:
        grid = figure.subplots(len(SHOWN), columns, squeeze=False, sharex="col")
        for (name, title), row in zip(SHOWN.items(), grid, strict=True):
            arrays = [values[name][:MAX_SHOWN, order].T.cpu().numpy()
                      for values, order in zip(directions, orders, strict=True)]  # fmt: skip
            is_signed = name in ("candidate", "cell")  # around 0; gates are between 0 and 1
            limit = max(float(np.percentile(np.abs(np.concatenate(arrays, 1)), 99)), 1e-6)  # 1 % of all lie beyond
            scale: dict[str, Any] = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}
            scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if is_signed else scale
            for axes, array, direction in zip(row, arrays, _DIRECTIONS, strict=False):
                image = axes.imshow(array, aspect="auto", interpolation="nearest", **scale)
                axes.set(title=f"{title}, {direction}", ylabel="unit")
            figure.colorbar(image, ax=list(row), fraction=0.03, pad=0.01, extend="both" if is_signed else "neither")
        for axes in grid[-1]:
            axes.set_xticks(range(len(labels)), labels, rotation=90)
        figure.suptitle(
            f"the last layer, {len(shown)} of {len(tokens)} tokens, units sorted by their mean cell state c"
        )
