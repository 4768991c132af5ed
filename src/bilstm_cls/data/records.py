"""Records of named values: JSON lines, JSON documents, Parquet and Arrow files."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bilstm_cls.data.encoding import MAX_CHARACTERS, TOO_LONG, TextLines, byte_blocks, decode, decoding_fault
from bilstm_cls.errors import DataError, cut

MAX_DOCUMENT_BYTES = 2**28
"""The largest JSON file that is not JSON lines; its text is held in memory."""
BATCH_ROWS = 1024

Record = tuple[int, dict[str, Any] | str | None]
"""Where a record starts (a line or, in a table, a row, counted from 1), and its values or what is wrong with it; None
for a blank line."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {cut(repr(next(name for name in names if names.count(name) > 1)))} is there twice")
    return record


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)


def json_records(path: Path, encoding: str) -> Iterator[Record]:
    """Yields the objects of JSON lines, one a line, or of one document: an array, `{"data": [...]}`, or a pandas table.

    Keys that are there twice, NaN and infinite numbers are faults.

    Raises:
        DataError: the file cannot be read, or is one document and too large.
    """
    lines = TextLines(path, encoding)
    first = list(islice((line for line in lines if line.strip()), 2))
    if _is_document(first):
        yield from _document_records(path, lines.encoding)
        return
    lines = TextLines(path, lines.encoding)
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_CHARACTERS:
            yield number, TOO_LONG
        elif not line.strip():
            yield number, None
        else:
            yield number, (decoding_fault(line, lines.encoding) if lines.is_damaged else None) or _parse(line)


def _is_document(lines: Sequence[str]) -> bool:
    """Whether the first two lines that are not blank begin a JSON document rather than JSON lines."""
    if not lines or lines[0].lstrip()[:1] not in ("[", "{"):
        return False
    if lines[0].lstrip().startswith("["):
        return True
    if len(lines) > 1:
        # An object written over several lines; a broken first row has another after it.
        return not lines[0].rstrip().endswith("}") and not lines[1].lstrip().startswith("{")
    value = _parse(lines[0])
    return not isinstance(value, dict) or _table_of(value) is not None


def _parse(line: str) -> dict[str, Any] | str:
    try:
        value = _DECODER.decode(line.strip(" \t\r"))
    except (ValueError, RecursionError) as error:
        return _json_fault(error)
    return value if isinstance(value, dict) else f"must be a JSON object, not {cut(repr(value))}"


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
            start = "." if content.lstrip()[:1] == b"[" else ".data"
            raise DataError(
                f"{path}: is one JSON document of more than {MAX_DOCUMENT_BYTES // 2**20} MiB; write one object a line: "
                f"jq -c '{start}[]' {path.name} > {path.stem}.jsonl"
            )
    text = decode(path, content, encoding)
    del content
    start = len(text) - len(text.lstrip())
    if text[start] == "[":
        yield from _array_records(text, start, encoding)
        return
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        yield 1, decoding_fault(text, encoding) or _json_fault(error)
        return
    table = _table_of(value)
    if table is None:
        yield 1, value
    else:
        yield from enumerate(table, 1)


def _array_records(text: str, start: int, encoding: str) -> Iterator[Record]:
    """Yields the objects of an array with the lines where they start; what is after a broken one is lost with it."""
    line, position = 1, start + 1
    counted = 0
    while True:
        while text[position : position + 1].isspace() or text[position : position + 1] == ",":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            return
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield line, f"{_json_fault(error)}; the rest of the file after it is not read"
            return
        fault = None if text.isascii() else decoding_fault(text[position:end], encoding)
        yield line, fault or (value if isinstance(value, dict) else f"must be a JSON object, not {cut(repr(value))}")
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
    if all(key.isdecimal() for key in value) and not all(key.isdecimal() for key in inner[0]):
        return inner
    return [{name: column.get(key) for name, column in value.items()} for key in inner[0]]


@dataclass(frozen=True)
class ArrowTable:
    """An open Parquet or Arrow table.

    Attributes:
        names: of its columns.
        class_names: for columns of integers that its metadata give names to (`ClassLabel` of the library datasets).
    """

    names: list[str]
    class_names: dict[str, list[str]]
    _batches: Callable[[Sequence[str]], Iterator[Any]]

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """Yields the rows, counted from 1, with the values of some columns."""
        row = 0
        for batch in self._batches(columns):
            for record in _rows_of(batch):
                row += 1
                yield row, record


@contextmanager
def open_table(path: Path) -> Iterator[ArrowTable]:
    """Opens a Parquet file, an Arrow file, or a folder that `save_to_disk` of the library datasets wrote.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise DataError(f"{path}: Parquet and Arrow need pyarrow; pip install 'bilstm-cls[parquet]'") from None
    try:
        if path.is_dir():
            files = _shards(path)
        elif path.suffix.lower() == ".arrow":
            files = [path]
        else:
            with pq.ParquetFile(path) as file:
                read = functools.partial(file.iter_batches, BATCH_ROWS)
                yield ArrowTable(file.schema_arrow.names, _class_names(file.schema_arrow), lambda c: read(columns=c))
            return
        with _open_arrow(pa, files[0]) as reader:
            schema = reader.schema
        yield ArrowTable(schema.names, _class_names(schema), lambda columns: _arrow_batches(pa, files, columns))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet or Arrow ({reason})") from error


def _shards(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'state.json'}: does not name the data files of a saved data set") from error


def _open_arrow(pa: Any, path: Path) -> Any:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source)


def _arrow_batches(pa: Any, files: Sequence[Path], columns: Sequence[str]) -> Iterator[Any]:
    for path in files:
        with _open_arrow(pa, path) as reader:
            batches = (
                reader
                if hasattr(reader, "read_next_batch")
                else map(reader.get_batch, range(reader.num_record_batches))
            )
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.select(columns).slice(start, BATCH_ROWS)


def _class_names(schema: Any) -> dict[str, list[str]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: list(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
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
