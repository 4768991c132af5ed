"""The threads that the libraries below this program start by themselves, and cannot do without."""

import os
import threading

from bilstm_cls.errors import ResourceError


def usable_cores() -> int:
    """Returns the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
