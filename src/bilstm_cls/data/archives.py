"""Reads files straight out of tar, tar.gz and zip archives.

Nothing is unpacked: no member touches the disk and no link is followed, so a hostile archive has nothing to act on.
Tar headers are read here rather than by `tarfile`, which lets negative sizes and extended headers of any length pass
in Python versions that are in use, and takes most of the time where members are many and small.
"""

import gzip
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from bilstm_cls.errors import DataError

MAX_PART_BYTES = 240
MAX_DEPTH = 20

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_EXTENSION = 1 << 20
_MAX_RECORDS = 50
_END = bytes(_BLOCK)
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = {b"PK\3\4", b"PK\5\6"}
_KINDS = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "hard link", b"2": "symbolic link", b"3": "character device",
    b"4": "block device", b"5": "folder", b"6": "named pipe",
}  # fmt: skip
_BODILESS = {b"1", b"2", b"3", b"4", b"5", b"6"}
_EXTENSIONS = {b"x", b"g", b"L", b"K"}
_OCTAL = re.compile(rb"[0-7]+")
_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^/|^[A-Za-z]:|(^|/)\.\.(/|$)")
_READ_FAULTS = (OSError, EOFError, zlib.error)
_ZIP_FAULTS = (*_READ_FAULTS, zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, struct.error)

_AGAIN = "download or copy it again"
_ANOTHER = "take another archive, or pack the texts anew"


class _ArchiveError(Exception):
    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")


@dataclass(frozen=True, slots=True)
class _Limits:
    member_size: int
    members: int
    total_size: int


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    kind: str
    size: int
    read: Callable[[], bytes]


def read_members(
    path: Path, wanted: Callable[[str], bool], *, max_member_size: int, max_members: int, max_total_size: int
) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the wanted files in an archive, in its order.

    Names are relative, with single `/` between their parts and no `.` among them. Whatever is no file is passed over
    unless its name is wanted. Use nothing of it before the end: the checksum of a tar.gz comes last.

    Args:
        path: a tar, gzipped tar or zip archive; its first bytes tell which.
        wanted: whether to yield the file of this name.
        max_member_size: bytes that a wanted file may have.
        max_members: members that the archive may have, folders and all else among them.
        max_total_size: bytes that may come out of the archive; those of a tar's other members and headers count.

    Raises:
        DataError: the archive is missing, cut, damaged or over a limit; a name leads outside or comes twice; or what
            has a wanted name is no file.
    """
    limits = _Limits(max_member_size, max_members, max_total_size)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    with file:
        try:
            yield from _chosen(_members(file, limits), wanted, limits)
        except _ArchiveError as error:
            raise DataError(f"{path}: {error}") from error


def _members(file: IO[bytes], limits: _Limits) -> Iterator[_Member]:
    try:
        magic = file.read(4)
        file.seek(0)
        if magic in _ZIP_MAGIC:
            yield from _zip_members(file, limits)
        elif magic[:2] == _GZIP_MAGIC:
            # A large buffer spares GzipFile two slow calls for each small member.
            with io.BufferedReader(gzip.GzipFile(fileobj=file), _CHUNK) as unpacked:
                yield from _tar_members(_Stream(unpacked, limits.total_size))
        else:
            yield from _tar_members(_Stream(file, limits.total_size))
    except OSError as error:
        raise _ArchiveError(f"cannot be read ({error.strerror})", _AGAIN) from error


def _chosen(members: Iterator[_Member], wanted: Callable[[str], bool], limits: _Limits) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    total = 0
    for count, member in enumerate(members, start=1):
        if count > limits.members:
            raise _ArchiveError(f"has more than {limits.members} members", _ANOTHER)
        name = _normalised(member.name)
        if member.kind == "folder":
            continue
        if name in seen:
            raise _ArchiveError(f"has two members named {_shown(name)}", _ANOTHER)
        seen.add(name)
        if not wanted(name):
            continue
        if member.kind != "file":
            raise _ArchiveError(f"its member {_shown(name)} is a {member.kind} and no file", _ANOTHER)
        if member.size > limits.member_size:
            raise _ArchiveError(f"its member {_shown(name)} has {member.size} bytes, which is too many", _ANOTHER)
        total += member.size
        if total > limits.total_size:
            raise _ArchiveError(f"holds more than {limits.total_size} bytes", _ANOTHER)
        yield name, member.read()


def _normalised(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if _UNSAFE.search(name) or len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise _ArchiveError(f"its member name {_shown(name)} is not safe to use", _ANOTHER)
    return "/".join(parts)


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


class _Stream:
    """The bytes of a tar, in order and counted."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self.file = file
        self.limit = limit
        self.position = 0

    def take(self, size: int) -> bytes:
        """Returns exactly `size` bytes."""
        data = self.take_up_to(size)
        if len(data) < size:
            raise _ArchiveError(f"is cut off after {self.position} bytes of its contents", _AGAIN)
        return data

    def take_up_to(self, size: int) -> bytes:
        """Returns `size` bytes, or fewer at the end."""
        try:
            data = self.file.read(size)
        except _READ_FAULTS as error:
            raise _ArchiveError(f"is damaged after {self.position} bytes of its contents ({error})", _AGAIN) from error
        self.position += len(data)
        if self.position > self.limit:
            raise _ArchiveError(f"holds more than {self.limit} bytes", _ANOTHER)
        return data

    def skip_to(self, position: int) -> None:
        """Passes over what lies before `position`."""
        if position > self.limit:
            raise _ArchiveError(f"holds more than {self.limit} bytes", _ANOTHER)
        while self.position < position:
            self.take(min(_CHUNK, position - self.position))


