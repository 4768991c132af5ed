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
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.store import chunks
from bilstm_cls.data.types import LabelIds, Split
from bilstm_cls.errors import DataError

WORD = r"\w+(?:['’]\w+)*|[^\w\s]"  # with its contraction, or one mark
NUM_COLUMNS = 2**24
MAX_N = 3
SMALL_TRAIN = 1000
MIN_SPACES = 0.05
SMOOTHING = 1.0
RARITY = 10.0  # mean squared norm of a text whose n-grams weigh the more the rarer they are, where C is 1
NEVER = -30.0  # logit of a label without a training text
CHUNK = 1024  # texts that are counted together: with more of them the memory that they take is slower
MAX_HASHES = 2**17  # tokens whose hashes are kept, some 20 MB
TOKEN = {True: re.compile(WORD), False: re.compile(r"\s+|\S")}
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's finalizer

Counts = Any  # scipy.sparse CSR matrix [N, columns]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NgramCounts:
    """The n-grams of N texts, counted once for all models that learn from them.

    Attributes:
        sets: `[N, 2**24]` int8: 1 for each n-gram of 1 to 3 words (or characters) that a text has.
        is_spaced: whether n-grams are made of words.
    """

    sets: Counts
    is_spaced: bool

    @classmethod
    def of(cls, texts: Sequence[str]) -> "NgramCounts":
        spaced = is_spaced(texts)
        return cls(count(texts, max_n=MAX_N, is_binary=True, spaced=spaced), spaced)

    @classmethod
    def of_split(cls, split: Split) -> "NgramCounts":
        """Counts at the first call, and returns the same as long as the split is in use."""
        if split not in _COUNTS:
            _COUNTS[split] = cls.of(split.texts)
        return _COUNTS[split]


_COUNTS: weakref.WeakKeyDictionary[Split, NgramCounts] = weakref.WeakKeyDictionary()


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
    def train(cls, ngrams: NgramCounts, label_ids: LabelIds, num_labels: int, *, is_mean: bool = True) -> "NgramModel":
        """Learns from N labelled texts, or raises `DataError` where no n-gram occurs in them.

        The weights are those of NB-SVM, with `is_mean` their mean with those of a logistic regression on n-grams that
        weigh the more the rarer they are, which has a lower log loss than either on nearly all data sets.
        """
        counts, columns = kept(ngrams.sets, min_texts=1)
        if label_ids.ndim == 1:
            label_ids = np.stack([label_ids == i for i in ([1] if num_labels == 2 else range(num_labels))], axis=1)
        scales = [ratios, rarities] if is_mean else [ratios]
        fitted = [[fit(counts, has_label > 0, scale) for has_label in label_ids.T] for scale in scales]
        weights = np.mean([[weights for weights, _ in row] for row in fitted], axis=0)
        intercepts = np.mean([[intercept for _, intercept in row] for row in fitted], axis=0)
        return cls(columns, weights.astype(np.float32), intercepts, ngrams.is_spaced)

    def logits(self, texts: Sequence[str]) -> Floats:
        """Returns `[N, C]`: the log-odds of each label, and of two labels half of them each way."""
        parts = []
        for chunk in chunks(texts, CHUNK):
            rows, columns, _ = _distinct(*_find(chunk, spaced=self.is_spaced, max_n=MAX_N))
            parts.append(self._scores(rows, columns, len(chunk)))
        return self._by_label(np.concatenate(parts) if parts else np.zeros((0, len(self.weights))))

    def logits_of_counts(self, ngrams: NgramCounts) -> Floats:
        """Returns the same `[N, C]` of counted texts."""
        rows = np.repeat(np.arange(ngrams.sets.shape[0]), np.diff(ngrams.sets.indptr))
        return self._by_label(self._scores(rows, ngrams.sets.indices, ngrams.sets.shape[0]))

    def _scores(self, rows: Ints, columns: Ints, num_texts: int) -> Floats:
        """Returns `[N, S]` of texts that have the n-grams `columns`, each in the text `rows`."""
        places = self._places[columns]
        is_known = places >= 0
        rows, at = rows[is_known], places[is_known]
        sums = [np.bincount(rows, weights=weights[at], minlength=num_texts) for weights in self.weights]
        return np.asarray(np.stack(sums, axis=1) + self.intercepts)

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
        return replace(self, weights=weights, intercepts=self.intercepts * factor)

    @classmethod
    def mean(cls, models: Sequence["NgramModel"]) -> "NgramModel":
        """Returns the model whose logits are the mean of those of several that learned from the same texts."""
        weights = np.stack([model.weights for model in models]).mean(0, dtype=np.float64).astype(np.float32)
        return replace(models[0], weights=weights, intercepts=np.mean([model.intercepts for model in models], axis=0))

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


