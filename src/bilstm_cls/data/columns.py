"""Columns of text and label: what is wanted, where it is in a table, and what a label is."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bilstm_cls.data.dialect import Dialect
from bilstm_cls.data.types import BadRow
from bilstm_cls.errors import DataError, shown

MAX_SHOWN = 20
NO_LABEL = "the label is empty"

_POSITION = re.compile(r"#[1-9][0-9]*")
_WHOLE_FLOAT = re.compile(r"([-+]?[0-9]+)\.0+")
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}
"""Unicode's categories of control and format characters, and of spaces."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What to take from a file, and how to decode it.

    Attributes:
        text_columns: columns of the text; several are joined by a line feed. With names `#1`, `#2`, ... for all given
            columns, a csv or tsv file has no header, and columns are positions counted from 1.
        label_column: column of the label; None where labels are not wanted, and every label is None then.
        encoding: any text codec, or `auto`.
        keep_record: whether an example's `record` gets all fields of its row in order.
        csv: what is known of the dialect of csv and tsv files.
    """

    text_columns: tuple[str, ...] = ("text",)
    label_column: str | None = "label"
    encoding: str = "utf-8"
    keep_record: bool = False
    csv: Dialect = Dialect()  # noqa: RUF009 - frozen

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns of text and label."""
        return (*self.text_columns, *([] if self.label_column is None else [self.label_column]))

    @property
    def is_headerless(self) -> bool:
        """Whether every given column is a position."""
        return bool(self.wanted) and all(_POSITION.fullmatch(name) for name in self.wanted)


@dataclass(frozen=True, slots=True)
class Columns:
    """A table's columns.

    Attributes:
        names: of all columns in order.
        num_named: columns up to the last whose cell in the first row is not empty.
        texts: positions of the text columns, from 0.
        label: position of the label column, or None where labels are not wanted.
    """

    names: tuple[str, ...]
    num_named: int
    texts: tuple[int, ...]
    label: int | None

    @classmethod
    def of(cls, first_row: Sequence[str], options: ReadOptions, where: str) -> "Columns":
        """Finds the wanted columns in a table's first row.

        Args:
            first_row: the header, or any row of a file without one.
            options: the wanted columns.
            where: path and line for messages.

        Raises:
            DataError: a wanted column is not there, or its name is there twice.
        """
        cells = [cell.strip() for cell in first_row]
        names = [f"#{position}" for position in range(1, len(cells) + 1)]
        if not options.is_headerless:
            if any("\0" in cell for cell in cells):
                raise DataError(f"{where}: the header holds NUL; if it is UTF-16, set data.encoding to utf-16-le")
            times = Counter(cells)
            if repeated := next((name for name in options.wanted if times[name] > 1), None):
                raise DataError(f"{where}: column {shown(repeated)} is there twice; rename one")
            names = column_names(cells)
        require_columns(names, options, where)
        num_named = max((position for position, cell in enumerate(cells, 1) if cell), default=0)
        label = None if options.label_column is None else names.index(options.label_column)
        return cls(tuple(names), num_named, tuple(names.index(name) for name in options.text_columns), label)

    def fit(self, row: list[str]) -> list[str] | None:
        """Returns a row as wide as the table if empty fields are all that is too much, or too little, in it."""
        width = len(self.names)
        is_fitting = len(row) >= self.num_named and not any(map(str.strip, row[width:]))
        return (row + [""] * width)[:width] if is_fitting else None


def column_names(cells: Sequence[str]) -> list[str]:
    """Returns the names of a header; a cell that is empty, as of a row index, or a repetition goes by its position."""
    return [f"#{at + 1}" if not cell or cell in cells[:at] else cell for at, cell in enumerate(cells)]


def require_columns(names: Sequence[str], options: ReadOptions, where: str) -> None:
    """Raises a DataError that says which columns there are if a wanted one is not among them."""
    missing = next((name for name in options.wanted if name not in names), None)
    if missing is None:
        return
    kind = "text" if missing in options.text_columns else "label"
    listed = ", ".join(map(shown, names[:MAX_SHOWN]))
    listed += f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    folded = {known.casefold(): known for known in reversed(names)}
    near = difflib.get_close_matches(missing.casefold(), folded, n=1)
    advice = f"did you mean {shown(folded[near[0]])}?" if near else "name another"
    key = f"data.{kind}_column{'s' * (kind == 'text')} or --{kind}-column"
    raise DataError(f"{where}: no {kind} column {shown(missing)} among {listed}; {advice} ({key})")


def clean_label(text: str) -> str:
    """Returns a label without surrounding spaces; of a whole number, without the decimals that a spreadsheet adds."""
    label = text.strip()
    whole = _WHOLE_FLOAT.fullmatch(label)
    return whole[1] if whole else label


def alike_labels(labels: Sequence[str]) -> list[list[str]]:
    """Returns groups of labels that a reader takes for one: `True` and `true`, `1` and `01`, or with spaces between."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        characters = unicodedata.normalize("NFKC", label).casefold()
        visible = "".join(c for c in characters if unicodedata.category(c) not in _INVISIBLE)
        groups.setdefault(visible.lstrip("0") or "0" if visible.isdecimal() else visible, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


class SkippedLines:
    """Counts lines that are no rows, for one remark on each kind at the end of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, line: int, number: int = 1) -> None:
        """Counts `number` lines of one kind, the first of which is `line`."""
        first, count = self._found.get(kind, (line, 0))
        self._found[kind] = first, count + number

    def remarks(self) -> Iterator[BadRow]:
        """Yields a remark, which is a `BadRow` without a lost row, for each kind."""
        for kind, (line, count) in self._found.items():
            reason = f"skipped {count:,} {kind}{'s, the first here' * (count > 1)}"
            yield BadRow(str(self._path), line, reason, is_read=True)
