"""The command line in processes that are forked from one which has imported everything and computed nothing yet.

A start costs some 50 ms instead of seconds, so that a test can afford hundreds of deaths.
"""

import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.command_line import Outcome
from tests.faults import failpoints
from tests.training.runs import PICTURES, draw_nothing

SECONDS = 120.0
"""After which a process that has not ended counts as hanging."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "bilstm_cls.cli", "bilstm_cls.training.run", "bilstm_cls.classifier", "bilstm_cls.serve.predict_file",
        "bilstm_cls.evaluation.evaluate", "bilstm_cls.evaluation.report", "torch._dynamo", "sklearn.metrics",
        "matplotlib.backends.backend_agg", "tests.faults.failpoints", "tests.training.runs",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Child:
    """A command in a process of its own."""

    process: BaseProcess
    folder: tempfile.TemporaryDirectory[str]

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Returns how it ended; a code below zero is the signal that killed it. One that hangs is killed."""
        self.process.join(seconds)
        is_hanging = self.process.exitcode is None
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        assert code is not None
        with self.folder as folder:
            stdout, stderr = ((Path(folder) / name).read_bytes().decode() for name in ("stdout", "stderr"))
        assert not is_hanging, f"still running after {seconds} s\n{stderr}"
        return Outcome(code, stdout, stderr)

    def wait_until_held(self) -> None:
        """Returns when a SIGSTOP has stopped it. It is the server's child, so only the system can be asked."""
        deadline = time.monotonic() + SECONDS
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "never held"
            self.process.join(0.01)

    def kill_after(self, seconds: float) -> int:
        """Kills it after a while and returns its exit code: 0 if it came to its end before."""
        self.process.join(seconds)
        self.process.kill()
        return self.wait().code


def start(
    *args: object, faults: Sequence[str] = (), environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Child:
    """Starts a command with the faults that are to happen to it."""
    folder = tempfile.TemporaryDirectory(prefix="child-")
    for name in ("stdout", "stderr"):  # it may be killed before it opens them
        (Path(folder.name) / name).touch()
    words = [str(arg) for arg in args]
    process = SERVER.Process(
        target=_live, args=(words, list(faults), folder.name, dict(environment or {}), str(cwd or Path.cwd()))
    )
    process.start()
    return Child(process, folder)


def run(*args: object, **options: Any) -> Outcome:
    """Starts a command and waits for its end."""
    return start(*args, **options).wait()


def start_together(
    *args: object, faults: Mapping[int, Sequence[str]], environment: Mapping[str, str] | None = None
) -> list[Child]:
    """Starts a command as `torchrun` would, in two processes that know each other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        start(*args, faults=faults.get(rank, ()), environment={**shared, **(environment or {}), "RANK": str(rank)})
        for rank in range(2)
    ]


def run_together(*args: object, seconds: float = SECONDS, **options: Any) -> list[Outcome]:
    """Starts a command in two processes and returns how each ended."""
    return [child.wait(seconds) for child in start_together(*args, **options)]


def places_of(*args: object, size: int = 1, environment: Mapping[str, str] | None = None) -> list[dict[str, int]]:
    """Runs a command to its good end and returns how often each of its processes came to each failpoint."""
    with tempfile.TemporaryDirectory() as folder:
        given = {**(environment or {}), "COUNTS": folder}
        outcomes = run_together(*args, faults={}, environment=given) if size > 1 else [run(*args, environment=given)]
        assert [outcome.code for outcome in outcomes] == [0] * size, outcomes
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


def _live(words: list[str], faults: list[str], folder: str, environment: dict[str, str], cwd: str) -> None:
    os.environ.update(environment)
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY), number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from bilstm_cls import cli
    from bilstm_cls.evaluation import plots

    for name in PICTURES:
        setattr(plots, name, draw_nothing)
    failpoints.arm(faults)
    if "CHILD_MEMORY_MB" in environment:
        failpoints.leave_memory(int(environment["CHILD_MEMORY_MB"]))
    if "CHILD_SECONDS" in environment:  # of a processor
        seconds = int(environment["CHILD_SECONDS"])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if "COUNTS" in environment:
        _write_counts_at_exit(Path(environment["COUNTS"]) / f"{environment.get('RANK', 0)}.json")
    sys.argv = ["bilstm-cls", *words]
    try:
        cli.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _write_counts_at_exit(path: Path) -> None:
    leave = os._exit  # by which a forked process ends, and some of the program's before that

    def write_and_leave(code: int) -> None:
        path.write_text(json.dumps(failpoints.counts))
        leave(code)

    os._exit = write_and_leave
