"""Which device, how many threads and what memory a command runs on: the only file that changes settings of the process.

Nothing here imports PyTorch until it is used, as the command line starts with it.
"""

import contextlib
import csv
import ctypes
import functools
import itertools
import math
import mmap
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bilstm_cls.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bilstm_cls.model.recurrent import BidirectionalLSTM

CPU_GRANT = Path("/sys/fs/cgroup/cpu.max")
"""What `docker --cpus` or a pod's limit sets: microseconds of CPU time, or `max`, in a period of so many."""
MIN_CUDNN_OF_BF16 = 91300  # the first whose recurrent layers take bfloat16
MIN_UNITS_OF_BF16 = 128
"""Units of an LSTM from which `auto` takes bfloat16 on a CPU that multiplies it: with 128 units a step took 1.6 times
less time by AMX, 1.5 times by AVX-512's products. Fewer units and other cells were not measured."""
START_BYTES = 640 * 2**20  # of address space, in which PyTorch and the tokenizers start
LAUNCHED = "bilstm-cls-"  # begins the name of a group of processes that a command started


def is_launched() -> bool:
    """Whether another command started this process as one of several."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(LAUNCHED)


def check_memory() -> None:
    """Raises `MemoryError` where libraries of C++ and Rust could not start: they would abort the process instead."""
    if "torch" not in sys.modules:
        try:
            mmap.mmap(-1, START_BYTES).close()  # never touched
        except OSError as error:
            raise MemoryError("too little is left to start in") from error


def configure_process() -> None:
    """Sets what libraries read from the process; to be called by the command line before they are imported."""
    csv.field_size_limit(2**24)  # characters; 128 KiB is less than a long text
    os.environ["MPLBACKEND"] = "agg"  # all is drawn into files, and a notebook's backend may not be installed here
    if _granted_cores() < math.inf:  # else libraries start a thread for each core of the machine
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def usable_cores() -> int:
    """Returns the number of cores that this process may run on, in a container of those it is granted."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _granted_cores())))


def _granted_cores() -> float:
    try:
        quota, period = CPU_GRANT.read_text("ascii").split()
    except OSError:  # no container, or an old Linux
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def threads_of_each(processes: int) -> int:
    """Returns the threads that each of several processes computes in: its part of the cores, or `OMP_NUM_THREADS`."""
    part = max(1, usable_cores() // processes)
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(setting), part) if re.fullmatch(r"0*[1-9][0-9]{0,5}", setting) else part


def choose_device(name: str = "auto") -> "torch.device":
    """Returns the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for, or raises a `ConfigError`.

    `auto` is CUDA where there is one. Apple's MPS is never chosen: its LSTM has a history of wrong results.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"device: {name!r} must be auto, cpu, cuda or cuda:N")
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"train.device: {name!r} is not here, PyTorch sees {count} CUDA devices; use --device cpu")
    return device


@contextlib.contextmanager
def allow_tf32(is_allowed: bool) -> Iterator[None]:
    """Lets cuDNN's recurrent layers use TF32 (factors with 10 bits of fraction) in a `with` block, or forbids it."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True)
