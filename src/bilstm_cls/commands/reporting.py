"""The command that makes pages of finished runs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bilstm_cls.commands.options import AsJson, Device, Quiet, Verbose, checked_device, chosen_run, start_logging
from bilstm_cls.errors import ConfigError

LIMIT = 20


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            help="A run directory; the newest one under runs/ if left out. Given twice or more: runs to compare.",
            metavar="DIR",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--html", help="Write the comparison as a page, too.", metavar="FILE"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=0, help=f"Texts shown that the runs answer differently. [default: {LIMIT}]", metavar="N"
        ),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a run's report again, or compare runs."""
    if len(runs or []) < 2:
        if page is not None or limit is not None:
            raise ConfigError("--html and --limit go with two runs or more; one run's page is its report.html")
        start_logging(quiet=quiet, verbose=verbose)
        from bilstm_cls.evaluation.evaluate import rebuild_report

        path = rebuild_report(chosen_run(runs[0] if runs else None), device=checked_device(device))
        print(json.dumps({"report": str(path)}, ensure_ascii=False) if as_json else path)
        return
    if device is not None:
        raise ConfigError("--device goes with one run: to compare runs no model is loaded")
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.evaluation.compare import compare, comparison_table, write_comparison

    shown = LIMIT if limit is None else limit
    comparison = compare(runs or [])
    if as_json:
        print(json.dumps(comparison.as_object(shown), ensure_ascii=False))
    else:
        print(comparison_table(comparison, shown))
    if page is not None:
        write_comparison(page, comparison, shown)
        print(f"wrote {page}", file=sys.stderr)
