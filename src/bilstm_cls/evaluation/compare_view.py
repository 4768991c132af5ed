"""A comparison of runs for the eye: a table in a terminal, or a page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bilstm_cls.evaluation.compare import Comparison, Difference, Estimate
from bilstm_cls.evaluation.page import REPORT_STYLE, Part, card, section, table, whiskers, whole_page, words
from bilstm_cls.evaluation.report import shortened
from bilstm_cls.files import write_atomic

SIGNIFICANT = 0.05
TERMINAL_TEXT = 100
_METHOD = (
    "The 95 % intervals of the differences are of the paired bootstrap, which draws texts with both their answers. "
    "McNemar's exact test asks how probable it is that one run alone answers so many more texts rightly where both err "
    "as often. Of many runs compared, one will seem better by chance."
)


def comparison_table(comparison: Comparison, limit: int) -> str:
    """Returns what `report` prints of several runs, with at most `limit` disagreements."""
    lines = [f"{comparison.split} split, {len(comparison.label_ids):,} texts", ""]
    lines += _aligned(*_scores(comparison))
    lines += ["", *_aligned(*_differences(comparison)), ""]
    lines += [_verdict(comparison.runs[0].name, difference) for difference in comparison.differences]
    number = len(comparison.disagreements)
    lines.append(f"They answer {number:,} texts differently{_shown(number, limit)}")
    for i in comparison.disagreements[:limit].tolist():
        answers = ", ".join(
            f"{run.name} {comparison.labels[run.answers[i]]} {run.probabilities[i]:.3f}" for run in comparison.runs
        )
        label = comparison.labels[comparison.label_ids[i]]
        lines.append(f"  {comparison.places[i]}: label {label}; {answers}")
        lines.append(f"    {_printable(shortened(comparison.texts[i], TERMINAL_TEXT))}")
    return "\n".join(lines)


def write_comparison(path: Path, comparison: Comparison, limit: int) -> None:
    """Writes one HTML file that loads nothing, with at most `limit` disagreements."""
    first = comparison.runs[0]
    accuracies = {run.name: (run.scores["accuracy"], run.interval) for run in comparison.runs}
    number = len(comparison.disagreements)
    f1 = [
        [label, *(f"{run.f1[i]:.4f}" for run in comparison.runs), f"{int((comparison.label_ids == i).sum()):,}"]
        for i, label in enumerate(comparison.labels)
    ]
    verdicts = "".join(f"<p>{escape(_verdict(first.name, difference))}</p>" for difference in comparison.differences)
    body = [
        f'<p class="score">Accuracy on the {escape(comparison.split)} split, {len(comparison.label_ids):,} texts</p>',
        whiskers(accuracies, first.name),
        section("Scores", table(*_scores(comparison))),
        section(
            f"Against {first.name}",
            f'{table(*_differences(comparison))}{verdicts}<p class="quiet">{escape(_METHOD)}</p>',
        ),
        section("F1 by label", table(["label", *(run.name for run in comparison.runs), "texts"], f1)),
        section(
            f"{number:,} texts that they answer differently",
            f"<p>The greatest difference in loss first{f', {limit:,} of them' if number > limit else ''}.</p>"
            f"{_cards(comparison, limit)}"
            if number
            else "",
        ),
    ]
    title = " and ".join(run.name for run in comparison.runs)
    write_atomic(path, whole_page(title, "\n".join(body), style=REPORT_STYLE))


def _scores(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            run.name,
            f"{run.scores['accuracy']:.4f}",
            "{:.4f} to {:.4f}".format(*run.interval),
            *(f"{run.scores[name]:.4f}" for name in ("macro_f1", "log_loss", "ece")),
        ]
        for run in comparison.runs
    ]
    return ["run", "accuracy", "95 % interval", "macro F1", "log loss", "ECE"], rows


def _differences(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            found.name,
            *(_signed(found.scores[name]) for name in ("accuracy", "macro_f1", "log_loss")),
            f"{found.only_first:,} : {found.only_other:,}",
            f"{found.p_value:.3g}",
        ]
        for found in comparison.differences
    ]
    head = [f"minus {comparison.runs[0].name}", "accuracy", "macro F1", "log loss", "right alone", "McNemar's p"]
    return head, rows


def _signed(score: Estimate) -> str:
    return f"{score.value:+.4f} ({score.low:+.4f} to {score.high:+.4f})"


def _verdict(first: str, found: Difference) -> str:
    better = found.name if found.only_other > found.only_first else first
    alone = f"{first} alone is right on {found.only_first:,} texts, {found.name} alone on {found.only_other:,}"
    if found.p_value < SIGNIFICANT:
        return f"{alone}: {better} is better, and chance rarely does that (p = {found.p_value:.3g})."
    return f"{alone}: the difference may well be chance (p = {found.p_value:.3g})."


def _shown(number: int, limit: int) -> str:
    if number == 0 or limit == 0:
        return "."
    return f"; the {limit:,} that differ most in loss:" if number > limit else ", by their difference in loss:"


def _cards(comparison: Comparison, limit: int) -> str:
    cards = []
    for i in comparison.disagreements[:limit].tolist():
        label = comparison.labels[comparison.label_ids[i]]
        answers = "".join(
            f'<span dir="auto">{escape(run.name)} <b>{escape(comparison.labels[run.answers[i]])}</b> '
            f"{run.probabilities[i]:.1%}</span>"
            for run in comparison.runs
        )
        place = f'<span class="quiet" dir="auto">{escape(comparison.places[i])}</span>'
        head = f'<span dir="auto">label <b>{escape(label)}</b></span>{answers}{place}'
        cards.append(card(head, words([Part(shortened(comparison.texts[i]))])))
    return "".join(cards)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, *rows))
    return ["  ".join(line).rstrip() for line in lines]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
