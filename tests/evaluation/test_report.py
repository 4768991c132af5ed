"""The report: one file, nothing loaded, nothing of a text ever markup."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from bilstm_cls.evaluation import plots
from bilstm_cls.evaluation.breakdown import Group
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.page import Part
from bilstm_cls.evaluation.report import MAX_TEXT_LENGTH, Report, WrongAnswer, model_card, write_report

EVIL = '<script>alert("1")</script>'
VOID = {"meta", "img"}
CURVES = "Curves of the loss"


REFERENCES = {"src", "href", "srcset", "xlink:href", "data", "poster", "action"}


class Page(HTMLParser):
    """What a browser would make of the page: elements with their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def metrics(labels=("neg", "pos"), accuracy=0.75, **options):
    ids = np.arange(40) % len(labels)
    right = np.arange(40) < 40 * accuracy
    answers = np.where(right, ids, (ids + 1) % len(labels))
    probabilities = np.full((40, len(labels)), 0.1 / (len(labels) - 1))
    probabilities[np.arange(40), answers] = 0.9
    return compute_metrics(probabilities, ids, list(labels), **options)


@pytest.fixture
def report(tmp_path) -> Report:
    history = [{"step": 5, "epoch": 1.0, "train/loss": 0.5, "valid/accuracy": 0.7, "valid/auroc": None}]
    plots.learning_curves(history, plots.LOSSES, "loss", tmp_path / "curves.png")
    return Report(
        title="films",
        run="runs/films",
        metrics=metrics(majority_label_id=0),
        origin="films.csv, see https://example.org/films",
        notes=["This is not the official test split."],
        history=history,
        plots={"curves": {CURVES: tmp_path / "curves.svg"}, "calibration": {"As it is": tmp_path / "curves.svg"}},
        groups={"truncation": [Group("read whole", 30, 0.8, (0.7, 0.9)), Group("cut to 400", 10, 0.6, (0.3, 0.85))]},
        facts={"vocabulary": 12_345, "coverage": 0.98765, "official": False, "cut": None},
        data_facts={"rows skipped": 17},
        split_facts={"train": {"texts": 4321, "truncated": 3}, "test": {"texts": 765}},
        label_counts={"train": [1000, 3321]},
        baselines={"tfidf": 0.6},
        doubtful=[
            WrongAnswer(
                "a fine mess", "neg", "pos", 0.999, 6.9, "a.csv:12", [Part("a "), Part("fine", 0.5), Part(" mess")]
            )
        ],
        num_doubtful=2,
        worst=[WrongAnswer("so bad it is good", "pos", "neg", 0.987, 4.34, "a.csv:7")],
        environment={"torch": "2.13.0"},
        config="train:\n  epochs: 5\n",
    )


def page(report: Report, tmp_path) -> Page:
    write_report(tmp_path / "report.html", report)
    return Page((tmp_path / "report.html").read_text("utf-8"))


def test_the_page_is_well_formed_and_holds_what_it_was_given(report, tmp_path):
    result = page(report, tmp_path)
    assert result.open == []
    assert "<title>films</title>" in (tmp_path / "report.html").read_text("utf-8")
    expected = [
        "films", "75.00%", "95 % interval", "tfidf", "60.00%", "majority class", "50.00%", "12,345", "0.9877",
        "4,321", "so bad it is good", "98.7%", "4.34", "epochs: 5", "bilstm-cls predict --run runs/films",
        "a fine mess", "Confident disagreement on the test split", "2 of 40 labels", "a.csv:12", "a.csv:7",
        "cut to 400", "30.0% to 85.0%", "1,000 (23.1%)", "rows skipped", "2.13.0", CURVES,
        "bilstm-cls report --run runs/films",
    ]  # fmt: skip
    assert [text for text in expected if text not in result.text] == []


def test_nothing_is_loaded_and_no_script_runs(report, tmp_path):
    result = page(report, tmp_path)
    source = (tmp_path / "report.html").read_text("utf-8")
    places = [value for _, found in result.elements for name, value in found.items() if name in REFERENCES]
    assert places
    ids = {found["id"] for _, found in result.elements if "id" in found}
    assert {place.removeprefix("#") for place in places} <= ids
    assert set(re.findall(r"url\((.)", source)) <= {"#"}
    assert {tag for tag, _ in result.elements}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    policy = [found.get("content") or "" for _, found in result.elements if "http-equiv" in found]
    assert policy[0].startswith("default-src 'none'")


def test_drawings_take_the_colours_and_letters_of_the_page(report, tmp_path):
    page(report, tmp_path)
    source = (tmp_path / "report.html").read_text("utf-8")
    drawn = source[source.index("<figure>") : source.index("</figure>")]
    assert "var(--orange)" in drawn
    assert "currentColor" in drawn
    assert "font-family" not in drawn
    assert "#000000" not in drawn


def test_words_are_coloured_and_the_colours_are_explained(report, tmp_path):
    page(report, tmp_path)
    source = (tmp_path / "report.html").read_text("utf-8")
    assert '<span class="for" style="--strength:0.500">fine</span>' in source
    assert source.count("speaks for the model") == 1  # the worst error has no colours


