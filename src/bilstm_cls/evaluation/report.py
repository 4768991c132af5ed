"""The pages a reader of a score needs: a self-contained HTML report and a Markdown model card."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from bilstm_cls.evaluation.breakdown import Group
from bilstm_cls.evaluation.metrics import Metrics, accuracy_interval
from bilstm_cls.evaluation.page import (
    REPORT_STYLE,
    Part,
    beside,
    card,
    code,
    contents,
    drawing,
    figures,
    folded,
    in_words,
    legend,
    section,
    table,
    whiskers,
    whole_page,
    words,
)
from bilstm_cls.files import write_atomic

MAX_TEXT_LENGTH = 600
MAX_WORST, MAX_DOUBTFUL = 30, 20
MAX_OPEN_LABELS, MAX_BESIDE = 24, 10
OWN = "this model"
_LIMITS = """
## Limits

The scores hold for texts like those of the data above; on others the model may do far worse, and it answers with one
of its labels even where none fits. Longer texts are cut at `text.max_length`. Texts and labels carry whatever their
writers believed: judge the model on your own texts before a decision about people rests on it.
"""


@dataclass(frozen=True, slots=True)
class WrongAnswer:
    """An answer that is not the label.

    Attributes:
        text: as it was judged.
        label: the true one.
        prediction: the answer.
        probability: of the answer.
        loss: of the label, in nats.
        place: file and line.
        parts: a stretch of the text with its words coloured by what they add to the answer; the text's beginning where
            there are none.
    """

    text: str
    label: str
    prediction: str
    probability: float
    loss: float
    place: str = ""
    parts: Sequence[Part] = ()


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
        plots: files of `plots`, in the sections `curves`, `confusion`, `calibration`, `length` and `data`, by caption.
        calibration: what was done to the probabilities, in words.
        groups: of judged texts, by length and by truncation, in tables by title.
        facts: single facts about the model and its training.
        data_facts: single facts about the data: rows, duplicates, overlap.
        split_facts: for each split its facts: texts, truncated, unknown, ...
        label_counts: for each split the texts of each label, in the labels' order.
        baselines: accuracies of the linear baselines on the same split, by name.
        doubtful: wrong answers whose label is likely wrong, the likeliest first.
        num_doubtful: how many of those there are in all.
        worst: other wrong answers, worst first.
        environment: versions, machine and digests.
        config: the resolved config as YAML.
    """

    title: str
    run: str
    metrics: Metrics
    split: str = "test"
    origin: str = ""
    notes: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] = ()
    plots: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    calibration: str = ""
    groups: Mapping[str, Sequence[Group]] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    data_facts: Mapping[str, object] = field(default_factory=dict)
    split_facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    label_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    doubtful: Sequence[WrongAnswer] = ()
    num_doubtful: int = 0
    worst: Sequence[WrongAnswer] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    config: str = ""

    @property
    def scores(self) -> dict[str, float]:
        """Accuracies to compare: this model's, each baseline's, the majority class's."""
        scores = {OWN: self.metrics.accuracy, **self.baselines}
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
            f"bilstm-cls report --run {run}",
            f"bilstm-cls train -c {shlex.quote(str(Path(self.run) / 'config.yaml'))} -o again",
        ]


def write_report(path: Path, report: Report) -> None:
    """Writes one HTML file that loads nothing: pictures are inside, all text is escaped, no script runs."""
    sections = {
        "Learning": _drawn(report, "curves") + folded("All evaluations", _history_table(report.history)),
        "Scores by label": _by_label(report),
        "Calibration": _calibration(report),
        "Scores by length": beside(_drawn(report, "length"), _group_tables(report.groups)),
        "Likely wrong labels": _doubtful(report),
        "Worst errors": _worst(report),
        "Data": _data(report),
        "Use and reproduce": _reproduction(report),
        "Config": folded("The resolved config, defaults included", code(report.config)) if report.config else "",
    }
    anchors = {title.lower().replace(" ", "-"): title for title, body in sections.items() if body}
    notes = [f'<p class="note" dir="auto">{escape(note)}</p>' for note in report.all_notes]
    parts = [
        *notes,
        _headline(report),
        contents(anchors),
        *(section(title, sections[title], anchor=anchor) for anchor, title in anchors.items()),
    ]
    write_atomic(path, whole_page(report.title, "\n".join(parts), style=REPORT_STYLE))


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
        "texts judged": f"{metrics.examples:,}",
        "macro F1": f"{metrics.macro_f1:.4f}",
        "AUROC": "—" if metrics.auroc is None else f"{metrics.auroc:.4f}",
        "log loss": f"{metrics.log_loss:.4f}",
        "calibration error": f"{metrics.ece:.4f}",
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())
    origin = f'<p class="quiet" dir="auto">{escape(report.origin)}</p>' if report.origin else ""
    number = metrics.examples
    intervals = {
        name: accuracy_interval(round(score * number), number) if metrics.confidence_interval else None
        for name, score in report.scores.items()
    } | {OWN: metrics.confidence_interval}
    shares = {name: (score, intervals[name]) for name, score in report.scores.items()}
    return (
        f'<p class="score"><strong>{metrics.accuracy:.2%}</strong>accuracy on the {escape(report.split)} split'
        f"{_interval(metrics)}</p>{origin}{whiskers(shares, OWN)}<dl>{tiles}</dl>"
    )


