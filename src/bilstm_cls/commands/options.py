"""What commands share: options that mean the same everywhere, and what is done with them."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilstm_cls.commands.completion import complete_config, complete_override, complete_run

if TYPE_CHECKING:
    from bilstm_cls.config import Config

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The YAML config; all keys have defaults.",
        metavar="FILE",
        autocompletion=complete_config,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a config key; repeatable, the last wins.",
        metavar="KEY.PATH=VALUE",
        autocompletion=complete_override,
    ),
]
OutputDir = Annotated[
    str | None,
    typer.Option("--output-dir", "-o", help="Where run directories are made. [config: output_dir]", metavar="DIR"),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda or cuda:N; auto is CUDA where it is there.", metavar="DEVICE"),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, dropout and order.")]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="A run directory; the newest one under runs/ if left out.",
        metavar="DIR",
        autocompletion=complete_run,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
TextColumns = Annotated[
    list[str] | None,
    typer.Option("--text-column", help="Column with the text; repeatable. [run: data.text_columns]", metavar="NAME"),
]


def resolve(path: Path | None, overrides: Iterable[str] | None, **options: object) -> "Config":
    """Resolves defaults, file and overrides; an option given by its own name wins over all."""
    from bilstm_cls.config_file import load_config

    given = {name: value for name, value in options.items() if value is not None}
    return load_config(
        path,
        list(overrides or []),
        options={
            f"{_OPTIONS[name]} {shlex.quote(str(value))}": f"{_KEYS[name]}={json.dumps(value, ensure_ascii=False)}"
            for name, value in given.items()
        },
    )


_OPTIONS = {"output_dir": "--output-dir", "device": "--device", "seed": "--seed", "processes": "--processes"}
_KEYS = {"output_dir": "output_dir", "device": "train.device", "seed": "seed", "processes": "train.processes"}


def checked_device(name: str | None) -> str:
    """Checks a device by the config's rules, before anything is loaded."""
    return resolve(None, None, device=name).train.device


def chosen_run(run: Path | None) -> Path:
    if run is not None:
        return run
    from bilstm_cls.run_directory import newest_run

    path = newest_run(Path("runs")).path
    print(f"using {path}, the newest run", file=sys.stderr)
    return path


def tell_to_predict(run: Path) -> None:
    """Says on stderr what one does next with a run."""
    print(f'next: bilstm-cls predict --run {shlex.quote(str(run))} "a text of yours"', file=sys.stderr)


def show(findings: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(findings, ensure_ascii=False))
        return
    from bilstm_cls.inspection import as_lines

    print("\n".join(as_lines(findings)))


def start_logging(*, quiet: bool, verbose: bool) -> None:
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    handler.addFilter(lambda record: record.levelno < logging.ERROR)  # an error is raised as well, and told by `main`
    if "BILSTM_CLS_LAUNCHED" in os.environ:  # the command that started this one has prepared the data
        handler.addFilter(lambda record: not record.name.startswith("bilstm_cls.data."))
    if os.environ.get("RANK", "0") != "0":  # process 0 says the same
        handler.addFilter(lambda record: False)
    package = logging.getLogger("bilstm_cls")
    package.handlers = [handler]
    package.setLevel(logging.DEBUG)
    package.propagate = False
    handler.setLevel(level)


class _Formatter(logging.Formatter):
    """Plain messages, with the level in front of warnings only."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"
