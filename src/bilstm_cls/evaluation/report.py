"""What people read of scores and predictions: tables for a terminal, and pages that load nothing.

A run has a report with pictures and a model card; explanations are texts whose words are coloured.
"""

import base64
import functools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilstm_cls.classifier import LoadedModel
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.torchtext import PREFIX
from bilstm_cls.data.types import named, spoken
from bilstm_cls.errors import printable
from bilstm_cls.evaluation import plots
from bilstm_cls.evaluation.baselines import BASELINES
from bilstm_cls.evaluation.explain import Explanation, explain
from bilstm_cls.evaluation.metrics import (
    SCORE_NAMES,
    Metrics,
    accuracy_interval,
    confident_disagreements,
    example_losses,
    is_right,
    likelihoods,
    main_score,
    score_names,
    scored_split,
)
from bilstm_cls.evaluation.predictions import Evaluation
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.runtime import Prediction

Row = dict[str, Any]

TEMPLATES = Path(__file__).with_name("templates")
MAX_TEXT_LENGTH = 600
MAX_WORST, MAX_DOUBTFUL, MAX_STRONGEST = 30, 20, 10
FAINTEST = 0.1
"""Fraction of the strongest value below which a word of an excerpt has no colour."""

FOR, AGAINST, VISIBLE = 67, 172, 0.25
"""Blue and orange of a terminal's 256 colours, and the fraction of the strongest value from which words have them."""

MAX_LABELS, MAX_ROWS = 200, 50
"""Labels of which all are listed, and how many of more."""

MAX_CELLS, MAX_CONFUSIONS = 20, 20
"""Labels up to which a confusion matrix is drawn, and confusions that are listed of more."""

MAX_VARIANTS = 64
"""Of each text, to explain it: a stretch of a few words is left out at a time where it is longer."""

NO_TEST = "There is no test split: these are the scores of the valid split, which also chose the weights."
INTERVAL = "(95 % interval {:.4f} to {:.4f})"


class Score(NamedTuple):
    """A main score to compare, with its 95 % interval where it is known; `is_this` for that of the whole model."""

    name: str
    value: float
    interval: tuple[float, float] | None
    is_this: bool = False


def other_scores(metrics: Metrics) -> dict[str, float | None]:
    """Returns all scores but the main one by their names in words."""
    words = score_names(metrics.main, metrics.scores)
    return {words[name]: value for name, value in metrics.scores.items() if name in words and name != metrics.main}


def scores_of(metrics: Mapping[str, Any]) -> list[Score]:
    """Returns the main scores of a `metrics.json` to compare: of the model, the network alone, and what is simpler."""
    split, main = scored_split(metrics), main_score(metrics)
    this = "network with n-grams" if "model/ngrams" in metrics else "network alone"
    rows = {this if f"network/{split}/{main}" in metrics else "this model": f"{split}/{main}"}
    if "model/ngrams" in metrics:
        rows["network alone"] = f"network/{split}/{main}"
    rows |= {baseline.description: f"baseline/{name}/{main}" for name, baseline in BASELINES.items()}
    rows["majority class"] = f"{split}/majority"
    found = {name: metrics[key] for name, key in rows.items() if metrics.get(key) is not None}
    total, ends = metrics[f"{split}/examples"], metrics.get(f"{split}/intervals/{main}")
    return [
        Score(name, value, accuracy_interval(value, total) if main == "accuracy" else None if i else ends, i == 0)
        for i, (name, value) in enumerate(found.items())
    ]


