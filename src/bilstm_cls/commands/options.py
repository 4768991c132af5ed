"""What commands share: options that mean the same everywhere, what is done with them, and what a shell completes."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bilstm_cls.config import Config

OUTPUT_DIR_VARIABLE = "BILSTM_CLS_OUTPUT_DIR"
RUNS = "runs"


def complete_run(incomplete: str) -> list[str]:
    """Returns the finished runs whose path starts so: those where runs are made, or in the folder that was typed."""
    folder = incomplete.rpartition("/")[0] or os.environ.get(OUTPUT_DIR_VARIABLE, RUNS)
    found = sorted(path.parent.as_posix() for path in Path(folder).glob("*/model.safetensors"))
    # Something that is no path yet is the start of a name.
    return [path for path in found if path.startswith(incomplete) or path.rpartition("/")[2].startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Returns the YAML files and folders that start so, and the configs of this project where nothing was typed."""
    folder, slash, name = incomplete.rpartition("/")
    pattern = "".join(f"[{c}]" if c in "*?[" else c for c in name) + "*"
    offers = [
        f"{folder}{slash}{entry.name}" + "/" * entry.is_dir()
        for entry in sorted(Path(folder + slash or ".").glob(pattern))
        if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix in (".yaml", ".yml"))
    ]
    return offers + ([] if incomplete else [path.as_posix() for path in sorted(Path("configs").glob("*.yaml"))])


def complete_override(incomplete: str) -> list[str]:
    """Returns the keys of the config that start so, each with the `=` that comes after it."""
    from bilstm_cls.config import config_keys

    keys = config_keys()
    names = [f"{section}.{key}" if section else key for section, known in keys.items() for key in known]
    return [f"{name}=" for name in sorted(names) if name not in keys and name.startswith(incomplete)]


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="A YAML config; all keys have defaults.",
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
    typer.Option(
        "--output-dir",
        "-o",
        help="Where run directories are made. [config: output_dir]",
        metavar="DIR",
        envvar=OUTPUT_DIR_VARIABLE,
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run", help="A run directory; the newest if left out.", metavar="DIR", autocompletion=complete_run),
]
RunsFolder = Annotated[
    Path,
    typer.Option("--output-dir", help="Where the newest run is looked for.", metavar="DIR", envvar=OUTPUT_DIR_VARIABLE),
]
DEFAULT_RUNS = Path(RUNS)
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda or cuda:N; auto is CUDA where there is one.", metavar="DEVICE"),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, dropout and order.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what was interrupted.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there under that name.")]
TextColumns = Annotated[
    list[str] | None,
    typer.Option("--text-column", help="Column with the text; repeatable. [run: data.text_columns]", metavar="NAME"),
]

_KEYS = {"--output-dir": "output_dir", "--device": "train.device", "--seed": "seed", "--processes": "train.processes"}


def resolve(path: Path | None, overrides: Iterable[str] | None, **options: object) -> "Config":
    """Resolves defaults, file and overrides; an option, such as `output_dir` for `--output-dir`, wins over all."""
    from bilstm_cls.config_file import load_config

    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    written = {
        f"{option} {shlex.quote(str(value))}": f"{_KEYS[option]}={json.dumps(value, ensure_ascii=False)}"
        for option, value in given.items()
    }
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
    """Says on stderr what one does next with a run."""
    print(f'next: bilstm-cls predict --run {shlex.quote(str(run))} "a text of yours"', file=sys.stderr)


def print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def print_result(value: Mapping[str, Any], words: object, *, as_json: bool) -> None:
    """Prints a result as one line of JSON, or in words."""
    if as_json:
        print_json(value)
    else:
        print(words)


def print_findings(findings: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(findings)
        return
    from bilstm_cls.inspection import as_lines

    print("\n".join(as_lines(findings)))


def start_logging(*, quiet: bool = False, verbose: bool = False) -> None:
    """Prints what the package logs on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    handler.addFilter(lambda record: record.levelno < logging.ERROR)  # an error is raised as well, and `main` prints it
    if "BILSTM_CLS_LAUNCHED" in os.environ:  # the command that started this one has prepared the data
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
