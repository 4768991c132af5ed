"""Linear models over word n-grams: what a network has to beat on the same splits.

Everything is learned from the train split alone.
"""

import functools
import importlib.util
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bilstm_cls.data.types import Split
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.metrics import Bools, Floats
from bilstm_cls.ngrams import (
    MAX_N,
    SMALL_TRAIN,
    WORD,
    Counts,
    count_each,
    is_spaced,
    kept,
    logistic,
    nbsvm,
)

KINDS = {"tfidf": (2, False), "nbsvm": (MAX_N, True)}
"""The longest n-gram of a baseline, and whether it counts once a text."""

_TINY = float(np.finfo(np.float64).tiny)
FEW_LABELS = 100
"""Up to which fastText computes the whole softmax; for more, a hierarchical one."""


@dataclass(frozen=True)
class Task:
    """What all baselines learn and answer; the n-grams of its texts are counted once for all of them.

    Attributes:
        train: texts with label ids; at least two labels must occur.
        test: texts; its label ids are not read.
        num_labels: C; a label that `train` lacks gets probability 0.
        names: of the baselines that will be run, so that nothing else is counted.
    """

    train: Split
    test: Split
    num_labels: int
    names: Sequence[str] = ("tfidf", "nbsvm")

    @functools.cached_property
    def _counted(self) -> dict[tuple[int, bool], tuple[Counts, Counts]]:
        kinds, spaced = [KINDS[name] for name in self.names if name in KINDS], is_spaced(self.train.texts)
        train, test = (count_each(split.texts, spaced=spaced, kinds=kinds) for split in (self.train, self.test))
        return dict(zip(kinds, zip(train, test, strict=True), strict=True))

    def counts(self, name: str, *, is_rare_kept: bool) -> tuple[Counts, Counts]:
        """Returns n-gram counts of both splits, in the columns that are frequent enough in train."""
        train, test = self._counted[KINDS[name]]
        min_texts = 1 if is_rare_kept or len(self.train) < SMALL_TRAIN else 2
        found, columns = kept(train, min_texts=min_texts)
        return found, test[:, columns]

    def one_against_rest(
        self, train: Counts, test: Counts, fit: Callable[[Counts, Bools], tuple[Floats, float]]
    ) -> Floats:
        """Fits a linear model to each label and returns `[N, C]` probabilities of the texts of test."""
        present = np.unique(self.train.label_ids)
        scores = np.full((len(self.test), self.num_labels), -np.inf)
        for label_id in present[1:] if len(present) == 2 else present:
            weights, intercept = fit(train, self.train.label_ids == label_id)
            scores[:, label_id] = test @ weights + intercept
        if len(present) == 2:  # one decision is both: the score of the second, and its opposite
            scores[:, present[0]] = -scores[:, present[1]]
        return distribution(scores)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A linear classifier.

    Attributes:
        description: for reports.
        run: learns a task, and returns `[N, C]` probabilities of the texts of its test split.
        package: that it needs, or None.
    """

    description: str
    run: Callable[[Task], Floats]
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


def run_baseline(name: str, task: Task) -> tuple[Floats, float]:
    """Trains a baseline and predicts the texts of the test split.

    Returns:
        `[N, C]` probabilities whose rows sum to 1, and the seconds that it took.

    Raises:
        DataError: the train split holds no n-gram, or a single label.
    """
    started = time.monotonic()
    num_present = len(np.unique(task.train.label_ids))
    if num_present < 2:
        raise DataError(f"{task.train.name} split: a baseline needs texts of at least two labels, found {num_present}")
    return BASELINES[name].run(task), time.monotonic() - started


def known_baselines(names: Sequence[str] | None) -> list[str]:
    """Returns the named baselines, or all whose packages are installed.

    Raises:
        ConfigError: a name is not known, or its package is not installed.
    """
    for name in names or ():
        if name not in BASELINES:
            raise ConfigError(f"--only: baseline {name!r} is not known; choose one of {', '.join(BASELINES)}")
        if not BASELINES[name].is_installed:
            raise ConfigError(f"--only: {name} needs the package fasttext: pip install fasttext-numpy2-wheel")
    return list(dict.fromkeys(names or [name for name, found in BASELINES.items() if found.is_installed]))


def distribution(scores: Floats) -> Floats:
    """Makes one probability distribution of every row of log-odds, -inf meaning never."""
    chances = np.exp(-np.logaddexp(0.0, -scores))
    chances = np.maximum(chances, _TINY * np.isfinite(scores))  # all may be as good as 0, and have to sum to 1
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def _tfidf(task: Task) -> Floats:
    from sklearn.feature_extraction.text import TfidfTransformer

    train, test = task.counts("tfidf", is_rare_kept=False)
    weights = TfidfTransformer(sublinear_tf=True).fit(train)
    return task.one_against_rest(weights.transform(train), weights.transform(test), logistic)


def _nbsvm(task: Task) -> Floats:
    train, test = task.counts("nbsvm", is_rare_kept=True)
    return task.one_against_rest(train, test, nbsvm)


def _fasttext(task: Task) -> Floats:
    """Joulin et al. 2017: a softmax over the mean of the vectors of words and pairs of words."""
    import fasttext

    spaced = is_spaced(task.train.texts)
    with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
        path = Path(folder) / "train.txt"
        with path.open("w", encoding="utf-8", errors="replace") as file:
            for i in np.random.default_rng(0).permutation(len(task.train)).tolist():  # fastText does not shuffle
                file.write(f"__label__{task.train.label_ids[i]} {_line_of(task.train.texts[i], spaced=spaced)}\n")
        loss = "softmax" if task.num_labels <= FEW_LABELS else "hs"
        epochs = max(5, min(100, 100_000 // len(task.train)))
        options = {"dim": 10, "lr": 0.5, "epoch": epochs, "bucket": 2**20, "loss": loss, "verbose": 0}
        # Several threads would give another result each time.
        model = fasttext.train_supervised(str(path), wordNgrams=2, thread=1, seed=1, **options)
    probabilities = np.zeros((len(task.test), task.num_labels))
    for row, text in zip(probabilities, task.test.texts, strict=True):
        line = _line_of(text, spaced=spaced).encode("utf-8", "replace").decode("utf-8")
        for label, probability in zip(*model.predict(line, k=-1), strict=True):
            row[int(label.removeprefix("__label__"))] = probability
    probabilities[:, np.unique(task.train.label_ids)] += _TINY  # a text without a known word has no prediction
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def _line_of(text: str, *, spaced: bool) -> str:
    """Returns the tokens of a text with spaces between them, on one line."""
    return " ".join(re.findall(WORD if spaced else r"\S", text.casefold()))


BASELINES: dict[str, Baseline] = {
    "tfidf": Baseline("TF-IDF of 1-2 grams and logistic regression", _tfidf),
    "nbsvm": Baseline("NB-SVM of 1-3 grams", _nbsvm),
    "fasttext": Baseline("fastText with pairs of words", _fasttext, package="fasttext"),
}
