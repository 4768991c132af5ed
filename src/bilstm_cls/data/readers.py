"""Labelled text files of any kind as a stream of examples, with file and line in every error."""

import difflib
import functools
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bilstm_cls.data.dialect import Dialect, TableRows
from bilstm_cls.data.encoding import (
    MAX_CHARACTERS,
    SURROGATE,
    TOO_LONG,
    TextLines,
    byte_blocks,
    decode,
    decoding_fault,
    find_encoding,
    resolve_encoding,
)
from bilstm_cls.data.formats import detect_format, require_path
from bilstm_cls.data.records import json_records, open_table
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError, shown

logger = logging.getLogger(__name__)

MAX_SHOWN = 20
NO_LABEL = "the label is empty"
BLANK_LINE = "blank line"
TEXT_SUFFIXES = (".txt", ".text")
_MAX_HEAD = 100
"""JSON objects that show whether a key is missing from one or from all."""
_MAX_SUSPECTS = 1000
"""Records that are kept until the labels of the whole file are known."""
_POSITION = re.compile(r"#[1-9][0-9]*")
_WHOLE_FLOAT = re.compile(r"([-+]?[0-9]+)\.0+")
_FASTTEXT_LABEL = re.compile(r"(?<!\S)__label__(\S+)(?:\s|$)")

_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}
"""Unicode's categories of control and format characters, and of spaces."""

Rows = Iterator[Example | BadRow]
Reader = Callable[[Path, "ReadOptions"], Rows]
Parts = tuple[str, str] | str
"""Label and text of a line, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What to take from a file, and how to decode it.

    Attributes:
        text_columns: columns of the text; several are joined by a line feed. With names `#1`, `#2`, ... for all given
            columns, a csv or tsv file has no header, and columns are positions counted from 1.
        label_column: column of the label; None where labels are not wanted, and every label is None then.
        encoding: any text codec, or `auto`.
        keep_record: whether an example's `record` gets all fields of its row in order.
        csv: what is known of the dialect of csv and tsv files.
    """

    text_columns: tuple[str, ...] = ("text",)
    label_column: str | None = "label"
    encoding: str = "utf-8"
    keep_record: bool = False
    csv: Dialect = Dialect()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns of text and label."""
        return (*self.text_columns, *([] if self.label_column is None else [self.label_column]))

    @property
    def is_headerless(self) -> bool:
        """Whether every given column is a position."""
        return bool(self.wanted) and all(_POSITION.fullmatch(name) for name in self.wanted)


def read(
    path: Path,
    *,
    format: str = "auto",
    options: ReadOptions = ReadOptions(),
    bad_rows: str = "error",
    on_bad_row: Callable[[BadRow], None] = lambda bad: logger.warning(f"{bad}" if bad.is_read else f"skipped {bad}"),
) -> Iterator[Example]:
    """Reads a file or folder row by row, in order, holding no more than a few rows.

    Args:
        path: the file; a folder for the formats `folder` and `arrow`.
        format: a key of `READERS`, or `auto` to go by the file's name, else by its first lines.
        options: columns, encoding and dialect.
        bad_rows: `error` to stop at the first row that cannot be read, `skip` to go on.
        on_bad_row: called with every row that is skipped, and with every remark on what was read.

    Returns:
        An iterator over the examples. What is wrong with the path or format is raised at once, not by the iterator.

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
    if path.is_dir() != (format == "folder") and format != "arrow":
        kind = "is a folder, and format" if path.is_dir() else "is a file, and format"
        raise DataError(f"{path}: {kind} {format!r} reads a {'folder' if format == 'folder' else 'file'}")
    return _without_bad_rows(READERS[format](path, options), options, bad_rows, on_bad_row)


def _without_bad_rows(
    rows: Rows, options: ReadOptions, bad_rows: str, on_bad_row: Callable[[BadRow], None]
) -> Iterator[Example]:
    for row in rows:
        if isinstance(row, Example):
            yield row
        elif row.is_read or bad_rows == "skip":
            on_bad_row(row)
        else:
            can_skip = options.label_column is not None
            raise DataError(f"{row}; fix the row{', or set data.bad_rows: skip' if can_skip else ''}")


