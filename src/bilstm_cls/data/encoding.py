"""Bytes to lines of text: compressed files, encodings, and bytes that harm only the row they are in."""

import codecs
import gzip
import itertools
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from bilstm_cls.errors import DataError, cut

logger = logging.getLogger(__name__)

BLOCK_BYTES = 2**18
SAMPLE_BYTES = 2**16
MAX_CHARACTERS = 16 * 2**20
"""The longest line that is read; a longer one is a bad row."""
TOO_LONG = f"longer than {MAX_CHARACTERS // 2**20} MiB"
SURROGATE = re.compile("[\ud800-\udfff]")
COMPRESSIONS = (".gz", ".zst")

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LIKELY = {
    "cp1252": "windows-1252", "gb18030": "gb18030", "big5": "big5", "cp932": "cp932", "euc_jp": "euc-jp",
    "cp949": "cp949", "cp1251": "windows-1251", "koi8_r": "koi8-r", "cp1250": "windows-1250", "cp1253": "windows-1253",
    "cp1254": "windows-1254", "cp1255": "windows-1255", "cp1256": "windows-1256", "cp1257": "windows-1257",
    "mac_roman": "mac-roman",
}  # fmt: skip
"""Codecs that `auto` chooses among, by their usual spelling; of equally good ones the earlier."""
_SCRIPTS = {
    # Few other texts, read as windows-1252, give next to nothing but the letters and marks of Western Europe.
    "windows-1252": ("[À-ÖØ-Üß-öø-üœŒŸ“”‘’«»–—…•¡¿€£§°·´©®™\xa0]", 0.98),
    "cp932": ("[\u3041-\u30ff]", 0.3),
    "euc-jp": ("[\u3041-\u30ff]", 0.3),
}
"""Encodings that charset-normalizer confuses: characters of their languages, and their least share of non-ASCII."""
_MARKING = "bilstm_cls.mark"


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Puts U+DC00 + byte for each byte that cannot be decoded; no well-formed text holds these."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_MARKING, _mark)


