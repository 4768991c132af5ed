"""From a judged run to what a person looks at: pictures, the report, the model card."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.classifier import softmax
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.evaluation import plots
from bilstm_cls.evaluation.baselines import BASELINES
from bilstm_cls.evaluation.breakdown import Group, by_length, by_truncation, confident_disagreements
from bilstm_cls.evaluation.coloured import excerpt
from bilstm_cls.evaluation.explain import SHARES, explain
from bilstm_cls.evaluation.metrics import Floats, compute_metrics, example_losses
from bilstm_cls.evaluation.page import Part
from bilstm_cls.evaluation.predictions import Judged
from bilstm_cls.evaluation.report import (
    MAX_DOUBTFUL,
    MAX_TEXT_LENGTH,
    MAX_WORST,
    Report,
    WrongAnswer,
    model_card,
    write_report,
)
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import LoadedModel, RunDirectory

Row = dict[str, Any]

NO_TEST = "There is no test split: these are the scores of the valid split, which also chose the weights."
MAX_INTEGRATED = 8
"""Texts that are explained where that takes a second each."""

_FACTS = {
    "parameters": "model/parameters", "tokens in the vocabulary": "text/vocab_size",
    "of them with a pretrained vector": "embedding/coverage", "steps": "train/steps", "best step": "train/best_step",
    "seconds of training": "time/train_seconds", "tokens a second": "time/train_tokens_per_second",
    "peak memory in MB": "time/peak_memory_mb",
}  # fmt: skip
_DATA_FACTS = {
    "rows read": "data/read", "rows skipped": "data/skipped",
    **{f"texts that stand twice in {name}": f"data/duplicates_{name}" for name in ("train", "valid", "test")},
    **{f"texts of {one} that stand in {other} word for word": f"data/{one}_in_{other}"
       for one, other in (("valid", "train"), ("test", "train"), ("test", "valid"))},
}  # fmt: skip
_COUNTS = ("texts", "tokens", "median_length", "longest", "truncated", "empty", "unknown")
SPLITS = ("train", "valid", "test", "unlabelled")


def write_pages(
    run: RunDirectory,
    config: Config,
    labels: Sequence[str],
    judged: Judged,
    metrics: Row,
    *,
    title: str,
    history: Sequence[Row] = (),
    loaded: LoadedModel | None = None,
    corpus: Corpus | None = None,
) -> Report:
    """Draws the pictures of a run and writes `report.html`.

    Args:
        run: its `environment.json` is read.
        config: of the run.
        labels: by label id.
        judged: what the run answered.
        metrics: what `metrics.json` holds or will hold.
        title: what the run is called.
        history: rows of `history.jsonl`.
        loaded: the model, to explain errors with.
        corpus: the judged texts, encoded.

    Returns:
        All that the report says.
    """
    is_correct = judged.probabilities.argmax(axis=1) == judged.split.label_ids
    groups: dict[str, Sequence[Group]] = {}
    if corpus is not None:
        groups["tokens of a text"] = by_length(corpus.num_tokens, is_correct)
        groups["truncation"] = by_truncation(corpus.num_tokens, config.text.max_length, is_correct)
    before = _before_scaling(judged.probabilities, metrics)
    doubtful = confident_disagreements(judged.probabilities, judged.split.label_ids)
    shown = doubtful[:MAX_DOUBTFUL]
    losses = example_losses(judged.probabilities, judged.split.label_ids)
    others = np.setdiff1d(np.flatnonzero(~is_correct), shown)
    worst = others[np.argsort(-losses[others], kind="stable")][:MAX_WORST]
    split = judged.split.name
    report = Report(
        title=title,
        run=str(run.path),
        metrics=judged.metrics,
        split=split,
        origin=metrics.get("data/origin", ""),
        notes=[*metrics.get("data/notes", []), *([NO_TEST] if split != "test" else [])],
        history=history,
        plots=_draw(run, config, labels, judged, metrics, before, history, groups),
        calibration=_calibration(judged, labels, metrics, before),
        groups={name: found for name, found in groups.items() if found},
        facts=_facts(metrics, _FACTS),
        data_facts=_facts(metrics, _DATA_FACTS),
        split_facts=_facts_by_split(metrics),
        label_counts=_label_counts(metrics, labels),
        baselines=_baselines(metrics),
        doubtful=list(_wrong_answers(judged, labels, losses, shown, loaded)),
        num_doubtful=len(doubtful),
        worst=list(_wrong_answers(judged, labels, losses, worst, loaded)),
        environment=_environment(run, config),
        config=dump_config(config),
    )
    write_report(run / "report.html", report)
    return report


def write_card(run: RunDirectory, report: Report) -> None:
    """Writes the model card, `README.md`."""
    write_atomic(run / "README.md", model_card(report))


def _before_scaling(probabilities: Floats, metrics: Row) -> Floats | None:
    """Returns the probabilities that the logits had before they were scaled; None where that is not all they were."""
    scale = metrics.get("calibration/scale")
    if scale is None or "calibration/ngrams" in metrics:
        return None
    return softmax(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / scale)


def _calibration(judged: Judged, labels: Sequence[str], metrics: Row, before: Floats | None) -> str:
    if before is not None:
        scores = compute_metrics(before, judged.split.label_ids, labels, intervals=False)
        return (
            f"Temperature scaling multiplied the logits by {metrics['calibration/scale']:.3g}, chosen on the valid "
            f"split; on the {judged.split.name} split it changed the calibration error from {scores.ece:.4f} to "
            f"{judged.metrics.ece:.4f} and the log loss from {scores.log_loss:.4f} to {judged.metrics.log_loss:.4f}."
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
    labels: Sequence[str],
    judged: Judged,
    metrics: Row,
    before: Floats | None,
    history: Sequence[Row],
    groups: Mapping[str, Sequence[Group]],
) -> dict[str, dict[str, Path]]:
    """Returns the SVG files that were drawn, by section and caption."""
    drawn: dict[str, dict[str, Path]] = {}

    def file(section: str, name: str, caption: str) -> Path:
        drawn.setdefault(section, {})[caption] = run.plots / f"{name}.svg"
        return run.plots / f"{name}.png"

    if history:
        plots.learning_curves(history, plots.LOSSES, "loss (nats)", file("curves", "loss", "Loss by epoch"))
        kept = "Scores on the valid split; the ring marks the weights that were kept"
        plots.learning_curves(history, plots.SCORES, "score", file("curves", "scores", kept))
        plots.learning_curves(history, plots.RATES, "learning rate", file("curves", "learning_rate", "Learning rate"))
    caption = f"Confusion matrix of the {judged.split.name} split, shaded by the share of the true label"
    plots.confusion_matrix(judged.metrics.confusion_matrix, labels, file("confusion", "confusion_matrix", caption))
    ids = judged.split.label_ids
    if before is not None:
        plots.calibration(before, ids, file("calibration", "calibration_before", "Before temperature scaling"))
    after = "After temperature scaling, as the run answers" if before is not None else "As the run answers"
    plots.calibration(judged.probabilities, ids, file("calibration", "calibration", after))
    lengths = groups.get("tokens of a text", ())
    if len(lengths) > 1:
        path = file("length", "score_by_length", "Accuracy of texts of similar length, with 95 % intervals")
        plots.score_by_length(lengths, path)
    if "text/train/length_histogram" in metrics:
        counts, width = metrics["text/train/length_histogram"], metrics["text/train/length_width"]
        path = file("data", "lengths", "Lengths of the training texts")
        plots.length_histogram(counts, width, config.text.max_length, path)
    return drawn


def _facts(metrics: Row, names: Mapping[str, str]) -> Row:
    facts = {name: metrics[key] for name, key in names.items() if metrics.get(key) is not None}
    return {name: round(value) if isinstance(value, float) and value >= 10 else value for name, value in facts.items()}


def _facts_by_split(metrics: Row) -> dict[str, Row]:
    facts: dict[str, Row] = {}
    for split in SPLITS:
        if f"text/{split}/texts" not in metrics:
            continue
        own = {key: int(metrics[f"text/{split}/{key}"]) for key in _COUNTS}
        texts, tokens = max(1, own["texts"]), max(1, own["tokens"])
        facts[split] = {
            "texts": own["texts"],
            "tokens read": own["tokens"],
            "median length": own["median_length"],
            "longest": own["longest"],
            "cut to text.max_length": f"{own['truncated']:,} ({own['truncated'] / texts:.1%})",
            "empty": own["empty"],
            "unknown tokens": f"{own['unknown']:,} ({own['unknown'] / tokens:.1%})",
        }
    return facts


def _label_counts(metrics: Row, labels: Sequence[str]) -> dict[str, list[int]]:
    return {
        split: [metrics[f"data/labels/{split}/{label}"] for label in labels]
        for split in SPLITS
        if all(f"data/labels/{split}/{label}" in metrics for label in labels)
    }


def _baselines(metrics: Row) -> dict[str, float]:
    return {
        baseline.description: metrics[f"baseline/{name}/accuracy"]
        for name, baseline in BASELINES.items()
        if f"baseline/{name}/accuracy" in metrics
    }


def _environment(run: RunDirectory, config: Config) -> Row:
    found = run.read_object("environment.json")
    shown: Row = {"seed": config.seed}
    shown |= {name: found[name] for name in ("python", "platform", "device", "threads", "processes") if name in found}
    shown |= found.get("versions", {})
    shown |= {"git commit": found.get("git_commit"), "digest of the data": found.get("data_digest")}
    return {name: str(value) for name, value in shown.items() if value is not None}


def _wrong_answers(
    judged: Judged, labels: Sequence[str], losses: Floats, rows: Any, loaded: LoadedModel | None
) -> Iterator[WrongAnswer]:
    split, answers = judged.split, judged.probabilities.argmax(axis=1)
    is_slow = loaded is not None and not all(name in SHARES for name in loaded.model.pooling.names)
    for number, i in enumerate(rows.tolist()):
        text, parts = split.texts[i], list[Part]()
        if loaded is not None and not (is_slow and number >= MAX_INTEGRATED):
            parts = excerpt(explain(loaded, text), MAX_TEXT_LENGTH)
        yield WrongAnswer(
            text=text,
            label=labels[split.label_ids[i]],
            prediction=labels[answers[i]],
            probability=float(judged.probabilities[i, answers[i]]),
            loss=float(losses[i]),
            place=f"{'/'.join(Path(split.paths[i]).parts[-2:])}:{split.lines[i]}",
            parts=parts,
        )