class _Skipped:
    """Counts lines that are no rows, for one remark on each kind at the end of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, line: int, number: int = 1) -> None:
        first, count = self._found.get(kind, (line, 0))
        self._found[kind] = first, count + number

    def remarks(self) -> Iterator[BadRow]:
        for kind, (line, count) in self._found.items():
            reason = f"skipped {count:,} {kind}{'s' * (count > 1)}{', the first here' * (count > 1)}"
            yield BadRow(str(self._path), line, reason, is_read=True)


# Columns and labels


@dataclass(frozen=True, slots=True)
class _Columns:
    """A table's columns: names of all, positions of the texts and of the label, and how many have a name."""

    names: tuple[str, ...]
    texts: tuple[int, ...]
    label: int | None
    num_named: int

    def fitted(self, row: list[str]) -> list[str] | None:
        """Returns a row of the table's width if it only has empty fields too many, or lacks fields without a name."""
        width = len(self.names)
        if not any(map(str.strip, row[width:])) and len(row) >= self.num_named:
            return (row + [""] * width)[:width]
        return None


def _choose_columns(first_row: Sequence[str], options: ReadOptions, where: str) -> _Columns:
    positions = [f"#{number}" for number in range(1, len(first_row) + 1)]
    cells = [name.strip() for name in first_row]
    num_named = len(cells)
    if options.is_headerless:
        names = positions
    else:
        if any("\0" in name for name in cells):
            raise DataError(f"{where}: the header holds NUL; if it is UTF-16, set data.encoding to utf-16-le or auto")
        while num_named and not cells[num_named - 1]:
            num_named -= 1
        times = Counter(cells)
        if repeated := next((name for name in options.wanted if times[name] > 1), None):
            raise DataError(f"{where}: column {shown(repeated)} is there twice; rename one")
        # A column without a name, such as that of a row index, or with that of another, goes by its position.
        names = [
            position if not name or name in cells[:at] else name
            for at, (name, position) in enumerate(zip(cells, positions, strict=True))
        ]
    _require_columns(names, options, where)
    label = options.label_column
    texts = tuple(names.index(name) for name in options.text_columns)
    return _Columns(tuple(names), texts, None if label is None else names.index(label), num_named)


def _require_columns(names: Sequence[str], options: ReadOptions, where: str) -> None:
    """Raises a DataError that says which columns there are if a wanted one is not among them."""
    missing = next((name for name in options.wanted if name not in names), None)
    if missing is None:
        return
    kind = "text" if missing in options.text_columns else "label"
    listed = ", ".join(map(shown, names[:MAX_SHOWN]))
    listed += f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    folded = {known.casefold(): known for known in reversed(names)}
    near = difflib.get_close_matches(missing.casefold(), folded, n=1)
    advice = f"did you mean {shown(folded[near[0]])}?" if near else "name another"
    key = f"data.{kind}_column{'s' * (kind == 'text')} or --{kind}-column"
    raise DataError(f"{where}: no {kind} column {shown(missing)} among {listed}; {advice} ({key})")


def clean_label(text: str) -> str:
    """Returns a label without surrounding spaces; of a whole number, without the decimals that a spreadsheet adds."""
    label = text.strip()
    whole = _WHOLE_FLOAT.fullmatch(label)
    return whole[1] if whole else label


