"""Labelled text files of any kind as a stream of examples, with file and line in every error."""

import difflib
import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from bilstm_cls.data.columns import NO_LABEL, Columns, ReadOptions, SkippedLines, clean_label
from bilstm_cls.data.dialect import TableRows
from bilstm_cls.data.encoding import (
    MAX_CHARACTERS,
    TOO_LONG,
    TextLines,
    byte_blocks,
    decode,
    decoding_fault,
    find_encoding,
    resolve_encoding,
)
from bilstm_cls.data.formats import detect_format, require_path
from bilstm_cls.data.records import read_arrow, read_jsonl
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError, shown

__all__ = ["READERS", "ReadOptions", "detect_format", "name_labels", "read", "read_label_names"]

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".text")
BLANK_LINE = "blank line"
_MAX_SUSPECTS = 1000
"""Records that are kept until the labels of the whole file are known."""
_NO_MARK = {
    "\t": "has no tab between label and text, as the first line has",
    " ": "has no space between label and text",
}
_FASTTEXT_LABEL = re.compile(r"(?<!\S)__label__(\S+)(?:\s|$)")

Rows = Iterator[Example | BadRow]
Reader = Callable[[Path, ReadOptions], Rows]
Parts = tuple[str, str] | str
"""Label and text of a line, or what is wrong with it."""


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


# Tables


def _read_table(path: Path, options: ReadOptions, *, is_tsv: bool) -> Rows:
    """Reads delimited values with a header, or by position; the dialect is found as far as it is not given.

    Raises:
        DataError: the file is empty or unreadable, or a column is not there.
    """
    name = str(path)
    wanted = () if options.is_headerless else options.wanted
    rows = TableRows(path, options.encoding, options.csv, wanted, is_tsv=is_tsv)
    skipped = SkippedLines(path)
    if options.csv.skip_lines is None and rows.dialect.skip_lines:
        skipped.add("line before the table", 1, rows.dialect.skip_lines)
    body = _rows_with_content(rows, skipped)
    number, first = next(body, (1, "holds blank lines only"))
    if isinstance(first, str):
        raise DataError(f"{name}:{number}: {first}, in the {'first row' if options.is_headerless else 'header'}")
    columns = Columns.of(first, options, f"{name}:{number}")
    width, label_at, has_header = len(columns.names), columns.label, not options.is_headerless
    label = None
    labels: dict[str, str] = {}  # clean, by what is written
    suspects: list[tuple[int, list[list[str]]]] = []
    is_empty, is_bad = True, False
    for line, row in chain([] if has_header else [(number, first)], body):
        if row == first and has_header and width > 1:
            skipped.add("repeated header", line)
            continue
        if isinstance(row, list) and len(row) != width:
            row = columns.fit(row) or _ragged(row, width, len(rows.record))
        if isinstance(row, list) and label_at is not None:
            label = labels.get(row[label_at]) or clean_label(row[label_at])
            labels[row[label_at]] = label
            if not label and not any(map(str.strip, row)):
                skipped.add(BLANK_LINE, line)
                continue
            row = row if label else NO_LABEL
        if is_bad and isinstance(row, list) and rows.has_odd_quotes():
            row = "the end of a text, by its quotes, whose beginning is a bad row"
        is_empty, is_bad = False, isinstance(row, str)
        if isinstance(row, str):
            yield BadRow(name, line, row)
            continue
        text = "\n".join([row[position] for position in columns.texts])
        record = dict(zip(columns.names, row, strict=True)) if options.keep_record else None
        yield Example(text, label, name, line, record)
        if len(rows.record) > 1 and width > 1 and len(suspects) < _MAX_SUSPECTS:
            within = rows.rows_within(width)
            if label_at is not None or len(within) == len(rows.record):
                suspects.append((line, within))
    if is_empty:
        raise DataError(f"{name}: has a header and no rows")
    for line, within in suspects:
        if label_at is None or sum(row[label_at] in labels for row in within) > 1:
            yield BadRow(name, line, "one text of several lines that could be rows (is a quote missing?)", is_read=True)
    yield from skipped.remarks()


def _rows_with_content(rows: TableRows, skipped: SkippedLines) -> Iterator[tuple[int, list[str] | str]]:
    """Leaves out and counts the lines that are no rows of a table."""
    comment = rows.dialect.comment
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


# Lines and folders


def read_lines(path: Path, options: ReadOptions) -> Rows:
    """Reads one text a line, without labels. A blank line is a text too, so that every line has its result."""
    for number, text, fault in _numbered(TextLines(path, options.encoding)):
        if fault:
            yield BadRow(str(path), number, fault)
        else:
            yield Example(text, None, str(path), number, {"text": text} if options.keep_record else None)


def _read_labelled_lines(path: Path, options: ReadOptions, *, split: Callable[[str, str], Parts]) -> Rows:
    """Reads a label and a text a line, with a tab between them, or a space where the first line has no tab.

    Args:
        path: the file.
        options: the encoding, and whether labels are wanted.
        split: parts a line without its end; the second argument is the tab or space.
    """
    skipped = SkippedLines(path)
    mark = ""
    for number, line, fault in _numbered(TextLines(path, options.encoding)):
        if not line.strip() and not fault:
            skipped.add(BLANK_LINE, number)
            continue
        mark = mark or ("\t" if "\t" in line else " ")
        parts = fault or split(line, mark)
        if isinstance(parts, str):
            yield BadRow(str(path), number, parts)
        else:
            yield _labelled(clean_label(parts[0]), parts[1], path, number, options)
    if not mark:
        raise DataError(f"{path}: holds blank lines only")
    yield from skipped.remarks()


def _label_first(line: str, mark: str) -> Parts:
    label, found, text = line.partition(mark)
    return (label, text) if found else _NO_MARK[mark]


def _label_last(line: str, mark: str) -> Parts:
    text, found, label = (line if mark == "\t" else line.rstrip()).rpartition(mark)
    return (label, text) if found else _NO_MARK[mark]


def _fasttext(line: str, _: str) -> Parts:
    labels = list(_FASTTEXT_LABEL.finditer(line))
    if len(labels) != 1:
        return f"has {len(labels)} labels, but each text takes one" if labels else "has no label (__label__NAME)"
    return labels[0][1], line[: labels[0].start()] + line[labels[0].end() :]


def _numbered(lines: TextLines) -> Iterator[tuple[int, str, str | None]]:
    """Yields every line's number from 1, its text without the line end, and what is wrong with it, if anything."""
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r"), lines.fault([line]) if lines.is_damaged else None


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
    for label, file in files:
        encoding = find_encoding(file) if options.encoding == "auto" else resolve_encoding(file, options.encoding)
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
    "csv": functools.partial(_read_table, is_tsv=False),
    "tsv": functools.partial(_read_table, is_tsv=True),
    "jsonl": read_jsonl,
    "folder": read_folder,
    "fasttext": functools.partial(_read_labelled_lines, split=_fasttext),
    "label-text": functools.partial(_read_labelled_lines, split=_label_first),
    "text-label": functools.partial(_read_labelled_lines, split=_label_last),
    "parquet": read_arrow,
    "arrow": read_arrow,
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
            which = f"in {path} (data.label_names), which names {first} to {last}"
            row = BadRow(example.path, example.line, f"label {shown(example.label)} has no name {which}")
            if bad_rows == "error":
                raise DataError(f"{row}; fix the row or that file, or set data.bad_rows to skip")
            on_bad_row(row)