def _by_label(report: Report) -> str:
    drawn, scores = _drawn(report, "confusion"), _label_table(report.metrics)
    return beside(drawn, scores) if len(report.metrics.per_class) <= MAX_BESIDE else drawn + scores


def _drawn(report: Report, name: str) -> str:
    return figures([drawing(path, caption) for caption, path in report.plots.get(name, {}).items()])


def _calibration(report: Report) -> str:
    drawn = _drawn(report, "calibration")
    if not drawn:
        return ""
    explained = (
        "Answers sorted by how probable the model holds them: on the dashed line, of the answers given with 80 % "
        "probability 80 % are right."
    )
    return f"<p>{escape(f'{explained} {report.calibration}'.strip())}</p>{drawn}"


def _group_tables(groups: Mapping[str, Sequence[Group]]) -> str:
    tables = [
        table(
            [title, "texts", "accuracy", "95 % interval"],
            [
                [group.name, f"{group.texts:,}", f"{group.accuracy:.2%}", "{:.1%} to {:.1%}".format(*group.interval)]
                for group in found
            ],
        )
        for title, found in groups.items()
    ]
    return "".join(tables)


def _doubtful(report: Report) -> str:
    if not report.doubtful:
        return ""
    number, total = report.num_doubtful, report.metrics.examples
    shown = f" The {len(report.doubtful)} likeliest are shown." if number > len(report.doubtful) else ""
    explained = (
        f"Confident disagreement on the {report.split} split: the model gives another label with at least the "
        f"probability that it has, in the mean, for texts which carry that label. {number:,} of {total:,} labels "
        f"({number / total:.1%}) are in doubt; the weaker a model, the more of these are its own mistakes.{shown}"
    )
    return f"<p>{escape(explained)}</p>{_legend(report.doubtful)}{_cards(report.doubtful)}"


def _worst(report: Report) -> str:
    if not report.worst:
        return ""
    others = ", without those above" if report.doubtful else ""
    explained = f"The wrong answers with the greatest loss{others}."
    return f"<p>{escape(explained)}</p>{_legend(report.worst)}{_cards(report.worst)}"


def _legend(answers: Sequence[WrongAnswer]) -> str:
    if not any(answer.parts for answer in answers):
        return ""
    return legend([Part("speaks for the model's answer", 1.0), Part("speaks against it", -1.0)])


def _cards(answers: Sequence[WrongAnswer]) -> str:
    return "".join(
        card(_card_head(answer), words(answer.parts or [Part(shortened(answer.text))])) for answer in answers
    )


def _card_head(answer: WrongAnswer) -> str:
    return (
        f'<span dir="auto">label <b>{escape(answer.label)}</b></span>'
        f'<span dir="auto">answer <b>{escape(answer.prediction)}</b> {answer.probability:.1%}</span>'
        f'<span class="quiet">loss {answer.loss:.2f}</span>'
        f'<span class="quiet" dir="auto">{escape(answer.place)}</span>'
    )


def _data(report: Report) -> str:
    names = list(report.metrics.per_class)
    balance = _label_balance(names, report.label_counts)
    if len(names) > MAX_OPEN_LABELS:
        balance = folded(f"Texts of each of the {len(names)} labels", balance)
    parts = [
        _split_table(report.split_facts),
        beside(_drawn(report, "data"), balance),
        beside(_facts_table("data", report.data_facts), _facts_table("model", report.facts)),
    ]
    return "".join(parts)


def _label_balance(labels: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    totals = {split: max(1, sum(own)) for split, own in counts.items()}
    rows = [
        [label, *(f"{own[i]:,} ({own[i] / totals[split]:.1%})" for split, own in counts.items())]
        for i, label in enumerate(labels)
    ]
    return table(["label", *counts], rows) if counts else ""


def _reproduction(report: Report) -> str:
    return code("\n".join(report.commands)) + folded(
        "Versions, machine and digests", _facts_table("made with", report.environment)
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


def _facts_table(title: str, facts: Mapping[str, object]) -> str:
    return table([title, ""], [[name, in_words(value)] for name, value in facts.items()])


def _split_table(facts: Mapping[str, Mapping[str, object]]) -> str:
    names = list(dict.fromkeys(name for split in facts.values() for name in split))
    return table(["", *facts], [[name, *(in_words(split.get(name)) for split in facts.values())] for name in names])


def shortened(text: str, max_length: int = MAX_TEXT_LENGTH) -> str:
    """Returns a text on one line of at most so many characters."""
    shown = " ".join(text.split())
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def _plain(text: str) -> str:
    """Returns text on one line that Markdown shows as it is."""
    return "".join(f"\\{mark}" if mark in r"\`*_{}[]<>()#+!|~&$" else mark for mark in " ".join(text.split()))


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
