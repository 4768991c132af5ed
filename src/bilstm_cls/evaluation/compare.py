"""Runs beside each other, judged on the same texts: how far apart, whether that may be chance, where they disagree.

Shapes: N texts, C labels, R resamples.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.metrics import (
    NUM_RESAMPLES,
    Floats,
    Ints,
    accuracy_interval,
    calibration_bins,
    confusion_matrix,
)
from bilstm_cls.evaluation.predictions import Predictions, read_predictions


@dataclass(frozen=True)
class Contender:
    """A run's answers, the texts in an order that all share.

    Attributes:
        name: what the run is called, unlike the others.
        answers: `[N]` label ids.
        probabilities: `[N]` of the answers.
        losses: `[N]` in nats.
        scores: `accuracy`, `macro_f1`, `log_loss`, `ece`.
        interval: 95 % interval of the accuracy.
        f1: of each label.
    """

    name: str
    answers: Ints
    probabilities: Floats
    losses: Floats
    scores: dict[str, float]
    interval: tuple[float, float]
    f1: list[float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A difference, and its 95 % interval by the paired bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """What another run is more than the first, or less.

    Attributes:
        name: of the other run.
        scores: differences of `accuracy`, `macro_f1` and `log_loss`.
        only_first: texts that the first run alone answers rightly.
        only_other: texts that the other one alone answers rightly.
        p_value: McNemar's exact test, two-sided: how probable so uneven a share of those is where both err as often.
    """

    name: str
    scores: dict[str, Estimate]
    only_first: int
    only_other: int
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Several runs on the same texts.

    Attributes:
        split: what they were judged on.
        labels: C class names.
        label_ids: `[N]`.
        texts: N texts.
        places: N of `path:line`.
        runs: at least two, the first of which the others are compared with.
        differences: of every other run from the first.
        disagreements: the texts that not all runs give the same answer, the greatest difference in loss first.
    """

    split: str
    labels: list[str]
    label_ids: Ints
    texts: list[str]
    places: list[str]
    runs: list[Contender]
    differences: list[Difference]
    disagreements: Ints

    def as_object(self, limit: int) -> dict[str, Any]:
        """Returns what `report --json` prints, with at most `limit` disagreements."""
        return {
            "split": self.split,
            "examples": len(self.label_ids),
            "runs": [
                {
                    "run": run.name,
                    **run.scores,
                    "confidence_interval": list(run.interval),
                    "f1": dict(zip(self.labels, run.f1, strict=True)),
                }
                for run in self.runs
            ],
            "differences": [
                {
                    "run": found.name,
                    "against": self.runs[0].name,
                    **{
                        name: {"difference": score.value, "confidence_interval": [score.low, score.high]}
                        for name, score in found.scores.items()
                    },
                    "right_alone": {self.runs[0].name: found.only_first, found.name: found.only_other},
                    "mcnemar_p": found.p_value,
                }
                for found in self.differences
            ],
            "num_disagreements": len(self.disagreements),
            "disagreements": [
                {
                    "place": self.places[i],
                    "label": self.labels[self.label_ids[i]],
                    "answers": {
                        run.name: {"label": self.labels[run.answers[i]], "probability": float(run.probabilities[i])}
                        for run in self.runs
                    },
                    "text": self.texts[i],
                }
                for i in self.disagreements[:limit].tolist()
            ],
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """Compares runs by their `predictions_*.csv`; no model is loaded.

    Args:
        paths: at least two run directories, those of `bilstm-cls baseline` among them.

    Raises:
        CheckpointError: a run was not judged, or its predictions are damaged.
        ConfigError: a run is given twice, or they were not judged on the same texts.
    """
    assert len(paths) > 1
    names = _names(paths)
    found = [_in_common_order(read_predictions(path)) for path in paths]
    first = found[0]
    for path, other in zip(paths[1:], found[1:], strict=True):
        _check_same_texts(paths[0], first, path, other)
    labels = sorted({label for predictions in found for label in (*predictions.labels, *predictions.answers)})
    number_of = {label: i for i, label in enumerate(labels)}
    label_ids = np.array([number_of[label] for label in first.labels])
    runs = [
        _contender(name, predictions, label_ids, np.array([number_of[label] for label in predictions.answers]), labels)
        for name, predictions in zip(names, found, strict=True)
    ]
    differences = [_difference(runs[0], other, label_ids, len(labels)) for other in runs[1:]]
    gaps = np.max([np.abs(run.losses - runs[0].losses) for run in runs[1:]], axis=0)
    apart = np.flatnonzero(np.any([run.answers != runs[0].answers for run in runs[1:]], axis=0))
    return Comparison(
        split=first.split,
        labels=labels,
        label_ids=label_ids,
        texts=first.texts,
        places=[f"{path}:{line}" for path, line in first.places],
        runs=runs,
        differences=differences,
        disagreements=apart[np.argsort(-gaps[apart], kind="stable")],
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the names of the run directories, or their whole paths where names are not enough."""
    places = [path.resolve() for path in paths]
    for place, times in Counter(places).items():
        if times > 1:
            raise ConfigError(f"--run: {place} is given {times} times; compare different runs")
    names = [place.name for place in places]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _in_common_order(predictions: Predictions) -> Predictions:
    """Sorts by text; where a text stands twice with one label, a run gives it the same answer twice."""
    keys = list(zip(predictions.texts, predictions.labels, predictions.places, strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Predictions(
        split=predictions.split,
        texts=[predictions.texts[i] for i in order],
        places=[predictions.places[i] for i in order],
        labels=[predictions.labels[i] for i in order],
        answers=[predictions.answers[i] for i in order],
        probabilities=predictions.probabilities[order],
        losses=predictions.losses[order],
    )


def _check_same_texts(path: Path, one: Predictions, other_path: Path, other: Predictions) -> None:
    if one.texts != other.texts:
        shared = (Counter(one.texts) & Counter(other.texts)).total()
        raise ConfigError(
            f"{path} and {other_path} were not judged on the same texts: of {len(one):,} ({one.split}) and "
            f"{len(other):,} ({other.split}) they share {shared:,}; compare runs of the same data and split"
        )
    for label, another, place in zip(one.labels, other.labels, one.places, strict=True):
        if label != another:
            raise ConfigError(
                f"{path} and {other_path} were not judged by the same labels: the text at {place[0]}:{place[1]} is "
                f"{label!r} in one and {another!r} in the other; compare runs of the same data and split"
            )


def _contender(name: str, predictions: Predictions, label_ids: Ints, answers: Ints, labels: Sequence[str]) -> Contender:
    is_correct = answers == label_ids
    matrix = confusion_matrix(label_ids, answers, len(labels))
    f1 = _f1(np.diag(matrix)[np.newaxis], matrix.sum(1)[np.newaxis], matrix.sum(0)[np.newaxis])[0]
    return Contender(
        name=name,
        answers=answers,
        probabilities=predictions.probabilities,
        losses=predictions.losses,
        scores={
            "accuracy": float(is_correct.mean()),
            "macro_f1": float(np.nanmean(f1)),
            "log_loss": float(predictions.losses.mean()),
            "ece": calibration_bins(predictions.probabilities, is_correct).error,
        },
        interval=accuracy_interval(int(is_correct.sum()), len(is_correct)),
        f1=np.nan_to_num(f1).tolist(),
    )


def _f1(right: Any, support: Any, predicted: Any) -> Floats:
    """Returns `[R, C]` F1 of counts of that shape; NaN where a label has no text and no answer."""
    total = support + predicted
    return np.asarray(np.where(total > 0, 2 * right / np.maximum(1, total), np.nan))


def _difference(first: Contender, other: Contender, label_ids: Ints, num_labels: int) -> Difference:
    """Resamples texts, each with both of its answers: what both runs find hard then widens no interval.

    Accuracy and F1 depend only on how many texts have which label and answers: a resample is one draw of those counts.
    """
    from scipy.stats import binomtest

    generator = np.random.default_rng(0)
    number = len(label_ids)
    cells = (label_ids * num_labels + first.answers) * num_labels + other.answers
    kinds, counts = np.unique(cells, return_counts=True)
    label, one, two = kinds // num_labels**2, kinds // num_labels % num_labels, kinds % num_labels
    draws = generator.multinomial(number, counts / number, size=NUM_RESAMPLES)

    def accuracy(counted: Ints, answers: Ints) -> Floats:
        return np.asarray(counted[:, label == answers].sum(axis=1) / number)

    def macro_f1(counted: Ints, answers: Ints) -> Floats:
        ids = np.arange(num_labels)
        has_label, has_answer = label[:, np.newaxis] == ids, answers[:, np.newaxis] == ids
        f1 = _f1(counted @ (has_label & has_answer), counted @ has_label, counted @ has_answer)
        return np.asarray(np.nanmean(f1, axis=1))

    def estimate(score: Callable[[Ints, Ints], Floats]) -> Estimate:
        (value,) = score(counts[np.newaxis], two) - score(counts[np.newaxis], one)
        return _estimate(value, score(draws, two) - score(draws, one))

    gaps = other.losses - first.losses
    means = np.array([gaps[generator.integers(number, size=number)].mean() for _ in range(NUM_RESAMPLES)])
    is_right, is_right_too = first.answers == label_ids, other.answers == label_ids
    only_first, only_other = int((is_right & ~is_right_too).sum()), int((is_right_too & ~is_right).sum())
    apart = only_first + only_other
    return Difference(
        name=other.name,
        scores={
            "accuracy": estimate(accuracy),
            "macro_f1": estimate(macro_f1),
            "log_loss": _estimate(gaps.mean(), means),
        },
        only_first=only_first,
        only_other=only_other,
        p_value=float(binomtest(only_other, apart).pvalue) if apart else 1.0,
    )


def _estimate(value: float, resampled: Floats) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
