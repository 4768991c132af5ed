"""Commands that use a trained run: to evaluate, to classify, to hand on."""

import itertools
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from bilstm_cls.commands import options as opt
from bilstm_cls.errors import CheckFailedError, ConfigError, printable

if TYPE_CHECKING:
    from bilstm_cls.classifier import Classifier
    from bilstm_cls.serve.predict_file import PredictOptions

PRECISION: Any = typer.Option(
    "fp32", "--precision", help="fp32, or bf16 where the processor has it: faster, and digits change.", metavar="NAME"
)


@opt.with_output
def evaluate(
    out: opt.Output,
    run: Path | None = opt.RUN,
    runs: Path = opt.RUNS,
    data: Path | None = typer.Option(None, "--data", help="A labelled file or folder instead.", metavar="FILE"),
    text_columns: list[str] | None = opt.TEXT_COLUMNS,
    label_column: str | None = typer.Option(None, "--label-column", help="Column with the label.", metavar="NAME"),
    data_format: str = typer.Option("auto", "--format", help="As data.format of a config.", metavar="FORMAT"),
    bad_rows: Literal["error", "skip"] | None = typer.Option(
        None, "--bad-rows", help="Stop at a row of --data that cannot be read, or leave it out. [run: data.bad_rows]"
    ),
    split: str | None = typer.Option(None, "--split", help="test, valid or train. [default: test]", metavar="NAME"),
    fail_under: float | None = typer.Option(
        None, "--fail-under", min=0, max=1, help="Exit with 7 if the accuracy is lower.", metavar="ACCURACY"
    ),
    device: str | None = opt.DEVICE,
) -> None:  # fmt: skip
    """Evaluate a run on its test split, or on another file."""
    if data is not None and split is not None:
        raise ConfigError("--split and --data exclude each other: a file is evaluated as a whole")
    from bilstm_cls.evaluation.evaluate import evaluate as evaluate_run
    from bilstm_cls.evaluation.report import metrics_table

    name, metrics = evaluate_run(
        opt.chosen_run(run, runs), data=data, split=split or "test", text_columns=text_columns,
        label_column=label_column, data_format=data_format, bad_rows=bad_rows, device=opt.checked_device(device),
    )  # fmt: skip
    out.show(metrics.as_object(name), metrics_table(metrics, name))
    if fail_under is not None and (score := getattr(metrics, metrics.main)) < fail_under:
        raise CheckFailedError(f"--fail-under {fail_under}: the {metrics.main} is {score:.4f}")


@opt.with_output
def predict(
    out: opt.Output,
    texts: list[str] | None = typer.Argument(None, help="Texts; - reads stdin, one a line.", metavar="TEXT"),
    run: Path | None = opt.RUN,
    runs: Path = opt.RUNS,
    source: Path | None = typer.Option(None, "--input", help="A csv, tsv, jsonl, parquet or txt file.", metavar="FILE"),
    target: Path | None = typer.Option(
        None, "--output", help="Write a csv, tsv or jsonl file, under torchrun a folder of them.", metavar="FILE"
    ),
    text_columns: list[str] | None = opt.TEXT_COLUMNS,
    bad_rows: Literal["error", "skip", "empty"] | None = typer.Option(
        None, "--bad-rows", help="Stop at a row that cannot be read, drop it, or keep its place. [run: data.bad_rows]"
    ),
    top_k: int | None = typer.Option(None, "--top-k", min=1, help="Show the K most probable labels only.", metavar="K"),
    min_probability: float | None = typer.Option(
        None, "--min-probability", min=0, max=1, help="Answer null below it. [run: from train.reject]", metavar="P"
    ),
    explains: bool = typer.Option(False, "--explain", help="Colour words by what they change in the prediction."),
    page: Path | None = typer.Option(None, "--html", help="Also write what --explain shows as a page.", metavar="FILE"),
    gates: Path | None = typer.Option(None, "--gates", help="Draw the gates that read a text (.png).", metavar="FILE"),
    device: str | None = opt.DEVICE,
    precision: str = PRECISION,
) -> None:  # fmt: skip
    """Classify texts: one result per text, in order."""
    explains = explains or page is not None
    _check_combination(texts, source, target, bad_rows, explains=explains or gates is not None)
    from bilstm_cls.classifier import Classifier
    from bilstm_cls.runtime import given_chunks
    from bilstm_cls.training.distributed import device_by_torchrun

    name = device_by_torchrun(opt.checked_device(device))
    classifier = Classifier.load(opt.chosen_run(run, runs), device=name, precision=precision)
    if source is not None:
        from bilstm_cls.serve.predict_file import PredictOptions

        options = PredictOptions(text_columns, bad_rows, top_k, min_probability)
        _predict_file(classifier, source, target, options, as_json=out.as_json)
        return
    chunks: Iterable[list[str]] = given_chunks(texts or [])
    if gates is not None:
        from bilstm_cls.evaluation.explain import write_gates

        chunks = [texts := list(itertools.chain.from_iterable(chunks))]
        if len(texts) != 1:
            raise ConfigError(f"--gates: draws one text, not {len(texts)}")
        write_gates(classifier.loaded, texts[0], gates)
    if explains:
        _print_explained(classifier, itertools.chain.from_iterable(chunks), page, out)
        return
    limit = classifier.task.min_probability if min_probability is None else min_probability
    for chunk in chunks:
        for prediction in classifier.stream(chunk):
            fields = prediction.as_dict(top_k=top_k, min_probability=limit)
            out.show(fields, _line_of(fields))
        sys.stdout.flush()  # whoever writes the lines may wait for their answers


