"""A look at a user's file: what it is, where its texts and labels are, and how long and how many they are."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from bilstm_cls.config_file import load_config
from bilstm_cls.data.readers import detect_format
from bilstm_cls.data.readers.encoding import find_encoding
from bilstm_cls.data.readers.format import require_path
from bilstm_cls.data.sniff.config import Sniffed, starter_config
from bilstm_cls.data.sniff.look import MAX_BYTES, Look, Wanted, look_at_file, look_at_folder, some_files
from bilstm_cls.errors import DataError

__all__ = ["Sniffed", "sniff", "starter_config"]

MAX_TEXTS = 2_000
"""Texts whose tokens are counted."""

_CJK_RANGES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_CJK = re.compile(f"[{_CJK_RANGES}]")
_CHARACTERS = re.compile(rf"[{_CJK_RANGES}]|[^\W{_CJK_RANGES}]+|[^\w\s]")
_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def sniff(path: Path, overrides: Sequence[str] = ()) -> Sniffed:
    """Looks at the first 20,000 rows or 32 MiB of a file, or at files from all over a folder.

    Args:
        path: the file or folder.
        overrides: `key.path=value` as for `load_config`. What they say of format, encoding and columns is not guessed.

    Raises:
        DataError: the file cannot be read, or nothing tells the column of the label or the text.
        ConfigError: an override is wrong.
    """
    path = Path(path)
    require_path(path)
    given = load_config(None, ["data.source=files", f"data.train={json.dumps(str(path))}", *overrides]).data
    format = detect_format(path) if given.format == "auto" else given.format
    encoding = given.encoding
    if "encoding" not in given.model_fields_set or encoding == "auto":
        encoding = _encoding_of(path, format)
    if format == "folder":
        look = look_at_folder(path, encoding)
    else:
        texts = tuple(given.text_columns) if "text_columns" in given.model_fields_set else None
        label = given.label_column if "label_column" in given.model_fields_set else None
        look = look_at_file(path, format, encoding, Wanted(texts, label))
    if not look.texts:
        bad = f" ({look.bad[0]})" if look.bad else ""
        raise DataError(f"{path}: no row of it can be read as {format} in {encoding}{bad}; set data.format")
    return _described(look, format, encoding)


def _encoding_of(path: Path, format: str) -> str:
    if format == "parquet":
        return "utf-8"
    if format != "folder":
        return find_encoding(path, max_bytes=MAX_BYTES)
    found = {find_encoding(file) for _, file in some_files(path)}
    return "utf-8" if found <= {"utf-8"} else "auto"


def _described(look: Look, format: str, encoding: str) -> Sniffed:
    lengths = sorted(map(len, look.texts))
    some = look.texts[:: 1 + len(look.texts) // MAX_TEXTS]
    num_letters = sum(sum(map(str.isalpha, text)) for text in some)
    is_cjk = 2 * sum(len(_CJK.findall(text)) for text in some) > num_letters
    token = _CHARACTERS if is_cjk else _WORDS
    return Sniffed(
        format=format,
        encoding=encoding,
        text_columns=look.text_columns,
        label_column=look.label_column,
        labels=dict(look.labels.most_common()),
        rows=len(look.texts),
        num_rows=look.num_rows,
        is_whole=look.is_whole,
        num_bad_rows=len(look.bad),
        first_bad_row=str(look.bad[0]) if look.bad else None,
        median_characters=lengths[len(lengths) // 2],
        longest_characters=lengths[-1],
        is_cjk=is_cjk,
        num_tokens=tuple(sorted(len(token.findall(text)) for text in some)),
    )
