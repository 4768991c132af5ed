"""Labelled text files of any kind as a stream of examples, with file and line in every error."""

import functools
import glob
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bilstm_cls.data import records
from bilstm_cls.data.encoding import COMPRESSION, TextLines, find_encoding, open_file, require_rereadable
from bilstm_cls.data.tables import Dialect, ReadOptions, Rows, find_dialect, read_table
from bilstm_cls.data.types import BadRow, Example, names_in
from bilstm_cls.errors import ConfigError, DataError, cut, shown

__all__ = ["READERS", "ReadOptions", "detect_format", "read", "read_label_names"]

logger = logging.getLogger(__name__)

SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ft": "fasttext",
    ".fasttext": "fasttext",
}  # fmt: skip
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test",
          **dict.fromkeys(("valid", "validation", "dev", "val"), "valid")}  # fmt: skip
# What columns of labels, texts and headings are usually called, the surest first:
LABEL_NAMES = (
    "label", "target", "class", "category", "categories", "sentiment", "标签", "intent", "topic", "y", "star",
    "starrating", "rating", "score", "polarity", "emotion", "tag", "labelname", "labeltext", "classname", "classindex",
    "genre", "spam", "类别", "分类", "情感",
)  # fmt: skip
BODY_NAMES = (
    "text", "review", "reviewtext", "reviewbody", "sentence", "content", "body", "comment", "commenttext", "message",
    "tweet", "utterance", "description", "document", "article", "post", "question", "abstract", "input", "文本", "内容",
)  # fmt: skip
TITLE_NAMES = ("title", "subject", "summary", "headline", "reviewtitle", "标题")

SAMPLE_LINES, MAX_LINES = 2000, 200_000
MAX_CLEAR_LABELS = {" ": 20, "\t": 200}  # by the mark before it: the less that says, the fewer labels are believed
MOST = 0.9  # of the lines decide a format; the others may be bad rows
_NO_LABEL_START = (*"<.,;:!?/",)  # of markup, and of the end of a sentence

Reader = Callable[[Path, ReadOptions], Rows]
OnBadRow = Callable[[BadRow], None]


def read(
    path: Path,
    *,
    format: str = "auto",
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    bad_rows: str = "error",
    on_bad_row: OnBadRow = lambda bad: logger.warning(f"{bad}" if bad.is_read else f"skipped {bad}"),
) -> Iterator[Example]:
    """Reads a file or folder row by row, in order, holding no more than a few rows.

    `format` is a key of `READERS`, or `auto` to go by the file's name, else by its first lines. With `bad_rows` `error`
    the first row that cannot be read ends it, with `skip` it goes on; `on_bad_row` gets every row that is skipped, and
    every remark on what was read. Raises DataError, at once where it is wrong with path or format.
    """
    if format != "auto" and format not in READERS:
        raise ConfigError(f"unknown data format {format!r}; choose auto, {', '.join(READERS)}")
    require_path(path)
    format = detect_format(path) if format == "auto" else format
    if path.is_dir() != (format == "folder"):
        kind, other = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise DataError(f"{path}: is a {kind}, and format {format!r} reads a {other}")
    return accepted(READERS[format](path, options), options, bad_rows, on_bad_row)


def accepted(rows: Rows, options: ReadOptions, bad_rows: str, on_bad_row: OnBadRow) -> Iterator[Example]:
    """Yields the examples among rows, with the names of their labels; arguments and errors are those of `read`."""
    for row in rows if options.label_names is None else map(functools.partial(_named, options.label_names), rows):
        if isinstance(row, Example):
            yield row
        elif row.is_read or bad_rows == "skip":
            on_bad_row(row)
        else:
            can_skip = options.label_column is not None or options.keep_record
            advice = ", or set data.bad_rows: skip (--bad-rows skip for eval and predict)" if can_skip else ""
            raise DataError(f"{row}; fix the row{advice}")


