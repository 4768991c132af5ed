"""What is read of a file."""

from pathlib import Path
from typing import Any

from bilstm_cls.data.readers import read
from bilstm_cls.data.types import BadRow


def pairs(path: Path, **kwargs: Any) -> list[tuple[str, Any]]:
    """Returns texts and labels."""
    return [(example.text, example.label) for example in read(path, **kwargs)]


def skipping(path: Path, **kwargs: Any) -> tuple[list[tuple[str, Any]], list[int]]:
    """Returns texts and labels, and the lines of the rows that are lost."""
    bad: list[BadRow] = []
    found = pairs(path, bad_rows="skip", on_bad_row=bad.append, **kwargs)
    return found, [row.line for row in bad if not row.is_read]


def remarks(path: Path, **kwargs: Any) -> list[BadRow]:
    """Returns what is remarked on; no row may be lost."""
    bad: list[BadRow] = []
    pairs(path, on_bad_row=bad.append, **kwargs)
    assert all(row.is_read for row in bad)
    return bad
