"""What a reader of a score needs: pictures, a self-contained HTML report, and a Markdown model card."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.classifier import LoadedModel, softmax
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.evaluation import plots
from bilstm_cls.evaluation.baselines import BASELINES
from bilstm_cls.evaluation.explain import EXACT, OCCLUSION, SHARES, explain
from bilstm_cls.evaluation.metrics import Floats, Ints, Metrics, accuracy_interval, compute_metrics, example_losses
from bilstm_cls.evaluation.pages import Part, aligned, excerpt, render
from bilstm_cls.evaluation.predictions import Evaluation
from bilstm_cls.evaluation.quality import Group, by_length, by_truncation, confident_disagreements
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import RunDirectory

Row = dict[str, Any]

MAX_TEXT_LENGTH = 600
MAX_WORST, MAX_DOUBTFUL = 30, 20
MAX_LABELS, MAX_ROWS = 200, 50
"""Labels of which all are listed, and how many of more."""

MAX_VARIANTS = 64
"""Of each text, to explain it by occlusion: a stretch of a few words is left out at a time where it is longer."""

NO_TEST = "There is no test split: these are the scores of the valid split, which also chose the weights."
SPLITS = ("train", "valid", "test", "unlabelled")
CURVES = ("step", "epoch", "train/loss", "valid/log_loss", "valid/accuracy", "valid/macro_f1", "learning_rate")
_FACTS = {
    "parameters": "model/parameters", "tokens in the vocabulary": "text/vocab_size",
    "of them with a pretrained vector": "embedding/coverage", "steps": "train/steps", "best step": "train/best_step",
    "seconds of training": "time/train_seconds", "tokens a second": "time/train_tokens_per_second",
    "peak memory in MB": "time/peak_memory_mb",
}  # fmt: skip
_DATA_FACTS = {
    "rows read": "data/read", "rows skipped": "data/skipped",
    **{f"texts that occur twice in {name}": f"data/duplicates_{name}" for name in ("train", "valid", "test")},
    **{f"texts of {one} with an exact duplicate in {other}": f"data/{one}_in_{other}"
       for one, other in (("valid", "train"), ("test", "train"), ("test", "valid"))},
}  # fmt: skip

_SPLIT_FACTS = (
    ("texts", "texts", None), ("tokens", "tokens read", None), ("median_length", "median length", None),
    ("longest", "longest", None), ("truncated", "cut to text.max_length", "texts"), ("empty", "empty", None),
    ("unknown", "unknown tokens", "tokens"),
)  # fmt: skip
"""Key, title, and the key of what it is a fraction of."""


@dataclass(frozen=True, slots=True)
class Score:
    """An accuracy to compare, with its 95 % interval; `is_this` for that of the whole model."""

    name: str
    accuracy: float
    interval: tuple[float, float]
    is_this: bool = False


@dataclass(frozen=True, slots=True)
class WrongPrediction:
    """A prediction that is not the label.

    Attributes:
        text: as it was evaluated.
        label: the true one.
        prediction: the predicted one.
        probability: of the prediction.
        loss: of the label, in nats.
        place: file and line.
        parts: a stretch of the text with its words coloured by occlusion; empty where no model is at hand.
        exact_parts: the same by the exact method, where the pooling allows it.
    """

    text: str
    label: str
    prediction: str
    probability: float
    loss: float
    place: str
    parts: Sequence[Part] = ()
    exact_parts: Sequence[Part] = ()


def scored_split(metrics: Mapping[str, Any]) -> str:
    """Returns the split whose scores a `metrics.json` has."""
    return "test" if "test/accuracy" in metrics else "valid"


def scores_of(metrics: Mapping[str, Any]) -> list[Score]:
    """Returns the accuracies of a `metrics.json` to compare: of the model, the network alone, and what is simpler."""
    split = scored_split(metrics)
    total = metrics[f"{split}/examples"]

    def score(name: str, accuracy: float, *, is_this: bool = False) -> Score:
        return Score(name, accuracy, accuracy_interval(accuracy, total), is_this)

    accuracy = metrics[f"{split}/accuracy"]
    if "model/ngrams" in metrics:
        rows = [
            score("network with n-grams", accuracy, is_this=True),
            score("network alone", metrics[f"network/{split}/accuracy"]),
        ]
    else:
        is_network = f"network/{split}/accuracy" in metrics
        rows = [score("network alone" if is_network else "this model", accuracy, is_this=True)]
    for name, baseline in BASELINES.items():
        if f"baseline/{name}/accuracy" in metrics:
            rows.append(score(baseline.description, metrics[f"baseline/{name}/accuracy"]))
    if metrics.get(f"{split}/majority") is not None:
        rows.append(score("majority class", metrics[f"{split}/majority"]))
    return rows


def write_report(
    run: RunDirectory,
    config: Config,
    labels: Sequence[str],
    evaluation: Evaluation,
    metrics: Row,
    *,
    title: str,
    history: Sequence[Row] = (),
    loaded: LoadedModel | None = None,
    corpus: Corpus | None = None,
) -> None:
    """Draws the pictures of a run and writes `report.html` and the model card `README.md`.

    Args:
        run: its `environment.json` is read.
        config: of the run.
        labels: by label id.
        evaluation: what the run predicted.
        metrics: what `metrics.json` holds or will hold.
        title: what the run is called.
        history: rows of `history.jsonl`.
        loaded: the model, to explain errors with.
        corpus: the evaluated texts, encoded.
    """
    split = evaluation.split.name
    is_correct = evaluation.probabilities.argmax(axis=1) == evaluation.split.label_ids
    groups: dict[str, list[Group]] = {}
    if corpus is not None:
        groups["tokens of a text"] = by_length(corpus.num_tokens, is_correct)
        groups["truncation"] = by_truncation(corpus.num_tokens, config.text.max_length, is_correct)
    before = _before_scaling(evaluation.probabilities, metrics)
    scores = scores_of(metrics)
    by_f1 = sorted(evaluation.metrics.per_class.items(), key=lambda row: row[1].f1)
    is_long = len(labels) > MAX_LABELS
    values = {
        "title": title,
        "metrics": evaluation.metrics,
        "split": split,
        "origin": metrics.get("data/origin", ""),
        "notes": [*metrics.get("data/notes", []), *([NO_TEST] if split != "test" else []), *_warnings(scores)],
        "scores": scores,
        "history": _history_table(history),
        "drawn": _draw(run, config, evaluation, metrics, before, history, groups),
        "per_class": by_f1[:MAX_ROWS] if is_long else list(evaluation.metrics.per_class.items()),
        "label_ids": {label: i for i, label in enumerate(labels)},
        "calibration": _calibration(evaluation, labels, metrics, before),
        "groups": {name: found for name, found in groups.items() if found},
        **_errors(evaluation, labels, loaded),
        "facts": _facts(metrics, _FACTS),
        "data_facts": _facts(metrics, _DATA_FACTS),
        "split_facts": _facts_by_split(metrics),
        "balance": _balance(metrics, labels[:MAX_ROWS] if is_long else labels),
        "environment": _environment(run, config),
        "config": dump_config(config),
        "commands": _commands(str(run.path)),
    }
    write_atomic(run / "report.html", render("report.html", **values))
    write_atomic(run / "README.md", render("card.md", **values))


def _warnings(scores: Sequence[Score]) -> list[str]:
    """Returns a warning where something simpler is as good as the model."""
    this, simpler = scores[0], [score for score in scores[1:] if score.name != "network alone"]
    best = max(simpler, key=lambda score: score.accuracy, default=None)
    if best is None or best.accuracy < this.accuracy:
        return []
    return [f"This model is not better than {best.name} ({best.accuracy:.2%}): think before you deploy it."]


def _commands(run: str) -> list[str]:
    """Returns shell lines that use, evaluate and repeat the run."""
    quoted = shlex.quote(run)
    return [
        f'bilstm-cls predict --run {quoted} "a text of yours"',
        f"bilstm-cls eval --run {quoted}",
        f"bilstm-cls report --run {quoted}",
        f"bilstm-cls train -c {shlex.quote(str(Path(run) / 'config.yaml'))} -o again",
    ]


def _before_scaling(probabilities: Floats, metrics: Row) -> Floats | None:
    """Returns the probabilities that the logits had before they were scaled; None where an n-gram model was added."""
    scale = metrics.get("calibration/scale")
    if scale is None or "model/ngrams" in metrics:
        return None
    return softmax(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / scale)


def _calibration(evaluation: Evaluation, labels: Sequence[str], metrics: Row, before: Floats | None) -> str:
    after = evaluation.metrics
    if before is not None:
        scores = compute_metrics(before, evaluation.split.label_ids, labels)
        return (
            f"Temperature scaling multiplied the logits by {metrics['calibration/scale']:.3g}, chosen on the valid "
            f"split; on the {evaluation.split.name} split it changed the calibration error from {scores.ece:.4f} to "
            f"{after.ece:.4f} and the log loss from {scores.log_loss:.4f} to {after.log_loss:.4f}."
        )
    if "calibration/ngrams" in metrics:
        return (
            f"The logits of the network count {metrics['calibration/scale']:.3g} times and those of the n-gram model "
            f"{metrics['calibration/ngrams']:.3g} times, both chosen on the valid split."
        )
    return ""


def _draw(
    run: RunDirectory,
    config: Config,
    evaluation: Evaluation,
    metrics: Row,
    before: Floats | None,
    history: Sequence[Row],
    groups: Mapping[str, Sequence[Group]],
) -> dict[str, dict[str, Path]]:
    """Draws the pictures; returns their files, by section and caption."""
    drawn: dict[str, dict[str, Path]] = {name: {} for name in ("curves", "confusion", "calibration", "length", "data")}

    def file(section: str, name: str, caption: str) -> Path:
        return drawn[section].setdefault(caption, run.plots / f"{name}.png")

    if history:
        plots.learning_curves(history, plots.LOSSES, "loss (nats)", file("curves", "loss", "Loss by epoch"))
        kept = "Scores on the valid split; the ring marks the weights that were kept"
        plots.learning_curves(history, plots.SCORES, "score", file("curves", "scores", kept))
        plots.learning_curves(history, plots.RATES, "learning rate", file("curves", "learning_rate", "Learning rate"))
    split, ids = evaluation.split.name, evaluation.split.label_ids
    if len(evaluation.metrics.per_class) <= plots.MAX_CELLS:
        caption = f"Confusion matrix of the {split} split, shaded by the fraction of the true label"
    else:
        caption = f"The most frequent confusions of the {split} split: true label → predicted label"
    plots.confusions(evaluation.metrics, file("confusion", "confusion_matrix", caption))
    if before is not None:
        plots.calibration(before, ids, file("calibration", "calibration_before", "Before temperature scaling"))
    after = "After temperature scaling, as the run predicts" if before is not None else "As the run predicts"
    plots.calibration(evaluation.probabilities, ids, file("calibration", "calibration", after))
    lengths = groups.get("tokens of a text", ())
    if len(lengths) > 1:
        path = file("length", "score_by_length", "Accuracy of texts of similar length, with 95 % intervals")
        plots.score_by_length(lengths, path)
    if "text/train/length_histogram" in metrics:
        counts, width = metrics["text/train/length_histogram"], metrics["text/train/length_width"]
        path = file("data", "lengths", "Lengths of the training texts")
        plots.length_histogram(counts, width, config.text.max_length, path)
    return drawn


def _errors(evaluation: Evaluation, labels: Sequence[str], loaded: LoadedModel | None) -> Row:
    """Returns the wrong predictions that are shown: where the label is likely wrong, and the worst others."""
    probabilities, label_ids = evaluation.probabilities, evaluation.split.label_ids
    losses, doubtful = example_losses(probabilities, label_ids), confident_disagreements(probabilities, label_ids)
    shown = doubtful[:MAX_DOUBTFUL]
    others = np.setdiff1d(np.flatnonzero(probabilities.argmax(axis=1) != label_ids), shown)
    worst = others[np.argsort(-losses[others], kind="stable")][:MAX_WORST]
    return {
        "doubtful": list(_wrong_predictions(evaluation, labels, losses, shown, loaded)),
        "num_doubtful": len(doubtful),
        "worst": list(_wrong_predictions(evaluation, labels, losses, worst, loaded)),
    }


def _wrong_predictions(
    evaluation: Evaluation, labels: Sequence[str], losses: Floats, rows: Ints, loaded: LoadedModel | None
) -> Iterator[WrongPrediction]:
    split, predicted = evaluation.split, evaluation.probabilities.argmax(axis=1)
    for i in rows.tolist():
        text, parts, exact_parts = split.texts[i], list[Part](), list[Part]()
        if loaded is not None:
            parts = excerpt(explain(loaded, text, method=OCCLUSION, max_variants=MAX_VARIANTS), MAX_TEXT_LENGTH)
            if all(name in SHARES for name in loaded.model.pooling.names):
                exact_parts = excerpt(explain(loaded, text, method=EXACT), MAX_TEXT_LENGTH)
        yield WrongPrediction(
            text=text,
            label=labels[split.label_ids[i]],
            prediction=labels[predicted[i]],
            probability=float(evaluation.probabilities[i, predicted[i]]),
            loss=float(losses[i]),
            place=f"{'/'.join(Path(split.paths[i]).parts[-2:])}:{split.lines[i]}",
            parts=parts,
            exact_parts=exact_parts,
        )


def _history_table(history: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    shown = [key for key in CURVES if any(row.get(key) is not None for row in history)]
    return shown, [[row.get(key) for key in shown] for row in history]


def _facts(metrics: Row, names: Mapping[str, str]) -> Row:
    facts = {name: metrics[key] for name, key in names.items() if metrics.get(key) is not None}
    return {name: round(value) if isinstance(value, float) and value >= 10 else value for name, value in facts.items()}


def _facts_by_split(metrics: Row) -> tuple[list[str], list[list[Any]]]:
    """Returns a table with a column for each split."""
    names = [name for name in SPLITS if f"text/{name}/texts" in metrics]
    rows = []
    for key, title, whole in _SPLIT_FACTS:
        counts = [(metrics[f"text/{name}/{key}"], whole and metrics[f"text/{name}/{whole}"]) for name in names]
        shown = [f"{count:,} ({count / max(1, total):.1%})" if total is not None else count for count, total in counts]
        rows.append([title, *shown])
    return ["", *names], rows if names else []


def _balance(metrics: Row, labels: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Returns a table of the texts of each label in each split."""
    names = [name for name in SPLITS if f"data/labels/{name}/{labels[0]}" in metrics]
    rows = []
    for label in labels:
        counts = ((metrics[f"data/labels/{name}/{label}"], metrics.get(f"text/{name}/texts")) for name in names)
        rows.append([label, *(f"{count:,} ({count / total:.1%})" if total else count for count, total in counts)])
    return ["label", *names], rows if names else []


