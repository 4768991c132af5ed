"""Readers of all formats but tables: lines, folders, JSON lines and documents, Parquet and Arrow."""

import functools
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bilstm_cls.data.encoding import (
    MAX_CHARACTERS,
    TOO_LONG,
    TextLines,
    decoding_fault,
    find_encoding,
)
from bilstm_cls.data.tables import MAX_SHOWN, ReadOptions, Rows, is_prose, require_columns
from bilstm_cls.data.types import BLANK_LINE, BadRow, Example, SkippedLines, WrongValueError, checked_text, label_of
from bilstm_cls.errors import DataError, shown

MAX_DOCUMENT_BYTES = 2**28
"""The largest JSON file that is not JSON lines; its text is held in memory."""
TEXT_SUFFIXES = (".txt", ".text")
_MAX_HEAD = 100
"""JSON objects that show whether a key is missing from one or from all."""
BATCH_ROWS = 1024
_NO_MARK = {
    "\t": "has no tab between label and text, as the first line has",
    " ": "has no space between label and text",
}
_FASTTEXT_LABEL = re.compile(r"(?<![^\s,])__label__(\S+?)(?:(?:\s*,)?(?:\s|$)|,(?=__label__))")

Parts = tuple[str | list[str], str] | str
"""Label or labels and text of a line, or what is wrong with it."""
Record = tuple[int, dict[str, Any] | str | None]
"""Where a record starts (its line or, in a table, row, from 1), and its values or what is wrong; None for no record."""


Batches = Callable[[Sequence[str]], Iterator[Any]]
"""What yields batches of some columns of an Arrow table."""


def read_lines(path: Path, options: ReadOptions) -> Rows:
    """Reads one text a line, without labels. A blank line is a text too, so that every line has its result."""
    for number, text, fault in _numbered(TextLines(path, options.encoding)):
        if fault:
            yield BadRow(str(path), number, fault)
        else:
            yield Example(text, None, str(path), number, {"text": text} if options.keep_record else None)


def read_labelled_lines(path: Path, options: ReadOptions, *, split: Callable[[str, str], Parts]) -> Rows:
    """Reads a label and a text a line; `split` parts a line at its second argument, a tab or else a space."""
    options, skipped = _without_columns(options), SkippedLines(path)
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
            yield _example(dict(zip(("label", "text"), parts, strict=True)), options, path, number)
    if not mark:
        raise DataError(f"{path}: holds blank lines only")
    yield from skipped.remarks()


def label_first(line: str, mark: str) -> Parts:
    """Parts a line behind its label."""
    label, found, text = line.partition(mark)
    return (label, text) if found else _NO_MARK[mark]


def label_last(line: str, mark: str) -> Parts:
    """Parts a line before its label."""
    text, found, label = (line if mark == "\t" else line.rstrip()).rpartition(mark)
    return (label, text) if found else _NO_MARK[mark]


def fasttext(line: str, _: str) -> Parts:
    """Takes the words that begin with `__label__` out of a line."""
    return _FASTTEXT_LABEL.findall(line), _FASTTEXT_LABEL.sub("", line)


def _numbered(lines: TextLines) -> Iterator[tuple[int, str, str | None]]:
    """Yields every line's number from 1, its text without the line end, and what is wrong with it, if anything."""
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r"), lines.fault([line])


def _without_columns(options: ReadOptions) -> ReadOptions:
    """Returns the options for formats that have a label and a text and no names for them."""
    return replace(options, text_columns=("text",), label_column="label" if options.label_columns else None)


def read_folder(path: Path, options: ReadOptions) -> Rows:
    """Reads `path/LABEL/*.txt`, one text a file, by label and file name; hidden files and other kinds are left out."""
    return read_labelled_files(folder_files(path), options)


def read_labelled_files(files: Iterable[tuple[str, Path]], options: ReadOptions) -> Rows:
    """Reads one text a file, with the label given next to it; with encoding `auto`, finds that of each file."""
    options = _without_columns(options)
    for label, file in files:
        lines = TextLines(file, find_encoding(file) if options.encoding == "auto" else options.encoding)
        text = lines.whole(MAX_CHARACTERS)
        if fault := TOO_LONG if text is None else lines.fault([text]):
            yield BadRow(str(file), 1, fault)
        else:
            yield _example({"label": label, "text": text}, options, file, 1)


