"""Runs the command line as a user would, in this process or in a new one."""

import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bilstm_cls import cli


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What was printed with `--json`, where that is one object."""
        return json.loads(self.stdout)

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that report an error."""
        return [line for line in self.stderr.splitlines() if line.lower().startswith("error")]


def run_cli(*args: object, stdin: bytes = b"") -> Outcome:
    """Runs a command in this process and leaves the process as it was."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for name in ("stdout", "stderr")}
    words = ["bilstm-cls", *map(str, args)]
    code = 0
    with (
        _same_process_state(),
        mock.patch.dict(os.environ),
        mock.patch.object(sys.modules["__main__"], "__package__", None),  # else the program is called python -m pytest
        mock.patch.multiple(sys, argv=words, stdin=io.TextIOWrapper(io.BytesIO(stdin), "utf-8"), **streams),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Outcome(code, *(stream.buffer.getvalue().decode("utf-8") for stream in streams.values()))


def answer(*args: object, stdin: bytes = b"") -> Outcome:
    """Runs a command that has to succeed."""
    outcome = run_cli(*args, stdin=stdin)
    assert outcome.code == 0, outcome.stderr
    return outcome


@contextlib.contextmanager
def _same_process_state() -> Iterator[None]:
    package = logging.getLogger("bilstm_cls")
    handlers, level, propagate = list(package.handlers), package.level, package.propagate
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        package.handlers, package.propagate = handlers, propagate
        package.setLevel(level)
        signal.signal(signal.SIGINT, handler)


def spawn_cli(
    *args: object, stdin: bytes = b"", cwd: Path | None = None, script: str | None = None, **environment: str
) -> Outcome:
    """Runs a command in a new process, or a script with such arguments."""
    start = ["-m", "bilstm_cls"] if script is None else ["-W", "ignore", "-c", script]
    done = subprocess.run(
        [sys.executable, *start, *map(str, args)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


def contents(folder: Path) -> dict[str, str]:
    """Returns a digest of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextlib.contextmanager
def serving(options: Sequence[object] = ()) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Starts the server at a free port and yields its address and process."""
    command = [sys.executable, "-m", "bilstm_cls", "serve", *map(str, options), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip() if process.stdout else ""
            assert address.startswith("http"), process.communicate()[1]
            yield address, process
        finally:
            process.terminate()
            process.communicate(timeout=60)