def _predict_file(
    classifier: "Classifier", source: Path, target: Path | None, options: "PredictOptions", *, as_json: bool
) -> None:
    from bilstm_cls.serve.predict_file import predict_file, predict_part
    from bilstm_cls.training.distributed import rank_by_torchrun, size_by_torchrun

    if (size := size_by_torchrun()) == 1:
        predict_file(classifier, source, target, options, as_json=as_json)
    elif target is None or target.suffix:
        raise ConfigError("--output: must be a folder under torchrun, where every process writes a file of its own")
    else:
        predict_part(classifier, source, target, options, rank=rank_by_torchrun(), size=size)


def _check_combination(
    texts: list[str] | None, source: Path | None, target: Path | None, bad_rows: str | None, *, explains: bool
) -> None:
    if bool(texts) == (source is not None):
        raise ConfigError('give either texts, as in: predict "A fine film.", with - for stdin, or --input FILE')
    if source is None and (target is not None or bad_rows is not None):
        raise ConfigError("--output and --bad-rows go with --input")
    if source is not None and explains:
        raise ConfigError("--explain, --html and --gates go with texts or -, not with --input")


def _print_explained(classifier: "Classifier", texts: Iterable[str], page: Path | None, out: opt.Output) -> None:
    from bilstm_cls.evaluation.explain import explain_prediction, explanation_object
    from bilstm_cls.evaluation.report import explanation_lines, write_explanations

    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    explained = []
    for text in texts:
        (prediction,) = classifier.predict([text])
        found = explain_prediction(classifier.loaded, prediction)
        lines = (explanation_lines(prediction, explanation, is_coloured=is_coloured) for explanation in found)
        words = "\n".join(itertools.chain.from_iterable(lines))
        out.show({**prediction.as_dict(), "explanation": explanation_object(prediction, found)}, words)
        sys.stdout.flush()
        if page is not None:
            explained += [(prediction, explanation) for explanation in found]
    if page is not None:
        write_explanations(page, f"{classifier.config.name}: what changes the predictions", explained)


def _line_of(fields: dict[str, Any]) -> str:
    if "labels" in fields:
        label = ",".join(fields["labels"])
        numbers = ",".join(f"{fields['probabilities'].get(name, 0.0):.4f}" for name in fields["labels"])
    else:
        label, numbers = fields["label"] or "null", f"{fields['probability']:.4f}"
    return f"{printable(label)}\t{numbers}\t{printable(fields['text'])}"


@opt.with_output
def export(
    out: opt.Output,
    run: Path | None = opt.RUN,
    runs: Path = opt.RUNS,
    output: Path | None = typer.Option(None, "--output", "-o", help="Folder. [default: RUN-onnx]", metavar="BUNDLE"),
    overwrite: bool = opt.OVERWRITE,
) -> None:
    """Write a verified ONNX bundle, which needs no PyTorch."""
    _require("export", "onnx", "onnx", "onnxruntime")
    from bilstm_cls.serve import export as exporting

    facts = exporting.export(opt.chosen_run(run, runs), output, overwrite=overwrite)
    out.show(facts, exporting.export_table(facts))


def serve(
    run: Path | None = opt.RUN,
    runs: Path = opt.RUNS,
    host: str = typer.Option("127.0.0.1", "--host", help="Address; other machines reach another one.", metavar="HOST"),
    port: int = typer.Option(8000, "--port", min=0, max=65535, help="0 for any that is free.", metavar="PORT"),
    device: str | None = opt.DEVICE,
    precision: str = PRECISION,
    quiet: bool = opt.QUIET,
    verbose: bool = opt.VERBOSE,
) -> None:
    """Answer over HTTP: /predict, /health, /metrics, a page."""
    opt.start_logging(quiet=quiet, verbose=verbose)
    _require("serve", "serve", "fastapi", "prometheus_client", "uvicorn")
    from bilstm_cls.serve import api

    chosen, name = opt.chosen_run(run, runs), opt.checked_device(device)
    api.serve(chosen, host=host, port=port, device=name, precision=precision)


def _require(command: str, extra: str, *modules: str) -> None:
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ConfigError(f"{command} needs {', '.join(missing)}; run: pip install 'bilstm-cls[{extra}]'")


REPOSITORY: Any = typer.Argument(..., help="user/name on the Hub, or user/name@BRANCH.", metavar="REPOSITORY")


@opt.with_output
def push(
    out: opt.Output,
    repository: str = REPOSITORY,
    run: Path | None = opt.RUN,
    runs: Path = opt.RUNS,
    private: bool = typer.Option(False, "--private", help="Make a new repository that only you may read."),
    with_texts: bool = typer.Option(False, "--with-texts", help="Also upload report and predictions, with texts."),
) -> None:
    """Upload a run and its card to the Hugging Face Hub."""
    from bilstm_cls import hub

    address = hub.push(opt.chosen_run(run, runs), repository, is_private=private, with_texts=with_texts)
    out.show({"address": address}, f'{address}\nnext: bilstm-cls pull {address}, or Classifier.load("{address}")')


@opt.with_output
def pull(
    out: opt.Output,
    repository: str = REPOSITORY,
    output: Path | None = typer.Option(None, "--output", "-o", help="The run. [default: runs/NAME]", metavar="RUN"),
    overwrite: bool = opt.OVERWRITE,
) -> None:
    """Fetch a run from the Hugging Face Hub, and verify it."""
    from bilstm_cls import hub

    run = hub.pull(repository, output, overwrite=overwrite)
    out.show({"run": str(run)}, run)
    opt.suggest_predict(run)
