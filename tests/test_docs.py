"""The pages about the LSTM: their code runs, and their numbers are those that `scripts/lstm-figures` prints."""

import functools
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("lstm*.md"))}
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "lstm-figures"))
MAX_BYTES = 60_000

ON_EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
IN_EVERY_SECTION = pytest.mark.parametrize("number", SCRIPT["SECTIONS"])


@functools.cache
def computed(number: str) -> Any:
    return SCRIPT["SECTIONS"][number]()


def sections_of(page: str) -> dict[str, str]:
    """Returns what stands under each numbered heading."""
    parts = re.split(r"^## (\d+)\. .*\n", PAGES[page], flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks_of(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```", text, re.M | re.S)


def numbers_of(text: str) -> list[str]:
    return [bold for bold in re.findall(r"\*\*(.+?)\*\*", text) if bold[0].isdigit()]


def pictures_of(page: str) -> list[str]:
    return re.findall(r"!\[[^]]+\]\(figures/([^)]+)\)", PAGES[page])


def test_there_is_a_page_in_english_and_one_in_chinese() -> None:
    assert list(PAGES) == ["lstm.md", "lstm.zh.md"]


@ON_EVERY_PAGE
def test_every_python_block_of_the_page_runs(page: str) -> None:
    blocks = blocks_of(PAGES[page], "python")
    assert blocks
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"docs/{page}", "exec"), namespace)


@ON_EVERY_PAGE
def test_the_page_has_the_sections_that_the_script_prints(page: str) -> None:
    assert list(sections_of(page)) == list(SCRIPT["SECTIONS"])


@IN_EVERY_SECTION
def test_the_pages_quote_what_the_script_prints(number: str) -> None:
    expected = [fact.value for fact in computed(number).facts]
    quoted = {page: numbers_of(sections_of(page)[number]) for page in PAGES}
    assert quoted == dict.fromkeys(PAGES, expected)


@IN_EVERY_SECTION
def test_a_block_of_numbers_stands_on_the_pages_as_the_script_prints_it(number: str) -> None:
    blocks = {page: "\n".join(blocks_of(sections_of(page)[number], "text")) for page in PAGES}
    assert blocks == dict.fromkeys(PAGES, computed(number).block)


@ON_EVERY_PAGE
def test_no_number_in_bold_stands_outside_the_sections(page: str) -> None:
    in_sections = [bold for text in sections_of(page).values() for bold in numbers_of(text)]
    assert numbers_of(PAGES[page]) == in_sections


@ON_EVERY_PAGE
def test_the_page_shows_every_picture_once_and_each_is_small(page: str) -> None:
    assert pictures_of(page) == list(SCRIPT["FIGURES"])
    for name in pictures_of(page):
        assert 1000 < (ROOT / "docs" / "figures" / name).stat().st_size < MAX_BYTES


def test_the_script_prints_every_number_and_draws_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lstm-figures", "--output", str(tmp_path / "figures")])
    SCRIPT["main"]()
    printed = capsys.readouterr().out
    expected = [f"{fact.value}  {fact.words}\n" for number in SCRIPT["SECTIONS"] for fact in computed(number).facts]
    assert [line for line in expected if line not in printed] == []
    drawn = {path.name: path.stat().st_size for path in (tmp_path / "figures").iterdir()}
    assert set(drawn) == set(SCRIPT["FIGURES"])
    assert max(drawn.values()) < MAX_BYTES
