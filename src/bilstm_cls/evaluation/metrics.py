"""Scores of predicted probabilities against labels.

Every score is made of integer counts or of correctly rounded sums over examples, so it does not depend on the order
of the examples or on how they were batched, to the last bit.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

METRICS = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "auroc", "log_loss", "ece")
NUM_BINS = 15
NUM_RESAMPLES = 2000
_SMALLEST = float(np.finfo(np.float64).eps)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Scores of one label; `support` is the number of examples that have it."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a model is worth on one split.

    Attributes:
        examples: N.
        accuracy: share of examples whose most probable label is right.
        macro_f1: mean F1 over the labels that occur among the true or the predicted ones.
        micro_f1: F1 over all decisions; with one label a text it equals accuracy.
        weighted_f1: mean F1, each label weighing as much as it has examples.
        auroc: area under the ROC curve of the second of two labels, or the mean of one-vs-rest over more; None where
            a label has no example.
        log_loss: mean negative log-likelihood in nats; probabilities count as at least 2.2e-16 (float64's epsilon).
        ece: expected calibration error over 15 equal bins of the top probability (Guo et al. 2017).
        majority: accuracy of always answering the train split's most frequent label; None where it was not given.
        confidence_interval: 95 % interval of the accuracy; None where it was not asked for.
        per_class: scores by label, in the order of the labels.
        confusion_matrix: `[C][C]` counts, rows true, columns predicted.
    """

    examples: int
    accuracy: float
    macro_f1: float
    micro_f1: float
    weighted_f1: float
    auroc: float | None
    log_loss: float
    ece: float
    majority: float | None
    confidence_interval: tuple[float, float] | None
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]

    def scalars(self, prefix: str) -> dict[str, float | None]:
        """Returns the scores of `METRICS` as `prefix/accuracy` and so on: a row of the history."""
        return {f"{prefix}/{name}": getattr(self, name) for name in METRICS}

    def flat(self, prefix: str) -> dict[str, Any]:
        """Returns everything under keys such as `test/accuracy` and `test/per_class/pos/f1`, ready for JSON."""
        row: dict[str, Any] = {f"{prefix}/examples": self.examples, **self.scalars(prefix)}
        row[f"{prefix}/majority"] = self.majority
        row[f"{prefix}/confidence_interval"] = self._interval()
        for label, scores in self.per_class.items():
            row |= {f"{prefix}/per_class/{label}/{name}": value for name, value in asdict(scores).items()}
        row[f"{prefix}/confusion_matrix"] = self.confusion_matrix
        return row

    def as_object(self, split: str) -> dict[str, Any]:
        """Returns what `eval --json` prints."""
        return {
            "split": split,
            "examples": self.examples,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "loss": self.log_loss,
            "ece": self.ece,
            "confidence_interval": self._interval(),
            "per_class": {label: asdict(scores) for label, scores in self.per_class.items()},
        }

    def _interval(self) -> list[float] | None:
        return None if self.confidence_interval is None else list(self.confidence_interval)


def compute_metrics(
    probabilities: Floats,
    label_ids: Ints,
    labels: Sequence[str],
    *,
    majority_label_id: int | None = None,
    intervals: bool = True,
    seed: int = 0,
) -> Metrics:
    """Judges probabilities. Where two labels are equally probable, the first of them is the answer.

    Args:
        probabilities: `[N, C]`, finite, rows summing to 1; N at least 1.
        label_ids: `[N]`, indices into `labels`.
        labels: C distinct class names.
        majority_label_id: the most frequent label of the train split.
        intervals: whether to draw the confidence interval.
        seed: of the interval's resamples.
    """
    _check(probabilities, label_ids, labels)
    predicted = probabilities.argmax(axis=1)
    is_correct = predicted == label_ids
    matrix = confusion_matrix(label_ids, predicted, len(labels))
    per_class = [_class_metrics(matrix, i) for i in range(len(labels))]
    support = matrix.sum(axis=1)
    f1 = [scores.f1 for scores in per_class]
    occurring = [f1[i] for i in np.flatnonzero(support + matrix.sum(axis=0))]
    num_examples, num_correct = len(label_ids), int(is_correct.sum())
    accuracy = num_correct / num_examples
    return Metrics(
        examples=num_examples,
        accuracy=accuracy,
        macro_f1=math.fsum(occurring) / len(occurring),
        micro_f1=accuracy,
        weighted_f1=math.fsum(f1 * support) / num_examples,
        auroc=_auroc(probabilities, label_ids),
        log_loss=math.fsum(example_losses(probabilities, label_ids)) / num_examples,
        ece=calibration_bins(probabilities.max(axis=1), is_correct).error,
        majority=None if majority_label_id is None else int(support[majority_label_id]) / num_examples,
        confidence_interval=accuracy_interval(num_correct, num_examples, seed=seed) if intervals else None,
        per_class=dict(zip(labels, per_class, strict=True)),
        confusion_matrix=matrix.tolist(),
    )


