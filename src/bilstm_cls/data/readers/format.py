"""What kind a data file is: by its name, else by its first lines."""

import difflib
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from bilstm_cls.data.readers.columns import BODY_NAMES, LABEL_NAMES, TITLE_NAMES, quoted
from bilstm_cls.data.readers.decoding import TextLines
from bilstm_cls.data.readers.encoding import BLOCK_BYTES, byte_blocks, find_encoding, require_rereadable
from bilstm_cls.data.readers.records import ARRAY_ADVICE
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
MAX_BLOCKS = 128
HALF = 100
"""Lines looked at from the beginning of a block, and from its end."""

MOST = 0.9
"""The share of lines that tells a format; the others may be bad rows."""
HEADER_WORDS = {*LABEL_NAMES, *BODY_NAMES, *TITLE_NAMES}


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
    require_rereadable(path)
    block = next(byte_blocks(path))
    if block.startswith(b"PAR1"):
        return "parquet"
    blocks = TextLines(path, find_encoding(path, max_bytes=MAX_BLOCKS * BLOCK_BYTES)).blocks()
    # From all over the file, since many a file has all texts of one label before those of the next.
    sample = [line for block in islice(blocks, MAX_BLOCKS) for line in [*block[:HALF], *block[HALF:][-HALF:]]]
    lines = [line.removesuffix("\r") for line in sample if line.strip()]
    if lines and lines[0].lstrip().startswith("["):
        raise DataError(f"{path}: {ARRAY_ADVICE}")
    found = _format_of_lines(lines) if lines else None
    if found is None:
        first = f"like {quoted(lines[0])}" if lines else "that are blank"
        raise DataError(f"{path}: cannot tell what format this is, by its name or by lines {first}; set data.format")
    return found


def _format_of_lines(lines: Sequence[str]) -> str | None:
    def share(of: Callable[[str], bool]) -> float:
        return sum(map(of, lines)) / len(lines)

    if share(lambda line: line.lstrip().startswith("{")) > MOST:
        return "jsonl"
    if share(lambda line: "__label__" in line) > MOST:
        return "fasttext"
    if share(lambda line: "\t" in line) > MOST:
        return _format_by_tabs([line.split("\t") for line in lines if "\t" in line])
    if _is_header(re.split('"?[,;|]"?', lines[0].strip('"'))):
        return "csv"
    parted = [line.rstrip() for line in lines if " " in line.strip()]
    if _are_labels([line.partition(" ")[0] for line in parted]):
        return "label-text"
    return "text-label" if _are_labels([line.rpartition(" ")[2] for line in parted]) else None


def _format_by_tabs(rows: Sequence[Sequence[str]]) -> str | None:
    width = len(rows[0])
    if (_is_header(rows[0]) or width > 2) and sum(len(row) == width for row in rows) > MOST * len(rows):
        return "tsv"
    first, last = [row[0] for row in rows], [row[-1] for row in rows]
    candidates = [("label-text", first), ("text-label", last)]
    fitting = [(sum(map(len, values)), name) for name, values in candidates if _are_labels(values)]
    return min(fitting)[1] if fitting else None


def _is_header(cells: Sequence[str]) -> bool:
    return len(cells) > 1 and any(cell.strip().casefold() in HEADER_WORDS for cell in cells)


def _are_labels(values: Sequence[str]) -> bool:
    """Whether values are few, short words that come again and again."""
    different = {value.strip() for value in values}
    if not all(len(value) <= 60 and any(c.isalnum() for c in value) for value in different):
        return False
    return 2 <= len(different) < len(values) and len(different) <= max(2, min(0.3 * len(values), 200))
