"""Which device, how many threads and what memory a command runs on."""

import contextlib
import ctypes
import platform
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bilstm_cls.errors import ConfigError
from bilstm_cls.threads import check_threads


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for: `auto` is CUDA where it is there.

    Apple's MPS is never chosen: its LSTM has a history of wrong results.

    Raises:
        ConfigError: the name is another one, or there is no such CUDA device.
    """
    if name == "auto":
        return _exact(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"device: {name!r} must be auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"train.device: {name!r} is not here, PyTorch sees {count} CUDA devices; use --device cpu")
    return _exact(device)


def _exact(device: torch.device) -> torch.device:
    """Lets 32 bits mean 32 bits: unless it is told so, cuDNN cuts the factors in its recurrent layers."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


@contextlib.contextmanager
def shortened_products(is_allowed: bool) -> Iterator[None]:
    """Lets cuDNN take factors with 10 bits of fraction for a `with` block (TF32): range and sums stay in 32 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies to the device, on CUDA while the processor goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def set_threads(threads: int | None) -> int:
    """Sets the number of threads of one process, where one is given, and returns the number in use.

    Raises:
        ResourceError: the system does not let this process start so many.
    """
    if threads is not None:
        check_threads(threads - 1)
        torch.set_num_threads(threads)
    return torch.get_num_threads()


_STATM = Path("/proc/self/statm")
MAX_GROWTH, SLACK = 1.5, 2**28
"""How many times what a step needs, and how many bytes more, may be kept beside what was there before the first."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # glibc's malloc.h


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[Callable[[], None]]:
    """Lets the process keep the memory that it frees, for the next tensor to be laid in, for a `with` block.

    What a recurrent layer remembers for its backward pass is tens of MB. Memory of that size goes back to the system
    when it is freed, and the next step pays for every page of it again: a third of a training step. It is a setting of
    the whole process and of the C library, here glibc; elsewhere nothing happens. No result depends on it.

    Yields:
        What to call after every step: it gives back what is free once much more is kept than a step needs. Tensors of
        ever other sizes leave gaps between them, so that without it a process grows to several times that.
    """
    if platform.libc_ver()[0] != "glibc" or not _STATM.exists():
        yield lambda: None
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    library.malloc_trim(0)  # what the data's preparation left is neither kept nor taken for what a step needs
    try:
        yield _bounded(lambda: library.malloc_trim(0))
    finally:  # what glibc comes to by itself after a while
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
        library.malloc_trim(0)


def _bounded(give_back: Callable[[], object]) -> Callable[[], None]:
    """Returns what is called after every step."""
    start, needed, is_fresh = _own_memory(), 0, True

    def after_step() -> None:
        nonlocal needed, is_fresh
        kept = _own_memory() - start
        if is_fresh:
            needed = max(needed, kept)  # with what one step left behind
        is_fresh = kept > MAX_GROWTH * needed + SLACK
        if is_fresh:
            give_back()

    return after_step


def _own_memory() -> int:
    """Returns the resident bytes that only this process can give back: pages of mapped files are not among them."""
    resident, of_files = _STATM.read_text("ascii").split()[1:3]
    return (int(resident) - int(of_files)) * resource.getpagesize()
