"""Linear baselines: they learn, repeat, and take whatever texts a file may hold."""

import numpy as np
import pytest

from bilstm_cls.data.types import Split
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.baselines import BASELINES, by_label, known_baselines, run_baseline

ENGLISH = {"neg": "dull awful boring", "pos": "bright lovely moving", "meh": "fine okay usual"}
CHINESE = {"neg": "难看无聊失望", "pos": "好看感人精彩"}
names = pytest.mark.parametrize("name", BASELINES)


def split(texts, label_ids, name="train"):
    label_ids = np.array(label_ids, dtype=np.int64)
    return Split(name, texts, label_ids, ["a.csv"] * len(texts), np.arange(len(texts)))


def reviews(num_texts, labels, seed, name="train"):
    """Film reviews whose label shows in one telling word among common ones."""
    rng = np.random.default_rng(seed)
    label_ids = np.arange(num_texts) % len(labels)
    common = ["the", "film", "was", "Really", "don't", ",", "and", "I", "saw", "it"]
    telling = [rng.choice(ENGLISH[labels[i]].split()) for i in label_ids]
    return split([" ".join([*rng.choice(common, 8), word, "!"]) for word in telling], label_ids, name)


@names
@pytest.mark.parametrize("labels", [["neg", "pos"], ["meh", "neg", "pos"]])
def test_a_baseline_learns_telling_words(name, labels):
    test = reviews(60, labels, seed=2, name="test")
    probabilities, seconds = run_baseline(name, reviews(150, labels, seed=1), test, len(labels))
    assert probabilities.shape == (60, len(labels))
    assert probabilities.dtype == np.float64
    assert (probabilities.argmax(axis=1) == test.label_ids).mean() > 0.95
    assert seconds > 0


@names
def test_a_baseline_learns_text_without_spaces(name):
    rng = np.random.default_rng(0)
    label_ids = np.arange(80) % 2
    marks = [list(CHINESE["neg"]), list(CHINESE["pos"])]
    texts = ["这部电影" + "".join(rng.choice(marks[i], 4)) + "。" for i in label_ids]
    train, test = split(texts[:60], label_ids[:60]), split(texts[60:], label_ids[60:])
    probabilities, _ = run_baseline(name, train, test, 2)
    assert (probabilities.argmax(axis=1) == test.label_ids).mean() > 0.9


@names
@pytest.mark.parametrize("labels", [["neg", "pos"], ["meh", "neg", "pos"]])
def test_odd_texts_get_a_distribution_and_the_same_each_time(name, labels):
    texts = ["", " ", "🙂🙂", "never seen before", "a\ud800b", "x" * 10_000, "dull " * 3000]
    train, test = reviews(60, labels, seed=1), split(texts, [0] * len(texts))
    probabilities, _ = run_baseline(name, train, test, len(labels))
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.random.seed(99)
    assert run_baseline(name, train, test, len(labels))[0].tobytes() == probabilities.tobytes()


@names
def test_a_label_that_train_lacks_has_probability_zero(name):
    train = reviews(60, ["neg", "pos"], seed=1)
    probabilities, _ = run_baseline(name, train, train, 3)
    assert (probabilities[:, 2] < 1e-10).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_probabilities_that_are_all_zero_still_give_a_distribution():
    found = by_label(np.array([[0.0, 0.0], [1.0, 0.0]]), [0, 1], 3)
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1, 0, 0]], atol=1e-300)


@names
def test_case_does_not_matter_and_marks_do(name):
    train = split(["GREAT day", "great night!", "Dull day?", "dULL night?"] * 3, [1, 1, 0, 0] * 3)
    probabilities, _ = run_baseline(name, train, split(["great", "GREAT", "?", "!"], [0] * 4), 2)
    assert probabilities[0, 1] == probabilities[1, 1] > 0.5
    assert probabilities[2, 1] < 0.5 < probabilities[3, 1]


@pytest.mark.parametrize("name", ["tfidf", "nbsvm"])
@pytest.mark.parametrize(
    ("texts", "label_ids", "message"),
    [(["", ""], [0, 1], "no n-gram"), (["good", "fine"], [1, 1], "at least two labels, found 1")],
)
def test_a_split_to_learn_nothing_from_is_named(name, texts, label_ids, message):
    train = split(texts, label_ids)
    with pytest.raises(DataError, match=f"train split: .*{message}"):
        run_baseline(name, train, train, 2)


def test_a_baseline_that_is_not_installed_is_left_out_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert known_baselines(None) == ["tfidf", "nbsvm"]
    for name in ("fasttext", "svm"):
        with pytest.raises(ConfigError, match=name):
            known_baselines([name])
