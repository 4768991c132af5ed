"""Linear models over hashed n-grams: what a network has to beat, and what can answer together with it.

An n-gram is hashed into one of 2**24 columns, so no vocabulary of millions of n-grams is held in memory. Predictions
need numpy alone, because an exported bundle uses this file; scipy and scikit-learn are imported where a model learns.

Shapes: N texts, K kept columns, C labels, S rows of weights: C, or one where a text has one of two labels.
"""

import functools
import hashlib
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.errors import DataError

WORD = r"\w+(?:['’]\w+)*|[^\w\s]"
"""A word with its contraction, or one mark."""

NUM_COLUMNS = 2**24
MAX_N = 3
SMALL_TRAIN = 1000
MIN_SPACES = 0.05
SMOOTHING = 1.0
NEVER = -30.0
"""Logit of a label without a training text."""

CHUNK = 1024
"""Texts that are counted together: with more of them the memory that they take is slower."""

TOKEN = {True: re.compile(WORD), False: re.compile(r"\s+|\S")}
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's finalizer

Counts = Any  # scipy.sparse CSR matrix [N, columns], float64
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NgramTerm:
    """What one n-gram of a text adds to the logits: its places `start, stop` in the text, and weights `[C]`."""

    places: list[tuple[int, int]]
    weights: Floats


@dataclass(frozen=True)
class NgramModel:
    """A linear model of n-grams of 1 to 3 words (or characters, where words are not separated by spaces).

    Attributes:
        columns: `[K]` int64, rising: hashes of the n-grams that count.
        weights: `[S, K]` float32; with two labels those of the second one's log-odds.
        intercepts: `[S]` float64.
        is_spaced: whether n-grams are made of words.
    """

    columns: Ints
    weights: npt.NDArray[np.float32]
    intercepts: Floats
    is_spaced: bool

    @classmethod
    def train(
        cls, texts: Sequence[str], label_ids: npt.NDArray[Any], num_labels: int, *, is_mean: bool = True
    ) -> "NgramModel":
        """Learns from N labelled texts, or raises `DataError` where no n-gram occurs in them.

        The weights are the mean of those of NB-SVM and of a logistic regression on n-grams that weigh the more the
        rarer they are, or with `is_mean` false those of NB-SVM. NB-SVM is better where many weak signs add up, the
        other where few n-grams decide; their mean has a lower log loss than either on nearly all data sets.
        """
        spaced = is_spaced(texts)
        counts, columns = kept(count(texts, spaced=spaced, max_n=MAX_N, is_binary=True), min_texts=1)
        if label_ids.ndim == 1:
            label_ids = np.stack([label_ids == i for i in ([1] if num_labels == 2 else range(num_labels))], axis=1)
        fits = [nbsvm, rarity_weighted] if is_mean else [nbsvm]
        fitted = [[fit(counts, has_label > 0) for has_label in label_ids.T] for fit in fits]  # [fits, S] pairs
        weights = np.mean([[weights for weights, _ in rows] for rows in fitted], axis=0)
        intercepts = np.mean([[intercept for _, intercept in rows] for rows in fitted], axis=0)
        return cls(columns, weights.astype(np.float32), intercepts, spaced)

    def logits(self, texts: Iterable[str]) -> Floats:
        """Returns `[N, C]`: the log-odds of each label, and of two labels half of them each way."""
        parts = [self._scores(chunk) for chunk in _chunks(texts)]
        return self._by_label(np.concatenate(parts) if parts else np.zeros((0, len(self.weights))))

    @property
    def bias(self) -> Floats:
        """`[C]`: the logits of a text without a known n-gram."""
        return np.asarray(self._by_label(self.intercepts[np.newaxis])[0])

    def terms(self, text: str) -> list[NgramTerm]:
        """Returns what each known n-gram of a text adds to its logits; `bias` and all terms add up to them."""
        spans = [match.span() for match in TOKEN[self.is_spaced].finditer(text)]
        _, columns, firsts, sizes = _find([text], spaced=self.is_spaced, max_n=MAX_N)
        places: dict[int, list[tuple[int, int]]] = {}
        for column, first, size in np.stack([columns, firsts, sizes], axis=1).tolist():
            places.setdefault(column, []).append((spans[first][0], spans[first + size - 1][1]))
        is_known, at = self._look_up(np.array(list(places), dtype=np.int64))
        weights = self._by_label(self.weights[:, at].T.astype(np.float64))
        known = itertools.compress(places.values(), is_known)
        return [NgramTerm(several, row) for several, row in zip(known, weights, strict=True)]

    def _scores(self, texts: Sequence[str]) -> Floats:
        rows, columns, _ = _distinct(*_find(texts, spaced=self.is_spaced, max_n=MAX_N)[:2])
        is_known, at = self._look_up(columns)
        rows = rows[is_known]
        sums = [np.bincount(rows, weights=weights[at], minlength=len(texts)) for weights in self.weights]
        return np.asarray(np.stack(sums, axis=1) + self.intercepts)

    def _look_up(self, columns: Ints) -> tuple[Bools, npt.NDArray[np.int32]]:
        at = self._places[columns]
        is_known = at >= 0
        return is_known, at[is_known]

    @functools.cached_property
    def _places(self) -> npt.NDArray[np.int32]:
        """`[2**24]`: the place of each column among `self.columns`, or -1; a search would take most of the time."""
        places = np.full(NUM_COLUMNS, -1, dtype=np.int32)
        places[self.columns] = np.arange(len(self.columns), dtype=np.int32)
        return places

    def _by_label(self, scores: Floats) -> Floats:
        return np.asarray(np.concatenate([-scores, scores], 1) / 2) if len(self.weights) == 1 else scores

    def scaled(self, factor: float | Floats) -> "NgramModel":
        """Returns the model whose logits are `factor` times as large, one number or `[S]`."""
        weights = (self.weights * np.reshape(factor, (-1, 1)).astype(np.float32)).astype(np.float32)
        return NgramModel(self.columns, weights, self.intercepts * factor, self.is_spaced)

    @classmethod
    def mean(cls, models: Sequence["NgramModel"]) -> "NgramModel":
        """Returns the model whose logits are the mean of those of several, or raises `ValueError` on other texts."""
        first = models[0]
        if any(not np.array_equal(model.columns, first.columns) for model in models):
            raise ValueError("n-gram models of different texts have no mean")
        weights = np.stack([model.weights for model in models]).mean(0, dtype=np.float64).astype(np.float32)
        intercepts = np.stack([model.intercepts for model in models]).mean(0)
        return cls(first.columns, weights, intercepts, first.is_spaced)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "columns": self.columns.astype(np.int32),  # below 2**24
            "weights": self.weights,
            "intercepts": self.intercepts,
            "is_spaced": np.array([self.is_spaced], dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], num_labels: int) -> "NgramModel":
        """Takes what `arrays` gave, or raises `ValueError` where it does not fit together or the number of labels."""
        if missing := {"columns", "weights", "intercepts", "is_spaced"} - arrays.keys():
            raise ValueError(f"no n-gram model, {min(missing)} is missing")
        columns, weights, intercepts = (arrays[name] for name in ("columns", "weights", "intercepts"))
        num_rows = len(intercepts)
        is_fitting = num_rows == num_labels or (num_rows == 1 and num_labels == 2)
        if not is_fitting or weights.shape != (num_rows, len(columns)) or intercepts.ndim != 1 or len(columns) == 0:
            raise ValueError(f"an n-gram model that does not fit {num_labels} labels (weights {list(weights.shape)})")
        is_spaced = bool(arrays["is_spaced"].any())
        return cls(columns.astype(np.int64), weights.astype(np.float32), intercepts.astype(np.float64), is_spaced)


