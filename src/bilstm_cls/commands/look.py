"""Commands that look at data, configs, runs, the cache and this machine."""

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from bilstm_cls.commands import options as opt
from bilstm_cls.errors import CheckFailedError, ConfigError

LIMIT = 20

OwnData = Annotated[Path, typer.Option("--data", help="Your labelled file or folder.", metavar="FILE")]
ConfigTarget = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the config there instead of stdout.", metavar="FILE")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="A labelled file or folder, read with guessed columns.", metavar="FILE")
]
Deep = Annotated[
    bool, typer.Option("--deep", help="Also look for near duplicates and likely wrong labels, which takes longer.")
]
FindingsLimit = Annotated[
    int, typer.Option("--limit", min=0, help="Findings listed of each kind; all are counted.", metavar="N")
]
ReportRuns = Annotated[
    list[Path] | None,
    typer.Option(
        "--run", help="A run directory; the newest if left out. Given twice or more: runs to compare.", metavar="DIR"
    ),
]
Page = Annotated[Path | None, typer.Option("--html", help="Also write the comparison as a page.", metavar="FILE")]
TextsLimit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=0, help=f"Texts shown that the runs answer differently. [default: {LIMIT}]", metavar="N"
    ),
]
VerifiedRun = Annotated[Path | None, typer.Option("--run", help="Verify this run directory as well.", metavar="DIR")]
Clear = Annotated[
    str | None, typer.Option("--clear", help="Remove what is of this kind, or all, from the cache.", metavar="KIND")
]


def init(
    data: OwnData,
    output: ConfigTarget = None,
    overrides: opt.Overrides = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Look at your data and print a config for them."""
    opt.start_logging()
    from bilstm_cls.data.starter import profile_data, starter_config

    text = starter_config(profile_data(data, overrides or []), data)
    if overrides:
        from bilstm_cls.config import Config
        from bilstm_cls.config_file import dump_config, parse_yaml, with_overrides

        text = dump_config(with_overrides(Config.of(parse_yaml(text).value), overrides))
    if output is None:
        print(text, end="")
        return
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; add --overwrite to replace it")
    from bilstm_cls.files import write_atomic

    write_atomic(output, text)
    print(f"wrote {output}; next: bilstm-cls train -c {shlex.quote(str(output))}", file=sys.stderr)


def inspect(
    config: opt.ConfigFile = None,
    data: Data = None,
    run: opt.RunDir = None,
    runs: opt.RunsFolder = opt.DEFAULT_RUNS,
    overrides: opt.Overrides = None,
    deep: Deep = False,
    limit: FindingsLimit = LIMIT,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Show what is in a data set or in a run."""
    if sum(given is not None for given in (config, data, run)) > 1:
        raise ConfigError("give one of --config, --data and --run")
    if run is not None and overrides:
        raise ConfigError("--run and --set exclude each other: a run is shown as it is")
    if deep and data is None and config is None and not overrides:
        raise ConfigError("--deep goes with --config or --data: it looks at texts")
    opt.start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls import inspection

    if data is not None:
        findings = inspection.inspect_file(data, overrides or [], deep=deep, limit=limit)
    elif config is not None or overrides:
        findings = inspection.inspect_data(opt.resolve(config, overrides), deep=deep, limit=limit)
    else:
        findings = inspection.inspect_run(opt.chosen_run(run, runs))
    opt.print_findings(findings, as_json=as_json)


def report(
    compared: ReportRuns = None,
    runs: opt.RunsFolder = opt.DEFAULT_RUNS,
    page: Page = None,
    limit: TextsLimit = None,
    device: opt.Device = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Make a run's report again, or compare runs."""
    opt.start_logging(quiet=quiet, verbose=verbose)
    if compared is None or len(compared) < 2:
        if page is not None or limit is not None:
            raise ConfigError("--html and --limit go with two runs or more; one run's page is its report.html")
        from bilstm_cls.evaluation.evaluate import rebuild_report

        path = rebuild_report(
            opt.chosen_run(compared[0] if compared else None, runs), device=opt.checked_device(device)
        )
        opt.print_result({"report": str(path)}, path, as_json=as_json)
        return
    if device is not None:
        raise ConfigError("--device goes with one run: to compare runs no model is loaded")
    from bilstm_cls.evaluation.compare import compare, comparison_table, write_comparison

    content = compare(compared, LIMIT if limit is None else limit)
    opt.print_result(content, comparison_table(content), as_json=as_json)
    if page is not None:
        write_comparison(page, content)
        print(f"wrote {page}", file=sys.stderr)


def config_show(config: opt.ConfigFile = None, overrides: opt.Overrides = None, as_json: opt.AsJson = False) -> None:
    """Print the resolved config, defaults included."""
    from bilstm_cls.config_file import dump_config

    resolved = opt.resolve(config, overrides)
    print(resolved.model_dump_json() if as_json else dump_config(resolved), end="\n" if as_json else "")


def config_check(config: opt.ConfigFile = None, overrides: opt.Overrides = None) -> None:
    """Report all problems of a config at once."""
    resolved = opt.resolve(config, overrides)
    print(f"{config or 'defaults'}: valid (run {resolved.name!r})")


def config_schema() -> None:
    """Print the JSON schema of the config, for editors."""
    from bilstm_cls.config_file import config_schema as schema

    print(json.dumps(schema(), indent=2))


def cache(clear: Clear = None, as_json: opt.AsJson = False) -> None:
    """List what the cache holds, or clear it."""
    from bilstm_cls.data.store import cache_entries, cache_folder, clear_cache

    entries = cache_entries()
    if clear is not None:
        kinds = sorted({entry.kind for entry in entries})
        if clear != "all" and entries and clear not in kinds:
            raise ConfigError(f"--clear {clear}: must be all or what the cache holds: {', '.join(kinds)}")
        entries = clear_cache(None if clear == "all" else clear)
    total = sum(entry.size for entry in entries)
    if as_json:
        rows = [
            {"kind": e.kind, "key": e.key, "bytes": e.size, "last_used": _date(e.last_used), "path": str(e.path)}
            for e in entries
        ]
        opt.print_json({"cache": str(cache_folder()), "bytes": total, "removed" if clear else "entries": rows})
        return
    for entry in entries:
        print(f"{entry.kind:<12} {_size(entry.size):>10}  {_date(entry.last_used)}  {entry.key}")
    print(f"{cache_folder()}: {len(entries)} entries of {_size(total)}{' removed' if clear else ''}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 10**6:,.1f} MB"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "minutes")


def doctor(run: VerifiedRun = None, device: opt.Device = None, as_json: opt.AsJson = False) -> None:
    """Show versions and devices; check padding promises here."""
    opt.start_logging()
    from bilstm_cls.inspection import doctor_lines, examine

    findings = examine(opt.checked_device(device), run)
    opt.print_result(findings, "\n".join(doctor_lines(findings)), as_json=as_json)
    if not findings["ok"]:
        raise CheckFailedError("a check failed: results on this machine depend on padding or batch size")
