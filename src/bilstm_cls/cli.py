"""The command line: each command is a thin skin over one function. Data go to stdout, everything else to stderr.

Heavy modules are imported inside the commands, so that `--help` is instant and `predict` loads only what it needs.
"""

import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilstm_cls.errors import ConfigError, ResourceError, StoppedError, UserError, is_out_of_memory

if TYPE_CHECKING:
    from bilstm_cls.config import Config
    from bilstm_cls.serve.classifier import Classifier, Prediction

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, judge and ship exact bidirectional-LSTM text classifiers from one YAML file.",
)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show, check or describe configs.")
app.add_typer(config_app, name="config")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The YAML config; all keys have defaults.", metavar="FILE"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a config key; repeatable, the last wins.", metavar="KEY.PATH=VALUE"),
]
OutputDir = Annotated[
    str | None,
    typer.Option("--output-dir", "-o", help="Where run directories are made. [config: output_dir]", metavar="DIR"),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda or cuda:N; auto is CUDA where it is there.", metavar="DEVICE"),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, dropout and order.")]
RunDir = Annotated[
    Path | None,
    typer.Option("--run", help="A run directory; the newest one under runs/ if left out.", metavar="DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
TextColumns = Annotated[
    list[str] | None,
    typer.Option("--text-column", help="Column with the text; repeatable. [run: data.text_columns]", metavar="NAME"),
]


def main() -> None:
    """Runs the command line and turns every failure into one message and an exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a command in a shell's background
        signal.signal(signal.SIGINT, _stop)
    # A text may hold what UTF-8 or the terminal cannot show. Data are UTF-8 whatever the locale: programs read them.
    for stream, encoding in ((sys.stdout, "utf-8"), (sys.stderr, None)):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        try:
            app()
        finally:
            _flush_stdout()
    except UserError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(1)  # whoever read the output, such as head, has seen enough
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _fail_with_traceback(error)
        _fail(f"{error.filename or 'output'}: no room left to write it ({error.strerror})", ResourceError.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            _fail_with_traceback(error)
        _fail(f"out of memory ({error}); lower train.batch_size or text.max_length", ResourceError.exit_code)
    except Exception as error:
        _fail_with_traceback(error)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(version_of("bilstm-cls"))
        raise typer.Exit


@app.command()
def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    output_dir: OutputDir = None,
    device: Device = None,
    processes: Annotated[
        str | None,
        typer.Option("--processes", help="Processes that share every batch; auto is one for each core.", metavar="N"),
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
    """Train, judge on the test split once, and write a run directory."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if ensemble and seeds is None:
        raise ConfigError("--ensemble needs --seeds N: it joins the runs of several seeds")
    resolved = _load(
        config,
        overrides,
        output_dir=output_dir,
        device=device,
        seed=seed,
        processes=int(processes) if processes is not None and processes.isdecimal() else processes,
    )
    _start_logging(quiet=quiet, verbose=verbose)
    if dry_run:
        from bilstm_cls.inspection import plan

        _show(plan(resolved), as_json=as_json)
        return
    from bilstm_cls.progress import ProgressBar
    from bilstm_cls.training.run import train as run_training
    from bilstm_cls.training.seeds import seeds_table, train_seeds
    from bilstm_cls.training.summary import score_table

    if seeds is not None:
        with ProgressBar(is_shown=sys.stderr.isatty() and not quiet) as bar:
            runs = train_seeds(
                resolved, seeds, keep_ensemble=ensemble, resume=resume, overwrite=overwrite, on_report=bar.update
            )
        print(json.dumps(runs.summary(), ensure_ascii=False) if as_json else seeds_table(runs))
        return
    with ProgressBar(is_shown=sys.stderr.isatty() and not quiet) as bar:
        result = run_training(resolved, resume=resume, overwrite=overwrite, on_report=bar.update)
    if not result.metrics:
        return  # one of several processes, and not the one that writes
    print(json.dumps(result.metrics, ensure_ascii=False) if as_json else score_table(result.metrics, result.run.path))


@app.command("eval")
def evaluate(
    run: RunDir = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A labelled file or folder instead of the test split.", metavar="FILE"),
    ] = None,
    text_columns: TextColumns = None,
    label_column: Annotated[
        str | None,
        typer.Option("--label-column", help="Column with the label. [run: data.label_column]", metavar="NAME"),
    ] = None,
    data_format: Annotated[
        str, typer.Option("--format", help="auto, csv, tsv, jsonl, folder, fasttext, label-text, text-label, parquet.")
    ] = "auto",
    split: Annotated[
        str | None,
        typer.Option("--split", help="test, valid or train. [default: test]", metavar="NAME"),
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option("--fail-under", min=0, max=1, help="Exit with 1 if the accuracy is lower.", metavar="ACCURACY"),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge a run on its test split, or on another labelled file."""
    if data is not None and split is not None:
        raise ConfigError("--split and --data exclude each other: a file is judged as a whole")
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.evaluation.judge import evaluate as judge
    from bilstm_cls.evaluation.judge import metrics_table

    name, metrics = judge(
        _run_path(run),
        data=data,
        split=split or "test",
        text_columns=text_columns,
        label_column=label_column,
        data_format=data_format,
        device=_device(device),
    )
    print(json.dumps(metrics.as_object(name), ensure_ascii=False) if as_json else metrics_table(metrics, name))
    if fail_under is not None and metrics.accuracy < fail_under:
        print(f"accuracy {metrics.accuracy:.4f} is under {fail_under}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def predict(
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to classify; - reads stdin, one text a line.", metavar="TEXT..."),
    ] = None,
    run: RunDir = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", help="Classify a csv, tsv, jsonl, parquet or txt file.", metavar="FILE"),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--output", help="Write a csv, tsv or jsonl file instead of stdout.", metavar="FILE"),
    ] = None,
    text_columns: TextColumns = None,
    explains: Annotated[
        bool, typer.Option("--explain", help="Colour each word by how much it moved the answer.")
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option("--html", help="Write what --explain shows as a page, too.", metavar="FILE"),
    ] = None,
    gates: Annotated[
        Path | None,
        typer.Option("--gates", help="Draw the gates at work on one text, as .png or .html.", metavar="FILE"),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Classify texts: one result per text, in order."""
    if not texts and source is None:
        raise ConfigError(
            'nothing to classify: give texts, - for stdin, or --input FILE, as in: predict "A fine film."'
        )
    if texts and source is not None:
        raise ConfigError("--input and texts exclude each other; give one of them")
    if target is not None and source is None:
        raise ConfigError("--output goes with --input; otherwise redirect stdout")
    if source is not None and (explains or page is not None or gates is not None):
        raise ConfigError("--explain, --html and --gates go with texts or -, not with --input")
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.serve.classifier import Classifier
    from bilstm_cls.serve.files import predict_file

    classifier = Classifier.load(_run_path(run), device=_device(device))
    if source is not None:
        predict_file(classifier, source, target, text_columns=text_columns, as_json=as_json)
        return
    given = _given_texts(texts or [])
    if gates is not None:
        from bilstm_cls.serve.gates import write_gates

        drawn = list(given)
        if len(drawn) != 1:
            raise ConfigError(f"--gates: draws one text, not {len(drawn)}")
        write_gates(classifier.loaded, drawn[0], gates)
        given = iter(drawn)
    if explains or page is not None:
        _print_explained(classifier, given, page, as_json=as_json)
        return
    for prediction in classifier.stream(given):
        print(json.dumps(prediction.as_dict(), ensure_ascii=False) if as_json else _line_of(prediction))


@app.command()
def export(
    run: RunDir = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The bundle's folder. [default: RUN-onnx]", metavar="BUNDLE"),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Keep weights in 8 bits, and say what that changes.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a verified ONNX bundle that answers without PyTorch."""
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.serve.export import export as write_bundle
    from bilstm_cls.serve.export import export_table

    bundle = write_bundle(_run_path(run), output, int8=int8, overwrite=overwrite)
    print(json.dumps(bundle.as_object(), ensure_ascii=False) if as_json else export_table(bundle))


@app.command()
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
    """Judge TF-IDF and NB-SVM, two linear models, on exactly the same splits."""
    resolved = _load(config, overrides, output_dir=output_dir)
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.training.summary import baselines_table, write_baselines

    metrics = write_baselines(resolved, only, overwrite=overwrite)
    print(json.dumps(metrics, ensure_ascii=False) if as_json else baselines_table(metrics))


@app.command()
def pretrain(
    config: ConfigFile = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The encoder's folder, or the file of vectors.", metavar="PATH"),
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
    """Make an encoder, or word vectors, from texts without their labels."""
    if resume and (overwrite or vectors):
        raise ConfigError(f"--resume and {'--overwrite' if overwrite else '--vectors'} exclude each other")
    resolved = _load(config, overrides, device=device, seed=seed)
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.progress import ProgressBar
    from bilstm_cls.training import pretrain as pretraining

    path = output or Path(resolved.output_dir) / f"{resolved.name}-{'vectors.txt' if vectors else 'encoder'}"
    if vectors:
        number = pretraining.write_vectors(resolved, path, overwrite=overwrite)
        found = {"vectors": number, "dim": resolved.embedding.dim, "path": str(path)}
        print(json.dumps(found) if as_json else f"{number:,} vectors; use them with --set embedding.init={path}")
        return
    with ProgressBar(is_shown=sys.stderr.isatty() and not quiet) as bar:
        metrics = pretraining.pretrain(resolved, path, resume=resume, overwrite=overwrite, on_report=bar.update)
    print(json.dumps(metrics, ensure_ascii=False) if as_json else pretraining.encoder_line(metrics, path))


@app.command()
def inspect(
    config: ConfigFile = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A labelled file or folder, read with guessed columns.", metavar="FILE"),
    ] = None,
    run: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what is in a data set or in a run."""
    if sum(given is not None for given in (config, data, run)) > 1:
        raise ConfigError("give one of --config, --data and --run")
    if run is not None and overrides:
        raise ConfigError("--run and --set exclude each other: a run is shown as it is")
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.inspection import inspect_data, inspect_file, inspect_run

    if data is not None:
        _show(inspect_file(data, overrides or []), as_json=as_json)
    elif config is not None or overrides:
        _show(inspect_data(_load(config, overrides)), as_json=as_json)
    else:
        _show(inspect_run(_run_path(run)), as_json=as_json)


@app.command()
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
    _start_logging(quiet=False, verbose=False)
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
    print(f"wrote {output}; next: bilstm-cls train -c {output}", file=sys.stderr)


@config_app.command("show")
def config_show(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved config, defaults included."""
    from bilstm_cls.config import dump_config

    resolved = _load(config, overrides)
    print(resolved.model_dump_json() if as_json else dump_config(resolved), end="\n" if as_json else "")


@config_app.command("check")
def config_check(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Report all problems of a config at once."""
    resolved = _load(config, overrides)
    print(f"{config or 'defaults'}: sound (run {resolved.name!r})")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the config, for editors."""
    from bilstm_cls.config import config_schema as schema

    print(json.dumps(schema(), indent=2))


@app.command("import-tensorflow")
def import_tensorflow(
    variables: Annotated[Path, typer.Argument(help="All variables by name, as an .npz.", metavar="VARIABLES.npz")],
    vocab: Annotated[
        Path, typer.Option("--vocab", help="One token a line, line 0 is id 0; or a tokenizer.json.", metavar="FILE")
    ],
    labels: Annotated[Path, typer.Option("--labels", help="One label a line, by id.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory to make.", metavar="RUN")],
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=1, help="Tokens that texts were padded to; reduce_mean needs it.", metavar="N"
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="How texts are split. [default: whitespace]", metavar="NAME"),
    ] = None,
    lowercase: Annotated[
        bool | None,
        typer.Option("--lowercase/--keep-case", help="Texts' case. [default: lower if the vocabulary is]"),
    ] = None,
    truncate: Annotated[
        str, typer.Option("--truncate", help="What is kept of longer texts: head, tail, both.")
    ] = "head",
    pooling: Annotated[str, typer.Option("--pooling", help="reduce_mean, mean or last.")] = "reduce_mean",
    forget_bias: Annotated[float, typer.Option("--forget-bias", help="What the cells were built with.")] = 1.0,
    scope: Annotated[
        str | None,
        typer.Option("--scope", help="Take only variables under this prefix.", metavar="PREFIX"),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="Say which variable is what; repeatable.", metavar="ROLE=VARIABLE"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a run of a classifier that was trained in TensorFlow 1."""
    for name in names or []:
        if "=" not in name:
            raise ConfigError(f"--name: {name!r} must look like embedding=model/embedding")
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.training.import_tensorflow import import_tensorflow as make_run

    run = make_run(
        variables,
        output,
        vocab=vocab,
        labels=labels,
        max_length=max_length,
        tokenizer=tokenizer,
        lowercase=lowercase,
        truncate=truncate,
        pooling=pooling,
        forget_bias=forget_bias,
        scope=scope,
        names={role: variable for role, _, variable in (name.partition("=") for name in names or [])},
        overwrite=overwrite,
    )
    print(f'next: bilstm-cls predict --run {run.path} "a text of yours"', file=sys.stderr)


@app.command()
def bench(
    config: ConfigFile = None,
    overrides: Overrides = None,
    device: Device = None,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Batches timed in each repeat.")] = 8,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Interleaved rounds.")] = 3,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time our training step beside nn.LSTM with pack_padded_sequence on this machine.

    With --config on that config's own texts, else on random texts as long as film reviews.
    """
    resolved = _load(config, overrides, device=device)
    _start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.bench import bench_table, benchmark_config

    result = benchmark_config(resolved, use_texts=config is not None, num_batches=batches, repeats=repeats)
    print(json.dumps(result) if as_json else bench_table(result))


@app.command()
def doctor(
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Verify this run directory as well.", metavar="DIR"),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show versions and devices, and check the promises about padding here and now."""
    _start_logging(quiet=False, verbose=False)
    from bilstm_cls.doctor import examine

    findings = examine(_device(device), run)
    _show(findings, as_json=as_json)
    if not findings["is_sound"]:
        print("a check failed: results on this machine depend on padding or batch size", file=sys.stderr)
        raise typer.Exit(1)


def _load(path: Path | None, overrides: Iterable[str] | None, **options: object) -> "Config":
    """Resolves defaults, file and overrides; an option given by its own name wins over all."""
    from bilstm_cls.config import load_config

    keys = {"output_dir": "output_dir", "device": "train.device", "seed": "seed", "processes": "train.processes"}
    given = [f"{keys[name]}={json.dumps(value)}" for name, value in options.items() if value is not None]
    return load_config(path, [*(overrides or []), *given])


def _device(name: str | None) -> str:
    """Checks a device by the config's rules, before anything is loaded."""
    return _load(None, None, device=name).train.device


def _run_path(run: Path | None) -> Path:
    if run is not None:
        return run
    from bilstm_cls.run_directory import newest_run

    path = newest_run(Path("runs")).path
    print(f"using {path}, the newest run", file=sys.stderr)
    return path


def _given_texts(arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            yield from _lines_of_stdin()
        else:
            yield argument


def _lines_of_stdin() -> Iterator[str]:
    """Yields one text a line, as a txt file is read: blank lines are texts, a byte order mark is none."""
    if sys.stdin is None:
        raise ConfigError("-: there is no stdin to read; give texts or --input FILE")
    for number, line in enumerate(sys.stdin.buffer):
        text = line.decode("utf-8", errors="replace").removesuffix("\n").removesuffix("\r")
        yield text.removeprefix("\ufeff") if number == 0 else text


def _print_explained(classifier: "Classifier", texts: Iterable[str], page: Path | None, *, as_json: bool) -> None:
    from bilstm_cls.serve.explain_view import explanation_lines, has_colours, write_explanations

    is_coloured = has_colours(sys.stdout is not None and sys.stdout.isatty(), os.environ)
    explained = []
    for text in texts:
        prediction, explanation = classifier.predict([text])[0], classifier.explain(text)
        if as_json:
            print(json.dumps({**prediction.as_dict(), "explanation": explanation.as_dict()}, ensure_ascii=False))
        else:
            print("\n".join(explanation_lines(prediction, explanation, is_coloured=is_coloured)))
        if page is not None:
            explained.append((prediction, explanation))
    if page is not None:
        write_explanations(page, f"{classifier.config.name}: what moved the answers", explained)


def _line_of(prediction: "Prediction") -> str:
    return f"{_printable(prediction.label)}\t{prediction.probability:.4f}\t{_printable(prediction.text)}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show(findings: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(findings, ensure_ascii=False))
        return
    from bilstm_cls.inspection import as_lines

    print("\n".join(as_lines(findings)))


def _start_logging(*, quiet: bool, verbose: bool) -> None:
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    handler.addFilter(lambda record: record.levelno < logging.ERROR)  # an error is raised as well, and told by `main`
    package = logging.getLogger("bilstm_cls")
    package.handlers = [handler]
    package.setLevel(logging.DEBUG)
    package.propagate = False
    handler.setLevel(level)


class _Formatter(logging.Formatter):
    """Plain messages, with the level in front of warnings only."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


def _stop(number: int, _: FrameType | None) -> None:
    raise StoppedError("stopped", signal_number=number)


def _flush_stdout() -> None:
    """Writes out what was printed. What cannot be written is dropped, or Python would try it again when it exits."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _fail_with_traceback(error: BaseException) -> None:
    traceback.print_exception(error)
    _fail(f"this is a mistake in bilstm-cls, please report it ({type(error).__name__}: {error})", 1)
