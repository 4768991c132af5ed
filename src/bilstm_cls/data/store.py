"""Raw texts and arrays in files instead of in memory, and a cache of folders that are complete or not there.

What is made of a data set, its texts and later its token ids, lies in flat files under names derived from the content.
Files are memory-mapped, and pages that were read are released. So memory does not grow with the data.
"""

import array
import atexit
import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bilstm_cls.errors import ResourceError
from bilstm_cls.files import sha256_of, write_atomic

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

BLOCK = 2**13
"""Numbers that are held before they are written, or texts whose positions are looked up together."""

RELEASE_BYTES = 2**22
"""Bytes of texts that are read before their pages are released."""

ABANDONED_SECONDS = 86_400.0
"""After which a folder that was not finished counts as left by a process that was killed."""

UNSETTLED_SECONDS = 2.0
"""A file that changed this recently may change again within the resolution of its modification time."""


class Texts(Sequence[str]):
    """Texts of a file, each read when it is asked for.

    Args:
        path: the texts as UTF-8, one after the other.
        offsets: `[N + 1]`, where each begins.
        order: `[M]`, which of them and in what order; None for all.
    """

    def __init__(self, path: Path, offsets: Array, order: Array | None = None) -> None:
        self._path, self._offsets, self._order = path, offsets, order
        self._unreleased = 0
        with path.open("rb") as file:  # an empty file cannot be mapped
            size = os.fstat(file.fileno()).st_size
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self._order is None else len(self._order)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return list(self._at(np.arange(*index.indices(len(self)))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return next(self._at(np.array([index % len(self)])))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self._at(np.arange(start, min(start + BLOCK, len(self))))

    def _at(self, indices: Array) -> Iterator[str]:
        places = indices if self._order is None else self._order[indices]
        starts, stops = self._offsets[places].tolist(), self._offsets[places + 1].tolist()
        release(self._offsets, self._order)
        for start, stop in zip(starts, stops, strict=True):
            text = self._bytes[start:stop].decode("utf-8", "surrogatepass")
            self._unreleased += stop - start + 16 * mmap.PAGESIZE  # the system maps neighbouring pages too
            if self._unreleased > RELEASE_BYTES:
                _release(self._bytes)
                self._unreleased = 0
            yield text

    def select(self, order: Array) -> "Texts":
        """Returns some of these texts, `[M]` places, as a view."""
        return Texts(self._path, self._offsets, order if self._order is None else self._order[order])


class NumberWriter:
    """Appends whole numbers to a file of int64, in the memory of one block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._block = array.array("q")

    def append(self, number: int) -> None:
        """Adds one number."""
        self._block.append(number)
        if len(self._block) == BLOCK:
            self._file.write(self._block)
            del self._block[:]

    def close(self) -> None:
        """Writes what is left."""
        with self._file:
            self._file.write(self._block)

    def mapped(self) -> npt.NDArray[np.int64]:
        """Returns what was written and closed, memory-mapped."""
        return mapped_numbers(self._path)


class TextWriter:
    """Appends texts to a file and remembers where each begins."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._offsets = NumberWriter(path.with_name("offsets.bin"))
        self._offsets.append(0)
        self._end = 0

    def __enter__(self) -> "TextWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.closing(self._offsets):  # a full disk may stop either
            self._file.close()

    def append(self, text: str) -> None:
        """Adds one text; lone surrogates are kept as they are."""
        self._end += self._file.write(text.encode("utf-8", "surrogatepass"))
        self._offsets.append(self._end)

    def offsets(self) -> Array:
        """Returns `[N + 1]` int64, when all texts are written: the file `offsets.bin` next to them, memory-mapped."""
        return self._offsets.mapped()


def cache_folder() -> Path:
    """Returns where downloads and prepared data are kept: `BILSTM_CLS_CACHE`, or the user's cache folder."""
    import platformdirs

    given = os.environ.get("BILSTM_CLS_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("bilstm-cls"))


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Returns a folder of the cache that `build` filled, now or in an earlier call with the same key.

    A folder that was not finished is never seen, and one whose files have changed since is made again. Where the cache
    cannot be written, the folder is a temporary one that goes with the process.

    Args:
        kind: what it holds.
        key: a digest of everything that its content depends on.
        build: fills an empty folder with files.
    """
    folder = cache_folder() / kind / key
    if folder.is_dir():
        if _is_intact(folder):
            with contextlib.suppress(OSError):  # a cache of another user
                os.utime(folder)
            return folder
        logger.warning(f"{folder}: damaged, it is made again")
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        fresh = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    except OSError as error:
        logger.warning(f"{folder.parent}: cannot be written ({error.strerror}); nothing is kept for the next time")
        fresh = Path(tempfile.mkdtemp(prefix="bilstm-cls-"))
        atexit.register(shutil.rmtree, fresh, ignore_errors=True)
        with _naming_full_disk(fresh.parent):
            build(fresh)
        return fresh
    try:
        with _naming_full_disk(folder.parent):
            build(fresh)
            _write_manifest(fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
        return folder
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal, from an earlier call where the file has not changed since.

    What was computed is kept in the cache by the file's path, size and times (the change time too, where a modification
    time was copied).
    """
    status = path.stat()
    known = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    record = cache_folder() / _DIGESTS / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads(record.read_text("utf-8"))
        if found.items() >= known.items():
            return str(found["sha256"])
    digest = sha256_of(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > UNSETTLED_SECONDS:
        with contextlib.suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps({**known, "sha256": digest, "path": str(path)}), "utf-8")
    return digest


@dataclass(frozen=True)
class CacheEntry:
    """A folder or file of the cache.

    Attributes:
        kind: what it holds: `data`, `corpus`, `vectors`, `encoders`, `downloads`, ...
        key: its name among those of its kind.
        size: bytes on the disk.
        last_used: seconds since 1970.
        path: where it is.
    """

    kind: str
    key: str
    size: int
    last_used: float
    path: Path


def cache_entries() -> list[CacheEntry]:
    """Returns everything in the cache, that used last first; unfinished folders too, whose keys begin with a dot."""
    entries = []
    for path in cache_folder().glob("*/*"):
        with contextlib.suppress(OSError):  # another process may remove it
            files = [path, *path.rglob("*")] if path.is_dir() else [path]
            size = sum(file.stat().st_size for file in files if file.is_file())
            entries.append(CacheEntry(path.parent.name, path.name, size, path.stat().st_mtime, path))
    return sorted(entries, key=lambda entry: (-entry.last_used, entry.kind, entry.key))


def clear_cache(kind: str | None = None) -> list[CacheEntry]:
    """Removes everything of one kind, or everything, and returns what was removed.

    Folders that may still be in the making stay. A run that reads a removed folder goes on where the system keeps
    mapped files (not on Windows, where they cannot be removed and stay).
    """
    removed = []
    for entry in cache_entries():
        is_wanted = kind in (None, entry.kind)
        if not is_wanted or (entry.key.startswith(_UNFINISHED) and not _is_abandoned(entry.last_used)):
            continue
        if entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.path.unlink()
        if not entry.path.exists():
            removed.append(entry)
    return removed


def _is_abandoned(last_used: float) -> bool:
    return time.time() - last_used > ABANDONED_SECONDS


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if _is_abandoned(folder.stat().st_mtime):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _naming_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ResourceError(
            f"{folder}: no room left for prepared data ({error.strerror}); free some (bilstm-cls cache --clear all), "
            f"or set BILSTM_CLS_CACHE to a folder elsewhere"
        ) from error


def save_arrays(folder: Path, /, **arrays: Array) -> None:
    """Writes each array as `NAME.npy`."""
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


def load_array(folder: Path, name: str) -> Array:
    """Returns an array of `save_arrays`, memory-mapped."""
    mapped: Array = np.load(folder / f"{name}.npy", allow_pickle=False, mmap_mode="r")
    return mapped


def mapped_numbers(path: Path, dtype: npt.DTypeLike = np.int64) -> Array:
    """Memory-maps a file of numbers; an empty one is an empty array."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)


def release(*arrays: Array | None) -> None:
    """Gives back the memory of what was read of memory-mapped arrays; it is read again when it is asked for.

    The system takes such pages back by itself where memory is short, but until then they count as this process's.
    """
    for values in arrays:
        _release(getattr(values, "_mmap", None))


def _release(mapped: Any) -> None:
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)


def chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yields all texts, `size` at a time."""
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


_MANIFEST = "files.json"
_DIGESTS = "digests"
_UNFINISHED = ".new-"


def _write_manifest(folder: Path) -> None:
    """Records sizes and times of a folder's files, after they have reached the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("r+b") as file:
            os.fsync(file.fileno())  # sizes and times could survive a power cut that the content does not
        files[path.name] = _state(path)
    write_atomic(folder / _MANIFEST, json.dumps(files))


def _is_intact(folder: Path) -> bool:
    try:
        files = json.loads((folder / _MANIFEST).read_text("utf-8"))
        return all(_state(folder / name) == recorded for name, recorded in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