def _zst_blocks(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise DataError(f"{path}: .zst files need the package zstandard; pip install zstandard") from None
    decoder = zstandard.ZstdDecompressor().decompressobj()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES // 64):
            while block:
                decoder = zstandard.ZstdDecompressor().decompressobj() if decoder.eof else decoder
                try:
                    yield decoder.decompress(block)
                except zstandard.ZstdError as error:
                    raise ValueError(error) from error
                block = decoder.unused_data
    if not decoder.eof:  # which the package's stream passes over
        raise EOFError("compressed file ended before the end of its last frame")


def byte_blocks(path: Path) -> Iterator[bytes]:
    """Yields a file's bytes in blocks, decompressed where its name ends so, and an empty block at the end.

    Raises:
        DataError: it cannot be opened, read or decompressed.
    """
    try:
        if path.suffix.lower() == ".zst":
            yield from _zst_blocks(path)
        else:
            with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    yield b""


def require_rereadable(path: Path) -> None:
    """Raises a DataError if what is read from a path now is not there to be read again, as with pipes and devices."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or device, and has to be read twice; write it to a file first")


def find_encoding(path: Path, *, max_bytes: int | None = None) -> str:
    """Finds how a file is encoded: by its byte order mark, else UTF-8 where that fits, else what it looks like.

    UTF-8 fits where at least half of the lines that are not ASCII are valid UTF-8: no other encoding has that by
    accident, and a few bytes that came in from elsewhere are bad rows, not a reason to read all others wrongly.

    Args:
        path: the file, which is read to its end unless its first lines show that it is not UTF-8.
        max_bytes: look no further than this.

    Raises:
        DataError: nothing fits, it is UTF-16 or UTF-32 without a mark, or a pipe.
    """
    require_rereadable(path)
    num_valid = num_wrong = offset = 0
    sample = tail = b""
    for block in byte_blocks(path):
        if offset == 0:
            if marked := next((encoding for mark, encoding in _BOMS.items() if block.startswith(mark)), None):
                return marked
            if 5 * block.count(b"\0") > len(block):
                raise DataError(f"{path}: looks like UTF-16 without a byte order mark; set data.encoding: utf-16-le")
        offset += len(block)
        *lines, tail = (tail + block).replace(b"\r", b"\n").split(b"\n") if block else [tail, b""]
        tail = tail if len(tail) <= MAX_CHARACTERS else b""
        for line in itertools.filterfalse(bytes.isascii, lines):
            try:
                line.decode("utf-8")
                num_valid += 1
            except UnicodeDecodeError:
                num_wrong += 1
                sample += line[: SAMPLE_BYTES // 4] + b"\n" if len(sample) < SAMPLE_BYTES else b""
        if (not num_valid and len(sample) >= SAMPLE_BYTES) or (max_bytes is not None and offset >= max_bytes):
            break
    if num_valid >= num_wrong:
        return "utf-8"
    if (found := _best_match(sample)) is None:
        raise DataError(f"{path}: cannot tell its encoding; set data.encoding, such as windows-1252 or gb18030")
    return found


def _best_match(sample: bytes) -> str | None:
    import charset_normalizer

    for encoding, (characters, least) in _SCRIPTS.items():
        text = sample.decode(encoding, "replace")
        if len(re.findall(characters, text)) >= least * sum(not character.isascii() for character in text):
            return encoding
    order = list(_LIKELY)
    ranked = sorted(
        (round(match.chaos, 2), -match.coherence, order.index(name))
        for match in charset_normalizer.from_bytes(sample, cp_isolation=order)
        for name in match.could_be_from_charset
        if name in _LIKELY
    )
    return _LIKELY[order[ranked[0][2]]] if ranked else None


class TextLines:
    """Iterates over a file's lines without their line feeds, in the memory of one block and one line.

    A byte order mark is dropped. A line ends at a line feed alone; a carriage return stays, also before the line feed,
    unless the file begins without any line feed: then, as on early Macs, carriage returns end its lines.
    A line of more than `MAX_CHARACTERS` is yielded cut, but longer than that, so that its length shows it. In the place
    of bytes that are not of the encoding are `SURROGATE`s; see `fault`.

    Attributes:
        encoding: the codec, never `auto`.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self.encoding = encoding
        if encoding == "auto":
            self.encoding = find_encoding(path)
            logger.info(f"{path}: reading as {self.encoding}")

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[list[str]]:
        """Yields the lines many at a time.

        Raises:
            DataError: the file is empty, or cannot be read as text at all.
        """
        tail, line_end = "", ""
        for text in self.text():
            line_end = line_end or ("\r" if "\r" in text[:-1] and "\n" not in text else "\n")
            *lines, tail = (tail + text).split(line_end)
            tail = tail[: MAX_CHARACTERS + 1]
            if lines:
                yield lines
        if not line_end:
            raise DataError(f"{self.path}: is empty")
        if tail:
            yield [tail]

    def text(self) -> Iterator[str]:
        """Yields what is in the file, as it is, in blocks."""
        decoder = codecs.getincrementaldecoder(self.encoding)(_MARKING)
        is_first = True
        for number, block in enumerate(byte_blocks(self.path)):
            if number == 0:
                self._refuse_other_mark(block)
            try:
                text = decoder.decode(block, not block)
            except UnicodeError as error:
                reason = f"cannot be read as {self.encoding} ({cut(str(error))}); set data.encoding, such as to auto"
                raise DataError(f"{self.path}: {reason}") from error
            if text:
                yield text.removeprefix("\ufeff") if is_first else text
                is_first = False

    def whole(self, max_characters: int) -> str | None:
        """Returns all of the text, or None if it is longer."""
        parts, size = [], 0
        for text in self.text():
            parts.append(text)
            size += len(text)
            if size > max_characters:
                return None
        return "".join(parts)

    def fault(self, lines: list[str]) -> str | None:
        """Returns what is wrong with lines that are one record: too long, or which byte could not be decoded."""
        if max(map(len, lines)) > MAX_CHARACTERS:
            return TOO_LONG
        if all(map(str.isascii, lines)):
            return None
        return decoding_fault("\n".join(line.removesuffix("\n") for line in lines), self.encoding)

    def _refuse_other_mark(self, block: bytes) -> None:
        mark = next((mark for mark in _BOMS if block.startswith(mark)), b"")
        if _BOMS.get(mark, "utf-8") != "utf-8" and codecs.lookup(self.encoding).name in ("utf-8", "ascii"):
            wanted = _BOMS[mark]
            raise DataError(f"{self.path}: begins with the byte order mark of {wanted}; set data.encoding: {wanted}")


def decoding_fault(text: str, encoding: str) -> str | None:
    """Returns which byte of a text could not be decoded, in words, or None."""
    found = None if text.isascii() else SURROGATE.search(text)
    if found is None:
        return None
    lines_before = text.count("\n", 0, found.start())
    where = f" {lines_before} line{'s' * (lines_before > 1)} further down" if lines_before else ""
    byte = f"byte 0x{ord(found[0]) - 0xDC00:02x}{where}"
    return f"{byte} is not {encoding} (if the file has another encoding, set data.encoding)"
