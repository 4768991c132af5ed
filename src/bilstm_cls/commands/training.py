"""Commands that make a model, and what it has to beat."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

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
    tell_to_predict,
)
from bilstm_cls.errors import ConfigError


def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    output_dir: OutputDir = None,
    device: Device = None,
    processes: Annotated[
        str | None,
        typer.Option("--processes", help="Processes that share every batch; auto is one for two cores.", metavar="N"),
    ] = None,
    seed: Seed = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", min=1, max=100, help="Train with so many seeds; report mean and deviation.", metavar="N"
        ),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="With --seeds: also keep a run that answers with the mean of all.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier run of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the data, say what would be done.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train, judge on test once, and write a run directory."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if ensemble and seeds is None:
        raise ConfigError("--ensemble needs --seeds N: it joins the runs of several seeds")
    resolved = resolve(
        config,
        overrides,
        output_dir=output_dir,
        device=device,
        seed=seed,
        processes=int(processes) if processes is not None and processes.isdecimal() else processes,
    )
    start_logging(quiet=quiet, verbose=verbose)
    if dry_run:
        from bilstm_cls.inspection import plan

        show(plan(resolved), as_json=as_json)
        return
    from bilstm_cls.progress import ProgressBar
    from bilstm_cls.training.distributed import SeveralProcessesError, launch, rank_by_torchrun
    from bilstm_cls.training.run import train as run_training
    from bilstm_cls.training.seeds import seeds_table, train_seeds
    from bilstm_cls.training.summary import score_table

    is_first = rank_by_torchrun() == 0  # of several processes: the one that writes and prints
    try:
        with ProgressBar(is_shown=sys.stderr.isatty() and not quiet and is_first) as bar:
            if seeds is None:
                result = run_training(
                    resolved, resume=resume, overwrite=overwrite, on_report=bar.update, can_launch=True
                )
            else:
                runs = train_seeds(
                    resolved, seeds, keep_ensemble=ensemble, resume=resume, overwrite=overwrite,
                    on_report=bar.update, can_launch=True,
                )  # fmt: skip
    except SeveralProcessesError as error:
        launch(sys.argv[1:], error.size)
        return
    if not is_first:
        return
    if seeds is not None:
        print(json.dumps(runs.summary(), ensure_ascii=False) if as_json else seeds_table(runs))
        return
    path = result.run.path
    print(json.dumps(result.metrics, ensure_ascii=False) if as_json else score_table(result.metrics, path))
    if not quiet:
        tell_to_predict(path)


def pretrain(
    config: ConfigFile = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The encoder's folder [default: model.init_from, or RUNS/NAME-encoder], or the file of vectors.",
            metavar="PATH",
        ),
    ] = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Write word vectors alone, as a text file.")] = False,
    device: Device = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make an encoder, or word vectors, from texts alone."""
    if resume and (overwrite or vectors):
        raise ConfigError(f"--resume and {'--overwrite' if overwrite else '--vectors'} exclude each other")
    resolved = resolve(config, overrides, device=device, seed=seed)
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.progress import ProgressBar
    from bilstm_cls.training import pretrain as pretraining

    own = Path(resolved.output_dir) / f"{resolved.name}-{'vectors.txt' if vectors else 'encoder'}"
    named = None if vectors or resolved.model.init_from is None else Path(resolved.model.init_from)
    path = output or named or own
    if vectors:
        number = pretraining.write_vectors(resolved, path, overwrite=overwrite)
        found = {"vectors": number, "dim": resolved.embedding.dim, "path": str(path)}
        print(json.dumps(found) if as_json else f"{number:,} vectors; use them with --set embedding.init={path}")
        return
    with ProgressBar(is_shown=sys.stderr.isatty() and not quiet) as bar:
        metrics = pretraining.pretrain(resolved, path, resume=resume, overwrite=overwrite, on_report=bar.update)
    print(json.dumps(metrics, ensure_ascii=False) if as_json else pretraining.encoder_line(metrics, path))


def baseline(
    config: ConfigFile = None,
    overrides: Overrides = None,
    output_dir: OutputDir = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="tfidf or nbsvm; repeatable. Both if left out.", metavar="NAME"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete earlier baselines of that name.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge TF-IDF and NB-SVM on exactly the same splits."""
    resolved = resolve(config, overrides, output_dir=output_dir)
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.training.summary import baselines_table, write_baselines

    metrics = write_baselines(resolved, only, overwrite=overwrite)
    print(json.dumps(metrics, ensure_ascii=False) if as_json else baselines_table(metrics))
