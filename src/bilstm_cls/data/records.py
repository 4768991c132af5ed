"""Formats whose rows are records of named values: JSON lines and documents, Parquet and Arrow."""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bilstm_cls.data.columns import MAX_SHOWN, NO_LABEL, ReadOptions, SkippedLines, clean_label, require_columns
from bilstm_cls.data.encoding import SURROGATE, TextLines, byte_blocks, decode, decoding_fault
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError, shown

MAX_DOCUMENT_BYTES = 2**28
"""The largest JSON file that is not JSON lines; its text is held in memory."""
_MAX_HEAD = 100
"""JSON objects that show whether a key is missing from one or from all."""
_BATCH_ROWS = 1024

Record = tuple[int, dict[str, Any] | str | None]
"""Where a record starts (its line or, in a table, row, from 1), and its values or what is wrong; None for no record."""


class _WrongValueError(Exception):
    """A value that cannot be a text or a label."""


def read_jsonl(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads JSON objects, one a line or those of one document: an array, `{"data": [...]}`, or a pandas table.

    Keys that are there twice, NaN and infinite numbers make a row a bad one.

    Raises:
        DataError: the file is empty, unreadable or too large a document, or none of its objects has a wanted key.
    """
    skipped = SkippedLines(path)
    records = _json_records(path, options)
    head = list(itertools.islice(records, _MAX_HEAD))
    objects = [(line, record) for line, record in head if isinstance(record, dict)]
    if objects:
        keys = dict.fromkeys(key for _, record in objects for key in record)
        require_columns(list(keys), options, f"{path}:{objects[0][0]}")
    is_empty = True
    for line, record in itertools.chain(head, records):
        if record is None:
            skipped.add("blank line", line)
            continue
        is_empty = False
        yield BadRow(str(path), line, record) if isinstance(record, str) else _example(record, options, path, line)
    if is_empty:
        raise DataError(f"{path}: holds no JSON object")
    yield from skipped.remarks()


def _json_records(path: Path, options: ReadOptions) -> Iterator[Record]:
    lines = TextLines(path, options.encoding)
    if _is_document(list(itertools.islice((line for line in lines if line.strip()), 2)), options):
        yield from _document_records(path, lines.encoding)
        return
    lines = TextLines(path, lines.encoding)
    for number, line in enumerate(lines, 1):
        fault = lines.fault([line]) if lines.is_damaged else None
        yield number, fault or (_parse(line) if line and not line.isspace() else None)


def _is_document(lines: Sequence[str], options: ReadOptions) -> bool:
    """Whether the first two lines that are not blank begin a JSON document rather than JSON lines."""
    if not lines or not lines[0].lstrip().startswith("{"):
        return bool(lines) and lines[0].lstrip().startswith("[")
    if len(lines) > 1:
        # An object written over several lines; the first of JSON lines, if broken, has another object after it.
        return not lines[0].rstrip().endswith("}") and not lines[1].lstrip().startswith("{")
    value = _parse(lines[0])
    if not isinstance(value, dict) or any(isinstance(value.get(name), str) for name in options.text_columns):
        return False
    return _table_of(value) is not None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return record


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)


def _parse(text: str) -> dict[str, Any] | str:
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _json_fault(error)
    return value if isinstance(value, dict) else f"must be a JSON object, not {shown(value)}"


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    # Ours, or the interpreter's about an integer of more digits than it converts.
    return "nested too deep" if isinstance(error, RecursionError) else f"not JSON: {error}"


def _document_records(path: Path, encoding: str) -> Iterator[Record]:
    content = b""
    for block in byte_blocks(path):
        content += block
        if len(content) > MAX_DOCUMENT_BYTES:
            rows = ".[]" if content.lstrip()[:1] == b"[" else ".data[]"
            command = f"jq -c '{rows}' {path.name} > {path.stem}.jsonl"
            raise DataError(f"{path}: is too large for one JSON document; write one object a line: {command}")
    text = decode(path, content, encoding)
    del content
    value = decoding_fault(text, encoding) or _parse(text)
    table = _table_of(value) if isinstance(value, dict) else None
    # What is not one object is an array of objects, or one after the other.
    yield from enumerate(table, 1) if table is not None else _objects(text, encoding)


def _objects(text: str, encoding: str) -> Iterator[Record]:
    """Yields objects of several lines with the lines where they start; what is after a broken one is lost with it."""
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
        yield line, fault or (value if isinstance(value, dict) else f"must be a JSON object, not {shown(value)}")
        position = end


def _table_of(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the records that one object holds, or None where it is a record itself.

    They may be a list under one of its keys, or a table as `DataFrame.to_json` writes it, for any `orient`.
    """
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, columns), row, strict=False)) for row in data]
    lists = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if lists:
        return max(lists, key=len)
    inner = list(value.values())
    if not inner or not all(isinstance(column, dict) and column for column in inner):
        return None
    if all(map(str.isdecimal, value)) and not all(map(str.isdecimal, inner[0])):
        return inner  # by row
    return [{name: column.get(key) for name, column in value.items()} for key in inner[0]]


