"""Commands that use a trained run."""

import io
import json
import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

from bilstm_cls.commands.options import (
    AsJson,
    Device,
    Quiet,
    RunDir,
    TextColumns,
    Verbose,
    checked_device,
    chosen_run,
    start_logging,
)
from bilstm_cls.errors import ConfigError

if TYPE_CHECKING:
    from bilstm_cls.classifier import Classifier, Prediction

READ_BYTES = 2**20
MAX_LINES = 2048
"""Lines of stdin that are answered together where so many have come."""

ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")
"""Bytes of an argument that are no characters of the locale, as Python hands them over."""


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
        str,
        typer.Option(
            "--format",
            help="auto, csv, tsv, jsonl, folder, fasttext, label-text, text-label, parquet.",
            metavar="FORMAT",
        ),
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
    """Judge a run on its test split, or on another file."""
    if data is not None and split is not None:
        raise ConfigError("--split and --data exclude each other: a file is judged as a whole")
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.evaluation.evaluate import evaluate as evaluate_run
    from bilstm_cls.evaluation.report import metrics_table

    name, metrics = evaluate_run(
        chosen_run(run),
        data=data,
        split=split or "test",
        text_columns=text_columns,
        label_column=label_column,
        data_format=data_format,
        device=checked_device(device),
    )
    print(json.dumps(metrics.as_object(name), ensure_ascii=False) if as_json else metrics_table(metrics, name))
    if fail_under is not None and metrics.accuracy < fail_under:
        print(f"accuracy {metrics.accuracy:.4f} is under {fail_under}", file=sys.stderr)
        raise typer.Exit(1)


def predict(
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to classify; - reads stdin, one text a line.", metavar="TEXT"),
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
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.classifier import Classifier
    from bilstm_cls.serve.predict_file import predict_file

    classifier = Classifier.load(chosen_run(run), device=checked_device(device))
    if source is not None:
        predict_file(classifier, source, target, text_columns=text_columns, as_json=as_json)
        return
    chunks = _given_chunks(texts or [])
    if gates is not None:
        from bilstm_cls.evaluation.gates import write_gates

        drawn = [text for chunk in chunks for text in chunk]
        if len(drawn) != 1:
            raise ConfigError(f"--gates: draws one text, not {len(drawn)}")
        write_gates(classifier.loaded, drawn[0], gates)
        chunks = iter([drawn])
    if explains or page is not None:
        _print_explained(classifier, (text for chunk in chunks for text in chunk), page, as_json=as_json)
        return
    for chunk in chunks:
        for prediction in classifier.stream(chunk):
            print(json.dumps(prediction.as_dict(), ensure_ascii=False) if as_json else _line_of(prediction))
        sys.stdout.flush()  # whoever writes the lines may wait for their answers


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
    """Write a verified ONNX bundle, which needs no PyTorch."""
    start_logging(quiet=quiet, verbose=verbose)
    from bilstm_cls.serve.export import export as write_bundle
    from bilstm_cls.serve.export import export_table

    bundle = write_bundle(chosen_run(run), output, int8=int8, overwrite=overwrite)
    print(json.dumps(bundle.as_object(), ensure_ascii=False) if as_json else export_table(bundle))


def _as_utf_8(escaped: re.Match[str]) -> str:
    """Reads bytes as those of stdin and of files are read."""
    return escaped[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _given_chunks(arguments: list[str]) -> Iterator[list[str]]:
    """Yields the texts in their order, as many at a time as are there."""
    given: list[str] = []
    for argument in arguments:
        if argument == "-":
            yield given
            given = []
            yield from _chunks_of_stdin()
        else:
            given.append(ESCAPED_BYTES.sub(_as_utf_8, argument))
    yield given


def _chunks_of_stdin() -> Iterator[list[str]]:
    """Yields one text a line, as a txt file is read: blank lines are texts, a byte order mark is none.

    The lines that have come are answered together, and nothing waits for those that have not.
    """
    if sys.stdin is None:
        raise ConfigError("-: there is no stdin to read; give texts or --input FILE")
    stream = cast("io.BufferedReader", sys.stdin.buffer)
    lines: list[bytes] = []
    started: list[bytes] = []  # of a line whose end is still to come
    is_first = True
    while read := stream.read1(READ_BYTES):
        if b"\n" in read:
            *ended, rest = b"".join([*started, read]).split(b"\n")
            lines += ended
            started = [rest]
        else:
            started.append(read)
        if lines and (len(lines) >= MAX_LINES or not _has_more(stream)):
            yield _texts_of(lines, is_first=is_first)
            lines, is_first = [], False
    if last := b"".join(started):
        lines.append(last)
    yield _texts_of(lines, is_first=is_first)


def _has_more(stream: IO[bytes]) -> bool:
    try:
        return bool(select.select([stream], [], [], 0)[0])
    except io.UnsupportedOperation:
        return True  # what lies in memory can always be read
    except OSError:
        return False  # Windows cannot tell of a pipe


def _texts_of(lines: list[bytes], *, is_first: bool) -> list[str]:
    texts = [line.decode("utf-8", errors="replace").removesuffix("\r") for line in lines]
    return [texts[0].removeprefix("\ufeff"), *texts[1:]] if is_first and texts else texts


def _print_explained(classifier: "Classifier", texts: Iterable[str], page: Path | None, *, as_json: bool) -> None:
    from bilstm_cls.evaluation.explain import explain
    from bilstm_cls.evaluation.pages import explanation_lines, has_colours, write_explanations

    is_coloured = has_colours(sys.stdout.isatty(), os.environ)
    explained = []
    for text in texts:
        prediction, explanation = classifier.predict([text])[0], explain(classifier.loaded, text)
        if as_json:
            print(json.dumps({**prediction.as_dict(), "explanation": explanation.as_dict()}, ensure_ascii=False))
        else:
            print("\n".join(explanation_lines(prediction, explanation, is_coloured=is_coloured)))
        sys.stdout.flush()
        if page is not None:
            explained.append((prediction, explanation))
    if page is not None:
        write_explanations(page, f"{classifier.config.name}: what moved the answers", explained)


def _line_of(prediction: "Prediction") -> str:
    return f"{_printable(prediction.label)}\t{prediction.probability:.4f}\t{_printable(prediction.text)}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