READERS: dict[str, Reader] = {
    "csv": functools.partial(read_table, is_tsv=False),
    "tsv": functools.partial(read_table, is_tsv=True),
    "jsonl": records.read_jsonl,
    "folder": records.read_folder,
    "fasttext": functools.partial(records.read_labelled_lines, split=records.fasttext),
    "label-text": functools.partial(records.read_labelled_lines, split=records.label_first),
    "text-label": functools.partial(records.read_labelled_lines, split=records.label_last),
    "parquet": records.read_arrow,
    "arrow": records.read_arrow,
    "lines": records.read_lines,
}
"""Each yields a file's rows in order and raises DataError where the file as a whole is wrong."""


def require_path(path: Path) -> None:
    """Raises a DataError if there is nothing at a path that can be read."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def data_files(given: str | Sequence[str]) -> list[Path]:
    """Returns the files or folders of labelled texts that a path, a pattern such as `part-*.csv`, or a list names.

    A folder that holds no folders but data files stands for these, in the order of their names. Raises DataError where
    a path or pattern names nothing.
    """
    paths: list[Path] = []
    for name in [given] if isinstance(given, str) else given:
        found = [Path(name)]
        if glob.has_magic(name) and not Path(name).exists():
            found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - of any root
            if not found:
                raise DataError(f"{name}: matches no file")
        for path in found:
            require_path(path)
            entries = _entries(path)
            files = [] if any(map(Path.is_dir, entries)) else list(filter(format_of_name, entries))
            paths += [file for file in files if file.suffix != ".json"] or files or [path]  # JSON may describe others
    return paths


def columns_called(columns: Sequence[str], names: Sequence[str], *, by_end: bool = False) -> list[str]:
    """Returns the columns of some names, also with an s or of several words, or whose last word is one; as `names`."""
    words = {column: re.findall(r"[^\W_]+", column.casefold()) for column in columns}
    called = {column: "".join(found[-1:] if by_end else found) for column, found in words.items()}
    return [
        c for name in names for c in called if called[c].removesuffix("s") == name or called[c] in (name, name + "es")
    ]


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.name[0] != "."] if folder.is_dir() else []


def find_splits(folder: Path) -> dict[str, list[str]]:
    """Returns the folders or data files of train, valid and test in a folder; nothing where there is no train."""
    found: dict[str, list[str]] = {}
    for entry in _entries(folder):
        words = re.split(r"[^a-z]+", entry.name.lower())
        splits = [SPLITS[word] for word in (words[:1] if entry.is_dir() else words) if word in SPLITS]
        if not splits and entry.is_dir():
            return {}  # folders of labels, one of which may be called train
        if splits and (entry.is_dir() or format_of_name(entry) or entry.suffix.lower() in records.TEXT_SUFFIXES):
            found.setdefault(splits[0], []).append(str(entry))
    return found if "train" in found else {}


def format_of_name(path: Path) -> str | None:
    """Returns the format that a file's ending says, before that of its compression; None where it says nothing."""
    return SUFFIXES.get(Path(path.name.lower().removesuffix(COMPRESSION)).suffix)


def detect_format(path: Path) -> str:
    """Finds a data file's format by its ending, else by its first lines, or raises DataError."""
    require_path(path)
    if path.is_dir():
        return "folder"
    if format := format_of_name(path):
        return format
    require_rereadable(path)
    with open_file(path) as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    # From all over the file, since many a file has all texts of one label before those of the next.
    numbered = enumerate(itertools.islice(TextLines(path, find_encoding(path)), MAX_LINES))
    lines = [line.rstrip("\r\n") for i, line in numbered if (i < SAMPLE_LINES or i % 100 == 0) and line.strip()]
    if not lines:
        raise DataError(f"{path}: holds blank lines only")
    if format := _format_of_lines(lines):
        return format
    first = "; ".join(cut(repr(line)) for line in lines[:3])
    advice = "write a CSV file, or set data.format: label-text, or text-label, for lines such as"
    raise DataError(f"{path}: cannot tell its format; {advice} {first}")