def example_losses(probabilities: Floats, label_ids: Ints) -> Floats:
    """Returns `[N]` negative log-likelihoods in nats, between 0 and 36.05."""
    likelihoods = probabilities[np.arange(len(label_ids)), label_ids]
    return np.abs(np.log(np.clip(likelihoods, _SMALLEST, 1.0)))  # abs: -log(1) would be -0.0


def confusion_matrix(label_ids: Ints, predicted: Ints, num_labels: int) -> Ints:
    """Returns `[C, C]` counts, rows true, columns predicted."""
    cells = np.bincount(label_ids * num_labels + predicted, minlength=num_labels * num_labels)
    return cells.reshape(num_labels, num_labels).astype(np.int64)


def accuracy_interval(num_correct: int, num_examples: int, *, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of an accuracy.

    Drawing N of N right-or-wrong answers with replacement and counting the right ones is one draw from
    Binomial(N, accuracy), so the 2,000 resamples cost 2,000 numbers. The interval has no width where all answers are
    right or all are wrong: with few examples, do not read that as certainty.
    """
    draws = np.random.default_rng(seed).binomial(num_examples, num_correct / num_examples, NUM_RESAMPLES)
    low, high = np.percentile(draws / num_examples, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class CalibrationBins:
    """Examples by their top probability, in 15 bins that are open to the left: (0, 1/15], (1/15, 2/15], ...

    Attributes:
        counts: `[15]` examples.
        num_correct: `[15]` examples whose answer is right.
        confidence: `[15]` sums of the top probability.
    """

    counts: Ints
    num_correct: Ints
    confidence: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance of accuracy and confidence, weighted by examples."""
        return math.fsum(np.abs(self.num_correct - self.confidence)) / int(self.counts.sum())


def calibration_bins(confidence: Floats, is_correct: Bools) -> CalibrationBins:
    """Sorts examples into bins of their top probability.

    Args:
        confidence: `[N]` top probabilities.
        is_correct: `[N]` whether the most probable label is the true one.
    """
    inner_edges = np.arange(1, NUM_BINS) / NUM_BINS
    bins = np.digitize(confidence, inner_edges, right=True)
    return CalibrationBins(
        counts=np.bincount(bins, minlength=NUM_BINS).astype(np.int64),
        num_correct=np.bincount(bins[is_correct], minlength=NUM_BINS).astype(np.int64),
        confidence=np.array([math.fsum(confidence[bins == i]) for i in range(NUM_BINS)]),
    )


def _class_metrics(matrix: Ints, label_id: int) -> ClassMetrics:
    num_right = int(matrix[label_id, label_id])
    support, num_predicted = int(matrix[label_id].sum()), int(matrix[:, label_id].sum())
    return ClassMetrics(
        precision=num_right / max(1, num_predicted),
        recall=num_right / max(1, support),
        f1=2 * num_right / max(1, support + num_predicted),
        support=support,
    )


def _auroc(probabilities: Floats, label_ids: Ints) -> float | None:
    from sklearn.metrics import roc_auc_score

    num_labels = probabilities.shape[1]
    if num_labels < 2 or len(np.unique(label_ids)) < num_labels:
        return None
    judged = [1] if num_labels == 2 else range(num_labels)
    areas = [float(roc_auc_score(label_ids == i, probabilities[:, i])) for i in judged]
    return math.fsum(areas) / len(areas)


def _check(probabilities: Floats, label_ids: Ints, labels: Sequence[str]) -> None:
    assert probabilities.dtype == np.float64, probabilities.dtype
    assert probabilities.shape == (len(label_ids), len(labels)), (probabilities.shape, len(label_ids), len(labels))
    assert len(label_ids) > 0, "nothing to judge"
    assert len(set(labels)) == len(labels), labels
    assert np.isfinite(probabilities).all(), "a probability is not finite"
    assert (probabilities >= 0).all(), "a probability is negative"
    assert np.allclose(probabilities.sum(axis=1), 1.0, rtol=0, atol=1e-5), "rows of probabilities must sum to 1"
    assert ((label_ids >= 0) & (label_ids < len(labels))).all(), "a label id is out of range"
