"""What a browser would make of a page, and of a picture."""

import struct
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img"}
REFERENCES = {"src", "href", "srcset", "xlink:href", "data", "poster", "action"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source.replace("\r\n", "\n").replace("\r", "\n"))  # as browsers do
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def check_loads_nothing(self, source: str) -> None:
        places = [value or "" for _, found in self.elements for name, value in found.items() if name in REFERENCES]
        assert all(place.startswith(("#", "data:image/png")) for place in places)
        assert "url(" not in source
        assert {tag for tag, _ in self.elements}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
        policy = [found.get("content") or "" for _, found in self.elements if "http-equiv" in found]
        assert policy[0].startswith("default-src 'none'")


def png_size(content: bytes) -> tuple[int, int]:
    """Returns width and height of a PNG file that is whole."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    return width, height
