"""Formats whose rows are records of named values: JSON lines and Parquet."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bilstm_cls.data.readers.columns import NO_LABEL, ReadOptions, quoted, require_columns
from bilstm_cls.data.readers.decoding import SURROGATE, TextLines, numbered
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError

ARRAY_ADVICE = "is one JSON array; write one object a line (JSON lines), as `jq -c '.[]'` does"


class _WrongValueError(Exception):
    """A value that cannot be a text or a label."""


def read_jsonl(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads one JSON object a line, strictly: no key twice, no NaN, no half characters.

    Raises:
        DataError: the file is empty, unreadable or one array, or its first object lacks a wanted key.
    """
    has_columns = False
    is_empty = True
    for number, line, fault in numbered(TextLines(path, options.encoding)):
        if is_empty and line.lstrip().startswith("["):
            raise DataError(f"{path}:{number}: {ARRAY_ADVICE}")
        is_empty = False
        record = fault or _parse(line)
        if isinstance(record, str):
            yield BadRow(str(path), number, record)
            continue
        if not has_columns:
            require_columns(list(record), options, f"{path}:{number}")
            has_columns = True
        yield _example(record, options, str(path), number, place="")
    if is_empty:
        raise DataError(f"{path}: holds blank lines only")


def _parse(line: str) -> dict[str, Any] | str:
    try:
        value = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno} (one whole object a line)"
    except ValueError as error:
        # Ours, or the interpreter's about an integer of more digits than it converts.
        return f"not JSON: {error}"
    except RecursionError:
        return "nested too deep"
    return value if isinstance(value, dict) else f"must be a JSON object, not {quoted(value)}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {quoted(next(name for name in names if names.count(name) > 1))} is there twice")
    return record


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads an Apache Parquet file batch by batch; an example's `line` is its row, counted from 1.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or a column is not there.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise DataError(f"{path}: Parquet needs pyarrow; pip install 'bilstm-cls[parquet]'") from None
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            require_columns(names, options, str(path))
            wanted = [*options.text_columns, *([] if options.label_column is None else [options.label_column])]
            columns = names if options.keep_record else list(dict.fromkeys(wanted))
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for record in _records(batch):
                    row += 1
                    if isinstance(record, str):
                        yield BadRow(str(path), row, f"row {row}: {record}")
                    else:
                        yield _example(record, options, str(path), row, place=f"row {row}: ")
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet ({reason})") from error
    if row == 0:
        raise DataError(f"{path}: has no rows")


def _records(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yields a batch's rows; where one holds a string that is not UTF-8, what is wrong with it."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            try:
                yield from batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield f"byte 0x{error.object[error.start]:02x} is not utf-8"


def _example(record: Mapping[str, Any], options: ReadOptions, name: str, line: int, *, place: str) -> Example | BadRow:
    try:
        text = "\n".join([_text_of(record, column) for column in options.text_columns])
        label = None if options.label_column is None else _label_of(record, options.label_column)
    except _WrongValueError as error:
        return BadRow(name, line, f"{place}{error}")
    kept = {key: _plain(value) for key, value in record.items()} if options.keep_record else None
    return Example(text, label, name, line, kept)


def _text_of(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if isinstance(value, str):
        return _whole(value, column)
    if column not in record:
        raise _WrongValueError(f"has no {quoted(column)} among {', '.join(map(quoted, list(record)[:20]))}")
    raise _WrongValueError(f"{quoted(column)} must be text, not {_shown(value)}")


def _label_of(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if isinstance(value, str):
        label = _whole(value, column).strip()
        if not label:
            raise _WrongValueError(NO_LABEL)
        return label
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if column not in record:
        raise _WrongValueError(f"has no {quoted(column)} among {', '.join(map(quoted, list(record)[:20]))}")
    raise _WrongValueError(f"{quoted(column)} must be text, an integer or true or false, not {_shown(value)}")


def _whole(text: str, column: str) -> str:
    if not text.isascii() and (found := SURROGATE.search(text)):
        raise _WrongValueError(f"{quoted(column)} holds half a character (U+{ord(found[0]):04X})")
    return text


def _shown(value: Any) -> str:
    return "null" if value is None else quoted(value)


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
