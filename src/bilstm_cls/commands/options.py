"""What commands share: options that mean the same everywhere, how results are printed, and what a shell completes."""

import functools
import inspect
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bilstm_cls.device import is_launched

if TYPE_CHECKING:
    from bilstm_cls.config import Config

OUTPUT_DIR_VARIABLE = "BILSTM_CLS_OUTPUT_DIR"

CONFIG: Any = typer.Option(None, "--config", "-c", help="A YAML config; all keys have defaults.", metavar="FILE")
OVERRIDES: Any = typer.Option(
    None, "--set", help="Override a config key; repeatable, the last wins.", metavar="KEY.PATH=VALUE"
)
OUTPUT_DIR: Any = typer.Option(
    None, "--output-dir", "-o", help="Where run directories are made. [config: output_dir]", metavar="DIR",
    envvar=OUTPUT_DIR_VARIABLE,
)  # fmt: skip
RUN: Any = typer.Option(None, "--run", help="A run directory; the newest if left out.", metavar="DIR")
RUNS: Any = typer.Option(
    "runs", "--output-dir", help="Where the newest run is looked for.", metavar="DIR", envvar=OUTPUT_DIR_VARIABLE
)
DEVICE: Any = typer.Option(None, "--device", help="auto (CUDA if there is one), cpu, cuda or cuda:N.", metavar="DEVICE")
SEED: Any = typer.Option(None, "--seed", help="Seed of weights, dropout and order.")
DRY_RUN: Any = typer.Option(False, "--dry-run", help="Say what would be done, and do nothing.")
RESUME: Any = typer.Option(False, "--resume", help="Go on with what was interrupted.")
OVERWRITE: Any = typer.Option(False, "--overwrite", help="Replace what is there under that name.")
TEXT_COLUMNS: Any = typer.Option(
    None, "--text-column", help="Column with the text; repeatable. [run: data.text_columns]", metavar="NAME"
)
AS_JSON: Any = typer.Option(False, "--json", help="Print JSON.")
QUIET: Any = typer.Option(False, "--quiet", "-q", help="Only warnings and errors on stderr.")
VERBOSE: Any = typer.Option(False, "--verbose", "-v", help="Say more on stderr.")

_KEYS = {"device": "train.device", "processes": "train.processes"}


@dataclass(frozen=True)
class Output:
    """How a command prints its result: as a line of JSON or in words, and with few or many words on stderr."""

    as_json: bool
    is_quiet: bool

    def show(self, value: Mapping[str, Any], words: object = None) -> None:
        """Prints a result; where there are no words for it, as YAML."""
        if self.as_json:
            print(json.dumps(value, ensure_ascii=False))
        elif words is None:
            import yaml

            print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000), end="")
        else:
            print(words)


def with_output(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--json`, `--quiet` and `--verbose` to a command, whose first argument is the `Output` that they ask for."""

    @functools.wraps(command)
    def run(*, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
        start_logging(quiet=quiet, verbose=verbose)
        command(Output(as_json, quiet), **options)

    added = {"as_json": AS_JSON, "quiet": QUIET, "verbose": VERBOSE}
    parameters = [
        *list(inspect.signature(command).parameters.values())[1:],
        *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=o, annotation=bool) for n, o in added.items()),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def resolve(path: Path | None, overrides: Iterable[str] | None, **options: object) -> "Config":
    """Resolves defaults, file and overrides; an option, such as `output_dir` for `--output-dir`, wins over all."""
    from bilstm_cls.config_file import load_config

    written = {}
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
            written[option] = f"{_KEYS.get(name, name)}={json.dumps(value, ensure_ascii=False)}"
    return load_config(path, list(overrides or []), options=written)


def checked_device(name: str | None) -> str:
    """Checks a device by the config's rules, before anything is loaded."""
    return resolve(None, None, device=name).train.device


def chosen_run(run: Path | None, folder: Path) -> Path:
    """Returns the run that was named, or else the newest one in a folder, and says which."""
    if run is not None:
        return run
    from bilstm_cls.run_directory import newest_run

    path = newest_run(folder).path
    print(f"using {path}, the newest run", file=sys.stderr)
    return path


def suggest_predict(run: Path) -> None:
    print(f'next: bilstm-cls predict --run {shlex.quote(str(run))} "a text of yours"', file=sys.stderr)


def start_logging(*, quiet: bool = False, verbose: bool = False) -> None:
    """Prints what the package logs on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    handler.addFilter(lambda record: record.levelno < logging.ERROR)  # an error is raised as well, and `main` prints it
    if is_launched():  # the command that started this one has prepared the data
        handler.addFilter(lambda record: not record.name.startswith("bilstm_cls.data."))
    if os.environ.get("RANK", "0") != "0":  # process 0 says the same
        handler.addFilter(lambda record: False)
    handler.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    package = logging.getLogger("bilstm_cls")
    package.handlers = [handler]
    package.setLevel(logging.DEBUG)
    package.propagate = False


class _Formatter(logging.Formatter):
    """Plain messages, with the level in front of warnings only."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"
