"""Bytes to lines: a line ends at a line feed alone, and a byte that cannot be decoded harms only its own row."""

import codecs
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from bilstm_cls.data.readers.encoding import byte_blocks, refuse_other_mark, resolve_encoding
from bilstm_cls.errors import DataError, cut

MAX_CHARACTERS = 16 * 2**20
"""The longest line or field that is read; a longer one is a bad row."""

BLANK = "a blank line"
TOO_LONG = f"longer than {MAX_CHARACTERS // 2**20} MiB"
SURROGATE = re.compile("[\ud800-\udfff]")

_MARKING = "bilstm_cls.mark"
_GIVES_HALVES = "utf-7"


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Puts U+DC00 + byte for each byte that cannot be decoded; no well-formed text holds these."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_MARKING, _mark)


class TextLines:
    """Iterates over a file's lines without their line feeds, in the memory of one block and one line.

    A byte order mark is dropped. A carriage return stays, also before the line feed. A line of more than
    `MAX_CHARACTERS` is given out cut, but longer than that, so that it is told by its length.

    Attributes:
        encoding: the codec, never `auto`.
        is_damaged: whether a line given out, or about to be, may be cut or hold `SURROGATE`s in the place of bytes that
            are not of the encoding; see `decoding_fault`.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self.encoding = resolve_encoding(path, encoding)
        self.is_damaged = codecs.lookup(self.encoding).name == _GIVES_HALVES

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[list[str]]:
        """Yields the lines many at a time."""
        tail = ""
        is_empty = True
        for text in self._decoded():
            lines = text.split("\n")
            lines[0] = tail + (lines[0].removeprefix("\ufeff") if is_empty else lines[0])
            is_empty = False
            tail = lines.pop()
            if lines:
                yield lines
            if len(tail) > MAX_CHARACTERS:
                tail = tail[: MAX_CHARACTERS + 1]
                self.is_damaged = True
        if is_empty:
            raise DataError(f"{self.path}: is empty")
        if tail:
            yield [tail]

    def _decoded(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder(self.encoding)()
        blocks = byte_blocks(self.path)
        first = next(blocks)
        refuse_other_mark(self.path, first, self.encoding)
        for block in itertools.chain([first], blocks):
            try:
                text = self._decoded_block(decoder, block)
            except UnicodeError as error:
                raise DataError(undecodable(self.path, self.encoding, error)) from error
            if text:
                yield text

    def _decoded_block(self, decoder: codecs.IncrementalDecoder, block: bytes) -> str:
        is_last = not block
        state = decoder.getstate()
        try:
            return decoder.decode(block, is_last)
        except UnicodeDecodeError:
            # From here on wrong bytes are marked. Until one turns up, no line needs to be searched for marks.
            self.is_damaged = True
            decoder.errors = _MARKING
            decoder.setstate(state)
            return decoder.decode(block, is_last)


def numbered(lines: TextLines, *, keep_blank: bool = False) -> Iterator[tuple[int, str, str | None]]:
    """Yields every line's number from 1, its text without the line end, and what is wrong with it, if anything.

    Args:
        lines: the file's lines.
        keep_blank: whether an empty line is one like others; else it is wrong, and ignored at the end of the file.
    """
    num_blank = 0
    for number, line in enumerate(lines, 1):
        text = line[:-1] if line[-1:] == "\r" else line
        if not text and not keep_blank:
            num_blank += 1
            continue
        while num_blank:
            yield number - num_blank, "", BLANK
            num_blank -= 1
        if len(text) > MAX_CHARACTERS:
            yield number, "", TOO_LONG
        else:
            yield number, text, decoding_fault(text, lines.encoding) if lines.is_damaged else None


def decode(path: Path, content: bytes, encoding: str) -> str:
    """Decodes a whole file; as in `TextLines`, a wrong byte becomes a surrogate and a byte order mark is dropped."""
    refuse_other_mark(path, content, encoding)
    try:
        return content.decode(encoding, _MARKING).removeprefix("\ufeff")
    except UnicodeError as error:
        raise DataError(undecodable(path, encoding, error)) from error


def undecodable(path: Path, encoding: str, error: UnicodeError) -> str:
    """Says that a file as a whole is not of an encoding."""
    return f"{path}: cannot be read as {encoding} ({cut(str(error))}); set data.encoding, such as to auto"


def decoding_fault(text: str, encoding: str) -> str | None:
    """Says which byte of a text could not be decoded, if any."""
    found = SURROGATE.search(text)
    if found is None:
        return None
    code = ord(found[0])
    if not 0xDC00 <= code <= 0xDCFF:
        return f"half a character (U+{code:04X})"
    lines_before = text.count("\n", 0, found.start())
    where = f" {lines_before} line{'s' * (lines_before > 1)} further down" if lines_before else ""
    return f"byte 0x{code - 0xDC00:02x}{where} is not {encoding} (set data.encoding, such as windows-1252 or auto)"