def test_every_section_is_reached_from_the_contents(report, tmp_path):
    elements = page(report, tmp_path).elements
    links = [found["href"] for tag, found in elements if tag == "a"]
    assert links == [f"#{found['id']}" for tag, found in elements if tag == "section"]
    assert len(links) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"title": EVIL},
        {"run": EVIL},
        {"split": EVIL},
        {"origin": EVIL},
        {"notes": [EVIL]},
        {"facts": {EVIL: EVIL}},
        {"split_facts": {EVIL: {EVIL: EVIL}}},
        {"config": EVIL},
        {"metrics": metrics(labels=(EVIL, "pos"))},
        {"data_facts": {EVIL: EVIL}},
        {"label_counts": {EVIL: [1, 2]}},
        {"calibration": EVIL},
        {"groups": {EVIL: [Group(EVIL, 1, 1.0, (1.0, 1.0))]}},
        {"environment": {EVIL: EVIL}},
        {"baselines": {EVIL: 0.6}},
        {"worst": [WrongAnswer(EVIL, "pos", "neg", 0.9, 3.0)]},
        {"worst": [WrongAnswer("text", EVIL, EVIL, 0.9, 3.0)]},
        {"doubtful": [WrongAnswer("text", "pos", "neg", 0.9, 3.0, EVIL, [Part(EVIL, 0.5, EVIL)])]},
    ],
)
def test_markup_in_any_field_is_shown_as_text(report, tmp_path, change):
    result = page(replace(report, **change), tmp_path)
    assert EVIL in result.text
    assert "script" not in {tag for tag, _ in result.elements}
    assert result.open == []


def test_markup_in_a_caption_stays_in_its_attribute(report, tmp_path):
    caption = '"><script>'
    result = page(replace(report, plots={"curves": {caption: tmp_path / "curves.svg"}}), tmp_path)
    assert [found["aria-label"] for tag, found in result.elements if tag == "svg"] == [caption]
    assert "script" not in {tag for tag, _ in result.elements}


def test_markup_in_a_drawn_label_is_shown_as_text(report, tmp_path):
    plots.confusion_matrix([[1, 0], [0, 1]], ["</svg><b>&", "ok"], tmp_path / "matrix.png")
    result = page(replace(report, plots={"confusion": {"Matrix": tmp_path / "matrix.svg"}}), tmp_path)
    assert "</svg><b>&" in result.text
    assert result.open == []


def test_a_dollar_sign_in_a_field_is_no_placeholder(report, tmp_path):
    assert "$notes ${style} $5" in page(replace(report, title="$notes ${style} $5"), tmp_path).text


def test_notes_come_before_the_score(report, tmp_path):
    text = page(report, tmp_path).text
    assert text.index("not the official test split") < text.index("75.00%")


def test_a_model_that_loses_to_a_baseline_is_told_so(report, tmp_path):
    losing = replace(report, baselines={"tfidf": 0.6, "nbsvm": 0.9})
    assert "does not beat nbsvm (90.00%)" in page(losing, tmp_path).text
    assert "does not beat nbsvm \\(90.00%\\)" in model_card(losing)
    assert "does not beat" not in page(report, tmp_path).text


def test_a_long_text_is_shortened(report, tmp_path):
    text = page(replace(report, worst=[WrongAnswer("ab " * 5000, "pos", "neg", 0.9, 3.0)]), tmp_path).text
    shown = text[text.index("ab ") : text.index("…") + 1]
    assert len(shown) == MAX_TEXT_LENGTH


def test_a_bare_report_has_no_empty_sections(tmp_path):
    result = page(Report(title="bare", run="runs/bare", metrics=metrics(intervals=False)), tmp_path)
    assert [tag for tag, _ in result.elements].count("h2") == 2
    assert "img" not in {tag for tag, _ in result.elements}
    assert "interval" not in result.text


@pytest.mark.parametrize("text", ["\ud800", "\x00\x1b[31m", "عربي \u202e abc", "影评很好"])
def test_odd_characters_can_be_written(report, tmp_path, text):
    result = page(replace(report, title=text, worst=[WrongAnswer(text, text, text, 0.9, 3.0)]), tmp_path)
    assert result.open == []
    assert model_card(replace(report, title=text)).encode("utf-8")


def test_the_card_says_what_it_is_how_good_and_how_to_use_it(report):
    card = model_card(report)
    expected = [
        "# films\n", "> This is not the official test split.", "75.00% (95 % interval", "| tfidf | 60.00% |",
        "| `1` | pos |", "https://example.org/films", 'bilstm-cls predict --run runs/films "', "## Limits",
    ]  # fmt: skip
    assert [text for text in expected if text not in card] == []


def test_the_card_escapes_markdown_and_quotes_for_the_shell(report):
    card = model_card(replace(report, run="runs/my films", metrics=metrics(labels=("a|b\n# c", "<b>"))))
    assert "| a\\|b \\# c |" in card
    assert "\\<b\\>" in card
    assert "--run 'runs/my films'" in card
