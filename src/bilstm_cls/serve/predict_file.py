"""Predictions for whole files: one result per row, in order, with the row's fields kept."""

import csv
import hashlib
import io
import itertools
import json
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from bilstm_cls.classifier import Classifier
from bilstm_cls.data.readers import ReadOptions, read
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError, shown
from bilstm_cls.files import make_folder, replacing, write_atomic

logger = logging.getLogger(__name__)

Row = dict[str, Any]

BAD_ROWS = ("error", "skip", "empty")
RESULTS = ("label", "probability", "probabilities", "tokens", "truncated", "unknown_tokens")
ERROR = "error"
"""The field that says why a row has no prediction."""

_NOT_IN_TSV = re.compile("[\t\r\n]")


@dataclass(frozen=True)
class PredictOptions:
    """How a file is read and what is written of each prediction; None is what the run has, or all labels.

    Attributes:
        bad_rows: for a row that cannot be read: `error` stops there, `skip` leaves it out, `empty` writes it with no
            prediction and the reason under `error`.
        min_probability: a label that is less probable is written as null.
    """

    text_columns: Sequence[str] | None = None
    bad_rows: str | None = None
    top_k: int | None = None
    min_probability: float = 0.0


def predict_file(
    classifier: Classifier,
    source: str | Path,
    target: str | Path | None,
    options: PredictOptions = PredictOptions(),
    *,
    as_json: bool = False,
) -> None:
    """Classifies every row of a csv, tsv, jsonl, parquet or txt file into a csv, tsv or jsonl file, or stdout.

    Raises:
        DataError: a row cannot be read and `bad_rows` is `error`, or a row has a field for which a table has no column,
            or that a tsv cannot hold; nothing is written to `target` then.
        ConfigError: `target` has an unknown ending, or is `source`.
    """
    source, target = Path(source), None if target is None else Path(target)
    kind = _kind_of(target, as_json=as_json)
    if target is not None and target.resolve() == source.resolve():
        raise ConfigError(f"{target}: is the input as well; choose another --output")
    rows = _rows(classifier, _read(classifier, source, options), options)
    if target is None:
        WRITERS[kind](rows, classifier.labels, sys.stdout)
    else:
        _write(rows, classifier.labels, target)


