"""Explanations and pages for the eye: texts as they are, colours that mean what they say, whole in a browser."""

import json
import re
from pathlib import Path

import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.evaluation.explain import Explanation, Term, explain
from bilstm_cls.evaluation.report import excerpt, explanation_lines, parts_of, write_explanations
from tests.browser import DESKTOP, PHONE, needs_browser, visit
from tests.command_line import answer, run_cli
from tests.evaluation.pages import Page
from tests.serve.untrained import TEXT, untrained

EVIL = '<script>alert("1")</script> \x1b[31mred & "quoted"\r\n  good \ud800 中文'
CLASSIFIER = Classifier(untrained("model.pooling=[mean, max]"), "cpu")


def test_tokens_that_share_a_character_are_one_part() -> None:
    terms = [Term("İ", 0, 1, 0.5, True), Term("İ", 0, 1, 0.25, False), Term("x", 1, 2, -1.0, True)]
    assert [(part.text, part.value) for part in parts_of(Explanation("İx", "pos", "pos", 0.5, tuple(terms)))] == [
        ("İ", 0.75),
        ("x", -1.0),
    ]


def test_an_excerpt_is_the_stretch_with_the_strongest_words() -> None:
    text = "plain " * 50 + "superb film " + "plain " * 50
    terms = [Term("superb", 300, 306, 2.0, True), Term("film", 307, 311, -1.0, True), Term("plain", 0, 5, 0.01, True)]
    explanation = Explanation(text, "pos", "pos", 0.5, tuple(sorted(terms, key=lambda term: term.start)))
    parts = excerpt(explanation, 30)
    assert "superb film" in "".join(part.text for part in parts)
    assert (parts[0].text, parts[-1].text) == ("… ", " …")
    assert sum(len(part.text) for part in parts) <= 30 + 4


def lines_of(text: str, *, is_coloured: bool) -> list[str]:
    explanation = explain(CLASSIFIER.loaded, text)
    return list(explanation_lines(CLASSIFIER.predict([text])[0], explanation, is_coloured=is_coloured))


def test_a_terminal_shows_the_same_words_with_and_without_colours() -> None:
    plain, coloured = lines_of(EVIL, is_coloured=False), lines_of(EVIL, is_coloured=True)
    assert "\x1b[48;5;" in coloured[0]
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured[0]) == plain[0]
    assert "\x1b" not in "".join(plain)
    assert r"\x1b[31mred" in plain[0]
    assert coloured[1] == plain[1]
    sizes = [abs(float(line.split()[0])) for line in plain[2:]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_page_shows_every_text_as_it_is_and_the_value_of_each_word(tmp_path: Path) -> None:
    texts = [EVIL, TEXT, "good film " * 50, ""]
    explained = [(CLASSIFIER.predict([text])[0], explain(CLASSIFIER.loaded, text)) for text in texts]
    write_explanations(tmp_path / "page.html", "a <title>", explained)
    source = (tmp_path / "page.html").read_bytes().decode("utf-8")
    page = Page(source)
    page.check_loads_nothing(source)
    coloured = re.findall(r'<p class="words".*?</p>', source, re.DOTALL)
    assert [Page(words).text for words in coloured] == [EVIL.replace("\ud800", "?"), *texts[1:]]
    titles = [found["title"] or "" for tag, found in page.elements if tag == "span" and "title" in found]
    assert f"{explained[1][1].terms[0].value:+.4f}" in titles
    assert any(title.endswith(", not in the vocabulary") for title in titles)


# The command


def test_the_command_adds_the_explanation_to_the_stable_keys(trained_run: Path) -> None:
    text = "a good  film 😀"
    options = ["predict", "--run", trained_run, "--device", "cpu", "--json"]
    done = answer(*options, "--explain", text, "-", stdin=b"dull\n")
    first, second = map(json.loads, done.stdout.splitlines())
    keys = list(run_cli(*options, text).json)
    assert list(first) == list(second) == [*keys, "explanation"]
    terms = first["explanation"]["terms"]
    assert [list(term) for term in terms] == [["token", "start", "stop", "value"]] * 4
    assert [text[term["start"] : term["stop"]] for term in terms] == ["a", "good", "film", "😀"]
    assert run_cli("predict", "--input", "texts.csv", "--html", "page.html").code == 2


# In a browser

LUMINANCE = """name => {
  const [r, g, b] = getComputedStyle(document.body)[name].match(/[0-9.]+/g).map(Number);
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}"""


@needs_browser
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_report_is_whole_and_readable_in_a_browser(trained_run: Path, width: int) -> None:
    path = trained_run / "report.html"
    assert path.stat().st_size < 2 * 2**20
    with visit(width) as found:
        found.page.goto(path.as_uri())
        assert not found.is_wider_than_the_screen()
        assert found.page.locator("figure img").count() == 3
        for scheme, paper, ink in (("light", 1, 0), ("dark", 0, 1)):
            found.page.emulate_media(color_scheme=scheme)
            assert found.page.evaluate(LUMINANCE, "backgroundColor") == pytest.approx(paper, abs=0.2)
            assert found.page.evaluate(LUMINANCE, "color") == pytest.approx(ink, abs=0.2)
        found.page.emulate_media(media="print", color_scheme="dark")
        assert found.page.evaluate(LUMINANCE, "backgroundColor") > 0.9
        found.page.emulate_media(media="screen")
        found.page.click("nav a:last-child")
        assert found.page.evaluate("window.scrollY") > 0
        assert found.complaints == []
        assert found.requests == [path.as_uri()]
