"""Predictions for whole files: one result per row, in order, with the row's own fields kept."""

import csv
import io
import json
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bilstm_cls.classifier import Classifier, Prediction
from bilstm_cls.data.readers import ReadOptions, read
from bilstm_cls.data.readers.columns import quoted
from bilstm_cls.data.types import Example
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.files import replacing

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_NO_CELL = re.compile("[\t\r\n]")


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
        DataError: a row cannot be read, or has a field for which a table has no column, or that a tsv cannot hold;
            nothing is written to `target` then.
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


def _joined(record: Mapping[str, Any], prediction: Prediction) -> Row:
    """An own field that has the name of a result, in any kind of file, keeps its value under `input_` and that name."""
    answer = prediction.as_dict()
    del answer["text"]
    taken = {*answer, *(_column_of(label) for label in prediction.probabilities)}
    own: Row = {}
    for name, value in record.items():
        while name in taken:
            name = f"input_{name}"
        taken.add(name)
        own[name] = value
    return {**own, **answer}


def _column_of(label: str) -> str:
    return f"probability_{label}"


def _write_jsonl(rows: Iterable[Row], file: IO[str]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(rows: Iterable[Row], file: IO[str]) -> None:
    plain = csv.writer(file, lineterminator="\n")
    careful = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for values in _table(rows):
        has_return = any("\r" in value for value in values if isinstance(value, str))
        (careful if has_return else plain).writerow(values)  # plain would leave a lone carriage return bare


def _write_tsv(rows: Iterable[Row], file: IO[str]) -> None:
    """Writes what `read_tsv` reads back: quotes are characters like others, so no tab or line end fits into a field."""
    for number, values in enumerate(_table(rows)):
        cells = ["" if value is None else str(value) for value in values]
        if cell := next((cell for cell in cells if _NO_CELL.search(cell)), None):
            where = f"row {number}" if number else "the header"
            raise DataError(
                f"{where} has {quoted(cell)}, and a tab-separated file can hold no tab or line end in a field; "
                f"choose an --output that ends in .csv or .jsonl"
            )
        file.write("\t".join(cells) + "\n")


def _table(rows: Iterable[Row]) -> Iterator[list[Any]]:
    """Yields the names of the columns, and then the values of each row."""
    names: list[str] = []
    for number, row in enumerate(rows, 1):
        probabilities = row.pop("probabilities")
        cells = {name: _cell(value) for name, value in row.items()}
        cells |= {_column_of(label): value for label, value in probabilities.items()}
        if not names:
            names = list(cells)
            yield list(names)
        for name in cells.keys() - set(names):
            raise DataError(
                f"row {number} has the field {name!r}, which the first row lacks, so they make no table; "
                f"choose an --output that ends in .jsonl"
            )
        yield [cells.get(name) for name in names]


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


WRITERS: dict[str, Callable[[Iterable[Row], IO[str]], None]] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".jsonl": _write_jsonl,
}


def _kind_of(target: Path | None, *, as_json: bool) -> str:
    if target is None:
        return ".jsonl" if as_json else ".csv"
    kind = target.suffix.lower()
    if kind not in WRITERS:
        raise ConfigError(f"--output: {target} must end in {', '.join(WRITERS)}")
    return kind