def _tar_members(stream: _Stream) -> Iterator[_Member]:
    extended: dict[str, bytes] = {}
    while (header := stream.take(_BLOCK)) != _END:
        _verify_checksum(header, stream.position)
        kind, size = header[156:157], _size(header[124:136])
        if kind in _EXTENSIONS:
            if size > _MAX_EXTENSION:
                raise _ArchiveError(f"has a header of {size} bytes", _ANOTHER)
            _extend(extended, kind, stream.take(_padded(size))[:size])
            continue
        size = int(extended.get("size", size))
        end = stream.position + (0 if kind in _BODILESS else _padded(size))
        yield _Member(_name(header, extended), _kind(header), size, partial(_tar_content, stream, size))
        stream.skip_to(end)
        extended = {}
    if extended:
        raise _ArchiveError("ends with the header of a member that does not follow", _AGAIN)
    while stream.take_up_to(_CHUNK):  # the checksum of a gzip file stands at its very end
        pass


def _tar_content(stream: _Stream, size: int) -> bytes:
    return stream.take(_padded(size))[:size]


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _verify_checksum(header: bytes, position: int) -> None:
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") == _octal(header[148:156]):
        return
    if position == _BLOCK:
        raise _ArchiveError(f"is no tar, tar.gz or zip archive (its contents start with {header[:16]!r})", _AGAIN)
    raise _ArchiveError(f"is damaged after {position - _BLOCK} bytes of its contents (no header there)", _AGAIN)


def _size(field: bytes) -> int:
    if field[0] == 0x80:  # the base-256 form for what octal digits cannot hold
        return int.from_bytes(field[1:], "big")
    size = _octal(field)
    if size is None:
        raise _ArchiveError(f"is damaged: a header has {field!r} for a size", _AGAIN)
    return size


def _octal(field: bytes) -> int | None:
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    return int(digits, 8) if _OCTAL.fullmatch(digits) else None  # int() alone would take signs and underscores


def _kind(header: bytes) -> str:
    kind = header[156:157]
    if kind == b"S":  # the length of its body cannot be told from its size
        raise _ArchiveError("has a sparse file", _ANOTHER)
    if kind == b"\0" and header[:100].split(b"\0", 1)[0].endswith(b"/"):
        return "folder"  # as tar wrote them before 1988
    return _KINDS.get(kind, f"member of type {kind!r}")


def _name(header: bytes, extended: dict[str, bytes]) -> str:
    name = extended.get("path")
    if name is None:
        name = header[:100].split(b"\0", 1)[0]
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix and header[257:263] == b"ustar\0":  # GNU tar keeps other things there, and says "ustar "
            name = prefix + b"/" + name
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise _ArchiveError(f"its member name {name[:100]!r} is not UTF-8", _ANOTHER) from error


def _extend(extended: dict[str, bytes], kind: bytes, body: bytes) -> None:
    """Adds what an extended header says of the member after it."""
    if kind in (b"L", b"K"):
        said = [("path" if kind == b"L" else "link", body.split(b"\0", 1)[0])]
    else:
        said = [
            (key, value) for key, value in _records(body) if key in ("path", "size") or key.startswith("GNU.sparse")
        ]
        said.append((f"header {kind!r}", b""))
    for key, value in said:
        if key in extended or key.startswith("GNU.sparse") or (kind == b"g" and key in ("path", "size")):
            raise _ArchiveError(f"its extended header {kind!r} says {key!r}, twice or where it must not", _ANOTHER)
        if key == "size" and not re.fullmatch(rb"\d{1,18}", value):
            raise _ArchiveError(f"is damaged: an extended header has {value[:100]!r} for a size", _AGAIN)
        extended[key] = value


def _records(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields the `length key=value` lines of a PAX header."""
    start = 0
    for _ in range(_MAX_RECORDS + 1):
        if start == len(body):
            return
        match = _RECORD.match(body, start)
        end = start + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise _ArchiveError("is damaged: an extended header is not in order", _AGAIN)
        yield match[2].decode("utf-8", "replace"), body[match.end() : end - 1]
        start = end
    raise _ArchiveError(f"has a header of more than {_MAX_RECORDS} records", _ANOTHER)


def _zip_members(file: IO[bytes], limits: _Limits) -> Iterator[_Member]:
    # Counted by their signature first, as ZipFile takes the whole directory into memory.
    entries = sum(chunk.count(b"PK\1\2") for chunk in iter(partial(file.read, _CHUNK), b""))
    if entries > limits.members:
        raise _ArchiveError(f"has more than {limits.members} members", _ANOTHER)
    try:
        archive = zipfile.ZipFile(file)
    except _ZIP_FAULTS as error:
        raise _ArchiveError(f"is damaged ({error})", _AGAIN) from error
    with archive:
        for info in archive.infolist():
            yield _Member(info.orig_filename, _zip_kind(info), info.file_size, partial(_zip_content, archive, info))


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir():
        return "folder"
    if info.flag_bits & 1:
        return "file under a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"file packed by method {info.compress_type}"
    return "file" if mode in (0, stat.S_IFREG) else "link or device"


def _zip_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as member:
            content = member.read(info.file_size + 1)  # a size given bounds each step of unpacking
    except _ZIP_FAULTS as error:
        raise _ArchiveError(f"its member {_shown(info.filename)} is damaged ({error})", _AGAIN) from error
    if len(content) != info.file_size:
        raise _ArchiveError(f"its member {_shown(info.filename)} is cut off", _AGAIN)
    return content
