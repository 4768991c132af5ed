"""How much each token of a text changes a prediction, and what the gates of an LSTM do while it reads the text.

A token changes a label's logit by what that loses when the token is left out. The logit is the label's, minus the mean
of the other labels' where a text has one label. For two labels that is the logarithm of the odds, `log(p / (1 - p))`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilstm_cls.classifier import LoadedModel, Prediction, network_logits
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.tokenizer import UNKNOWN, UNKNOWN_ID
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.plots import drawable, drawing
from bilstm_cls.model.recurrent import BidirectionalLSTM

MAX_VARIANTS = 512
"""Of one text, each with something else left out: of longer texts, stretches of several tokens are left out."""

MAX_SHOWN, MAX_TOKEN_LENGTH = 40, 14
"""Tokens in a picture of gates, more could not be read; and characters of a token."""

SHOWN = {
    "forget": "forget gate f", "input": "input gate i", "candidate": "candidate g", "cell": "cell state c",
    "output": "output gate o",
}  # fmt: skip
DIRECTIONS = ("read from the left →", "read from the right ←")

Activations = dict[str, Tensor]


class Term(NamedTuple):
    """What one token adds to the logit: `value` nats, above 0 where it speaks for the label.

    It is the characters `start` to `stop` of the text as it was given, none for the `<unk>` of an empty text; byte-pair
    tokens may share a character. `is_known` where the vocabulary has it.
    """

    token: str
    start: int
    stop: int
    value: float
    is_known: bool


@dataclass(frozen=True)
class Explanation:
    """A value for each token that the network reads of a text, in its order.

    Attributes:
        label: whose logit it is.
        prediction: the likeliest label.
        logit: the label's, minus the mean of the others' where a text has one label.
    """

    text: str
    label: str
    prediction: str
    logit: float
    terms: tuple[Term, ...]


def explain_prediction(loaded: LoadedModel, prediction: Prediction) -> list[Explanation]:
    """Explains each predicted label, or the likeliest one where none is predicted."""
    return [explain(loaded, prediction.text, label=label) for label in prediction.labels or (prediction.label,)]


def explanation_object(prediction: Prediction, found: Sequence[Explanation]) -> Any:
    """Returns what JSON holds of `explain_prediction`: one object, or a list where a text may have several labels."""
    names = ("token", "start", "stop", "value")
    objects = [
        {"label": one.label, "logit": one.logit, "terms": [dict(zip(names, term, strict=False)) for term in one.terms]}
        for one in found
    ]
    return objects[0] if prediction.labels is None else objects


def explain(
    loaded: LoadedModel, text: str, *, label: str | None = None, max_variants: int = MAX_VARIANTS
) -> Explanation:
    """Says what a label's logit loses when a token is left out and the rest is read, by networks and n-gram model.

    Without a label it is the predicted one. A text is read up to `max_variants` times with something left out: of a
    longer one, stretches of several tokens, whose value is divided among them. An empty text is one unknown token.

    Raises:
        ConfigError: the run does not know the label, or its tokenizer is torchtext's, whose tokens have no places.
    """
    labels = loaded.labels
    if label is not None and label not in labels:
        raise ConfigError(f"label {label!r} is not one that the run knows: {', '.join(labels[:20])}")
    ids, places = read_tokens(loaded, text)
    size = math.ceil(len(ids) / max_variants)
    starts = range(0, len(ids), size)
    variants = [ids[:i] + ids[i + size :] or [UNKNOWN_ID] for i in starts]
    texts = [text[: places[i][0]] + text[places[min(i + size, len(ids)) - 1][1] :] for i in starts]
    rows = [np.array(row, dtype=np.int32) for row in (ids, *variants)]
    logits: Any = network_logits(loaded, Corpus(np.concatenate(rows), np.cumsum([0, *map(len, rows)])))  # [1 + N, C]
    logits = logits if loaded.ngrams is None else logits + loaded.ngrams.logits([text, *texts])
    best = int(logits[0].argmax())
    which = best if label is None else labels.index(label)
    found = logits[:, which]
    if loaded.task.thresholds is None:
        found = found - (logits.sum(1) - found) / max(1, len(labels) - 1)
    sizes = np.diff([*starts, len(ids)])
    values = np.repeat((found[0] - found[1:]) / sizes, sizes).tolist()
    terms = [
        Term(text[start:stop], start, stop, value, token_id != UNKNOWN_ID)
        for token_id, (start, stop), value in zip(ids, places, values, strict=True)
    ]
    return Explanation(text, labels[which], labels[best], float(found[0]), tuple(terms))


def read_tokens(loaded: LoadedModel, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the token ids that the model reads of a text, at least one, and where they begin and end in it."""
    ids, places = loaded.tokenizer.offsets(text)
    if not ids:
        return [UNKNOWN_ID], [(0, 0)]
    options, ends = loaded.config.text, np.array([0, len(ids)])
    numbered = Corpus(np.arange(len(ids), dtype=np.int32), ends, None, options.max_length, options.truncate)
    kept = numbered.read(np.array([0]))[0].tolist()
    return [ids[i] for i in kept], [places[i] for i in kept]


def write_gates(loaded: LoadedModel, text: str, target: Path) -> None:
    """Draws the gates, candidate and cell state of the last layer in both directions while it reads a text.

    The first `MAX_SHOWN` tokens are drawn, into a `.png`.

    Raises:
        ConfigError: another ending, a cell other than `lstm`, or the file cannot be written.
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


def gate_activations(layer: BidirectionalLSTM, steps: Tensor) -> list[Activations]:
    """Returns the gates, candidates and states of the last layer of an LSTM: for each direction by name `[T, H]`.

    The fused kernel returns outputs only, so every layer is computed step by step over one text, `[T, E]`.
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
            colours, low, high = ("RdBu_r", -limit, limit) if is_signed else ("viridis", 0.0, 1.0)
            for axes, array, direction in zip(row, arrays, DIRECTIONS, strict=False):
                image = axes.imshow(array, colours, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
                axes.set(title=f"{title}, {direction}", ylabel="unit")
            figure.colorbar(image, ax=list(row), fraction=0.03, pad=0.01, extend="both" if is_signed else "neither")
        for axes in grid[-1]:
            axes.set_xticks(range(len(labels)), labels, rotation=90)
        figure.suptitle(
            f"the last layer, {len(shown)} of {len(tokens)} tokens, units sorted by their mean cell state c"
        )
