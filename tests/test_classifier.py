import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from bilstm_cls import classifier as module
from bilstm_cls import runtime as prediction
from bilstm_cls.classifier import Classifier, Prediction, predict_logits, softmax
from bilstm_cls.data.corpus import Corpus, encode
from tests.conftest import reviews

TEXTS = [text for text, _ in reviews(60, seed=3)]


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run, device="cpu")


def test_tokens_are_counted_before_a_text_is_cut_and_an_empty_one_is_unknown(classifier: Classifier) -> None:
    empty, unknown, *longer = classifier.predict(["", "zork", "film " * 20, "film zork " * 30])
    assert empty.probabilities == pytest.approx(unknown.probabilities)
    assert [found.tokens for found in (empty, unknown, *longer)] == [0, 1, 20, 60]
    assert [found.truncated for found in longer] == [False, True]
    assert (empty.unknown_tokens, unknown.unknown_tokens) == (0, 1)


def test_no_text_has_no_prediction(classifier: Classifier) -> None:
    assert (classifier.predict([]), classifier.predict_proba([]).shape) == ([], (0, 2))


@pytest.mark.parametrize("call", ["predict", "predict_proba", "stream"])
def test_texts_may_come_in_any_ordered_container_but_one_str(call: str, classifier: Classifier) -> None:
    predict = getattr(classifier, call)
    expected = list(predict(TEXTS))
    for texts in (tuple(TEXTS), np.array(TEXTS), iter(TEXTS)):
        assert np.array_equal(list(predict(texts)), expected)
    with pytest.raises(TypeError, match=r"texts\[1\] is nan, a float"):
        list(predict(["a", float("nan")]))
    with pytest.raises(TypeError, match="texts is 'good', a str; give a list"):
        predict("good")


def test_a_stream_reads_no_further_than_two_chunks(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "CHUNK", 3)
    num_read = 0

    def endless() -> Iterator[str]:
        nonlocal num_read
        for text in itertools.cycle(TEXTS):
            num_read += 1
            yield text

    stream = classifier.stream(endless())
    assert num_read == 0
    assert next(stream).text == TEXTS[0]
    assert num_read == 6
    assert [next(stream).text for _ in range(3)] == TEXTS[1:4]
    assert num_read == 9
    stream.close()


def test_the_most_probable_labels_are_kept_and_an_improbable_one_is_null() -> None:
    found = Prediction("t", "b", 0.5, {"a": 0.2, "b": 0.5, "c": 0.3}, 1, truncated=False, unknown_tokens=0)
    assert list(found.as_dict()["probabilities"]) == ["a", "b", "c"]
    assert found.as_dict(top_k=2)["probabilities"] == {"b": 0.5, "c": 0.3}
    assert [found.as_dict(min_probability=p)["label"] for p in (0.4, 0.5, 0.6)] == ["b", "b", None]
    assert found.as_dict(min_probability=0.6)["probability"] == 0.5


def corpus_of(classifier: Classifier, texts: list[str]) -> Corpus:
    return encode(texts, classifier.tokenizer, max_length=20)


@pytest.mark.parametrize(("max_tokens", "threads"), [(1, 1), (100, 2)])
def test_logits_do_not_depend_on_how_texts_are_batched_and_shared(
    max_tokens: int, threads: int, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(classifier, TEXTS)
    expected, before = predict_logits(classifier.model, corpus), torch.get_num_threads()
    monkeypatch.setattr(module, "MAX_TOKENS", {"cpu": max_tokens})
    torch.set_num_threads(threads)
    try:
        assert np.abs(predict_logits(classifier.model, corpus) - expected).max() <= 1e-5
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(torch.get_num_threads).result() == torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_logits_of_all_ranks_add_up_to_the_whole(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", {"cpu": 100})
    corpus = corpus_of(classifier, TEXTS)
    parts = [predict_logits(classifier.model, corpus, rank=rank, size=3) for rank in range(3)]
    assert np.array_equal(sum(parts), predict_logits(classifier.model, corpus))
    assert all((part == 0).all(1).any() for part in parts)


def test_a_model_keeps_its_mode_and_no_random_number_is_drawn(classifier: Classifier) -> None:
    corpus = corpus_of(classifier, TEXTS)
    expected, before = predict_logits(classifier.model, corpus), torch.get_rng_state()
    classifier.model.train()
    try:
        assert np.array_equal(predict_logits(classifier.model, corpus), expected)
        assert classifier.model.training
    finally:
        classifier.model.eval()
    assert torch.equal(torch.get_rng_state(), before)


def test_softmax_takes_any_logits_and_sums_to_one() -> None:
    logits = np.array([[1e4, -1e4, 0], [-3e38, -3e38, -3e38], [0.5, 0.25, -1]], dtype=np.float32)
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(1), 1, atol=1e-12)
    assert probabilities[:2].tolist() == [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert np.allclose(probabilities[2], torch.from_numpy(logits[2]).double().softmax(0).numpy())
