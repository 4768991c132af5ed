"""Commands that make a model, and what it has to be better than."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilstm_cls.commands import options as opt
from bilstm_cls.errors import ConfigError

if TYPE_CHECKING:
    from tqdm import tqdm

    from bilstm_cls.training.loop import EvaluationReport, StepReport

Processes = Annotated[
    str | None,
    typer.Option("--processes", help="Processes that share every batch; auto is one for two cores.", metavar="N"),
]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", min=1, max=100, help="Train with so many seeds; report mean and deviation.", metavar="N"),
]
Ensemble = Annotated[
    bool, typer.Option("--ensemble", help="With --seeds: also keep a run that answers with the mean of all.")
]
Encoder = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="The encoder's folder [default: model.init_from, or RUNS/NAME-encoder], or the file of vectors.",
        metavar="PATH",
    ),
]
Vectors = Annotated[bool, typer.Option("--vectors", help="Write word vectors alone, as a text file.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="tfidf, nbsvm or fasttext; repeatable. All if left out.", metavar="NAME"),
]
Searches = Annotated[
    list[str] | None,
    typer.Option(
        "--search",
        help="What to search: KEY.PATH=LOW..HIGH, KEY.PATH=LOW..HIGH:log or KEY.PATH=A|B|C; repeatable. "
        "[default: the word `default`, which may be combined with others]",
        metavar="KEY.PATH=VALUES",
        autocompletion=opt.complete_override,
    ),
]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Trials to train. [default: 20 without --time]", metavar="N")
]
Duration = Annotated[
    str | None, typer.Option("--time", help="How long to search, such as 20m or 1h30m.", metavar="DURATION")
]
MaxSize = Annotated[
    str | None, typer.Option("--max-size", help="The model is to take no more, such as 5MB.", metavar="SIZE")
]


From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Start from a finished run, by its config unless -c gives another one.",
        metavar="RUN",
        autocompletion=opt.complete_run,
    ),
]


def train(
    config: opt.ConfigFile = None,
    start: From = None,
    overrides: opt.Overrides = None,
    output_dir: opt.OutputDir = None,
    device: opt.Device = None,
    processes: Processes = None,
    seed: opt.Seed = None,
    seeds: Seeds = None,
    ensemble: Ensemble = False,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Train, evaluate on test once, and write a run directory."""
    _exclude("--resume", resume, "--overwrite", overwrite)
    if ensemble and seeds is None:
        raise ConfigError("--ensemble needs --seeds N: it joins the runs of several seeds")
    number = int(processes) if processes is not None and processes.isdecimal() else processes
    if start is not None:
        overrides = [f"model.init_from={start}", "pretrain.enabled=false", *(overrides or [])]
        overrides = overrides if config is not None else [f"name={start.resolve().name}-continued", *overrides]
        config = config or start / "config.yaml"
    resolved = opt.resolve(config, overrides, output_dir=output_dir, device=device, seed=seed, processes=number)
    opt.start_logging(quiet=quiet, verbose=verbose)
    if dry_run:
        from bilstm_cls.inspection import plan

        opt.print_findings(plan(resolved), as_json=as_json)
        return
    from bilstm_cls.evaluation.report import score_table
    from bilstm_cls.training.distributed import SeveralProcessesError, launch, leave_group, rank_by_torchrun
    from bilstm_cls.training.run import train as run_training
    from bilstm_cls.training.seeds import seeds_table, train_seeds

    is_first = rank_by_torchrun() == 0  # of several processes: the one that writes and prints
    bar = ProgressBar(is_shown=sys.stderr.isatty() and not quiet and is_first)
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "on_report": bar.update, "can_launch": True}
    try:
        with bar:
            if seeds is not None:
                runs = train_seeds(resolved, seeds, keep_ensemble=ensemble, **options)
            else:
                result = run_training(resolved, **options)
    except SeveralProcessesError as error:
        launch(sys.argv[1:], error.size)
        return
    if not is_first:
        leave_group()
    if seeds is not None:
        opt.print_result(runs.summary(), seeds_table(runs), as_json=as_json)
    else:
        opt.print_result(result.metrics, score_table(result.metrics, result.run.path), as_json=as_json)
        if not quiet:
            opt.suggest_predict(result.run.path)


