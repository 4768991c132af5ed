"""How much each token of a text changes a prediction: what a label's logit loses when the token is left out.

The logit is the label's, minus the mean of the other labels' where a text has one label. For two labels that is the
logarithm of the odds, `log(p / (1 - p))`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bilstm_cls.classifier import LoadedModel, Prediction, network_logits
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.tokenizer import UNKNOWN_ID
from bilstm_cls.errors import ConfigError

MAX_VARIANTS = 512
"""Of one text, each with something else left out: of longer texts, stretches of several tokens are left out."""


class Term(NamedTuple):
    """What one token adds to the logit.

    Attributes:
        token: the characters `start` to `stop` of the text as it was given; none for the `<unk>` of an empty text.
            Byte-pair tokens may share a character.
        value: above 0 where it speaks for the label, in nats.
        is_known: whether the vocabulary has the token.
    """

    token: str
    start: int
    stop: int
    value: float
    is_known: bool


@dataclass(frozen=True)
class Explanation:
    """A value for each token.

    Attributes:
        text: as it was given.
        label: whose logit it is.
        prediction: the likeliest label.
        logit: the label's, minus the mean of the others' where a text has one label.
        terms: one per token that the network reads, in the order of the text.
    """

    text: str
    label: str
    prediction: str
    logit: float
    terms: tuple[Term, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns what `--json` prints under `explanation`."""
        terms = [dict(zip(("token", "start", "stop", "value"), term, strict=False)) for term in self.terms]
        return {"label": self.label, "logit": self.logit, "terms": terms}


def explain_prediction(loaded: LoadedModel, prediction: Prediction) -> list[Explanation]:
    """Explains each predicted label, or the likeliest one where none is predicted."""
    return [explain(loaded, prediction.text, label=label) for label in prediction.labels or (prediction.label,)]


def explanation_object(prediction: Prediction, found: Sequence[Explanation]) -> Any:
    """Returns what JSON holds of `explain_prediction`: one object, or a list where a text may have several labels."""
    objects = [explanation.as_dict() for explanation in found]
    return objects[0] if prediction.labels is None else objects


def explain(
    loaded: LoadedModel, text: str, *, label: str | None = None, max_variants: int = MAX_VARIANTS
) -> Explanation:
    """Says what a label's logit loses when a token is left out and the rest is read, by networks and n-gram model.

    Args:
        loaded: a run's model, in evaluation mode.
        text: any; an empty one is one unknown token.
        label: whose logit is explained; the predicted one if None.
        max_variants: how often the text is read with something left out: of a longer one, stretches of several tokens,
            whose value is divided among them.

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
    logits = _logits(loaded, [ids, *variants], [text, *texts])
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


def _logits(loaded: LoadedModel, rows: list[list[int]], texts: list[str]) -> Any:
    """Returns the logits `[N, C]` of texts whose token ids are given."""
    token_ids = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    logits = network_logits(loaded, Corpus(token_ids, np.cumsum([0, *map(len, rows)])))
    return logits if loaded.ngrams is None else logits + loaded.ngrams.logits(texts)


def read_tokens(loaded: LoadedModel, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the token ids that the model reads of a text, at least one, and where they begin and end in it."""
    ids, places = loaded.tokenizer.offsets(text)
    if not ids:
        return [UNKNOWN_ID], [(0, 0)]
    config = loaded.config.text
    kept = _kept_places(len(ids), config.max_length, config.truncate)
    return [ids[i] for i in kept], [places[i] for i in kept]


def _kept_places(num_tokens: int, max_length: int | None, truncate: str) -> list[int]:
    """Returns which tokens of a text of `num_tokens`, at least 1, are read."""
    text = Corpus(np.arange(num_tokens, dtype=np.int32), np.array([0, num_tokens]), None, max_length, truncate)
    kept: list[int] = text.read(np.array([0]))[0].tolist()
    return kept
