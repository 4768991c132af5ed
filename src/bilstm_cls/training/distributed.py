"""Several processes that train one model together, each on its part of every batch.

All hold the same weights and make the same update: gradients are added up, those of an embedding row by row. They are
started by PyTorch's launcher, on this machine by `--processes N` and on several by `torchrun`; the rest of the program
sees only a `Group`.
"""

import contextlib
import ctypes
import datetime
import functools
import itertools
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from bilstm_cls.config import TrainConfig
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.device import LAUNCHED, choose_device, is_launched, usable_cores
from bilstm_cls.errors import ConfigError, ResourceError, StoppedError, UserError

MIN_TOKENS_TO_SHARE = 2_000_000  # in all epochs, from which more processes pay for their start
MEETING_SECONDS = 7 * 86400.0  # to wait for others where a launcher ends all if one of them fails
SAVING_SECONDS = 600  # for which the launcher waits for processes that it has asked to stop
STOP_SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclass(frozen=True)
class Group:
    """The processes of one run as one of them sees them. A group of one does nothing at all.

    Process `rank`, from 0, of `size`; process 0 writes all files. Tensors must be on `device` to be exchanged.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes: all get the same answer, once all have asked."""
        return self.sum(float(flag)) > 0

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.any(False)

    def sum(self, value: float) -> float:
        """Returns the sum over all processes, with the same bits in each."""
        return float(self.sum_array(np.array(value, np.float64)))

    def sum_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the sum of an array over all processes, with the same bits in each."""
        if self.size == 1:
            return array
        total = torch.from_numpy(array).to(self.device)
        with self._naming_lost_peers():
            dist.all_reduce(total)
        return np.asarray(total.cpu().numpy())

    def sum_gradients(self, dense: Sequence[Tensor], tables: Sequence[Tensor]) -> None:
        """Replaces every gradient by its sum over all processes, with the same bits in each.

        A process that has no text of a batch has no gradients and takes the others'. Those of `dense` travel as one
        flat tensor; of the row-sparse gradients of `tables` `[V, E]` only the rows: some 2 MB of a 12 MB table.
        """
        if self.size == 1:
            return
        with torch.no_grad(), self._naming_lost_peers():
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in dense])
            dist.all_reduce(flat)
            for parameter, total in zip(dense, torch.split(flat, [p.numel() for p in dense]), strict=True):
                parameter.grad = total.view_as(parameter)
            for table in tables:
                table.grad = self._sum_rows(table)

    def _sum_rows(self, table: Tensor) -> Tensor:
        rows, values = torch.empty(0, dtype=torch.int64, device=self.device), table.new_empty(0, table.shape[1])
        if table.grad is not None:
            gradient = table.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=self.device))
        numbers, everyones = [int(size) for size in sizes], []
        for part in (rows, values):
            padded = part.new_zeros(max(numbers), *part.shape[1:])
            padded[: len(part)] = part
            parts = [torch.empty_like(padded) for _ in numbers]
            dist.all_gather(parts, padded)
            everyones.append(torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)]))
        rows, values = everyones
        return torch.sparse_coo_tensor(rows.unsqueeze(0), values, table.shape, check_invariants=False).coalesce()

    @contextlib.contextmanager
    def _naming_lost_peers(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ResourceError(
                f"process {self.rank} of {self.size} lost connection to its peers, one of which died or hangs: "
                f"{str(error).splitlines()[0][:120]}; the last checkpoint is intact, continue with --resume"
            ) from error


ALONE = Group()


def size_by_torchrun() -> int:
    """Returns the number of processes that a launcher started, of which this is one, or 1."""
    return int(_variable("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank_by_torchrun() -> int:
    """Returns the number of this process among those, from 0, or 0 where it is alone."""
    return int(_variable("RANK")) if size_by_torchrun() > 1 else 0


def device_by_torchrun(name: str) -> str:
    """Returns the device of this process: of several on a machine with GPUs, each takes one of its own."""
    is_cuda = size_by_torchrun() > 1 and choose_device(name).type == "cuda"
    return f"cuda:{_variable('LOCAL_RANK')}" if is_cuda else name


def processes_here(size: int) -> int:
    """Returns how many of a group's processes share the cores of this machine."""
    return int(_variable("LOCAL_WORLD_SIZE", str(size)))


