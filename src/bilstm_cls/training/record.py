"""What a run leaves of how it went, whatever it makes: its log, its status, and whether it can be gone on with."""

import contextlib
import logging
from collections.abc import Collection, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

from bilstm_cls.config import Config
from bilstm_cls.config_file import changed_keys
from bilstm_cls.errors import ConfigError, ResourceError, StoppedError, UserError, is_out_of_memory
from bilstm_cls.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def is_finished(
    run: RunDirectory, config: Config, *, product: str, free: Collection[str], resume: bool, overwrite: bool
) -> bool:
    """Returns whether a finished run is there to be returned as it is.

    Args:
        run: where it would be.
        config: of the run that was asked for.
        product: the file that a finished run has.
        free: keys that may differ when an interrupted run is gone on with; a section stands for all of its own.
        resume: whether an interrupted run may be gone on with.
        overwrite: whether an earlier run may be deleted.

    Raises:
        ConfigError: the directory is taken, or its run cannot be gone on with.
    """
    if run.is_taken and not overwrite:
        status = run.read_status()["status"]
        if not resume:
            raise ConfigError(
                f"{run.path}: already holds a run that is {status}; add --resume to go on with it, --overwrite to "
                f"delete it, or choose another place with --set name=NAME"
            )
        if (run / "config.yaml").exists() or run.checkpoints.exists():
            _check_same_config(run, config, free)
        if status == "finished" and (run / product).exists():
            return True
    return False


def _check_same_config(run: RunDirectory, config: Config, free: Collection[str]) -> None:
    changes = [
        change
        for change in changed_keys(run.load_config(), config)
        if not {key := change.partition(":")[0], key.partition(".")[0]} & set(free)
    ]
    if changes:
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"{run.path}: cannot be resumed with another config, it would not be the same run:\n  {listed}\n"
            f"take these back, or add --overwrite, or --set name=NAME"
        )


@contextlib.contextmanager
def remembered_log() -> Iterator[MemoryHandler]:
    """Takes in what is logged before the run has a file for it."""
    memory = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    package = logging.getLogger("bilstm_cls")
    level = package.level
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))  # Python's own default drops what is no warning
    package.addHandler(memory)
    try:
        yield memory
    finally:
        package.removeHandler(memory)
        package.setLevel(level)
        memory.close()


@contextlib.contextmanager
def log_file(path: Path, earlier: MemoryHandler) -> Iterator[None]:
    """Writes to a file what was logged and what will be."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    earlier.setTarget(handler)
    earlier.flush()
    package = logging.getLogger("bilstm_cls")
    package.removeHandler(earlier)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def recorded_status(run: RunDirectory) -> Iterator[None]:
    """Leaves in `status.json` why a run did not finish."""
    try:
        yield
    except StoppedError as error:
        _note_end(run, "stopped", str(error), error.exit_code)
        raise
    except UserError as error:
        logger.error(str(error))
        _note_end(run, "failed", str(error), error.exit_code)
        raise
    except BaseException as error:
        exit_code = ResourceError.exit_code if is_out_of_memory(error) else 1
        _note_end(run, "failed", f"{type(error).__name__}: {error}", exit_code)
        raise


def _note_end(run: RunDirectory, status: str, reason: str, exit_code: int) -> None:
    try:
        run.write_status(status, reason, exit_code=exit_code)
    except UserError as error:  # a full disk, say: what ended the run matters more
        logger.warning(str(error))
