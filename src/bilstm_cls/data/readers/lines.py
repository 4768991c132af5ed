"""Formats with one text a line, and folders with one text a file."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bilstm_cls.data.readers.columns import NO_LABEL, ReadOptions
from bilstm_cls.data.readers.decoding import (
    MAX_CHARACTERS,
    SURROGATE,
    TOO_LONG,
    TextLines,
    decode,
    decoding_fault,
    numbered,
)
from bilstm_cls.data.readers.encoding import byte_blocks, find_encoding, resolve_encoding
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError

logger = logging.getLogger(__name__)

_PREFIX = "__label__"
_FASTTEXT_LABEL = re.compile(r"(?<!\S)__label__(\S+)(?:\s|$)")
SUFFIXES = (".txt", ".text")

Parts = tuple[str, str] | str
"""Label and text of a line, or what is wrong with it."""


def read_lines(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads one text a line, without labels. A blank line is a text too, so that every line has its result."""
    for number, text, fault in numbered(TextLines(path, options.encoding), keep_blank=True):
        if fault:
            yield BadRow(str(path), number, fault)
        else:
            yield Example(text, None, str(path), number, {"text": text} if options.keep_record else None)


def read_fasttext(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads fastText's lines, `__label__NAME text`, with one label each."""
    return _labelled(path, options, lambda _: _fasttext_parts)


def read_label_text(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads a label and a text a line, a tab between them; a blank in a file whose first line has no tab."""
    return _labelled(path, options, lambda first: _label_tab_text if "\t" in first else _label_blank_text)


def read_text_label(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads a text and a label a line, a tab between them; a blank in a file whose first line has no tab."""
    return _labelled(path, options, lambda first: _text_tab_label if "\t" in first else _text_blank_label)


def _labelled(
    path: Path, options: ReadOptions, choose: Callable[[str], Callable[[str], Parts]]
) -> Iterator[Example | BadRow]:
    """Splits all lines by what is chosen for the first, so that a tab in a later text does not make a label."""
    split = None
    is_empty = True
    for number, line, fault in numbered(TextLines(path, options.encoding)):
        is_empty = False
        split = split or (None if fault else choose(line))
        parts = fault or (split(line) if split else "")
        if isinstance(parts, str):
            yield BadRow(str(path), number, parts)
        else:
            yield _example(*parts, path, number, options)
    if is_empty:
        raise DataError(f"{path}: holds blank lines only")


def _example(label: str, text: str, path: Path, line: int, options: ReadOptions) -> Example | BadRow:
    label = label.strip()
    wants_label = options.label_column is not None
    if wants_label and not label:
        return BadRow(str(path), line, NO_LABEL)
    record = {"label": label, "text": text} if options.keep_record else None
    return Example(text, label if wants_label else None, str(path), line, record)


def _fasttext_parts(line: str) -> Parts:
    if line.startswith(_PREFIX) and line.count(_PREFIX) == 1 and (found := _FASTTEXT_LABEL.match(line)):
        return found[1], line[found.end() :]
    labels = list(_FASTTEXT_LABEL.finditer(line))
    if len(labels) != 1:
        return f"has {len(labels)} labels, but each text takes one" if labels else "has no label (__label__NAME)"
    return labels[0][1], line[: labels[0].start()] + line[labels[0].end() :]


def _label_tab_text(line: str) -> Parts:
    label, tab, text = line.partition("\t")
    return (label, text) if tab else "has no tab between label and text, as the first line has"


def _label_blank_text(line: str) -> Parts:
    label, blank, text = line.partition(" ")
    return (label, text) if blank else "has no blank between label and text"


def _text_tab_label(line: str) -> Parts:
    text, tab, label = line.rpartition("\t")
    return (label, text) if tab else "has no tab between text and label, as the first line has"


def _text_blank_label(line: str) -> Parts:
    text, blank, label = line.rstrip().rpartition(" ")
    return (label, text) if blank else "has no blank between text and label"


def read_folder(path: Path, options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads `path/LABEL/*.txt`, one text a file, by label and file name; hidden files and other kinds are left out.

    Raises:
        DataError: there is no folder, one has no text file, or a file cannot be read.
    """
    return read_files(folder_files(path), options)


def read_files(files: Iterable[tuple[str, Path]], options: ReadOptions) -> Iterator[Example | BadRow]:
    """Reads one text a file, with the label given beside it; with encoding `auto`, finds each file's own."""
    said: set[str] = set()
    for label, file in files:
        encoding = find_encoding(file) if options.encoding == "auto" else resolve_encoding(file, options.encoding)
        if options.encoding == "auto" and encoding not in said:
            logger.info(f"{file}: reading as {encoding}")
            said.add(encoding)
        yield _read_file(file, label, options, encoding)


def folder_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields label and path of every text file in a folder of folders, sorted.

    Raises:
        DataError: there is no folder in it, or one has no text file.
    """
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise DataError(
                f"{path}: holds no folders; texts lie in {path / 'LABEL' / '*.txt'}, a folder for each label"
            )
        for folder in folders:
            names = (entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())
            files = sorted(entry for entry in names if not entry.name.startswith("."))
            if not files:
                raise DataError(f"{folder}: is a label's folder without any *.txt file; add texts or take it away")
            yield from ((folder.name, file) for file in files)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from error


def _read_file(file: Path, label: str, options: ReadOptions, encoding: str) -> Example | BadRow:
    content = b""
    for block in byte_blocks(file):
        content += block
        if len(content) > MAX_CHARACTERS:
            return BadRow(str(file), 1, TOO_LONG)
    text = decode(file, content, encoding)
    if not text.isascii() and SURROGATE.search(text):
        for number, line in enumerate(text.split("\n"), 1):
            if fault := decoding_fault(line, encoding):
                return BadRow(str(file), number, fault)
    return _example(label, text, file, 1, options)
