"""Which columns of a table hold the text and the label, by what they are called and what they hold."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.data.columns import ReadOptions, clean_label, column_names
from bilstm_cls.data.formats import BODY_NAMES, LABEL_NAMES, TITLE_NAMES
from bilstm_cls.data.readers import READERS
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError, shown

MAX_ROWS = 5_000
_SURE_LABELS = LABEL_NAMES[:6]
_PAIRS = (("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("text_a", "text_b"))
_MAX_LABEL = 60
"""Characters; what is longer is a text."""
_MAX_LABELS = 500

_Table = dict[str, list[Any]]
"""The values of each column, all equally many."""


def choose_columns(path: Path, format: str, options: ReadOptions, given: DataConfig) -> tuple[tuple[str, ...], str]:
    """Returns the columns of the text and of the label, as far as they are not given by what they are called and hold.

    Raises:
        DataError: no row can be read, or nothing shows one of the columns.
    """
    is_csv = format in ("csv", "tsv")
    # A header is read as a row at first, since there may be none.
    options = replace(options, text_columns=("#1",) if is_csv else (), label_column=None, keep_record=True)
    rows = list(itertools.islice(READERS[format](path, options), MAX_ROWS))
    records = [row.record or {} for row in rows if isinstance(row, Example)]
    bad_rows = [row for row in rows if isinstance(row, BadRow) and not row.is_read]
    if bad_rows and len(records) <= is_csv:
        raise DataError(f"{bad_rows[0]}; none of {len(bad_rows):,} rows can be read as {format}")
    names = list(dict.fromkeys(name for record in records for name in record))
    table = {name: [record.get(name) for record in records] for name in names}
    if is_csv:
        table = _without_header(table)
    known = tuple(given.text_columns) if "text_columns" in given.model_fields_set else ()
    label = given.label_column if "label_column" in given.model_fields_set else _guess_label(table, known)
    if label is None or label not in table:
        raise DataError(f"{path}: {_unknown(table, 'label', label)}; name it: --set data.label_column=NAME")
    texts = known or _guess_texts(table, label)
    wrong = next((name for name in texts if name not in table), None)
    if not texts or wrong is not None:
        raise DataError(f"{path}: {_unknown(table, 'text', wrong)}; name it: --set data.text_columns=NAME")
    return texts, label


def _unknown(table: _Table, kind: str, name: str | None) -> str:
    start = f"cannot tell which column holds the {kind}" if name is None else f"there is no column {shown(name)}"
    columns = [f"{shown(n)} ({f'such as {shown(v[0])}' if v else 'without values'})" for n, v in table.items()]
    return f"{start}; there are {', '.join(columns[:20])}"


def _without_header(table: _Table) -> _Table:
    """Takes the names of the columns from the first row if it is a header."""
    rows = list(zip(*table.values(), strict=True))
    below = [row for row in rows[1:] if row != rows[0]]
    if not rows or not _is_header(rows[0], list(zip(*below, strict=True))):
        return table
    names = column_names([cell.strip() for cell in rows[0]])
    return {name: [row[at] for row in below] for at, name in enumerate(names)}


def _is_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether a table's first row names its columns, rather than being like the others."""
    if list(first) == [str(position) for position in range(len(first))] and len(first) > 1:
        return True  # what pandas writes for columns without names
    for cell, values in zip(first, columns, strict=False):
        different = set(values)
        is_one_of_few = len(different) <= max(2, 0.2 * len(values)) and cell in different
        if cell.strip() and (is_one_of_few or len(cell) > _MAX_LABEL or _is_number(cell)):
            return False
    return True


def _guess_label(table: _Table, texts: Sequence[str]) -> str | None:
    """Returns the label's column: one of a usual name, else the one with the fewest different short values."""
    candidates = [name for name in table if name not in texts]
    by_name = [name for known in LABEL_NAMES for name in candidates if name.casefold() == known]
    by_part = [name for word in _SURE_LABELS for name in candidates if word in name.casefold()]
    for name in [*by_name, *by_part]:
        is_sure = name.casefold() in _SURE_LABELS and any(value not in (None, "") for value in table[name])
        if is_sure or 0 < _num_labels(table[name]) <= max(20, 0.5 * len(table[name])):
            return name
    # What is called a text is one, however few there are.
    others = [name for name in candidates if name.casefold() not in BODY_NAMES]
    few = [(_num_labels(table[name]), position, name) for position, name in enumerate(others)]
    few = [found for found in few if 2 <= found[0] < len(table[found[2]]) * (0.2 if found[0] > 2 else 1)]
    return min(few)[2] if few else None


def _guess_texts(table: _Table, label: str) -> tuple[str, ...]:
    """Returns the text's columns: those of usual names, else the longest and others that read like prose."""
    found = {name.casefold(): name for name in table if name != label and _is_text(table[name])}
    for pair in _PAIRS:
        if all(name in found for name in pair):
            return tuple(found[name] for name in pair)
    bodies = [found[name] for name in BODY_NAMES if name in found][:1]
    titles = [found[name] for name in TITLE_NAMES if name in found and found[name] not in bodies][:1]
    if bodies or titles:
        return (*titles, *bodies)
    lengths = {name: sum(len(v) for v in table[name] if isinstance(v, str)) for name in found.values()}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return tuple(name for name in table if name == longest or (name in lengths and _is_prose(table[name])))


def _num_labels(values: Sequence[Any]) -> int:
    """Returns how many labels a column holds; 0 if its values cannot be labels."""
    labels = {clean_label(str(value)) for value in values if value not in (None, "")}
    is_fitting = all(isinstance(value, str | int | float | None) for value in values)
    is_fitting = is_fitting and all(0 < len(label) <= _MAX_LABEL for label in labels)
    is_fitting = is_fitting and not any(isinstance(v, float) and not v.is_integer() for v in values)
    return len(labels) if is_fitting and len(labels) <= _MAX_LABELS else 0


def _is_text(values: Sequence[Any]) -> bool:
    """Whether a column holds text in more than a few rows that overflow into it."""
    return sum(isinstance(value, str) and bool(value.strip()) for value in values) > 0.2 * len(values)


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
