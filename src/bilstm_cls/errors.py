"""What can go wrong that the user can fix, and the exit code that says so.

Every error prints as its message alone: where it is, what is wrong (the value by `repr`), what to do.
"""

import re
import signal
from enum import IntEnum
from typing import Any, NoReturn

KeyPath = tuple[str | int, ...]  # keys and list positions that lead from the root of nested data to a value


class ExitCode(IntEnum):
    """How the command line ends. A signal gives 128 + its number, as shells do: 129, 130 or 143."""

    DONE = 0
    BUG = 1
    USAGE = 2
    DATA = 3
    CHECKPOINT = 4
    DIVERGED = 5
    RESOURCES = 6
    CHECK_FAILED = 7
    CLOSED_PIPE = 141


class UserError(Exception):
    """Something the user can fix: shown as one message without a traceback."""

    exit_code: int = ExitCode.USAGE


class ConfigError(UserError):
    """A wrong option, config key or value, or an output directory that is taken."""


class DataError(UserError):
    """A data file that is missing, unreadable or wrong."""

    exit_code = ExitCode.DATA


class CheckpointError(UserError):
    """A checkpoint or run directory that is damaged or does not fit."""

    exit_code = ExitCode.CHECKPOINT


class DivergedError(UserError):
    """Training produced a number that is not finite."""

    exit_code = ExitCode.DIVERGED


class ResourceError(UserError):
    """The machine ran out of disk or memory."""

    exit_code = ExitCode.RESOURCES


class CheckFailedError(UserError):
    """A check that was asked for failed: `eval --fail-under`, `doctor`."""

    exit_code = ExitCode.CHECK_FAILED


class StoppedError(BaseException):
    """A signal asked us to stop, and what was done so far is saved. Exit code 128 + signal number.

    Not an `Exception`: a library that tries something, such as an import, would take it for a failure and go on.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def stop(number: int, _: object) -> NoReturn:
    """Ends the program, as a signal asks; only Ctrl-C needs no name."""
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    raise StoppedError(f"stopped{name}", signal_number=number)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch could not get the memory it asked for; PyTorch says so in words alone."""
    # oneDNN says no more than the last two. What it cannot calculate is a "primitive descriptor" instead.
    words = r"(?s).*(out of memory|can't allocate memory).*|could not (create|execute) a primitive"
    return isinstance(error, MemoryError) or re.fullmatch(words, str(error)) is not None


def dotted(path: KeyPath) -> str:
    """Returns a path as it is written for a user, such as `model.pooling[1]`."""
    names = (step if isinstance(step, int) or re.fullmatch(r"[\w-]+", step) else repr(step) for step in path)
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).removeprefix(".")


def shown(value: Any) -> str:
    """Returns a value by `repr`, shortened; what YAML spells otherwise as in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else cut(repr(value))


def printable(text: str) -> str:
    """Returns a text on one line that holds nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cut(text: str) -> str:
    """Returns a printable text that fits on a line."""
    text = printable(text[:100])
    return text if len(text) <= 80 else f"{text[:77]}..."
