"""Raw texts in a file instead of in memory, and a cache of folders that are whole or not there.

What is made of a data set, its texts and later its token ids, lies in flat files under names derived from the content.
Texts are read with `pread` and arrays are memory-mapped, so resident memory does not grow with the data.
"""

import array
import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import tempfile
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
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = int(index % len(self) if self._order is None else self._order[index])
        start, stop = int(self._offsets[place]), int(self._offsets[place + 1])
        return os.pread(self._descriptor, stop - start, start).decode("utf-8", "surrogatepass")

    def select(self, order: Array) -> "Texts":
        """Returns some of these texts, `[M]` places, as a view."""
        return Texts(self._path, self._offsets, order if self._order is None else self._order[order])


class TextWriter:
    """Appends texts to a file and remembers where each begins."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._offsets = array.array("q", [0])

    def __enter__(self) -> "TextWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, text: str) -> None:
        """Adds one text; halves of characters are kept as they are."""
        self._offsets.append(self._offsets[-1] + self._file.write(text.encode("utf-8", "surrogatepass")))

    def offsets(self) -> Array:
        """Returns `[N + 1]` int64."""
        return np.frombuffer(self._offsets, dtype=np.int64)


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
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    except OSError as error:
        logger.warning(f"{folder.parent}: cannot be written ({error.strerror}); nothing is kept for the next time")
        fresh = Path(tempfile.mkdtemp(prefix="bilstm-cls-", dir=_temporary_root()))
        with _naming_full_disk(fresh.parent):
            build(fresh)
        return fresh
    try:
        with _naming_full_disk(folder.parent):
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


def chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yields all texts, `size` at a time."""
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


_SUMS = "sha256.json"


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
