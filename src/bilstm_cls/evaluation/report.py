"""The pages a reader of a score needs: a self-contained HTML report and a Markdown model card."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from bilstm_cls.evaluation.metrics import Metrics
from bilstm_cls.evaluation.page import bars, code, in_words, picture, section, table, whole_page
from bilstm_cls.files import write_atomic

MAX_TEXT_LENGTH = 400
MAX_WORST = 50
_LIMITS = """
## Limits

The scores hold for texts like those of the data above; on others the model may do far worse, and it answers with one
of its labels even where none fits. Longer texts are cut at `text.max_length`. Texts and labels carry whatever their
writers believed: judge the model on your own texts before a decision about people rests on it.
"""


@dataclass(frozen=True, slots=True)
class WorstError:
    """A wrong answer: the text, its true label, the predicted one with its probability, and the loss in nats."""

    text: str
    label: str
    prediction: str
    probability: float
    loss: float


@dataclass(frozen=True)
class Report:
    """All that the report and the model card say.

    Attributes:
        title: the run's name.
        run: the run directory as the user would type it.
        split: the split that was judged.
        metrics: the scores on that split, with their interval.
        origin: in words, where the texts came from.
        notes: what a reader of the score must know first.
        history: rows of `history.jsonl`.
        plots: PNG files by caption.
        facts: single facts such as vocabulary size and coverage.
        split_facts: for each split its facts: texts, truncated, unknown, ...
        baselines: scores of the linear baselines on the same split, by name.
        worst: wrong answers, worst first.
        config: the resolved config as YAML.
    """

    title: str
    run: str
    metrics: Metrics
    split: str = "test"
    origin: str = ""
    notes: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] = ()
    plots: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    split_facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    baselines: Mapping[str, Metrics] = field(default_factory=dict)
    worst: Sequence[WorstError] = ()
    config: str = ""

    @property
    def scores(self) -> dict[str, float]:
        """Accuracies to compare: this model's, each baseline's, the majority class's."""
        scores = {"this model": self.metrics.accuracy}
        scores |= {name: metrics.accuracy for name, metrics in self.baselines.items()}
        return scores if self.metrics.majority is None else {**scores, "majority class": self.metrics.majority}

    @property
    def all_notes(self) -> list[str]:
        """The given notes, and a warning where something simpler is as good."""
        name, best = max(list(self.scores.items())[1:], key=lambda item: item[1], default=("", -1.0))
        if best < self.metrics.accuracy:
            return list(self.notes)
        return [*self.notes, f"This model does not beat {name} ({best:.2%}): think before you ship it."]

    @property
    def commands(self) -> list[str]:
        """Shell lines that use, judge and repeat the run."""
        run = shlex.quote(self.run)
        return [
            f'bilstm-cls predict --run {run} "a text of yours"',
            f"bilstm-cls eval --run {run}",
            f"bilstm-cls train -c {shlex.quote(str(Path(self.run) / 'config.yaml'))} -o again",
        ]


def write_report(path: Path, report: Report) -> None:
    """Writes one HTML file that loads nothing: pictures are inside, all text is escaped, no script runs."""
    sections = [
        section("Evaluations", _history_table(report.history)),
        *(section(caption, picture(plot, caption)) for caption, plot in report.plots.items()),
        section("Scores by label", _label_table(report.metrics)),
        section("Worst errors", _worst_table(report.worst)),
        section("Data", _facts_table(report.facts) + _split_table(report.split_facts)),
        section("Use and repeat", code("\n".join(report.commands))),
        section("Config", code(report.config) if report.config else ""),
    ]
    notes = [f'<p class="note" dir="auto">{escape(note)}</p>' for note in report.all_notes]
    body = "\n".join([*notes, _headline(report), bars(report.scores), *sections])
    write_atomic(path, whole_page(report.title, body))


