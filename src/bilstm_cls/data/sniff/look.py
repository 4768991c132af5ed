"""The first rows of a file, or some files of a folder, with the columns of text and label found in them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bilstm_cls.data.readers import READERS, ReadOptions
from bilstm_cls.data.readers.columns import NO_LABEL, quoted
from bilstm_cls.data.readers.lines import folder_files, read_files
from bilstm_cls.data.sniff.columns import Table, guess_label, guess_texts, is_header, table_of
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError

MAX_ROWS = 20_000
MAX_BYTES = 32 * 2**20
MAX_FILES = 2_000
TABLES = ("csv", "tsv", "jsonl", "parquet")


@dataclass(frozen=True)
class Wanted:
    """The columns the user named; None where they are to be guessed."""

    text_columns: tuple[str, ...] | None
    label_column: str | None


@dataclass
class Look:
    """What was looked at.

    Attributes:
        texts: of the rows that can be read.
        labels: how often each came up.
        num_rows: of the whole file; an estimate unless `is_whole`.
        is_whole: whether nothing was left out.
        bad: the rows that cannot be read.
        text_columns: empty for formats without columns.
        label_column: None for formats without columns.
    """

    texts: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    is_whole: bool = True
    bad: list[BadRow] = field(default_factory=list)
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None


def some_files(path: Path) -> list[tuple[str, Path]]:
    """Returns label and path of files from all over a folder of folders."""
    files = list(folder_files(path))
    return files[:: 1 + len(files) // MAX_FILES]


def look_at_folder(path: Path, encoding: str) -> Look:
    """Reads some files of every label, and counts all."""
    some = some_files(path)
    rows = list(read_files(some, ReadOptions(encoding=encoding)))
    labels = Counter(label for label, _ in folder_files(path))
    texts = [row.text for row in rows if isinstance(row, Example)]
    bad = [row for row in rows if isinstance(row, BadRow)]
    return Look(texts, labels, labels.total(), labels.total() == len(some), bad)


def look_at_file(path: Path, format: str, encoding: str, wanted: Wanted) -> Look:
    """Reads the first rows of a file.

    Raises:
        DataError: it cannot be read, or nothing tells the column of the label or the text.
    """
    options = ReadOptions(encoding=encoding)
    if format in TABLES:
        # A header is read as a row at first, since there may be none.
        columns = ("#1",) if format in ("csv", "tsv") else ()
        options = ReadOptions(columns, label_column=None, encoding=encoding, keep_record=True)
    look = Look()
    examples, num_bytes = _first_rows(READERS[format](path, options), look)
    if not look.is_whole:
        look.num_rows = _estimated_rows(path, format, len(examples), num_bytes)
    if format not in TABLES:
        look.texts = [example.text for example in examples]
        look.labels = Counter(example.label or "" for example in examples)
    elif examples:
        table, lines = _table(examples, format)
        _choose_columns(look, table, path, wanted)
        _take_columns(look, table, path, lines)
    if look.is_whole:
        look.num_rows = len(look.texts)
    return look


def _first_rows(rows: Iterable[Example | BadRow], look: Look) -> tuple[list[Example], int]:
    """Returns examples and their size in bytes; what is bad, or left out, goes into `look`."""
    examples: list[Example] = []
    num_bytes = num_rows = 0
    for row in islice(rows, MAX_ROWS):
        num_rows += 1
        if isinstance(row, BadRow):
            look.bad += [] if row.is_read else [row]
            continue
        examples.append(row)
        fields = row.record.values() if row.record is not None else (row.label, row.text)
        num_bytes += sum(len(str(value).encode(errors="replace")) + 1 for value in fields)
        if num_bytes > MAX_BYTES:
            break
    look.is_whole = num_rows < MAX_ROWS and num_bytes <= MAX_BYTES
    return examples, num_bytes


def _estimated_rows(path: Path, format: str, num_rows: int, num_bytes: int) -> int:
    if format == "parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    return max(num_rows, num_rows * path.stat().st_size // max(1, num_bytes))


def _table(examples: Sequence[Example], format: str) -> tuple[Table, list[int]]:
    """Returns the rows below the header, if there is one, and their lines."""
    records = [example.record or {} for example in examples]
    names = list(records[0])
    table = table_of([[record.get(name) for name in names] for record in records], names)
    lines = [example.line for example in examples]
    if format not in ("csv", "tsv"):
        return table, lines
    first = [str(values[0]).strip() for values in table.columns]
    below = Table(table.names, tuple(values[1:] for values in table.columns))
    if not is_header(first, below):
        return table, lines
    names = [name or position for name, position in zip(first, table.names, strict=True)]
    return Table(tuple(names), below.columns), lines[1:]


def _choose_columns(look: Look, table: Table, path: Path, wanted: Wanted) -> None:
    known = wanted.text_columns or ()
    label = wanted.label_column or guess_label(table, known)
    if label is None or label not in table.names:
        raise DataError(f"{path}: {_unknown(table, 'label', label)}; name it: --set data.label_column=NAME")
    texts = known or guess_texts(table, label)
    wrong = next((name for name in texts if name not in table.names), None)
    if not texts or wrong is not None:
        raise DataError(f"{path}: {_unknown(table, 'text', wrong)}; name it: --set data.text_columns=NAME")
    look.text_columns, look.label_column = texts, label


def _unknown(table: Table, kind: str, name: str | None) -> str:
    start = f"cannot tell which column holds the {kind}" if name is None else f"there is no column {quoted(name)}"
    shown = [f"{quoted(n)} ({_example_of(values)})" for n, values in zip(table.names, table.columns, strict=True)]
    return f"{start}; there are {', '.join(shown[:20])}"


def _example_of(values: Sequence[Any]) -> str:
    return f"such as {quoted(values[0])}" if values else "without values"


def _take_columns(look: Look, table: Table, path: Path, lines: Sequence[int]) -> None:
    assert look.label_column is not None
    texts = [table[name] for name in look.text_columns]
    for line, label, *parts in zip(lines, table[look.label_column], *texts, strict=True):
        if not all(isinstance(part, str) for part in parts):
            look.bad.append(BadRow(str(path), line, "the text is no text"))
        elif label is None or not str(label).strip():
            look.bad.append(BadRow(str(path), line, NO_LABEL))
        else:
            look.texts.append("\n".join(parts))
            look.labels[str(label).lower() if isinstance(label, bool) else str(label).strip()] += 1
    look.bad.sort(key=lambda bad: bad.line)
