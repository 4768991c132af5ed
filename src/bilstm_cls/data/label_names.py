"""Names for labels that a data file gives as numbers."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bilstm_cls.data.readers import ReadOptions, read
from bilstm_cls.data.readers.columns import quoted
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError


def read_label_names(path: Path, encoding: str) -> dict[str, str]:
    """Returns the name of each number, in the order of the numbers.

    Each line is the name of one label, the first that of label 0. A blank line stands for a number that no text has, as
    0 is where numbers begin with 1.

    Raises:
        DataError: the file cannot be read, or has a name twice, a name that is a number, or a tab in one.
    """
    names: dict[str, str] = {}
    lines: dict[str, int] = {}
    for row in read(path, format="lines", options=ReadOptions(label_column=None, encoding=encoding)):
        name = row.text.strip()
        if not name:
            continue
        where = f"{path}:{row.line}"
        if "\t" in name:
            raise DataError(f"{where}: {quoted(name)} holds a tab; there must be one name a line, nothing else")
        if name.isdecimal():
            raise DataError(f"{where}: {quoted(name)} is a number itself; give the label a name in words")
        if name in lines:
            raise DataError(f"{where}: {quoted(name)} is in line {lines[name]} already; every label needs its own name")
        lines[name] = row.line
        names[str(row.line - 1)] = name
    if not names:
        raise DataError(f"{path}: holds no name; there must be one a line, the first that of label 0")
    return names


def name_labels(
    examples: Iterable[Example],
    names: dict[str, str],
    path: Path,
    *,
    bad_rows: str,
    on_bad_row: Callable[[BadRow], None],
) -> Iterator[Example]:
    """Gives each labelled example the name of its number.

    Args:
        examples: whose labels are numbers.
        names: what `read_label_names` gave.
        path: where that was read, for messages.
        bad_rows: `error` to stop at the first label that has no name, `skip` to go on.
        on_bad_row: called with every skipped row.

    Raises:
        DataError: a label has no name, and `bad_rows` is `error`.
    """
    for example in examples:
        if example.label is None:
            yield example
        elif example.label in names:
            yield Example(example.text, names[example.label], example.path, example.line, example.record)
        else:
            row = BadRow(example.path, example.line, _without_name(example.label, names, path))
            if bad_rows == "error":
                raise DataError(f"{row}; mend the row or that file, or set data.bad_rows to skip")
            on_bad_row(row)


def _without_name(label: str, names: dict[str, str], path: Path) -> str:
    if not label.isdecimal():
        return f"label {quoted(label)} is not the number of a line of {path} (data.label_names), counted from 0"
    first, last = next(iter(names)), next(reversed(names))  # in their order
    return f"label {quoted(label)} has no name in {path} (data.label_names), whose lines name {first} to {last}"
