"""Pieces of a web page that loads nothing: all text is escaped, pictures are inside, no script runs."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text.

    Attributes:
        text: shown as it is.
        strength: its colour, from -1, against, to 1, for; 0 is none.
        title: shown when it is pointed at.
        is_quiet: whether it stands back.
    """

    text: str
    strength: float = 0.0
    title: str = ""
    is_quiet: bool = False


def whole_page(title: str, body: str) -> bytes:
    """Returns a page of the given title, which is text, and body, which is markup."""
    page = _PAGE.substitute(title=escape(title), style=STYLE, body=body)
    return page.encode("utf-8", "replace")  # lone surrogates have no bytes


def bars(shares: Mapping[str, float]) -> str:
    """Draws shares of 1, by name, as bars."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="bar"><span style="width:{share:.2%}"></span></td>'
        f"<td>{share:.2%}</td></tr>"
        for name, share in shares.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def section(title: str, body: str) -> str:
    """Puts a heading over markup; nothing where the markup is empty."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def picture(plot: Path, caption: str) -> str:
    """Holds a PNG file inside the page."""
    content = base64.b64encode(plot.read_bytes()).decode("ascii")
    return f'<img alt="{escape(caption)}" src="data:image/png;base64,{content}">'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out text in rows; nothing where there are none."""
    if not rows:
        return ""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = ["".join(f'<td dir="auto">{escape(cell)}</td>' for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def code(text: str) -> str:
    """Shows text as it is."""
    return f"<pre>{escape(text)}</pre>"


def words(parts: Iterable[Part]) -> str:
    """Shows a text with its parts coloured, blanks and line ends kept."""
    return f'<p class="words" dir="auto">{"".join(map(_coloured, parts))}</p>'


def legend(parts: Iterable[Part]) -> str:
    """Shows what the colours of `words` mean."""
    return f'<p class="legend">{" ".join(map(_coloured, parts))}</p>'


def folded(title: str, body: str) -> str:
    """Hides markup under a title until it is asked for; nothing where the markup is empty."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def _coloured(part: Part) -> str:
    text = escape(part.text).replace("\r", "&#13;")  # which would be read as the end of a line
    title = f' title="{escape(part.title)}"' if part.title else ""
    if part.strength:
        side = "for" if part.strength > 0 else "against"
        return f'<span class="{side}" style="--strength:{min(1.0, abs(part.strength)):.3f}"{title}>{text}</span>'
    quiet = ' class="quiet"' if part.is_quiet else ""
    return f"<span{quiet}{title}>{text}</span>" if quiet or title else text


def in_words(value: object) -> str:
    """Writes a number with thousands marked and four digits, and nothing as a dash."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--quiet:#5f5f5f;--paper:#fff;--line:#ddd;--soft:#f5f5f3;--bar:#0072b2;
--warn:#fff3d6;--edge:#e69f00}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--quiet:#a3a3a3;--paper:#161616;--line:#3a3a3a;--soft:#212121;
--bar:#56b4e9;--warn:#3a2f12}}
*{box-sizing:border-box}
body{max-width:60rem;margin:auto;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif}
h1{margin:0 0 1rem;overflow-wrap:anywhere}h2{margin:2.5rem 0 .75rem;font-size:1.2rem}
.note{padding:.6rem .9rem;background:var(--warn);border-inline-start:4px solid var(--edge)}
.score{margin:.5rem 0;font-size:1.1rem}.score strong{font-size:2.4rem;margin-inline-end:.3rem}.quiet{color:var(--quiet)}
dl{display:flex;flex-wrap:wrap;gap:.5rem 2rem}dt{color:var(--quiet);font-size:.85rem}
dd{margin:0;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}table{width:100%;border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:start;vertical-align:top}
td{overflow-wrap:anywhere;min-width:3.5rem}thead th{color:var(--quiet);font-weight:600}
.bar{width:60%}.bar span{display:block;height:.9rem;margin-top:.2rem;background:var(--bar);print-color-adjust:exact}
img{display:block;max-width:100%;height:auto;margin:auto;padding:.5rem;background:#fff;border-radius:.4rem}
.words{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9}.legend{font-size:.85rem}
.for,.against{padding:.1em .12em;border-radius:.2em;print-color-adjust:exact}
.for{background:rgb(0 114 178/calc(.62*var(--strength)))}.against{background:rgb(230 110 0/calc(.68*var(--strength)))}
.legend span{padding:.2em .5em;margin-inline-end:.3rem}summary{cursor:pointer;color:var(--quiet);font-size:.9rem}
pre{overflow-x:auto;padding:.8rem;background:var(--soft);font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{max-width:none;padding:0}img,tr{break-inside:avoid}h2{break-after:avoid}}
""".strip()
"""The look of every page: light or dark as the reader has it, down to a phone's width."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<h1 dir="auto">$title</h1>
$body
</body>
</html>
""")
