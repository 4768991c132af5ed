import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls import classifier as module
from bilstm_cls.classifier import Classifier
from bilstm_cls.errors import CheckpointError, ConfigError
from tests.conftest import reviews

ODD = {
    "empty": "",
    "blank": " ",
    "white space": " \t\r\n\u00a0\u3000",
    "one character": "a",
    "one mark": "!",
    "all unknown": "zork bork quux",
    "a megabyte of words": "good film " * 100_000,
    "a megabyte without blanks": "x" * 1_000_000,
    "NUL": "good\0film",
    "half a character": "good \ud800 film",
    "the other half first": "\ude00\ud83d",
    "emoji": "👩‍👩‍👧 good 😀",
    "right to left": "فيلم جيد \u202egood\u202c",
    "many marks on a letter": "e" + "\u0301" * 10_000,
    "line separators": "good\u2028film\u2029\x85",
    "control characters": "\x1b[31mgood\x07\x7f",
    "the padding token": "<pad> good <unk>",
    "a byte order mark": "\ufeffgood",
}
TEXTS = [text for text, _ in reviews(60, seed=3)]


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run, device="cpu")


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_an_odd_text_has_an_answer_and_comes_back_as_it_was(text: str, classifier: Classifier) -> None:
    (prediction,) = classifier.predict([text])
    assert prediction.text == text
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-9)
    assert np.isfinite(list(prediction.probabilities.values())).all()
    assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    assert prediction.probability == prediction.probabilities[prediction.label]


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_an_odd_text_has_the_same_answer_in_company(text: str, classifier: Classifier) -> None:
    alone = classifier.predict_proba([text])
    together = classifier.predict_proba([*TEXTS[:30], text, *TEXTS[30:]])
    assert np.abs(together[30] - alone[0]).max() <= 1e-6


def test_a_text_has_the_same_answer_alone_in_company_and_in_any_order(classifier: Classifier) -> None:
    together = classifier.predict_proba(TEXTS)
    alone = np.concatenate([classifier.predict_proba([text]) for text in TEXTS])
    order = np.random.default_rng(0).permutation(len(TEXTS))
    reordered = classifier.predict_proba([TEXTS[i] for i in order])
    assert np.abs(alone - together).max() <= 1e-6
    assert np.abs(reordered - together[order]).max() <= 1e-6


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=40), min_size=1, max_size=8))
def test_any_texts_have_answers_that_do_not_depend_on_each_other(classifier: Classifier, texts: list[str]) -> None:
    together = classifier.predict_proba(texts)
    alone = np.concatenate([classifier.predict_proba([text]) for text in texts])
    assert np.abs(alone - together).max() <= 1e-6


def test_the_model_has_learned_something(classifier: Classifier) -> None:
    assert [p.label for p in classifier.predict(["good great lovely", "awful bad dull"])] == ["pos", "neg"]


def test_the_same_text_has_the_same_bits_again(classifier: Classifier) -> None:
    assert classifier.predict_proba(TEXTS).tobytes() == classifier.predict_proba(TEXTS).tobytes()


def test_an_empty_text_is_one_unknown_token(classifier: Classifier) -> None:
    empty, unknown = classifier.predict(["", "zork"])
    assert empty.probabilities == pytest.approx(unknown.probabilities)
    assert (empty.tokens, unknown.tokens) == (0, 1)


@pytest.mark.parametrize(("number", "is_cut"), [(1, False), (20, False), (21, True), (100, True)])
def test_tokens_are_counted_before_the_text_is_cut(number: int, is_cut: bool, classifier: Classifier) -> None:
    (prediction,) = classifier.predict(["film " * number])
    assert (prediction.tokens, prediction.truncated) == (number, is_cut)


def test_probabilities_are_in_the_order_of_the_labels_and_of_the_texts(classifier: Classifier) -> None:
    probabilities = classifier.predict_proba(TEXTS)
    assert classifier.labels == ["neg", "pos"]
    assert probabilities.shape == (60, 2)
    assert [list(p.probabilities.items()) for p in classifier.predict(TEXTS)] == [
        [("neg", row[0]), ("pos", row[1])] for row in probabilities.tolist()
    ]


def test_no_text_has_no_answer(classifier: Classifier) -> None:
    assert classifier.predict([]) == []
    assert classifier.predict_proba([]).shape == (0, 2)
    assert list(classifier.stream([])) == []


def test_a_stream_reads_no_further_than_one_chunk(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    num_read = 0

    def endless() -> Iterator[str]:
        nonlocal num_read
        for text in itertools.cycle(TEXTS):
            num_read += 1
            yield text

    stream = classifier.stream(endless())
    assert num_read == 0
    assert next(stream).text == TEXTS[0]
    assert num_read == 3
    assert [next(stream).text for _ in range(3)] == TEXTS[1:4]
    assert num_read == 6


def test_a_stream_gives_every_text_its_answer_in_order(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    streamed = list(classifier.stream(iter(TEXTS)))
    assert [p.text for p in streamed] == TEXTS
    assert np.allclose([p.probability for p in streamed], [p.probability for p in classifier.predict(TEXTS)], atol=1e-6)


def test_dropout_is_off(classifier: Classifier) -> None:
    assert not classifier.model.training


def test_a_run_is_loaded_by_its_name_as_text(trained_run: Path) -> None:
    assert Classifier.load(str(trained_run)).labels == ["neg", "pos"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished model"):
        Classifier.load(tmp_path)


def test_a_device_that_is_not_here_is_refused(trained_run: Path) -> None:
    with pytest.raises(ConfigError, match="'cuda:99' is not here"):
        Classifier.load(trained_run, device="cuda:99")
