"""Commands that make a model, and what it has to be better than."""

import contextlib
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bilstm_cls.commands import options as opt
from bilstm_cls.errors import ConfigError

if TYPE_CHECKING:
    from tqdm import tqdm

    from bilstm_cls.training.loop import EvaluationReport, StepReport


@opt.with_output
def train(
    out: opt.Output,
    config: Path | None = opt.CONFIG,
    start: Path | None = typer.Option(
        None, "--from", help="Start from a finished run, by its config unless -c gives another one.", metavar="RUN"
    ),
    overrides: list[str] | None = opt.OVERRIDES,
    output_dir: str | None = opt.OUTPUT_DIR,
    device: str | None = opt.DEVICE,
    processes: str | None = typer.Option(
        None, "--processes", help="Processes that share every batch; auto is one for two cores.", metavar="N"
    ),
    seed: int | None = opt.SEED,
    seeds: int | None = typer.Option(
        None, "--seeds", min=1, max=100, help="Train with so many seeds; report mean and deviation.", metavar="N"
    ),
    ensemble: bool = typer.Option(False, "--ensemble", help="With --seeds: also keep the mean of all as a run."),
    resume: bool = opt.RESUME,
    overwrite: bool = opt.OVERWRITE,
    dry_run: bool = opt.DRY_RUN,
) -> None:
    """Train, evaluate on test once, and write a run directory."""
    _check_exclusive(resume, overwrite)
    if ensemble and seeds is None:
        raise ConfigError("--ensemble needs --seeds N: it joins the runs of several seeds")
    number = int(processes) if processes is not None and processes.isdecimal() else processes
    config, overrides = _started_from(start, config, overrides or [])
    resolved = opt.resolve(config, overrides, output_dir=output_dir, device=device, seed=seed, processes=number)
    if dry_run:
        from bilstm_cls.inspection import plan

        out.show(plan(resolved))
        return
    from bilstm_cls.evaluation.report import score_table
    from bilstm_cls.training.distributed import SeveralProcessesError, launch, leave_group, rank_by_torchrun
    from bilstm_cls.training.run import train as run_training
    from bilstm_cls.training.seeds import seeds_table, train_seeds

    is_first = rank_by_torchrun() == 0  # of several processes: the one that writes and prints
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "can_launch": True}
    try:
        with contextlib.closing(ProgressBar(is_shown=not out.is_quiet and is_first)) as bar:
            if seeds is not None:
                runs = train_seeds(resolved, seeds, keep_ensemble=ensemble, on_report=bar.update, **options)
            else:
                result = run_training(resolved, on_report=bar.update, **options)
    except SeveralProcessesError as error:
        launch(sys.argv[1:], error.size)
        return
    if not is_first:
        leave_group()
    if seeds is not None:
        out.show(runs.summary(), seeds_table(runs))
    else:
        out.show(result.metrics, score_table(result.metrics, result.run.path))
        if not out.is_quiet:
            opt.suggest_predict(result.run.path)


@opt.with_output
def pretrain(
    out: opt.Output,
    config: Path | None = opt.CONFIG,
    overrides: list[str] | None = opt.OVERRIDES,
    output: Path | None = typer.Option(
        None, "--output", "-o", metavar="PATH",
        help="The encoder's folder [default: model.init_from, or RUNS/NAME-encoder].",
    ),
    device: str | None = opt.DEVICE,
    seed: int | None = opt.SEED,
    resume: bool = opt.RESUME,
    overwrite: bool = opt.OVERWRITE,
) -> None:  # fmt: skip
    """Make an encoder from texts alone."""
    _check_exclusive(resume, overwrite)
    resolved = opt.resolve(config, overrides, device=device, seed=seed)
    from bilstm_cls.data.prepare import start_folder
    from bilstm_cls.training import pretrain as pretraining

    path = output or start_folder(resolved) or Path(resolved.output_dir) / f"{resolved.name}-encoder"
    with contextlib.closing(ProgressBar(is_shown=not out.is_quiet)) as bar:
        metrics = pretraining.pretrain(resolved, path, resume=resume, overwrite=overwrite, on_report=bar.update)
    out.show(metrics, pretraining.encoder_line(metrics, path))


