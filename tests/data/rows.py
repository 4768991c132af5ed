"""What is read of a file, or of all files of a config."""

from pathlib import Path
from typing import Any

from bilstm_cls.config_file import load_config
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.readers import read
from bilstm_cls.data.types import BadRow, Dataset


def pairs(path: Path, **kwargs: Any) -> list[tuple[str, Any]]:
    """Returns texts and labels."""
    return [(example.text, example.label) for example in read(path, **kwargs)]


def skipping(path: Path, **kwargs: Any) -> tuple[list[tuple[str, Any]], list[int]]:
    """Returns texts and labels, and the lines of the rows that are lost."""
    bad: list[BadRow] = []
    found = pairs(path, bad_rows="skip", on_bad_row=bad.append, **kwargs)
    return found, [row.line for row in bad if not row.is_read]


def loaded(*keys: str) -> Dataset:
    """Returns the data of a config, of which keys of the section `data` are given."""
    return load_dataset(load_config(None, [f"data.{key}" for key in keys]).data)


def texts_of(dataset: Dataset) -> dict[str, list[str]]:
    return {name: list(split.texts) for name, split in dataset.splits.items()}
