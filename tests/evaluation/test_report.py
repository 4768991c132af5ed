"""The report: one file, nothing loaded, nothing of a text ever markup."""

import base64
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.report import MAX_TEXT_LENGTH, Report, WorstError, model_card, write_report

EVIL = '<script>alert("1")</script>'
VOID = {"meta", "img"}


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
    (tmp_path / "curves.png").write_bytes(b"\x89PNG fake")
    return Report(
        title="films",
        run="runs/films",
        metrics=metrics(majority_label_id=0),
        origin="films.csv, see https://example.org/films",
        notes=["This is not the official test split."],
        history=[{"step": 5, "epoch": 1.0, "train/loss": 0.5, "valid/accuracy": 0.7, "valid/auroc": None}],
        plots={"Learning curves": tmp_path / "curves.png"},
        facts={"vocabulary": 12_345, "coverage": 0.98765, "official": False, "cut": None},
        split_facts={"train": {"texts": 4321, "truncated": 3}, "test": {"texts": 765}},
        baselines={"tfidf": metrics(accuracy=0.6)},
        worst=[WorstError("so bad it is good", "pos", "neg", 0.987, 4.34)],
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
        "4,321", "so bad it is good", "0.987", "4.34", "epochs: 5", "bilstm-cls predict --run runs/films",
    ]  # fmt: skip
    assert [text for text in expected if text not in result.text] == []


def test_nothing_is_loaded_and_no_script_runs(report, tmp_path):
    elements = page(report, tmp_path).elements
    loaded = [value for _, found in elements for name, value in found.items() if name in {"src", "href", "srcset"}]
    assert loaded == ["data:image/png;base64," + base64.b64encode(b"\x89PNG fake").decode()]
    assert {tag for tag, _ in elements}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert "url(" not in (tmp_path / "report.html").read_text("utf-8")
    policy = [found.get("content") or "" for _, found in elements if "http-equiv" in found]
    assert policy[0].startswith("default-src 'none'")


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
        {"baselines": {EVIL: metrics(accuracy=0.6)}},
        {"worst": [WorstError(EVIL, "pos", "neg", 0.9, 3.0)]},
        {"worst": [WorstError("text", EVIL, EVIL, 0.9, 3.0)]},
    ],
)
def test_markup_in_any_field_is_shown_as_text(report, tmp_path, change):
    result = page(replace(report, **change), tmp_path)
    assert EVIL in result.text
    assert "script" not in {tag for tag, _ in result.elements}
    assert result.open == []


def test_markup_in_a_caption_stays_in_its_attribute(report, tmp_path):
    caption = '"><script>'
    result = page(replace(report, plots={caption: tmp_path / "curves.png"}), tmp_path)
    assert [found["alt"] for tag, found in result.elements if tag == "img"] == [caption]
    assert "script" not in {tag for tag, _ in result.elements}


def test_a_dollar_sign_in_a_field_is_no_placeholder(report, tmp_path):
    assert "$notes ${style} $5" in page(replace(report, title="$notes ${style} $5"), tmp_path).text


def test_notes_come_before_the_score(report, tmp_path):
    text = page(report, tmp_path).text
    assert text.index("not the official test split") < text.index("75.00%")


def test_a_model_that_loses_to_a_baseline_is_told_so(report, tmp_path):
    losing = replace(report, baselines={"tfidf": metrics(accuracy=0.6), "nbsvm": metrics(accuracy=0.9)})
    assert "does not beat nbsvm (90.00%)" in page(losing, tmp_path).text
    assert "does not beat nbsvm \\(90.00%\\)" in model_card(losing)
    assert "does not beat" not in page(report, tmp_path).text


def test_a_long_text_is_shortened(report, tmp_path):
    text = page(replace(report, worst=[WorstError("ab " * 5000, "pos", "neg", 0.9, 3.0)]), tmp_path).text
    shown = text[text.index("ab ") : text.index("…") + 1]
    assert len(shown) == MAX_TEXT_LENGTH


def test_a_bare_report_has_no_empty_sections(tmp_path):
    result = page(Report(title="bare", run="runs/bare", metrics=metrics(intervals=False)), tmp_path)
    assert [tag for tag, _ in result.elements].count("h2") == 2
    assert "interval" not in result.text


@pytest.mark.parametrize("text", ["\ud800", "\x00\x1b[31m", "عربي \u202e abc", "影评很好"])
def test_odd_characters_can_be_written(report, tmp_path, text):
    result = page(replace(report, title=text, worst=[WorstError(text, text, text, 0.9, 3.0)]), tmp_path)
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
