"""Linear baselines: they learn, repeat, and take whatever texts a file may hold."""

import numpy as np
import pytest

from bilstm_cls.data.types import Split
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation import baselines
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
def test_a_baseline_learns_telling_words_and_answers_odd_texts(name, labels):
    odd = ["", " ", "🙂🙂", "never seen before", "a\ud800b", "x" * 10_000, "dull " * 3000, "GREAT", "great"]
    train, test = reviews(150, labels, seed=1), reviews(60, labels, seed=2, name="test")
    probabilities, seconds = run_baseline(name, train, split([*test.texts, *odd], [0] * 69), len(labels) + 1)
    assert probabilities.shape == (69, len(labels) + 1)
    assert (probabilities[:60].argmax(axis=1) == test.label_ids).mean() > 0.95
    assert seconds > 0
    assert (probabilities >= 0).all()
    assert (probabilities[:, -1] < 1e-10).all()  # of a label that train lacks
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(probabilities[-2], probabilities[-1])


@names
def test_a_baseline_learns_text_without_spaces_and_marks_the_same_each_time(name):
    rng = np.random.default_rng(0)
    label_ids = np.arange(80) % 2
    marks = [list(CHINESE["neg"]), list(CHINESE["pos"])]
    texts = ["这部电影" + "".join(rng.choice(marks[i], 4)) + "。！"[i] for i in label_ids]
    train, test = split(texts[:60], label_ids[:60]), split(texts[60:], label_ids[60:])
    probabilities, _ = run_baseline(name, train, test, 2)
    assert (probabilities.argmax(axis=1) == test.label_ids).mean() > 0.9
    np.random.seed(99)
    assert run_baseline(name, train, test, 2)[0].tobytes() == probabilities.tobytes()


def test_a_fasttext_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(baselines, "_FASTTEXT", "raise RuntimeError('Encountered NaN.')")
    train = reviews(60, ["neg", "pos"], seed=1)
    with pytest.raises(DataError, match=r"fasttext failed \(RuntimeError: Encountered NaN\.\)"):
        run_baseline("fasttext", train, train, 2)


def test_probabilities_that_are_all_zero_still_give_a_distribution():
    found = by_label(np.array([[0.0, 0.0], [1.0, 0.0]]), [0, 1], 3)
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1, 0, 0]], atol=1e-300)


@pytest.mark.parametrize(
    ("texts", "label_ids", "message"),
    [(["", ""], [0, 1], "no n-gram"), (["good", "fine"], [1, 1], "at least two labels, found 1")],
)
def test_a_split_to_learn_nothing_from_is_named(texts, label_ids, message):
    train = split(texts, label_ids)
    with pytest.raises(DataError, match=f"train split: .*{message}"):
        run_baseline("nbsvm", train, train, 2)


def test_a_baseline_that_is_not_installed_is_left_out_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert known_baselines(None) == ["tfidf", "nbsvm"]
    for name in ("fasttext", "svm"):
        with pytest.raises(ConfigError, match=name):
            known_baselines([name])
