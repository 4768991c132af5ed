"""Raw texts in a file instead of in memory, and a cache of folders that are whole or not there.

What is made of a data set, its texts and later its token ids, lies in flat files under names derived from the content.
Texts are read with `pread`; arrays are written block by block and memory-mapped, and pages that were read are released.
So memory does not grow with the data, and neither does what `top` shows of it.
"""

import array
import contextlib
import errno
import functools
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bilstm_cls.errors import ResourceError
from bilstm_cls.files import sha256_of, write_atomic

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

BLOCK = 2**13
"""Numbers that are held before they are written, or of which the places of texts are looked up together."""


ABANDONED_SECONDS = 3600.0
"""After which a folder that nobody holds or adds to is taken for one that was never finished."""


class Texts(Sequence[str]):
    """Texts of a file, each read when it is asked for.

    Args:
        path: the texts as UTF-8, one after the other.
        offsets: `[N + 1]`, where each begins.
        order: `[M]`, which of them and in what order; None for all.
    """

    def __init__(self, path: Path, offsets: Array, order: Array | None = None) -> None:
        self._offsets = offsets
        self._order = order
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

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
            yield os.pread(self._descriptor, stop - start, start).decode("utf-8", "surrogatepass")

    def select(self, order: Array) -> "Texts":
        """Returns some of these texts, `[M]` places, as a view."""
        return Texts(self._path, self._offsets, order if self._order is None else self._order[order])


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
        try:
            self._file.close()
        finally:  # a full disk may stop either
            self._offsets.close()

    def append(self, text: str) -> None:
        """Adds one text; halves of characters are kept as they are."""
        self._end += self._file.write(text.encode("utf-8", "surrogatepass"))
        self._offsets.append(self._end)

    def offsets(self) -> Array:
        """Returns `[N + 1]` int64, when all texts are written: the file `offsets.bin` beside them, memory-mapped."""
        return self._offsets.mapped()


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
            self._flush()

    def close(self) -> None:
        """Writes what is left."""
        try:
            self._flush()
        finally:
            self._file.close()

    def mapped(self) -> npt.NDArray[np.int64]:
        """Returns what was written and closed, memory-mapped."""
        return mapped_numbers(self._path)

    def _flush(self) -> None:
        self._file.write(self._block)
        del self._block[:]


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
        if _is_sound(folder):
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
        fresh = Path(tempfile.mkdtemp(prefix="bilstm-cls-", dir=_temporary_root()))
        with _naming_full_disk(fresh.parent):
            build(fresh)
        return fresh
    try:
        with _naming_full_disk(folder.parent), _held(fresh):
            build(fresh)
            sums = {path.name: sha256_of(path) for path in sorted(fresh.iterdir())}
            write_atomic(fresh / _SUMS, json.dumps(sums))
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
        return folder
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Locks a folder for as long as this process lives and the block lasts, and yields whether nobody else had it.

    Where folders cannot be locked (Windows, some network disks), somebody else may have it.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError:
            is_ours = False
        yield is_ours
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    """Deletes what processes that were killed had begun to make: nobody holds it, nor has added to it for a while.

    Some network disks only pretend to lock, so that both have to be true.
    """
    for folder in parent.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError), _held(folder) as is_ours:
            if is_ours and time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                logger.info(f"{folder}: left by a process that was killed; removed")
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _naming_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ResourceError(
            f"{folder}: no room left for prepared data ({error.strerror}); free some, "
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


def mapped_numbers(path: Path) -> npt.NDArray[np.int64]:
    """Memory-maps a file of int64; an empty one is an empty array."""
    return np.memmap(path, dtype=np.int64, mode="r") if path.stat().st_size else np.empty(0, dtype=np.int64)


def release(*arrays: Array | None) -> None:
    """Gives back the memory of what was read of memory-mapped arrays; it is read again when it is asked for.

    The system takes such pages back by itself where memory is short, but until then they count as this process's.
    """
    for values in arrays:
        mapped = getattr(values, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yields all texts, `size` at a time."""
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


_SUMS = "sha256.json"
_UNFINISHED = ".new-"


def _is_sound(folder: Path) -> bool:
    try:
        sums = json.loads((folder / _SUMS).read_text("utf-8"))
        return all(sha256_of(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


@functools.cache
def _temporary_root() -> Path:
    root = tempfile.TemporaryDirectory(prefix="bilstm-cls-")
    _ROOTS.append(root)
    return Path(root.name)


_ROOTS: list[tempfile.TemporaryDirectory[str]] = []
