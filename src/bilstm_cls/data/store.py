"""Raw texts and arrays in files instead of in memory, and a cache of folders that are complete or not there.

What is made of a data set, its texts and later its token ids, lies in flat files under names derived from the content.
Files are memory-mapped, and pages that were read are released. So memory does not grow with the data.
"""

import atexit
import contextlib
import itertools
import json
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from bilstm_cls.files import naming_disk_faults, write_atomic

if TYPE_CHECKING:
    import filelock

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Sliceable = TypeVar("Sliceable", Sequence[str], Array)

BLOCK = 2**13  # texts whose places are looked up together
_MANIFEST = "files.json"  # sizes and times of a folder's files
RELEASE_BYTES = 2**22  # of texts that are read before their pages are released

ROW = np.dtype([(name, np.int64) for name in ("starts", "stops", "label_ids", "path_ids", "lines", "groups", "hashes")])
"""What is known of a text in numbers: its first byte, the one after its last, and what `dataset.py` makes of it."""


class Texts(Sequence[str]):
    """Texts of a UTF-8 file, each read when it is asked for; `rows`, `[N]` of `ROW`, say where each begins and ends."""

    def __init__(self, path: Path, rows: Array) -> None:
        self._rows, self._bytes, self._unreleased = rows, mapped_numbers(path, np.uint8), 0

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        texts = self._of(self._rows[index if isinstance(index, slice) else [index]])
        return list(texts) if isinstance(index, slice) else next(texts)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(map(self._of, chunks(self._rows, BLOCK)))

    def _of(self, rows: Array) -> Iterator[str]:
        starts, stops = rows["starts"].tolist(), rows["stops"].tolist()
        release(self._rows)
        for start, stop in zip(starts, stops, strict=True):
            text = self._bytes[start:stop].tobytes().decode("utf-8", "surrogatepass")
            self._unreleased += stop - start + 16 * mmap.PAGESIZE  # the system maps neighbouring pages too
            if self._unreleased > RELEASE_BYTES:
                release(self._bytes)
                self._unreleased = 0
            yield text


def cache_folder() -> Path:
    """Returns where downloads and prepared data are kept: `BILSTM_CLS_CACHE`, or the user's cache folder."""
    import platformdirs

    given = os.environ.get("BILSTM_CLS_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("bilstm-cls"))


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Returns a folder of the cache that `build` filled, now or in an earlier call with the same key.

    Where another process fills it, this one waits. A folder that was not finished, or whose files have changed since,
    is made again. Where the cache cannot be written, the folder is a temporary one that goes with the process. `key` is
    a digest of everything that the content depends on.
    """
    folder = cache_folder() / kind / key
    if not _is_intact(folder):
        folder, lock = _locked(folder)
        with lock, naming_disk_faults(folder, "BILSTM_CLS_CACHE"):
            if not _is_intact(folder):  # else another process has made it
                _make(folder, build)
    with contextlib.suppress(OSError):  # a cache of another user
        os.utime(folder)
    return folder


def _locked(folder: Path) -> tuple[Path, contextlib.AbstractContextManager[object]]:
    """Returns a folder to fill and what holds it: a temporary one where the cache cannot be written."""
    import filelock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            return folder, _lock(folder).acquire(timeout=1)
        except filelock.Timeout:
            logger.info(f"{folder}: waiting, another process makes it")
            return folder, _lock(folder).acquire()
    except (OSError, NotImplementedError) as error:  # some network file systems have no locks
        logger.warning(f"{folder.parent}: cannot be written ({error}); nothing is kept for the next time")
        temporary = Path(tempfile.mkdtemp(prefix="bilstm-cls-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return temporary / folder.name, contextlib.nullcontext()


def _lock(folder: Path) -> "filelock.FileLock":
    import filelock

    return filelock.FileLock(folder.with_name(f".{folder.name}.lock"))


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    if folder.exists():
        logger.warning(f"{folder}: unfinished or damaged, it is made again")
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        build(folder)
        files = {}
        for path in sorted(folder.iterdir()):
            with path.open("r+b") as file:
                os.fsync(file.fileno())  # sizes and times could survive a power cut that the content does not
            files[path.name] = _state(path)
        write_atomic(folder / _MANIFEST, json.dumps(files))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@dataclass(frozen=True)
class CacheEntry:
    """A folder or file of the cache: what it holds, its bytes, and its last use since 1970."""

    kind: str
    key: str
    size: int
    last_used: float
    path: Path


def cache_entries() -> list[CacheEntry]:
    """Returns everything in the cache, that used last first; unfinished folders too."""
    entries = []
    for path in cache_folder().glob("*/[!.]*"):
        with contextlib.suppress(OSError):  # another process may remove it
            size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            entries.append(CacheEntry(path.parent.name, path.name, size, path.stat().st_mtime, path))
    return sorted(entries, key=lambda entry: (-entry.last_used, entry.kind, entry.key))


def clear_cache(kind: str | None = None) -> list[CacheEntry]:
    """Removes everything of one kind, or everything, but what another process is making; returns what was removed."""
    removed = [entry for entry in cache_entries() if kind in (None, entry.kind)]
    for entry in removed:
        with contextlib.suppress(OSError):
            if entry.path.is_file():
                entry.path.unlink()
            else:
                with _lock(entry.path).acquire(blocking=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
    return [entry for entry in removed if not entry.path.exists()]


def mapped_numbers(path: Path, dtype: npt.DTypeLike = np.int64) -> Array:
    """Memory-maps a file of numbers; an empty one is an empty array."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)


def release(*arrays: Array | None) -> None:
    """Gives back the memory of what was read of memory-mapped arrays; it is read again when it is asked for.

    The system takes such pages back by itself where memory is short, but until then they count as this process's.
    """
    for values in arrays:
        mapped = getattr(values, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)


def chunks(sequence: Sliceable, size: int) -> Iterator[Sliceable]:
    """Yields all of a sequence or array, `size` at a time."""
    for start in range(0, len(sequence), size):
        yield sequence[start : start + size]


def _is_intact(folder: Path) -> bool:
    try:
        files = json.loads((folder / _MANIFEST).read_text("utf-8"))
        return all(_state(folder / name) == recorded for name, recorded in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
