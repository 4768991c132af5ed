"""Explanations for the eye: words coloured in a terminal or on a page, or a table of the strongest."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path

from bilstm_cls.classifier import Prediction
from bilstm_cls.evaluation.coloured import UNREAD, Span, part_of, spans, strongest_value
from bilstm_cls.evaluation.explain import Explanation
from bilstm_cls.evaluation.page import Part, bars, folded, legend, section, table, whole_page, words
from bilstm_cls.files import write_atomic

logger = logging.getLogger(__name__)

MAX_STRONGEST = 10
_FAINTEST = 0.08
"""Share of the strongest value below which a word keeps the terminal's own colour."""

_BLACK, _WHITE = 16, 231
_FOR = ((103, _BLACK), (67, _BLACK), (31, _BLACK), (25, _WHITE))
_AGAINST = ((138, _BLACK), (137, _BLACK), (172, _BLACK), (166, _BLACK))
"""Background and letters from weak to strong, of a terminal's 256 colours: greys that turn blue and vermilion. The
colour-blind can tell these apart, and they show on black and on white."""

_INTRODUCTION = (
    "Each word is coloured by what it adds to the logit of the answer, taken over the mean of the others' logits: "
    "for two labels, the logarithm of the odds. What a word adds depends on the words around it, which the model has "
    "read too. Point at a word for its value."
)


def has_colours(is_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether output may be coloured: to a terminal that can, where `NO_COLOR` is not set."""
    return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def explanation_lines(prediction: Prediction, explanation: Explanation, *, is_coloured: bool) -> Iterator[str]:
    """Yields lines for a terminal: label, probability and text; the sum; without colours the strongest words."""
    scale = strongest_value(explanation)
    shown = [_in_terminal(span, scale) if is_coloured else printable(span.text) for span in spans(explanation)]
    yield f"{printable(prediction.label)}\t{prediction.probability:.4f}\t{''.join(shown)}"
    yield f"  {_sum(explanation)}"
    if is_coloured:
        yield "  " + " ".join(_painted(f" {name} ", strength) for name, strength in _key(explanation))
    else:
        yield from (f"  {value}  {word}" for value, word in _strongest(explanation))


def write_explanations(path: Path, title: str, explained: Iterable[tuple[Prediction, Explanation]]) -> None:
    """Writes one page that loads nothing, with every text, its words coloured, and the numbers."""
    texts = (_text_section(i, *pair) for i, pair in enumerate(explained, 1))
    write_atomic(path, whole_page(title, "\n".join([f"<p>{escape(_INTRODUCTION)}</p>", *texts])))
    logger.info(f"wrote {path}")


def _text_section(number: int, prediction: Prediction, explanation: Explanation) -> str:
    scale = strongest_value(explanation)
    unread = [Part(UNREAD, is_quiet=True)] if explanation.unread else []
    parts = [
        words(part_of(span, scale) for span in spans(explanation)),
        legend([*(Part(name, strength) for name, strength in _key(explanation)), *unread]),
        f'<p class="quiet">{escape(_sum(explanation))}</p>',
        folded("Strongest words", table(["value", "word"], _strongest(explanation))),
        folded("All labels", bars(prediction.probabilities)),
    ]
    return section(f"{number}. {prediction.label}: {prediction.probability:.2%}", "\n".join(parts))


def _in_terminal(span: Span, scale: float) -> str:
    text = printable(span.text)
    return f"\x1b[2m{text}\x1b[0m" if span.is_unread else _painted(text, (span.value or 0.0) / scale)


def _painted(text: str, strength: float) -> str:
    if abs(strength) < _FAINTEST:
        return text
    ramp = _FOR if strength > 0 else _AGAINST
    background, letters = ramp[min(len(ramp) - 1, int(abs(strength) * len(ramp)))]
    return f"\x1b[48;5;{background};38;5;{letters}m{text}\x1b[0m"


def _key(explanation: Explanation) -> list[tuple[str, float]]:
    """What the colours mean: words, each to be shown with a strength."""
    if not any(term.token for term in explanation.terms):
        return [("a text without tokens: read as one unknown token", 0.0)]
    scale = strongest_value(explanation)
    return [
        (f"for {printable(explanation.label)}, full colour at {scale:+.3f}", 1.0),
        (f"against it, full colour at {-scale:+.3f}", -1.0),
    ]


def _sum(explanation: Explanation) -> str:
    label, number = printable(explanation.label), len(explanation.terms)
    return (
        f"logit of {label} over the others {explanation.logit:+.4f} = bias {explanation.bias:+.4f} and {number:,} "
        f"{'term' if number == 1 else 'terms'}; {explanation.method}, error {explanation.error:.1e}"
    )


def _strongest(explanation: Explanation) -> list[tuple[str, str]]:
    found = [span for span in spans(explanation) if span.value is not None]
    found.sort(key=lambda span: -abs(span.value or 0.0))
    return [(f"{span.value:+.4f}", printable(span.text)) for span in found[:MAX_STRONGEST]]


def printable(text: str) -> str:
    """Returns a text on one line that leaves the terminal alone."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
