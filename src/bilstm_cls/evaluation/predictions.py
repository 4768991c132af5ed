"""What evaluation leaves in a run directory: every text with its label, the prediction, and how wrong it is."""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bilstm_cls.data.tokenizer import without_surrogates
from bilstm_cls.data.types import Split
from bilstm_cls.errors import CheckpointError
from bilstm_cls.evaluation.metrics import Floats, Ints, Metrics, example_losses
from bilstm_cls.files import replacing

COLUMNS = ("path", "line", "label", "prediction", "probability", "loss", "text")


@dataclass(frozen=True)
class Evaluation:
    """A model's answers for a split.

    Attributes:
        split: N texts.
        probabilities: `[N, C]`.
        metrics: their scores.
        network: scores of the network alone, where an n-gram model is added to it.
        ngram_logits: `[N, C]` of that n-gram model alone.
    """

    split: Split
    probabilities: Floats
    metrics: Metrics
    network: Metrics | None = None
    ngram_logits: Floats | None = None


@dataclass(frozen=True)
class Predictions:
    """The rows of a `predictions_*.csv`, in its order: the worst prediction first.

    Attributes:
        split: `test`, or `valid` where a run has no test split.
        texts: N texts.
        places: N of `path:line`, where each is in the data.
        labels: N true labels.
        predictions: N predicted labels.
        probabilities: `[N]` of the predictions.
        losses: `[N]` in nats.
    """

    split: str
    texts: list[str]
    places: list[tuple[str, int]]
    labels: list[str]
    predictions: list[str]
    probabilities: Floats
    losses: Floats

    def __len__(self) -> int:
        return len(self.texts)

    def as_split(self, labels: Sequence[str]) -> Split:
        """Returns the texts as they were evaluated, with label ids of the given labels."""
        ids: Ints = np.array([labels.index(label) for label in self.labels], dtype=np.int64)
        lines = np.array([line for _, line in self.places], dtype=np.int64)
        return Split(self.split, self.texts, ids, [path for path, _ in self.places], lines)


def write_predictions(path: Path, evaluation: Evaluation, labels: Sequence[str]) -> None:
    """Writes a CSV with every text of the split, the worst prediction first."""
    losses = example_losses(evaluation.probabilities, evaluation.split.label_ids)
    predicted = evaluation.probabilities.argmax(1)
    with replacing(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", newline="")
        plain = csv.writer(lines, lineterminator="\n")
        quoted = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        plain.writerow(COLUMNS)
        for i in np.argsort(-losses, kind="stable").tolist():
            text = without_surrogates(evaluation.split.texts[i])
            writer = quoted if "\r" in text else plain  # which would leave a lone carriage return bare
            place = evaluation.split.paths[i], int(evaluation.split.lines[i])
            names = labels[evaluation.split.label_ids[i]], labels[predicted[i]]
            numbers = f"{evaluation.probabilities[i, predicted[i]]:.6f}", f"{losses[i]:.6f}"
            writer.writerow([*place, *names, *numbers, text])
        lines.detach()


def read_predictions(run: Path) -> Predictions:
    """Reads what `write_predictions` wrote for the split that a run was evaluated on.

    Args:
        run: the run directory.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    found = [path for name in ("test", "valid") if (path := run / f"predictions_{name}.csv").exists()]
    if not found:
        raise CheckpointError(f"{run}: holds no predictions_test.csv, so it is not a run that was evaluated")
    path = found[0]
    rows: list[tuple[tuple[str, int], str, str, float, float, str]] = []
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process; the default is less than a long text
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            if tuple(next(reader, ())) != COLUMNS:
                raise CheckpointError(f"{path}: damaged, its first line is not {','.join(COLUMNS)}")
            for number, row in enumerate(reader, 2):
                try:
                    source, line, label, prediction, probability, loss, text = row
                    rows.append(((source, int(line)), label, prediction, float(probability), float(loss), text))
                except ValueError as error:
                    raise CheckpointError(f"{path}: damaged, its row {number} cannot be read ({error})") from error
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise CheckpointError(f"{path}: damaged, it holds no text")
    places, labels, predictions, probabilities, losses, texts = map(list, zip(*rows, strict=True))
    split = path.stem.removeprefix("predictions_")
    return Predictions(split, texts, places, labels, predictions, np.array(probabilities), np.array(losses))
