"""Runs compared on the same texts: how much they differ, whether that may be chance, and where."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.data.types import names_in, spoken
from bilstm_cls.errors import ConfigError, printable
from bilstm_cls.evaluation.metrics import DEVIATIONS, accuracy_interval, calibration_error, score_names
from bilstm_cls.evaluation.predictions import Predicted, label_ids_of, read_predictions
from bilstm_cls.evaluation.report import aligned, render, shortened
from bilstm_cls.files import write_atomic
from bilstm_cls.ngrams import Bools, Floats

TERMINAL_TEXT = 100

Row = dict[str, Any]


def compare(paths: Sequence[Path], limit: int) -> Row:
    """Compares runs by their `predictions_*.csv`; no model is loaded.

    A difference is that of another run to the first, with the 95 % interval of a mean of paired differences.
    `right_alone` counts the texts that one of both predicts rightly and the other not. `mcnemar_p` is McNemar's exact
    test: how probable so uneven a share of those is where both err as often.

    Up to `limit` texts for which not all runs predict the same label are listed, the greatest difference in loss first.
    Returns what `report --json` prints.

    Raises:
        CheckpointError: a run was not evaluated, or its predictions are damaged.
        ConfigError: a run is given twice, or they were not evaluated on the same texts with the same labels.
    """
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path.resolve()) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError("--run: the same run is given twice; compare different runs")
    read = [read_predictions(path) for path in paths]
    found = [sorted(rows, key=lambda row: (row.text, row.label, row.path, row.line)) for _, rows in read]
    first, (of_split, _) = found[0], read[0]
    for path, (split, _), rows in zip(paths, read, found, strict=True):
        if [(row.text, row.label) for row in rows] != [(row.text, row.label) for row in first]:
            raise ConfigError(
                f"{paths[0]} ({len(first):,} texts of {of_split}) and {path} ({len(rows):,} of {split}) were "
                "not evaluated on the same texts with the same labels; compare runs of the same data and split"
            )
    is_correct = np.array([[row.label == row.prediction for row in rows] for rows in found])
    losses = np.array([[row.loss for row in rows] for rows in found])
    differ = np.flatnonzero([len({row.prediction for row in same}) > 1 for same in zip(*found, strict=True)])
    order = differ[np.argsort(-np.abs(losses - losses[0]).max(0)[differ], kind="stable")]
    return {
        "split": of_split,
        "examples": len(first),
        "runs": [{"run": name, **_scores(*pair)} for name, *pair in zip(names, found, is_correct, strict=True)],
        "differences": [_difference(names[0], names[i], is_correct[[0, i]], losses[[0, i]])
                        for i in range(1, len(found))],
        "num_disagreements": len(differ),
        "disagreements": [
            {
                "place": f"{first[i].path}:{first[i].line}",
                "label": first[i].label,
                "answers": {name: {"label": rows[i].prediction, "probability": rows[i].probability}
                            for name, rows in zip(names, found, strict=True)},
                "text": first[i].text,
            }
            for i in order[:limit].tolist()
        ],
    }  # fmt: skip


def _scores(rows: Sequence[Predicted], is_correct: Bools) -> Row:
    from sklearn.metrics import f1_score

    names = [row.label for row in rows], [row.prediction for row in rows]
    labels = sorted({name for label in itertools.chain(*names) for name in names_in(label)})
    ids, accuracy = [label_ids_of(each, labels) for each in names], float(is_correct.mean())
    kinds = ("micro", "macro") if ids[0].ndim == 2 else ("macro",)
    return {
        "accuracy": accuracy,
        **{f"{kind}_f1": float(f1_score(*ids, average=kind, zero_division=0)) for kind in kinds},
        "log_loss": float(np.mean([row.loss for row in rows])),
        "confidence_interval": accuracy_interval(accuracy, len(rows)),
        **({} if ids[0].ndim == 2 else {"ece": calibration_error(np.array([r.probability for r in rows]), is_correct)}),
    }


def _difference(first: str, name: str, is_correct: Bools, losses: Floats) -> Row:
    """Compares two runs, whether they are right and their losses, `[2, N]`: what both find hard widens no interval."""
    from scipy.stats import binomtest

    row: Row = {"run": name, "against": first}
    for key, values in (("accuracy", is_correct), ("log_loss", losses)):
        gains = values[1] - 1.0 * values[0]
        mean, width = float(gains.mean()), DEVIATIONS * float(gains.std()) / len(gains) ** 0.5
        row[key] = {"difference": mean, "confidence_interval": [mean - width, mean + width]}
    alone = [int((is_correct[i] & ~is_correct[1 - i]).sum()) for i in (0, 1)]
    row["right_alone"] = dict(zip((first, name), alone, strict=True))
    return row | {"mcnemar_p": float(binomtest(alone[1], sum(alone)).pvalue) if any(alone) else 1.0}


def tables(content: Row) -> list[list[list[str]]]:
    """Returns two tables with their heads: the scores of each run, and how the others differ from the first."""
    main = "micro_f1" if "micro_f1" in content["runs"][0] else "accuracy"
    names = score_names(main, [key for key in ("accuracy", "macro_f1", "log_loss", "ece") if key in content["runs"][0]])
    scores = [["run", f"95 % interval of the {names['accuracy']}", *names.values()]]
    for run in content["runs"]:
        interval = "{:.4f} to {:.4f}".format(*run["confidence_interval"])
        scores.append([run["run"], interval, *(f"{run[key]:.4f}" for key in names)])
    differences = [[f"minus {content['runs'][0]['run']}", names["accuracy"], "log loss", "right alone", "McNemar's p"]]
    for found in content["differences"]:
        gains = [found[key] for key in ("accuracy", "log_loss")]
        differences.append([
            found["run"],
            *("{:+.4f} ({:+.4f} to {:+.4f})".format(row["difference"], *row["confidence_interval"]) for row in gains),
            " : ".join(f"{number:,}" for number in found["right_alone"].values()),
            f"{found['mcnemar_p']:.3g}",
        ])  # fmt: skip
    return [scores, differences]


def comparison_table(content: Row) -> str:
    """Returns what `report` prints of several runs."""
    lines = [f"{content['split']} split, {content['examples']:,} texts"]
    for rows in tables(content):
        lines += ["", *aligned(rows)]
    lines += ["", f"They predict {content['num_disagreements']:,} texts differently"]
    for row in content["disagreements"]:
        parts = ((name, spoken(found["label"]), found["probability"]) for name, found in row["answers"].items())
        answers = ", ".join(f"{name} {label} {probability:.3f}" for name, label, probability in parts)
        lines.append(f"  {row['place']}: label {spoken(row['label'])}; {answers}")
        lines.append(f"    {printable(shortened(row['text'], TERMINAL_TEXT))}")
    return "\n".join(lines)


def write_comparison(path: Path, content: Row) -> None:
    """Writes one HTML file that loads nothing."""
    title = " and ".join(run["run"] for run in content["runs"])
    write_atomic(path, render("comparison.html", title=title, content=content, tables=tables(content)))