@opt.with_output
def baseline(
    out: opt.Output,
    config: Path | None = opt.CONFIG,
    overrides: list[str] | None = opt.OVERRIDES,
    output_dir: str | None = opt.OUTPUT_DIR,
    only: list[str] | None = typer.Option(None, "--only", help="tfidf, nbsvm or fasttext; repeatable.", metavar="NAME"),
    overwrite: bool = opt.OVERWRITE,
) -> None:
    """Evaluate linear models of n-grams on exactly the same splits."""
    resolved = opt.resolve(config, overrides, output_dir=output_dir)
    from bilstm_cls.evaluation.evaluate import write_baselines
    from bilstm_cls.evaluation.report import baselines_table

    metrics = write_baselines(resolved, only, overwrite=overwrite)
    out.show(metrics, baselines_table(metrics))


def parse_duration(text: str) -> float:
    """Returns seconds; raises a `ConfigError` that says how they are written."""
    from pydantic import TypeAdapter

    days, mark, rest = text.upper().rpartition("D")
    try:
        return TypeAdapter(timedelta).validate_python(f"P{days}{mark}{'T' * bool(rest)}{rest}").total_seconds()
    except ValueError:
        raise ConfigError(f"--time {text}: must look like 90s, 20m, 1h30m or 2d") from None


def parse_size(text: str) -> int:
    """Returns bytes; raises a `ValueError` as pydantic does."""
    from pydantic import ByteSize, TypeAdapter

    return TypeAdapter(ByteSize).validate_python(text)


@opt.with_output
def tune(
    out: opt.Output,
    config: Path | None = opt.CONFIG,
    overrides: list[str] | None = opt.OVERRIDES,
    searches: list[str] | None = typer.Option(
        None, "--search", metavar="KEY.PATH=VALUES", help="KEY=LOW..HIGH[:log], KEY=A|B|C or default; repeatable.",
    ),
    trials: int | None = typer.Option(None, "--trials", min=1, help="[default: 20 without --time]", metavar="N"),
    duration: float | None = typer.Option(
        None, "--time", help="How long to search, such as 20m, 1h30m or 2d.", metavar="DURATION", parser=parse_duration
    ),
    max_size: int | None = typer.Option(
        None, "--max-size", help="The model is to take no more, such as 5MB.", metavar="SIZE", parser=parse_size
    ),
    output_dir: str | None = opt.OUTPUT_DIR,
    device: str | None = opt.DEVICE,
    seed: int | None = opt.SEED,
    resume: bool = opt.RESUME,
    overwrite: bool = opt.OVERWRITE,
    dry_run: bool = opt.DRY_RUN,
) -> None:  # fmt: skip
    """Search for a better config on valid, and write it."""
    _check_exclusive(resume, overwrite)
    from bilstm_cls.training.tune import DEFAULT_TRIALS, Budget, parse_space
    from bilstm_cls.training.tune import tune as run_study

    resolved = opt.resolve(config, overrides, output_dir=output_dir, device=device, seed=seed)
    budget = Budget(DEFAULT_TRIALS if trials is None and duration is None else trials, duration, max_size)
    space = parse_space(searches or [], resolved)
    if dry_run:
        out.show({"budget": vars(budget), "search": {key: words for key, (words, _) in space.items()}})
        return
    result = run_study(resolved, space, budget, resume=resume, overwrite=overwrite)
    out.show(result.as_object(), result.as_table())
    if result.stopped is not None:
        raise result.stopped


def _started_from(run: Path | None, config: Path | None, overrides: list[str]) -> tuple[Path | None, list[str]]:
    if run is None:
        return config, overrides
    overrides = [f"model.init_from={run}", "pretrain.enabled=false", *overrides]
    if config is not None:
        return config, overrides
    return run / "config.yaml", [f"name={run.resolve().name}-continued", *overrides]


def _check_exclusive(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")


class ProgressBar:
    """Shows step, epoch, loss and time left on stderr, where that is a terminal."""

    def __init__(self, *, is_shown: bool) -> None:
        self._hidden = None if is_shown else True  # None: where stderr is no terminal
        self._bar: tqdm[Any] | None = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, report: "StepReport | EvaluationReport") -> None:
        """Takes the next report of the loop. A step that does not come after the one before starts another bar."""
        from tqdm import tqdm

        from bilstm_cls.training.loop import EvaluationReport

        if isinstance(report, EvaluationReport):
            return
        if self._bar is None or self._bar.total != report.total_steps or report.step <= self._bar.n:
            self.close()  # pretraining or the run of one seed is over
            total, done = report.total_steps, report.step - 1
            self._bar = tqdm(total=total, initial=done, unit="step", leave=False, disable=self._hidden)
        self._bar.set_postfix_str(f"epoch {report.epoch}, loss {report.loss:.3f}", refresh=False)
        self._bar.update()