def alike_labels(labels: Sequence[str]) -> list[list[str]]:
    """Returns groups of labels that a reader takes for one: `True` and `true`, `1` and `01`, or with spaces between."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        characters = unicodedata.normalize("NFKC", label).casefold()
        visible = "".join(c for c in characters if unicodedata.category(c) not in _INVISIBLE)
        number = visible.lstrip("0") or "0"
        groups.setdefault(number if number.isdecimal() else visible, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


# Tables


def read_csv(path: Path, options: ReadOptions) -> Rows:
    """Reads delimited values with a header, or by position; the dialect is found as far as it is not given.

    Raises:
        DataError: the file is empty or unreadable, or a column is not there.
    """
    return _read_table(path, options, is_tsv=False)


def read_tsv(path: Path, options: ReadOptions) -> Rows:
    """Reads tab-separated values; quotes have a meaning only where the file cannot be read without.

    Raises:
        DataError: the file is empty or unreadable, or a column is not there.
    """
    return _read_table(path, options, is_tsv=True)


def _read_table(path: Path, options: ReadOptions, *, is_tsv: bool) -> Rows:
    name = str(path)
    rows = TableRows(
        path, options.encoding, options.csv, () if options.is_headerless else options.wanted, is_tsv=is_tsv
    )
    skipped = _Skipped(path)
    body = _rows_with_content(rows, skipped)
    line, first = next(body, (1, "holds blank lines only"))
    if isinstance(first, str):
        raise DataError(f"{name}:{line}: {first}, in the {'first row' if options.is_headerless else 'header'}")
    columns = _choose_columns(first, options, f"{name}:{line}")
    width, label_at = len(columns.names), columns.label
    label = None
    labels: dict[str, str] = {}  # clean, by what is written
    suspects: list[tuple[int, list[list[str]]]] = []
    is_empty = True
    for line, row in chain([(line, first)], body) if options.is_headerless else body:
        if row == first and not options.is_headerless:
            skipped.add("repeated header", line)
            continue
        if isinstance(row, list) and len(row) != width:
            row = columns.fitted(row) or _ragged(row, width, len(rows.record))
        if isinstance(row, list) and label_at is not None:
            label = labels.get(row[label_at]) or clean_label(row[label_at])
            labels[row[label_at]] = label
            if not label and not any(map(str.strip, row)):
                skipped.add(BLANK_LINE, line)
                continue
            row = row if label else NO_LABEL
        is_empty = False
        if isinstance(row, str):
            yield BadRow(name, line, row)
            continue
        text = "\n".join([row[position] for position in columns.texts])
        record = dict(zip(columns.names, row, strict=True)) if options.keep_record else None
        yield Example(text, label, name, line, record)
        if len(rows.record) > 1 and len(suspects) < _MAX_SUSPECTS and (within := rows.rows_within(width)):
            suspects.append((line, within))
    if is_empty:
        raise DataError(f"{name}: has a header and no rows")
    for line, within in suspects:
        if label_at is None or sum(row[label_at] in labels for row in within) > 1:
            yield BadRow(
                name, line, "one text over several lines that could be rows (is a quote missing?)", is_read=True
            )
    yield from skipped.remarks()


def _rows_with_content(rows: TableRows, skipped: _Skipped) -> Iterator[tuple[int, list[str] | str]]:
    """Leaves out and counts the lines that are no rows of a table."""
    comment, num_before = rows.dialect.comment, rows.dialect.skip_lines
    if num_before:
        skipped.add("line before the table", 1, num_before)
    for line, row in rows:
        if not row or (len(row) == 1 and not rows.record[0].strip()):
            skipped.add(BLANK_LINE, line)
        elif comment and rows.record[0].startswith(comment):
            skipped.add("comment line", line)
        else:
            yield line, row


def _ragged(row: Sequence[str], width: int, num_lines: int) -> str:
    fields = f"{len(row)} field{'s' * (len(row) != 1)}"
    span = f" over {num_lines} lines (is a quote missing?)" if num_lines > 1 else ""
    return f"{fields}{span}, but the first row has {width}"


# Records


def read_jsonl(path: Path, options: ReadOptions) -> Rows:
    """Reads one JSON object a line, or the objects of a JSON document; see `json_records`.

    Raises:
        DataError: the file is empty, unreadable or too large a document, or none of its objects has a wanted key.
    """
    skipped = _Skipped(path)
    records = json_records(path, options.encoding)
    head = list(islice(records, _MAX_HEAD))
    objects = [record for _, record in head if isinstance(record, dict)]
    if objects:
        keys = list(dict.fromkeys(key for record in objects for key in record))
        _require_columns(keys, options, f"{path}:{next(line for line, record in head if record is objects[0])}")
    is_empty = True
    for line, record in chain(head, records):
        if record is None:
            skipped.add(BLANK_LINE, line)
            continue
        is_empty = False
        yield BadRow(str(path), line, record) if isinstance(record, str) else _example_of(record, options, path, line)
    if is_empty:
        raise DataError(f"{path}: holds no JSON object")
    yield from skipped.remarks()


def read_table(path: Path, options: ReadOptions) -> Rows:
    """Reads an Apache Parquet or Arrow file, or a saved data set; an example's `line` is its row, counted from 1.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or a column is not there.
    """
    row = 0
    with open_table(path) as table:
        _require_columns(table.names, options, str(path))
        columns = table.names if options.keep_record else list(dict.fromkeys(options.wanted))
        names = table.class_names.get(options.label_column or "")
        for row, record in table.records(columns):
            if isinstance(record, str):
                yield BadRow(str(path), row, f"row {row}: {record}")
            else:
                yield _example_of(record, options, path, row, place=f"row {row}: ", class_names=names)
    if row == 0:
        raise DataError(f"{path}: has no rows")


class _WrongValueError(Exception):
    """A value that cannot be a text or a label."""


def _example_of(
    record: Mapping[str, Any],
    options: ReadOptions,
    path: Path,
    line: int,
    *,
    place: str = "",
    class_names: Sequence[str] | None = None,
) -> Example | BadRow:
    try:
        text = "\n".join([_text_of(_value_of(record, column), column) for column in options.text_columns])
        column = options.label_column
        label = None if column is None else _label_of(_value_of(record, column), column, class_names)
    except _WrongValueError as error:
        return BadRow(str(path), line, f"{place}{error}")
    kept = {key: _plain(value) for key, value in record.items()} if options.keep_record else None
    return Example(text, label, str(path), line, kept)


def _value_of(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise _WrongValueError(f"has no {shown(column)} among {', '.join(map(shown, list(record)[:MAX_SHOWN]))}")
    return record[column]


def _text_of(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _WrongValueError(f"{shown(column)} must be text, not {'null' if value is None else shown(value)}")
    if not value.isascii() and (found := SURROGATE.search(value)):
        raise _WrongValueError(f"{shown(column)} holds a lone surrogate (U+{ord(found[0]):04X})")
    return value


def _label_of(value: Any, column: str, class_names: Sequence[str] | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise _WrongValueError(NO_LABEL)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        if class_names is None:
            return str(value)
        if 0 <= value < len(class_names):
            return class_names[value]
        raise _WrongValueError(
            f"{shown(column)} is {value}, but the names in the file are of 0 to {len(class_names) - 1}"
        )
    if not isinstance(value, str):
        raise _WrongValueError(f"{shown(column)} must be text, a whole number, true or false, not {shown(value)}")
    if not (label := clean_label(_text_of(value, column))):
        raise _WrongValueError(NO_LABEL)
    return label


def _plain(value: Any) -> Any:
    """Returns a value that JSON can hold: dates and the like as their text, NaN as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)


