"""Commands that give a run to others, and take one from them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bilstm_cls.commands.options import AsJson, Quiet, RunDir, Verbose, chosen_run, start_logging, tell_to_predict

Repository = Annotated[
    str, typer.Argument(help="user/name on the Hugging Face Hub, or user/name@BRANCH.", metavar="REPOSITORY")
]


def push(
    repository: Repository,
    run: RunDir = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository that only you may read.")] = False,
    with_texts: Annotated[
        bool, typer.Option("--with-texts", help="Also upload report and predictions, which hold texts of your data.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Upload a run and its card to the Hugging Face Hub."""
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.hub import push as upload
    from bilstm_cls.hub import pushed_lines

    address = upload(chosen_run(run), repository, is_private=private, with_texts=with_texts)
    print(json.dumps({"address": address}) if as_json else pushed_lines(address))


def pull(
    repository: Repository,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run directory to make. [default: runs/NAME]", metavar="RUN"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fetch a run from the Hugging Face Hub, and verify it."""
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.hub import pull as fetch

    run = fetch(repository, output, overwrite=overwrite)
    print(json.dumps({"run": str(run)}) if as_json else run)
    tell_to_predict(run)
