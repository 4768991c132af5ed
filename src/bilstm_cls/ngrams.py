"""Linear models over hashed n-grams: what a network has to beat, and what can be added to its logits.

n-grams are hashed into 2**24 columns, so no vocabulary of millions of n-grams is held in memory, and the columns that
the train split fills are kept. Each token is hashed once, and n-grams are combined from these hashes by numpy: this is
six times as fast as joining strings. Nothing is drawn at random that is not seeded.

Shapes: N texts, T tokens, K kept columns, C labels, S rows of scores: C, or one where there are two labels.
"""

import hashlib
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bilstm_cls.checkpoint import load_tensors, save_tensors
from bilstm_cls.errors import CheckpointError, DataError

WORD = r"\w+(?:['’]\w+)*|[^\w\s]"  # a word with its contraction, or one mark
CHARACTER = r"\s+|\S"
MAX_N = 3
NUM_COLUMNS = 2**24
SMALL_TRAIN = 1000
MIN_SPACES = 0.05
SMOOTHING = 1.0
NEVER = -30.0
"""Logit of a label without a training text."""
CHUNK = 4096

Counts = Any  # scipy.sparse CSR matrix [N, columns], float64
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no hash is lost by multiplying with it
_SHIFT = np.uint64(40)  # leaves the upper 24 bits
_PATTERNS = {True: re.compile(WORD), False: re.compile(CHARACTER)}


