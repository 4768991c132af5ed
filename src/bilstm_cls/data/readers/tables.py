"""Tables with a row a record, and columns by name or position: csv and tsv."""

import re
from collections.abc import Iterator
from pathlib import Path

from bilstm_cls.data.readers.columns import NO_LABEL, ReadOptions, choose_columns
from bilstm_cls.data.readers.csv import Row, Suspect, csv_records, ragged
from bilstm_cls.data.readers.decoding import BLANK, TextLines, numbered
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError

DELIMITERS = ",;\t|"

MAX_SUSPECTS = 1000
"""Records that are kept until the labels of the whole file are known."""


def read_csv(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads comma-separated values with quotes, or values separated by `;`, `|` or tabs, whichever the header has.

    Raises:
        DataError: the file is empty or unreadable, or a column is not there.
    """
    lines = TextLines(path, options.encoding)
    suspects: list[Suspect] = []
    rows = csv_records(lines, lambda first: _delimiter_of(first, options), suspects.append)
    return _examples(rows, str(path), options, suspects)


def read_tsv(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads tab-separated values, one record a line, with quotes as plain characters.

    Most TSV files of text corpora hold quotes that do not pair up, so none has a meaning here. A file whose quotes
    have one is read with the format `csv`, which knows tabs too.

    Raises:
        DataError: the file is empty or unreadable, or a column is not there.
    """
    lines = TextLines(path, options.encoding)
    return _examples(_tab_separated(lines), str(path), options)


def _examples(
    rows: Iterator[Row], name: str, options: ReadOptions, suspects: list[Suspect] | None = None
) -> Iterator[Example | BadRow]:
    number, first = next(rows, (1, BLANK))
    if isinstance(first, str):
        raise DataError(f"{name}:{number}: {first}, in the {'first row' if options.is_headerless else 'header'}")
    columns = choose_columns(first, options, f"{name}:{number}")
    label_at = columns.label
    is_single = len(columns.texts) == 1
    text_at = columns.texts[0] if is_single else 0
    label = None
    is_empty = True
    labels: set[str] = set()
    # Once a row, for files of gigabytes: few calls.
    for line, row in _and_first(rows, (number, first)) if options.is_headerless else rows:
        is_empty = False
        if isinstance(row, str):
            yield BadRow(name, line, row)
            continue
        if label_at is not None:
            label = row[label_at].strip()
            if not label:
                yield BadRow(name, line, NO_LABEL)
                continue
            labels.add(label)
        text = row[text_at] if is_single else "\n".join([row[position] for position in columns.texts])
        yield Example(
            text, label, name, line, dict(zip(columns.names, row, strict=True)) if options.keep_record else None
        )
        if suspects and len(suspects) > MAX_SUSPECTS:
            del suspects[MAX_SUSPECTS:]
    if is_empty:
        raise DataError(f"{name}: has a header and no rows")
    for line, num_lines, alone in suspects or ():
        has_known_label = label_at is not None and any(row[label_at].strip() in labels for row in alone)
        # Prose with a comma in it could be a row as well, but hardly line after line.
        if has_known_label or len(alone) == num_lines - 1 >= (1 if label_at is None else 3):
            yield BadRow(name, line, f"one text over {num_lines} lines that could be rows (is a quote missing?)", True)


def _and_first(rows: Iterator[Row], first: Row) -> Iterator[Row]:
    yield first
    yield from rows


def _tab_separated(lines: TextLines) -> Iterator[Row]:
    width = 0
    for number, line, fault in numbered(lines):
        row = line.split("\t")
        width = width or len(row)
        yield number, fault or (row if len(row) == width else ragged(len(row), width))


def _delimiter_of(first: str, options: ReadOptions) -> str:
    """Chooses the delimiter under which the first line has the wanted columns, else the one it holds most often."""
    outside = re.sub('"[^"]*"?', "", first)
    by_count = sorted(DELIMITERS, key=lambda delimiter: -outside.count(delimiter))
    wanted = {*options.text_columns, *([] if options.label_column is None else [options.label_column])}
    for delimiter in by_count if not options.is_headerless else ():
        cells = {cell.strip().strip('"') for cell in first.split(delimiter)}
        if wanted <= cells:
            return delimiter
    return by_count[0] if outside.count(by_count[0]) else ","
