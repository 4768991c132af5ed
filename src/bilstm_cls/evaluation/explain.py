"""How much each token of a text changes a prediction.

What is explained is a label's logit, minus the mean of the other labels' logits where a text has one label. For two
labels that is the logarithm of the odds, `log(p / (1 - p))`. Occlusion leaves a token out and reads the rest: the
difference is easy to understand, and holds for any model. The exact method instead writes the logit as a sum of one
term per token and a bias: the weighted output at the token, for the attention and the maxima that the text has.

Shapes: T tokens, E embedding_dim, N directions, H hidden_size, D pooled size, C labels.
"""

import bisect
import copy
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilstm_cls.classifier import LoadedModel, Prediction, network_logits
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.tokenizer import UNKNOWN_ID
from bilstm_cls.device import allow_tf32
from bilstm_cls.errors import ConfigError
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.ngrams import TOKEN, NgramModel

OCCLUSION, EXACT = METHODS = ("occlusion", "exact")
MAX_VARIANTS = 512
"""Of one text, each with something else left out: of longer texts, stretches of several tokens are left out."""

# A few characters before are looked at, or a text of nothing but marks would take its length squared.
_ENDS_IN_BREAK = re.compile(r"<br\s*/?>\Z", re.IGNORECASE)


class Term(NamedTuple):
    """What one token adds to the logit.

    Attributes:
        token: the characters `start` to `stop` of the text as it was given; none for the `<unk>` of an empty text.
        start: where it begins, in characters.
        stop: where it ends. Byte-pair tokens may share a character.
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
    """A value for each token; for the exact method, `logit = bias + sum of the terms`, within `error`.

    Attributes:
        text: as it was given.
        label: whose logit it is.
        prediction: the likeliest label.
        method: `occlusion` or `exact`.
        logit: the label's, minus the mean of the others', as the model computes it.
        bias: what no token adds: of the head and the n-gram model; None for occlusion.
        terms: one per token that the model reads, in the order of the text, and per token of an n-gram model where that
            splits the text in other places.
        unread: where the part of a long text that was cut out begins and ends, in characters; None for nothing.
    """

    text: str
    label: str
    prediction: str
    method: str
    logit: float
    bias: float | None
    terms: tuple[Term, ...]
    unread: tuple[int, int] | None = None

    @property
    def error(self) -> float | None:
        """How far bias and terms are from the logit; None for occlusion, whose terms do not add up."""
        if self.bias is None:
            return None
        return abs(math.fsum([self.bias, *(term.value for term in self.terms), -self.logit]))

    def as_dict(self) -> dict[str, Any]:
        """Returns what `--json` prints under `explanation`."""
        sum_of = {} if self.bias is None else {"bias": self.bias, "error": self.error}
        terms = [dict(zip(("token", "start", "stop", "value"), term, strict=False)) for term in self.terms]
        return {"label": self.label, "method": self.method, "logit": self.logit, **sum_of, "terms": terms}


def explain_prediction(loaded: LoadedModel, prediction: Prediction, method: str = OCCLUSION) -> list[Explanation]:
    """Explains each predicted label, or the likeliest one where none is predicted."""
    labels = prediction.labels or (prediction.label,)
    return [explain(loaded, prediction.text, label=label, method=method) for label in labels]


def explanation_object(prediction: Prediction, found: Sequence[Explanation]) -> Any:
    """Returns what JSON holds of `explain_prediction`: one object, or a list where a text may have several labels."""
    objects = [explanation.as_dict() for explanation in found]
    return objects[0] if prediction.labels is None else objects


class Reading(NamedTuple):
    """What the model reads of a text: at least one token, its place in characters, and `Explanation.unread`."""

    token_ids: list[int]
    places: list[tuple[int, int]]
    unread: tuple[int, int] | None = None


def explain(
    loaded: LoadedModel,
    text: str,
    *,
    label: str | None = None,
    method: str = OCCLUSION,
    max_variants: int = MAX_VARIANTS,
) -> Explanation:
    """Says how much each token of a text changes a label's logit.

    `occlusion` gives a token what the logit loses when it is left out. `exact` divides the logit among the outputs that
    the pooling takes, of a maximum each unit to the token that has it, and among n-grams. An output also holds what
    was read before it: of the pooling `last` all is at the ends of the text.

    Args:
        loaded: a run's model, in evaluation mode.
        text: any; an empty one is one unknown token.
        label: whose logit is explained; the predicted one if None.
        method: one of `METHODS`.
        max_variants: for occlusion, how often the text is read with something left out: of a longer one, stretches of
            several tokens, whose value is divided among them.

    Raises:
        ConfigError: the run does not know the label, the method is not known, or torchtext split the text into tokens
            that do not occur in it.
    """
    labels = loaded.labels
    assert not loaded.model.training
    if label is not None and label not in labels:
        raise ConfigError(f"label {label!r} is not one that the run knows: {', '.join(labels[:20])}")
    if method not in METHODS:
        raise ConfigError(f"--explain: method {method!r} is not known; choose one of {', '.join(METHODS)}")
    reading = read_tokens(loaded, text)
    logits = _logits(loaded, [reading.token_ids], [text])[0]
    best = int(logits.argmax())
    which, several = best if label is None else labels.index(label), loaded.task.thresholds is not None
    contrast = torch.eye(len(labels), dtype=torch.float64)[which] if several else _contrast(which, len(labels))
    logit = float(logits @ contrast.numpy())
    if method == OCCLUSION:
        bias, terms = None, _occlude(loaded, text, reading, contrast, logit, max_variants)
    else:
        bias, terms = _divide_all(loaded, text, reading, contrast)
    is_whole = loaded.ngrams is not None and method == EXACT  # the n-gram model reads the whole text
    return Explanation(
        text=text,
        label=labels[best] if label is None else label,
        prediction=labels[best],
        method=method,
        logit=logit,
        bias=bias,
        terms=tuple(terms),
        unread=None if is_whole else reading.unread,
    )


def _logits(loaded: LoadedModel, rows: list[list[int]], texts: list[str]) -> Any:
    """Returns the logits `[N, C]` of texts whose token ids are given."""
    lengths = [len(row) for row in rows]
    token_ids = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    corpus = Corpus(token_ids, np.cumsum([0, *lengths]))
    logits = network_logits(loaded, corpus)
    return logits if loaded.ngrams is None else logits + loaded.ngrams.logits(texts)


def _occlude(
    loaded: LoadedModel, text: str, reading: Reading, contrast: Tensor, logit: float, max_variants: int
) -> list[Term]:
    """Reads all variants of a text together, each with one token left out, or with a stretch of neighbouring ones."""
    ids, places = reading.token_ids, reading.places
    size = math.ceil(len(ids) / max_variants)
    starts = range(0, len(ids), size)
    variants = [ids[:i] + ids[i + size :] or [UNKNOWN_ID] for i in starts]
    texts = [text[: places[i][0]] + text[places[min(i + size, len(ids)) - 1][1] :] for i in starts]
    losses = logit - _logits(loaded, variants, texts) @ contrast.numpy()
    sizes = np.diff([*starts, len(ids)])
    return _terms(text, reading, np.repeat(losses / sizes, sizes).tolist())


def _divide_all(loaded: LoadedModel, text: str, reading: Reading, contrast: Tensor) -> tuple[float, list[Term]]:
    """Divides the logit of networks and n-gram model; returns the bias and the terms."""
    token_ids, lengths = reading_tensors(reading, loaded.model)
    parts = [_divide(member, token_ids, lengths, contrast) for member in loaded.members]
    terms = _terms(text, reading, torch.stack([values for values, _ in parts]).sum(0).tolist())
    bias = math.fsum(part for _, part in parts)
    if loaded.ngrams is not None:
        bias += float(loaded.ngrams.bias @ contrast.numpy())
        terms = _with_ngrams(terms, loaded.ngrams, text, contrast)
    return bias, terms


def _terms(text: str, reading: Reading, values: list[float]) -> list[Term]:
    return [
        Term(text[start:stop], start, stop, value, token_id != UNKNOWN_ID)
        for token_id, (start, stop), value in zip(reading.token_ids, reading.places, values, strict=True)
    ]


def _with_ngrams(terms: list[Term], ngrams: NgramModel, text: str, contrast: Tensor) -> list[Term]:
    """Divides an n-gram's weight in equal parts among its tokens; a token that the network reads as well adds up."""
    found, values = (
        [match.span() for match in TOKEN[ngrams.is_spaced].finditer(text)],
        defaultdict[tuple[int, int], float](float),
    )
    number_of = {start: i for i, (start, _) in enumerate(found)}
    for term in ngrams.terms(text):
        for start, stop in term.places:
            tokens = found[number_of[start] : bisect.bisect_left(found, (stop, 0))]
            for place in tokens:
                values[place] += float(term.weights @ contrast.numpy()) / len(term.places) / len(tokens)
    shared = [term._replace(value=term.value + values.pop((term.start, term.stop), 0.0)) for term in terms]
    more = [Term(text[slice(*place)], *place, value, True) for place, value in values.items()]
    return sorted([*shared, *more], key=lambda term: (term.start, term.stop))


