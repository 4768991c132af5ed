"""What can go wrong that is the user's to mend, and the exit code that says so.

Every error here prints as its message alone: where it is, what is wrong (the value by `repr`), what to do.
"""


class UserError(Exception):
    """Something the user can mend: shown as one message without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A wrong option, config key or value, or an output directory that is taken. Exit code 2."""

    exit_code = 2


class DataError(UserError):
    """A data file that is missing, unreadable or wrong. Exit code 3."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint or run directory that is damaged or does not fit. Exit code 4."""

    exit_code = 4


class DivergedError(UserError):
    """Training produced a number that is not finite. Exit code 5."""

    exit_code = 5


class ResourceError(UserError):
    """The machine ran out of disk or memory. Exit code 6."""

    exit_code = 6


SHORT_OF_MEMORY = ("out of memory", "can't allocate memory")
NO_PRIMITIVE = "could not create a primitive"
"""All that oneDNN says of it. What it cannot calculate is a `primitive descriptor` instead."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch could not get the memory it asked for; PyTorch says so in words alone."""
    words = str(error)
    return isinstance(error, MemoryError) or any(said in words for said in SHORT_OF_MEMORY) or words == NO_PRIMITIVE


class StoppedError(BaseException):
    """A signal asked us to stop, and what was done so far is saved. Exit code 128 + signal number.

    No `Exception`: it comes up in the middle of anything, and a library that tries something, such as an import, would
    take it for a failure of what it tries, and go on.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
