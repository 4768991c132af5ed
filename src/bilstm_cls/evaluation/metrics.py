"""Scores of predicted probabilities against labels, in time and memory that grow linearly with the labels.

Shapes: N texts, C labels.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bilstm_cls.config import METRICS, MULTI_METRICS
from bilstm_cls.data.types import LabelIds
from bilstm_cls.ngrams import Bools, Floats, Ints
from bilstm_cls.runtime import Task

NUM_BINS = 15
MAX_MATRIX, MAX_CONFUSIONS = 200, 50
"""Labels up to which the whole confusion matrix is kept, and the most frequent confusions, which always are."""

DEVIATIONS = 1.959964
"""Of a normal distribution, on both sides of the mean: 95 % lie between them."""

SCORE_NAMES = {
    "accuracy": "accuracy", "micro_f1": "micro F1", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
    "samples_f1": "samples F1", "hamming_loss": "Hamming loss", "lrap": "LRAP", "auroc": "AUROC",
    "average_precision": "average precision", "log_loss": "log loss", "ece": "ECE",
}  # fmt: skip
"""What a reader calls the scores where a text has one label."""

_SMALLEST = float(np.finfo(np.float64).eps)


class ClassMetrics(NamedTuple):
    """Scores of one label; `average_precision` is None where a text has one label, or no text has this one."""

    precision: float
    recall: float
    f1: float
    support: int
    false_positives: int
    false_negatives: int
    average_precision: float | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Scores of a model on N texts of one split.

    Attributes:
        accuracy: fraction of texts whose label is right; where texts have several, whose labels are all right.
        macro_f1: mean F1 over the labels that occur among the true or the predicted ones; `micro_f1` over all
            decisions, `weighted_f1` with each label weighted by its texts.
        auroc: area under the ROC curve of the second of two labels, or the mean of one-vs-rest over more; None where
            a label has no text (where texts have several labels, the mean over those that have).
        log_loss: mean negative log-likelihood in nats (where texts have several labels, of whether a text has a label);
            probabilities count as at least 2.2e-16 (float64's epsilon).
        ece: expected calibration error over 15 equal bins of the top probability (Guo et al. 2017), or where texts have
            several labels of all probabilities.
        confidence_interval: 95 % Wilson interval of the accuracy.
        majority: accuracy of always predicting the train split's most frequent label; None where it was not given.
        confusions: the most frequent ones: label, predicted label, texts.
        confusion_matrix: `[C][C]` counts, rows true, columns predicted.
        samples_f1: where texts have several labels, and None elsewhere like all that follows: mean F1 over texts; 1 for
            a text without labels for which none is predicted. `hamming_loss`: fraction of wrong decisions. `lrap`:
            label ranking average precision. `average_precision`: mean over the labels that have a text.
        f1_interval: 95 % interval of the micro F1.
    """

    examples: int
    accuracy: float
    macro_f1: float
    micro_f1: float
    weighted_f1: float
    auroc: float | None
    log_loss: float
    ece: float
    confidence_interval: tuple[float, float]
    per_class: dict[str, ClassMetrics]
    majority: float | None = None
    confusions: Sequence[tuple[str, str, int]] = ()
    confusion_matrix: list[list[int]] | None = None
    samples_f1: float | None = None
    hamming_loss: float | None = None
    lrap: float | None = None
    average_precision: float | None = None
    f1_interval: tuple[float, float] | None = None

    @property
    def scores(self) -> dict[str, float | None]:
        """All scores by name."""
        names = METRICS if self.f1_interval is None else (*METRICS, *MULTI_METRICS)
        return {name: getattr(self, name) for name in names}

    @property
    def main(self) -> str:
        """The name of the score that says most in one number."""
        return "accuracy" if self.f1_interval is None else "micro_f1"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the main score."""
        return self.f1_interval or self.confidence_interval

    def scalars(self, prefix: str) -> dict[str, float | None]:
        """Returns the scores as `prefix/accuracy` and so on: a row of the history."""
        return {f"{prefix}/{name}": value for name, value in self.scores.items()}

    def as_object(self, split: str) -> dict[str, Any]:
        """Returns what `eval --json` prints."""
        rows = {label: row._asdict() for label, row in self.per_class.items()}
        intervals = {} if self.f1_interval is None else {"intervals": {"micro_f1": list(self.f1_interval)}}
        return {
            "split": split, "examples": self.examples, **self.scores, "loss": self.log_loss,
            "confidence_interval": list(self.confidence_interval), **intervals,
            "per_class": {label: {key: value for key, value in row.items() if value is not None}
                          for label, row in rows.items()},
        }  # fmt: skip

    def flat(self, prefix: str) -> dict[str, Any]:
        """Returns everything under keys such as `test/accuracy` and `test/per_class/pos/f1`, ready for JSON."""
        row = {"majority": self.majority, "confusions": list(map(list, self.confusions))} | self.as_object(prefix)
        row |= {} if self.confusion_matrix is None else {"confusion_matrix": self.confusion_matrix}
        del row["split"], row["loss"]
        row |= {f"intervals/{name}": interval for name, interval in row.pop("intervals", {}).items()}
        for label, scores in row.pop("per_class").items():
            row |= {f"per_class/{label}/{name}": value for name, value in scores.items()}
        return {f"{prefix}/{name}": value for name, value in row.items()}


def compute_metrics(
    probabilities: Floats,
    label_ids: LabelIds,
    labels: Sequence[str],
    *,
    majority_label_id: int | None = None,
    task: Task = Task(),  # noqa: B008 - frozen
) -> Metrics:
    """Evaluates probabilities. Where two labels are equally probable, the first of them is the prediction.

    Args:
        probabilities: `[N, C]`, finite, where a text has one label with rows summing to 1; N at least 1.
        label_ids: of N texts.
        labels: C distinct class names.
        majority_label_id: the most frequent label of the train split.
        task: one label a text, or several.
    """
    from sklearn.metrics import multilabel_confusion_matrix

    assert probabilities.shape == (len(label_ids), len(labels)), (probabilities.shape, len(label_ids), len(labels))
    predicted, number = task.predicted(probabilities), len(label_ids)
    cells = multilabel_confusion_matrix(label_ids, predicted, labels=range(len(labels)))  # [C, 2, 2]
    hits, wrongly, missed = cells[:, 1, 1], cells[:, 0, 1], cells[:, 1, 0]
    support, total = hits + missed, 2 * hits + wrongly + missed
    f1 = 2 * hits / total.clip(1)
    columns = [column.tolist() for column in (hits / (hits + wrongly).clip(1), hits / support.clip(1), f1,
                                              support, wrongly, missed)]  # fmt: skip
    accuracy = float(is_right(predicted, label_ids).mean())
    if task.thresholds is None:
        majority = None if majority_label_id is None else int(support[majority_label_id]) / number
        more = {"majority": majority, **_confusions(label_ids, predicted, labels)}
    else:
        precisions, more = _of_several(probabilities, label_ids, predicted)
        columns.append(precisions)
    return Metrics(
        examples=number,
        accuracy=accuracy,
        macro_f1=float(f1.sum() / max(1, np.count_nonzero(total))),
        micro_f1=float(2 * hits.sum() / max(1, total.sum())),
        weighted_f1=float(f1 @ support / max(1, support.sum())),
        auroc=_auroc(probabilities, label_ids),
        log_loss=float(example_losses(probabilities, label_ids).mean()),
        ece=calibration_error(*confidences(probabilities, label_ids)),
        confidence_interval=accuracy_interval(accuracy, number),
        per_class={label: ClassMetrics(*row) for label, *row in zip(labels, *columns, strict=True)},
        **more,
    )


def _of_several(
    probabilities: Floats, has_label: LabelIds, predicted: LabelIds
) -> tuple[list[float | None], dict[str, Any]]:
    """Returns the average precision of each label, and what `Metrics` has where texts have several labels."""
    from sklearn import metrics

    precisions = [
        float(metrics.average_precision_score(column, of_label)) if column.any() else None
        for column, of_label in zip(has_label.T, probabilities.T, strict=True)
    ]
    known = [precision for precision in precisions if precision is not None]
    return precisions, {
        "samples_f1": float(metrics.f1_score(has_label, predicted, average="samples", zero_division=1)),
        "hamming_loss": float(metrics.hamming_loss(has_label, predicted)),
        "lrap": float(metrics.label_ranking_average_precision_score(has_label, probabilities)),
        "average_precision": float(np.mean(known)) if known else None,
        "f1_interval": _f1_interval(has_label, predicted),
    }


def _f1_interval(has_label: LabelIds, predicted: LabelIds) -> tuple[float, float]:
    """Returns the 95 % interval of the micro F1, a quotient of two means over texts, by the delta method.

    Where it has no width, because of few texts all are right, it is Wilson's interval.
    """
    hits, totals = 2.0 * (has_label & predicted).sum(1), has_label.sum(1) + 1.0 * predicted.sum(1)
    mean, number = max(float(totals.mean()), _SMALLEST), len(totals)
    f1 = float(hits.mean()) / mean
    width = DEVIATIONS * float((hits - f1 * totals).std()) / mean / np.sqrt(number)
    return (max(0.0, f1 - width), min(1.0, f1 + width)) if width > 1e-9 else accuracy_interval(f1, number)


def _confusions(label_ids: Ints, predicted: Ints, labels: Sequence[str]) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix

    is_wrong, number = label_ids != predicted, len(labels)
    pairs = Counter(zip(label_ids[is_wrong].tolist(), predicted[is_wrong].tolist(), strict=True))
    found = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_CONFUSIONS]
    matrix = None if number > MAX_MATRIX else confusion_matrix(label_ids, predicted, labels=range(number)).tolist()
    return {"confusions": [(labels[i], labels[j], count) for (i, j), count in found], "confusion_matrix": matrix}


def _auroc(probabilities: Floats, label_ids: LabelIds) -> float | None:
    """Counts ordered pairs (Mann & Whitney): `roc_auc_score` is ten times slower, which many labels would feel."""
    from scipy.stats import rankdata

    (number, num_labels), several = probabilities.shape, label_ids.ndim == 2
    areas = []
    for i in range(1 if num_labels == 2 and not several else 0, num_labels):
        has_label = label_ids[:, i] > 0 if several else label_ids == i
        if 0 < (support := np.count_nonzero(has_label)) < number:
            pairs = rankdata(probabilities[:, i])[has_label].sum() - support * (support + 1) / 2
            areas.append(pairs / (support * (number - support)))
        elif not several:
            return None
    return float(np.mean(areas)) if areas else None


def scored_split(metrics: Mapping[str, Any]) -> str:
    """Returns the split whose scores a `metrics.json` has."""
    return "test" if "test/accuracy" in metrics else "valid"


def main_score(metrics: Mapping[str, Any]) -> str:
    """Returns the name of the score of a `metrics.json` that says most in one number."""
    return "micro_f1" if f"{scored_split(metrics)}/lrap" in metrics else "accuracy"


def score_names(main: str, names: Iterable[str]) -> dict[str, str]:
    """Returns what a reader calls these scores, the main one first, and without twins of it."""
    words = SCORE_NAMES if main == "accuracy" else SCORE_NAMES | {"accuracy": "subset accuracy"}
    twin = "micro_f1" if main == "accuracy" else None
    return {name: words[name] for name in dict.fromkeys((main, *names)) if name != twin}


def is_right(predicted: LabelIds, label_ids: LabelIds) -> Bools:
    """Returns `[N]`, whether the label, or all labels, of a text are right."""
    return np.asarray((predicted == label_ids).reshape(len(predicted), -1).all(axis=1))


def likelihoods(probabilities: Floats, label_ids: LabelIds) -> Floats:
    """Returns the probability of the label of each text, `[N]`, or of each label or its lack, `[N, C]`."""
    if label_ids.ndim == 2:
        return np.where(label_ids > 0, probabilities, 1 - probabilities)
    return np.asarray(probabilities[np.arange(len(label_ids)), label_ids])


def example_losses(probabilities: Floats, label_ids: LabelIds) -> Floats:
    """Returns `[N]` negative log-likelihoods in nats, between 0 and 36.05; with several labels the mean over these."""
    losses = np.abs(np.log(np.clip(likelihoods(probabilities, label_ids), _SMALLEST, 1.0)))  # abs: -log(1) is -0.0
    return np.asarray(losses.reshape(len(losses), -1).mean(axis=1))


def confidences(probabilities: Floats, label_ids: LabelIds) -> tuple[Floats, Bools]:
    """Returns probabilities and whether what they are of is true: predictions `[N]`, or all labels of all texts."""
    if label_ids.ndim == 2:
        return probabilities.ravel(), label_ids.ravel() > 0
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == label_ids


def accuracy_interval(accuracy: float, number: int) -> tuple[float, float]:
    """Returns the 95 % interval of the accuracy on so many texts, by Wilson (1927)."""
    from scipy.stats import binomtest

    low, high = binomtest(round(accuracy * number), number).proportion_ci(method="wilson")
    return float(low), float(high)


def calibration_bins(confidence: Floats, is_correct: Bools) -> tuple[Ints, Ints, Floats]:
    """Returns texts, right predictions and sums of top probabilities `[N]`, by 15 bins of the top probability."""
    bins = np.digitize(confidence, np.arange(1, NUM_BINS) / NUM_BINS, right=True)  # (0, 1/15], (1/15, 2/15], ...
    counts, num_correct = (np.bincount(found, minlength=NUM_BINS) for found in (bins, bins[is_correct]))
    return counts, num_correct, np.bincount(bins, confidence, NUM_BINS).astype(np.float64)


def calibration_error(confidence: Floats, is_correct: Bools) -> float:
    """Returns the expected calibration error: mean distance of accuracy and confidence, weighted by texts."""
    counts, num_correct, sums = calibration_bins(confidence, is_correct)
    return float(np.abs(num_correct - sums).sum()) / int(counts.sum())


def confident_disagreements(probabilities: Floats, label_ids: LabelIds) -> Ints:
    """Returns the texts whose label is likely wrong, the likeliest first.

    As in confident learning (Northcutt, Jiang & Chuang 2021), a prediction disagrees confidently with a label where it
    is at least as probable as it is, on average, for the texts that have it as their label. Of texts with several
    labels this is asked of each label, or its lack, by itself. The texts must not be those the model learned from.
    """
    if label_ids.ndim == 2:
        of_label, lowest = likelihoods(probabilities, label_ids), np.ones(len(label_ids))
        for i, has_label in enumerate(label_ids.T.astype(np.int64)):
            found = confident_disagreements(np.stack([1 - probabilities[:, i], probabilities[:, i]], 1), has_label)
            lowest[found] = np.minimum(lowest[found], of_label[found, i])
        found = np.flatnonzero(lowest < 1)
        return found[np.argsort(lowest[found], kind="stable")]
    of_label, num_labels = likelihoods(probabilities, label_ids), probabilities.shape[1]
    support, sums = np.bincount(label_ids, None, num_labels), np.bincount(label_ids, of_label, num_labels)
    thresholds = np.where(support > 0, sums / support.clip(1), np.inf)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    found = np.flatnonzero((predicted != label_ids) & (confidence >= thresholds[predicted]))
    return found[np.argsort(of_label[found] - confidence[found], kind="stable")]
