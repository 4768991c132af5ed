"""Readers of all formats but tables: lines, folders, JSON lines and documents, Parquet and Arrow."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bilstm_cls.data.encoding import MAX_CHARACTERS, TOO_LONG, TextLines, decoding_fault, find_encoding
from bilstm_cls.data.tables import MAX_SHOWN, ReadOptions, Rows, require_columns, require_single
from bilstm_cls.data.types import BLANK_LINE, BadRow, Example, SkippedLines, WrongValueError, checked_text, label_of
from bilstm_cls.errors import DataError, shown

MAX_DOCUMENT_BYTES = 2**28  # of a JSON file that is not JSON lines, whose text is held in memory
TEXT_SUFFIXES = (".txt", ".text")
_MAX_HEAD = 100  # JSON objects that show whether a key is missing from one or from all
BATCH_ROWS = 1024
_FASTTEXT_LABEL = re.compile(r"(?<![^\s,])__label__(\S+?)(?:(?:\s*,)?(?:\s|$)|,(?=__label__))")

Parts = tuple[str | list[str], str] | None  # label or labels and text of a line; None where nothing is between them
Record = tuple[int, dict[str, Any] | str | None]  # its line or row, and its values or what is wrong; None for none
Batches = Callable[[Sequence[str]], Iterator[Any]]  # yields batches of some columns of an Arrow table


def read_lines(path: Path, options: ReadOptions) -> Rows:
    """Reads one text a line, without labels; a blank line is a text too."""
    options = replace(_without_columns(options), label_column=None)
    for number, text, fault in _numbered(TextLines(path, options.encoding)):
        yield BadRow(str(path), number, fault) if fault else _example({"text": text}, options, path, number)


def read_labelled_lines(path: Path, options: ReadOptions, *, split: Callable[[str, str], Parts]) -> Rows:
    """Reads a label and a text a line; `split` parts a line at its second argument, a tab or else a space."""
    options, skipped = _without_columns(options), SkippedLines(path)
    mark = ""
    for number, line, fault in _numbered(TextLines(path, options.encoding)):
        if not line.strip() and not fault:
            skipped.add(BLANK_LINE, number)
            continue
        mark = mark or ("\t" if "\t" in line else " ")
        if fault or (parts := split(line, mark)) is None:
            wanted = "tab" if mark == "\t" else "space"
            yield BadRow(str(path), number, fault or f"has no {wanted} between label and text")
        else:
            yield _example(dict(zip(("label", "text"), parts, strict=True)), options, path, number)
    if not mark:
        raise DataError(f"{path}: holds blank lines only")
    yield from skipped.remarks()


def label_first(line: str, mark: str) -> Parts:
    label, found, text = line.partition(mark)
    return (label, text) if found else None


def label_last(line: str, mark: str) -> Parts:
    text, found, label = (line if mark == "\t" else line.rstrip()).rpartition(mark)
    return (label, text) if found else None


def fasttext(line: str, _: str) -> Parts:
    """Takes the words that begin with `__label__` out of a line."""
    return _FASTTEXT_LABEL.findall(line), _FASTTEXT_LABEL.sub("", line)


def _numbered(lines: TextLines) -> Iterator[tuple[int, str, str | None]]:
    """Yields every line's number from 1, its text without the line end, and what is wrong with it, if anything."""
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\n").removesuffix("\r"), lines.fault(line)


def _without_columns(options: ReadOptions) -> ReadOptions:
    return replace(options, text_columns=("text",), label_column="label" if options.label_columns else None)


def read_folder(path: Path, options: ReadOptions) -> Rows:
    """Reads `path/LABEL/*.txt`, one text a file, by label and file name; hidden files and other kinds are left out."""
    options = _without_columns(options)
    for label, file in folder_files(path):
        lines = TextLines(file, find_encoding(file) if options.encoding == "auto" else options.encoding)
        text = lines.whole(MAX_CHARACTERS)
        if fault := TOO_LONG if text is None else lines.fault(text):
            yield BadRow(str(file), 1, fault)
        else:
            yield _example({"label": label, "text": text}, options, file, 1)


def folder_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields label and path of every text file in a folder of folders, sorted, or raises DataError."""
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
    """Reads JSON objects, one a line or those of one document: an array, or what `_rows_of` finds in an object.

    Raises DataError where the file is empty, unreadable or too large a document, or no object has a wanted key.
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
            skipped.add(BLANK_LINE, line)
            continue
        is_empty = False
        yield BadRow(str(path), line, record) if isinstance(record, str) else _example(record, options, path, line)
    if is_empty:
        raise DataError(f"{path}: holds no JSON object")
    yield from skipped.remarks()


def _json_records(path: Path, options: ReadOptions) -> Iterator[Record]:
    lines = TextLines(path, options.encoding)
    first, second = [*itertools.islice((line for line in map(str.strip, lines) if line), 2), "", ""][:2]
    # The first of JSON lines, if broken, has another object after it.
    is_lines = first.startswith("{") and (second.startswith("{") or (first.endswith("}") and bool(second)))
    is_lines = is_lines or (first.startswith("[") and first.endswith("]") and second.startswith("["))
    if first.startswith(("[", "{")) and not is_lines:
        yield from _document_records(lines, options.text_columns)
        return
    for number, line in enumerate(lines, 1):
        yield number, lines.fault(line) or (None if line.isspace() else _record_in(line))


_DECODER = json.JSONDecoder()


