"""Runs compared on the same texts: how much they differ, whether that may be chance, and where.

Shapes: N texts, C labels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.metrics import Floats, Ints, accuracy_interval, calibration_bins
from bilstm_cls.evaluation.pages import aligned, printable, render, shortened
from bilstm_cls.evaluation.predictions import Predictions, read_predictions
from bilstm_cls.files import write_atomic

NUM_RESAMPLES = 1000
SIGNIFICANT = 0.05
TERMINAL_TEXT = 100

Table = tuple[list[str], list[list[str]]]


class RunScores(NamedTuple):
    """A run's predictions of all N texts in a common order, its scores, and F1 of each label.

    `probabilities` are those of the predictions, `losses` are in nats; `scores` are `accuracy`, `macro_f1`, `log_loss`
    and `ece`, and `interval` is the 95 % interval of the accuracy.
    """

    name: str
    predicted: Ints
    probabilities: Floats
    losses: Floats
    scores: dict[str, float]
    interval: tuple[float, float]
    f1: list[float]


class Estimate(NamedTuple):
    """A difference, and its 95 % interval by the paired bootstrap."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How another run differs from the first in `accuracy`, `macro_f1` and `log_loss`.

    `only_first` and `only_other` count the texts that one run alone predicts rightly. `p_value` is McNemar's exact
    test, two-sided: how probable so uneven a share of those is where both err as often.
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
            {"run": run.name, **run.scores, "confidence_interval": run.interval,
             "f1": dict(zip(self.labels, run.f1, strict=True))}
            for run in self.runs
        ]  # fmt: skip
        differences = [
            {"run": found.name, "against": first,
             **{key: {"difference": score.value, "confidence_interval": score[1:]}
                for key, score in found.scores.items()},
             "right_alone": {first: found.only_first, found.name: found.only_other}, "mcnemar_p": found.p_value}
            for found in self.differences
        ]  # fmt: skip
        disagreements = [
            {"place": self.places[i], "label": self.labels[self.label_ids[i]],
             "answers": {run.name: {"label": self.labels[run.predicted[i]], "probability": float(run.probabilities[i])}
                         for run in self.runs},
             "text": self.texts[i]}
            for i in self.disagreements[:limit].tolist()
        ]  # fmt: skip
        return {
            "split": self.split, "examples": len(self.label_ids), "runs": runs, "differences": differences,
            "num_disagreements": len(self.disagreements), "disagreements": disagreements,
        }  # fmt: skip

    def score_table(self) -> Table:
        """Returns head and rows: the scores of each run."""
        rows = [
            [run.name, f"{run.scores['accuracy']:.4f}", "{:.4f} to {:.4f}".format(*run.interval),
             *(f"{run.scores[key]:.4f}" for key in ("macro_f1", "log_loss", "ece"))]
            for run in self.runs
        ]  # fmt: skip
        return ["run", "accuracy", "95 % interval", "macro F1", "log loss", "ECE"], rows

    def difference_table(self) -> Table:
        """Returns head and rows: how the other runs differ from the first."""
        rows = [
            [found.name, *("{:+.4f} ({:+.4f} to {:+.4f})".format(*score) for score in found.scores.values()),
             f"{found.only_first:,} : {found.only_other:,}", f"{found.p_value:.3g}"]
            for found in self.differences
        ]  # fmt: skip
        first = self.runs[0].name
        return [f"minus {first}", "accuracy", "macro F1", "log loss", "right alone", "McNemar's p"], rows

    def verdicts(self) -> list[str]:
        """Returns for each difference a sentence that says whether it may be chance."""
        first, sentences = self.runs[0].name, []
        for found in self.differences:
            better = found.name if found.only_other > found.only_first else first
            verdict = f"{better} is better, and chance rarely does that"
            if found.p_value >= SIGNIFICANT:
                verdict = "the difference may well be chance"
            sentences.append(
                f"{first} alone is right on {found.only_first:,} texts, {found.name} alone on {found.only_other:,}: "
                f"{verdict} (p = {found.p_value:.3g})."
            )
        return sentences


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
    gaps = np.max([np.abs(run.losses - runs[0].losses) for run in runs[1:]], axis=0)
    differ = np.flatnonzero(np.any([run.predicted != runs[0].predicted for run in runs[1:]], axis=0))
    return Comparison(
        split=first.split,
        labels=labels,
        label_ids=label_ids,
        texts=first.texts,
        places=[f"{path}:{line}" for path, line in first.places],
        runs=runs,
        differences=[_difference(runs[0], other, label_ids, len(labels)) for other in runs[1:]],
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


def _in_common_order(found: Predictions) -> Predictions:
    """Sorts by text; where a text occurs twice with one label, a run predicts the same for both."""
    rows = zip(found.texts, found.labels, found.places, found.predictions, range(len(found)), strict=True)
    texts, labels, places, predictions, order = map(list, zip(*sorted(rows), strict=True))
    return Predictions(found.split, texts, places, labels, predictions, found.probabilities[order], found.losses[order])


def _check_same_texts(path: Path, one: Predictions, other_path: Path, other: Predictions) -> None:
    if one.texts != other.texts:
        shared = (Counter(one.texts) & Counter(other.texts)).total()
        raise ConfigError(
            f"{path} and {other_path} were not evaluated on the same texts: of {len(one):,} ({one.split}) and "
            f"{len(other):,} ({other.split}) they share {shared:,}; compare runs of the same data and split"
        )
    for label, another, (file, line) in zip(one.labels, other.labels, one.places, strict=True):
        if label != another:
            raise ConfigError(
                f"{path} and {other_path} have other labels for the same texts: the text at {file}:{line} is {label!r} "
                f"in one and {another!r} in the other"
            )


def _scores_of_run(name: str, predictions: Predictions, predicted: Ints, label_ids: Ints, num_labels: int) -> RunScores:
    is_correct, f1 = predicted == label_ids, _f1(label_ids, predicted, num_labels)
    accuracy = float(is_correct.mean())
    scores = {
        "accuracy": accuracy, "macro_f1": float(np.nanmean(f1)), "log_loss": float(predictions.losses.mean()),
        "ece": calibration_bins(predictions.probabilities, is_correct).error,
    }  # fmt: skip
    return RunScores(
        name, predicted, predictions.probabilities, predictions.losses, scores,
        accuracy_interval(accuracy, len(is_correct)), np.nan_to_num(f1).tolist(),
    )  # fmt: skip


def _f1(label_ids: Ints, predicted: Ints, num_labels: int) -> Floats:
    """Returns `[C]`; NaN where a label has no text and no prediction. scikit-learn's takes 20 times as long."""
    chosen = (label_ids[label_ids == predicted], label_ids, predicted)
    right, support, given = (np.bincount(ids, minlength=num_labels) for ids in chosen)
    total = support + given
    return np.asarray(np.where(total > 0, 2 * right / np.maximum(1, total), np.nan))


def _difference(first: RunScores, other: RunScores, label_ids: Ints, num_labels: int) -> Difference:
    """Resamples texts, each with both of its predictions: what both runs find hard then widens no interval."""
    from scipy.stats import binomtest

    def gains(rows: Any) -> Floats:
        """Returns what is gained in accuracy, macro F1 and log loss on some texts."""
        labels, one, two = label_ids[rows], first.predicted[rows], other.predicted[rows]
        f1 = [np.nanmean(_f1(labels, predicted, num_labels)) for predicted in (one, two)]
        gap = (other.losses[rows] - first.losses[rows]).mean()
        return np.array([(two == labels).mean() - (one == labels).mean(), f1[1] - f1[0], gap])

    generator, number = np.random.default_rng(0), len(label_ids)
    draws = [gains(generator.integers(number, size=number)) for _ in range(NUM_RESAMPLES)]
    ends = np.percentile(draws, [2.5, 97.5], axis=0)
    estimates = [Estimate(*map(float, column)) for column in np.vstack([gains(slice(None)), ends]).T]
    is_right, is_right_too = first.predicted == label_ids, other.predicted == label_ids
    only_first, only_other = int((is_right & ~is_right_too).sum()), int((is_right_too & ~is_right).sum())
    discordant = only_first + only_other
    return Difference(
        name=other.name,
        scores=dict(zip(("accuracy", "macro_f1", "log_loss"), estimates, strict=True)),
        only_first=only_first,
        only_other=only_other,
        p_value=float(binomtest(only_other, discordant).pvalue) if discordant else 1.0,
    )


def comparison_table(comparison: Comparison, limit: int) -> str:
    """Returns what `report` prints of several runs, with at most `limit` disagreements."""
    content, lines = comparison.as_object(limit), list[str]()
    for head, rows in (comparison.score_table(), comparison.difference_table()):
        lines += ["", *aligned([head, *rows])]
    number = content["num_disagreements"]
    shown = f" (the {limit:,} that differ most in loss)" if number > limit > 0 else ""
    lines += ["", *comparison.verdicts(), f"They predict {number:,} texts differently{shown}"]
    for row in content["disagreements"]:
        answers = (f"{name} {found['label']} {found['probability']:.3f}" for name, found in row["answers"].items())
        lines.append(f"  {row['place']}: label {row['label']}; {', '.join(answers)}")
        lines.append(f"    {printable(shortened(row['text'], TERMINAL_TEXT))}")
    return "\n".join([f"{comparison.split} split, {len(comparison.label_ids):,} texts", *lines])


def write_comparison(path: Path, comparison: Comparison, limit: int) -> None:
    """Writes one HTML file that loads nothing, with at most `limit` disagreements."""
    content = comparison.as_object(limit)
    title = " and ".join(run.name for run in comparison.runs)
    support = np.bincount(comparison.label_ids, minlength=len(comparison.labels)).tolist()
    page = render("comparison.html", title=title, comparison=comparison, content=content, support=support)
    write_atomic(path, page)
