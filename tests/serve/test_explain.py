"""Explanations: sums that are right term by term, and words that are the text's own."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls.classifier import Classifier
from bilstm_cls.data.tokenizer import TOKENIZERS, UNKNOWN_ID
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.coloured import spans
from bilstm_cls.evaluation.explain import Explanation, Term, explain, read_tokens
from bilstm_cls.evaluation.page import Part, words
from bilstm_cls.run_directory import LoadedModel
from bilstm_cls.serve.explain_view import explanation_lines, has_colours, write_explanations
from tests.command_line import run_cli
from tests.serve.untrained import TEXT, untrained

EXACT = [
    ("model.pooling=mean",),
    ("model.pooling=reduce_mean",),
    ("model.pooling=max",),
    ("model.pooling=[max, mean, reduce_mean]",),
    ("model.pooling=mean", "model.num_layers=2"),
    ("model.pooling=[mean, max]", "model.cell=gru", "model.bidirectional=false"),
    ("model.pooling=mean", "model.cell=rnn"),
    ("model.pooling=[mean, max]", "model.bigrams=50"),
]
PAIRED = ("model.pooling=[attention, last]", "model.bigrams=50")
INTEGRATED = [
    ("model.pooling=last",),
    ("model.pooling=attention",),
    ("model.pooling=[attention, mean, last]", "model.num_layers=2", "model.cell=gru"),
    ("model.pooling=last", "model.bidirectional=false"),
]
ODD = [
    TEXT,
    "",
    "  \n\t ",
    "zork bork quux",
    "good   good\n\n\ngood",
    "\ud83d\ude00 good\ud800film",
    "👨‍👩‍👧 中文中文 e\u0301 \u0130\u0130 ß ﬁ \u212b",
    "good film " * 50,
    "<b>bold</b><br/>x",
]
ALPHABET = st.one_of(
    st.sampled_from("aBg '\".,;:!?()<br/>\t\n\r\x1b\x85\xa0\u2028ßİﬁÅé\u0301中文の한😀👍🏽\u200d\u202e\ud800"),
    st.characters(),
)


def id_of(overrides: tuple[str, ...]) -> str:
    return " ".join(option.removeprefix("model.") for option in overrides)


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("overrides", EXACT, ids=id_of)
def test_exact_terms_and_the_bias_add_up_to_the_logit(overrides: tuple[str, ...], text: str) -> None:
    explanation = explain(untrained(*overrides), text)
    assert explanation.method == "exact"
    total = explanation.bias + sum(term.value for term in explanation.terms)
    assert total == pytest.approx(explanation.logit, abs=1e-5)
    assert explanation.error == pytest.approx(abs(total - explanation.logit), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*TEXT.split(), "zork", "  ", "\n"]), max_size=40).map(" ".join), st.text(ALPHABET))
def test_exact_terms_add_up_on_any_text(known: str, other: str) -> None:
    assert explain(UNTRAINED, known + other).error < 1e-5


UNTRAINED = untrained("model.pooling=[mean, max]")


def outputs_and_weights(loaded: LoadedModel, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `[T, 2H]` outputs in the order of the text, by the layer's other way, and what label 1 has over 0."""
    ids = torch.tensor([read_tokens(loaded, text).token_ids])
    with torch.no_grad():
        outputs, _ = loaded.model.encoder(loaded.model.embedding(ids), torch.tensor([ids.shape[1]]))
        return torch.cat(outputs, 2)[0], loaded.model.project.weight[1] - loaded.model.project.weight[0]


@pytest.mark.parametrize(("pooling", "divisor"), [("mean", 9), ("reduce_mean", 12)])
def test_a_term_is_the_heads_weight_on_the_outputs_at_its_own_place(pooling: str, divisor: int) -> None:
    loaded = untrained(f"model.pooling={pooling}")
    text = "The film was not that good: 3.5 !!!"
    outputs, weights = outputs_and_weights(loaded, text)
    found = [term.value for term in explain(loaded, text, label="pos").terms]
    assert len(found) == 9
    np.testing.assert_allclose(found, (outputs @ weights / divisor).numpy(), atol=1e-6)


def test_a_maximum_goes_to_the_token_that_has_it() -> None:
    loaded = untrained("model.pooling=max")
    outputs, weights = outputs_and_weights(loaded, TEXT)
    expected = [0.0] * len(outputs)
    for unit, values in enumerate(outputs.t().tolist()):
        expected[values.index(max(values))] += max(values) * weights[unit].item()
    found = [term.value for term in explain(loaded, TEXT, label="pos").terms]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("text", [TEXT, "", "zork", "good film " * 50])
