"""The command that looks for a better config."""

import json
from typing import Annotated

import typer

from bilstm_cls.commands.completion import complete_override
from bilstm_cls.commands.options import (
    AsJson,
    ConfigFile,
    Device,
    OutputDir,
    Overrides,
    Quiet,
    Seed,
    Verbose,
    resolve,
    show,
    start_logging,
)
from bilstm_cls.errors import ConfigError


def tune(
    config: ConfigFile = None,
    overrides: Overrides = None,
    searches: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            help="What to search: KEY.PATH=LOW..HIGH, KEY.PATH=LOW..HIGH:log or KEY.PATH=A|B|C; repeatable. "
            "[default: the word `default`, which can stand beside others]",
            metavar="KEY.PATH=VALUES",
            autocompletion=complete_override,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Trials to train. [default: 20 without --time]", metavar="N")
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--time", help="How long to search, such as 20m or 1h30m.", metavar="DURATION")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="The model is to take no more, such as 5MB.", metavar="SIZE")
    ] = None,
    output_dir: OutputDir = None,
    device: Device = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted or a finished study.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier study of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be searched.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search for a better config on valid, and write it."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    from bilstm_cls.training.search_space import Budget, parse_space

    resolved = resolve(config, overrides, output_dir=output_dir, device=device, seed=seed)
    budget = Budget.parse(trials, duration, max_size)
    space = parse_space(searches or [], resolved, limits_size=budget.max_bytes is not None)
    start_logging(quiet=quiet, verbose=verbose)
    if dry_run:
        show({"budget": vars(budget), "search": {key: found.words for key, found in space.items()}}, as_json=as_json)
        return
    from bilstm_cls.training.tune import tune as run_study

    result = run_study(resolved, space, budget, resume=resume, overwrite=overwrite)
    print(json.dumps(result.as_object(), ensure_ascii=False) if as_json else result.as_table())
    if result.stopped is not None:
        raise result.stopped