class _Hashes(dict[str, int]):
    """64 bits of each distinct token: hashed once however often it occurs, and the same on every machine."""

    def __missing__(self, token: str) -> int:
        folded = " " if token.isspace() else token.casefold()
        # Lone surrogates have no bytes in UTF-8.
        digest = hashlib.blake2b(folded.encode("utf-8", "replace"), digest_size=8).digest()
        value = self[token] = int.from_bytes(digest, "little")
        return value


def _find(texts: Sequence[str], *, spaced: bool, max_n: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Returns all n-grams: `[M]` their texts, columns, first tokens (of all texts in a row), and numbers of tokens."""
    tokens = [TOKEN[spaced].findall(text) for text in texts]
    flat = map(_Hashes().__getitem__, itertools.chain.from_iterable(tokens))
    hashes = np.fromiter(flat, dtype=np.uint64)
    rows = np.repeat(np.arange(len(texts)), [len(several) for several in tokens])
    joined, parts = hashes, []
    for size in range(1, max_n + 1):
        if size > 1:
            joined = joined[:-1] * _FACTOR + hashes[size - 1 :]
        firsts = np.flatnonzero(rows[: len(joined)] == rows[size - 1 :])  # those that end in the text they begin in
        mixed = joined[firsts]
        columns = (((mixed ^ (mixed >> np.uint64(33))) * _MIX) >> np.uint64(40)).astype(np.int64)
        parts.append((rows[firsts], columns, firsts, np.full(len(firsts), size)))
    rows, columns, firsts, sizes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return rows, columns, firsts, sizes


def _distinct(rows: Ints, columns: Ints) -> tuple[Ints, Ints, Ints]:
    """Returns rows and columns in rising order, each pair once, and how often it occurs."""
    keys, numbers = np.unique(rows * NUM_COLUMNS + columns, return_counts=True)
    return keys // NUM_COLUMNS, keys % NUM_COLUMNS, numbers


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        yield chunk


def is_spaced(texts: Iterable[str]) -> bool:
    """Whether words are separated by spaces: of those English has about 17 %, Chinese and Japanese next to none."""
    parts = [1 - sum(map(len, text.split())) / len(text) for text in itertools.islice(texts, 4 * CHUNK) if text]
    return bool(parts) and sum(parts) / len(parts) >= MIN_SPACES


def count(texts: Iterable[str], *, spaced: bool, max_n: int, is_binary: bool) -> Counts:
    """Returns counts `[N, 2**24]` of n-grams of 1 to `max_n` words, or of 1 to 3 characters; once a text if binary."""
    return count_each(texts, spaced=spaced, kinds=[(max_n, is_binary)])[0]


def count_each(texts: Iterable[str], *, spaced: bool, kinds: Sequence[tuple[int, bool]]) -> list[Counts]:
    """Returns what `count` does for each of several `(max_n, is_binary)`, but splits the texts once."""
    from scipy.sparse import csr_matrix

    longest = max(max_n for max_n, _ in kinds) if spaced else MAX_N
    indices = [[np.empty(0, np.int32)] for _ in kinds]
    numbers, lengths = [[np.empty(0)] for _ in kinds], [[np.zeros(1, np.int64)] for _ in kinds]
    for chunk in _chunks(texts):
        rows, columns, _, sizes = _find(chunk, spaced=spaced, max_n=longest)
        for i, (max_n, is_binary) in enumerate(kinds):
            is_counted = sizes <= (max_n if spaced else MAX_N)
            kept_rows, kept_columns, found = _distinct(rows[is_counted], columns[is_counted])
            indices[i].append(kept_columns.astype(np.int32))
            numbers[i].append(np.ones(len(found)) if is_binary else found.astype(np.float64))
            lengths[i].append(np.bincount(kept_rows, minlength=len(chunk)))
    ends = [np.cumsum(np.concatenate(parts)) for parts in lengths]
    return [
        csr_matrix((np.concatenate(values), np.concatenate(columns), end), shape=(len(end) - 1, NUM_COLUMNS))
        for values, columns, end in zip(numbers, indices, ends, strict=True)
    ]


def kept(counts: Counts, *, min_texts: int) -> tuple[Counts, Ints]:
    """Returns the columns that at least so many texts fill, and which they are, or raises `DataError`."""
    columns = np.flatnonzero(np.bincount(counts.indices, minlength=1) >= min_texts)
    if len(columns) == 0:
        raise DataError("train split: no n-gram occurs often enough to learn from; are the texts empty?")
    return counts[:, columns], columns


def logistic(features: Counts, is_label: Bools, *, strength: float = 10.0) -> tuple[Floats, float]:
    """Fits one label against the rest and returns weights `[K]` and intercept."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, solver="liblinear", dual=True, random_state=0, max_iter=300)
    with warnings.catch_warnings():  # the last digits of its optimum are of no interest
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, is_label)
    return model.coef_[0], float(model.intercept_[0])


