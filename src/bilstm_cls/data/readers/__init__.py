"""Labelled text files of any kind as a stream of examples, with file and line in every complaint."""

import difflib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from bilstm_cls.data.readers.columns import ReadOptions
from bilstm_cls.data.readers.format import detect_format, require_path
from bilstm_cls.data.readers.lines import read_fasttext, read_folder, read_label_text, read_lines, read_text_label
from bilstm_cls.data.readers.records import read_jsonl, read_parquet
from bilstm_cls.data.readers.tables import read_csv, read_tsv
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError

__all__ = ["READERS", "ReadOptions", "Reader", "detect_format", "read"]

logger = logging.getLogger(__name__)

Reader = Callable[[Path, ReadOptions], Iterator[Example | BadRow]]

READERS: dict[str, Reader] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "folder": read_folder,
    "fasttext": read_fasttext,
    "label-text": read_label_text,
    "text-label": read_text_label,
    "parquet": read_parquet,
    "lines": read_lines,
}
"""Each yields a file's rows in order and raises DataError where the file as a whole is wrong."""


def read(
    path: Path,
    *,
    format: str = "auto",
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    bad_rows: str = "error",
    on_bad_row: Callable[[BadRow], None] = lambda bad: logger.warning(f"{bad}" if bad.is_read else f"skipped {bad}"),
) -> Iterator[Example]:
    """Reads a file or folder row by row, in order, holding no more than a few rows.

    Args:
        path: the file; a folder for the format `folder`.
        format: a key of `READERS`, or `auto` to go by the file's name, else by its first lines.
        options: columns and encoding.
        bad_rows: `error` to stop at the first row that cannot be read, `skip` to go on.
        on_bad_row: called with every row that is skipped, or read and doubtful.

    Returns:
        An iterator over the examples. What is wrong with the path or format is told at once, not by the iterator.

    Raises:
        DataError: nothing is there, it is unreadable, empty or of no known format, it lacks a column, or it has a bad
            row and `bad_rows` is `error`.
        ConfigError: the format or the encoding is unknown.
    """
    assert bad_rows in ("error", "skip"), bad_rows
    path = Path(path)
    if format != "auto" and format not in READERS:
        near = difflib.get_close_matches(format, READERS, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"choose auto, {', '.join(READERS)}"
        raise ConfigError(f"unknown data format {format!r}; {advice}")
    require_path(path)
    format = detect_format(path) if format == "auto" else format
    if path.is_dir() != (format == "folder"):
        kind = "is a folder, and format" if path.is_dir() else "is a file, and format"
        raise DataError(f"{path}: {kind} {format!r} reads a {'folder' if format == 'folder' else 'file'}")
    return _without_bad_rows(READERS[format](path, options), options, bad_rows, on_bad_row)


def _without_bad_rows(
    rows: Iterator[Example | BadRow], options: ReadOptions, bad_rows: str, on_bad_row: Callable[[BadRow], None]
) -> Iterator[Example]:
    for row in rows:
        if isinstance(row, Example):
            yield row
        elif row.is_read or bad_rows == "skip":
            on_bad_row(row)
        else:
            can_skip = options.label_column is not None
            raise DataError(f"{row}; mend the row{', or set data.bad_rows: skip' if can_skip else ''}")
