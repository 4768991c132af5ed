"""Several processes that train one model together, each on its share of every batch.

All hold the same weights and make the same update: gradients are added up, those of an embedding row by row. Started
here, one process per core, or by `torchrun` on several GPUs or machines; the rest of the program sees only a `Group`.
"""

import contextlib
import datetime
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from bilstm_cls.errors import ConfigError, ResourceError

TIMEOUT_SECONDS = 600.0
"""How long a process waits for the others; `BILSTM_CLS_TIMEOUT` sets another time."""

WORKER_MODULE = "bilstm_cls.training.worker"


@dataclass(frozen=True)
class Group:
    """The processes of one run as one of them sees them. A group of one does nothing at all.

    Attributes:
        rank: of this process, from 0; process 0 writes all files.
        size: number of processes.
        device: where tensors must be to be exchanged.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes: all get the same answer."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        with self._naming_losses():
            dist.all_reduce(value)
        return bool(value.item() > 0)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.any(False)

    def sum(self, value: float) -> float:
        """Returns the sum over all processes, with the same bits in each."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        with self._naming_losses():
            dist.all_reduce(total)
        return float(total.item())

    def sum_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the sum of an array over all processes."""
        if self.size == 1:
            return array
        total = torch.from_numpy(array).to(self.device)
        with self._naming_losses():
            dist.all_reduce(total)
        return np.asarray(total.cpu().numpy())

    def sum_gradients(self, dense: Sequence[Tensor], tables: Sequence[Tensor]) -> None:
        """Replaces every gradient by its sum over all processes, with the same bits in each.

        A process without a text of its own has no gradients and takes the others'. Dense gradients travel as one flat
        tensor. Of an embedding's row-sparse gradient only the rows travel: some 2 MB of a 12 MB table.

        Args:
            dense: parameters with dense gradients.
            tables: `[V, E]` parameters with row-sparse gradients.
        """
        if self.size == 1:
            return
        with torch.no_grad(), self._naming_losses():
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in dense])
            dist.all_reduce(flat)
            for parameter, total in zip(dense, torch.split(flat, [p.numel() for p in dense]), strict=True):
                parameter.grad = total.view_as(parameter)
            for table in tables:
                table.grad = self._sum_rows(table)

    def _sum_rows(self, parameter: Tensor) -> Tensor:
        width = parameter.shape[1]
        if parameter.grad is None:
            rows, values = torch.empty(0, dtype=torch.int64, device=self.device), parameter.new_empty(0, width)
        else:
            gradient = parameter.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=self.device))
        numbers = [int(size) for size in sizes]
        room = max(numbers)
        padded_rows = torch.zeros(room, dtype=torch.int64, device=self.device)
        padded_values = torch.zeros(room, width, dtype=values.dtype, device=self.device)
        padded_rows[: len(rows)], padded_values[: len(rows)] = rows, values
        all_rows = [torch.empty_like(padded_rows) for _ in numbers]
        all_values = [torch.empty_like(padded_values) for _ in numbers]
        dist.all_gather(all_rows, padded_rows)
        dist.all_gather(all_values, padded_values)
        indices = torch.cat([part[:n] for part, n in zip(all_rows, numbers, strict=True)]).unsqueeze(0)
        joined = torch.cat([part[:n] for part, n in zip(all_values, numbers, strict=True)])
        return torch.sparse_coo_tensor(indices, joined, parameter.shape, check_invariants=False).coalesce()

    @contextlib.contextmanager
    def _naming_losses(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ResourceError(
                f"process {self.rank} of {self.size} lost the others: one of them died or hangs, out of memory "
                f"perhaps; the last checkpoint is sound, go on with --resume ({str(error).splitlines()[0][:120]})"
            ) from error


ALONE = Group()


def is_started_by_torchrun() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return "RANK" in os.environ and _told_by_torchrun("WORLD_SIZE", "1") > 1


def rank_by_torchrun() -> int:
    """Returns the number of this process among those that `torchrun` started, from 0, or 0 where it is alone."""
    return _told_by_torchrun("RANK") if is_started_by_torchrun() else 0


def _told_by_torchrun(name: str, default: str = "") -> int:
    value = os.environ.get(name, default)
    if not re.fullmatch(r"\d{1,9}", value):
        raise ConfigError(f"{name}: {value!r} in the environment is no number; start several processes by torchrun")
    return int(value)


@contextlib.contextmanager
def joined(device: torch.device, *, rank: int, size: int, meeting: str) -> Iterator[Group]:
    """Makes this process one of a group for a `with` block.

    Args:
        device: where this process computes; CUDA devices talk through NCCL, others through Gloo.
        rank: of this process.
        size: number of processes.
        meeting: where they find each other: `env://` under torchrun, or `file://PATH`.

    Raises:
        ResourceError: they did not find each other in time.
        ConfigError: `BILSTM_CLS_TIMEOUT` is no number of seconds, or torchrun's own variables are not all there.
    """
    seconds = _patience()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=meeting,
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=seconds),
        )
    except ValueError as error:
        raise ConfigError(f"{error}; start several processes by torchrun, or with --processes") from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ResourceError(
            f"the {size} processes did not find each other within {seconds:g} seconds, one of them may have ended "
            f"({reason}); look at what the others say, and start again with --resume"
        ) from error
    # torch 2.3 frees a group under Python's lock, and joins threads there that wait for the lock to let a tensor go;
    # the backend, dropped last and by itself, is freed without it.
    backend = dist.distributed_c10d._get_default_group()._get_backend(device)
    try:
        yield Group(rank, size, device)
    finally:
        dist.destroy_process_group()
        del backend


def _patience() -> float:
    given = os.environ.get("BILSTM_CLS_TIMEOUT", str(TIMEOUT_SECONDS))
    if not re.fullmatch(r"\d{1,7}(\.\d+)?", given) or float(given) == 0:
        raise ConfigError(f"BILSTM_CLS_TIMEOUT: {given!r} is no number of seconds above 0")
    return float(given)


def joined_by_torchrun(device: torch.device) -> contextlib.AbstractContextManager[Group]:
    """Like `joined`, with what `torchrun` says in the environment; each process of a machine takes its own GPU."""
    if device.type == "cuda":
        device = torch.device("cuda", _told_by_torchrun("LOCAL_RANK"))
    return joined(device, rank=_told_by_torchrun("RANK"), size=_told_by_torchrun("WORLD_SIZE"), meeting="env://")


@contextlib.contextmanager
def started(run: Path, size: int, device: torch.device) -> Iterator[Group]:
    """Starts `size - 1` more processes for the run in a directory and is the first of the group for a `with` block.

    However the block ends, none of them is left over.
    """
    if size == 1:
        yield ALONE
        return
    with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
        meeting = f"file://{folder}/meeting"
        environment = os.environ | {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", loopback())}
        os.environ["GLOO_SOCKET_IFNAME"] = environment["GLOO_SOCKET_IFNAME"]
        workers = [
            subprocess.Popen(  # noqa: S603 - this program
                [sys.executable, "-m", WORKER_MODULE, str(run), str(rank), str(size), meeting],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for rank in range(1, size)
        ]
        try:
            with joined(device, rank=0, size=size, meeting=meeting) as group:
                yield group
            for worker in workers:
                worker.wait(timeout=60)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def loopback() -> str:
    """Returns the name of the network interface that processes of one machine talk through."""
    return "lo0" if sys.platform == "darwin" else "lo"
