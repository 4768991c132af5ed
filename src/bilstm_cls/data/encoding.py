"""Bytes to lines of text: compressed files, encodings, and bytes that harm only the row they are in."""

import codecs
import contextlib
import functools
import gzip
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bilstm_cls.errors import DataError, cut

logger = logging.getLogger(__name__)

SAMPLE_BYTES = 2**16
MAX_BYTES = 2**27  # looked through for what is not UTF-8
MAX_CHARACTERS = 16 * 2**20  # of a line; a longer one is a bad row
TOO_LONG = f"longer than {MAX_CHARACTERS // 2**20} MiB"
SURROGATE = re.compile("[\ud800-\udfff]")
COMPRESSION = ".gz"

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_TEXTS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook", b"\xd0\xcf\x11\xe0": "an Excel workbook", b"%PDF": "a PDF",
    b"BZh": "compressed by bzip2", b"\xfd7zXZ": "compressed by xz", b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x1f\x8b": "compressed by gzip without the ending .gz", b"\x80\x04\x95": "a pickle", b"\x80\x05\x95": "a pickle",
}  # fmt: skip
_LIKELY = ["cp1252", "gb18030", "big5", "cp949", "cp1251", "koi8_r", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256"]
_SCRIPTS = {
    # Few other texts, read as windows-1252, give next to nothing but marks and, seldom three together, letters of it.
    "windows-1252": ("(?<![À-ÿ]{2})[À-ÖØ-Üß-öø-üœŒŸ“”‘’«»–—…•¡¿€£§°·´©®™\xa0](?![À-ÿ]{2})", 0.98),
    "cp1255": ("[\u05d0-\u05ea]", 0.98),
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


@contextlib.contextmanager
def open_file(path: Path, encoding: str | None = None, newline: str | None = "\n") -> Iterator[Any]:
    """Opens a file, decompressed if it ends in .gz, to read bytes, or text with such line ends as those of `open`.

    Raises DataError, from the block as well, where it cannot be opened, read, decompressed or decoded at all.
    """
    opened: Any = gzip.open if path.suffix.lower() == COMPRESSION else open
    text = {"mode": "rt", "encoding": encoding, "errors": _MARKING, "newline": newline}
    try:
        with opened(path, **(text if encoding else {"mode": "rb"})) as file:
            yield file
    except (OSError, ValueError, EOFError, zlib.error) as error:
        advice = "; set data.encoding, such as to auto" if isinstance(error, UnicodeError) else ""
        reason = getattr(error, "strerror", None) or cut(str(error))
        raise DataError(f"{path}: cannot be read ({reason}){advice}") from error


def require_rereadable(path: Path) -> None:
    """Raises a DataError if what is read from a path now is not there to be read again, as with pipes and devices."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or device, and has to be read twice; write it to a file first")


def find_encoding(path: Path) -> str:
    """Finds how a file is encoded: by its byte order mark, else UTF-8 where that fits, else what it looks like.

    UTF-8 fits where at least half of the lines that are not ASCII are valid UTF-8: no other encoding has that by
    accident, and a few bytes that came in from elsewhere are bad rows, not a reason to read all others wrongly. Raises
    DataError where nothing fits, or it is a pipe.
    """
    require_rereadable(path)
    num_valid = num_wrong = 0
    sample = b""
    with open_file(path) as file:
        start = file.read(8)
        if kind := next((kind for mark, kind in _NO_TEXTS.items() if start.startswith(mark)), None):
            raise DataError(f"{path}: is {kind}; unpack it, or write texts and labels to a CSV file")
        if marked := next((encoding for mark, encoding in _BOMS.items() if start.startswith(mark)), None):
            return marked
        file.seek(0)
        for line in iter(functools.partial(file.readline, MAX_CHARACTERS), b""):
            if file.tell() > MAX_BYTES or (not num_valid and len(sample) >= SAMPLE_BYTES):
                break
            if line.isascii() or len(line) == MAX_CHARACTERS:  # cut, perhaps within a character
                continue
            try:
                line.decode("utf-8")
                num_valid += 1
            except UnicodeDecodeError:
                num_wrong += 1
                sample += line[: SAMPLE_BYTES // 4] if len(sample) < SAMPLE_BYTES else b""
    if num_valid >= num_wrong:
        return "utf-8"
    for encoding, (characters, least) in _SCRIPTS.items():
        text = sample.decode(encoding, "replace")
        if len(re.findall(characters, text)) >= least * sum(not character.isascii() for character in text):
            return encoding
    import charset_normalizer

    found = charset_normalizer.from_bytes(sample, cp_isolation=_LIKELY).best()
    if found is None or b"\0" in sample:
        advice = "set data.encoding, such as windows-1252 or gb18030, or write a CSV file in UTF-8 if it is not text"
        raise DataError(f"{path}: cannot tell its encoding; {advice}")
    return str(found.encoding)


class TextLines:
    """Iterates over a file's lines, in the memory of one line.

    They end at line feeds alone, or at carriage returns where the file begins without any line feed, as on early Macs.
    A byte order mark is dropped. A line of more than `MAX_CHARACTERS` is yielded cut, but longer than that, so that its
    length shows it. In the place of bytes that are not of the encoding are `SURROGATE`s; see `fault`.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self.encoding = encoding
        if encoding == "auto":
            self.encoding = find_encoding(path)
            logger.info(f"{path}: reading as {self.encoding}")

    def __iter__(self) -> Iterator[str]:
        with open_file(self.path, self.encoding) as file:
            start = file.read(SAMPLE_BYTES)
        is_early_mac = "\r" in start[:-1] and "\n" not in start
        with open_file(self.path, self.encoding, None if is_early_mac else "\n") as file:
            read = functools.partial(file.readline, MAX_CHARACTERS + 2)
            line = read().removeprefix("\ufeff")
            if not line:
                raise DataError(f"{self.path}: is empty")
            while line:
                yield line
                while len(line) > MAX_CHARACTERS and line[-1] != "\n":
                    line = read()
                line = read()

    def whole(self, max_characters: int) -> str | None:
        """Returns all of the text, or None if it is longer."""
        with open_file(self.path, self.encoding) as file:
            text = file.read(max_characters + 1)
        return None if len(text) > max_characters else str(text).removeprefix("\ufeff")

    def fault(self, *lines: str) -> str | None:
        """Returns what is wrong with lines that are one record: too long, or which byte could not be decoded."""
        if max(map(len, lines)) > MAX_CHARACTERS + 1:
            return TOO_LONG
        return None if all(map(str.isascii, lines)) else decoding_fault("".join(lines), self.encoding)


def decoding_fault(text: str, encoding: str) -> str | None:
    found = SURROGATE.search(text)
    if found is None:
        return None
    byte = f"byte 0x{ord(found[0]) - 0xDC00:02x}"
    return f"{byte} is not {encoding} (if the file has another encoding, set data.encoding)"