# Lines and folders


def read_lines(path: Path, options: ReadOptions) -> Rows:
    """Reads one text a line, without labels. A blank line is a text too, so that every line has its result."""
    for number, text, fault in _numbered(TextLines(path, options.encoding)):
        if fault:
            yield BadRow(str(path), number, fault)
        else:
            yield Example(text, None, str(path), number, {"text": text} if options.keep_record else None)


def read_fasttext(path: Path, options: ReadOptions) -> Rows:
    """Reads fastText's lines, `__label__NAME text`, with one label each."""
    return _read_labelled_lines(path, options, lambda first: _fasttext_parts)


def read_label_text(path: Path, options: ReadOptions) -> Rows:
    """Reads a label and a text a line, with a tab between them, or a space where the first line has no tab."""

    def split(line: str, mark: str) -> Parts:
        label, found, text = line.partition(mark)
        return (label, text) if found else _no_mark(mark)

    return _read_labelled_lines(path, options, lambda first: functools.partial(split, mark=_mark_of(first)))


def read_text_label(path: Path, options: ReadOptions) -> Rows:
    """Reads a text and a label a line, with a tab between them, or a space where the first line has no tab."""

    def split(line: str, mark: str) -> Parts:
        text, found, label = (line if mark == "\t" else line.rstrip()).rpartition(mark)
        return (label, text) if found else _no_mark(mark)

    return _read_labelled_lines(path, options, lambda first: functools.partial(split, mark=_mark_of(first)))