class Precision:
    """Arithmetic of training.

    Attributes:
        dtype: that the factors of matrix products are cast to.
        allows_tf32: whether cuDNN may use TF32 for factors of 32 bits. With 128 units it is as fast as 16-bit floats,
            and float16 would lose the gradient of a mean over a long text.
    """

    dtype: "torch.dtype"
    allows_tf32: bool

    @classmethod
    def named(cls, name: str, device: "torch.device", encoder: "BidirectionalLSTM | None" = None) -> "Precision":
        """Returns what `train.precision` stands for on a device, by a rule and never by a timing.

        There is no `encoder` where what is trained is not known yet, or for predictions. Raises a `ConfigError` where
        the device's recurrent layers do not have the type.
        """
        import torch

        is_cuda = device.type == "cuda"
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if is_cuda:
            cudnn = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
            has_bf16 = torch.cuda.is_bf16_supported() and cudnn >= MIN_CUDNN_OF_BF16
        if not {"auto": True, "fp32": True, "tf32": is_cuda, "bf16": has_bf16}.get(name, False):
            raise ConfigError(
                f"precision: {name!r} is not to be had here; use auto or fp32 anywhere, tf32 on CUDA, bf16 on a CPU "
                f"with AVX-512 or AMX or on a GPU that has it and cuDNN {MIN_CUDNN_OF_BF16} or later"
            )
        is_large = encoder is not None and encoder.cell == "lstm" and encoder.hidden_size >= MIN_UNITS_OF_BF16
        if name == "auto" and not is_cuda and is_large and _multiplies_bf16():
            name = "bf16"
        return cls(torch.bfloat16 if name == "bf16" else torch.float32, is_cuda and name in ("auto", "tf32"))

    def __str__(self) -> str:
        return "tf32" if self.allows_tf32 else str(self.dtype).removeprefix("torch.")

    @contextlib.contextmanager
    def applied(self, device: "torch.device") -> Iterator[None]:
        """Computes in this precision in a `with` block."""
        with allow_tf32(self.allows_tf32), self.autocast(device):
            yield

    def autocast(self, device: "torch.device") -> contextlib.AbstractContextManager[None]:
        """Computes in this precision, but for TF32, in a `with` block of one thread."""
        import torch

        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def _multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 and PyTorch's kernels use it; torch 2.3 cannot say."""
    import torch

    flags = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    has_products = any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)
    return has_products and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def on_device(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """Copies to the device, on CUDA while the processor goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def set_threads(threads: int | None, processes: int = 1) -> int:
    """Sets the threads that this process, one of several here, computes in, and returns their number."""
    import torch

    torch.set_num_threads(threads or threads_of_each(processes))
    return torch.get_num_threads()


A = TypeVar("A")
B = TypeVar("B")
MAX_WORKERS = 8  # each holds a batch in memory


def side_by_side(call: Callable[[A], B], arguments: Sequence[A]) -> list[B]:
    """Returns the result for each argument; the calls share the threads that PyTorch computes in.

    The threads of one operation wait for the slowest of them, two to three times as long where another program takes a
    core for a while. Those of separate calls do not wait.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, MAX_WORKERS, len(arguments))
    if workers < 2:
        return [call(argument) for argument in arguments]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(call, arguments))
    finally:
        torch.set_num_threads(threads)  # the number of a new thread is what was set last in any


LOAD_SECONDS = 30.0
"""For which other programs are watched."""


@functools.cache  # one for pretraining and training: a warning comes once
def watch_load(processes: int, threads: int) -> Iterator[str | None]:
    """Yields what to say after every step: once, after `LOAD_SECONDS`, that other programs take the cores, else None.

    The threads of a step wait for the slowest, so that a second busy program makes a step two to three times as slow.
    `processes` of this run share the machine, each as busy as this one, with so many `threads`.
    """
    import psutil

    def busy() -> float:
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times[:8]) - idle - processes * (own.user + own.system)  # guests' time is the users' as well

    start, started = busy(), time.monotonic()
    while (seconds := time.monotonic() - started) < LOAD_SECONDS:
        yield None
    others = (busy() - start) / seconds
    if others >= (psutil.cpu_count() or 1) - usable_cores() * 2 / 3:
        yield (
            f"other programs keep {others:.1f} of this machine's {psutil.cpu_count()} cores busy, so training is slow"
            + "; --set train.threads=1 loses less to them" * (threads > 1)
        )
    yield from itertools.repeat(None)


MAX_GROWTH, SLACK = 1.5, 2**28
"""How many times what a step needs, and how many bytes more, may be kept in addition to what was there before."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # glibc's malloc.h


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[Callable[[], None]]:
    """Lets the process keep the memory that it frees, for the next tensors, for a `with` block.

    What a recurrent layer stores for its backward pass is tens of MB. Memory of that size goes back to the system
    when it is freed, and the next step pays for every page of it again: a third of a training step. It is a setting of
    the whole process and of glibc; elsewhere nothing happens. Yields what to call after every step: it returns free
    memory to the system once much more is kept than a step needs, as tensors of ever other sizes leave gaps.
    """
    if platform.libc_ver()[0] != "glibc":
        yield lambda: None
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    library.malloc_trim(0)  # what the data's preparation left is neither kept nor counted as what a step needs
    try:
        yield _bounded(lambda: library.malloc_trim(0))
    finally:  # what glibc comes to by itself after a while
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
        library.malloc_trim(0)


def _bounded(give_back: Callable[[], object]) -> Callable[[], None]:
    """Returns what is called after every step."""
    start, needed, is_fresh = _private_memory(), 0, True

    def after_step() -> None:
        nonlocal needed, is_fresh
        kept = _private_memory() - start
        if is_fresh:
            needed = max(needed, kept)  # with what one step left behind
        is_fresh = kept > MAX_GROWTH * needed + SLACK
        if is_fresh:
            give_back()

    return after_step


def _private_memory() -> int:
    """Returns the resident bytes that only this process can give back: pages of mapped files are not among them."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)
