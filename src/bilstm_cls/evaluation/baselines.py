"""Linear models over word n-grams: what a network has to beat on the same splits.

n-grams are hashed into 2**24 columns, so no vocabulary of millions of n-grams is held in memory, and the columns that
the train split fills are kept. Everything is learned from the train split alone, and nothing is drawn at random that
is not seeded.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bilstm_cls.data.example import Split
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.metrics import Bools, Floats

WORD = r"\w+(?:['’]\w+)*|[^\w\s]"  # a word with its contraction, or one mark
NUM_COLUMNS = 2**24
SMALL_TRAIN = 1000
MIN_BLANKS = 0.05
SMOOTHING = 1.0
_TINY = float(np.finfo(np.float64).tiny)

Counts = Any  # scipy.sparse CSR matrix [N, columns], float64


@dataclass(frozen=True, slots=True)
class Baseline:
    """A way to build a linear classifier.

    Attributes:
        description: in words, for reports.
        max_n: the longest n-gram.
        is_binary: whether an n-gram counts once a text.
        is_rare_kept: whether n-grams of a single text take part.
        weigh: turns the counts of train and test into features.
        fit: learns one label against the rest: features and `[N]` truth -> weights `[columns]` and intercept.
    """

    description: str
    max_n: int
    is_binary: bool
    is_rare_kept: bool
    weigh: Callable[[Counts, Counts], tuple[Counts, Counts]]
    fit: Callable[[Counts, Bools], tuple[Floats, float]]


def run_baseline(name: str, train: Split, test: Split, labels: Sequence[str]) -> tuple[Floats, float]:
    """Trains a baseline on `train` and judges the texts of `test`.

    Args:
        name: a key of `BASELINES`.
        train: texts with label ids; at least two labels must occur.
        test: texts; its label ids are not read.
        labels: C class names; one that `train` lacks gets probability 0.

    Returns:
        `[N, C]` probabilities whose rows sum to 1, and the seconds that all of it took.

    Raises:
        ConfigError: there is no such baseline.
        DataError: `train` holds no n-gram, or a single label.
    """
    if name not in BASELINES:
        raise ConfigError(f"baseline {name!r} is not known; choose one of {', '.join(BASELINES)}")
    started = time.monotonic()
    baseline = BASELINES[name]
    present = np.unique(train.label_ids)
    if len(present) < 2:
        raise DataError(f"{train.name} split: a baseline needs texts of at least two labels, found {len(present)}")
    train_features, test_features = baseline.weigh(*_counts(baseline, train, test.texts))
    scores = np.full((len(test), len(labels)), -np.inf)
    if len(present) == 2:  # one decision is both: score of the second, and its opposite
        scores[:, present[1]] = _scores(baseline, train_features, test_features, train.label_ids == present[1])
        scores[:, present[0]] = -scores[:, present[1]]
    else:
        for label_id in present:
            scores[:, label_id] = _scores(baseline, train_features, test_features, train.label_ids == label_id)
    return _distribution(scores), time.monotonic() - started


def is_spaced(texts: Sequence[str]) -> bool:
    """Whether the texts' writing puts blanks between words: mean share of white space at least 5 %.

    English has about 17 %, Chinese, Japanese and Thai have next to none; for those, n-grams are made of characters.
    """
    shares = [1 - sum(map(len, text.split())) / len(text) for text in texts if text]
    return bool(shares) and sum(shares) / len(shares) >= MIN_BLANKS


def _counts(baseline: Baseline, train: Split, test_texts: Sequence[str]) -> tuple[Counts, Counts]:
    """Returns n-gram counts of both splits, in the columns that are frequent enough in train."""
    from sklearn.feature_extraction.text import HashingVectorizer

    spaced = is_spaced(train.texts)
    vectorizer = HashingVectorizer(
        preprocessor=_fold,
        token_pattern=WORD if spaced else None,
        analyzer="word" if spaced else "char",
        ngram_range=(1, baseline.max_n if spaced else 3),
        n_features=NUM_COLUMNS,
        binary=baseline.is_binary,
        alternate_sign=False,
        norm=None,
    )
    counts = vectorizer.transform(train.texts)
    min_texts = 1 if baseline.is_rare_kept or len(train) < SMALL_TRAIN else 2
    kept = np.flatnonzero(np.bincount(counts.indices, minlength=1) >= min_texts)
    if len(kept) == 0:
        raise DataError(f"{train.name} split: no n-gram occurs often enough to learn from; are the texts empty?")
    return counts[:, kept], vectorizer.transform(test_texts)[:, kept]


def _fold(text: str) -> str:
    return text.casefold().encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be hashed


def _tfidf(train: Counts, test: Counts) -> tuple[Counts, Counts]:
    from sklearn.feature_extraction.text import TfidfTransformer

    weights = TfidfTransformer(sublinear_tf=True).fit(train)
    return weights.transform(train), weights.transform(test)


def _unweighted(train: Counts, test: Counts) -> tuple[Counts, Counts]:
    return train, test


def _logistic(features: Counts, is_label: Bools, *, strength: float = 10.0) -> tuple[Floats, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, solver="liblinear", dual=True, random_state=0, max_iter=300)
    with warnings.catch_warnings():  # the last digits of a baseline's optimum are of no interest to its user
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, is_label)
    return model.coef_[0], float(model.intercept_[0])


def _nbsvm(features: Counts, is_label: Bools) -> tuple[Floats, float]:
    """A linear model of n-grams that are scaled by how much more often the label has them (Wang & Manning 2012).

    As in Mesnil et al. 2014 the linear model is a logistic regression, because it gives probabilities, and its weights
    are taken whole: pulling them towards their mean, as Wang & Manning do with the SVM's, spoils those probabilities
    and costs more than a point of accuracy on film reviews.
    """
    with_label = SMOOTHING + _column_sums(features[is_label])
    without = SMOOTHING + _column_sums(features[~is_label])
    ratios = np.log(with_label / with_label.sum()) - np.log(without / without.sum())
    weights, intercept = _logistic(features.multiply(ratios[np.newaxis]).tocsr(), is_label, strength=1.0)
    return ratios * weights, intercept


def _column_sums(features: Counts) -> Floats:
    return np.asarray(features.sum(axis=0), dtype=np.float64).ravel()


def _scores(baseline: Baseline, train: Counts, test: Counts, is_label: Bools) -> Floats:
    weights, intercept = baseline.fit(train, is_label)
    return np.asarray(test @ weights + intercept)


def _distribution(scores: Floats) -> Floats:
    """Makes one probability distribution of every row of log-odds, -inf meaning never."""
    chances = np.exp(-np.logaddexp(0.0, -scores))
    chances = np.maximum(chances, _TINY * np.isfinite(scores))  # all may be as good as 0, and have to sum to 1
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


BASELINES: dict[str, Baseline] = {
    "tfidf": Baseline("TF-IDF of 1-2 grams and logistic regression", 2, False, False, _tfidf, _logistic),
    "nbsvm": Baseline("NB-SVM of 1-3 grams", 3, True, True, _unweighted, _nbsvm),
}
