"""Labels in doubt, and near duplicates."""

import itertools
import random

import numpy as np
import pytest

from bilstm_cls.evaluation.metrics import confident_disagreements
from bilstm_cls.inspection import NEAR, Pair, clusters, label_errors, near_duplicates
from tests.conftest import reviews


def test_a_label_is_in_doubt_where_another_is_as_probable_as_it_is_for_its_texts_the_likeliest_first():
    pos, neg = [0.1, 0.9], [0.9, 0.1]
    probabilities = np.array([pos, pos, [0.2, 0.8], [0.45, 0.55], neg, neg, [0.09, 0.91], [0.02, 0.98]])
    label_ids = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    # mean of pos where it is the label: 0.867
    assert confident_disagreements(probabilities, label_ids).tolist() == [7, 6]
    assert confident_disagreements(probabilities, np.zeros(8, dtype=int)).tolist() == []  # no text of the other label


def test_of_several_labels_each_is_in_doubt_by_itself():
    probabilities = np.array([[0.9, 0.2], [0.8, 0.1], [0.1, 0.9], [0.05, 0.8], [0.9, 0.7], [0.1, 0.95]])
    has_label = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [1, 1], [0, 0]], dtype=np.uint8)
    # Text 3 lacks the first label in the model's eyes, and text 5 has the second one: 0.05 of either.
    assert confident_disagreements(probabilities, has_label).tolist() == [3, 5]
    assert confident_disagreements(probabilities, np.ones((6, 2), dtype=np.uint8)).tolist() == []


@pytest.mark.parametrize(("num_labels", "several"), [(2, False), (3, False), (3, True)])
def test_labels_that_were_made_wrong_are_found(num_labels: int, several: bool) -> None:
    rows = reviews(300)
    texts = [text for text, _ in rows]
    label_ids = np.array([label == "pos" for _, label in rows], dtype=np.int64)
    if num_labels == 3:
        texts += [f"sober report number {i} about finance" for i in range(60)]
        label_ids = np.concatenate([label_ids, np.full(60, 2)])
    wrong = np.array([3, 50, 51, 120, 200])
    label_ids[wrong] = 1 - label_ids[wrong]
    given = np.eye(num_labels, dtype=np.uint8)[label_ids] if several else label_ids
    found, probabilities = label_errors(texts, given, np.arange(len(texts)), num_labels)
    assert len(set(wrong.tolist()) & set(found[:6].tolist())) >= 4
    assert several or probabilities.sum(1) == pytest.approx(1)
    assert (probabilities.argmax(1) != label_ids)[found[:4]].all()


def test_copies_of_a_text_do_not_support_each_other() -> None:
    rows = reviews(200)
    texts = [text for text, _ in rows] + [rows[0][0]] * 10
    label_ids = np.array([label == "pos" for _, label in rows] + [rows[0][1] == "neg"] * 10, dtype=np.int64)
    separate, _ = label_errors(texts, label_ids, np.arange(len(texts)), 2)
    together, _ = label_errors(texts, label_ids, np.concatenate([np.arange(200), np.zeros(10, dtype=np.int64)]), 2)
    copies = set(range(200, 210))
    assert copies <= set(together.tolist())
    assert not copies & set(separate.tolist())


WORDS = [f"word{i}" for i in range(300)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def similarity(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """140 texts of 5 to 30 words, of which some are others with a few words changed."""
    chooser = random.Random(0)
    originals = [chooser.choices(WORDS, k=chooser.randint(5, 30)) for _ in range(100)]
    changed = []
    for words in chooser.sample(originals, 40):
        copy = list(words)
        for _ in range(chooser.choice([0, 1, 1, 2, 5])):
            copy[chooser.randrange(len(copy))] = chooser.choice(WORDS)
        changed.append(copy)
    everything = [" ".join(words) for words in originals + changed]
    chooser.shuffle(everything)
    return everything


def test_every_pair_that_is_found_is_near_and_nearly_every_near_text_is_found(texts: list[str]) -> None:
    pairs = near_duplicates(texts)
    assert all(pair.first < pair.second for pair in pairs)
    for pair in pairs:
        assert pair.similarity == pytest.approx(similarity(texts[pair.first], texts[pair.second]))
        assert pair.similarity >= NEAR
    expected = {
        second for first, second in itertools.combinations(range(len(texts)), 2)
        if similarity(texts[first], texts[second]) >= NEAR
    }  # fmt: skip
    found = {pair.second for pair in pairs}
    assert found <= expected
    assert len(found) >= 0.95 * len(expected) > 10


def test_copies_whatever_their_case_and_marks_take_one_pair_each() -> None:
    assert near_duplicates(["", "", "!!!", "..."]) == []
    for one, other in (
        ("A fine film, really.", "a FINE film really"),
        ("two words", "two  words\n"),
        ("\ud800 odd",) * 2,
    ):
        assert near_duplicates(["another text of some words here", one, other]) == [Pair(1, 2, 1.0)]
    pairs = near_duplicates(["the very same text of eight words here"] * 500)
    assert (len(pairs), {pair.first for pair in pairs}) == (499, {0})
    np.testing.assert_array_equal(clusters([Pair(0, 2, 0.8), Pair(2, 3, 0.9), Pair(1, 4, 0.7)], 5), [0, 1, 0, 0, 1])
