"""Predictions for whole files: one result per row, in order, with the row's own fields kept."""

import csv
import io
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bilstm_cls.data.example import Example
from bilstm_cls.data.readers import ReadOptions, read
from bilstm_cls.errors import ConfigError
from bilstm_cls.files import replacing
from bilstm_cls.serve.classifier import Classifier, Prediction

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def predict_file(
    classifier: Classifier,
    source: Path,
    target: Path | None,
    *,
    text_columns: Sequence[str] | None = None,
    as_json: bool = False,
) -> None:
    """Classifies every row of a file and writes the results to a file or stdout.

    Args:
        classifier: a loaded run.
        source: csv, tsv, jsonl, parquet, or txt with one text a line.
        target: csv, tsv or jsonl, chosen by the ending; None for stdout.
        text_columns: columns with the text; the run's own if None.
        as_json: on stdout, JSON lines instead of csv.

    Raises:
        DataError: a row cannot be read; nothing is written to `target` then.
        ConfigError: `target` has an unknown ending, or is `source`.
    """
    kind = _kind_of(target, as_json=as_json)
    if target is not None and target.resolve() == source.resolve():
        raise ConfigError(f"{target}: is the input as well; choose another --output")
    options = ReadOptions(
        text_columns=tuple(text_columns or classifier.config.data.text_columns),
        label_column=None,
        encoding=classifier.config.data.encoding,
        keep_record=True,
    )
    data_format = "lines" if source.suffix.lower() in {".txt", ".text"} else "auto"
    examples = read(source, format=data_format, options=options, bad_rows="error")
    rows = _rows(classifier, examples)
    if target is None:
        WRITERS[kind](rows, sys.stdout)
        return
    with replacing(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        WRITERS[kind](rows, text)
        text.flush()
        text.detach()
    logger.info(f"wrote {target}")


def _rows(classifier: Classifier, examples: Iterable[Example]) -> Iterator[Row]:
    """Yields each row's own fields followed by the prediction's."""
    waiting: deque[Example] = deque()

    def texts() -> Iterator[str]:
        for example in examples:
            waiting.append(example)
            yield example.text

    for prediction in classifier.stream(texts()):
        example = waiting.popleft()
        yield _joined(example.record or {"text": example.text}, prediction)


def _joined(record: Any, prediction: Prediction) -> Row:
    """An own field that has the name of a result keeps its value under `input_` and that name."""
    answer = prediction.as_dict()
    del answer["text"]
    own = {f"input_{name}" if name in answer else name: value for name, value in record.items()}
    return {**own, **answer}


def _write_jsonl(rows: Iterable[Row], file: IO[str]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_table(rows: Iterable[Row], file: IO[str], delimiter: str) -> None:
    writer = None
    for row in rows:
        probabilities = row.pop("probabilities")
        row |= {f"probability_{label}": value for label, value in probabilities.items()}
        if writer is None:
            writer = csv.DictWriter(file, row, delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)


WRITERS: dict[str, Callable[[Iterable[Row], IO[str]], None]] = {
    ".csv": lambda rows, file: _write_table(rows, file, ","),
    ".tsv": lambda rows, file: _write_table(rows, file, "\t"),
    ".jsonl": _write_jsonl,
}


def _kind_of(target: Path | None, *, as_json: bool) -> str:
    if target is None:
        return ".jsonl" if as_json else ".csv"
    kind = target.suffix.lower()
    if kind not in WRITERS:
        raise ConfigError(f"--output: {target} must end in {', '.join(WRITERS)}")
    return kind