def pretrain(
    config: opt.ConfigFile = None,
    overrides: opt.Overrides = None,
    output: Encoder = None,
    vectors: Vectors = False,
    device: opt.Device = None,
    seed: opt.Seed = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Make an encoder, or word vectors, from texts alone."""
    _exclude("--resume", resume, "--overwrite", overwrite)
    _exclude("--resume", resume, "--vectors", vectors)
    resolved = opt.resolve(config, overrides, device=device, seed=seed)
    opt.start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.training import pretrain as pretraining

    folder = Path(resolved.output_dir)
    if vectors:
        path = output or folder / f"{resolved.name}-vectors.txt"
        number = pretraining.write_vectors(resolved, path, overwrite=overwrite)
        found = {"vectors": number, "dim": resolved.embedding.width, "path": str(path)}
        opt.print_result(found, f"{number:,} vectors; use them with --set embedding.init={path}", as_json=as_json)
        return
    path = output or Path(resolved.model.init_from or folder / f"{resolved.name}-encoder")
    with ProgressBar(is_shown=sys.stderr.isatty() and not quiet) as bar:
        metrics = pretraining.pretrain(resolved, path, resume=resume, overwrite=overwrite, on_report=bar.update)
    opt.print_result(metrics, pretraining.encoder_line(metrics, path), as_json=as_json)


def baseline(
    config: opt.ConfigFile = None,
    overrides: opt.Overrides = None,
    output_dir: opt.OutputDir = None,
    only: Only = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Evaluate TF-IDF and NB-SVM on exactly the same splits."""
    resolved = opt.resolve(config, overrides, output_dir=output_dir)
    opt.start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.evaluation.evaluate import write_baselines
    from bilstm_cls.evaluation.report import baselines_table

    metrics = write_baselines(resolved, only, overwrite=overwrite)
    opt.print_result(metrics, baselines_table(metrics), as_json=as_json)


def tune(
    config: opt.ConfigFile = None,
    overrides: opt.Overrides = None,
    searches: Searches = None,
    trials: Trials = None,
    duration: Duration = None,
    max_size: MaxSize = None,
    output_dir: opt.OutputDir = None,
    device: opt.Device = None,
    seed: opt.Seed = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Search for a better config on valid, and write it."""
    _exclude("--resume", resume, "--overwrite", overwrite)
    from bilstm_cls.training.search_space import Budget, parse_space

    resolved = opt.resolve(config, overrides, output_dir=output_dir, device=device, seed=seed)
    budget = Budget.parse(trials, duration, max_size)
    space = parse_space(searches or [], resolved, limits_size=budget.max_bytes is not None)
    opt.start_logging(quiet=quiet, verbose=verbose)
    if dry_run:
        found = {"budget": vars(budget), "search": {key: values.words for key, values in space.items()}}
        opt.print_findings(found, as_json=as_json)
        return
    from bilstm_cls.training.tune import tune as run_study

    result = run_study(resolved, space, budget, resume=resume, overwrite=overwrite)
    opt.print_result(result.as_object(), result.as_table(), as_json=as_json)
    if result.stopped is not None:
        raise result.stopped


def _exclude(one: str, is_one: bool, other: str, is_other: bool) -> None:
    if is_one and is_other:
        raise ConfigError(f"{one} and {other} exclude each other")


class ProgressBar:
    """Shows step, epoch, loss, tokens per second and time left on stderr; a context manager.

    Args:
        is_shown: whether anything is shown at all.
    """

    def __init__(self, *, is_shown: bool) -> None:
        self.is_shown = is_shown
        self._bar: tqdm[Any] | None = None
        self._loss = 0.0
        self._tokens = 0
        self._started = 0.0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, report: "StepReport | EvaluationReport") -> None:
        """Takes the next report of the loop. A step that does not come after the one before starts another bar."""
        from tqdm import tqdm

        from bilstm_cls.training.loop import EvaluationReport

        if not self.is_shown or isinstance(report, EvaluationReport):
            return
        if self._bar is not None and (self._bar.total != report.total_steps or report.step <= self._bar.n):
            self._bar.close()  # pretraining or the run of one seed is over
            self._bar, self._tokens = None, 0
        if self._bar is None:
            self._bar = tqdm(total=report.total_steps, initial=report.step - 1, unit="step", leave=False)
            self._loss = report.loss
            self._started = time.monotonic()
        self._loss += 0.05 * (report.loss - self._loss)
        self._tokens += report.num_tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_description(f"epoch {report.epoch}", refresh=False)
        self._bar.set_postfix_str(f"loss {self._loss:.3f}, {rate / 1000:.1f} ktok/s", refresh=False)
        self._bar.update()
