"""What kind a data file is: by its name, else by its first lines."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from bilstm_cls.data.readers_columns import quoted
from bilstm_cls.data.readers_decoding import byte_blocks, decode, find_encoding
from bilstm_cls.data.readers_records import ARRAY_ADVICE
from bilstm_cls.errors import DataError

SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".pq": "parquet", ".ft": "fasttext", ".fasttext": "fasttext",
}  # fmt: skip
_UNREADABLE = {
    ".gz": "unpack it first", ".bz2": "unpack it first", ".xz": "unpack it first", ".zst": "unpack it first",
    ".zip": "unpack it first", ".tar": "unpack it first", ".tgz": "unpack it first",
    ".xlsx": "save it as CSV (UTF-8)", ".xls": "save it as CSV (UTF-8)", ".ods": "save it as CSV (UTF-8)",
    ".arff": "convert it to CSV", ".pkl": "convert it to CSV or JSON lines",
    ".pickle": "convert it to CSV or JSON lines", ".npz": "convert it to CSV or JSON lines",
}  # fmt: skip
_NUM_LINES = 1000
_HEADER_WORDS = {"label", "text", "sentence", "class", "category", "review", "sentiment", "target", "title", "content"}


def require_path(path: Path) -> None:
    """Raises a DataError, with the names that come close, if there is nothing at a path."""
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file or folder{_neighbours(path)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _neighbours(path: Path) -> str:
    try:
        entries = sorted(entry for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return f", nor the folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in entries], n=3)
    near = near or [entry.name for entry in entries if entry.suffix.lower() in {*SUFFIXES, ".txt"}][:8]
    return f"; in {path.parent} there is {', '.join(near)}" if near else ""


def detect_format(path: Path) -> str:
    """Tells a data file's format by its suffix, else by its first lines.

    Raises:
        DataError: there is no such file, it cannot be read, or nothing tells its format.
    """
    require_path(path)
    if path.is_dir():
        return "folder"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in _UNREADABLE:
        raise DataError(f"{path}: {suffix} files are not read; {_UNREADABLE[suffix]}")
    block = next(byte_blocks(path))
    if not block:
        raise DataError(f"{path}: is empty")
    if block.startswith(b"PAR1"):
        return "parquet"
    encoding = find_encoding(path, max_bytes=len(block))
    text = decode(path, block, encoding)
    found = _format_of_text(text)
    if found == "array":
        raise DataError(f"{path}: {ARRAY_ADVICE}")
    if found is None:
        first = quoted(text.split("\n", 1)[0])
        raise DataError(
            f"{path}: cannot tell what format this is, by its name or by lines like {first}; set data.format"
        )
    return found


def _format_of_text(text: str) -> str | None:
    whole_lines = text.split("\n")[:_NUM_LINES]
    lines = [line.removesuffix("\r") for line in whole_lines[:-1] or whole_lines if line.strip()]
    if text.lstrip().startswith("["):
        return "array"
    if lines and all(line.lstrip().startswith("{") for line in lines):
        return "jsonl"
    if lines and sum("__label__" in line for line in lines) > len(lines) / 2:
        return "fasttext"
    num_tabs = {line.count("\t") for line in lines}
    if num_tabs and 0 not in num_tabs:
        return _format_by_tabs([line.split("\t") for line in lines])
    if _are_labels([line.partition(" ")[0] for line in lines if " " in line]):
        return "label-text"
    if _are_labels([line.rstrip().rpartition(" ")[2] for line in lines if " " in line]):
        return "text-label"
    return None


def _format_by_tabs(rows: Sequence[Sequence[str]]) -> str | None:
    header = {cell.strip().casefold() for cell in rows[0]}
    widths = {len(row) for row in rows}
    if widths == {len(rows[0])} and (len(rows[0]) > 2 or len(header & _HEADER_WORDS) > 0):
        return "tsv"
    first, last = [row[0] for row in rows], [row[-1] for row in rows]
    if not (_are_labels(first) or _are_labels(last)):
        return None
    if _are_labels(first) and _are_labels(last):
        is_first_shorter = sum(map(len, first)) <= sum(map(len, last))
        return "label-text" if is_first_shorter else "text-label"
    return "label-text" if _are_labels(first) else "text-label"


def _are_labels(values: Sequence[str]) -> bool:
    """Whether values are few, short words that come again and again."""
    different = {value.strip() for value in values}
    if not all(any(c.isalnum() for c in value) and len(value) <= 60 for value in different):
        return False
    return 2 <= len(different) <= max(2, min(0.3 * len(values), 200)) and (len(different) < len(values))
