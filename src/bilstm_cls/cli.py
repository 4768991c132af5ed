"""The command line: each command is a thin skin over one function. Data go to stdout, everything else to stderr.

Heavy modules are imported inside the commands, so that `--help` is instant and `predict` loads only what it needs.
"""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from bilstm_cls.commands import look, train, use
from bilstm_cls.device import check_memory, configure_process, is_launched
from bilstm_cls.errors import ConfigError, ExitCode, StoppedError, UserError, is_out_of_memory, stop
from bilstm_cls.files import OUT_OF_SPACE

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, evaluate and deploy exact bidirectional-LSTM text classifiers from one YAML file.",
)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show, check or describe configs.")
app.add_typer(config_app, name="config")

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "tune": train.tune,
    "eval": use.evaluate,
    "predict": use.predict,
    "report": look.report,
    "export": use.export,
    "serve": use.serve,
    "push": use.push,
    "pull": use.pull,
    "baseline": train.baseline,
    "pretrain": train.pretrain,
    "inspect": look.inspect,
    "init": look.init,
    "cache": look.cache,
    "doctor": look.doctor,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
config_app.command("show")(look.config_show)
config_app.command("check")(look.config_check)
config_app.command("schema")(look.config_schema)


def main() -> None:
    """Runs the command line and turns every failure into one message and an exit code of `ExitCode`."""
    _open_streams()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a command in a shell's background
        signal.signal(signal.SIGINT, stop)
    try:
        try:
            app()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # in place of which typer exits with 1
                raise end.__context__ from None
            raise
        finally:
            _flush_stdout()
    except (UserError, StoppedError) as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(ExitCode.CLOSED_PIPE)  # whoever read the output, such as head, has seen enough
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
            _fail(f"{error.filename or 'output'}: no room left to write it ({error.strerror})", ExitCode.RESOURCES)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _fail(f"{error.filename}: cannot be a path ({error.strerror}); give a shorter one", ExitCode.USAGE)
        if is_out_of_memory(error):
            _fail(f"out of memory ({error}); lower train.batch_size or text.max_length", ExitCode.RESOURCES)
        traceback.print_exception(error)
        kind = type(error).__name__
        print(f"internal error: this is a bug in bilstm-cls, please report it ({kind}: {error})", file=sys.stderr)
        sys.exit(ExitCode.BUG)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(version_of("bilstm-cls"))
        raise typer.Exit
    try:
        Path.cwd()
    except FileNotFoundError:  # which libraries report unclearly
        raise ConfigError("the current folder was deleted; change to one that is there") from None
    if context.invoked_subcommand in COMMANDS:
        configure_process()
    if context.invoked_subcommand in COMMANDS.keys() - {"init", "cache"}:
        check_memory()


def _open_streams() -> None:
    """Opens the null device where a stream was closed before the start, and sets what the others do with any text.

    Else the first file that is opened, such as a checkpoint, would get the stream's number and what is written there.
    """
    if sys.stdin is None:  # and stays so: to read from it is an error to report
        os.open(os.devnull, os.O_RDONLY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open as long as the process
    # A text may hold what UTF-8 or the terminal cannot show. Data are UTF-8 whatever the locale: programs read them.
    for stream, encoding in ((sys.stdout, "utf-8"), (sys.stderr, None)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _flush_stdout() -> None:
    """Writes out what was printed. What cannot be written is dropped, or Python would try it again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str, exit_code: int) -> None:
    if is_launched():  # one of several processes
        from bilstm_cls.training.distributed import pass_to_launcher

        pass_to_launcher(message, exit_code)
    else:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)
