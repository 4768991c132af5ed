"""What a run leaves of how it went, its log and its status; whether it can be resumed; and how it is asked to stop."""

import contextlib
import logging
import signal
import threading
from collections.abc import Collection, Iterator
from logging.handlers import MemoryHandler
from types import FrameType
from typing import Any

from bilstm_cls.config import Config
from bilstm_cls.config_file import changed_keys, dump_config
from bilstm_cls.data.prepare import start_folder
from bilstm_cls.errors import ConfigError, ResourceError, StoppedError, UserError, is_out_of_memory
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import RunDirectory

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

logger = logging.getLogger(__name__)


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP: which of them has asked to stop, and whether it may interrupt right now.

    Use as a context manager around a whole run. Outside of `deferred` a signal raises `StoppedError` where it finds
    the program; inside, the first one is only noted in `received` and the second one raises. A signal that the program
    was started to ignore, as `nohup` does with SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            heeded = [n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets the block reach a place where it can save; it has to look at `received`.

        Raises:
            StoppedError: a signal came after the block had looked for the last time.
        """
        before, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = before
        if self.received is not None:
            raise self.error()

    def error(self) -> StoppedError:
        """Returns the error that ends the program; a signal that another process received is taken for a SIGTERM."""
        received = self.received or signal.SIGTERM
        return StoppedError(f"stopped by {received.name}", signal_number=int(received))

    def _handle(self, number: int, _: FrameType | None) -> None:
        is_first = self.received is None
        self.received = signal.Signals(number)
        if not (self._is_deferred and is_first):
            raise self.error()


def is_finished(run: RunDirectory, product: str) -> bool:
    """Returns whether a directory holds a finished run with the file that it was to make."""
    return run.read_status().get("status") == "finished" and (run / product).exists()


def check_resumable(run: RunDirectory, config: Config, *, free: Collection[str], resume: bool, overwrite: bool) -> None:
    """Checks that nothing stands in the way of a run in its directory.

    Args:
        run: where it would be.
        config: of the run that was asked for.
        free: keys that may differ when an interrupted run is resumed; a section stands for all of its keys.
        resume: whether an interrupted run may be resumed.
        overwrite: whether an earlier run may be deleted.

    Raises:
        ConfigError: the directory is taken, or its run was started with another config.
    """
    start = start_folder(config)
    if start is not None and start.resolve() == run.path.resolve():
        raise ConfigError(f"{run.path}: is the run to start from; choose another place with --set name=NAME")
    if not run.is_taken or overwrite:
        return
    if not resume:
        raise ConfigError(
            f"{run.path}: already holds a run that is {run.read_status()['status']}; add --resume to continue it, "
            f"--overwrite to delete it, or choose another place with --set name=NAME"
        )
    if not ((run / "config.yaml").exists() or run.checkpoints.exists()):
        return
    changes = []
    for change in changed_keys(run.load_config(), config):
        key = change.partition(":")[0]
        if not {key, key.partition(".")[0]} & set(free):
            changes.append(change)
    if changes:
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"{run.path}: cannot be resumed with another config, it would not be the same run:\n  {listed}\n"
            f"undo these changes, or add --overwrite, or --set name=NAME"
        )


@contextlib.contextmanager
def remembered_log() -> Iterator[MemoryHandler]:
    """Keeps what is logged before the run has a file for it."""
    memory = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    package = logging.getLogger("bilstm_cls")
    level = package.level
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))  # Python's default drops all below a warning
    package.addHandler(memory)
    try:
        yield memory
    finally:
        package.removeHandler(memory)
        package.setLevel(level)
        memory.close()


@contextlib.contextmanager
def recorded(
    run: RunDirectory, config: Config, earlier: MemoryHandler, doing: str, *, overwrite: bool
) -> Iterator[None]:
    """Starts a run in its directory: its status, config and log, and in the end why it did not finish.

    Args:
        run: whose lock this process holds.
        config: of the run.
        earlier: what was logged before.
        doing: what its status says.
        overwrite: whether to delete an earlier run.
    """
    if overwrite:
        run.clear()
    run.remove_leftovers()
    run.write_status("running", doing)
    write_atomic(run / "config.yaml", dump_config(config))
    handler = logging.FileHandler(run / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    earlier.setTarget(handler)
    earlier.flush()
    package = logging.getLogger("bilstm_cls")
    package.removeHandler(earlier)
    package.addHandler(handler)
    try:
        yield
    except BaseException as error:
        status, reason, exit_code = "failed", f"{type(error).__name__}: {error}", 1
        if isinstance(error, StoppedError):
            status, reason, exit_code = "stopped", str(error), error.exit_code
        elif isinstance(error, UserError):
            reason, exit_code = str(error), error.exit_code
            logger.error(reason)
        elif is_out_of_memory(error):
            exit_code = ResourceError.exit_code
        try:
            run.write_status(status, reason, exit_code=exit_code)
        except UserError as another:  # a full disk, say: what ended the run matters more
            logger.warning(str(another))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()
