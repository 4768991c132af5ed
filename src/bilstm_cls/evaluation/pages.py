"""Pages that load nothing, and the same for a terminal: texts with their words coloured by an explanation."""

import base64
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bilstm_cls.evaluation.explain import OCCLUSION, Explanation
from bilstm_cls.files import write_atomic
from bilstm_cls.runtime import Prediction

if TYPE_CHECKING:
    from jinja2 import Environment

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")

MAX_STRONGEST, MAX_LABELS = 10, 20
UNREAD = "not read by the network: the text is longer than text.max_length"
_FAINTEST = 0.1
"""Fraction of the strongest value below which a word of an excerpt has no colour, or in a terminal."""

_BLACK, _WHITE = 16, 231
_FOR = ((103, _BLACK), (67, _BLACK), (31, _BLACK), (25, _WHITE))
_AGAINST = ((138, _BLACK), (137, _BLACK), (172, _BLACK), (166, _BLACK))
"""Background and letters from weak to strong, of a terminal's 256 colours: greys that turn blue and vermilion. The
colour-blind can tell these apart, and they show on black and on white."""


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "shortened": shortened, "picture": picture, "width": width, "verbatim": _verbatim,
        "markdown": markdown,
    }  # fmt: skip
    environment.globals |= {"zip": zip}
    return environment


def render(template: str, **values: Any) -> str:
    """Fills a file of `templates/`: in `.html` all values are escaped. Lone surrogates become question marks."""
    shown = _environment().get_template(template).render(**values)
    return shown.encode("utf-8", "replace").decode("utf-8")


def number(value: object) -> str:
    """Writes a number with thousands separated and four digits, and nothing as a dash."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shortened(text: str, max_length: int = 600) -> str:
    """Returns a text on one line of at most so many characters."""
    shown = " ".join(text.split())
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def printable(text: str) -> str:
    """Returns a text on one line that does not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def picture(path: Path) -> str:
    """Returns a PNG file as the address of a picture that is inside the page."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def width(path: Path) -> int:
    """Returns how wide a PNG file of twice the pixels is to be shown."""
    return int.from_bytes(path.read_bytes()[16:20], "big") // 2


def markdown(text: str) -> str:
    """Returns text on one line that Markdown shows as it is."""
    return "".join(f"\\{mark}" if mark in r"\`*_{}[]<>()#+!|~&$" else mark for mark in " ".join(text.split()))


def _verbatim(text: str) -> Any:
    from markupsafe import Markup, escape

    return Markup(str(escape(text)).replace("\r", "&#13;"))  # noqa: S704  # escaped; \r would be read as a line's end


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a text: one token or several that share a character, or (value None) what is between them."""

    text: str
    value: float | None = None
    is_known: bool = True
    is_unread: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text on a page: its colour from -1, against, to 1, for; what is shown when it is pointed at."""

    text: str
    strength: float = 0.0
    title: str = ""
    is_quiet: bool = False


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


def parts_of(explanation: Explanation) -> list[Part]:
    """Returns the whole text in parts, each to be pointed at for its value."""
    strongest = strongest_value(explanation)
    return [_part_of(span, strongest) for span in spans(explanation)]


def _part_of(span: Span, strongest: float) -> Part:
    if span.value is None:
        return Part(span.text, title=UNREAD if span.is_unread else "", is_quiet=span.is_unread)
    title = f"{span.value:+.4f}{'' if span.is_known else ', not in the vocabulary'}"
    return Part(span.text, span.value / strongest, title)


def excerpt(explanation: Explanation, max_length: int) -> list[Part]:
    """Returns the stretch of a text in which its words change the prediction most, up to `max_length` characters."""
    found = parts_of(explanation)
    ends = np.cumsum([0, *(len(part.text) for part in found)])
    sums = np.cumsum([0.0, *(abs(part.strength) for part in found)])
    stops = np.maximum(np.searchsorted(ends, ends[:-1] + max_length, side="right") - 1, np.arange(len(found)) + 1)
    start = int((sums[stops] - sums[:-1]).argmax()) if found else 0
    stop = int(stops[start]) if found else 0
    shown = []
    for part in found[start:stop]:
        is_faint = abs(part.strength) < _FAINTEST
        text = part.text[:max_length]
        shown.append(Part(text, is_quiet=part.is_quiet) if is_faint else Part(text, part.strength, part.title))
    before = [Part("… ")] if start > 0 else []
    return [*before, *shown, *([Part(" …")] if stop < len(found) else [])]


def has_colours(is_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether output may be coloured: to a terminal that can, where `NO_COLOR` is not set."""
    return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def explanation_lines(prediction: Prediction, explanation: Explanation, *, is_coloured: bool) -> Iterator[str]:
    """Yields lines for a terminal: label, probability and text; the sum; without colours the strongest words."""
    parts = parts_of(explanation)
    shown = [_in_terminal(part) if is_coloured else printable(part.text) for part in parts]
    yield f"{printable(prediction.label)}\t{prediction.probability:.4f}\t{''.join(shown)}"
    yield f"  {_summary(explanation)}"
    if is_coloured:
        yield "  " + " ".join(_painted(f" {part.text} ", part.strength) for part in _key(explanation))
    else:
        yield from (f"  {value}  {word}" for value, word in _strongest(explanation))