@pytest.mark.parametrize("overrides", [*INTEGRATED, PAIRED], ids=id_of)
def test_integrated_gradients_add_up_to_the_logit(overrides: tuple[str, ...], text: str) -> None:
    explanation = explain(untrained(*overrides), text)
    assert explanation.method == "integrated gradients"
    assert explanation.error < 1e-5


@pytest.mark.parametrize("overrides", INTEGRATED, ids=id_of)
def test_integrated_gradients_give_nothing_to_a_token_without_a_vector(overrides: tuple[str, ...]) -> None:
    loaded = untrained(*overrides)
    with torch.no_grad():
        loaded.model.embedding.weight[loaded.tokenizer.tokens.index("good")] = 0
    values = {term.token: term.value for term in explain(loaded, "The film was good !!!").terms}
    assert values.pop("good") == 0
    assert all(values.values())


def test_integrated_gradients_are_the_integral_of_the_gradients() -> None:
    loaded = untrained("model.pooling=last")
    ids = torch.tensor([read_tokens(loaded, TEXT).token_ids])
    model, lengths = loaded.model.double(), torch.full((200,), ids.shape[1])
    embedded = model.embedding(ids).detach()  # [1, T, E]
    steps = (embedded * ((torch.arange(200) + 0.5) / 200).view(-1, 1, 1)).requires_grad_()
    _, states = model.encoder(steps, lengths)
    logits = model.project(torch.cat([h for h, _ in states], 1))
    (slopes,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), steps)
    found = explain(untrained("model.pooling=last"), TEXT, label="pos")
    np.testing.assert_allclose([term.value for term in found.terms], (slopes * embedded).sum(2).mean(0), atol=1e-4)


def test_chinese_words_are_shown_byte_for_byte(chinese_run: Path) -> None:
    text = "中国球队夺得2010年冠军！ A股\x1fthe\ud800 end"
    explanation = explain(Classifier.load(chinese_run, device="cpu").loaded, text)
    words = ["中国", "球队", "夺得", "2010", "年", "冠军", "！", "A股", "the", "\ud800", "end"]
    assert [term.token for term in explanation.terms] == words
    assert "".join(span.text for span in spans(explanation)) == text
    assert explanation.error < 1e-5


def test_of_two_labels_the_logit_is_the_logarithm_of_the_odds() -> None:
    classifier = Classifier(untrained(), "cpu")
    explanation, prediction = explain(classifier.loaded, TEXT), classifier.predict([TEXT])[0]
    assert explanation.label == explanation.prediction == prediction.label
    odds = prediction.probability / (1 - prediction.probability)
    assert explanation.logit == pytest.approx(math.log(odds), abs=1e-6)


def test_the_other_of_two_labels_has_the_opposite_terms() -> None:
    loaded = untrained()
    pos, neg = explain(loaded, TEXT, label="pos"), explain(loaded, TEXT, label="neg")
    assert pos.prediction == neg.prediction
    assert neg.logit == -pos.logit
    assert [term.value for term in neg.terms] == pytest.approx([-term.value for term in pos.terms])


@pytest.mark.parametrize("label", ["a", "b", "c"])
def test_of_several_labels_the_logit_is_taken_over_the_mean_of_the_others(label: str) -> None:
    loaded = untrained(labels="abc")
    ids = torch.tensor([read_tokens(loaded, TEXT).token_ids])
    with torch.no_grad():
        logits = dict(zip("abc", loaded.model(ids, torch.tensor([ids.shape[1]]))[0].tolist(), strict=True))
    explanation = explain(loaded, TEXT, label=label)
    assert explanation.prediction == max(logits, key=logits.__getitem__)
    assert explanation.logit == pytest.approx(logits.pop(label) - sum(logits.values()) / 2, abs=1e-6)
    assert explanation.error < 1e-5


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="label 'great' is not one that the run knows: neg, pos"):
        explain(untrained(), TEXT, label="great")


def test_what_a_prediction_says_does_not_change_by_explaining_it(trained_run: Path) -> None:
    classifier = Classifier.load(trained_run, device="cpu")
    before = classifier.predict_proba([TEXT])
    explain(classifier.loaded, TEXT)
    np.testing.assert_array_equal(classifier.predict_proba([TEXT]), before)


# Words.


@pytest.mark.parametrize("kind", ["words", "characters", "cjk", "basic_english", "whitespace"])
@settings(max_examples=30, deadline=None)
@given(text=st.text(ALPHABET, max_size=30).filter(lambda text: "Σ" not in text))
def test_a_token_read_alone_is_the_token_that_was_read(kind: str, text: str) -> None:
    loaded = untrained("text.max_length=1000", texts=[text], kind=kind)
    reading = read_tokens(loaded, text)
    for token_id, (start, stop) in zip(reading.token_ids, reading.places, strict=True):
        expected = [] if (start, stop) == (0, 0) else [token_id]
        assert loaded.tokenizer.encode_batch([text[start:stop]])[0] == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(text=st.text(ALPHABET, max_size=40), truncate=st.sampled_from(["head", "tail", "both"]))
