"""Scores of predicted probabilities against labels, in time and memory that grow linearly with the labels.

Shapes: N texts, C labels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bilstm_cls.config import METRICS, MULTI_METRICS
from bilstm_cls.data.types import LabelIds, label_counts
from bilstm_cls.runtime import Task

NUM_RESAMPLES = 300
NUM_BINS = 15
MAX_MATRIX = 200
"""Labels up to which the whole confusion matrix is kept; of more, the most frequent confusions alone."""

MAX_CONFUSIONS = 50
SCORE_NAMES = {
    "accuracy": "accuracy", "micro_f1": "micro F1", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
    "samples_f1": "samples F1", "hamming_loss": "Hamming loss", "lrap": "LRAP", "auroc": "AUROC",
    "average_precision": "average precision", "log_loss": "log loss", "ece": "ECE",
}  # fmt: skip
"""What a reader calls the scores where a text has one label; the accuracy of several is `SUBSET_ACCURACY`."""

SUBSET_ACCURACY = "subset accuracy"
_SMALLEST = float(np.finfo(np.float64).eps)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class ClassMetrics(NamedTuple):
    """Scores of one label.

    Attributes:
        support: texts that have it.
        false_positives: texts that do not have it, but are predicted to.
        false_negatives: texts that have it, but are not predicted to.
        average_precision: None where a text has one label, or no text has this one.
    """

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
        macro_f1: mean F1 over the labels that occur among the true or the predicted ones.
        micro_f1: F1 over all decisions; with one label a text it equals accuracy.
        weighted_f1: mean F1, each label weighted by its texts.
        auroc: area under the ROC curve of the second of two labels, or the mean of one-vs-rest over more; None where
            a label has no text (where texts have several labels, the mean over those that have).
        log_loss: mean negative log-likelihood in nats (where texts have several labels, of whether a text has a label);
            probabilities count as at least 2.2e-16 (float64's epsilon).
        ece: expected calibration error over 15 equal bins of the top probability (Guo et al. 2017), or where texts have
            several labels of all probabilities.
        majority: accuracy of always predicting the train split's most frequent label; None where it was not given.
        confidence_interval: 95 % Wilson interval of the accuracy.
        per_class: scores by label, in the order of the labels.
        confusions: the most frequent ones, at most 50: label, predicted label, texts.
        confusion_matrix: `[C][C]` counts, rows true, columns predicted; None for more than 200 labels.
        samples_f1: where texts have several labels, and None elsewhere like all that follows: mean F1 over texts; of a
            text without labels, for which none is predicted, it is 1.
        hamming_loss: fraction of wrong decisions.
        lrap: label ranking average precision.
        average_precision: mean over the labels that have a text.
        intervals: 95 % bootstrap intervals of the scores that count decisions.
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
    intervals: dict[str, tuple[float, float]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all scores."""
        return METRICS if self.lrap is None else (*METRICS, *MULTI_METRICS)

    @property
    def main(self) -> str:
        """The name of the score that says most in one number."""
        return "accuracy" if self.lrap is None else "micro_f1"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the main score."""
        return self.confidence_interval if self.intervals is None else self.intervals[self.main]

    def scalars(self, prefix: str) -> dict[str, float | None]:
        """Returns the scores as `prefix/accuracy` and so on: a row of the history."""
        return {f"{prefix}/{name}": getattr(self, name) for name in self.names}

    def by_label(self) -> dict[str, dict[str, Any]]:
        """Returns the scores of each label by name."""
        rows = {label: row._asdict().items() for label, row in self.per_class.items()}
        return {label: {name: value for name, value in row if value is not None} for label, row in rows.items()}

    def flat(self, prefix: str) -> dict[str, Any]:
        """Returns everything under keys such as `test/accuracy` and `test/per_class/pos/f1`, ready for JSON."""
        row: dict[str, Any] = {f"{prefix}/examples": self.examples, **self.scalars(prefix)}
        row[f"{prefix}/majority"] = self.majority
        row[f"{prefix}/confidence_interval"] = list(self.confidence_interval)
        row |= {f"{prefix}/intervals/{name}": list(found) for name, found in (self.intervals or {}).items()}
        for label, scores in self.by_label().items():
            row |= {f"{prefix}/per_class/{label}/{name}": value for name, value in scores.items()}
        row[f"{prefix}/confusions"] = [list(found) for found in self.confusions]
        return row if self.confusion_matrix is None else row | {f"{prefix}/confusion_matrix": self.confusion_matrix}

    def as_object(self, split: str) -> dict[str, Any]:
        """Returns what `eval --json` prints."""
        return {
            "split": split, "examples": self.examples, "accuracy": self.accuracy, "macro_f1": self.macro_f1,
            "loss": self.log_loss, "ece": self.ece, "confidence_interval": list(self.confidence_interval),
            **({name: getattr(self, name) for name in self.names} if self.intervals else {}),
            **({"intervals": self.intervals} if self.intervals else {}), "per_class": self.by_label(),
        }  # fmt: skip


def compute_metrics(
    probabilities: Floats,
    label_ids: LabelIds,
    labels: Sequence[str],
    *,
    majority_label_id: int | None = None,
    task: Task = Task(),  # noqa: B008 - frozen
    with_intervals: bool = False,
) -> Metrics:
    """Evaluates probabilities. Where two labels are equally probable, the first of them is the prediction.

    Args:
        probabilities: `[N, C]`, finite, where a text has one label with rows summing to 1; N at least 1.
        label_ids: of N texts.
        labels: C distinct class names.
        majority_label_id: the most frequent label of the train split.
        task: what is predicted, one label or several.
        with_intervals: where texts have several labels, whether to compute `intervals`.
    """
    _check(probabilities, label_ids, labels)
    predicted, several = task.predicted(probabilities), task.thresholds is not None
    decisions, number = Decisions.of(label_ids, predicted, len(labels)), len(label_ids)
    counts, accuracy = decisions.counts(), float(decisions.is_right().mean())
    hits, support, num_predicted = counts.astype(np.int64)
    scores = hits / num_predicted.clip(1), hits / support.clip(1), 2 * hits / (support + num_predicted).clip(1)
    columns = [column.tolist() for column in (*scores, support, num_predicted - hits, support - hits)]
    if several:
        precisions, special = _of_several(probabilities, label_ids, decisions, with_intervals=with_intervals)
        columns.append(precisions)
    else:
        majority = None if majority_label_id is None else int(support[majority_label_id]) / number
        special = {"majority": majority, **_confusions(label_ids, predicted, labels)}
    special |= f1_scores(counts)
    return Metrics(
        examples=number,
        accuracy=accuracy,
        auroc=_auroc(probabilities, label_ids),
        log_loss=float(example_losses(probabilities, label_ids).mean()),
        ece=calibration_bins(*confidences(probabilities, label_ids)).error,
        confidence_interval=accuracy_interval(accuracy, number),
        per_class={label: ClassMetrics(*row) for label, *row in zip(labels, *columns, strict=True)},
        **special,
    )


@dataclass(frozen=True, slots=True)
class Decisions:
    """Sparse matrices `[N, C]` of 1: the labels that texts have, those that are predicted, and what both share."""

    true: Any
    predicted: Any
    hits: Any

    @classmethod
    def of(cls, label_ids: LabelIds, predicted: LabelIds, num_labels: int) -> "Decisions":
        """Returns the decisions of label ids, true ones and predicted ones."""
        true, said = (indicator(ids, num_labels) for ids in (label_ids, predicted))
        return cls(true, said, true.multiply(said).tocsr())

    def counts(self, weights: Floats | None = None) -> Floats:
        """Returns for each label the hits, true and predicted texts, `[3, C]`, of texts of weights `[N]`, or 1."""
        weights = np.ones(self.true.shape[0]) if weights is None else weights
        return np.stack([weights @ matrix for matrix in (self.hits, self.true, self.predicted)])

    def is_right(self) -> Bools:
        """Returns `[N]`, whether the label, or all labels, of a text are right."""
        return np.asarray(abs(self.true - self.predicted).sum(axis=1) == 0)

    def of_texts(self) -> tuple[Floats, Floats]:
        """Returns the F1 of each text, 1 without any label, and the fraction of its decisions that is wrong, `[N]`."""
        hits, *both = (matrix.sum(axis=1) for matrix in (self.hits, self.true, self.predicted))
        total = sum(both)
        return np.where(total > 0, 2 * hits / total.clip(1), 1.0), (total - 2 * hits) / self.true.shape[1]


def indicator(label_ids: LabelIds, num_labels: int) -> Any:
    """Returns the labels of N texts as a sparse matrix `[N, C]` of 1."""
    from scipy.sparse import csr_array

    if label_ids.ndim == 2:
        return csr_array(label_ids, dtype=np.float64)
    number = len(label_ids)
    return csr_array((np.ones(number), label_ids, np.arange(number + 1)), shape=(number, num_labels))


def f1_scores(counts: Floats) -> dict[str, float]:
    """Returns micro, macro and weighted F1 from `Decisions.counts`; a label without any text is left out."""
    hits, true, predicted = counts
    total = true + predicted
    f1 = 2 * hits / np.where(total > 0, total, 1)
    return {
        "micro_f1": float(2 * hits.sum() / max(total.sum(), _SMALLEST)),
        "macro_f1": float(f1.sum() / max(1, np.count_nonzero(total))),
        "weighted_f1": float(f1 @ true / max(true.sum(), _SMALLEST)),
    }


def resamples(number: int, times: int) -> Iterator[Floats]:
    """Yields for each sample of the bootstrap the weights of the texts, `[number]`, which sum to 1."""
    generator = np.random.default_rng(0)
    for _ in range(times):
        yield np.bincount(generator.integers(number, size=number), minlength=number) / number


def scored_split(metrics: Mapping[str, Any]) -> str:
    """Returns the split whose scores a `metrics.json` has."""
    return "test" if "test/accuracy" in metrics else "valid"


def main_score(metrics: Mapping[str, Any]) -> str:
    """Returns the name of the score of a `metrics.json` that says most in one number."""
    return "micro_f1" if f"{scored_split(metrics)}/lrap" in metrics else "accuracy"


def score_names(main: str, names: Iterable[str]) -> dict[str, str]:
    """Returns what a reader calls these scores, the main one first, and without twins of it."""
    words = SCORE_NAMES if main == "accuracy" else SCORE_NAMES | {"accuracy": SUBSET_ACCURACY}
    twin = "micro_f1" if main == "accuracy" else None
    return {name: words[name] for name in dict.fromkeys((main, *names)) if name != twin}


def _of_several(
    probabilities: Floats, has_label: LabelIds, decisions: Decisions, *, with_intervals: bool
) -> tuple[list[float | None], dict[str, Any]]:
    """Returns the average precision of each label, and what `Metrics` has where texts have several labels."""
    from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

    precisions = [
        float(average_precision_score(column, of_label)) if column.any() else None
        for column, of_label in zip(has_label.T, probabilities.T, strict=True)
    ]
    known, (samples, wrong) = [precision for precision in precisions if precision is not None], decisions.of_texts()
    return precisions, {
        "samples_f1": float(samples.mean()),
        "hamming_loss": float(wrong.mean()),
        "lrap": float(label_ranking_average_precision_score(has_label, probabilities)),
        "average_precision": float(np.mean(known)) if known else None,
        "intervals": _intervals(decisions) if with_intervals else None,
    }


def _intervals(decisions: Decisions) -> dict[str, tuple[float, float]]:
    """Returns the 95 % intervals of scores that are functions of counts, by resampling the texts.

    Where all resamples are alike, because of few texts all are right, it is Wilson's interval.
    """
    samples, wrong = decisions.of_texts()
    found = [
        {**f1_scores(decisions.counts(weights)), "samples_f1": weights @ samples, "hamming_loss": weights @ wrong}
        for weights in resamples(len(samples), NUM_RESAMPLES)
    ]
    ends = np.quantile([list(row.values()) for row in found], [0.025, 0.975], axis=0).T.tolist()
    return {
        name: (low, high) if high - low > 1e-9 else accuracy_interval(low, len(samples))
        for name, (low, high) in zip(found[0], ends, strict=True)
    }


def is_right(predicted: LabelIds, label_ids: LabelIds) -> Bools:
    """Returns `[N]`, whether the label, or all labels, of a text are right."""
    is_equal = predicted == label_ids
    return np.asarray(is_equal.all(axis=-1) if label_ids.ndim == 2 else is_equal)


def likelihoods(probabilities: Floats, label_ids: LabelIds) -> Floats:
    """Returns the probability of the label of each text, `[N]`, or of each label or its lack, `[N, C]`."""
    if label_ids.ndim == 2:
        return np.where(label_ids > 0, probabilities, 1 - probabilities)
    return np.asarray(probabilities[np.arange(len(label_ids)), label_ids])


def example_losses(probabilities: Floats, label_ids: LabelIds) -> Floats:
    """Returns `[N]` negative log-likelihoods in nats, between 0 and 36.05; with several labels the mean over these."""
    losses = np.abs(np.log(np.clip(likelihoods(probabilities, label_ids), _SMALLEST, 1.0)))  # abs: -log(1) is -0.0
    return np.asarray(losses.mean(axis=1) if losses.ndim == 2 else losses)


def confidences(probabilities: Floats, label_ids: LabelIds) -> tuple[Floats, Bools]:
    """Returns probabilities and whether what they are of is true: predictions `[N]`, or all labels of all texts."""
    if label_ids.ndim == 2:
        return probabilities.ravel(), label_ids.ravel() > 0
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == label_ids


def _confusions(label_ids: Ints, predicted: Ints, labels: Sequence[str]) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix

    is_wrong, number = label_ids != predicted, len(labels)
    cells, counts = np.unique(label_ids[is_wrong] * number + predicted[is_wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CONFUSIONS].tolist()
    matrix = None if number > MAX_MATRIX else confusion_matrix(label_ids, predicted, labels=range(number)).tolist()
    found = [(labels[cells[i] // number], labels[cells[i] % number], int(counts[i])) for i in order]
    return {"confusions": found, "confusion_matrix": matrix}


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


def _auroc(probabilities: Floats, label_ids: LabelIds) -> float | None:
    """Counts ordered pairs (Mann & Whitney), because `roc_auc_score` takes minutes for thousands of labels."""
    from scipy.stats import rankdata

    (number, num_labels), several = probabilities.shape, label_ids.ndim == 2
    support = label_counts(label_ids, num_labels)
    is_defined = (support > 0) & (support < number)
    if num_labels < 2 or not (is_defined.any() if several else is_defined.all()):
        return None
    ranks = (rankdata(column) for column in probabilities.T)
    sums = np.array([of[label_ids[:, i] > 0 if several else label_ids == i].sum() for i, of in enumerate(ranks)])
    areas = (sums - support * (support + 1) / 2)[is_defined] / (support * (number - support))[is_defined]
    return float(areas[1] if num_labels == 2 and not several else areas.mean())


def _check(probabilities: Floats, label_ids: LabelIds, labels: Sequence[str]) -> None:
    assert len(label_ids) > 0, "nothing to evaluate"
    assert len(set(labels)) == len(labels), labels
    assert probabilities.shape == (len(label_ids), len(labels)), (probabilities.shape, len(label_ids), len(labels))
    assert (probabilities >= 0).all(), "a probability is negative or not a number"
    is_sum_right = label_ids.ndim == 2 or np.allclose(probabilities.sum(axis=1), 1.0, rtol=0, atol=1e-5)
    assert is_sum_right, "rows of probabilities must sum to 1"
