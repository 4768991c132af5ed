"""Named places in the program at which a process dies, gets a signal, or is refused by the system.

The program knows nothing of them: this module wraps its functions, in processes that tests start. A fault is written
`PLACE:COUNT:ACTION`, as in `save.after_fsync:3:kill`, and acts when the process comes there for the COUNT-th time.
Actions are `kill`, `stop`, the name of a signal (twice with `+`: `SIGINT+SIGINT`), the name of an error number such as
`ENOSPC`, and `memory=MB`, which leaves the process so much more memory and no more.
"""

import collections
import errno
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PLACES = (
    "data.row", "step.before", "step.after_backward", "step.after_opt", "eval.start",
    "save.before_open", "save.after_write", "save.after_fsync", "save.after_rename",
    "save.after_dirsync", "save.mid_prune",
)  # fmt: skip

counts: collections.Counter[str] = collections.Counter()
"""How often this process has come to each place."""

_armed: dict[tuple[str, int], str] = {}


def arm(faults: Iterable[str]) -> None:
    """Wraps the program's functions in this process, so that it counts places and the faults come to pass."""
    for fault in faults:
        place, count, action = fault.split(":")
        assert place in PLACES, place
        _armed[place, int(count)] = action
    _wrap()


def reach(place: str) -> None:
    """Notes that the process has come to a place, and lets the fault that waits there come to pass."""
    counts[place] += 1
    action = _armed.get((place, counts[place]))
    if action is not None:
        _act(action)


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.startswith("memory="):
        leave_memory(int(action.removeprefix("memory=")))
    elif action.startswith("SIG"):
        for name in action.split("+"):
            signal.raise_signal(getattr(signal, name))
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))


def leave_memory(megabytes: int) -> None:
    """Gives this process so much more memory and no more."""
    limit = _memory("self")[0] + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def resident(pid: int | str = "self") -> int:
    """The bytes of memory that a process has at the moment."""
    return _memory(pid)[1]


def _memory(pid: int | str) -> list[int]:
    return [int(pages) * resource.getpagesize() for pages in Path(f"/proc/{pid}/statm").read_text().split()]


def _around(owner: Any, name: str, *, before: str | None = None, after: str | None = None) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            reach(before)
        result = original(*args, **kwargs)
        if after is not None:
            reach(after)
        return result

    setattr(owner, name, wrapped)


def _wrap() -> None:
    import torch

    from bilstm_cls import files
    from bilstm_cls.data import dataset
    from bilstm_cls.training import loop, optimizer

    _around(dataset._Table, "add", before="data.row")
    _around(loop.Trainer, "step", before="step.before", after="step.after_opt")
    _around(optimizer, "clip_gradients", before="step.after_backward")
    _around(torch.nn.Module, "eval", before="eval.start")
    _around(files, "make_folder", before="save.before_open")
    _around(os, "replace", after="save.after_rename")
    fsync, unlink = os.fsync, os.unlink

    def counted_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not is_folder:
            reach("save.after_write")
        fsync(descriptor)
        reach("save.after_dirsync" if is_folder else "save.after_fsync")

    def counted_unlink(path: str | Path, **kwargs: Any) -> None:
        unlink(path, **kwargs)
        if Path(path).parent.name == "checkpoints":  # and not what a cache clears away
            reach("save.mid_prune")

    os.fsync = counted_fsync
    os.unlink = counted_unlink
