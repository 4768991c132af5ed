"""Commands that look at data, configs and this machine."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bilstm_cls.commands.options import (
    AsJson,
    ConfigFile,
    Device,
    Overrides,
    Quiet,
    RunDir,
    Verbose,
    checked_device,
    chosen_run,
    resolve,
    show,
    start_logging,
)
from bilstm_cls.errors import ConfigError


def init(
    data: Annotated[Path, typer.Option("--data", help="Your labelled file or folder.", metavar="FILE")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the config there instead of stdout.", metavar="FILE"),
    ] = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Look at your data and print a config for them."""
    start_logging(quiet=False, verbose=False)
    from bilstm_cls.data.sniff import sniff, starter_config

    text = starter_config(sniff(data, overrides or []), data)
    if overrides:
        from bilstm_cls.inspection import with_overrides

        text = with_overrides(text, overrides, name=data.stem)
    if output is None:
        print(text, end="")
        return
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; add --overwrite to replace it")
    from bilstm_cls.files import write_atomic

    write_atomic(output, text)
    print(f"wrote {output}; next: bilstm-cls train -c {shlex.quote(str(output))}", file=sys.stderr)


def inspect(
    config: ConfigFile = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A labelled file or folder, read with guessed columns.", metavar="FILE"),
    ] = None,
    run: RunDir = None,
    overrides: Overrides = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also look for near duplicates and likely wrong labels, which takes longer.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Findings listed of each kind; all are counted.", metavar="N")
    ] = 20,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what is in a data set or in a run."""
    if sum(given is not None for given in (config, data, run)) > 1:
        raise ConfigError("give one of --config, --data and --run")
    if run is not None and overrides:
        raise ConfigError("--run and --set exclude each other: a run is shown as it is")
    if deep and data is None and config is None and not overrides:
        raise ConfigError("--deep goes with --config or --data: it looks at texts")
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.inspection import inspect_data, inspect_file, inspect_run

    if data is not None:
        show(inspect_file(data, overrides or [], deep=deep, limit=limit), as_json=as_json)
    elif config is not None or overrides:
        show(inspect_data(resolve(config, overrides), deep=deep, limit=limit), as_json=as_json)
    else:
        show(inspect_run(chosen_run(run)), as_json=as_json)


def config_show(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved config, defaults included."""
    from bilstm_cls.config_file import dump_config

    resolved = resolve(config, overrides)
    print(resolved.model_dump_json() if as_json else dump_config(resolved), end="\n" if as_json else "")


def config_check(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Report all problems of a config at once."""
    resolved = resolve(config, overrides)
    print(f"{config or 'defaults'}: sound (run {resolved.name!r})")


def config_schema() -> None:
    """Print the JSON schema of the config, for editors."""
    from bilstm_cls.config import config_schema as schema

    print(json.dumps(schema(), indent=2))


def doctor(
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Verify this run directory as well.", metavar="DIR"),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show versions and devices; check padding promises here."""
    start_logging(quiet=False, verbose=False)
    from bilstm_cls.inspection import doctor_lines, examine

    findings = examine(checked_device(device), run)
    print(json.dumps(findings, ensure_ascii=False) if as_json else "\n".join(doctor_lines(findings)))
    if not findings["ok"]:
        print("a check failed: results on this machine depend on padding or batch size", file=sys.stderr)
        raise typer.Exit(1)
