"""Near duplicates: all that a comparison of every pair finds, and no others."""

import itertools
import random

import numpy as np
import pytest

from bilstm_cls.evaluation.near_duplicates import NEAR, Pair, clusters, near_duplicates

WORDS = [f"word{i}" for i in range(300)]


def text_of(chooser: random.Random, number: int) -> list[str]:
    return chooser.choices(WORDS, k=number)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def similarity(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """500 texts of 5 to 60 words, of which some are others with a few words changed."""
    chooser = random.Random(0)
    originals = [text_of(chooser, chooser.randint(5, 60)) for _ in range(400)]
    changed = []
    for words in chooser.sample(originals, 100):
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
    assert len(found) >= 0.95 * len(expected) > 20


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A fine film, really.", "a FINE film really"),
        ("short", "Short!"),
        ("two words", "two  words\n"),
        ("\ud800 odd", "\ud800 odd"),
    ],
)
def test_the_same_words_are_the_same_whatever_their_case_and_marks(one: str, other: str) -> None:
    assert near_duplicates(["another text of some words here", one, other]) == [Pair(1, 2, 1.0)]


def test_texts_without_words_are_left_out() -> None:
    assert near_duplicates(["", "", "!!!", "..."]) == []


def test_writing_without_blanks_is_compared_by_characters() -> None:
    headline = "上海今日公布新的股票市场投资利率公告以及银行基金"
    other = "球队赢得联赛冠军教练表示比赛非常精彩进球很多"
    number = len(headline) - 4
    pairs = near_duplicates([headline, other, f"{headline}！"])
    assert pairs == [Pair(0, 2, pytest.approx(number / (number + 1)))]


def test_many_copies_of_one_text_take_no_more_pairs_than_texts() -> None:
    others = [f"the very same text of {i} words here" for i in range(9)]
    pairs = near_duplicates(["the very same text of eight words here"] * 3000 + others)
    assert len(pairs) == 2999
    assert {pair.first for pair in pairs} == {0}


def test_clusters_join_chains_of_pairs() -> None:
    pairs = [Pair(0, 2, 0.8), Pair(2, 3, 0.9), Pair(1, 4, 0.7)]
    np.testing.assert_array_equal(clusters(pairs, 6), [0, 1, 0, 0, 1, 5])
