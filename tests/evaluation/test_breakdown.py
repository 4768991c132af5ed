"""Where a score comes from: every text in one group, and labels in doubt by the rule of confident learning."""

import numpy as np
import pytest

from bilstm_cls.evaluation.breakdown import (
    NUM_BINS,
    by_length,
    by_truncation,
    confident_disagreements,
    length_histogram,
)


@pytest.mark.parametrize("number", [1, 19, 40, 97, 1000])
@pytest.mark.parametrize("longest", [1, 3, 500])
def test_every_text_is_in_one_group_of_its_length(number, longest):
    lengths = np.random.default_rng(number).integers(0, longest, size=number)
    is_correct = lengths % 2 == 0
    groups = by_length(lengths, is_correct)
    assert sum(group.texts for group in groups) == number
    assert sum(round(group.accuracy * group.texts) for group in groups) == is_correct.sum()
    assert 1 <= len(groups) <= min(5, max(1, number // 20), longest)
    edges = [int(edge.replace(",", "")) for group in groups for edge in group.name.split("–")]
    assert edges == sorted(edges)


def test_groups_of_length_are_about_as_large_as_each_other():
    groups = by_length(np.arange(1000), np.ones(1000, dtype=bool))
    assert [group.texts for group in groups] == pytest.approx([200] * 5, abs=1)
    assert groups[0].name == "0–200"


def test_whole_and_cut_texts_are_judged_apart():
    whole, cut = by_truncation(np.array([1, 400, 401, 900]), 400, np.array([True, True, True, False]))
    assert (whole.name, whole.texts, whole.accuracy) == ("read whole", 2, 1.0)
    assert (cut.name, cut.texts, cut.accuracy) == ("cut to 400", 2, 0.5)


@pytest.mark.parametrize("lengths", [[1, 2], [500, 600]])
def test_texts_of_one_kind_are_not_parted(lengths):
    assert by_truncation(np.array(lengths), 400, np.array([True, False])) == []


@pytest.mark.parametrize("lengths", [[0], [1], [7] * 30, [1, 10_000], list(range(500))])
def test_a_histogram_holds_every_text_and_shows_where_texts_are_cut(lengths):
    counts, width = length_histogram(np.array(lengths), 400)
    assert sum(counts) == len(lengths)
    assert len(counts) == NUM_BINS
    assert NUM_BINS * width >= min(400, max(lengths))


def test_a_bin_holds_the_lengths_up_to_its_edge():
    counts, width = length_histogram(np.array([1, 12, 13, 400, 400]), 400)
    assert width == 12
    assert (counts[0], counts[1], counts[33]) == (2, 1, 2)


def test_a_label_is_in_doubt_where_another_is_as_probable_as_it_is_for_its_own_texts():
    pos, neg = [0.1, 0.9], [0.9, 0.1]
    probabilities = np.array([pos, pos, [0.2, 0.8], [0.45, 0.55], neg, neg, [0.02, 0.98]])
    label_ids = np.array([1, 1, 1, 0, 0, 0, 0])
    # mean of pos where it is the label: 0.867; of neg: 0.571
    assert confident_disagreements(probabilities, label_ids).tolist() == [6]


def test_the_likeliest_wrong_label_comes_first():
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.05, 0.95], [0.01, 0.99]])
    assert confident_disagreements(probabilities, np.array([0, 0, 0, 1])).tolist() == []
    probabilities[3] = [0.2, 0.8]
    assert confident_disagreements(probabilities, np.array([0, 0, 0, 1])).tolist() == [2, 1]


def test_a_label_that_no_text_has_puts_none_in_doubt():
    assert confident_disagreements(np.array([[0.0, 1.0], [0.3, 0.7]]), np.array([0, 0])).tolist() == []