def read_tokens(loaded: LoadedModel, text: str) -> Reading:
    """Encodes one text and cuts it as a prediction does. Of a byte-pair token the space before it is left out."""
    ids, places = loaded.tokenizer.offsets(text)
    if not ids:
        return Reading([UNKNOWN_ID], [(0, 0)])
    config = loaded.config.text
    if config.tokenizer == "bpe":
        places = [_without_space(text, *place) for place in places]
    if len(ids) <= config.max_length:
        return Reading(ids, places)
    kept = _kept_places(len(ids), config.max_length, config.truncate)
    return Reading([ids[i] for i in kept], [places[i] for i in kept], _unread(places, kept))


def _unread(places: list[tuple[int, int]], kept: list[int]) -> tuple[int, int] | None:
    """Where the tokens that are not kept begin and end, without a character that a kept token has a part of."""
    cut = sorted(set(range(len(places))).difference(kept))
    start = max([places[cut[0]][0], *(places[i][1] for i in kept if i < cut[0])])
    stop = min([places[cut[-1]][1], *(places[i][0] for i in kept if i > cut[-1])])
    return (start, stop) if start < stop else None


def reading_tensors(reading: Reading, model: BiLSTMClassifier) -> tuple[Tensor, Tensor]:
    """Returns token ids `[1, T]` where the model is, and their number `[1]` on the CPU."""
    token_ids = torch.tensor([reading.token_ids], device=model.embedding.weight.device)
    return token_ids, torch.tensor([len(reading.token_ids)])


