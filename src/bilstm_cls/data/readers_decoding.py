"""Bytes to lines: a line ends at a line feed alone, and a byte that cannot be decoded harms only its own row."""

import codecs
import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from bilstm_cls.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 16 * 2**20
"""The longest line or field that is read; a longer one is a bad row."""

BLANK = "a blank line"
TOO_LONG = f"longer than {MAX_CHARACTERS // 2**20} MiB"
BLOCK_BYTES = 2**18
SAMPLE_BYTES = 2**16
SURROGATE = re.compile("[\ud800-\udfff]")

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LIKELY = {
    "utf_16_le": "utf-16-le", "utf_16_be": "utf-16-be", "utf_32_le": "utf-32-le", "utf_32_be": "utf-32-be",
    "cp1252": "windows-1252", "gb18030": "gb18030", "big5": "big5", "cp932": "cp932", "euc_jp": "euc-jp",
    "cp949": "cp949", "cp1251": "windows-1251", "koi8_r": "koi8-r", "cp1250": "windows-1250", "cp1253": "windows-1253",
    "cp1254": "windows-1254", "cp1255": "windows-1255", "cp1256": "windows-1256", "cp1257": "windows-1257",
    "mac_roman": "mac-roman",
}  # fmt: skip
"""Codecs that `auto` chooses among, by our spelling; of equally good ones the earlier."""

_MARKING = "bilstm_cls.mark"
_GIVE_HALVES = {"utf-7", "unicode_escape", "raw-unicode-escape", "unicode-escape", "raw_unicode_escape"}


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
        self.is_damaged = codecs.lookup(self.encoding).name in _GIVE_HALVES

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
        _refuse_other_mark(self.path, first, self.encoding)
        for block in itertools.chain([first], blocks):
            state = decoder.getstate()
            is_last = not block
            try:
                text = decoder.decode(block, is_last)
            except UnicodeDecodeError:
                # From here on wrong bytes are marked. Until one turns up, no line needs to be searched for marks.
                self.is_damaged = True
                decoder.errors = _MARKING
                decoder.setstate(state)
                text = decoder.decode(block, is_last)
            except UnicodeError as error:
                raise DataError(_undecodable(self.path, self.encoding, error)) from error
            if text:
                yield text


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


def _refuse_other_mark(path: Path, block: bytes, encoding: str) -> None:
    mark = next((mark for mark in _BOMS if block.startswith(mark)), None)
    if mark is not None and _BOMS[mark] != "utf-8" and codecs.lookup(encoding).name in ("utf-8", "ascii"):
        raise DataError(f"{path}: begins with the byte order mark of {_BOMS[mark]}; set data.encoding: {_BOMS[mark]}")


def byte_blocks(path: Path) -> Iterator[bytes]:
    """Yields a file's bytes in blocks, and an empty block at the end.

    Raises:
        DataError: it cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    yield b""


def decode(path: Path, content: bytes, encoding: str) -> str:
    """Decodes a whole file; as in `TextLines`, a wrong byte becomes a surrogate and a byte order mark is dropped."""
    _refuse_other_mark(path, content, encoding)
    try:
        return content.decode(encoding, _MARKING).removeprefix("\ufeff")
    except UnicodeError as error:
        raise DataError(_undecodable(path, encoding, error)) from error


def _undecodable(path: Path, encoding: str, error: UnicodeError) -> str:
    return f"{path}: cannot be read as {encoding} ({error}); set data.encoding"


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
    return f"byte 0x{code - 0xDC00:02x}{where} is not {encoding} (data.encoding: windows-1252, for one, or auto)"


def resolve_encoding(path: Path, encoding: str) -> str:
    """Returns the codec to read a file with: the given one, or the one found where it is `auto`.

    Raises:
        ConfigError: Python does not know the codec, or it is not one of text.
        DataError: `auto` finds none.
    """
    if encoding == "auto":
        found = find_encoding(path)
        logger.info(f"{path}: reading as {found}")
        return found
    try:
        "".encode(encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise ConfigError(
            f"data.encoding: {encoding!r} is no text codec that Python knows; 'utf-8', 'windows-1252' or 'auto' are"
        ) from None
    return encoding if name != "utf-8-sig" else "utf-8"


def find_encoding(path: Path, *, max_bytes: int | None = None) -> str:
    """Finds how a file is encoded: by its byte order mark, else UTF-8 if it decodes so, else by what it looks like.

    Args:
        path: the file, which is read to its end unless a byte that is not UTF-8 turns up.
        max_bytes: look no further than this.

    Raises:
        DataError: nothing fits.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    for block in byte_blocks(path):
        if offset == 0:
            for mark, encoding in _BOMS.items():
                if block.startswith(mark):
                    return encoding
            if b"\0" in block and (wide := _wide_encoding(block)):
                return wide
        is_cut = max_bytes is not None and offset + len(block) >= max_bytes
        try:
            decoder.decode(block, not block and not is_cut)
        except UnicodeDecodeError:
            return _likely_encoding(path, max(0, offset - (not block)))
        offset += len(block)
        if is_cut:
            break
    return "utf-8"


def _wide_encoding(block: bytes) -> str | None:
    """Tells UTF-16 and UTF-32 without a mark by where the NULs of line feeds, blanks and digits lie."""
    sample = block[: len(block) // 4 * 4]
    nulls = [sample[place::4].count(0) * 4 / max(1, len(sample)) for place in range(4)]
    if min(nulls[2], nulls[3]) > 0.9:
        return "utf-32-le"
    if min(nulls[0], nulls[1]) > 0.9:
        return "utf-32-be"
    even, odd = nulls[0] + nulls[2], nulls[1] + nulls[3]
    if max(even, odd) < 0.02 or min(even, odd) * 4 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _likely_encoding(path: Path, offset: int) -> str:
    """Asks charset-normalizer about the lines with bytes above 127 from the block at `offset` on."""
    import charset_normalizer

    sample = b""
    position = 0
    for block in byte_blocks(path):
        position += len(block)
        if position > offset:
            sample += b"\n".join(line for line in block.split(b"\n") if not line.isascii())
        if len(sample) >= SAMPLE_BYTES:
            break
    matches = charset_normalizer.from_bytes(sample[:SAMPLE_BYTES], cp_isolation=list(_LIKELY))
    order = list(_LIKELY)
    ranked = sorted(
        (round(match.chaos, 2), -match.coherence, order.index(name))
        for match in matches
        for name in match.could_be_from_charset
        if name in _LIKELY
    )
    if not ranked:
        raise DataError(f"{path}: cannot tell its encoding; set data.encoding, such as windows-1252 or gb18030")
    return _LIKELY[order[ranked[0][2]]]
