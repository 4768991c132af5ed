"""Pages that load nothing, and the same for a terminal: texts with their words coloured by an explanation."""

import base64
import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilstm_cls.data.types import spoken
from bilstm_cls.errors import printable
from bilstm_cls.evaluation.explain import Explanation
from bilstm_cls.files import write_atomic
from bilstm_cls.runtime import Prediction

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")
MAX_STRONGEST = 10
_FAINTEST = 0.1
"""Fraction of the strongest value below which a word of an excerpt has no colour."""

_FOR, _AGAINST, _VISIBLE = 67, 172, 0.25
"""Blue and orange of a terminal's 256 colours, and the fraction of the strongest value from which words have them."""


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "shortened": shortened, "picture": _picture, "markdown": markdown, "spoken": spoken,
        "width": lambda path: int.from_bytes(path.read_bytes()[16:20], "big") // 2,  # of a PNG of twice the pixels
    }  # fmt: skip
    return environment


def render(template: str, **values: Any) -> str:
    """Fills a file of `templates/`: in `.html` all values are escaped. Lone surrogates become question marks."""
    shown: str = _environment().get_template(template).render(**values)
    return shown.encode("utf-8", "replace").decode("utf-8")


def number(value: object) -> str:
    """Writes a number with thousands separated and four digits, and nothing as a dash."""
    if value is None:
        return "—"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def shortened(text: str, max_length: int = 600) -> str:
    """Returns a text on one line of at most so many characters."""
    shown = " ".join(text.split())
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def markdown(text: str) -> str:
    """Returns text on one line that Markdown shows as it is."""
    return "".join(f"\\{mark}" if mark in r"\`*_{}[]<>()#+!|~&$" else mark for mark in " ".join(text.split()))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _picture(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


class Part(NamedTuple):
    """A part of a text on a page: one token, several that share a character, or what is between them.

    `strength` is its colour from -1, against the label, to 1, for it; `title` what is shown when it is pointed at.
    `value`, in nats, is None for what is no token.
    """

    text: str
    strength: float = 0.0
    title: str = ""
    value: float | None = None


def parts_of(explanation: Explanation) -> list[Part]:
    """Cuts the whole text into parts; joined they are the text. The strongest has full colour."""
    pieces: list[tuple[int, int, float, str]] = []
    for _, start, stop, value, is_known in explanation.terms:
        title = "" if is_known else ", not in the vocabulary"
        if pieces and start < pieces[-1][1]:  # byte-pair tokens that share a character
            start, before, other, other_title = pieces.pop()
            stop, value, title = max(stop, before), value + other, title or other_title
        pieces.append((start, stop, value, title))
    scale = max((abs(value) for _, _, value, _ in pieces), default=0.0) or 1.0
    parts, position = list[Part](), 0
    for start, stop, value, title in pieces:
        token = Part(explanation.text[start:stop], value / scale, f"{value:+.4f}{title}", value)
        parts += [Part(explanation.text[position:start]), token]
        position = stop
    return [part for part in [*parts, Part(explanation.text[position:])] if part.text]


def excerpt(explanation: Explanation, max_length: int) -> list[Part]:
    """Returns the stretch of a text in which its words change the prediction most, up to `max_length` characters."""
    found = parts_of(explanation)
    ends = np.cumsum([0, *(len(part.text) for part in found)])
    sums = np.cumsum([0.0, *(abs(part.strength) for part in found)])
    stops = np.maximum(np.searchsorted(ends, ends[:-1] + max_length, side="right") - 1, np.arange(len(found)) + 1)
    start = int((sums[stops] - sums[:-1]).argmax()) if found else 0
    stop = int(stops[start]) if found else 0
    shown = [part if abs(part.strength) >= _FAINTEST else Part(part.text) for part in found]
    shown = [part._replace(text=part.text[:max_length]) for part in shown[start:stop]]
    return [*([Part("… ")] if start > 0 else []), *shown, *([Part(" …")] if stop < len(found) else [])]


def explanation_lines(prediction: Prediction, explanation: Explanation, *, is_coloured: bool) -> Iterator[str]:
    """Yields lines for a terminal: label, probability and text; the sum; without colours the strongest words."""
    parts = parts_of(explanation)
    shown = "".join(_painted(part) if is_coloured else printable(part.text) for part in parts)
    yield f"{printable(explanation.label)}\t{prediction.probabilities[explanation.label]:.4f}\t{shown}"
    yield f"  {_summary(explanation)}"
    if is_coloured:
        yield f"  {_painted(Part(f'for {explanation.label}', 1.0))} {_painted(Part('against it', -1.0))}"
    else:
        yield from ("  ".join(["", *row]) for row in _strongest(parts))


def write_explanations(path: Path, title: str, explained: Iterable[tuple[Prediction, Explanation]]) -> None:
    """Writes one page that loads nothing, with every text, its words coloured, and the numbers."""
    texts = []
    for prediction, explanation in explained:
        parts = parts_of(explanation)
        texts.append({
            "label": explanation.label,
            "probability": prediction.probabilities[explanation.label],
            "parts": parts,
            "summary": _summary(explanation),
            "strongest": _strongest(parts),
        })  # fmt: skip
    write_atomic(path, render("explanations.html", title=title, texts=texts))
    logger.info(f"wrote {path}")


def _painted(part: Part) -> str:
    colour, text = _FOR if part.strength > 0 else _AGAINST, printable(part.text)
    return f"\x1b[48;5;{colour};38;5;16m{text}\x1b[0m" if abs(part.strength) >= _VISIBLE else text


def _strongest(parts: Sequence[Part]) -> list[tuple[str, str]]:
    valued = sorted(
        ((part.value, part.text) for part in parts if part.value is not None), key=lambda pair: -abs(pair[0])
    )
    return [(f"{value:+.4f}", printable(text)) for value, text in valued[:MAX_STRONGEST]]


def _summary(explanation: Explanation) -> str:
    logit = f"logit of {printable(explanation.label)} {explanation.logit:+.4f}"
    return f"{logit}; a word's value is what it loses when the word is left out"