def _variable(name: str, default: str = "", pattern: str = r"\d{1,9}") -> str:
    value = os.environ.get(name, default)
    if not re.fullmatch(pattern, value):
        raise ConfigError(f"{name}: {value!r} in the environment is not a number; start several processes by torchrun")
    return value


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Makes this process one of its launcher's group for a `with` block, or without a launcher a group of one.

    A process may join one group after another. CUDA devices, of which each takes one, communicate by NCCL.

    Raises:
        ResourceError: they did not find each other in time.
        ConfigError: `BILSTM_CLS_TIMEOUT` is not a number of seconds, or variables of the launcher are missing.
    """
    rank, size = rank_by_torchrun(), size_by_torchrun()
    if size == 1:
        yield ALONE
        return
    seconds = float(_variable("BILSTM_CLS_TIMEOUT", "600", pattern=r"(?=.*[1-9])\d{1,7}(\.\d+)?"))
    if device.type == "cuda":
        device = torch.device("cuda", int(_variable("LOCAL_RANK")))
        torch.cuda.set_device(device)
    elif is_launched():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    timeout = datetime.timedelta(seconds=seconds)
    try:
        store = PrefixStore(f"meeting-{next(_meetings)}", _store(timeout))
        store.set(str(rank), "ready")  # one that still prepares its data is waited for without a connection to lose
        patience = MEETING_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else seconds
        store.wait([str(other) for other in range(size)], datetime.timedelta(seconds=patience))
        backend_name = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend_name, store=store, rank=rank, world_size=size, timeout=timeout)
    except ValueError as error:
        raise ConfigError(f"{error}; start several processes by torchrun, or with --processes") from error
    except RuntimeError as error:
        raise ResourceError(
            f"the {size} processes did not find each other within {seconds:g} seconds, see the messages of the others: "
            f"{str(error).splitlines()[0][:120]}; start again with --resume"
        ) from error
    # torch 2.3 frees a group under Python's lock, and joins threads there that wait for the lock to free a tensor; the
    # backend, dropped last and by itself, is freed without it.
    backend = dist.distributed_c10d._get_default_group()._get_backend(device)
    try:
        yield Group(rank, size, device)
    finally:
        dist.destroy_process_group()
        del backend


_meetings = itertools.count()


@functools.cache
def _store(timeout: datetime.timedelta) -> Store:
    store: Store = next(rendezvous("env://", timeout=timeout))[0]
    return store


def leave_group() -> NoReturn:
    """Ends a process that has nothing more to do, without Python's clean-up, in which Gloo's threads may abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@dataclass(eq=False)
class SeveralProcessesError(Exception):
    """This command is to be run by `size` processes: `launch` starts them."""

    size: int


def launch(arguments: Sequence[str], size: int) -> None:
    """Runs the command line in `size` processes of this machine by PyTorch's launcher, and waits for their end.

    Raises a `UserError` with message and exit code of the process that failed first, or a `StoppedError`.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())
    logging.getLogger("torch.distributed.elastic").propagate = False  # what is to be said is said below
    heeded = [s.name for s in STOP_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    newer: dict[str, Any] = {"signals_to_handle": ",".join(heeded), "shutdown_timeout": SAVING_SECONDS}
    with tempfile.TemporaryDirectory(prefix=LAUNCHED) as folder:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=size, run_id=Path(folder).name, max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **{key.name: newer[key.name] for key in fields(LaunchConfig) if key.name in newer},
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "bilstm_cls", *arguments)
        except ChildFailedError as error:
            raise _first_failure(error.failures, size) from None
        except SignalException as error:
            name = signal.Signals(error.sigval).name
            raise StoppedError(f"stopped by {name}", signal_number=int(error.sigval)) from None


def _first_failure(failures: dict[int, Any], size: int) -> UserError:
    """Returns what the user reads: the message of the first process to fail, the others ended as a consequence."""
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return ResourceError(f"process {rank} of {size} was ended by {name}, perhaps out of memory; use --resume")
    messages = [f.error_file_data for f in failures.values() if "seconds" in f.error_file_data]
    first: dict[str, Any] = min(messages, key=lambda data: data["seconds"], default={})
    error = UserError(first.get("message", "a process failed without a message"))
    error.exit_code = first.get("exit_code", 1)
    return error


def pass_to_launcher(message: str, exit_code: int) -> None:
    """Hands the message that a process ends with to the `launch` that started it, which prints one of all."""
    now = time.time()
    content = {"message": message, "timestamp": int(now), "seconds": now, "exit_code": exit_code}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), "utf-8")


def end_with_launcher() -> None:
    """Lets this process save and end when the launcher that started it is killed, on Linux alone."""
    if is_launched() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def number_of_processes(config: TrainConfig, corpus: Corpus, device: torch.device, *, can_launch: bool) -> int:
    """Returns how many processes `train.processes` stands for, or raises a `ConfigError` where they cannot be started.

    `auto` is one for every two CPU cores where there is enough to do for their start to pay, and one on CUDA: two
    threads of one process do a step as fast as two processes, and more threads do not keep up.
    """
    if config.processes == "auto":
        num_tokens = config.epochs * int(corpus.lengths.sum())
        is_worthwhile = can_launch and device.type == "cpu" and num_tokens >= MIN_TOKENS_TO_SHARE
        return max(1, min(usable_cores() // 2, config.batch_size)) if is_worthwhile else 1
    size = config.processes
    if size > 1 and (device.type == "cuda" or not can_launch):
        raise ConfigError(
            f"train.processes: {size} are started on a CPU by bilstm-cls train --processes, and with a GPU for each by "
            f"torchrun --nproc-per-node {size} -m bilstm_cls train ..."
        )
    return size
