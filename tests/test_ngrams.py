import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls.errors import DataError
from bilstm_cls.ngrams import NEVER, WORD, NgramCounts, NgramModel, count, fit, kept, rarities

TEXTS = ["a good film", "a bad film", "so good", "so very bad", "good good fun", "bad, bad fun"]
LABELS = np.array([1, 0, 1, 0, 1, 0])


@pytest.fixture(scope="module")
def model() -> NgramModel:
    return NgramModel.train(NgramCounts.of(TEXTS), LABELS, 2)


def test_two_labels_share_one_log_odds(model: NgramModel) -> None:
    logits = model.logits([*TEXTS, "nothing known here", ""])
    assert logits.shape == (8, 2)
    several = NgramModel.train(NgramCounts.of(TEXTS), LABELS, 3).logits(TEXTS)
    assert (several[:, 2] == NEVER).all()  # a label without a text is never the answer
    assert several.argmax(1).tolist() == LABELS.tolist()
    assert np.array_equal(logits[:, 0], -logits[:, 1])
    assert logits[:6].argmax(1).tolist() == LABELS.tolist()
    assert logits[6, 1] == logits[7, 1] == model.intercepts[0] / 2


def test_the_model_is_the_mean_of_nbsvm_and_a_logistic_regression(model: NgramModel) -> None:
    counted = NgramCounts.of(TEXTS)
    nbsvm = NgramModel.train(counted, LABELS, 2, is_mean=False)
    weights, intercept = fit(kept(counted.sets, min_texts=1)[0], LABELS == 1, rarities)
    np.testing.assert_allclose(model.weights[0], (nbsvm.weights[0] + weights) / 2, rtol=1e-5)
    assert model.intercepts[0] == pytest.approx((nbsvm.intercepts[0] + intercept) / 2)


@pytest.mark.parametrize("texts", [["a good film"], ["a bad film", "good"], TEXTS * 1000], ids=["1", "2", "6000"])
def test_a_text_has_the_same_logits_in_any_company(texts: list[str], model: NgramModel) -> None:
    alone = np.concatenate([model.logits([text]) for text in texts[:6]])
    assert np.array_equal(model.logits(texts)[:6], alone)
    assert np.array_equal(model.logits_of_counts(NgramCounts.of(texts))[:6], alone)


def test_writing_without_spaces_is_read_by_characters() -> None:
    model = NgramModel.train(NgramCounts.of(["很好的电影", "很坏的电影", "好看", "坏人"]), np.array([1, 0, 1, 0]), 2)
    assert not model.is_spaced
    assert model.logits(["好电影", "坏电影"]).argmax(1).tolist() == [1, 0]


def test_texts_without_an_n_gram_are_an_error() -> None:
    with pytest.raises(DataError, match="no n-gram"):
        NgramModel.train(NgramCounts.of(["", " "]), np.array([0, 1]), 2)


@pytest.mark.parametrize("num_labels", [2, 4])
def test_its_arrays_give_the_same_logits(num_labels: int) -> None:
    model = NgramModel.train(NgramCounts.of(TEXTS), LABELS, num_labels)
    loaded = NgramModel.from_arrays(model.arrays(), num_labels)
    assert np.array_equal(loaded.logits(TEXTS), model.logits(TEXTS))
    assert loaded.is_spaced == model.is_spaced


def test_arrays_of_another_kind_are_refused(model: NgramModel) -> None:
    with pytest.raises(ValueError, match="does not fit 3 labels"):
        NgramModel.from_arrays(model.arrays(), 3)
    arrays = model.arrays()
    del arrays["weights"]
    with pytest.raises(ValueError, match="weights is missing"):
        NgramModel.from_arrays(arrays, 2)


def naive(text: str, *, spaced: bool, max_n: int) -> set[tuple[str, ...]]:
    tokens = re.findall(WORD if spaced else r"\s+|\S", text)
    folded = [" " if token.isspace() else token.casefold() for token in tokens]
    return {tuple(folded[i : i + n]) for n in range(1, max_n + 1) for i in range(len(folded) - n + 1)}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab B’é.\n\ud800好 "), max_size=12), min_size=1, max_size=6), st.booleans())
def test_every_n_gram_is_counted_once_a_text(texts: list[str], spaced: bool) -> None:
    binary, counts = (count(texts, max_n=3, is_binary=is_binary, spaced=spaced) for is_binary in (True, False))
    expected = [naive(text, spaced=spaced, max_n=3) for text in texts]
    assert binary.sum(1).A1.tolist() == [len(ngrams) for ngrams in expected]  # 2**24 columns: no two of these collide
    lengths = [len(re.findall(WORD if spaced else r"\s+|\S", text)) for text in texts]
    assert counts.sum(1).A1.tolist() == [sum(max(0, n - i) for i in range(3)) for n in lengths]
    for i, j in itertools.combinations(range(len(texts)), 2):
        assert len(set(binary[i].indices) & set(binary[j].indices)) == len(expected[i] & expected[j])
