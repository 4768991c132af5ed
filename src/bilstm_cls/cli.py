"""The command line: each command is a thin skin over one function. Data go to stdout, everything else to stderr.

Heavy modules are imported inside the commands, so that `--help` is instant and `predict` loads only what it needs.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from bilstm_cls.commands import answers, looking, reporting, serving, sharing, training, tuning
from bilstm_cls.device import configure_process
from bilstm_cls.errors import ConfigError, ResourceError, StoppedError, UserError, is_out_of_memory

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, judge and ship exact bidirectional-LSTM text classifiers from one YAML file.",
)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show, check or describe configs.")
app.add_typer(config_app, name="config")

COMMANDS: dict[str, Callable[..., None]] = {
    "train": training.train,
    "tune": tuning.tune,
    "eval": answers.evaluate,
    "predict": answers.predict,
    "report": reporting.report,
    "export": answers.export,
    "serve": serving.serve,
    "push": sharing.push,
    "pull": sharing.pull,
    "baseline": training.baseline,
    "pretrain": training.pretrain,
    "inspect": looking.inspect,
    "init": looking.init,
    "doctor": looking.doctor,
}
CONFIG_COMMANDS: dict[str, Callable[..., None]] = {
    "show": looking.config_show,
    "check": looking.config_check,
    "schema": looking.config_schema,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _name, _command in CONFIG_COMMANDS.items():
    config_app.command(_name)(_command)


def main() -> None:
    """Runs the command line and turns every failure into one message and an exit code."""
    _fill_closed_streams()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a command in a shell's background
        signal.signal(signal.SIGINT, _stop)
    # A text may hold what UTF-8 or the terminal cannot show. Data are UTF-8 whatever the locale: programs read them.
    for stream, encoding in ((sys.stdout, "utf-8"), (sys.stderr, None)):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        try:
            app()
        finally:
            _flush_stdout()
    except (UserError, StoppedError) as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(1)  # whoever read the output, such as head, has seen enough
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _fail_with_traceback(error)
        _fail(f"{error.filename or 'output'}: no room left to write it ({error.strerror})", ResourceError.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            _fail_with_traceback(error)
        _fail(f"out of memory ({error}); lower train.batch_size or text.max_length", ResourceError.exit_code)
    except Exception as error:
        _fail_with_traceback(error)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(version_of("bilstm-cls"))
        raise typer.Exit
    _check_current_folder()
    if context.invoked_subcommand in COMMANDS:
        configure_process()


def _fill_closed_streams() -> None:
    """Opens the null device where a stream was closed before the start, as by `>&-`.

    Else the first files that are opened, such as checkpoints, would get the stream's number, and with it what libraries
    write there.
    """
    if sys.stdin is None:  # and stays so: to read from it is a mistake worth telling
        os.open(os.devnull, os.O_RDONLY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open as long as the process


def _check_current_folder() -> None:
    """Tells of a folder that was deleted meanwhile, before libraries tell of it in words of their own."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was deleted; change to one that is there") from None


def _stop(number: int, _: FrameType | None) -> None:
    raise StoppedError("stopped", signal_number=number)


def _flush_stdout() -> None:
    """Writes out what was printed. What cannot be written is dropped, or Python would try it again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str, exit_code: int) -> None:
    if "BILSTM_CLS_LAUNCHED" in os.environ:  # one of several processes
        from bilstm_cls.training.distributed import pass_to_launcher

        if pass_to_launcher(message, exit_code):
            sys.exit(exit_code)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _fail_with_traceback(error: BaseException) -> None:
    traceback.print_exception(error)
    _fail(f"this is a mistake in bilstm-cls, please report it ({type(error).__name__}: {error})", 1)
