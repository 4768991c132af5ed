from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bilstm_cls.errors import CheckpointError, DataError
from bilstm_cls.ngrams import NEVER, NgramModel

TEXTS = ["a good film", "a bad film", "so good", "so very bad", "good good fun", "bad, bad fun"]
LABELS = np.array([1, 0, 1, 0, 1, 0])


@pytest.fixture(scope="module")
def model() -> NgramModel:
    return NgramModel.train(TEXTS, LABELS, 2)


def test_two_labels_share_one_log_odds(model: NgramModel) -> None:
    logits = model.logits([*TEXTS, "nothing known here", ""])
    assert logits.shape == (8, 2)
    assert np.array_equal(logits[:, 0], -logits[:, 1])
    assert logits[:6].argmax(1).tolist() == LABELS.tolist()
    assert logits[6, 1] == logits[7, 1] == model.intercepts[0] / 2


@pytest.mark.parametrize("texts", [["a good film"], ["a bad film", "good"], TEXTS * 1000], ids=["1", "2", "6000"])
def test_a_text_has_the_same_logits_in_any_company(texts: list[str], model: NgramModel) -> None:
    alone = np.concatenate([model.logits([text]) for text in texts[:6]])
    assert np.array_equal(model.logits(texts)[:6], alone)


def test_no_text_has_no_logits(model: NgramModel) -> None:
    assert model.logits([]).shape == (0, 2)


def test_it_is_the_baseline_of_the_same_name() -> None:
    from bilstm_cls.classifier import softmax
    from bilstm_cls.data.types import Split
    from bilstm_cls.evaluation.baselines import Task, run_baseline

    test = ["good film", "bad fun", "a film, so good"]
    numbers = np.arange(6)
    train = Split("train", TEXTS, LABELS, ["x"] * 6, numbers)
    task = Task(train, Split("test", test, LABELS[:3], ["x"] * 3, numbers[:3]), 2)
    expected, _ = run_baseline("nbsvm", task)
    assert np.allclose(softmax(NgramModel.train(TEXTS, LABELS, 2).logits(test)), expected, atol=1e-6)


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize(
    "text", ["so good, so good film", "", "Good", "nothing known", "good 中文\ud800 film film film"]
)
def test_the_terms_of_the_tokens_add_up_to_the_logits(num_labels: int, text: str) -> None:
    model = NgramModel.train(TEXTS, LABELS, num_labels)
    places, terms = model.token_terms(text)
    assert terms.shape == (len(places), num_labels)
    assert np.allclose(model.logits([""])[0] + terms.sum(0), model.logits([text])[0], atol=1e-5)


def test_an_n_gram_is_divided_among_its_tokens(model: NgramModel) -> None:
    places, terms = model.token_terms("unknown good unknown")
    assert [place for place, row in zip(places, terms, strict=True) if row.any()] == [(8, 12)]


def test_several_labels_have_a_row_each_and_one_without_a_text_is_never_the_answer() -> None:
    model = NgramModel.train(TEXTS, LABELS, 3)
    logits = model.logits(TEXTS)
    assert logits.shape == (6, 3)
    assert (logits[:, 2] == NEVER).all()
    assert logits.argmax(1).tolist() == LABELS.tolist()


def test_writing_without_spaces_is_read_by_characters() -> None:
    model = NgramModel.train(["很好的电影", "很坏的电影", "好看", "坏人"], np.array([1, 0, 1, 0]), 2)
    assert not model.is_spaced
    assert model.logits(["好电影", "坏电影"]).argmax(1).tolist() == [1, 0]


def test_texts_without_an_n_gram_are_an_error() -> None:
    with pytest.raises(DataError, match="no n-gram"):
        NgramModel.train(["", " "], np.array([0, 1]), 2)


def test_a_factor_scales_the_logits(model: NgramModel) -> None:
    assert np.allclose(model.scaled(0.5).logits(TEXTS), model.logits(TEXTS) / 2)


@pytest.mark.parametrize("num_labels", [2, 4])
def test_a_file_gives_the_same_logits(num_labels: int, tmp_path: Path) -> None:
    model = NgramModel.train(TEXTS, LABELS, num_labels)
    model.save(tmp_path / "ngrams.safetensors")
    loaded = NgramModel.load(tmp_path / "ngrams.safetensors", num_labels)
    assert np.array_equal(loaded.logits(TEXTS), model.logits(TEXTS))
    assert loaded.is_spaced == model.is_spaced


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_file_is_refused(damage: Callable[[Path], None], model: NgramModel, tmp_path: Path) -> None:
    path = tmp_path / "ngrams.safetensors"
    model.save(path)
    damage(path)
    with pytest.raises(CheckpointError, match=r"ngrams\.safetensors"):
        NgramModel.load(path, 2)


def test_a_file_for_other_labels_is_refused(model: NgramModel, tmp_path: Path) -> None:
    model.save(tmp_path / "ngrams.safetensors")
    with pytest.raises(CheckpointError, match="does not fit 3 labels"):
        NgramModel.load(tmp_path / "ngrams.safetensors", 3)