def model_card(report: Report) -> str:
    """Returns the run directory's README.md."""
    metrics = report.metrics
    scores = [(name, f"{score:.2%}") for name, score in report.scores.items()]
    labels = [
        (f"`{i}`", _plain(name), f"{s.f1:.3f}", s.support) for i, (name, s) in enumerate(metrics.per_class.items())
    ]
    notes = "\n".join(f"> {_plain(note)}\n" for note in report.all_notes)
    commands = "\n".join(report.commands)
    parts = [
        f"# {_plain(report.title)}",
        "A recurrent text classifier trained with `bilstm-cls`. `config.yaml` says how, `report.html` says how well.",
        notes,
        f"## Scores\n\nOn the {_plain(report.split)} split: {metrics.examples:,} texts, accuracy "
        f"{metrics.accuracy:.2%}{_interval(metrics)}, macro F1 {metrics.macro_f1:.4f}, "
        f"log loss {metrics.log_loss:.4f}, calibration error {metrics.ece:.4f}.",
        _markdown_table(("way", "accuracy"), scores),
        "## Labels\n\n" + _markdown_table(("id", "label", "F1", "texts"), labels),
        f"## Data\n\n{_plain(report.origin)}" if report.origin else "",
        f"## Use\n\n```sh\n{commands}\n```",
        _LIMITS,
    ]
    card = "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
    return card.encode("utf-8", "replace").decode("utf-8")  # lone surrogates have no bytes


def _headline(report: Report) -> str:
    metrics = report.metrics
    numbers = {
        "texts": f"{metrics.examples:,}",
        "macro F1": f"{metrics.macro_f1:.4f}",
        "AUROC": "—" if metrics.auroc is None else f"{metrics.auroc:.4f}",
        "log loss": f"{metrics.log_loss:.4f}",
        "calibration error": f"{metrics.ece:.4f}",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())
    origin = f'<p class="quiet" dir="auto">{escape(report.origin)}</p>' if report.origin else ""
    return (
        f'<p class="score"><strong>{metrics.accuracy:.2%}</strong> accuracy on the {escape(report.split)} split'
        f"{_interval(metrics)}</p>{origin}<dl>{cells}</dl>"
    )


def _interval(metrics: Metrics) -> str:
    if metrics.confidence_interval is None:
        return ""
    low, high = metrics.confidence_interval
    return f" (95 % interval {low:.2%} to {high:.2%})"


def _history_table(history: Sequence[Mapping[str, Any]]) -> str:
    keys = ["step", "epoch", "train/loss", "valid/log_loss", "valid/accuracy", "valid/macro_f1", "learning_rate"]
    shown = [key for key in keys if any(row.get(key) is not None for row in history)]
    return table(shown, [[in_words(row.get(key)) for key in shown] for row in history])


def _label_table(metrics: Metrics) -> str:
    rows = [
        [
            str(i),
            label,
            *(f"{value:.4f}" for value in (scores.precision, scores.recall, scores.f1)),
            f"{scores.support:,}",
        ]
        for i, (label, scores) in enumerate(metrics.per_class.items())
    ]
    return table(["#", "label", "precision", "recall", "F1", "texts"], rows)


def _worst_table(worst: Sequence[WorstError]) -> str:
    rows = [
        [_shortened(error.text), error.label, error.prediction, f"{error.probability:.3f}", f"{error.loss:.2f}"]
        for error in worst[:MAX_WORST]
    ]
    return table(["text", "label", "prediction", "probability", "loss"], rows)


def _facts_table(facts: Mapping[str, object]) -> str:
    return table(["fact", "value"], [[name, in_words(value)] for name, value in facts.items()])


def _split_table(facts: Mapping[str, Mapping[str, object]]) -> str:
    names = list(dict.fromkeys(name for split in facts.values() for name in split))
    return table(["", *facts], [[name, *(in_words(split.get(name)) for split in facts.values())] for name in names])


def _shortened(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= MAX_TEXT_LENGTH else shown[: MAX_TEXT_LENGTH - 1] + "…"


def _plain(text: str) -> str:
    """Returns text on one line that Markdown shows as it is."""
    return "".join(f"\\{mark}" if mark in r"\`*_{}[]<>()#+!|~&$" else mark for mark in " ".join(text.split()))


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