@functools.lru_cache(MAX_HASHES)
def _hash(token: str) -> int:
    """64 bits of a token, the same on every machine."""
    folded = " " if token.isspace() else token.casefold()
    # Lone surrogates have no bytes in UTF-8.
    digest = hashlib.blake2b(folded.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _find(texts: Sequence[str], *, spaced: bool, max_n: int) -> tuple[Ints, Ints]:
    """Returns all n-grams: `[M]` their texts, and columns."""
    tokens = [TOKEN[spaced].findall(text) for text in texts]
    hashes = np.fromiter(map(_hash, itertools.chain.from_iterable(tokens)), dtype=np.uint64)
    rows = np.repeat(np.arange(len(texts)), [len(several) for several in tokens])
    joined, parts = hashes, []
    for size in range(1, max_n + 1):
        if size > 1:
            joined = joined[:-1] * _FACTOR + hashes[size - 1 :]
        firsts = np.flatnonzero(rows[: len(joined)] == rows[size - 1 :])  # those that end in the text they begin in
        mixed = joined[firsts]
        columns = (((mixed ^ (mixed >> np.uint64(33))) * _MIX) >> np.uint64(40)).astype(np.int64)
        parts.append((rows[firsts], columns))
    all_rows, all_columns = map(np.concatenate, zip(*parts, strict=True))
    return all_rows, all_columns


def _distinct(rows: Ints, columns: Ints) -> tuple[Ints, Ints, Ints]:
    """Returns rows and columns in rising order, each pair once, and how often it occurs."""
    keys, numbers = np.unique(rows * NUM_COLUMNS + columns, return_counts=True)
    return keys // NUM_COLUMNS, keys % NUM_COLUMNS, numbers


def is_spaced(texts: Iterable[str]) -> bool:
    """Whether words are separated by spaces: of those English has about 17 %, Chinese and Japanese next to none."""
    parts = [1 - sum(map(len, text.split())) / len(text) for text in itertools.islice(texts, 4 * CHUNK) if text]
    return bool(parts) and sum(parts) / len(parts) >= MIN_SPACES


def count(texts: Sequence[str], *, max_n: int, is_binary: bool, spaced: bool) -> Counts:
    """Returns `[N, 2**24]`, how often (int32) or whether (int8) a text has each n-gram of up to `max_n` words.

    Where words are not separated by spaces, they are n-grams of up to 3 characters.
    """
    from scipy.sparse import csr_matrix

    parts = []
    for chunk in chunks(texts, CHUNK):
        rows, columns, times = _distinct(*_find(chunk, spaced=spaced, max_n=max_n if spaced else MAX_N))
        numbers = np.ones(len(times), np.int8) if is_binary else times.astype(np.int32)
        parts.append((numbers, columns.astype(np.int32), np.bincount(rows, minlength=len(chunk))))
    numbers, indices, lengths = map(np.concatenate, zip(*parts, strict=True))
    return csr_matrix((numbers, indices, np.concatenate([[0], np.cumsum(lengths)])), shape=(len(lengths), NUM_COLUMNS))


def count_pairs(texts: Sequence[str], *, spaced: bool) -> Counts:
    """Returns how often each text has each n-gram of 1 to 2 words, or of 1 to 3 characters."""
    return count(texts, max_n=2, is_binary=False, spaced=spaced)


def kept(counts: Counts, *, min_texts: int) -> tuple[Counts, Ints]:
    """Returns the columns that at least so many texts fill, and which they are, or raises `DataError`."""
    columns = np.flatnonzero(np.bincount(counts.indices, minlength=1) >= min_texts)
    if len(columns) == 0:
        raise DataError("train split: no n-gram occurs often enough to learn from; are the texts empty?")
    return counts[:, columns], columns


def fit(features: Counts, is_label: Bools, scale: Callable[[Counts, Bools], Floats]) -> tuple[Floats, float]:
    """Fits one label against the rest by a logistic regression on scaled n-grams: weights `[K]` and intercept."""
    from sklearn.linear_model import LogisticRegression

    if is_label.all() or not is_label.any():
        return np.zeros(features.shape[1]), NEVER * (-1 if is_label.all() else 1)
    factors = scale(features, is_label)
    model = LogisticRegression(C=1.0, solver="liblinear", dual=True, random_state=0, max_iter=300)
    with warnings.catch_warnings():  # the last digits of its optimum are of no interest
        warnings.simplefilter("ignore")
        model.fit(features.multiply(factors[np.newaxis]).tocsr(), is_label)
    return factors * model.coef_[0], float(model.intercept_[0])


def ratios(features: Counts, is_label: Bools) -> Floats:
    """Returns `[K]`, how much more often the label has an n-gram, as a logarithm: what makes it NB-SVM.

    After Wang & Manning 2012, but as in Mesnil et al. 2014 with a logistic regression, whose weights are taken whole.
    """
    with_label, without = (
        SMOOTHING + np.asarray(features[rows].sum(axis=0), dtype=np.float64).ravel() for rows in (is_label, ~is_label)
    )
    return np.asarray(np.log(with_label / with_label.sum()) - np.log(without / without.sum()))


def rarities(features: Counts, _: Bools) -> Floats:
    """Returns `[K]`, inverse document frequencies, scaled for all texts alike so that the model stays linear."""
    num_texts, num_columns = features.shape
    factors = 1 + np.log((1 + num_texts) / (1 + np.bincount(features.indices, minlength=num_columns)))
    return np.asarray(factors * RARITY**0.5 / np.sqrt(features @ factors**2).mean())