def test_the_spans_of_an_explanation_are_the_text(kind: str, text: str, truncate: str) -> None:
    explanation = explain(READERS[kind, truncate], text)
    assert "".join(span.text for span in spans(explanation)) == text
    assert all(term.token == text[term.start : term.stop] for term in explanation.terms)
    assert [term.start for term in explanation.terms] == sorted(term.start for term in explanation.terms)
    assert explanation.error < 1e-5


READERS = {
    (kind, truncate): untrained("text.max_length=7", f"text.truncate={truncate}", kind=kind)
    for kind, truncate in itertools.product(TOKENIZERS, ["head", "tail", "both"])
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello <br />World", ["Hello", " ", "World"]),
        ("<br/>Hello\n\n World", ["Hello", "\n", "\n", "World"]),
        ("hello > hello > world", ["hello", ">", "hello", ">", "world"]),
    ],
)
def test_a_byte_pair_token_is_shown_without_the_blank_before_it(text: str, expected: list[str]) -> None:
    loaded = untrained(texts=["hello world > "] * 9, kind="bpe")
    assert [term.token for term in explain(loaded, text).terms] == expected


@pytest.mark.parametrize(
    ("truncate", "tokens", "unread"),
    [
        ("head", "0 1 2 3 4", "  5 6 7 8  9."),
        ("tail", "6 7 8 9 .", "0 1 2 3 4  5 "),
        ("both", "0 1 2 9 .", " 3 4  5 6 7 8  "),
    ],
)
def test_a_long_text_has_terms_where_it_is_read(truncate: str, tokens: str, unread: str) -> None:
    text = "0 1 2 3 4  5 6 7 8  9."
    loaded = untrained("text.max_length=5", f"text.truncate={truncate}", texts=[text])
    explanation = explain(loaded, text)
    assert [term.token for term in explanation.terms] == tokens.split()
    assert explanation.unread is not None
    assert text[slice(*explanation.unread)] == unread.strip()
    assert [span.text for span in spans(explanation) if span.is_unread] == [unread.strip()]
    ids = loaded.tokenizer.encode_batch([tokens])[0]
    assert read_tokens(loaded, text).token_ids == ids
    assert explanation.error < 1e-5


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_text_without_tokens_is_one_unknown_token(text: str) -> None:
    assert read_tokens(UNTRAINED, text).token_ids == [UNKNOWN_ID]
    (term,) = explain(UNTRAINED, text).terms
    assert (term.token, term.start, term.stop, term.is_known) == ("", 0, 0, False)


def test_unknown_words_are_marked() -> None:
    assert [term.is_known for term in explain(UNTRAINED, "good zork film").terms] == [True, False, True]


# Views.

EVIL = '<script>alert("1")</script> \x1b[31mred & "quoted"\r\n  good \ud800 中文'


def explanation_of(text: str, *terms: Term, **more: object) -> Explanation:
    return Explanation(text, "pos", "pos", "exact", 0.5, 0.25, terms, **more)


def test_tokens_that_share_a_character_are_one_span() -> None:
    terms = [Term("İ", 0, 1, 0.5, True), Term("İ", 0, 1, 0.25, False), Term("x", 1, 2, -1.0, True)]
    assert [(span.text, span.value) for span in spans(explanation_of("İx", *terms))] == [("İ", 0.75), ("x", -1.0)]


