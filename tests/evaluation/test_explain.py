"""Explanations: sums that are right term by term, and words that are the text's own."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls.classifier import Classifier, LoadedModel
from bilstm_cls.data.tokenizer import TOKENIZERS
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import METHODS, Explanation, explain, read_tokens
from bilstm_cls.evaluation.pages import parts_of
from bilstm_cls.ngrams import NgramCounts, NgramModel
from tests.conftest import reviews
from tests.serve.untrained import TEXT, untrained


def exact(loaded: LoadedModel, text: str, *, label: str | None = None) -> Explanation:
    return explain(loaded, text, label=label, method="exact")


EXACT = [
    ("model.pooling=mean",),
    ("model.pooling=reduce_mean",),
    ("model.pooling=max",),
    ("model.pooling=[max, mean, reduce_mean]",),
    ("model.pooling=mean", "model.num_layers=2"),
    ("model.pooling=[mean, max]", "model.cell=gru", "model.bidirectional=false"),
    ("model.pooling=mean", "model.cell=rnn"),
    ("model.pooling=[mean, max]", "model.bigrams=50"),
    ("model.pooling=last", "model.bidirectional=false"),
    ("model.pooling=[attention, mean, last]", "model.num_layers=2", "model.cell=gru"),
    ("model.pooling=[attention, last]", "model.bigrams=50"),
]
ODD = [
    TEXT,
    "",
    "  \n\t ",
    "zork good   good\n\n\ngood<br/>x",
    "\ud83d\ude00 good\ud800film 👨‍👩‍👧 中文中文 e\u0301 \u0130\u0130 ß ﬁ \u212b",
    "good film " * 50,
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
    explanation = exact(untrained(*overrides), text)
    total = explanation.bias + sum(term.value for term in explanation.terms)
    assert total == pytest.approx(explanation.logit, abs=1e-5)
    assert explanation.error == pytest.approx(abs(total - explanation.logit), abs=1e-12)


UNTRAINED = untrained("model.pooling=[mean, max]")


@pytest.mark.parametrize(("pooling", "divisor"), [("mean", 9), ("reduce_mean", 12), ("max", None)])
def test_a_term_is_the_heads_weight_on_what_the_pooling_takes_at_its_place(pooling: str, divisor: int | None) -> None:
    loaded, text = untrained(f"model.pooling={pooling}"), "The film was not that good: 3.5 !!!"
    ids = torch.tensor([read_tokens(loaded, text).token_ids])
    with torch.no_grad():
        directions, _ = loaded.model.encoder(loaded.model.embedding(ids), torch.tensor([ids.shape[1]]))
        outputs, weights = torch.cat(directions, 2)[0], loaded.model.project.weight[1] - loaded.model.project.weight[0]
    taken = outputs * (outputs == outputs.amax(0)) if divisor is None else outputs / divisor  # [T, 2H]
    found = [term.value for term in exact(loaded, text, label="pos").terms]
    assert len(found) == 9
    np.testing.assert_allclose(found, (taken @ weights).numpy(), atol=1e-6)


@pytest.mark.parametrize("label", ["a", "b", "c"])
def test_of_several_labels_the_logit_is_taken_over_the_mean_of_the_others(label: str) -> None:
    loaded = untrained(labels="abc")
    ids = torch.tensor([read_tokens(loaded, TEXT).token_ids])
    with torch.no_grad():
        logits = dict(zip("abc", loaded.model(ids, torch.tensor([ids.shape[1]]))[0].tolist(), strict=True))
    explanation = exact(loaded, TEXT, label=label)
    assert explanation.prediction == max(logits, key=logits.__getitem__)
    assert explanation.logit == pytest.approx(logits.pop(label) - sum(logits.values()) / 2, abs=1e-6)
    assert explanation.error < 1e-5


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
def test_the_parts_of_an_explanation_are_the_text(kind: str, text: str, truncate: str) -> None:
    for method in METHODS:
        explanation = explain(READERS[kind, truncate], text, method=method)
        assert "".join(part.text for part in parts_of(explanation)) == text
        assert all(term.token == text[term.start : term.stop] for term in explanation.terms)
        assert [term.start for term in explanation.terms] == sorted(term.start for term in explanation.terms)
        assert all(math.isfinite(term.value) for term in explanation.terms)
        assert (explanation.error or 0.0) < 1e-5


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
def test_a_byte_pair_token_is_shown_without_the_space_before_it(text: str, expected: list[str]) -> None:
    loaded = untrained(texts=["hello world > "] * 9, kind="bpe")
    assert [term.token for term in exact(loaded, text).terms] == expected


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
    explanation = exact(loaded, text)
    assert [term.token for term in explanation.terms] == tokens.split()
    assert explanation.unread is not None
    assert text[slice(*explanation.unread)] == unread.strip()
    assert [part.text for part in parts_of(explanation) if part.value is None and part.title] == [unread.strip()]
    ids = loaded.tokenizer.encode_batch([tokens])[0]
    assert read_tokens(loaded, text).token_ids == ids
    assert explanation.error < 1e-5


# n-grams and ensembles


def with_ngrams(loaded: LoadedModel) -> LoadedModel:
    texts, labels = zip(*[(f"{text} The film was good!", label) for text, label in reviews(60)], strict=True)
    ngrams = NgramModel.train(
        NgramCounts.of(texts), np.array([label == "pos" for label in labels]).astype(int), len(loaded.labels)
    )
    return replace(loaded, ngrams=ngrams, others=(loaded.model,))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", [TEXT, "", "a good film, a bad film <br /> zork " * 3, "\ud800 İX 中文"])
def test_terms_of_network_and_n_gram_model_add_up_to_the_logit(kind: str, text: str) -> None:
    loaded = with_ngrams(untrained("model.pooling=mean", kind=kind))
    explanation = exact(loaded, text, label="pos")
    assert explanation.error is not None
    assert explanation.error < 1e-5
    assert "".join(part.text for part in parts_of(explanation)) == text
    probabilities = Classifier(loaded, "cpu").predict_proba([text])[0]
    assert explanation.logit == pytest.approx(np.log(probabilities[1] / probabilities[0]), abs=1e-5)


# Occlusion


@pytest.mark.parametrize("overrides", [EXACT[0], EXACT[-1]], ids=id_of)
@pytest.mark.parametrize("has_ngrams", [False, True])
def test_occlusion_is_what_the_logit_loses_when_a_word_is_left_out(
    overrides: tuple[str, ...], has_ngrams: bool
) -> None:
    loaded = untrained(*overrides)
    loaded = with_ngrams(loaded) if has_ngrams else loaded
    classifier = Classifier(loaded, "cpu")

    def logit(text: str) -> float:
        probabilities = classifier.predict_proba([text])[0]
        return float(np.log(probabilities[1] / probabilities[0]))

    text = "The film was not that good"
    explanation = explain(loaded, text, label="pos", method="occlusion")
    words = text.split()
    expected = [logit(text) - logit(" ".join(words[:i] + words[i + 1 :])) for i in range(len(words))]
    assert [term.token for term in explanation.terms] == words
    assert [term.value for term in explanation.terms] == pytest.approx(expected, abs=1e-4)
    assert (explanation.bias, explanation.error) == (None, None)
    assert "bias" not in explanation.as_dict()


def test_of_a_long_text_stretches_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from bilstm_cls.evaluation import explain as module

    variants = []
    logits = module._logits
    monkeypatch.setattr(module, "_logits", lambda *args: variants.append(len(args[1])) or logits(*args))
    explanation = explain(UNTRAINED, "good film was that not " * 2, method="occlusion", max_variants=4)
    assert variants == [1, 4]
    values = [term.value for term in explanation.terms]
    assert values[0] == values[1] == values[2] != values[3]


@pytest.mark.parametrize(("label", "method"), [("great", "exact"), (None, "gradients")])
def test_an_unknown_label_or_method_is_refused(label: str | None, method: str) -> None:
    with pytest.raises(ConfigError, match=label or method):
        explain(UNTRAINED, TEXT, label=label, method=method)