def _record_in(text: str) -> dict[str, Any] | str:
    try:
        return _record_of(_DECODER.decode(text))
    except (ValueError, RecursionError) as error:
        return _json_fault(error)


def _record_of(value: Any) -> dict[str, Any] | str:
    if isinstance(value, list) and value:
        return {f"#{position}": cell for position, cell in enumerate(value, 1)}
    return value if isinstance(value, dict) else f"must be a JSON object, not {shown(value)}"


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    return "nested too deep" if isinstance(error, RecursionError) else f"not JSON: {error}"


def _document_records(lines: TextLines, text_columns: Sequence[str]) -> Iterator[Record]:
    text = lines.whole(MAX_DOCUMENT_BYTES)
    if text is None:
        raise DataError(f"{lines.path}: is too large for one JSON document; write one object a line (jq -c '.[]')")
    rows = None if text.lstrip().startswith("[") else _rows_of(_record_in(text), text_columns)
    if rows is None or decoding_fault(text, lines.encoding):  # an array, or objects of several lines
        yield from _rows_in(text, lines.encoding)
    else:
        yield from enumerate(map(_record_of, rows), 1)


def _rows_in(text: str, encoding: str) -> Iterator[Record]:
    """Yields rows with the lines where they start; what is after a broken one is lost with it."""
    line, counted = 1, 0
    position = text.index("[") + 1 if text.lstrip().startswith("[") else 0
    while True:
        while text[position : position + 1].isspace() or text.startswith(",", position):
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        if text.startswith("]", position) or position == len(text):
            if text[position + 1 :].strip():
                yield line, "must be the end of the array; the rest of the file after it is not read"
            return
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield line, _json_fault(error) + "; the rest of the file after it is not read"
            return
        fault = None if text.isascii() else decoding_fault(text[position:end], encoding)
        yield line, fault or _record_of(value)
        position = end


def _rows_of(value: Any, text_columns: Sequence[str]) -> list[Any] | None:
    """Returns the rows that one object holds, or None where it is a row itself.

    They are an array under a key, as in `{"data": [...]}`; columns that are arrays; for each label its texts; or what
    pandas writes with `orient` split (an array for each row, next to the array of columns), index or columns (an object
    for each row, or column).
    """
    if not isinstance(value, dict) or any(isinstance(value.get(name), str) for name in text_columns):
        return None
    arrays = {name: array for name, array in value.items() if isinstance(array, list) and array}
    if "columns" in arrays and isinstance(arrays.get("data", [None])[0], list):
        return [dict(zip(map(str, arrays["columns"]), row, strict=False)) for row in arrays["data"]]
    tables = [array for array in arrays.values() if isinstance(array[0], dict)]
    if len(tables) == 1:
        return tables[0]
    are_texts = all(isinstance(entry, str) for array in arrays.values() for entry in array)
    if are_texts and len({*map(len, arrays.values())}) > 1:
        return [{"text": text, "label": label} for label, array in arrays.items() for text in array]
    inner = [row for row in value.values() if isinstance(row, dict)]
    if inner and len(value) == len(inner) > len(inner[0]) and {*text_columns}.isdisjoint(value):
        return inner  # more rows than columns
    columns = arrays or {name: list(column.values()) for name, column in value.items() if isinstance(column, dict)}
    rows = itertools.zip_longest(*columns.values())
    return [dict(zip(columns, row, strict=True)) for row in rows] if len(columns) > 1 else None


def read_arrow(path: Path, options: ReadOptions) -> Rows:
    """Reads a Parquet file or a stream of Arrow; an example's `line` is its row, counted from 1; raises DataError."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise DataError(f"{path}: Parquet and Arrow need pyarrow; pip install 'bilstm-cls[parquet]'") from None
    try:
        yield from table_rows(*_open_table(path), str(path), options)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet or Arrow ({reason})") from error


def table_rows(schema: Any, batches: Batches, path: str, options: ReadOptions) -> Rows:
    """Reads the rows of an Arrow table: its schema, what yields batches of some columns, and what messages call it."""
    require_columns(schema.names, options, path)
    require_single(schema.names, options, path)
    columns = schema.names if options.keep_record else list(dict.fromkeys(options.wanted))
    names = class_names(schema).get(*options.label_columns[:1] or [""])
    row = 0
    for row, record in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches(columns)), 1):
        yield _example(record, options, path, row, place=f"row {row}: ", names=names)
    if row == 0:
        raise DataError(f"{path}: has no rows")


def _open_table(path: Path) -> tuple[Any, Batches]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() in (".arrow", ".feather"):
        file = pa.memory_map(str(path))  # nothing is copied
        is_stream = file.read(6) != b"ARROW1"
        file.seek(0)
        table = (pa.ipc.open_stream if is_stream else pa.ipc.open_file)(file).read_all()
        return table.schema, lambda columns: iter(table.select(columns).to_batches(BATCH_ROWS))
    file = pq.ParquetFile(path)
    return file.schema_arrow, lambda columns: file.iter_batches(BATCH_ROWS, columns=columns)


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
            label = label_of([_value_of(record, name) for name in columns], columns, options.separator, names)
    except WrongValueError as error:
        return BadRow(str(path), line, f"{place}{error}")
    kept = json.loads(json.dumps(record, default=str), parse_constant=lambda _: None) if options.keep_record else None
    return Example(text, label, str(path), line, kept)  # dates and the like are kept as text, NaN as null


def _value_of(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise WrongValueError(f"has no {shown(column)} among {', '.join(map(shown, list(record)[:MAX_SHOWN]))}")
    return record[column]