def write_report(
    run: RunDirectory, loaded: LoadedModel, evaluation: Evaluation, metrics: Row, *, history: Sequence[Row] = ()
) -> None:
    """Draws the pictures of a run and writes `report.html` and the model card `README.md`.

    The model explains its errors. `metrics` is what `metrics.json` holds or will hold, `history` that of
    `history.jsonl`; `environment.json` is read.
    """
    config = loaded.config
    scores, split, path = scores_of(metrics), evaluation.split.name, shlex.quote(str(run.path))
    notes = [*metrics.get("data/notes", []), *([NO_TEST] if split != "test" else [])]
    simpler = [score for score in scores[1:] if score.name != "network alone"]
    if simpler and (best := max(simpler, key=lambda score: score.value)).value >= scores[0].value:
        notes.append(f"This model is not better than {best.name} ({best.value:.2%}): think before you deploy it.")
    labels, per_class = evaluation.labels, list(evaluation.metrics.per_class.items())
    is_long = len(labels) > MAX_LABELS
    values = {
        "title": config.name,
        "metrics": evaluation.metrics,
        "row": metrics,
        "split": split,
        "notes": notes,
        "scores": scores,
        "main": SCORE_NAMES[main_score(metrics)],
        "other_scores": other_scores(evaluation.metrics),
        "thresholds": evaluation.task.thresholds,
        "history": history,
        "drawn": _draw(run, evaluation, history),
        "per_class": sorted(per_class, key=lambda item: item[1].f1)[:MAX_ROWS] if is_long else per_class,
        "shown_labels": labels[:MAX_ROWS] if is_long else labels,
        "label_ids": {label: i for i, label in enumerate(labels)},
        "confusions": evaluation.metrics.confusions[:MAX_CONFUSIONS],
        **_errors(evaluation, loaded),
        "environment": run.read_object("environment.json"),
        "seed": config.seed,
        "config": dump_config(config),
        "commands": [
            f'bilstm-cls predict --run {path} "a text of yours"',
            *(f"bilstm-cls {command} --run {path}" for command in ("eval", "report")),
            f"bilstm-cls train -c {shlex.quote(str(run / 'config.yaml'))} -o again",
        ],
    }
    write_atomic(run / "report.html", render("report.html", **values))
    write_atomic(run / "README.md", render("card.md", **values))


def _draw(run: RunDirectory, evaluation: Evaluation, history: Sequence[Row]) -> dict[str, Path]:
    """Draws the pictures; returns their files by name."""
    counts = evaluation.metrics.confusion_matrix
    drawn = {"calibration": run.plots / "calibration.png"}
    plots.calibration(evaluation.probabilities, evaluation.split.label_ids, drawn["calibration"])
    if history:
        drawn["curves"] = run.plots / "curves.png"
        plots.learning_curves(history, drawn["curves"])
    if counts is not None and len(counts) <= MAX_CELLS:
        drawn["confusion"] = run.plots / "confusion_matrix.png"
        plots.confusion_matrix(counts, evaluation.labels, drawn["confusion"])
    return drawn


def _errors(evaluation: Evaluation, loaded: LoadedModel) -> Row:
    """Returns the wrong predictions that are shown: where the label is likely wrong, and the worst others."""
    has_places = not loaded.config.text.tokenizer.startswith(PREFIX)  # torchtext does not say where its tokens are
    labels = evaluation.labels
    split, probabilities, label_ids = evaluation.split, evaluation.probabilities, evaluation.split.label_ids
    losses, predicted, several = example_losses(probabilities, label_ids), evaluation.predicted, label_ids.ndim == 2
    doubtful = confident_disagreements(probabilities, label_ids)
    others = np.setdiff1d(np.flatnonzero(~is_right(predicted, label_ids)), doubtful[:MAX_DOUBTFUL])
    worst = others[np.argsort(-losses[others], kind="stable")]

    def card(i: int) -> Row:
        text, row = split.texts[i], [i]
        # Of several labels, the decision that is most wrong.
        label = labels[int(likelihoods(probabilities[row], label_ids[row])[0].argmin())] if several else None
        found = explain(loaded, text, label=label, max_variants=MAX_VARIANTS) if has_places else None
        return {
            "text": text,
            "label": spoken(next(named(label_ids[row], labels))),
            "prediction": spoken(next(named(predicted[row], labels))),
            "probability": float(evaluation.confidence[i]),
            "loss": float(losses[i]),
            "about": label,
            "place": f"{'/'.join(Path(split.paths[i]).parts[-2:])}:{split.lines[i]}",
            "parts": [] if found is None else excerpt(found, MAX_TEXT_LENGTH),
        }

    return {
        "doubtful": [card(i) for i in doubtful[:MAX_DOUBTFUL].tolist()],
        "num_doubtful": len(doubtful),
        "worst": [card(i) for i in worst[:MAX_WORST].tolist()],
    }