def nbsvm(features: Counts, is_label: Bools) -> tuple[Floats, float]:
    """Fits n-grams that are scaled by how much more often the label has them (Wang & Manning 2012).

    As in Mesnil et al. 2014 by a logistic regression, whose weights are taken whole: it gives probabilities.
    """
    if is_label.all() or not is_label.any():
        return _constant(features, is_label)
    with_label, without = (
        SMOOTHING + np.asarray(features[rows].sum(axis=0), dtype=np.float64).ravel() for rows in (is_label, ~is_label)
    )
    ratios = np.log(with_label / with_label.sum()) - np.log(without / without.sum())
    weights, intercept = logistic(features.multiply(ratios[np.newaxis]).tocsr(), is_label, strength=1.0)
    return ratios * weights, intercept


def rarity_weighted(features: Counts, is_label: Bools) -> tuple[Floats, float]:
    """Fits n-grams that are scaled by their inverse document frequency, so that a text has a norm of 1 on average.

    Not text by text as in TF-IDF: so the scale is part of the weights, and they are those of a linear model.
    """
    if is_label.all() or not is_label.any():
        return _constant(features, is_label)
    num_texts, num_columns = features.shape
    rarity = 1 + np.log((1 + num_texts) / (1 + np.bincount(features.indices, minlength=num_columns)))
    rarity /= np.sqrt(features @ rarity**2).mean()
    weights, intercept = logistic(features.multiply(rarity[np.newaxis]).tocsr(), is_label)
    return rarity * weights, intercept


def _constant(features: Counts, is_label: Bools) -> tuple[Floats, float]:
    """Returns the weights where all texts have the label, or none."""
    return np.zeros(features.shape[1]), NEVER * (-1 if is_label.all() else 1)
