"""Commands that look at data, configs, runs, the cache and this machine."""

import json
import re
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from bilstm_cls.commands import options as opt
from bilstm_cls.errors import CheckFailedError, ConfigError

LIMIT = 20


def init(
    data: Path = typer.Option(..., "--data", help="Your labelled file or folder.", metavar="FILE"),
    output: Path | None = typer.Option(None, "--output", "-o", help="The config. [default: stdout]", metavar="FILE"),
    overrides: list[str] | None = opt.OVERRIDES,
    overwrite: bool = opt.OVERWRITE,
) -> None:
    """Look at your data and print a config for them."""
    opt.start_logging()
    from bilstm_cls.data.starter import profile_data, starter_config

    text = starter_config(profile_data(data, overrides or []), data)
    found = re.findall(r"^  (?:text_columns|label_column|#).*", text, re.MULTILINE)  # the guesses, and what is remarked
    if overrides:
        from bilstm_cls.config_file import dump_config, parse_config

        text = dump_config(parse_config(text, overrides))
    if output is None:
        print(text, end="")
        return
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; add --overwrite to replace it")
    from bilstm_cls.files import write_atomic

    write_atomic(output, text)
    print(*found, f"wrote {output}; next: bilstm-cls train -c {shlex.quote(str(output))}", sep="\n", file=sys.stderr)


@opt.with_output
def inspect(
    out: opt.Output,
    config: Path | None = opt.CONFIG,
    data: Path | None = typer.Option(None, "--data", help="A labelled file or folder instead.", metavar="FILE"),
    run: Path | None = opt.RUN,
    runs: Path = opt.RUNS,
    overrides: list[str] | None = opt.OVERRIDES,
    deep: bool = typer.Option(False, "--deep", help="Also look for near duplicates and likely wrong labels."),
    limit: int = typer.Option(LIMIT, "--limit", min=0, help="Findings listed of each kind; all are counted."),
) -> None:
    """Show what is in a data set or in a run."""
    has_data = data is not None or config is not None or bool(overrides)
    if (data is not None and config is not None) or (run is not None and has_data) or (deep and not has_data):
        raise ConfigError("give one of --config, --data and --run; --set and --deep go with the first two")
    from bilstm_cls import inspection

    if data is not None:
        findings = inspection.inspect_file(data, overrides or [], deep=deep, limit=limit)
    elif has_data:
        findings = inspection.inspect_data(opt.resolve(config, overrides), deep=deep, limit=limit)
    else:
        findings = inspection.inspect_run(opt.chosen_run(run, runs))
    out.show(findings)


@opt.with_output
def report(
    out: opt.Output,
    compared: list[Path] | None = typer.Option(
        None, "--run", help="A run directory; the newest if left out. Given twice or more: runs to compare.",
        metavar="DIR",
    ),
    runs: Path = opt.RUNS,
    page: Path | None = typer.Option(None, "--html", help="Also write the comparison as a page.", metavar="FILE"),
    limit: int = typer.Option(LIMIT, "--limit", min=0, help="Texts shown that the runs answer differently."),
    device: str | None = opt.DEVICE,
) -> None:  # fmt: skip
    """Make a run's report again, or compare runs."""
    if compared is None or len(compared) < 2:
        if page is not None:
            raise ConfigError("--html goes with two runs or more; one run's page is its report.html")
        from bilstm_cls.evaluation.evaluate import rebuild_report

        run = opt.chosen_run(compared[0] if compared else None, runs)
        path = rebuild_report(run, device=opt.checked_device(device))
        out.show({"report": str(path)}, path)
        return
    from bilstm_cls.evaluation.compare import compare, comparison_table, write_comparison

    content = compare(compared, limit)
    out.show(content, comparison_table(content))
    if page is not None:
        write_comparison(page, content)
        print(f"wrote {page}", file=sys.stderr)


def config_show(
    config: Path | None = opt.CONFIG, overrides: list[str] | None = opt.OVERRIDES, as_json: bool = opt.AS_JSON
) -> None:
    """Print the resolved config, defaults included."""
    from bilstm_cls.config_file import dump_config

    resolved = opt.resolve(config, overrides)
    print(resolved.model_dump_json() if as_json else dump_config(resolved), end="\n" if as_json else "")


def config_check(config: Path | None = opt.CONFIG, overrides: list[str] | None = opt.OVERRIDES) -> None:
    """Report all problems of a config at once."""
    print(f"{config or 'defaults'}: valid (run {opt.resolve(config, overrides).name!r})")


def config_schema() -> None:
    """Print the JSON schema of the config, for editors."""
    from bilstm_cls.config_file import config_schema as schema

    print(json.dumps(schema(), indent=2))


@opt.with_output
def cache(
    out: opt.Output,
    clear: str | None = typer.Option(
        None, "--clear", help="Remove what is of this kind, or all, from the cache.", metavar="KIND"
    ),
) -> None:
    """List what the cache holds, or clear it."""
    from bilstm_cls.data.store import cache_entries, cache_folder, clear_cache

    entries = cache_entries()
    if clear is not None:
        kinds = sorted({entry.kind for entry in entries})
        if clear != "all" and entries and clear not in kinds:
            raise ConfigError(f"--clear {clear}: must be all or what the cache holds: {', '.join(kinds)}")
        entries = clear_cache(None if clear == "all" else clear)
    total = sum(entry.size for entry in entries)
    rows, lines = list[dict[str, Any]](), []
    for entry in entries:
        used = datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes")
        rows.append(
            {"kind": entry.kind, "key": entry.key, "bytes": entry.size, "path": str(entry.path), "last_used": used}
        )
        lines.append(f"{entry.kind:<12} {_size(entry.size):>10}  {used}  {entry.key}")
    lines.append(f"{cache_folder()}: {len(rows)} entries of {_size(total)}{' removed' if clear else ''}")
    out.show({"cache": str(cache_folder()), "bytes": total, "removed" if clear else "entries": rows}, "\n".join(lines))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 10**6:,.1f} MB"


@opt.with_output
def doctor(
    out: opt.Output,
    run: Path | None = typer.Option(None, "--run", help="Verify this run directory as well.", metavar="DIR"),
    device: str | None = opt.DEVICE,
) -> None:
    """Show versions and devices; check padding promises here."""
    from bilstm_cls.inspection import examine

    findings = examine(opt.checked_device(device), run)
    out.show(findings)
    if not findings["ok"]:
        raise CheckFailedError("a check failed: results on this machine depend on padding or batch size")