def write_explanations(path: Path, title: str, explained: Iterable[tuple[Prediction, Explanation]]) -> None:
    """Writes one page that loads nothing, with every text, its words coloured, and the numbers."""
    texts = [
        {
            "prediction": prediction,
            "probabilities": sorted(prediction.probabilities.items(), key=lambda row: -row[1])[:MAX_LABELS],
            "parts": parts_of(explanation),
            "legend": [*_key(explanation), *([Part(UNREAD, is_quiet=True)] if explanation.unread else [])],
            "summary": _summary(explanation),
            "strongest": _strongest(explanation),
            "method": explanation.method,
        }
        for prediction, explanation in explained
    ]
    write_atomic(path, render("explanations.html", title=title, texts=texts))
    logger.info(f"wrote {path}")


def _in_terminal(part: Part) -> str:
    text = printable(part.text)
    return f"\x1b[2m{text}\x1b[0m" if part.is_quiet else _painted(text, part.strength)


def _painted(text: str, strength: float) -> str:
    if abs(strength) < _FAINTEST:
        return text
    ramp = _FOR if strength > 0 else _AGAINST
    background, letters = ramp[min(len(ramp) - 1, int(abs(strength) * len(ramp)))]
    return f"\x1b[48;5;{background};38;5;{letters}m{text}\x1b[0m"


def _key(explanation: Explanation) -> list[Part]:
    """Returns what the colours mean."""
    if not any(term.token for term in explanation.terms):
        return [Part("a text without tokens: read as one unknown token")]
    scale = strongest_value(explanation)
    return [
        Part(f"for {printable(explanation.label)}, full colour at {scale:+.3f}", 1.0),
        Part(f"against it, full colour at {-scale:+.3f}", -1.0),
    ]


def _summary(explanation: Explanation) -> str:
    label, count = printable(explanation.label), len(explanation.terms)
    logit = f"logit of {label} over the others {explanation.logit:+.4f}"
    if explanation.method == OCCLUSION:
        return f"{logit}; occlusion: what it loses when a word is left out"
    assert explanation.bias is not None
    assert explanation.error is not None
    terms = f"{count:,} {'term' if count == 1 else 'terms'}"
    return f"{logit} = bias {explanation.bias:+.4f} and {terms}; {explanation.method}, error {explanation.error:.1e}"


def _strongest(explanation: Explanation) -> list[tuple[str, str]]:
    found = [(span.value, span.text) for span in spans(explanation) if span.value is not None]
    found.sort(key=lambda row: -abs(row[0]))
    return [(f"{value:+.4f}", printable(text)) for value, text in found[:MAX_STRONGEST]]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
