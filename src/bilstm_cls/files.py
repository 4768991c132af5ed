"""Files that are either whole or not there, and digests of what is in them."""

import contextlib
import csv
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from bilstm_cls.errors import ConfigError, ResourceError

OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def naming_disk_faults(path: Path, place: str = "-o") -> Iterator[None]:
    """Turns a refusal to write `path` into `ResourceError` where the disk or quota is full, else `ConfigError`.

    `place` is the option that names another place.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if error.errno in OUT_OF_SPACE:
            raise ResourceError(f"{path}: no room left ({reason}); free some and resume, or set {place}") from error
        raise ConfigError(f"{path}: cannot be written ({reason}); choose another place with {place}") from error


@contextlib.contextmanager
def replacing(path: Path, mode: str = "xb", **options: Any) -> Iterator[IO[Any]]:
    """Opens a temporary neighbour of `path` that takes its place, flushed to the disk, when the block ends well.

    A reader, or a machine that lost its power, sees the old file or the new one and never a part. When the block
    raises, the temporary file is removed and `path` stays as it was.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"  # as RunDirectory.remove_leftovers knows it
    try:
        with naming_disk_faults(path):
            make_folder(path.parent)
            with temporary.open(mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that led here is the one to report
            temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a whole file at once: afterwards `path` holds `content`, or what it held before."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def row_writer(file: IO[str], **dialect: Any) -> Any:
    """Returns a csv writer of lines that end in a newline, which knows a lone carriage return for a line end too."""
    lines = SimpleNamespace(write=lambda line: file.write(line.removesuffix("\r\n") + "\n"))
    return csv.writer(lines, **dialect)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it where they are not there, each to survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut. Does nothing where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
