"""Pieces of a web page that loads nothing: all text is escaped, pictures are inside, no script runs."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from xml.etree import ElementTree


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


def whole_page(title: str, body: str, *, style: str = "") -> bytes:
    """Returns a page of the given title, which is text, and body, which is markup.

    Args:
        title: text.
        body: markup.
        style: what is added to `STYLE`.
    """
    page = _PAGE.substitute(title=escape(title), style=f"{STYLE}\n{style}".strip(), body=body)
    return page.encode("utf-8", "replace")  # lone surrogates have no bytes


def bars(shares: Mapping[str, float]) -> str:
    """Draws shares of 1, by name, as bars."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="bar"><span style="width:{share:.2%}"></span></td>'
        f"<td>{share:.2%}</td></tr>"
        for name, share in shares.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def whiskers(shares: Mapping[str, tuple[float, tuple[float, float] | None]], highlighted: str) -> str:
    """Draws shares of 1, by name, as bars with the interval that each may lie in; one of them in a stronger colour."""
    rows = "".join(
        f'<tr{" class=own" if name == highlighted else ""}><th scope="row">{escape(name)}</th><td class="bar">'
        f'<span style="width:{share:.2%}"></span>{_whisker(interval)}</td><td>{share:.2%}{_range(interval)}</td></tr>'
        for name, (share, interval) in shares.items()
    )
    return f'<table class="scores"><tbody>{rows}</tbody></table>'


