"""How a file is encoded: checked where it is given, found where it is `auto`."""

import codecs
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from bilstm_cls.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 2**18
SAMPLE_BYTES = 2**16
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

_KANA = re.compile("[\u3041-\u30ff]")
_SCRIPTS = {
    # What Western European languages use; Cyrillic, Turkish, Polish or Chinese bytes soon give other characters.
    "windows-1252": (
        re.compile("[ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜàáâãäåæçèéêëìíîïñòóôõöøùúûüßœŒŸ“”‘’«»–—…•¡¿€£§°·´©®™\xa0]"),
        0.98,
    ),
    "cp932": (_KANA, 0.3),
    "euc-jp": (_KANA, 0.3),
    "cp949": (re.compile("[\uac00-\ud7a3]"), 0.9),
}
"""For some encodings, characters that make up most of what is not ASCII, and the least share of them."""

_NOT_FOR_FILES = {"unicode-escape", "raw-unicode-escape", "idna", "punycode", "undefined"}


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


def require_rereadable(path: Path) -> None:
    """Raises a DataError if what is read from a path now is not there to be read again, as with pipes and devices."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or device, and has to be read twice; write it to a file first")


def refuse_other_mark(path: Path, block: bytes, encoding: str) -> None:
    """Raises a DataError if a file said to be UTF-8 begins with another encoding's byte order mark."""
    mark = next((mark for mark in _BOMS if block.startswith(mark)), None)
    if mark is not None and _BOMS[mark] != "utf-8" and codecs.lookup(encoding).name in ("utf-8", "ascii"):
        raise DataError(f"{path}: begins with the byte order mark of {_BOMS[mark]}; set data.encoding: {_BOMS[mark]}")


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
        if name in _NOT_FOR_FILES:
            raise LookupError(name)
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
        DataError: nothing fits, or it is a pipe.
    """
    require_rereadable(path)
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
    """Judges by the lines with bytes above 127 from the block at `offset` on: by script, else by charset-normalizer."""
    sample = b""
    position = 0
    for block in byte_blocks(path):
        position += len(block)
        if position > offset:
            sample += b"".join(line for line in block.splitlines(keepends=True) if not line.isascii())
        if len(sample) >= SAMPLE_BYTES:
            sample = sample[:SAMPLE_BYTES].rpartition(b"\n")[0] or sample
            break
    found = next((name for name in _SCRIPTS if _is_mostly(sample, name)), None) or _best_match(sample)
    if found is None:
        raise DataError(f"{path}: cannot tell its encoding; set data.encoding, such as windows-1252 or gb18030")
    return found


def _is_mostly(sample: bytes, encoding: str) -> bool:
    script, share = _SCRIPTS[encoding]
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    return len(script.findall(text)) >= share * sum(not character.isascii() for character in text)


def _best_match(sample: bytes) -> str | None:
    import charset_normalizer

    matches = charset_normalizer.from_bytes(sample, cp_isolation=list(_LIKELY))
    order = list(_LIKELY)
    ranked = sorted(
        (round(match.chaos, 2), -match.coherence, order.index(name))
        for match in matches
        for name in match.could_be_from_charset
        if name in _LIKELY
    )
    return _LIKELY[order[ranked[0][2]]] if ranked else None
