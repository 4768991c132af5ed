"""Guesses about a table: whether its first row is a header, which column holds the label, and which the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bilstm_cls.data.readers.columns import BODY_NAMES, LABEL_NAMES, TITLE_NAMES

_PAIRS = (("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("text_a", "text_b"))
_MAX_LABEL = 60
"""Characters; what is longer is a text."""
_MAX_LABELS = 500


@dataclass(frozen=True)
class Table:
    """The first rows of a table.

    Attributes:
        names: of the columns.
        columns: their values, all equally many.
    """

    names: tuple[str, ...]
    columns: tuple[list[Any], ...]

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[self.names.index(name)]


def table_of(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> Table:
    """Turns rows of equal width to columns."""
    columns = tuple(list(column) for column in zip(*rows, strict=True)) if rows else tuple([] for _ in names)
    return Table(tuple(names), columns)


def is_header(first: Sequence[str], others: Table) -> bool:
    """Whether a table's first row names its columns, rather than being like the others."""
    if list(first) == [str(position) for position in range(len(first))] and len(first) > 1:
        return True  # what pandas writes for columns without names
    for cell, values in zip(first, others.columns, strict=True):
        different = set(values)
        is_one_of_few = len(different) <= max(2, 0.2 * len(values)) and cell in different
        if is_one_of_few or len(cell) > _MAX_LABEL or _is_number(cell):
            return False
    return True


def guess_label(table: Table, texts: Sequence[str] = ()) -> str | None:
    """Returns the label's column: one of a usual name, else the one with the fewest different short values.

    Args:
        table: the table.
        texts: columns that are known to hold text.
    """
    candidates = [name for name in table.names if name not in texts]
    by_name = sorted(
        (LABEL_NAMES.index(name.casefold()), name) for name in candidates if name.casefold() in LABEL_NAMES
    )
    by_part = [(0, name) for word in LABEL_NAMES[:6] for name in candidates if word in name.casefold()]
    for _, name in [*by_name, *by_part]:
        if 0 < _num_labels(table[name]) <= max(20, 0.5 * len(table[name])):
            return name
    few = [(_num_labels(table[name]), position, name) for position, name in enumerate(candidates)]
    few = [found for found in few if 2 <= found[0] <= max(2, 0.2 * len(table.columns[0]))]
    return min(few)[2] if few else None


def guess_texts(table: Table, label: str | None) -> tuple[str, ...]:
    """Returns the text's columns: those of usual names, else the longest and others that read like prose."""
    found = {name.casefold(): name for name in table.names if name != label and _is_text(table[name])}
    for pair in _PAIRS:
        if all(name in found for name in pair):
            return tuple(found[name] for name in pair)
    bodies = [found[name] for name in BODY_NAMES if name in found][:1]
    titles = [found[name] for name in TITLE_NAMES if name in found and found[name] not in bodies][:1]
    if bodies or titles:
        return (*titles, *bodies)
    lengths = {name: _mean_length(table[name]) for name in found.values()}
    if not lengths:
        return ()
    longest = max(lengths, key=lambda name: lengths[name])
    return tuple(name for name in table.names if name == longest or (name in lengths and _is_prose(table[name])))


def _num_labels(values: Sequence[Any]) -> int:
    """Returns how many labels a column holds; 0 if its values cannot be labels."""
    different = {value.strip() if isinstance(value, str) else value for value in values if _can_be_label(value)}
    num_fitting = sum(_can_be_label(value) or value in (None, "") for value in values)
    return len(different) if num_fitting == len(values) and len(different) <= _MAX_LABELS else 0


def _can_be_label(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and 0 < len(value.strip()) <= _MAX_LABEL)


def _is_text(values: Sequence[Any]) -> bool:
    return any(isinstance(value, str) and value for value in values)


def _mean_length(values: Sequence[Any]) -> float:
    return sum(len(value) for value in values if isinstance(value, str)) / max(1, len(values))


def _is_prose(values: Sequence[Any]) -> bool:
    """Whether most values differ and have several words."""
    num_words = [len(value.split()) for value in values if isinstance(value, str)]
    return sum(num_words) >= 4 * len(values) and len(set(map(str, values))) > 0.5 * len(values)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
