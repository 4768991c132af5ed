"""Explanations for the eye: words coloured in a terminal or on a page, or a table of the strongest."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bilstm_cls.evaluation.page import Part, bars, folded, legend, section, table, whole_page, words
from bilstm_cls.files import write_atomic
from bilstm_cls.serve.classifier import Prediction
from bilstm_cls.serve.explain import Explanation

logger = logging.getLogger(__name__)

MAX_STRONGEST = 10
_FAINTEST = 0.08
"""Share of the strongest value below which a word keeps the terminal's own colour."""

_BLACK, _WHITE = 16, 231
_FOR = ((103, _BLACK), (67, _BLACK), (31, _BLACK), (25, _WHITE))
_AGAINST = ((138, _BLACK), (137, _BLACK), (172, _BLACK), (166, _BLACK))
"""Background and letters from weak to strong, of a terminal's 256 colours: greys that turn blue and vermilion. The
colour-blind can tell these apart, and they show on black and on white."""

_UNREAD = "not read by the model: the text is longer than text.max_length"
_INTRODUCTION = (
    "Each word is coloured by what it adds to the logit of the answer, taken over the mean of the others' logits: "
    "for two labels, the logarithm of the odds. What a word adds depends on the words around it, which the model has "
    "read too. Point at a word for its value."
)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the text: one token or several that share a character, or (value None) what is between them."""

    text: str
    value: float | None = None
    is_known: bool = True
    is_unread: bool = False


def spans(explanation: Explanation) -> list[Span]:
    """Cuts the whole text into spans; joined they are the text."""
    text, unread, found = explanation.text, explanation.unread, list[Span]()
    merged: list[tuple[int, int, float, bool]] = []
    for term in explanation.terms:
        start, value, is_known = term.start, term.value, term.is_known
        if merged and start < merged[-1][1]:
            start, _, before, was_known = merged.pop()
            value, is_known = before + value, was_known and is_known
        merged.append((start, term.stop, value, is_known))
    position = 0
    for start, stop, value, is_known in merged:
        found += _between(text, position, start, unread)
        found.append(Span(text[start:stop], value, is_known))
        position = stop
    return [span for span in [*found, *_between(text, position, len(text), unread)] if span.text]


def _between(text: str, start: int, stop: int, unread: tuple[int, int] | None) -> Iterator[Span]:
    if unread is None or not start <= unread[0] < stop:
        yield Span(text[start:stop])
        return
    yield Span(text[start : unread[0]])
    yield Span(text[slice(*unread)], is_unread=True)
    yield Span(text[unread[1] : stop])


def has_colours(is_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether output may be coloured: to a terminal that can, where `NO_COLOR` is not set."""
    return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def explanation_lines(prediction: Prediction, explanation: Explanation, *, is_coloured: bool) -> Iterator[str]:
    """Yields lines for a terminal: label, probability and text; the sum; without colours the strongest words."""
    scale = _scale(explanation)
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
    scale = _scale(explanation)
    unread = [Part(_UNREAD, is_quiet=True)] if explanation.unread else []
    parts = [
        words(_on_page(span, scale) for span in spans(explanation)),
        legend([*(Part(name, strength) for name, strength in _key(explanation)), *unread]),
        f'<p class="quiet">{escape(_sum(explanation))}</p>',
        folded("Strongest words", table(["value", "word"], _strongest(explanation))),
        folded("All labels", bars(prediction.probabilities)),
    ]
    return section(f"{number}. {prediction.label}: {prediction.probability:.2%}", "\n".join(parts))


def _on_page(span: Span, scale: float) -> Part:
    if span.value is None:
        return Part(span.text, title=_UNREAD if span.is_unread else "", is_quiet=span.is_unread)
    title = f"{span.value:+.4f}{'' if span.is_known else ', not in the vocabulary'}"
    return Part(span.text, span.value / scale, title)


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
    scale = _scale(explanation)
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


def _scale(explanation: Explanation) -> float:
    """The greatest value without its sign, and not 0."""
    return max((abs(span.value or 0.0) for span in spans(explanation)), default=0.0) or 1.0


def printable(text: str) -> str:
    """Returns a text on one line that leaves the terminal alone."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