@dataclass(frozen=True)
class TokenHashes:
    """The tokens of N texts as hashes: words and marks, or characters where `is_spaced` is False.

    Attributes:
        hashes: `[total]` of the case-folded tokens, all texts one after the other.
        offsets: `[N + 1]`, where each text begins.
        is_spaced: whether tokens are words.
    """

    hashes: Hashes
    offsets: Ints
    is_spaced: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class NgramModel:
    """NB-SVM of n-grams of 1 to 3 words (or characters, where words are not separated by spaces).

    Attributes:
        columns: `[K]` int64, rising: hashes of the n-grams that count.
        weights: `[S, K]` float32; with two labels those of the second one's log-odds.
        intercepts: `[S]` float64.
        is_spaced: whether n-grams are made of words.
    """

    columns: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    intercepts: Floats
    is_spaced: bool

    @classmethod
    def train(cls, texts: Sequence[str], label_ids: npt.NDArray[np.int64], num_labels: int) -> "NgramModel":
        """Learns from N labelled texts.

        Raises:
            DataError: no n-gram occurs in them.
        """
        return cls.fit(hash_tokens(texts), label_ids, num_labels)

    @classmethod
    def fit(cls, tokens: TokenHashes, label_ids: npt.NDArray[np.int64], num_labels: int) -> "NgramModel":
        """Does the same from tokens that are hashed already."""
        counts, columns = kept(count(tokens, max_n=MAX_N, is_binary=True), min_texts=1)
        rows = [1] if num_labels == 2 else range(num_labels)
        fitted = [_one_against_rest(counts, label_ids == label_id) for label_id in rows]
        weights, intercepts = zip(*fitted, strict=True)
        return cls(columns, np.stack(weights).astype(np.float32), np.array(intercepts), tokens.is_spaced)

    def logits(self, texts: Iterable[str]) -> Floats:
        """Returns `[N, C]`: the log-odds of each label, and of two labels half of them each way."""
        parts = [self._scores(chunk) for chunk in _chunks(texts)]
        scores = np.concatenate(parts) if parts else np.zeros((0, len(self.weights)))
        return np.concatenate([-scores, scores], 1) / 2 if len(self.weights) == 1 else scores

    def _scores(self, texts: Sequence[str]) -> Floats:
        from scipy.sparse import csr_matrix

        counts = count(hash_tokens(texts, spaced=self.is_spaced), max_n=MAX_N, is_binary=True)
        places, is_known = self._find(counts.indices)
        known = csr_matrix((is_known.astype(np.float32), places, counts.indptr), shape=(len(texts), len(self.columns)))
        return np.asarray(known @ self.weights.T, dtype=np.float64) + self.intercepts

    def _find(self, columns: npt.NDArray[Any]) -> tuple[Ints, Bools]:
        """Returns the place of each column among the kept ones, and whether it is one of them."""
        places = np.searchsorted(self.columns, columns).clip(max=len(self.columns) - 1)
        return places, self.columns[places] == columns

    def token_terms(self, text: str) -> tuple[list[tuple[int, int]], Floats]:
        """Divides the logits of one text: an n-gram's weight in equal parts among all tokens that make it up.

        Returns:
            Where each of T tokens begins and ends in the text, and `[T, C]` terms. Together with the logits of an empty
            text they add up to the text's logits.
        """
        places = [match.span() for match in _PATTERNS[self.is_spaced].finditer(text)]
        hashes = hash_tokens([text], spaced=self.is_spaced).hashes
        terms = np.zeros((len(places), len(self.weights)))
        parts = [_columns_of(hashes, n) for n in range(1, MAX_N + 1)]
        _, kinds, times = np.unique(np.concatenate(parts), return_inverse=True, return_counts=True)
        ends = np.cumsum([0, *map(len, parts)])
        for n, columns in enumerate(parts, 1):
            found, is_known = self._find(columns)
            share = is_known / (n * times[kinds[ends[n - 1] : ends[n]]])  # an n-gram counts once a text
            weights = self.weights.T[found].astype(np.float64) * share[:, np.newaxis]
            for i in range(n):
                terms[i : i + len(columns)] += weights
        return places, np.concatenate([-terms, terms], 1) / 2 if len(self.weights) == 1 else terms

    def scaled(self, factor: float) -> "NgramModel":
        """Returns the model whose logits are `factor` times as large."""
        weights = (self.weights * np.float32(factor)).astype(np.float32)
        return NgramModel(self.columns, weights, self.intercepts * factor, self.is_spaced)

    @classmethod
    def mean(cls, models: Sequence["NgramModel"]) -> "NgramModel":
        """Returns the model whose logits are the mean of those of several, all learned from the same texts.

        Raises:
            ValueError: they were not.
        """
        first = models[0]
        if any(not np.array_equal(model.columns, first.columns) for model in models):
            raise ValueError("n-gram models of other texts have no mean")
        weights = np.stack([model.weights for model in models]).mean(0, dtype=np.float64).astype(np.float32)
        intercepts = np.stack([model.intercepts for model in models]).mean(0)
        return cls(first.columns, weights, intercepts, first.is_spaced)

    def save(self, path: Path) -> None:
        """Writes one file with a digest."""
        tensors = {
            "columns": torch.from_numpy(self.columns.astype(np.int32)),  # below 2**24
            "weights": torch.from_numpy(self.weights),
            "intercepts": torch.from_numpy(self.intercepts),
        }
        save_tensors(path, tensors, {"is_spaced": str(self.is_spaced)})

    @classmethod
    def load(cls, path: Path, num_labels: int) -> "NgramModel":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or for another number of labels.
        """
        tensors, metadata = load_tensors(path)
        try:
            columns, weights, intercepts = (tensors[name].numpy() for name in ("columns", "weights", "intercepts"))
            is_spaced = {"True": True, "False": False}[metadata["is_spaced"]]
        except KeyError as error:
            raise CheckpointError(f"{path}: holds no n-gram model ({error} is missing)") from error
        num_rows = 1 if num_labels == 2 else num_labels
        if weights.shape != (num_rows, len(columns)) or intercepts.shape != (num_rows,) or len(columns) == 0:
            raise CheckpointError(f"{path}: does not fit {num_labels} labels (weights {list(weights.shape)})")
        return cls(columns.astype(np.int64), weights, intercepts.astype(np.float64), is_spaced)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        yield chunk


def _one_against_rest(counts: Counts, is_label: Bools) -> tuple[Floats, float]:
    if not is_label.any():
        return np.zeros(counts.shape[1]), NEVER
    return nbsvm(counts, is_label)


def is_spaced(texts: Iterable[str]) -> bool:
    """Whether the writing puts spaces between words: mean share of white space at least 5 % in the first texts.

    English has about 17 %, Chinese, Japanese and Thai have next to none; for those, n-grams are made of characters.
    """
    shares = [1 - sum(map(len, text.split())) / len(text) for text in itertools.islice(texts, CHUNK) if text]
    return bool(shares) and sum(shares) / len(shares) >= MIN_SPACES


def hash_tokens(texts: Iterable[str], *, spaced: bool | None = None) -> TokenHashes:
    """Splits texts into words and marks, or into characters, and hashes each token once.

    Args:
        texts: N raw texts.
        spaced: whether tokens are words; if None, what `is_spaced` says of the texts.
    """
    if spaced is None:
        spaced = is_spaced(texts)
    pattern, known = _PATTERNS[spaced], _Hashes()
    parts, lengths = [np.empty(0, dtype=np.uint64)], [0]
    for chunk in _chunks(texts):
        tokens = [pattern.findall(text) for text in chunk]
        lengths += map(len, tokens)
        flat = map(known.__getitem__, itertools.chain.from_iterable(tokens))
        parts.append(np.fromiter(flat, np.uint64, sum(map(len, tokens))))
    return TokenHashes(np.concatenate(parts), np.cumsum(lengths, dtype=np.int64), spaced)


class _Hashes(dict[str, int]):
    """Hashes of tokens, each computed once."""

    def __missing__(self, token: str) -> int:
        if len(self) >= 2**20:  # memory must not grow with the texts
            self.clear()
        folded = " " if token.isspace() else token.casefold()
        digest = hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[token] = int.from_bytes(digest, "little")
        return self[token]


def _columns_of(hashes: Hashes, n: int) -> Ints:
    """Returns the columns of all runs of n tokens, also of those that reach into the next text."""
    number = max(0, len(hashes) - n + 1)
    joined = hashes[:number].copy()
    for i in range(1, n):
        joined *= _FACTOR
        joined += hashes[i : number + i]
    return (joined >> _SHIFT).astype(np.int64)


def count(tokens: TokenHashes, *, max_n: int, is_binary: bool) -> Counts:
    """Returns the counts `[N, 2**24]` of n-grams of 1 to `max_n` words, or 1 to 3 characters.

    Args:
        tokens: of N texts.
        max_n: words of the longest n-gram.
        is_binary: whether an n-gram counts once a text.
    """
    from scipy.sparse import csr_matrix, vstack

    parts = []
    for start in range(0, max(1, len(tokens)), CHUNK):
        offsets = tokens.offsets[start : start + CHUNK + 1]
        hashes, rows = tokens.hashes[offsets[0] : offsets[-1]], np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        found = []
        for n in range(1, (max_n if tokens.is_spaced else MAX_N) + 1):
            columns = _columns_of(hashes, n)
            is_whole = rows[: len(columns)] == rows[n - 1 :]
            found.append(rows[: len(columns)][is_whole] * NUM_COLUMNS + columns[is_whole])
        cells, times = np.unique(np.concatenate(found), return_counts=True)
        values = np.ones(len(cells)) if is_binary else times.astype(np.float64)
        places = (values, (cells // NUM_COLUMNS, cells % NUM_COLUMNS))
        parts.append(csr_matrix(places, shape=(len(offsets) - 1, NUM_COLUMNS)))
    return vstack(parts, format="csr")


def kept(counts: Counts, *, min_texts: int) -> tuple[Counts, npt.NDArray[np.int64]]:
    """Returns the columns that at least so many texts fill, and which they are.

    Raises:
        DataError: there is none.
    """
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

    As in Mesnil et al. 2014 the linear model is a logistic regression, because it gives probabilities, and its weights
    are taken whole: pulling them towards their mean, as Wang & Manning do with the SVM's, spoils those probabilities
    and costs more than a point of accuracy on film reviews.
    """
    with_label = SMOOTHING + _column_sums(features[is_label])
    without = SMOOTHING + _column_sums(features[~is_label])
    ratios = np.log(with_label / with_label.sum()) - np.log(without / without.sum())
    weights, intercept = logistic(features.multiply(ratios[np.newaxis]).tocsr(), is_label, strength=1.0)
    return ratios * weights, intercept


def _column_sums(features: Counts) -> Floats:
    return np.asarray(features.sum(axis=0), dtype=np.float64).ravel()
