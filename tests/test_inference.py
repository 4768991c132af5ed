from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bilstm_cls import classifier as inference
from bilstm_cls.classifier import predict_logits, softmax
from bilstm_cls.data.corpus import Corpus, encode
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.run_directory import LoadedModel, RunDirectory
from tests.conftest import reviews

TEXTS, LABELS = zip(*reviews(60, seed=5), strict=True)


def probabilities_of(model: BiLSTMClassifier, corpus: Corpus) -> npt.NDArray[np.float64]:
    return softmax(predict_logits(model, corpus))


@pytest.fixture(scope="module")
def loaded(trained_run: Path) -> LoadedModel:
    return RunDirectory(trained_run).load_model()


def corpus_of(loaded: LoadedModel, texts: list[str]) -> Corpus:
    return encode(texts, loaded.tokenizer, max_length=20)


@pytest.mark.parametrize("max_tokens", [1, 50, 400, 10**6])
def test_probabilities_do_not_depend_on_how_texts_are_batched(
    max_tokens: int, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(loaded, list(TEXTS))
    expected = probabilities_of(loaded.model, corpus)
    monkeypatch.setattr(inference, "MAX_TOKENS", {"cpu": max_tokens})
    assert np.abs(probabilities_of(loaded.model, corpus) - expected).max() <= 1e-6


def test_probabilities_come_in_the_order_of_the_texts(loaded: LoadedModel) -> None:
    expected = probabilities_of(loaded.model, corpus_of(loaded, list(TEXTS)))
    turned = probabilities_of(loaded.model, corpus_of(loaded, list(TEXTS[::-1])))
    assert np.abs(turned[::-1] - expected).max() <= 1e-6


def test_scores_do_not_depend_on_the_order_of_the_texts(loaded: LoadedModel) -> None:
    label_ids = np.array([loaded.labels.index(label) for label in LABELS])
    order = np.random.default_rng(0).permutation(len(TEXTS))
    one, other = (
        compute_metrics(
            probabilities_of(loaded.model, corpus_of(loaded, [TEXTS[i] for i in chosen])),
            label_ids[chosen],
            loaded.labels,
        )
        for chosen in (np.arange(len(TEXTS)), order)
    )
    assert (one.accuracy, one.macro_f1, one.confusion_matrix) == (
        other.accuracy,
        other.macro_f1,
        other.confusion_matrix,
    )
    assert one.log_loss == pytest.approx(other.log_loss, abs=1e-6)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_left_as_it_was(is_training: bool, loaded: LoadedModel) -> None:
    corpus = corpus_of(loaded, list(TEXTS))
    expected = probabilities_of(loaded.model, corpus)
    loaded.model.train(is_training)
    try:
        assert probabilities_of(loaded.model, corpus).tobytes() == expected.tobytes()
        assert loaded.model.training == is_training
    finally:
        loaded.model.eval()


def test_a_model_is_left_as_it_was_when_something_fails(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "evaluation_batches", lambda lengths, max_tokens: 1 / 0)
    loaded.model.train()
    with pytest.raises(ZeroDivisionError):
        probabilities_of(loaded.model, corpus_of(loaded, ["a"]))
    assert loaded.model.training
    loaded.model.eval()


def test_no_random_number_is_drawn(loaded: LoadedModel) -> None:
    before = torch.get_rng_state()
    probabilities_of(loaded.model, corpus_of(loaded, list(TEXTS)))
    assert torch.equal(torch.get_rng_state(), before)


def test_softmax_takes_any_logits_and_sums_to_one() -> None:
    logits = np.array([[1e4, -1e4, 0], [-3e38, -3e38, -3e38], [0.5, 0.25, -1]], dtype=np.float32)
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(1), 1, atol=1e-12)
    assert probabilities[:2].tolist() == [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert np.allclose(probabilities[2], torch.from_numpy(logits[2]).double().softmax(0).numpy())


@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_share_the_batches_add_up_to_the_whole(
    size: int, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(inference.MAX_TOKENS, "cpu", 50)
    corpus = corpus_of(loaded, list(TEXTS))
    parts = [predict_logits(loaded.model, corpus, rank=rank, size=size) for rank in range(size)]
    assert (np.sum(parts, axis=0) == predict_logits(loaded.model, corpus)).all()
    assert ((np.array(parts) != 0).any(2).sum(0) == 1).all()