def _whisker(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f'<i style="left:{low:.2%};width:{high - low:.2%}"></i>'


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f' <small class="quiet">{interval[0]:.1%} to {interval[1]:.1%}</small>'


def section(title: str, body: str, *, anchor: str = "") -> str:
    """Puts a heading over markup; nothing where the markup is empty.

    Args:
        title: text.
        body: markup.
        anchor: by which `contents` finds it.
    """
    place = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{place}><h2>{escape(title)}</h2>{body}</section>" if body else ""


def contents(titles: Mapping[str, str]) -> str:
    """Links to sections: titles by anchor."""
    links = "".join(f'<a href="#{escape(anchor)}">{escape(title)}</a>' for anchor, title in titles.items())
    return f"<nav>{links}</nav>"


def figures(drawings: Sequence[str]) -> str:
    """Puts drawings side by side where there is room; nothing where there are none."""
    return f'<div class="figures">{"".join(drawings)}</div>' if drawings else ""


def beside(*parts: str) -> str:
    """Puts pieces of markup side by side where there is room; nothing where all are empty."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>' if any(parts) else ""


def drawing(path: Path, caption: str) -> str:
    """Holds an SVG file of `plots` inside the page, in the page's own colours and letters."""
    source = path.read_text("utf-8")
    root = ElementTree.fromstring(source)  # noqa: S314  # of a file that we wrote
    wanted = set(re.findall(r"#([\w.-]+)", source))
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in _DROPPED:
                element.remove(child)
        if element.get("id") not in wanted:
            element.attrib.pop("id", None)
        if (target := element.attrib.pop(_LINK, None)) is not None:
            element.set("href", target)
        parts = [part for part in element.attrib.pop("style", "").split("; ") if part and _FONT not in part]
        if parts:
            element.set("style", ";".join(map(_in_page_colour, parts)))
        element.tag = element.tag.removeprefix(_SVG)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": caption, "style": f"max-width:{1.45 * width:.0f}px"}
    drawn = ElementTree.tostring(root, encoding="unicode")
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def _in_page_colour(style: str) -> str:
    name, _, value = style.partition(": ")
    return f"{name}:{_COLOURS.get(value.lower(), value)}"


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


def card(head: str, body: str) -> str:
    """Frames markup under a head, which is markup too."""
    return f"<article><header>{head}</header>{body}</article>"


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
.legend span{display:inline-block;padding:.2em .5em;margin:0 .3rem .3rem 0}
summary{cursor:pointer;color:var(--quiet);font-size:.9rem}
pre{overflow-x:auto;padding:.8rem;background:var(--soft);font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{max-width:none;padding:0}img,tr{break-inside:avoid}h2{break-after:avoid}}
""".strip()
"""The look of every page: light or dark as the reader has it, down to a phone's width."""

_SVG, _LINK, _FONT = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href", "font-family"
_DROPPED = {f"{_SVG}metadata", f"{_SVG}style"}
_COLOURS = {
    "#000000": "currentColor", "#0072b2": "var(--blue)", "#e69f00": "var(--orange)", "#009e73": "var(--green)",
    "#d55e00": "var(--vermilion)", "#666666": "var(--quiet)", "#b0b0b0": "var(--quiet)",
}  # fmt: skip
"""What stands on a page for the colours of `plots`, so that they suit a dark one too."""

_LIGHT = """
--ink:#1c1e21;--quiet:#5c6370;--paper:#fff;--line:#dcdfe4;--soft:#f5f6f8;--bar:#0072b2;--other:#a9bccb;
--blue:#0072b2;--orange:#c98500;--green:#009e73;--vermilion:#d55e00;--warn:#fff6e0
""".strip()
_DARK = """
--ink:#e6e8eb;--quiet:#9aa3ad;--paper:#14171a;--line:#343a40;--soft:#1d2125;--bar:#3d9bd6;--other:#4a5d6b;
--blue:#56b4e9;--orange:#f0b429;--green:#3fc99f;--vermilion:#ff8a4c;--warn:#332a12
""".strip()

REPORT_STYLE = (
    f":root{{{_LIGHT}}}\n@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}\n"
    f"@media print{{:root{{color-scheme:light;{_LIGHT}}}}}\n"
    + """
body{max-width:64rem}
body,figure text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{line-height:1.2}h2{margin:2.75rem 0 .9rem;padding-top:.9rem;border-top:1px solid var(--line);font-size:1.25rem}
h3{margin:1.5rem 0 .5rem;font-size:1rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1.5rem 0 0;font-size:.9rem}
a{color:var(--blue);text-decoration-thickness:1px;text-underline-offset:.2em}
.note{margin:.6rem 0}.score strong{font-size:2.8rem;letter-spacing:-.02em}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(7.5rem,1fr));gap:.6rem;margin:1.2rem 0}
dl div{padding:.55rem .8rem;background:var(--soft);border-radius:.5rem}dt{font-size:.8rem}dd{font-size:1.1rem}
.scores th{width:24%;font-weight:400}.scores .own th,.scores .own td{font-weight:600}.scores small{font-weight:400}
.scores td,.scores th{vertical-align:middle}.scores td:last-child{white-space:nowrap}
.scores .bar{position:relative;width:50%;padding-inline:0}
.scores .bar span{height:1.2rem;margin:0;background:var(--other);border-radius:0 .2rem .2rem 0}
.scores .own .bar span{background:var(--bar)}
.scores i{position:absolute;top:calc(50% - .3rem);height:.6rem;border:solid var(--ink);border-width:0 2px}
.scores i::after{content:"";position:absolute;inset:calc(50% - 1px) 0 auto;height:2px;background:var(--ink)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr));gap:1rem;align-items:start}
figure{margin:0;min-width:0}figure svg{display:block;width:100%;height:auto;margin:auto;stroke-linejoin:round}
figure text{fill:currentColor}figcaption{margin-top:.3rem;color:var(--quiet);font-size:.85rem;text-align:center}
article{margin:.8rem 0;padding:.7rem .9rem;border:1px solid var(--line);border-radius:.5rem;break-inside:avoid}
article header{display:flex;flex-wrap:wrap;gap:.1rem .9rem;align-items:baseline;font-size:.9rem}
article header span{min-width:0;overflow-wrap:anywhere}
article .words{margin:.4rem 0 0;font-size:.92rem;line-height:1.7;white-space:normal}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem 2rem;align-items:start}
.beside>*{min-width:0}.wide{margin:.8rem 0}.wide td{overflow-wrap:break-word;min-width:0}
pre{border-radius:.5rem}details{margin:.6rem 0}details[open] summary{margin-bottom:.4rem}
@media(max-width:40rem){h2{margin-top:2rem}th,td{padding:.35rem .4rem}.scores th{width:30%}.scores .bar{width:36%}
.scores td:last-child{white-space:normal}.scores small{display:block}}
@media print{nav{display:none}figure{break-inside:avoid}
details::details-content{content-visibility:visible;block-size:auto}}
""".strip()
)
"""What is added to it for reports: tiles, figures, cards, and bars with intervals."""

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