def read_arrow(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads a Parquet or Arrow file, or a folder of `save_to_disk`; an example's `line` is its row, counted from 1.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or a column is not there.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise DataError(f"{path}: Parquet and Arrow need pyarrow; pip install 'bilstm-cls[parquet]'") from None
    row = 0
    try:
        schema, batches = _open_table(path)
        require_columns(schema.names, options, str(path))
        columns = schema.names if options.keep_record else list(dict.fromkeys(options.wanted))
        class_names = _class_names(schema).get(options.label_column or "")
        for record in itertools.chain.from_iterable(map(_rows_of, batches(columns))):
            row += 1
            if isinstance(record, str):
                yield BadRow(str(path), row, f"row {row}: {record}")
            else:
                yield _example(record, options, path, row, place=f"row {row}: ", class_names=class_names)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet or Arrow ({reason})") from error
    if row == 0:
        raise DataError(f"{path}: has no rows")


def _open_table(path: Path) -> tuple[Any, Callable[[Sequence[str]], Iterator[Any]]]:
    """Returns a table's schema, and what yields batches of some of its columns."""
    import pyarrow.parquet as pq

    if path.suffix.lower() != ".arrow" and path.is_file():
        file = pq.ParquetFile(path)
        return file.schema_arrow, lambda columns: file.iter_batches(_BATCH_ROWS, columns=columns)
    files = _shards(path) if path.is_dir() else [path]
    return _open_arrow(files[0]).schema, functools.partial(_arrow_batches, files)


def _shards(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'state.json'}: does not name the files of a saved data set") from error


def _open_arrow(path: Path) -> Any:
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source)  # as the library datasets writes
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source)


def _arrow_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Any]:
    for reader in map(_open_arrow, files):
        is_stream = hasattr(reader, "read_next_batch")
        for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.select(columns).slice(start, _BATCH_ROWS)


def _class_names(schema: Any) -> dict[str, list[str]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(map(str, f["names"])) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yields a batch's rows; where one holds a string that is not UTF-8, what is wrong with it."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            try:
                yield from batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield f"byte 0x{error.object[error.start]:02x} is not utf-8"


def _example(
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
        raise _WrongValueError(f"{shown(column)} must be text, not {shown(value)}")
    if not value.isascii() and (found := SURROGATE.search(value)):
        raise _WrongValueError(f"{shown(column)} holds a lone surrogate (U+{ord(found[0]):04X})")
    return value


def _label_of(value: Any, column: str, class_names: Sequence[str] | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value != value:
        raise _WrongValueError(NO_LABEL)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and class_names is not None:
        if not 0 <= value < len(class_names):
            raise _WrongValueError(f"{shown(column)} is {value}, but there are names of 0 to {len(class_names) - 1}")
        value = class_names[value]
    if not isinstance(value, str | int):
        raise _WrongValueError(f"{shown(column)} must be text, a whole number, true or false, not {shown(value)}")
    label = clean_label(_text_of(str(value), column))
    if not label:
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