def folder_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields label and path of every text file in a folder of folders, sorted.

    Raises:
        DataError: there is no folder in it, or one has no text file.
    """
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not folders:
            raise DataError(f"{path}: holds no folders; texts lie in {path / 'LABEL' / '*.txt'}, a folder a label")
        for folder in folders:
            names = (entry for entry in folder.iterdir() if entry.suffix.lower() in TEXT_SUFFIXES)
            if not (files := sorted(entry for entry in names if entry.name[0] != "." and entry.is_file())):
                raise DataError(f"{folder}: is a label's folder without any *.txt file; add texts or remove it")
            yield from ((folder.name, file) for file in files)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from error


def read_jsonl(path: Path, options: ReadOptions) -> Rows:
    """Reads JSON objects, one a line or those of one document: an array, or what `_table_of` finds in an object.

    Keys that are there twice, NaN and infinite numbers make a row a bad one.

    Raises:
        DataError: the file is empty, unreadable or too large a document, or none of its objects has a wanted key.
    """
    skipped = SkippedLines(path)
    records = _with_header(_json_records(path, options), options.wanted)
    head = list(itertools.islice(records, _MAX_HEAD))
    objects = [(line, record) for line, record in head if isinstance(record, dict)]
    if objects:
        keys = dict.fromkeys(key for _, record in objects for key in record)
        require_columns(list(keys), options, f"{path}:{objects[0][0]}")
    is_empty = True
    for line, record in itertools.chain(head, records):
        if record is None:
            skipped.add(BLANK_LINE, line)
            continue
        is_empty = False
        yield BadRow(str(path), line, record) if isinstance(record, str) else _example(record, options, path, line)
    if is_empty:
        raise DataError(f"{path}: holds no JSON object")
    yield from skipped.remarks()


def _json_records(path: Path, options: ReadOptions) -> Iterator[Record]:
    lines = TextLines(path, options.encoding)
    if _is_document(list(itertools.islice((line for line in lines if line.strip()), 2)), options.text_columns):
        yield from _document_records(lines, options.text_columns)
        return
    for number, line in enumerate(lines, 1):
        yield number, lines.fault([line]) or (_record_in(line) if line and not line.isspace() else None)


def _with_header(records: Iterable[Record], wanted: Sequence[str]) -> Iterator[Record]:
    """Names the values of arrays by the first of them, where that holds the names of the wanted columns."""
    header: list[str] | None = None
    for line, record in records:
        if isinstance(record, dict) and "#1" in record:
            names = list(map(str, record.values()))
            if header is None and wanted and {*wanted} <= {*names}:
                header = names
                continue
            header = header or []
            record = dict(zip(header, record.values(), strict=False)) if header else record
        yield line, record


def _is_document(lines: Sequence[str], text_columns: Sequence[str]) -> bool:
    """Whether the first two lines that are not blank begin a JSON document rather than JSON lines."""
    first, second = ([line.strip() for line in lines] + ["", ""])[:2]
    try:
        value = _DECODER.decode(first)
    except (ValueError, RecursionError):
        # The first of JSON lines, if broken, has another object after it.
        return first.startswith("[") or (first.startswith("{") and not first.endswith("}") and second[:1] != "{")
    return not second and (isinstance(value, list) or _table_of(value, text_columns) is not None)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return record


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)


def _record_in(text: str) -> dict[str, Any] | str:
    try:
        return _record_of(_DECODER.decode(text))
    except (ValueError, RecursionError) as error:
        return _json_fault(error)


def _record_of(value: Any) -> dict[str, Any] | str:
    """Returns the values of a row by name, or by position where it is an array; or what is wrong with it."""
    if isinstance(value, list) and value:
        return {f"#{position}": cell for position, cell in enumerate(value, 1)}
    return value if isinstance(value, dict) else f"must be a JSON object, not {shown(value)}"


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    # Ours, or the interpreter's about an integer of more digits than it converts.
    return "nested too deep" if isinstance(error, RecursionError) else f"not JSON: {error}"


def _document_records(lines: TextLines, text_columns: Sequence[str]) -> Iterator[Record]:
    text, path = lines.whole(MAX_DOCUMENT_BYTES), lines.path
    if text is None:
        command = f"jq -c '.[]' {path.name} > {path.stem}.jsonl"
        raise DataError(f"{path}: is too large for one JSON document; write one object a line, as with: {command}")
    value = decoding_fault(text, lines.encoding) or _record_in(text)
    table = None if text.lstrip().startswith("[") else _table_of(value, text_columns)
    if isinstance(table, dict):
        name = next(iter(table))
        command = f"jq {shlex.quote(f'.{json.dumps(name)}')} {path.name} > {path.stem}-{name}.json"
        listed = ", ".join(map(shown, list(table)[:MAX_SHOWN]))
        raise DataError(f"{path}: holds several tables, {listed}; write one a file, as with: {command}")
    if table is not None:
        yield from enumerate(map(_record_of, table), 1)
    else:  # an array of rows, or one after the other
        yield from _rows_in(text, lines.encoding)


def _rows_in(text: str, encoding: str) -> Iterator[Record]:
    """Yields rows of several lines with the lines where they start; what is after a broken one is lost with it."""
    line, counted = 1, 0
    position = text.index("[") + 1 if text.lstrip().startswith("[") else 0
    while True:
        while text[position : position + 1].isspace() or text.startswith(",", position):
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        if text.startswith("]", position) or position == len(text):
            return
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield line, _json_fault(error) + "; the rest of the file after it is not read"
            return
        fault = None if text.isascii() else decoding_fault(text[position:end], encoding)
        yield line, fault or _record_of(value)
        position = end


def _table_of(value: Any, text_columns: Sequence[str]) -> list[Any] | dict[str, Any] | None:
    """Returns the rows that one object holds, several tables by name, or None where it is a row itself.

    The rows are what pandas writes with `orient` split, index and columns; columns that are arrays, one of them of
    texts; for each label the texts that have it; or a table or an array of rows under a key, as in `{"data": [...]}`.
    """
    if not isinstance(value, dict) or not value or any(isinstance(value.get(name), str) for name in text_columns):
        return None
    arrays = {name: array for name, array in value.items() if isinstance(array, list) and array}
    if {"columns", "data"} <= {*arrays} and isinstance(arrays["data"][0], list):
        names = list(map(str, arrays["columns"]))
        return [dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in arrays["data"]]
    rows = _rows_of_columns(arrays)
    if (
        len(value) == len(arrays) > 1
        and all(isinstance(entry, str) for array in arrays.values() for entry in array)
        and (not rows or ({*text_columns}.isdisjoint(arrays) and all(map(is_prose, arrays.values()))))
    ):
        return [{"text": text, "label": label} for label, array in arrays.items() for text in array]
    if rows:
        return rows
    tables: dict[str, Any] = {name: array for name, array in arrays.items() if isinstance(array[0], dict | list)}
    for name, entry in value.items():
        if isinstance(entry, dict) and (rows := _rows_of_columns(entry)):
            tables[name] = rows
    if tables:
        return tables if len(tables) > 1 else next(iter(tables.values()))
    inner = list(value.values())
    if not all(isinstance(entry, dict) and entry for entry in inner):
        return None
    if len(inner) > len(inner[0]) and not {*text_columns} & {*value}:  # more rows than columns
        return inner
    return [{name: column.get(key) for name, column in value.items()} for key in inner[0]]


def _rows_of_columns(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of columns of the same length, one of them of texts; none where they are no such columns."""
    if not all(isinstance(column, list) for column in columns.values()) or len({*map(len, columns.values())}) != 1:
        return []
    if len(columns) < 2 or not any(isinstance(cell, str) for column in columns.values() for cell in column[:1]):
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def read_arrow(path: Path, options: ReadOptions) -> Rows:
    """Reads a Parquet or Arrow file, or a folder of `save_to_disk`; an example's `line` is its row, counted from 1.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or a column is not there.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise DataError(f"{path}: Parquet and Arrow need pyarrow; pip install 'bilstm-cls[parquet]'") from None
    try:
        yield from table_rows(*_open_table(path), str(path), options)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet or Arrow ({reason})") from error


def table_rows(schema: Any, batches: Batches, path: str, options: ReadOptions) -> Rows:
    """Reads the rows of an Arrow table.

    Args:
        schema: of all its columns.
        batches: what yields batches of some of its columns.
        path: stands for the file in messages.
        options: what to take.

    Raises:
        DataError: a column is not there, or the table is empty.
    """
    require_columns(schema.names, options, path)
    columns = schema.names if options.keep_record else list(dict.fromkeys(options.wanted))
    names = class_names(schema).get(*options.label_columns[:1] or [""])
    row = 0
    for row, record in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches(columns)), 1):
        yield _example(record, options, path, row, place=f"row {row}: ", names=names)
    if row == 0:
        raise DataError(f"{path}: has no rows")


def _open_table(path: Path) -> tuple[Any, Batches]:
    """Returns a table's schema, and what yields batches of some of its columns."""
    import pyarrow.parquet as pq

    if path.suffix.lower() != ".arrow" and path.is_file():
        file = pq.ParquetFile(path)
        return file.schema_arrow, lambda columns: file.iter_batches(BATCH_ROWS, columns=columns)
    files = [path]
    if path.is_dir():
        try:
            state = json.loads((path / "state.json").read_text("utf-8"))
            files = [path / entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path / 'state.json'}: does not name the files of a saved data set") from error
    return _open_arrow(files[0]).schema, functools.partial(_arrow_batches, files)


