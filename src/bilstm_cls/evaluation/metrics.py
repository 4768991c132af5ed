"""Scores of predicted probabilities against labels, in time and memory that grow linearly with the labels.

Shapes: N texts, C labels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

METRICS = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "auroc", "log_loss", "ece")
NUM_BINS = 15
MAX_MATRIX = 200
"""Labels up to which the whole confusion matrix is kept; of more, the most frequent confusions alone."""

MAX_CONFUSIONS = 50
_SMALLEST = float(np.finfo(np.float64).eps)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class ClassMetrics(NamedTuple):
    """Scores of one label; `support` is the number of texts that have it."""

    precision: float
    recall: float
    f1: float
    support: int


class Confusion(NamedTuple):
    """How many texts of `label` were predicted to have the label `prediction`."""

    label: str
    prediction: str
    texts: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """Scores of a model on N texts of one split.

    Attributes:
        macro_f1: mean F1 over the labels that occur among the true or the predicted ones.
        micro_f1: F1 over all decisions; with one label a text it equals accuracy.
        weighted_f1: mean F1, each label weighted by its texts.
        auroc: area under the ROC curve of the second of two labels, or the mean of one-vs-rest over more; None where
            a label has no text.
        log_loss: mean negative log-likelihood in nats; probabilities count as at least 2.2e-16 (float64's epsilon).
        ece: expected calibration error over 15 equal bins of the top probability (Guo et al. 2017).
        majority: accuracy of always predicting the train split's most frequent label; None where it was not given.
        confidence_interval: 95 % Wilson interval of the accuracy.
        per_class: scores by label, in the order of the labels.
        confusions: the most frequent confusions, at most 50.
        confusion_matrix: `[C][C]` counts, rows true, columns predicted; None for more than 200 labels.
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
    confidence_interval: tuple[float, float]
    per_class: dict[str, ClassMetrics]
    confusions: list[Confusion]
    confusion_matrix: list[list[int]] | None

    def scalars(self, prefix: str) -> dict[str, float | None]:
        """Returns the scores of `METRICS` as `prefix/accuracy` and so on: a row of the history."""
        return {f"{prefix}/{name}": getattr(self, name) for name in METRICS}

    def flat(self, prefix: str) -> dict[str, Any]:
        """Returns everything under keys such as `test/accuracy` and `test/per_class/pos/f1`, ready for JSON."""
        row: dict[str, Any] = {f"{prefix}/examples": self.examples, **self.scalars(prefix)}
        row[f"{prefix}/majority"] = self.majority
        row[f"{prefix}/confidence_interval"] = list(self.confidence_interval)
        for label, scores in self.per_class.items():
            row |= {f"{prefix}/per_class/{label}/{name}": value for name, value in scores._asdict().items()}
        row[f"{prefix}/confusions"] = [list(found) for found in self.confusions]
        return row if self.confusion_matrix is None else row | {f"{prefix}/confusion_matrix": self.confusion_matrix}

    def as_object(self, split: str) -> dict[str, Any]:
        """Returns what `eval --json` prints."""
        return {
            "split": split, "examples": self.examples, "accuracy": self.accuracy, "macro_f1": self.macro_f1,
            "loss": self.log_loss, "ece": self.ece, "confidence_interval": list(self.confidence_interval),
            "per_class": {label: scores._asdict() for label, scores in self.per_class.items()},
        }  # fmt: skip


def compute_metrics(
    probabilities: Floats, label_ids: Ints, labels: Sequence[str], *, majority_label_id: int | None = None
) -> Metrics:
    """Evaluates probabilities. Where two labels are equally probable, the first of them is the prediction.

    Args:
        probabilities: `[N, C]`, finite, rows summing to 1; N at least 1.
        label_ids: `[N]`, indices into `labels`.
        labels: C distinct class names.
        majority_label_id: the most frequent label of the train split.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    _check(probabilities, label_ids, labels)
    predicted = probabilities.argmax(axis=1)
    is_correct = predicted == label_ids
    with warnings.catch_warnings():  # that the labels are many for so few texts
        warnings.simplefilter("ignore")
        scores = precision_recall_fscore_support(label_ids, predicted, labels=range(len(labels)), zero_division=0)
    f1, support = scores[2], scores[3]
    has_occurred = (support > 0) | (np.bincount(predicted, minlength=len(labels)) > 0)
    rows = zip(*(column.tolist() for column in scores), strict=True)
    number, accuracy, is_small = len(label_ids), float(is_correct.mean()), len(labels) <= MAX_MATRIX
    return Metrics(
        examples=number,
        accuracy=accuracy,
        macro_f1=float(f1[has_occurred].mean()),
        micro_f1=accuracy,
        weighted_f1=float(f1 @ support) / number,
        auroc=_auroc(probabilities, label_ids),
        log_loss=float(example_losses(probabilities, label_ids).mean()),
        ece=calibration_bins(probabilities.max(axis=1), is_correct).error,
        majority=None if majority_label_id is None else int(support[majority_label_id]) / number,
        confidence_interval=accuracy_interval(accuracy, number),
        per_class={label: ClassMetrics(*row) for label, row in zip(labels, rows, strict=True)},
        confusions=_confusions(label_ids, predicted, labels),
        confusion_matrix=confusion_matrix(label_ids, predicted, labels=range(len(labels))).tolist()
        if is_small
        else None,
    )


def example_losses(probabilities: Floats, label_ids: Ints) -> Floats:
    """Returns `[N]` negative log-likelihoods in nats, between 0 and 36.05."""
    likelihoods = probabilities[np.arange(len(label_ids)), label_ids]
    return np.abs(np.log(np.clip(likelihoods, _SMALLEST, 1.0)))  # abs: -log(1) would be -0.0


def _confusions(label_ids: Ints, predicted: Ints, labels: Sequence[str]) -> list[Confusion]:
    is_wrong = label_ids != predicted
    cells, counts = np.unique(label_ids[is_wrong] * len(labels) + predicted[is_wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CONFUSIONS].tolist()
    return [Confusion(labels[cells[i] // len(labels)], labels[cells[i] % len(labels)], int(counts[i])) for i in order]


def wilson_interval(hits: npt.ArrayLike, totals: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Returns both ends of the 95 % interval of `hits / totals` by Wilson (1927); 0 and 1 where `totals` is 0.

    Unlike the bootstrap's it has a width where all of few predictions are right: for 30 of 30 it is 0.886 to 1.
    """
    deviations, (hit, total) = 1.959964, (np.asarray(values, np.float64) for values in (hits, totals))
    spread = deviations**2 / np.maximum(total, _SMALLEST)
    fraction = hit / np.maximum(total, 1)
    centre = (fraction + spread / 2) / (1 + spread)
    width = np.sqrt(spread * (fraction * (1 - fraction) + spread / 4)) / (1 + spread)
    return np.maximum(centre - width, 0.0), np.minimum(centre + width, 1.0)


def accuracy_interval(accuracy: float, number: int) -> tuple[float, float]:
    """Returns the 95 % interval of the accuracy on so many texts."""
    low, high = wilson_interval(round(accuracy * number), number)
    return float(low), float(high)


class CalibrationBins(NamedTuple):
    """By 15 bins of the top probability, (0, 1/15], (1/15, 2/15], ...: texts, right predictions, sums of the former."""

    counts: Ints
    num_correct: Ints
    confidence: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance of accuracy and confidence, weighted by texts."""
        return float(np.abs(self.num_correct - self.confidence).sum()) / int(self.counts.sum())


def calibration_bins(confidence: Floats, is_correct: Bools) -> CalibrationBins:
    """Sorts texts into bins of their top probability `[N]`, given whether their prediction is right, `[N]`."""
    bins = np.digitize(confidence, np.arange(1, NUM_BINS) / NUM_BINS, right=True)
    counts, num_correct = (np.bincount(found, minlength=NUM_BINS) for found in (bins, bins[is_correct]))
    return CalibrationBins(counts, num_correct, np.bincount(bins, confidence, NUM_BINS).astype(np.float64))


def _auroc(probabilities: Floats, label_ids: Ints) -> float | None:
    """Counts ordered pairs (Mann & Whitney), because `roc_auc_score` takes minutes for thousands of labels."""
    from scipy.stats import rankdata

    number, num_labels = probabilities.shape
    support = np.bincount(label_ids, minlength=num_labels)
    if num_labels < 2 or (support == 0).any():
        return None
    sums = np.array([rankdata(column)[label_ids == i].sum() for i, column in enumerate(probabilities.T)])
    areas = (sums - support * (support + 1) / 2) / (support * (number - support))
    return float(areas[1] if num_labels == 2 else areas.mean())


def _check(probabilities: Floats, label_ids: Ints, labels: Sequence[str]) -> None:
    assert probabilities.dtype == np.float64, probabilities.dtype
    assert probabilities.shape == (len(label_ids), len(labels)), (probabilities.shape, len(label_ids), len(labels))
    assert len(label_ids) > 0, "nothing to evaluate"
    assert len(set(labels)) == len(labels), labels
    assert (probabilities >= 0).all(), "a probability is negative or not a number"
    assert np.allclose(probabilities.sum(axis=1), 1.0, rtol=0, atol=1e-5), "rows of probabilities must sum to 1"
