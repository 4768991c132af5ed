"""An explanation as the whole text, cut into stretches that each have a colour."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bilstm_cls.evaluation.explain import Explanation
from bilstm_cls.evaluation.page import Part

UNREAD = "not read by the model: the text is longer than text.max_length"

FAINTEST = 0.1
"""Share of the strongest value below which a word of an excerpt has no colour."""


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


def strongest_value(explanation: Explanation) -> float:
    """Returns the greatest value without its sign, and not 0: full colour."""
    return max((abs(span.value or 0.0) for span in spans(explanation)), default=0.0) or 1.0


def part_of(span: Span, strongest: float) -> Part:
    """Returns a span as a part of a page's text, to be pointed at for its value."""
    if span.value is None:
        return Part(span.text, title=UNREAD if span.is_unread else "", is_quiet=span.is_unread)
    title = f"{span.value:+.4f}{'' if span.is_known else ', not in the vocabulary'}"
    return Part(span.text, span.value / strongest, title)


def excerpt(explanation: Explanation, max_length: int) -> list[Part]:
    """Returns the stretch of a text in which its words move the answer most, up to `max_length` characters."""
    found = spans(explanation)
    strongest = strongest_value(explanation)
    ends = np.cumsum([0, *(len(span.text) for span in found)])
    sums = np.cumsum([0.0, *(abs(span.value or 0.0) for span in found)])
    stops = np.maximum(np.searchsorted(ends, ends[:-1] + max_length, side="right") - 1, np.arange(len(found)) + 1)
    start = int((sums[stops] - sums[:-1]).argmax()) if found else 0
    stop = int(stops[start]) if found else 0
    parts = []
    for span in found[start:stop]:
        part = part_of(span, strongest)
        text = part.text[:max_length]
        is_faint = abs(part.strength) < FAINTEST
        parts.append(Part(text, 0.0 if is_faint else part.strength, "" if is_faint else part.title, part.is_quiet))
    before = [Part("… ")] if start > 0 else []
    return [*before, *parts, *([Part(" …")] if stop < len(found) else [])]