def _format_of_lines(lines: Sequence[str]) -> str | None:
    def fraction(of: Callable[[str], bool]) -> float:
        return sum(map(of, lines)) / len(lines)

    if lines[0].lstrip().startswith("[") or fraction(lambda line: line.lstrip().startswith("{")) > MOST:
        return "jsonl"
    if fraction(lambda line: "__label__" in line) > 0.5:  # nothing else holds it, and a text may have no label
        return "fasttext"
    is_tsv = fraction(lambda line: "\t" in line) > MOST
    rows = find_dialect(lines, Dialect(), (), is_tsv=is_tsv)[1]
    whole = [row for row in rows if len(row) == len(rows[0]) > 1]
    has_header = bool(whole and columns_called(rows[0], (*LABEL_NAMES, *BODY_NAMES, *TITLE_NAMES)))
    has_labels = len(whole) > MOST * len(rows) and any(_are_labels(column, " ") for column in zip(*whole, strict=True))
    if (has_header or has_labels) and not (is_tsv and not has_header and len(rows[0]) == 2):
        return "tsv" if is_tsv else "csv"
    mark = "\t" if is_tsv else " "
    return _format_by_mark([line.strip() for line in lines if mark in line.strip()], mark)


def _format_by_mark(lines: Sequence[str], mark: str) -> str | None:
    """Where both readings fit, numbers are labels rather than words, and far fewer words than the others."""
    first, last = ([line.partition(mark) for line in lines], [line.rpartition(mark)[::-1] for line in lines])
    fitting = []
    for name, parts in (("label-text", first), ("text-label", last)):
        words, labels = [label for label, _, _ in parts], {label for label, _, _ in parts}
        # Labels that half of the texts hold are words like others.
        is_word = 2 * sum(not labels.isdisjoint(text.split()) for _, _, text in parts) >= len(parts)
        is_markup = 2 * sum(word[:1] in _NO_LABEL_START for word in words) >= len(words)
        if _are_labels(words, mark) and not (is_word and mark == " ") and not is_markup:
            fitting.append((not all(map(str.isdecimal, labels)), len(labels), name))
    fitting.sort()
    if mark == " " and len(fitting) == 2 and fitting[0][0] == fitting[1][0] and 2 * fitting[0][1] > fitting[1][1]:
        return None
    return fitting[0][2] if fitting else None


def _are_labels(values: Sequence[str], mark: str) -> bool:
    different = {value.strip() for value in values}
    are_words = all(len(value) <= 60 and any(map(str.isalnum, value)) for value in different)
    most = max(2, min(0.3 * len(values), MAX_CLEAR_LABELS[mark]))
    return are_words and 2 <= len(different) < len(values) and len(different) <= most


def read_label_names(path: Path, encoding: str) -> dict[str, str]:
    """Returns the name of each number, in their order, and then of each name itself, or raises DataError.

    Each line is the name of one label, the first that of label 0; a blank line stands for a number that no text has.
    """
    names: dict[str, str] = {}
    for row in read(path, format="lines", options=ReadOptions(label_column=None, encoding=encoding)):
        name = row.text.strip()
        if "\t" in name or name.isdecimal() or name in names.values():
            raise DataError(f"{path}:{row.line}: {shown(name)} is there twice, a number or several; give a name a line")
        if name:
            names[str(row.line - 1)] = name
    if not names:
        raise DataError(f"{path}: holds no name; there must be one a line, the first that of label 0")
    return names | {name: name for name in names.values()}


def _named(names: Mapping[str, str], row: Example | BadRow) -> Example | BadRow:
    if not isinstance(row, Example) or row.label is None:
        return row
    found = [names.get(label) for label in names_in(row.label)]
    if None in found:
        unnamed = names_in(row.label)[found.index(None)]
        return BadRow(row.path, row.line, f"label {shown(unnamed)} has no name in the file data.label_names")
    return replace(row, label=tuple(sorted(map(str, found))) if isinstance(row.label, tuple) else found[0])