def _mark_of(first: str) -> str:
    return "\t" if "\t" in first else " "


def _no_mark(mark: str) -> str:
    return (
        "has no tab between label and text, as the first line has"
        if mark == "\t"
        else "has no space between label and text"
    )


def _fasttext_parts(line: str) -> Parts:
    labels = list(_FASTTEXT_LABEL.finditer(line))
    if len(labels) != 1:
        return f"has {len(labels)} labels, but each text takes one" if labels else "has no label (__label__NAME)"
    return labels[0][1], line[: labels[0].start()] + line[labels[0].end() :]


def _read_labelled_lines(path: Path, options: ReadOptions, choose: Callable[[str], Callable[[str], Parts]]) -> Rows:
    """Splits all lines by what is chosen for the first, so that a tab in a later text does not make a label."""
    skipped = _Skipped(path)
    split = None
    is_empty = True
    for number, line, fault in _numbered(TextLines(path, options.encoding)):
        if not line.strip() and not fault:
            skipped.add(BLANK_LINE, number)
            continue
        is_empty = False
        split = split or (None if fault else choose(line))
        parts = fault or (split(line) if split else "")
        if isinstance(parts, str):
            yield BadRow(str(path), number, parts)
        else:
            yield _labelled(clean_label(parts[0]), parts[1], path, number, options)
    if is_empty:
        raise DataError(f"{path}: holds blank lines only")
    yield from skipped.remarks()


def _numbered(lines: TextLines) -> Iterator[tuple[int, str, str | None]]:
    """Yields every line's number from 1, its text without the line end, and what is wrong with it, if anything."""
    for number, line in enumerate(lines, 1):
        if lines.is_damaged:
            fault = TOO_LONG if len(line) > MAX_CHARACTERS else decoding_fault(line, lines.encoding)
            yield number, "" if fault else line.removesuffix("\r"), fault
        else:
            yield number, line.removesuffix("\r"), None


def _labelled(label: str, text: str, path: Path, line: int, options: ReadOptions) -> Example | BadRow:
    wants_label = options.label_column is not None
    if wants_label and not label:
        return BadRow(str(path), line, NO_LABEL)
    record = {"label": label, "text": text} if options.keep_record else None
    return Example(text, label if wants_label else None, str(path), line, record)


def read_folder(path: Path, options: ReadOptions) -> Rows:
    """Reads `path/LABEL/*.txt`, one text a file, by label and file name; hidden files and other kinds are left out.

    Raises:
        DataError: there is no folder, one has no text file, or a file cannot be read.
    """
    return read_labelled_files(folder_files(path), options)


def read_labelled_files(files: Iterable[tuple[str, Path]], options: ReadOptions) -> Rows:
    """Reads one text a file, with the label given next to it; with encoding `auto`, finds that of each file."""
    logged: set[str] = set()
    for label, file in files:
        encoding = find_encoding(file) if options.encoding == "auto" else resolve_encoding(file, options.encoding)
        if options.encoding == "auto" and encoding not in logged:
            logger.info(f"{file}: reading as {encoding}")
            logged.add(encoding)
        yield _read_file(file, label, options, encoding)


