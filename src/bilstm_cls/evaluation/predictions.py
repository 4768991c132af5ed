"""What evaluation leaves in a run directory: every text with its label, the prediction, and how wrong it is."""

import csv
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bilstm_cls.data.types import Label, LabelIds, Split, named, names_in
from bilstm_cls.errors import CheckpointError
from bilstm_cls.evaluation.metrics import Metrics, compute_metrics, example_losses, likelihoods
from bilstm_cls.files import replacing, row_writer
from bilstm_cls.ngrams import Floats
from bilstm_cls.runtime import Task

COLUMNS = ("path", "line", "label", "prediction", "probability", "loss", "text")
MULTI_COLUMNS = ("path", "line", "labels", "predictions", *COLUMNS[4:])
"""Where texts have several labels these are JSON lists, and the probability is that of all decisions together."""


@dataclass(frozen=True)
class Evaluation:
    """A model's answers for N texts: probabilities `[N, C]` and their scores.

    `network` are the scores of the network alone, where an n-gram model is added to it.
    """

    split: Split
    probabilities: Floats
    metrics: Metrics
    network: Metrics | None = None
    task: Task = Task()  # noqa: RUF009 - frozen

    @classmethod
    def of(
        cls, split: Split, probabilities: Floats, task: Task, *, labels: Sequence[str], majority: str | None = None
    ) -> "Evaluation":
        """Scores probabilities `[N, C]`, next to a guess of the label that is the most frequent one of train."""
        majority_id = labels.index(majority) if majority in labels else None
        metrics = compute_metrics(probabilities, split.label_ids, labels, majority_label_id=majority_id, task=task)
        return cls(split, probabilities, metrics, task=task)

    @property
    def labels(self) -> list[str]:
        """C class names, by label id."""
        return list(self.metrics.per_class)

    @functools.cached_property
    def predicted(self) -> LabelIds:
        return self.task.predicted(self.probabilities)

    @functools.cached_property
    def confidence(self) -> Floats:
        """`[N]`, the probabilities of the predictions."""
        found = likelihoods(self.probabilities, self.predicted)
        return np.asarray(found.prod(axis=1) if found.ndim == 2 else found)


class Predicted(NamedTuple):
    """A row of a `predictions_*.csv`: a text and its place, its label, and the prediction with its loss in nats."""

    path: str
    line: int
    label: Label
    prediction: Label
    probability: float
    loss: float
    text: str


def label_ids_of(found: Sequence[Label], labels: Sequence[str]) -> LabelIds:
    """Returns the label ids of texts whose labels are given by name."""
    places = {label: place for place, label in enumerate(labels)}
    if found and isinstance(found[0], str):
        return np.array([places[name] for label in found for name in names_in(label)], dtype=np.int64)
    ids = np.zeros((len(found), len(labels)), dtype=np.uint8)
    for row, label in zip(ids, found, strict=True):
        row[[places[name] for name in names_in(label)]] = 1
    return ids


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """Writes a CSV with every text of the split, the worst prediction first."""
    losses = example_losses(evaluation.probabilities, evaluation.split.label_ids)
    cells = []
    for ids in (evaluation.split.label_ids, evaluation.predicted):
        names = named(ids, evaluation.labels)
        cells.append([name if isinstance(name, str) else json.dumps(name, ensure_ascii=False) for name in names])
    with replacing(path, "x", encoding="utf-8", errors="replace", newline="") as file:
        writer = row_writer(file)
        writer.writerow(COLUMNS if evaluation.task.thresholds is None else MULTI_COLUMNS)
        for i in np.argsort(-losses, kind="stable").tolist():
            place = evaluation.split.paths[i], int(evaluation.split.lines[i])
            numbers = f"{evaluation.confidence[i]:.6f}", f"{losses[i]:.6f}"
            writer.writerow([*place, cells[0][i], cells[1][i], *numbers, evaluation.split.texts[i]])


def read_predictions(run: Path) -> tuple[str, list[Predicted]]:
    """Returns the split's name and what `write_predictions` wrote, or raises `CheckpointError`: missing, damaged."""
    found = [path for name in ("test", "valid") if (path := run / f"predictions_{name}.csv").exists()]
    if not found:
        raise CheckpointError(f"{run}: holds no predictions_test.csv, so it is not a run that was evaluated")
    path, rows = found[0], list[Predicted]()
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process; the default is less than a long text
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = tuple(next(reader, ()))
            if header not in (COLUMNS, MULTI_COLUMNS):
                raise ValueError(f"its first line is not {','.join(COLUMNS)}")
            for place, line, *cells, probability, loss, text in reader:
                label, prediction = cells if header == COLUMNS else (tuple(json.loads(cell)) for cell in cells)
                rows.append(Predicted(place, int(line), label, prediction, float(probability), float(loss), text))
            if not rows:
                raise ValueError("it holds no text")
    except (OSError, csv.Error, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read after {len(rows)} rows ({error})") from error
    finally:
        csv.field_size_limit(limit)
    return path.stem.removeprefix("predictions_"), rows


def read_split(run: Path, labels: Sequence[str]) -> Split:
    """Returns the texts of `read_predictions`; `CheckpointError` also where the run does not know a label."""
    name, rows = read_predictions(run)
    try:
        ids = label_ids_of([row.label for row in rows], labels)
    except KeyError as error:
        raise CheckpointError(
            f"{run}: predictions_{name}.csv has the label {error}, which labels.json of its run lacks"
        ) from error
    lines = np.array([row.line for row in rows], dtype=np.int64)
    return Split(name, [row.text for row in rows], ids, [row.path for row in rows], lines)