def predict_part(
    classifier: Classifier,
    source: Path,
    folder: Path,
    options: PredictOptions = PredictOptions(),
    *,
    rank: int,
    size: int,
) -> None:
    """Classifies the `rank`-th of `size` equal parts of a file into `folder`; joined in order, the parts are the whole.

    The processes need no connection: each reads the file, and classifies its rows. A part that is there was written
    whole and stays, so that the same command continues a job that was cut short.

    Raises:
        ConfigError: the folder holds parts of another job.
        DataError: as in `predict_file`.
    """
    make_folder(folder)
    target = folder / f"part-{rank:05}-of-{size:05}.jsonl"
    stat = source.stat() if source.is_file() else None
    job: Row = {
        "input": str(source),
        "bytes": stat and stat.st_size,
        "changed": stat and stat.st_mtime_ns,
        "parts": size,
        "options": asdict(options),
        "model": _digest(classifier),
    }
    job_file = folder / "job.json"
    if not job_file.exists():
        write_atomic(job_file, json.dumps(job) + "\n")
    if json.loads(job_file.read_text("utf-8")) != json.loads(json.dumps(job)):
        raise ConfigError(f"{job_file}: this folder holds the parts of another job; choose another --output")
    if target.exists():
        logger.info(f"{target} is there already")
        return
    total = sum(1 for _ in _read(classifier, source, options, warn=lambda message: None))
    rows = itertools.islice(_read(classifier, source, options), rank * total // size, (rank + 1) * total // size)
    _write(_rows(classifier, rows, options), classifier.labels, target)


def _digest(classifier: Classifier) -> str:
    digest = hashlib.sha256()
    for member in classifier.loaded.members:
        for tensor in member.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _write(rows: Iterable[Row], labels: Sequence[str], target: Path) -> None:
    with replacing(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        WRITERS[target.suffix.lower()](rows, labels, text)
        text.flush()
        text.detach()
    logger.info(f"wrote {target}")


def _read(
    classifier: Classifier, source: Path, options: PredictOptions, warn: Callable[[str], None] = logger.warning
) -> Iterator[Example | BadRow]:
    """Yields all rows in order; those that cannot be read only where they are to be written."""
    data = classifier.config.data
    bad_rows = options.bad_rows or data.bad_rows
    read_options = ReadOptions(
        text_columns=tuple(options.text_columns or data.text_columns),
        label_column=None,
        encoding=data.encoding,
        keep_record=True,
    )
    unread: list[BadRow] = []
    number = 0

    def on_bad_row(bad: BadRow) -> None:
        nonlocal number
        if bad.is_read or bad_rows == "skip":
            warn(f"{bad}" if bad.is_read else f"skipped {bad}")
        else:
            unread.append(bad)
            number += 1

    examples = read(
        source,
        format="lines" if source.suffix.lower() in {".txt", ".text"} else "auto",
        options=read_options,
        bad_rows="error" if bad_rows == "error" else "skip",
        on_bad_row=on_bad_row,
    )
    for example in examples:
        yield from unread
        unread.clear()
        yield example
    yield from unread
    if number:
        warn(f"{source}: {number} rows could not be read and have no prediction; see the field {ERROR!r}")


def _rows(classifier: Classifier, read: Iterable[Example | BadRow], options: PredictOptions) -> Iterator[Row]:
    """Yields each row's fields followed by its prediction, or by the reason why it has none."""
    with_errors = (options.bad_rows or classifier.config.data.bad_rows) == "empty"
    results = {*RESULTS, *map(_column_of, classifier.labels), *([ERROR] if with_errors else [])}
    error: Row = {ERROR: None} if with_errors else {}
    waiting: deque[Example | BadRow] = deque()

    def texts() -> Iterator[str]:
        for row in read:
            waiting.append(row)
            if isinstance(row, Example):
                yield row.text

    def bad_rows() -> Iterator[Row]:
        while waiting and isinstance(bad := waiting[0], BadRow):
            waiting.popleft()
            yield {**dict.fromkeys(RESULTS), ERROR: str(bad)}

    for prediction in classifier.stream(texts()):
        yield from bad_rows()
        example = waiting.popleft()
        assert isinstance(example, Example)
        fields = prediction.as_dict(top_k=options.top_k, min_probability=options.min_probability)
        del fields["text"]
        yield {**_renamed(example.record or {"text": example.text}, results), **fields, **error}
    yield from bad_rows()


def _renamed(record: Mapping[str, Any], results: set[str]) -> Row:
    """A field with the name of a result, in any kind of file, keeps its value under `input_` and that name."""
    taken = set(results)
    renamed: Row = {}
    for name, value in record.items():
        while name in taken:
            name = f"input_{name}"
        taken.add(name)
        renamed[name] = value
    return renamed


def _column_of(label: str) -> str:
    return f"probability_{label}"


def _table(rows: Iterable[Row], labels: Sequence[str]) -> Iterator[list[Any]]:
    """Yields the names of the columns, those of the first row that could be read, and then the values of each row."""
    remaining = iter(rows)
    first = []
    for row in remaining:
        first.append(row)
        if row["probabilities"] is not None:
            break
    if not first:
        return
    names = list(_cells(first[-1], labels))
    yield list(names)
    for number, row in enumerate(itertools.chain(first, remaining), 1):
        cells = _cells(row, labels)
        for name in cells.keys() - set(names):
            raise DataError(
                f"row {number} has the field {name!r}, which the first row lacks, so they make no table; choose an "
                f"--output that ends in .jsonl"
            )
        yield [cells.get(name) for name in names]


def _cells(row: Row, labels: Sequence[str]) -> Row:
    probabilities = row["probabilities"] or {}
    cells = {name: _cell(value) for name, value in row.items() if name != "probabilities"}
    return cells | {_column_of(label): probabilities.get(label) for label in labels}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _write_jsonl(rows: Iterable[Row], _: Sequence[str], file: IO[str]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(rows: Iterable[Row], labels: Sequence[str], file: IO[str]) -> None:
    plain = csv.writer(file, lineterminator="\n")
    careful = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for values in _table(rows, labels):
        has_return = any("\r" in value for value in values if isinstance(value, str))
        (careful if has_return else plain).writerow(values)  # plain would leave a lone carriage return unquoted


def _write_tsv(rows: Iterable[Row], labels: Sequence[str], file: IO[str]) -> None:
    """Writes what `read_tsv` reads back: quotes are characters like others, so no tab or line end fits into a field."""
    for number, values in enumerate(_table(rows, labels)):
        cells = ["" if value is None else str(value) for value in values]
        if cell := next((cell for cell in cells if _NOT_IN_TSV.search(cell)), None):
            where = f"row {number}" if number else "the header"
            raise DataError(
                f"{where} has {shown(cell)}, and a tab-separated file can hold no tab or line end in a field; choose "
                f"an --output that ends in .csv or .jsonl"
            )
        file.write("\t".join(cells) + "\n")


WRITERS: dict[str, Callable[[Iterable[Row], Sequence[str], IO[str]], None]] = {
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
