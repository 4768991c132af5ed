"""Runs compared on the same texts: how much they differ, whether that may be chance, and where.

Shapes: N texts, C labels, R resamples.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.metrics import Floats, Ints, accuracy_interval, calibration_bins
from bilstm_cls.evaluation.pages import aligned, printable, render, shortened
from bilstm_cls.evaluation.predictions import Predictions, read_predictions
from bilstm_cls.files import write_atomic

NUM_RESAMPLES, CHUNK = 2000, 100
SIGNIFICANT = 0.05
TERMINAL_TEXT = 100


@dataclass(frozen=True)
class RunScores:
    """A run's predictions, the texts in an order that all share.

    Attributes:
        name: what the run is called, unlike the others.
        predicted: `[N]` label ids.
        probabilities: `[N]` of the predictions.
        losses: `[N]` in nats.
        scores: `accuracy`, `macro_f1`, `log_loss`, `ece`.
        interval: 95 % interval of the accuracy.
        f1: of each label.
    """

    name: str
    predicted: Ints
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
        only_first: texts that the first run alone predicts rightly.
        only_other: texts that the other one alone predicts rightly.
        p_value: McNemar's exact test, two-sided: how probable so uneven a share of those is where both err as often.
    """

    name: str
    scores: dict[str, Estimate]
    only_first: int
    only_other: int
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """At least two runs on the same N texts of C labels, and how all but the first differ from it.

    `disagreements` are the texts for which not all runs predict the same label, the greatest difference in loss first.
    """

    split: str
    labels: list[str]
    label_ids: Ints
    texts: list[str]
    places: list[str]
    runs: list[RunScores]
    differences: list[Difference]
    disagreements: Ints

    def as_object(self, limit: int) -> dict[str, Any]:
        """Returns what `report --json` prints, with at most `limit` disagreements."""
        first = self.runs[0].name
        runs = [
            {
                "run": run.name,
                **run.scores,
                "confidence_interval": run.interval,
                "f1": dict(zip(self.labels, run.f1, strict=True)),
            }
            for run in self.runs
        ]
        differences = []
        for found in self.differences:
            scores = {
                name: {"difference": score.value, "confidence_interval": [score.low, score.high]}
                for name, score in found.scores.items()
            }
            alone = {first: found.only_first, found.name: found.only_other}
            row = {"run": found.name, "against": first, **scores, "right_alone": alone, "mcnemar_p": found.p_value}
            differences.append(row)
        return {
            "split": self.split,
            "examples": len(self.label_ids),
            "runs": runs,
            "differences": differences,
            "num_disagreements": len(self.disagreements),
            "disagreements": [self._disagreement(i) for i in self.disagreements[:limit].tolist()],
        }

    def _disagreement(self, i: int) -> dict[str, Any]:
        answers = {
            run.name: {"label": self.labels[run.predicted[i]], "probability": float(run.probabilities[i])}
            for run in self.runs
        }
        return {
            "place": self.places[i],
            "label": self.labels[self.label_ids[i]],
            "answers": answers,
            "text": self.texts[i],
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """Compares runs by their `predictions_*.csv`; no model is loaded.

    Args:
        paths: at least two run directories, those of `bilstm-cls baseline` among them.

    Raises:
        CheckpointError: a run was not evaluated, or its predictions are damaged.
        ConfigError: a run is given twice, or they were not evaluated on the same texts.
    """
    assert len(paths) > 1
    names = _names(paths)
    found = [_in_common_order(read_predictions(path)) for path in paths]
    first = found[0]
    for path, other in zip(paths[1:], found[1:], strict=True):
        _check_same_texts(paths[0], first, path, other)
    labels = sorted({label for predictions in found for label in (*predictions.labels, *predictions.predictions)})
    number_of = {label: i for i, label in enumerate(labels)}
    label_ids = np.array([number_of[label] for label in first.labels])
    predicted = [np.array([number_of[label] for label in predictions.predictions]) for predictions in found]
    runs = [_scores_of_run(*row, label_ids, len(labels)) for row in zip(names, found, predicted, strict=True)]
    differences = [_difference(runs[0], other, label_ids, len(labels)) for other in runs[1:]]
    gaps = np.max([np.abs(run.losses - runs[0].losses) for run in runs[1:]], axis=0)
    differ = np.flatnonzero(np.any([run.predicted != runs[0].predicted for run in runs[1:]], axis=0))
    return Comparison(
        split=first.split,
        labels=labels,
        label_ids=label_ids,
        texts=first.texts,
        places=[f"{path}:{line}" for path, line in first.places],
        runs=runs,
        differences=differences,
        disagreements=differ[np.argsort(-gaps[differ], kind="stable")],
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
    """Sorts by text; where a text occurs twice with one label, a run predicts the same for both."""
    keys = list(zip(predictions.texts, predictions.labels, predictions.places, strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    lists = (predictions.texts, predictions.places, predictions.labels, predictions.predictions)
    columns: list[Any] = [[values[i] for i in order] for values in lists]
    columns += [predictions.probabilities[order], predictions.losses[order]]
    return Predictions(predictions.split, *columns)


def _check_same_texts(path: Path, one: Predictions, other_path: Path, other: Predictions) -> None:
    if one.texts != other.texts:
        shared = (Counter(one.texts) & Counter(other.texts)).total()
        raise ConfigError(
            f"{path} and {other_path} were not evaluated on the same texts: of {len(one):,} ({one.split}) and "
            f"{len(other):,} ({other.split}) they share {shared:,}; compare runs of the same data and split"
        )
    for label, another, place in zip(one.labels, other.labels, one.places, strict=True):
        if label != another:
            raise ConfigError(
                f"{path} and {other_path} have other labels for the same texts: the text at {place[0]}:{place[1]} is "
                f"{label!r} in one and {another!r} in the other; compare runs of the same data and split"
            )


def _scores_of_run(name: str, predictions: Predictions, predicted: Ints, label_ids: Ints, num_labels: int) -> RunScores:
    is_correct = predicted == label_ids
    counts = (np.bincount(ids, minlength=num_labels) for ids in (label_ids[is_correct], label_ids, predicted))
    f1 = _f1(*counts)
    return RunScores(
        name=name,
        predicted=predicted,
        probabilities=predictions.probabilities,
        losses=predictions.losses,
        scores={
            "accuracy": float(is_correct.mean()),
            "macro_f1": float(np.nanmean(f1)),
            "log_loss": float(predictions.losses.mean()),
            "ece": calibration_bins(predictions.probabilities, is_correct).error,
        },
        interval=accuracy_interval(float(is_correct.mean()), len(is_correct)),
        f1=np.nan_to_num(f1).tolist(),
    )


def _f1(right: Any, support: Any, predicted: Any) -> Floats:
    """Returns F1 of counts of any shape; NaN where a label has no text and no prediction."""
    total = support + predicted
    return np.asarray(np.where(total > 0, 2 * right / np.maximum(1, total), np.nan))


def _difference(first: RunScores, other: RunScores, label_ids: Ints, num_labels: int) -> Difference:
    """Resamples texts, each with both of its predictions: what both runs find hard then widens no interval.

    Accuracy and F1 depend only on how many texts have which label and predictions: a resample is one draw of those
    counts.
    """
    from scipy.sparse import csr_matrix
    from scipy.stats import binomtest

    generator = np.random.default_rng(0)
    number = len(label_ids)
    kinds, counts = np.unique(np.stack([label_ids, first.predicted, other.predicted]), axis=1, return_counts=True)
    label = kinds[0]

    def indicator(ids: Ints, is_counted: Any = True) -> Any:
        rows = (np.ones(len(ids), dtype=np.int64) * is_counted, (ids, np.arange(len(ids))))
        return csr_matrix(rows, shape=(num_labels, len(ids)))  # [C, kinds]

    has_label = indicator(label)

    def scores(counted: Ints, predicted: Ints) -> Floats:
        """Returns accuracy and macro F1 `[2, R]` of `[R, kinds]` counts."""
        right = indicator(label, label == predicted) @ counted.T  # [C, R]
        f1 = _f1(right, has_label @ counted.T, indicator(predicted) @ counted.T)
        return np.stack([right.sum(axis=0) / number, np.nanmean(f1, axis=0)])

    def gain(counted: Ints) -> Floats:
        return np.asarray(scores(counted, kinds[2]) - scores(counted, kinds[1]))

    draws = [gain(generator.multinomial(number, counts / number, size=CHUNK)) for _ in range(NUM_RESAMPLES // CHUNK)]
    accuracy, macro_f1 = (
        _estimate(value, resampled)
        for value, resampled in zip(gain(counts[np.newaxis])[:, 0], np.concatenate(draws, axis=1), strict=True)
    )
    gaps = other.losses - first.losses
    means = np.array([gaps[generator.integers(number, size=number)].mean() for _ in range(NUM_RESAMPLES)])
    is_right, is_right_too = first.predicted == label_ids, other.predicted == label_ids
    only_first, only_other = int((is_right & ~is_right_too).sum()), int((is_right_too & ~is_right).sum())
    discordant = only_first + only_other
    return Difference(
        name=other.name,
        scores={"accuracy": accuracy, "macro_f1": macro_f1, "log_loss": _estimate(gaps.mean(), means)},
        only_first=only_first,
        only_other=only_other,
        p_value=float(binomtest(only_other, discordant).pvalue) if discordant else 1.0,
    )


def _estimate(value: float, resampled: Floats) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def comparison_table(comparison: Comparison, limit: int) -> str:
    """Returns what `report` prints of several runs, with at most `limit` disagreements."""
    lines = [f"{comparison.split} split, {len(comparison.label_ids):,} texts", ""]
    lines += _lines(_score_rows(comparison))
    lines += ["", *_lines(_difference_rows(comparison)), ""]
    lines += [_verdict(comparison.runs[0].name, difference) for difference in comparison.differences]
    number = len(comparison.disagreements)
    lines.append(f"They predict {number:,} texts differently{_shown(number, limit)}")
    for row in comparison.as_object(limit)["disagreements"]:
        answers = (f"{name} {found['label']} {found['probability']:.3f}" for name, found in row["answers"].items())
        lines.append(f"  {row['place']}: label {row['label']}; {', '.join(answers)}")
        lines.append(f"    {printable(shortened(row['text'], TERMINAL_TEXT))}")
    return "\n".join(lines)


def write_comparison(path: Path, comparison: Comparison, limit: int) -> None:
    """Writes one HTML file that loads nothing, with at most `limit` disagreements."""
    counts = np.bincount(comparison.label_ids, minlength=len(comparison.labels)).tolist()
    first = comparison.runs[0]
    f1 = [
        [label, *(f"{run.f1[i]:.4f}" for run in comparison.runs), counts[i]]
        for i, label in enumerate(comparison.labels)
    ]
    page = render(
        "comparison.html",
        title=" and ".join(run.name for run in comparison.runs),
        comparison=comparison,
        accuracies=[(run.name, run.scores["accuracy"], run.interval, run is first) for run in comparison.runs],
        scores=_score_rows(comparison),
        differences=_difference_rows(comparison),
        verdicts=[_verdict(first.name, difference) for difference in comparison.differences],
        f1=(["label", *(run.name for run in comparison.runs), "texts"], f1),
        disagreements=comparison.as_object(limit)["disagreements"],
    )
    write_atomic(path, page)


def _score_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            run.name,
            f"{run.scores['accuracy']:.4f}",
            "{:.4f} to {:.4f}".format(*run.interval),
            *(f"{run.scores[name]:.4f}" for name in ("macro_f1", "log_loss", "ece")),
        ]
        for run in comparison.runs
    ]
    return ["run", "accuracy", "95 % interval", "macro F1", "log loss", "ECE"], rows


def _difference_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            found.name,
            *(_signed(found.scores[name]) for name in ("accuracy", "macro_f1", "log_loss")),
            f"{found.only_first:,} : {found.only_other:,}",
            f"{found.p_value:.3g}",
        ]
        for found in comparison.differences
    ]
    head = [f"minus {comparison.runs[0].name}", "accuracy", "macro F1", "log loss", "right alone", "McNemar's p"]
    return head, rows


def _signed(score: Estimate) -> str:
    return f"{score.value:+.4f} ({score.low:+.4f} to {score.high:+.4f})"


def _verdict(first: str, found: Difference) -> str:
    better = found.name if found.only_other > found.only_first else first
    alone = f"{first} alone is right on {found.only_first:,} texts, {found.name} alone on {found.only_other:,}"
    if found.p_value < SIGNIFICANT:
        return f"{alone}: {better} is better, and chance rarely does that (p = {found.p_value:.3g})."
    return f"{alone}: the difference may well be chance (p = {found.p_value:.3g})."


def _shown(number: int, limit: int) -> str:
    if number == 0 or limit == 0:
        return "."
    return f"; the {limit:,} that differ most in loss:" if number > limit else ", by their difference in loss:"


def _lines(table: tuple[list[str], list[list[str]]]) -> list[str]:
    head, rows = table
    return aligned([head, *rows])