def _environment(run: RunDirectory, config: Config) -> Row:
    found = run.read_object("environment.json")
    shown: Row = {"seed": config.seed}
    shown |= {name: found[name] for name in ("python", "platform", "device", "threads", "processes") if name in found}
    shown |= found.get("versions", {})
    shown |= {"git commit": found.get("git_commit"), "digest of the data": found.get("data_digest")}
    return {name: str(value) for name, value in shown.items() if value is not None}


def metrics_table(metrics: Metrics, name: str) -> str:
    """Returns the scores as lines for a terminal, with the worst labels first where there are many."""
    low, high = metrics.confidence_interval
    lines = [
        f"{name}: {metrics.examples:,} texts",
        f"accuracy     {metrics.accuracy:.4f}  (95 % interval {low:.4f} to {high:.4f})",
    ]
    if metrics.majority is not None:
        lines.append(f"majority     {metrics.majority:.4f}  (always predicting the most frequent label of train)")
    scores = {"macro F1": metrics.macro_f1, "weighted F1": metrics.weighted_f1, "AUROC": metrics.auroc}
    scores |= {"log loss": metrics.log_loss, "ECE": metrics.ece}
    lines += [f"{key:<12} {'undefined' if value is None else f'{value:.4f}'}" for key, value in scores.items()]
    shown = list(metrics.per_class.items())
    if len(shown) > MAX_LABELS:
        lines += ["", f"the {MAX_LABELS} labels with the lowest F1 of {len(shown):,}:"]
        shown = sorted(shown, key=lambda row: row[1].f1)[:MAX_LABELS]
    rows = [[label, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", f"{s.support:>7,}"] for label, s in shown]
    return "\n".join([*lines, "", *aligned([["label", "precision", "recall", "F1", "  texts"], *rows])])


def score_table(metrics: Row, path: Path) -> str:
    """Returns what `train` prints at its end: the scores, what they are compared with, and where everything is."""
    split = scored_split(metrics)
    rows = [
        [
            f"  {score.name}",
            f"{score.accuracy:.4f}",
            "(95 % interval {:.4f} to {:.4f})".format(*score.interval) if score.is_this else "",
        ]
        for score in scores_of(metrics)
    ]
    lines = [f"accuracy on the {split} split, {metrics[f'{split}/examples']:,} texts:", *aligned(rows)]
    before = metrics.get("time/pretrain_seconds")
    pretrained = f"pretrained in {before / 60:.1f} minutes, " if isinstance(before, float) else ""
    lines.append(
        f"macro F1 {metrics[f'{split}/macro_f1']:.4f}, log loss {metrics[f'{split}/log_loss']:.4f}, "
        f"ECE {metrics[f'{split}/ece']:.4f}; {pretrained}trained {metrics['train/steps']:,} steps in "
        f"{metrics['time/train_seconds'] / 60:.1f} minutes, peak memory {metrics['time/peak_memory_mb']:,.0f} MB"
    )
    lines += [f"note: {note}" for note in metrics["data/notes"]]
    if split != "test":
        lines.append(f"note: {NO_TEST}")
    return "\n".join([*lines, f"everything is in {path}; open {path / 'report.html'}"])


def baselines_table(results: Mapping[str, Row]) -> str:
    """Returns what `baseline` prints."""
    lines = []
    for name, metrics in results.items():
        split = scored_split(metrics)
        low, high = metrics[f"{split}/confidence_interval"]
        lines.append(
            f"{BASELINES[name].description}: accuracy {metrics[f'{split}/accuracy']:.4f} ({low:.4f} to {high:.4f}), "
            f"macro F1 {metrics[f'{split}/macro_f1']:.4f}, {metrics[f'time/baseline_{name}_seconds']:.0f} s"
        )
    first = next(iter(results.values()))
    lines.append(f"majority class: accuracy {first[f'{scored_split(first)}/majority']:.4f}")
    return "\n".join([*lines, *(f"note: {note}" for note in first["data/notes"])])
