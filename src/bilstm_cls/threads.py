"""The threads that the libraries below this program start by themselves, and cannot do without."""

import math
import os
import threading
from pathlib import Path

from bilstm_cls.errors import ResourceError

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Returns the number of cores that this process may use: those it may run on, in a container those it is granted.

    More threads than granted cores wait for each other most of the time, and `sched_getaffinity` knows nothing of it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _granted_cores())))


def keep_to_granted_cores() -> None:
    """Has the libraries start no more threads than there are usable cores; to be called before they are imported."""
    if _granted_cores() < math.inf:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def threads_of_each(processes: int = 1) -> int:
    """Returns the threads that each of several processes computes in: its share of the cores.

    They are fewer where `OMP_NUM_THREADS` says so, as a user sets it where other programs need the cores.
    """
    share = max(1, usable_cores() // processes)
    return min(_number("OMP_NUM_THREADS", share), share)


def _granted_cores() -> float:
    """Returns how many cores' time the groups of this process may take, as `docker --cpus` or a pod's limit sets it."""
    try:
        lines = OWN_GROUPS.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return math.inf
    granted = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / "cpu" if controllers else CONTROL_GROUPS
        own = root / path.lstrip("/")
        groups = [own, *own.parents]
        granted = min([granted, *(_quota(group) for group in groups[: groups.index(root) + 1])])
    return granted


def _quota(group: Path) -> float:
    """Returns the cores of one control group; no limit where the file of either version of Linux's is absent."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text("ascii") for name in names).split()
        except OSError:
            continue
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    return math.inf


def check_threads(needed: int) -> None:
    """Starts so many threads, all at once, and ends them.

    Where they get none, OpenBLAS, OpenMP and `tokenizers` end the process in their own words and with codes of their
    own. That cannot be caught, so it is tried before they need them.

    Raises:
        ResourceError: the system refuses one.
    """
    is_tried = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(needed):
            thread = threading.Thread(target=is_tried.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise ResourceError(
            f"the system lets this process start {len(started)} of the {needed} threads that it needs ({error}); raise "
            f"`ulimit -u` or `ulimit -v`, or set train.threads=1, OMP_NUM_THREADS=1 and TOKENIZERS_PARALLELISM=false"
        ) from error
    finally:
        is_tried.set()
        for thread in started:
            thread.join()


def threads_of_libraries() -> int:
    """Returns how many threads the libraries start: `tokenizers` computes in those alone, others in the caller too."""
    num_openmp = _number("OMP_NUM_THREADS", usable_cores())
    num_openblas = _number("OPENBLAS_NUM_THREADS", num_openmp)
    is_parallel = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() not in ("off", "false", "f", "no", "n", "0")
    num_tokenizers = _number("RAYON_NUM_THREADS", usable_cores()) if is_parallel else 0
    return num_openblas - 1 + num_openmp - 1 + num_tokenizers


def _number(name: str, default: int) -> int:
    said = os.environ.get(name, "")
    return int(said) if said.isascii() and said.isdigit() and int(said) > 0 else default