def _without_space(text: str, start: int, stop: int) -> tuple[int, int]:
    """A space may also be what `<br />` is read as: its place is then the last character of that."""
    before = text[max(0, start - 20) : start + 1]
    is_space = text[start] == " " or _ENDS_IN_BREAK.search(before)
    return (start + 1, stop) if is_space and stop - start > 1 else (start, stop)


def _contrast(label_id: int, num_labels: int) -> Tensor:
    """Returns `[C]` float64 that makes of logits one minus the mean of the others."""
    contrast = torch.full((num_labels,), -1 / max(1, num_labels - 1), dtype=torch.float64)
    contrast[label_id] = 1
    return contrast


def _divide(model: BiLSTMClassifier, token_ids: Tensor, lengths: Tensor, contrast: Tensor) -> tuple[Tensor, float]:
    """Returns `[T]` terms in 64 bits and the bias.

    With its attention held fixed, every pooling of doubled outputs is doubled: it is the sum of the outputs times its
    gradients (Euler's theorem), so each token has the part of that sum that is at its place.
    """
    pooling = copy.deepcopy(model.pooling).cpu()
    if "attention" in pooling.names:
        pooling.score.register_forward_hook(lambda module, inputs, scores: scores.detach())
    pooling.needs_alignment = True
    with torch.inference_mode(False), allow_tf32(False):
        with torch.no_grad():
            embedded = model.embed(token_ids, lengths)
            directions = [output.cpu() for output in model.encoder.encode(embedded, lengths, aligned=True)]
            weights = contrast @ model.project.weight.cpu().double()  # [D]
        outputs = torch.cat(directions, 1).float().requires_grad_()  # [T, N, H]
        with torch.enable_grad():
            pooled = pooling([*torch.split(outputs, 1, dim=1)], lengths)[0]
            (gradients,) = torch.autograd.grad(pooled @ weights.float(), outputs)
        terms = (outputs.detach().double() * gradients.double()).sum((1, 2))
        return terms, float(contrast @ model.project.bias.detach().cpu().double())


def _kept_places(num_tokens: int, max_length: int | None, truncate: str) -> list[int]:
    """Returns which tokens of a text of `num_tokens`, at least 1, are read."""
    text = Corpus(np.arange(num_tokens, dtype=np.int32), np.array([0, num_tokens]), None, max_length, truncate)
    kept: list[int] = text.read(np.array([0]))[0].tolist()
    return kept