def folder_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields label and path of every text file in a folder of folders, sorted.

    Raises:
        DataError: there is no folder in it, or one has no text file.
    """
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not folders:
            raise DataError(
                f"{path}: holds no folders; texts lie in {path / 'LABEL' / '*.txt'}, a folder for each label"
            )
        for folder in folders:
            names = (entry for entry in folder.iterdir() if entry.suffix.lower() in TEXT_SUFFIXES and entry.is_file())
            files = sorted(entry for entry in names if entry.name[0] != ".")
            if not files:
                raise DataError(f"{folder}: is a label's folder without any *.txt file; add texts or remove it")
            yield from ((folder.name, file) for file in files)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from error


def _read_file(file: Path, label: str, options: ReadOptions, encoding: str) -> Example | BadRow:
    content = b""
    for block in byte_blocks(file):
        content += block
        if len(content) > MAX_CHARACTERS:
            return BadRow(str(file), 1, TOO_LONG)
    text = decode(file, content, encoding)
    for number, line in enumerate(text.split("\n") if not text.isascii() else (), 1):
        if fault := decoding_fault(line, encoding):
            return BadRow(str(file), number, fault)
    return _labelled(label, text, file, 1, options)


READERS: dict[str, Reader] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "folder": read_folder,
    "fasttext": read_fasttext,
    "label-text": read_label_text,
    "text-label": read_text_label,
    "parquet": read_table,
    "arrow": read_table,
    "lines": read_lines,
}
"""Each yields a file's rows in order and raises DataError where the file as a whole is wrong."""


# Names of numbered labels


def read_label_names(path: Path, encoding: str) -> dict[str, str]:
    """Returns the name of each number, in the order of the numbers.

    Each line is the name of one label, the first that of label 0. A blank line stands for a number that no text has, as
    0 is where numbers begin with 1.

    Raises:
        DataError: the file cannot be read, or has a name twice, a name that is a number, or a tab in one.
    """
    names: dict[str, str] = {}
    lines: dict[str, int] = {}
    for row in read(path, format="lines", options=ReadOptions(label_column=None, encoding=encoding)):
        name = row.text.strip()
        if not name:
            continue
        where = f"{path}:{row.line}"
        if "\t" in name:
            raise DataError(f"{where}: {shown(name)} holds a tab; there must be one name a line, nothing else")
        if name.isdecimal():
            raise DataError(f"{where}: {shown(name)} is a number itself; give the label a name in words")
        if name in lines:
            raise DataError(f"{where}: {shown(name)} is in line {lines[name]} already; every label needs another name")
        lines[name] = row.line
        names[str(row.line - 1)] = name
    if not names:
        raise DataError(f"{path}: holds no name; there must be one a line, the first that of label 0")
    return names


def name_labels(
    examples: Iterable[Example],
    names: dict[str, str],
    path: Path,
    *,
    bad_rows: str,
    on_bad_row: Callable[[BadRow], None],
) -> Iterator[Example]:
    """Gives each labelled example the name of its number, unless its label is a name already.

    Args:
        examples: whose labels are numbers.
        names: what `read_label_names` returned.
        path: where that was read, for messages.
        bad_rows: `error` to stop at the first label that has no name, `skip` to go on.
        on_bad_row: called with every skipped row.

    Raises:
        DataError: a label has no name, and `bad_rows` is `error`.
    """
    known = {**{name: name for name in names.values()}, **names}
    for example in examples:
        if example.label is None:
            yield example
        elif example.label in known:
            yield replace(example, label=known[example.label])
        else:
            first, last = next(iter(names)), next(reversed(names))  # in their order
            reason = (
                f"label {shown(example.label)} has no name in {path} (data.label_names), which names {first} to {last}"
            )
            row = BadRow(example.path, example.line, reason)
            if bad_rows == "error":
                raise DataError(f"{row}; fix the row or that file, or set data.bad_rows to skip")
            on_bad_row(row)