def metrics_table(metrics: Metrics, name: str) -> str:
    """Returns the scores as lines for a terminal, with the worst labels first where there are many."""
    scores = [[SCORE_NAMES[metrics.main], f"{getattr(metrics, metrics.main):.4f}", INTERVAL.format(*metrics.interval)]]
    if metrics.majority is not None:
        scores.append(["majority", f"{metrics.majority:.4f}", "(always predicting the most frequent label of train)"])
    for word, value in other_scores(metrics).items():
        scores.append([word, "undefined" if value is None else f"{value:.4f}", ""])
    lines = [f"{name}: {metrics.examples:,} texts", *aligned(scores), ""]
    shown = list(metrics.per_class.items())
    if len(shown) > MAX_LABELS:
        lines.append(f"the {MAX_LABELS} labels with the lowest F1 of {len(shown):,}:")
        shown = sorted(shown, key=lambda row: row[1].f1)[:MAX_LABELS]
    rows = [["label", "precision", "recall", "F1", "  texts", " missed", "wrongly predicted"]]
    for label, found in shown:
        fractions = (f"{value:.4f}" for value in (found.precision, found.recall, found.f1))
        counts = (f"{count:>7,}" for count in (found.support, found.false_negatives, found.false_positives))
        rows.append([label, *fractions, *counts])
    return "\n".join([*lines, *aligned(rows)])


def score_table(metrics: Row, path: Path) -> str:
    """Returns what `train` prints at its end: the scores, what they are compared with, and where everything is."""
    split = scored_split(metrics)
    rows = [
        [f"  {name}", f"{value:.4f}", INTERVAL.format(*interval or ()) if is_this else ""]
        for name, value, interval, is_this in scores_of(metrics)
    ]
    main = SCORE_NAMES[main_score(metrics)]
    lines = [f"{main} on the {split} split, {metrics[f'{split}/examples']:,} texts:", *aligned(rows)]
    before = metrics.get("time/pretrain_seconds")
    pretrained = f"pretrained in {before / 60:.1f} minutes, " if isinstance(before, float) else ""
    lines.append(
        f"macro F1 {metrics[f'{split}/macro_f1']:.4f}, log loss {metrics[f'{split}/log_loss']:.4f}, "
        f"ECE {metrics[f'{split}/ece']:.4f}; {pretrained}trained {metrics['train/steps']:,} steps in "
        f"{metrics['time/train_seconds'] / 60:.1f} minutes, peak memory {metrics['time/peak_memory_mb']:,.0f} MB"
    )
    lines += [f"note: {note}" for note in [*metrics["data/notes"], *([NO_TEST] if split != "test" else [])]]
    return "\n".join([*lines, f"everything is in {path}; open {path / 'report.html'}"])


def baselines_table(results: Mapping[str, Row]) -> str:
    """Returns what `baseline` prints."""
    first, rows = next(iter(results.values())), []
    for name, metrics in results.items():
        score, seconds = scores_of(metrics)[0], metrics[f"time/baseline_{name}_seconds"]
        interval = INTERVAL.format(*score.interval or ())
        rows.append([BASELINES[name].description, f"{score.value:.4f}", interval, f"{seconds:.0f} s"])
    rows += [[score.name, f"{score.value:.4f}", "", ""] for score in scores_of(first)[1:]]  # the majority class
    title = f"{SCORE_NAMES[main_score(first)]} on the {scored_split(first)} split:"
    return "\n".join([title, *aligned(rows), *(f"note: {note}" for note in first["data/notes"])])


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "shortened": shortened, "markdown": markdown, "spoken": spoken,
        "picture": lambda path: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"),
        "width": lambda path: int.from_bytes(path.read_bytes()[16:20], "big") // 2,  # of a PNG of twice the pixels
    }  # fmt: skip
    return environment


def render(template: str, **values: Any) -> str:
    """Fills a file of `templates/`: in `.html` all values are escaped. Lone surrogates become question marks."""
    shown: str = _environment().get_template(template).render(**values)
    return shown.encode("utf-8", "replace").decode("utf-8")


def number(value: object) -> str:
    """Writes a number with thousands separated and four digits, and nothing as a dash."""
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else "—" if value is None else str(value)


