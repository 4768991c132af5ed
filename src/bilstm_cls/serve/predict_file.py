"""Predictions for whole files: one result per row, in order, with the row's fields kept."""

import csv
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from bilstm_cls.checkpoint import digest_of
from bilstm_cls.classifier import Classifier
from bilstm_cls.data.readers import ReadOptions, read
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.files import make_folder, replacing, row_writer, write_atomic

logger = logging.getLogger(__name__)

Row = dict[str, Any]

ENDINGS = (".csv", ".tsv", ".jsonl")
RESULTS = ("label", "probability", "probabilities", "tokens", "truncated", "unknown_tokens")
ERROR = "error"  # the field that says why a row has no prediction


@dataclass(frozen=True)
class PredictOptions:
    """How a file is read and what is written of each prediction; None is what the run has, or all labels.

    At a row that cannot be read, `bad_rows` stops (`error`), leaves it out (`skip`), or writes it with no prediction
    and the reason under `error` (`empty`). A label below `min_probability` is written as null.
    """

    text_columns: Sequence[str] | None = None
    bad_rows: str | None = None
    top_k: int | None = None
    min_probability: float | None = None


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
        DataError: a row cannot be read and `bad_rows` is `error`, or does not fit into a table; `target` stays then.
        ConfigError: `target` has an unknown ending, or is `source`.
    """
    source, target = Path(source), None if target is None else Path(target)
    if target is not None and target.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--output: {target} must end in {', '.join(ENDINGS)}")
    if target is not None and target.resolve() == source.resolve():
        raise ConfigError(f"{target}: is the input as well; choose another --output")
    rows = _rows(classifier, _read(classifier, source, options), options)
    if target is None:
        _write(rows, classifier.labels, ".jsonl" if as_json else ".csv", sys.stdout)
    else:
        _write_whole(rows, classifier.labels, target)


def predict_part(
    classifier: Classifier, source: Path, folder: Path, options: PredictOptions, *, rank: int, size: int
) -> None:
    """Classifies the `rank`-th of `size` equal parts of a file into `folder`; joined in order, the parts are the whole.

    The processes need no connection: each reads the file, and classifies its rows. A part that is there was written
    whole and stays, so that the same command continues a job that was cut short. Errors are those of `predict_file`,
    and ConfigError where the folder holds parts of another job.
    """
    make_folder(folder)
    target, job_file = folder / f"part-{rank:05}-of-{size:05}.jsonl", folder / "job.json"
    changed = source.stat().st_mtime_ns if source.exists() else None
    models = [digest_of({n: t.cpu() for n, t in m.state_dict().items()}, {}) for m in classifier.loaded.members]
    job = {"input": str(source), "changed": changed, "parts": size, "options": asdict(options), "model": models}
    content = json.dumps(job) + "\n"
    if not job_file.exists():
        write_atomic(job_file, content)
    if job_file.read_text("utf-8") != content:
        raise ConfigError(f"{job_file}: this folder holds the parts of another job; choose another --output")
    if target.exists():
        logger.info(f"{target} is there already")
        return
    total = sum(1 for _ in _read(classifier, source, options, warn=lambda message: None))
    rows = itertools.islice(_read(classifier, source, options), rank * total // size, (rank + 1) * total // size)
    _write_whole(_rows(classifier, rows, options), classifier.labels, target)


def _write_whole(rows: Iterable[Row], labels: Sequence[str], target: Path) -> None:
    with replacing(target, "x", encoding="utf-8", errors="backslashreplace", newline="") as file:
        _write(rows, labels, target.suffix.lower(), file)
    logger.info(f"wrote {target}")


def _read(
    classifier: Classifier, source: Path, options: PredictOptions, warn: Callable[[str], None] = logger.warning
) -> Iterator[Example | BadRow]:
    data = classifier.config.data
    bad_rows = options.bad_rows or data.bad_rows
    columns = tuple(options.text_columns or data.text_columns)
    unread: list[BadRow] = []

    def on_bad_row(bad: BadRow) -> None:
        if bad.is_read or bad_rows == "skip":
            warn(f"{bad}" if bad.is_read else f"skipped {bad}")
        else:
            unread.append(bad)

    examples = read(
        source,
        format="lines" if source.suffix.lower() in {".txt", ".text"} else "auto",
        options=ReadOptions(text_columns=columns, label_column=None, encoding=data.encoding, keep_record=True),
        bad_rows="error" if bad_rows == "error" else "skip",
        on_bad_row=on_bad_row,
    )
    for example in examples:
        yield from unread
        unread.clear()
        yield example
    yield from unread


def _rows(classifier: Classifier, read: Iterable[Example | BadRow], options: PredictOptions) -> Iterator[Row]:
    """Yields each row's fields followed by its prediction, or by the reason why it has none.

    A field with the name of a result keeps its value under `input_` and that name.
    """
    task, with_errors = classifier.task, (options.bad_rows or classifier.config.data.bad_rows) == "empty"
    error: Row = {ERROR: None} if with_errors else {}
    names = RESULTS if task.thresholds is None else ("labels", *RESULTS[2:])
    results = {*names, *(f"probability_{label}" for label in classifier.labels), *error}
    limit = task.min_probability if options.min_probability is None else options.min_probability
    num_bad = 0
    rows, ahead = itertools.tee(read)
    predictions = classifier.stream(row.text for row in ahead if isinstance(row, Example))
    for row in rows:
        if isinstance(row, BadRow):
            num_bad += 1
            yield {**dict.fromkeys(names), ERROR: str(row)}
            continue
        kept: Row = {}
        for name, value in (row.record or {"text": row.text}).items():
            while name in results or name in kept:
                name = f"input_{name}"
            kept[name] = value
        fields = next(predictions).as_dict(top_k=options.top_k, min_probability=limit)
        yield kept | {name: fields[name] for name in names} | error
    if num_bad:
        logger.warning(f"{num_bad} rows could not be read and have no prediction; see the field {ERROR!r}")


def _cells(row: Row, labels: Sequence[str]) -> Row:
    cells = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in row.items()
        if name != "probabilities"
    }
    return cells | {f"probability_{label}": (row["probabilities"] or {}).get(label) for label in labels}


def _write(rows: Iterable[Row], labels: Sequence[str], kind: str, file: IO[str]) -> None:
    """Writes a line of JSON a row, or a table with the columns of the first row that could be read."""
    if kind == ".jsonl":
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    # As `read_tsv` reads it: quotes are characters like others there, so no tab or line end fits into a field.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if kind == ".tsv" else {}
    writer, remaining = row_writer(file, **dialect), iter(rows)
    first: list[Row] = []
    while (not first or first[-1]["probabilities"] is None) and (row := next(remaining, None)):
        first.append(row)
    names = list(_cells(first[-1], labels)) if first else []
    if names:
        writer.writerow(names)
    for number, row in enumerate(itertools.chain(first, remaining), 1):
        cells = _cells(row, labels)
        if unknown := cells.keys() - set(names):
            raise DataError(f"row {number}: the first row has no field {unknown.pop()!r}; let --output end in .jsonl")
        try:
            writer.writerow([cells.get(name) for name in names])
        except csv.Error as error:
            raise DataError(f"row {number}: a tsv holds no tab or line end ({error}); write a csv or jsonl") from error