@pytest.mark.parametrize(
    ("is_terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"NO_COLOR": ""}, True),
        (False, {"TERM": "xterm"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_only_a_terminal_that_wants_colours_gets_them(is_terminal: bool, environment: dict, expected: bool) -> None:
    assert has_colours(is_terminal, environment) is expected


def lines_of(text: str, *, is_coloured: bool) -> list[str]:
    classifier = Classifier(UNTRAINED, "cpu")
    return list(
        explanation_lines(classifier.predict([text])[0], explain(classifier.loaded, text), is_coloured=is_coloured)
    )


def test_a_terminal_shows_the_same_words_with_and_without_colours() -> None:
    plain, coloured = lines_of(EVIL, is_coloured=False), lines_of(EVIL, is_coloured=True)
    assert "\x1b[48;5;" in coloured[0]
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured[0]) == plain[0]
    assert "\x1b" not in "".join(plain)
    assert r"\x1b[31mred" in plain[0]
    assert coloured[1] == plain[1]


def test_without_colours_the_strongest_words_follow_with_their_values() -> None:
    values = [line.split()[0] for line in lines_of("The film was good !!!", is_coloured=False)[2:]]
    assert len(values) == 5
    assert all(value[0] in "+-" for value in values)
    sizes = [abs(float(value)) for value in values]
    assert sizes == sorted(sizes, reverse=True)


class Words(HTMLParser):
    """The text of a page's coloured words, the tooltip of each coloured word, and all elements' names."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.titles: dict[str, str] = {}
        self.names: set[str] = set()
        self._title = ""
        self._is_inside = False
        self.feed(source.replace("\r\n", "\n").replace("\r", "\n"))  # as browsers do
        self.close()

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        given = dict(attributes)
        self._title = given.get("title", "") if given.get("class") in ("for", "against") else ""
        if given.get("class") == "words":
            self._is_inside = True
            self.texts.append("")

    def handle_endtag(self, tag):
        self._is_inside = self._is_inside and tag != "p"
        self._title = ""

    def handle_data(self, data):
        if self._is_inside:
            self.texts[-1] += data
            self.titles |= {data: self._title} if self._title else {}


def test_a_page_shows_every_text_as_it_is_and_each_words_value(tmp_path: Path) -> None:
    classifier, texts = Classifier(UNTRAINED, "cpu"), [EVIL, TEXT, "good film " * 50]
    explained = [(classifier.predict([text])[0], explain(classifier.loaded, text)) for text in texts]
    write_explanations(tmp_path / "page.html", "a <title>", explained)
    page = Words((tmp_path / "page.html").read_bytes().decode("utf-8"))
    assert page.texts == [EVIL.replace("\ud800", "?"), *texts[1:]]
    assert "script" not in page.names
    values = {term.token: f"{term.value:+.4f}" for term in explained[1][1].terms}
    assert page.titles["The"] == values["The"]
    assert page.titles["script"].endswith(", not in the vocabulary")


def test_colours_go_no_further_than_full_strength() -> None:
    shown = words([Part("a", 1.5), Part("b", -0.25, "less"), Part("c"), Part("d", is_quiet=True)])
    assert '<span class="for" style="--strength:1.000">a</span>' in shown
    assert '<span class="against" style="--strength:0.250" title="less">b</span>' in shown
    assert 'c<span class="quiet">d</span>' in shown


# The command.

KEYS = ["text", "label", "probability", "probabilities", "tokens", "truncated", "explanation"]


def test_the_command_adds_the_explanation_to_the_stable_keys(trained_run: Path) -> None:
    text = "a good  film 😀"
    done = run_cli(
        "predict", "--run", trained_run, "--device", "cpu", "--json", "--explain", text, "-", stdin=b"dull\n"
    )
    assert done.code == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert list(first) == list(second) == KEYS
    explanation = first["explanation"]
    assert list(explanation) == ["label", "method", "bias", "logit", "error", "terms"]
    assert [list(term) for term in explanation["terms"]] == [["token", "start", "stop", "value"]] * 4
    assert [text[term["start"] : term["stop"]] for term in explanation["terms"]] == ["a", "good", "film", "😀"]
    total = explanation["bias"] + sum(term["value"] for term in explanation["terms"])
    assert total == pytest.approx(explanation["logit"], abs=1e-5)
    assert explanation["error"] < 1e-5
    assert second["text"] == "dull"


def test_the_command_prints_a_table_where_there_is_no_terminal(trained_run: Path) -> None:
    plain = run_cli("predict", "--run", trained_run, "a dull film")
    done = run_cli("predict", "--run", trained_run, "--explain", "a dull film")
    assert done.stdout.splitlines()[0] == plain.stdout.splitlines()[0]
    assert "exact, error" in done.stdout
    assert re.search(r"^  [+-]\d\.\d{4}  dull$", done.stdout, re.MULTILINE)


def test_the_command_writes_one_page_of_all_texts(trained_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    done = run_cli("predict", "--run", trained_run, "--html", target, "a good film", "", "so dull")
    assert done.code == 0, done.stderr
    assert f"wrote {target}" in done.stderr
    assert Words(target.read_text("utf-8")).texts == ["a good film", "", "so dull"]


@pytest.mark.parametrize("options", [["--explain"], ["--html", "page.html"], ["--gates", "gates.png"]])
def test_the_command_explains_texts_and_not_files(options: list[str]) -> None:
    done = run_cli("predict", "--input", "texts.csv", *options)
    assert done.code == 2
    assert done.errors == ["error: --explain, --html and --gates go with texts or -, not with --input"]
