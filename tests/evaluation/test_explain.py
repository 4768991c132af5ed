"""Explanations: what the logit loses without a word, and words that are the text's own."""

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
from bilstm_cls.evaluation.explain import explain, read_tokens
from bilstm_cls.evaluation.report import parts_of
from bilstm_cls.ngrams import NgramCounts, NgramModel
from tests.conftest import reviews
from tests.serve.untrained import TEXT, untrained

ALPHABET = st.one_of(
    st.sampled_from("aBg '\".,;:!?()<br/>\t\n\r\x1b\x85\xa0\u2028ßİﬁÅé\u0301中文の한😀👍🏽\u200d\u202e\ud800"),
    st.characters(),
)


@pytest.mark.parametrize("label", ["a", "b", "c"])
def test_of_several_labels_the_logit_is_taken_over_the_mean_of_the_others(label: str) -> None:
    loaded = untrained(labels="abc")
    ids = torch.tensor([read_tokens(loaded, TEXT)[0]])
    with torch.no_grad():
        logits = dict(zip("abc", loaded.model(ids, torch.tensor([ids.shape[1]]))[0].tolist(), strict=True))
    explanation = explain(loaded, TEXT, label=label)
    assert explanation.prediction == max(logits, key=logits.__getitem__)
    assert explanation.logit == pytest.approx(logits.pop(label) - sum(logits.values()) / 2, abs=1e-6)


READERS = {
    kind: untrained("text.max_length=7", f"text.truncate={truncate}", kind=kind)
    for kind, truncate in zip(TOKENIZERS, ["head", "tail", "both"] * len(TOKENIZERS), strict=False)
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=20, deadline=None)
@given(text=st.text(ALPHABET, max_size=40))
def test_the_parts_of_an_explanation_are_the_text(kind: str, text: str) -> None:
    explanation = explain(READERS[kind], text)
    assert "".join(part.text for part in parts_of(explanation)) == text
    assert all(term.token == text[term.start : term.stop] for term in explanation.terms)
    assert [term.start for term in explanation.terms] == sorted(term.start for term in explanation.terms)
    assert all(math.isfinite(term.value) for term in explanation.terms)


@pytest.mark.parametrize(("truncate", "tokens"), [("head", "0 1 2 3 4"), ("tail", "6 7 8 9 ."), ("both", "0 1 2 9 .")])
def test_a_long_text_has_terms_where_it_is_read(truncate: str, tokens: str) -> None:
    text = "0 1 2 3 4  5 6 7 8  9."
    loaded = untrained("text.max_length=5", f"text.truncate={truncate}", texts=[text])
    assert [term.token for term in explain(loaded, text).terms] == tokens.split()
    assert read_tokens(loaded, text)[0] == loaded.tokenizer.encode_batch([tokens])[0]


def with_ngrams(loaded: LoadedModel) -> LoadedModel:
    texts, labels = zip(*[(f"{text} The film was good!", label) for text, label in reviews(60)], strict=True)
    ngrams = NgramModel.train(NgramCounts.of(texts), np.array([label == "pos" for label in labels]).astype(int), 2)
    return replace(loaded, ngrams=ngrams, others=(loaded.model,))


@pytest.mark.parametrize("overrides", [[], ["model.pooling=[attention, last]", "model.bigrams=50"]])
@pytest.mark.parametrize("has_ngrams", [False, True])
def test_a_value_is_what_the_logit_loses_when_the_word_is_left_out(overrides: list[str], has_ngrams: bool) -> None:
    loaded = untrained(*overrides)
    loaded = with_ngrams(loaded) if has_ngrams else loaded
    classifier = Classifier(loaded, "cpu")

    def logit(text: str) -> float:
        probabilities = classifier.predict_proba([text])[0]
        return float(np.log(probabilities[1] / probabilities[0]))

    text = "The film was not that good"
    explanation = explain(loaded, text, label="pos")
    words = text.split()
    expected = [logit(text) - logit(" ".join(words[:i] + words[i + 1 :])) for i in range(len(words))]
    assert [term.token for term in explanation.terms] == words
    assert [term.value for term in explanation.terms] == pytest.approx(expected, abs=1e-4)


def test_of_a_long_text_stretches_are_left_out() -> None:
    values = [term.value for term in explain(untrained(), "good film was that not " * 2, max_variants=4).terms]
    assert values[0] == values[1] == values[2] != values[3]


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="'great'"):
        explain(untrained(), TEXT, label="great")
