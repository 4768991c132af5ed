"""Linear models over word n-grams: what a network has to beat on the same splits.

Everything is learned from the train split alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bilstm_cls.data.types import Split
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.metrics import Bools, Floats
from bilstm_cls.ngrams import SMALL_TRAIN, Counts, count, is_spaced, kept, logistic, nbsvm

_TINY = float(np.finfo(np.float64).tiny)


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


def _counts(baseline: Baseline, train: Split, test_texts: Sequence[str]) -> tuple[Counts, Counts]:
    """Returns n-gram counts of both splits, in the columns that are frequent enough in train."""
    spaced = is_spaced(train.texts)
    min_texts = 1 if baseline.is_rare_kept or len(train) < SMALL_TRAIN else 2
    count_in = partial(count, spaced=spaced, max_n=baseline.max_n, is_binary=baseline.is_binary)
    counts, columns = kept(count_in(train.texts), min_texts=min_texts)
    return counts, count_in(test_texts)[:, columns]


def _tfidf(train: Counts, test: Counts) -> tuple[Counts, Counts]:
    from sklearn.feature_extraction.text import TfidfTransformer

    weights = TfidfTransformer(sublinear_tf=True).fit(train)
    return weights.transform(train), weights.transform(test)


def _unweighted(train: Counts, test: Counts) -> tuple[Counts, Counts]:
    return train, test


def _scores(baseline: Baseline, train: Counts, test: Counts, is_label: Bools) -> Floats:
    weights, intercept = baseline.fit(train, is_label)
    return np.asarray(test @ weights + intercept)


def _distribution(scores: Floats) -> Floats:
    """Makes one probability distribution of every row of log-odds, -inf meaning never."""
    chances = np.exp(-np.logaddexp(0.0, -scores))
    chances = np.maximum(chances, _TINY * np.isfinite(scores))  # all may be as good as 0, and have to sum to 1
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


BASELINES: dict[str, Baseline] = {
    "tfidf": Baseline("TF-IDF of 1-2 grams and logistic regression", 2, False, False, _tfidf, logistic),
    "nbsvm": Baseline("NB-SVM of 1-3 grams", 3, True, True, _unweighted, nbsvm),
}
