"""The things data is made of: one example, one bad row, one label, one split, one data set."""

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.encoding import SURROGATE
from bilstm_cls.errors import shown

NO_LABEL, BLANK_LINE = "the label is empty", "blank line"
MAX_LINEAR_LABELS = 300
"""With more labels linear models, slow and large then, are not trained but where they are asked for."""

Label = str | tuple[str, ...]
"""A text's class name; where texts have several labels, the names of all that it has, sorted."""
Ints = npt.NDArray[np.int64]
LabelIds = npt.NDArray[Any]
"""`[N]` int64, indices into the labels; where texts have several, `[N, C]` uint8, 1 for each label that a text has."""


class WrongValueError(Exception):
    """A value that cannot be a text or a label."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text as it stands in a file (or archive member), from the line (counted from 1) where its record starts.

    The label is None where no labels are read. `record` holds all fields of the row where a reader is to keep them.
    """

    text: str
    label: Label | None
    path: str
    line: int
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read, and why. With `is_read` it is an example all the same, and only doubtful."""

    path: str
    line: int
    reason: str
    is_read: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


class SkippedLines:
    """Counts lines that are no rows, for one remark on each kind at the end of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, list[int]] = {}

    def add(self, kind: str, line: int, number: int = 1) -> None:
        """Counts `number` lines of one kind, the first of which is `line`."""
        self._found.setdefault(kind, [line, 0])[1] += number

    def remarks(self) -> Iterator[BadRow]:
        for kind, (line, count) in self._found.items():
            reason = f"skipped {count:,} {kind}{'s, the first here' * (count > 1)}"
            yield BadRow(str(self._path), line, reason, is_read=True)


def names_in(label: Label | None) -> tuple[str, ...]:
    """Returns the class names of a text."""
    return label if isinstance(label, tuple) else () if label is None else (label,)


def label_counts(label_ids: LabelIds, num_labels: int) -> npt.NDArray[np.int64]:
    """Returns `[C]`, how many texts have each label."""
    return label_ids.sum(0, dtype=np.int64) if label_ids.ndim == 2 else np.bincount(label_ids, minlength=num_labels)


def named(label_ids: LabelIds, labels: Sequence[str]) -> Iterator[Label]:
    """Yields the label or labels of each text."""
    for row in label_ids:
        yield labels[row] if row.ndim == 0 else tuple(labels[i] for i in np.flatnonzero(row).tolist())


def clean_label(text: str) -> str:
    """Returns a label without spaces around it and, of a whole number, the decimals that a spreadsheet adds."""
    return re.sub(r"^([-+]?[0-9]+)\.0+$", r"\1", text.strip())


def spoken(label: Label) -> str:
    return label if isinstance(label, str) else ", ".join(label) or "none"


def checked_text(value: Any, column: str) -> str:
    """Returns a value that is a text, or raises `WrongValueError`."""
    if not isinstance(value, str):
        raise WrongValueError(f"{shown(column)} must be text, not {shown(value)}")
    if not value.isascii() and (found := SURROGATE.search(value)):
        raise WrongValueError(f"{shown(column)} holds a lone surrogate (U+{ord(found[0]):04X})")
    return value


