"""Tokens that decide alone: where they stand, the label is all but certain.

A few are what a label is about. Others are leaks and habits of the collection, such as an address that only one source
has, and a model that has learned them knows nothing (Gardner et al. 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.tokenizer import UNKNOWN_ID
from bilstm_cls.evaluation.metrics import Floats, Ints

PURE = 0.9
"""Fraction of a token's texts that have the label, at the lower end of its 95 % interval."""

LIFT = 9.0
"""Factor by which the odds of the label are greater than among all texts."""

_DEVIATIONS = 1.96


@dataclass(frozen=True, slots=True)
class DecidingToken:
    """A token, the label of nearly all its texts, how many these are of how many, and the first text that has it."""

    token: str
    label_id: int
    with_label: int
    texts: int
    first: int


def deciding_tokens(corpus: Corpus, tokens: Sequence[str], num_labels: int) -> list[DecidingToken]:
    """Returns the tokens that decide alone, the most frequent first.

    Args:
        corpus: the texts of train as the model reads them, with labels.
        tokens: the vocabulary.
        num_labels: C.
    """
    counts, firsts = _texts_by_token(corpus, len(tokens), num_labels)
    totals = counts.sum(axis=1)
    ids = counts.argmax(axis=1)
    with_label = counts.max(axis=1)
    assert corpus.label_ids is not None
    shares = np.bincount(corpus.label_ids, minlength=num_labels)[ids] / len(corpus)
    low = _lower_end(with_label, totals)
    is_deciding = (low >= PURE) & (low * (1 - shares) >= LIFT * shares * (1 - low))
    is_deciding[: UNKNOWN_ID + 1] = False
    found = np.flatnonzero(is_deciding)
    found = found[np.argsort(-with_label[found], kind="stable")]
    return [
        DecidingToken(tokens[i], int(ids[i]), int(with_label[i]), int(totals[i]), int(firsts[i]))
        for i in found.tolist()
    ]


def _texts_by_token(corpus: Corpus, num_tokens: int, num_labels: int) -> tuple[Ints, Ints]:
    """Returns `[V, C]` texts of each label that have a token, and `[V]` the first of them."""
    counts = np.zeros(num_tokens * num_labels, dtype=np.int64)
    firsts = np.full(num_tokens, len(corpus), dtype=np.int64)
    assert corpus.label_ids is not None
    for indices, token_ids, lengths in corpus.blocks():
        codes = np.unique(np.repeat(indices, lengths) * num_tokens + token_ids)  # once a text
        texts, tokens = codes // num_tokens, codes % num_tokens
        np.add.at(counts, tokens * num_labels + corpus.label_ids[texts], 1)
        np.minimum.at(firsts, tokens, texts)
    return counts.reshape(num_tokens, num_labels), firsts


def _lower_end(hits: Ints, number: Ints) -> Floats:
    """Returns the lower end of Wilson's interval of a share; 0 where there is nothing to share."""
    total = np.maximum(1, number)
    share, square = hits / total, _DEVIATIONS**2
    centre = share + square / (2 * total)
    width = _DEVIATIONS * np.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return np.asarray((centre - width) / (1 + square / total))
