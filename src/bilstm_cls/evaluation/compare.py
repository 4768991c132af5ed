"""Runs compared on the same texts: how much they differ, whether that may be chance, and where.

Shapes: N texts, C labels.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.data.types import names_in, spoken
from bilstm_cls.errors import ConfigError, printable
from bilstm_cls.evaluation.metrics import (
    SCORE_NAMES,
    Decisions,
    Floats,
    Ints,
    accuracy_interval,
    calibration_bins,
    f1_scores,
    resamples,
)
from bilstm_cls.evaluation.pages import aligned, render, shortened
from bilstm_cls.evaluation.predictions import Predictions, read_predictions
from bilstm_cls.files import write_atomic

NUM_RESAMPLES = 1000
SIGNIFICANT = 0.05
TERMINAL_TEXT = 100

Row = dict[str, Any]


def compare(paths: Sequence[Path], limit: int) -> Row:
    """Compares runs by their `predictions_*.csv`; no model is loaded.

    A difference is that of another run to the first, with the 95 % interval of the paired bootstrap. `right_alone`
    counts the texts that one of both predicts rightly and the other not. `mcnemar_p` is McNemar's exact test: how
    probable so uneven a share of those is where both err as often.

    Args:
        paths: at least two run directories, those of `bilstm-cls baseline` among them.
        limit: listed texts for which not all runs predict the same label, the greatest difference in loss first.

    Returns:
        What `report --json` prints.

    Raises:
        CheckpointError: a run was not evaluated, or its predictions are damaged.
        ConfigError: a run is given twice, or they were not evaluated on the same texts.
    """
    from sklearn.preprocessing import MultiLabelBinarizer

    names = _names(paths)
    found = [_in_common_order(read_predictions(path)) for path in paths]
    first = found[0]
    for path, other in zip(paths[1:], found[1:], strict=True):
        _check_same_texts(paths[0], first, path, other)
    columns = [list(map(names_in, labels)) for labels in (first.labels, *(one.predictions for one in found))]
    binarizer = MultiLabelBinarizer(sparse_output=True).fit(itertools.chain(*columns))
    labels, (true, *answers) = binarizer.classes_.tolist(), map(binarizer.transform, columns)
    decisions = [Decisions.of(true, predicted, len(labels)) for predicted in answers]
    losses = np.array([one.losses for one in found])
    gaps, differ = np.abs(losses - losses[0]).max(0), _disagreements(found)
    return {
        "split": first.split,
        "examples": len(first),
        "support": dict(zip(labels, np.asarray(true.sum(axis=0)).ravel().tolist(), strict=True)),
        "runs": [{"run": name, **_scores(one, each, labels)}
                 for name, one, each in zip(names, found, decisions, strict=True)],
        "differences": [_difference((names[0], names[i]), (decisions[0], decisions[i]), losses[[0, i]])
                        for i in range(1, len(found))],
        "num_disagreements": len(differ),
        "disagreements": [_disagreement(names, found, i)
                          for i in differ[np.argsort(-gaps[differ], kind="stable")][:limit].tolist()],
    }  # fmt: skip


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


def _scores(one: Predictions, decisions: Decisions, labels: list[str]) -> Row:
    is_correct, counts = decisions.is_right(), decisions.counts()
    accuracy, f1 = float(is_correct.mean()), f1_scores(counts)
    by_label = 2 * counts[0] / (counts[1] + counts[2]).clip(1)
    return {
        "accuracy": accuracy,
        **({"micro_f1": f1["micro_f1"]} if isinstance(one.labels[0], tuple) else {}),
        "macro_f1": f1["macro_f1"],
        "log_loss": float(one.losses.mean()),
        "ece": calibration_bins(one.probabilities, is_correct).error,
        "confidence_interval": accuracy_interval(accuracy, len(one)),
        "f1": dict(zip(labels, by_label.tolist(), strict=True)),
    }


def _difference(names: tuple[str, str], decisions: tuple[Decisions, Decisions], losses: Floats) -> Row:
    """Resamples texts, each with both losses `[2, N]`: what both runs find hard then widens no interval."""
    from scipy.stats import binomtest

    is_correct, number = np.stack([each.is_right() for each in decisions]), losses.shape[1]

    def gains(weights: Floats) -> Floats:
        """Returns what is gained in accuracy, macro F1 and log loss on texts of such weights."""
        f1 = [f1_scores(each.counts(weights))["macro_f1"] for each in decisions]
        return np.diff([is_correct @ weights, f1, losses @ weights]).ravel()

    draws = [gains(weights) for weights in resamples(number, NUM_RESAMPLES)]
    scores = zip(("accuracy", "macro_f1", "log_loss"), gains(np.full(number, 1 / number)).tolist(),
                 np.percentile(draws, [2.5, 97.5], axis=0).T.tolist(), strict=True)  # fmt: skip
    alone = [int((is_correct[i] & ~is_correct[1 - i]).sum()) for i in (0, 1)]
    return {
        "run": names[1],
        "against": names[0],
        **{key: {"difference": value, "confidence_interval": ends} for key, value, ends in scores},
        "right_alone": dict(zip(names, alone, strict=True)),
        "mcnemar_p": float(binomtest(alone[1], sum(alone)).pvalue) if any(alone) else 1.0,
    }


def _disagreements(found: Sequence[Predictions]) -> Ints:
    answers = zip(*(one.predictions for one in found), strict=True)
    return np.flatnonzero([len(set(row)) > 1 for row in answers])


def _disagreement(names: Sequence[str], found: Sequence[Predictions], i: int) -> Row:
    first = found[0]
    answers = {
        name: {"label": one.predictions[i], "probability": float(one.probabilities[i])}
        for name, one in zip(names, found, strict=True)
    }
    return {
        "place": "{}:{}".format(*first.places[i]), "label": first.labels[i], "answers": answers, "text": first.texts[i],
    }  # fmt: skip


def tables(content: Row) -> list[list[list[str]]]:
    """Returns two tables with their heads: the scores of each run, and how the others differ from the first."""
    keys = [key for key in ("accuracy", "micro_f1", "macro_f1", "log_loss", "ece") if key in content["runs"][0]]
    words = [SCORE_NAMES[key] for key in keys]
    scores = [["run", words[0], "95 % interval", *words[1:]]]
    for run in content["runs"]:
        numbers = [f"{run[key]:.4f}" for key in keys]
        numbers.insert(1, "{:.4f} to {:.4f}".format(*run["confidence_interval"]))
        scores.append([run["run"], *numbers])
    first = content["runs"][0]["run"]
    differences = [[f"minus {first}", "accuracy", "macro F1", "log loss", "right alone", "McNemar's p"]]
    for found in content["differences"]:
        gains = [found[key] for key in ("accuracy", "macro_f1", "log_loss")]
        differences.append([
            found["run"],
            *("{:+.4f} ({:+.4f} to {:+.4f})".format(row["difference"], *row["confidence_interval"]) for row in gains),
            " : ".join(f"{number:,}" for number in found["right_alone"].values()),
            f"{found['mcnemar_p']:.3g}",
        ])  # fmt: skip
    return [scores, differences]


def verdicts(content: Row) -> Iterator[str]:
    """Yields for each difference a sentence that says whether it may be chance."""
    for found in content["differences"]:
        (first, one), (name, other) = found["right_alone"].items()
        verdict = f"{name if other > one else first} is better, and chance rarely does that"
        if found["mcnemar_p"] >= SIGNIFICANT:
            verdict = "the difference may well be chance"
        yield (
            f"{first} alone is right on {one:,} texts, {name} alone on {other:,}: {verdict} "
            f"(p = {found['mcnemar_p']:.3g})."
        )


def comparison_table(content: Row) -> str:
    """Returns what `report` prints of several runs."""
    number, listed = content["num_disagreements"], content["disagreements"]
    lines = [f"{content['split']} split, {content['examples']:,} texts"]
    for rows in tables(content):
        lines += ["", *aligned(rows)]
    shown = f" (the {len(listed):,} that differ most in loss)" if number > len(listed) > 0 else ""
    lines += ["", *verdicts(content), f"They predict {number:,} texts differently{shown}"]
    for row in listed:
        parts = ((name, spoken(found["label"]), found["probability"]) for name, found in row["answers"].items())
        answers = ", ".join(f"{name} {label} {probability:.3f}" for name, label, probability in parts)
        lines.append(f"  {row['place']}: label {spoken(row['label'])}; {answers}")
        lines.append(f"    {printable(shortened(row['text'], TERMINAL_TEXT))}")
    return "\n".join(lines)


def write_comparison(path: Path, content: Row) -> None:
    """Writes one HTML file that loads nothing."""
    title = " and ".join(run["run"] for run in content["runs"])
    page = render("comparison.html", title=title, content=content, tables=tables(content), verdicts=verdicts(content))
    write_atomic(path, page)
