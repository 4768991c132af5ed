"""What a reader of a score needs: pictures, a self-contained HTML report, and a Markdown model card."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilstm_cls.classifier import LoadedModel
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.torchtext import PREFIX
from bilstm_cls.data.types import named, spoken
from bilstm_cls.evaluation import plots
from bilstm_cls.evaluation.baselines import BASELINES
from bilstm_cls.evaluation.explain import explain
from bilstm_cls.evaluation.metrics import (
    SCORE_NAMES,
    Metrics,
    accuracy_interval,
    example_losses,
    is_right,
    likelihoods,
    main_score,
    score_names,
    scored_split,
)
from bilstm_cls.evaluation.pages import aligned, excerpt, render
from bilstm_cls.evaluation.predictions import Evaluation
from bilstm_cls.evaluation.quality import confident_disagreements
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import RunDirectory

Row = dict[str, Any]

MAX_TEXT_LENGTH = 600
MAX_WORST, MAX_DOUBTFUL = 30, 20
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
    words = score_names(metrics.main, metrics.names)
    return {word: getattr(metrics, name) for name, word in words.items() if name != metrics.main}


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

    Args:
        run: its `environment.json` is read.
        loaded: the model, which explains its errors.
        evaluation: what it predicted.
        metrics: what `metrics.json` holds or will hold.
        history: rows of `history.jsonl`.
    """
    config = loaded.config
    scores, split, path = scores_of(metrics), evaluation.split.name, shlex.quote(str(run.path))
    labels, per_class = evaluation.labels, list(evaluation.metrics.per_class.items())
    is_long = len(labels) > MAX_LABELS
    values = {
        "title": config.name,
        "metrics": evaluation.metrics,
        "row": metrics,
        "split": split,
        "notes": [*metrics.get("data/notes", []), *([NO_TEST] if split != "test" else []), *_warnings(scores)],
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


def _warnings(scores: Sequence[Score]) -> list[str]:
    """Returns a warning where something simpler is as good as the model."""
    simpler = [score for score in scores[1:] if score.name != "network alone"]
    best = max(simpler, key=lambda score: score.value, default=None)
    if best is None or best.value < scores[0].value:
        return []
    return [f"This model is not better than {best.name} ({best.value:.2%}): think before you deploy it."]


def _draw(run: RunDirectory, evaluation: Evaluation, history: Sequence[Row]) -> dict[str, dict[str, Path]]:
    """Draws the pictures; returns their files, by section and caption."""
    split, counts = evaluation.split.name, evaluation.metrics.confusion_matrix
    files = {name: run.plots / f"{name}.png" for name in ("curves", "confusion_matrix", "calibration")}
    drawn = {key: dict[str, Path]() for key in ("curves", "confusion")}
    if history:
        plots.learning_curves(history, files["curves"])
        caption = "Loss, and scores on the valid split, by epoch; the ring marks the weights that were kept"
        drawn["curves"] = {caption: files["curves"]}
    if counts is not None and len(counts) <= MAX_CELLS:
        plots.confusion_matrix(counts, evaluation.labels, files["confusion_matrix"])
        caption = f"Confusion matrix of the {split} split, shaded by the fraction of the true label"
        drawn["confusion"] = {caption: files["confusion_matrix"]}
    plots.calibration(evaluation.probabilities, evaluation.split.label_ids, files["calibration"])
    drawn["calibration"] = {f"Predictions of the {split} split by their probability": files["calibration"]}
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