def _one_label(value: Any, column: str, names: Sequence[str] | None = None) -> str:
    """Returns the label that a value stands for: its text, or of a number with a name that; or `WrongValueError`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if _is_missing(value):
        raise WrongValueError(NO_LABEL)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and names is not None:
        if not 0 <= value < len(names):
            raise WrongValueError(f"{shown(column)} is {value}, but there are names of 0 to {len(names) - 1}")
        value = names[value]
    if isinstance(value, list):
        raise WrongValueError(f"{shown(column)} holds a list; set data.labels: multi where texts have several labels")
    if not isinstance(value, str | int):
        raise WrongValueError(f"{shown(column)} must be text, a whole number, true or false, not {shown(value)}")
    return clean_label(checked_text(str(value), column))


def label_of(
    values: Sequence[Any], columns: Sequence[str], separator: str | None, names: Sequence[str] | None = None
) -> Label:
    """Returns the label that the values of its columns stand for, or raises `WrongValueError`.

    With a separator a row has any number of labels: of several columns the names of those that hold 1; of one its list,
    which may be written in a text as `["a", "b"]`, or its parts. What is empty or missing is no label. Where labels
    are numbers, `names` are theirs.
    """
    if separator is None:
        value = values[0]
        value = (value[0] if value else None) if isinstance(value, list) and len(value) < 2 else value
        return _one_label(value, columns[0], names)
    if len(columns) > 1:
        return tuple(sorted(name for name, value in zip(columns, values, strict=True) if _is_one(value, name)))
    parts = values[0]
    if isinstance(parts, str):
        parts = _list_in(parts) if parts.startswith("[") else parts.split(separator)
    parts = parts if isinstance(parts, list) else [parts]
    return tuple(sorted({_one_label(part, columns[0], names) for part in parts if not _is_missing(part)}))


def _list_in(text: str) -> list[Any]:
    """Returns the list that a text holds in the grammar of JSON or Python; the text in a list where it holds none."""
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = text
    return found if isinstance(found, list) else [text]


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_one(value: Any, column: str) -> bool:
    word = "0" if _is_missing(value) else _one_label(value, column).casefold()
    if word not in ("0", "1", "false", "true"):
        raise WrongValueError(f"{shown(column)} must be 1 or 0, not {shown(value)}")
    return word in ("1", "true")


def joined_labels(labels: Iterable[str], mark: str) -> dict[str, set[str]]:
    """Returns the labels that hold a mark, or are lists where it is a bracket, with what they are made of."""
    split = _list_in if mark == "[" else functools.partial(str.split, sep=mark)
    parts = {label: {str(part).strip() for part in split(label)} for label in labels if mark in label}
    return {label: several for label, several in parts.items() if len(several) > 1}


@dataclass(frozen=True, eq=False)
class Split:
    """The N texts of one split, in the order they were read, with their files and `[N]` the lines where they start."""

    name: str
    texts: Sequence[str]
    label_ids: LabelIds
    paths: Sequence[str] | npt.NDArray[np.object_]
    lines: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Dataset:
    """Splits with one list of labels, which `label_ids` index."""

    labels: list[str]
    splits: dict[str, Split]  # `train`, `valid`, and `test` where there is one
    origin: str  # in words, where the texts came from
    is_official: bool  # whether the test split is the one that published scores use
    counts: dict[str, int]  # rows accounted for: `read`, `used`, `skipped`
    notes: list[str] = field(default_factory=list)  # plain sentences a reader of the score must know
    digest: str = ""  # SHA-256 over texts, labels and splits; equal digests mean equal data

    @property
    def scored(self) -> Split:
        """The split whose scores count: test, or valid where there is none."""
        return self.splits["test" if "test" in self.splits else "valid"]

    def facts(self) -> dict[str, Any]:
        """Returns what `metrics.json` has of the data: their origin, counts of rows, and texts of each label."""
        facts: dict[str, Any] = {f"data/{name}": count for name, count in self.counts.items()}
        facts |= {"data/origin": self.origin, "data/is_official": self.is_official, "data/notes": list(self.notes)}
        for name, split in self.splits.items():
            if name != "unlabelled":
                counts = label_counts(split.label_ids, len(self.labels)).tolist()
                facts |= {f"data/labels/{name}/{label}": n for label, n in zip(self.labels, counts, strict=True)}
        most_frequent = label_counts(self.splits["train"].label_ids, len(self.labels)).argmax()
        return facts | {"data/majority_label": self.labels[int(most_frequent)]}


def checked_texts(texts: Iterable[str], name: str = "texts") -> Iterator[str]:
    """Yields the texts of a list, tuple, array, pandas or polars series, or generator as str.

    `TypeError`, at once, where it is one str, a mapping, a set or a table; later where an item is no str:
    `texts[3] is nan, a float`.
    """
    is_one_column = getattr(texts, "ndim", len(getattr(texts, "shape", (0,)))) == 1
    if isinstance(texts, str | bytes | Mapping | Set) or not isinstance(texts, Iterable) or not is_one_column:
        raise TypeError(f"{name} is {shown(texts)}, a {type(texts).__name__}; give a list, array or series of str")
    return (_checked_text(text, f"{name}[{place}]") for place, text in enumerate(texts))


def _checked_text(text: Any, place: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{place} is {shown(text)}, a {type(text).__name__}; every text must be a str")
    return text if type(text) is str else str(text)  # of numpy, whose subclass is slower