def shortened(text: str, max_length: int = 600) -> str:
    """Returns a text on one line of at most so many characters."""
    shown = " ".join(text.split())
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def markdown(text: str) -> str:
    """Returns text on one line that Markdown shows as it is."""
    return "".join(f"\\{mark}" if mark in r"\`*_{}[]<>()#+!|~&$" else mark for mark in " ".join(text.split()))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class Part(NamedTuple):
    """A part of a text on a page: one token, several that share a character, or what is between them.

    `strength` is its colour from -1, against the label, to 1, for it; `title` is shown when it is pointed at.
    What is no token has neither title nor `value` in nats.
    """

    text: str
    strength: float = 0.0
    title: str = ""
    value: float = 0.0


def parts_of(explanation: Explanation) -> list[Part]:
    """Cuts the whole text into parts; joined they are the text. The strongest has full colour."""
    pieces: list[tuple[int, int, float, str]] = []
    for _, start, stop, value, is_known in explanation.terms:
        title = "" if is_known else ", not in the vocabulary"
        if pieces and start < pieces[-1][1]:  # byte-pair tokens that share a character
            start, before, other, other_title = pieces.pop()
            stop, value, title = max(stop, before), value + other, title or other_title
        pieces.append((start, stop, value, title))
    scale = max((abs(value) for _, _, value, _ in pieces), default=0.0) or 1.0
    parts, position = list[Part](), 0
    for start, stop, value, title in pieces:
        token = Part(explanation.text[start:stop], value / scale, f"{value:+.4f}{title}", value)
        parts += [Part(explanation.text[position:start]), token]
        position = stop
    return [part for part in [*parts, Part(explanation.text[position:])] if part.text]


def excerpt(explanation: Explanation, max_length: int) -> list[Part]:
    """Returns the stretch of a text in which its words change the prediction most, up to `max_length` characters."""
    found = parts_of(explanation)
    ends = np.cumsum([0, *(len(part.text) for part in found)])
    sums = np.cumsum([0.0, *(abs(part.strength) for part in found)])
    stops = np.maximum(np.searchsorted(ends, ends[:-1] + max_length, side="right") - 1, np.arange(len(found)) + 1)
    start = int((sums[stops] - sums[:-1]).argmax()) if found else 0
    stop = int(stops[start]) if found else 0
    shown = [part if abs(part.strength) >= FAINTEST else Part(part.text) for part in found]
    shown = [part._replace(text=part.text[:max_length]) for part in shown[start:stop]]
    return [*([Part("… ")] if start > 0 else []), *shown, *([Part(" …")] if stop < len(found) else [])]


def explanation_lines(prediction: Prediction, explanation: Explanation, *, is_coloured: bool) -> Iterator[str]:
    """Yields lines for a terminal: label, probability and text; the logit; the strongest words."""
    parts = parts_of(explanation)
    shown = "".join(_painted(part) if is_coloured else printable(part.text) for part in parts)
    yield f"{printable(explanation.label)}\t{prediction.probabilities[explanation.label]:.4f}\t{shown}"
    yield f"  {_summary(prediction, explanation)}"
    yield from (f"  {value}  {word}" for value, word in _strongest(parts))


def write_explanations(path: Path, title: str, explained: Iterable[tuple[Prediction, Explanation]]) -> None:
    """Writes one page that loads nothing, with every text, its words coloured, and the numbers."""
    texts = [
        {
            "label": explanation.label,
            "probability": prediction.probabilities[explanation.label],
            "parts": parts_of(explanation),
            "summary": _summary(prediction, explanation),
            "strongest": _strongest(parts_of(explanation)),
        }
        for prediction, explanation in explained
    ]
    write_atomic(path, render("explanations.html", title=title, texts=texts))


def _painted(part: Part) -> str:
    colour, text = FOR if part.strength > 0 else AGAINST, printable(part.text)
    return f"\x1b[48;5;{colour};38;5;16m{text}\x1b[0m" if abs(part.strength) >= VISIBLE else text


def _strongest(parts: Sequence[Part]) -> list[tuple[str, str]]:
    tokens = sorted((part for part in parts if part.title), key=lambda part: -abs(part.value))
    return [(f"{part.value:+.4f}", printable(part.text)) for part in tokens[:MAX_STRONGEST]]


def _summary(prediction: Prediction, explanation: Explanation) -> str:
    unsure = "no label is predicted, this is the likeliest; " if prediction.labels == () else ""
    logit = f"logit of {printable(explanation.label)} {explanation.logit:+.4f}"
    return f"{unsure}{logit}; a word's value is what it loses when the word is left out"