def _open_arrow(path: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path)))  # as the library datasets writes


def _arrow_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Any]:
    for batch in itertools.chain.from_iterable(map(_open_arrow, files)):
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.select(columns).slice(start, BATCH_ROWS)


def class_names(schema: Any) -> dict[str, list[str]]:
    """Returns the names of the numbers in each column that is a `ClassLabel` of the library `datasets`, or of lists."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        inner = {name: f[0] if isinstance(f, list) else f.get("feature", f) for name, f in features.items()}
        return {name: list(map(str, f["names"])) for name, f in inner.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _example(
    record: Mapping[str, Any],
    options: ReadOptions,
    path: Path | str,
    line: int,
    *,
    place: str = "",
    names: Sequence[str] | None = None,
) -> Example | BadRow:
    try:
        text = "\n".join([checked_text(_value_of(record, column), column) for column in options.text_columns])
        label = None
        if columns := options.label_columns:
            values = [_value_of(record, column) for column in columns]
            label = label_of(values, columns, options.separator, names)
    except WrongValueError as error:
        return BadRow(str(path), line, f"{place}{error}")
    kept = json.loads(json.dumps(record, default=str), parse_constant=lambda _: None) if options.keep_record else None
    return Example(text, label, str(path), line, kept)  # dates and the like are kept as text, NaN as null


def _value_of(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise WrongValueError(f"has no {shown(column)} among {', '.join(map(shown, list(record)[:MAX_SHOWN]))}")
    return record[column]
