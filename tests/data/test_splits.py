"""Splits cut out of train: of the asked size, true to the labels, and never of a whole label."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bilstm_cls.data.splits import MAX_GAP, NUM_BLOCKS, cut_splits
from bilstm_cls.errors import DataError

COUNTS = st.lists(st.integers(1, 60), min_size=2, max_size=8)
FRACTIONS = st.fixed_dictionaries({}, optional={"test": st.floats(0.05, 0.45), "valid": st.floats(0.05, 0.45)})


def labels_of(counts: list[int]) -> Any:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@settings(deadline=None, max_examples=40)
@given(COUNTS, FRACTIONS, st.sampled_from(["random", "blocks"]), st.integers(0, 9))
def test_splits_have_the_asked_size_and_leave_a_text_of_every_label_in_train(
    counts: list[int], fractions: dict[str, float], valid_split: str, seed: int
) -> None:
    label_ids = labels_of(counts)
    everything = np.arange(len(label_ids))
    try:
        found = cut_splits(everything, label_ids, fractions, seed=seed, valid_split=valid_split)
    except DataError:
        room = len(label_ids) - len(counts)
        assert min(round(fraction * len(label_ids)) for fraction in fractions.values()) == 0 or room < 2
        return
    size, room = len(label_ids), len(label_ids) - len(counts)
    for name in fractions:
        wanted = round(fractions[name] * size)
        assert len(found[name]) == min(wanted, room)
        room -= wanted
    assert set(label_ids[found["train"]]) == set(range(len(counts)))
    assert sorted(np.concatenate(list(found.values())).tolist()) == everything.tolist()
    assert all((np.diff(order) > 0).all() for order in found.values())
    assert set(found) <= {"train", *fractions, "left_out" if valid_split == "blocks" else "train"}


@given(st.lists(st.integers(10, 60), min_size=2, max_size=6), st.floats(0.05, 0.4))
def test_every_label_has_its_fraction_to_less_than_one_text(counts: list[int], fraction: float) -> None:
    label_ids = labels_of(counts)
    found = cut_splits(np.arange(len(label_ids)), label_ids, {"valid": fraction}, seed=0)["valid"]
    exact = round(fraction * len(label_ids)) * np.array(counts) / len(label_ids)
    assert (np.abs(np.bincount(label_ids[found], minlength=len(counts)) - exact) < 1).all()


def test_a_fraction_of_less_than_a_text_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data\.valid"):
        cut_splits(np.arange(4), np.array([0, 0, 1, 1]), {"valid": 0.1}, seed=0)
    with pytest.raises(DataError, match=r"data\.test"):
        cut_splits(np.arange(2), np.array([0, 1]), {"test": 0.5}, seed=0)


def test_blocks_are_contiguous_and_have_gaps_around_them() -> None:
    label_ids = np.repeat([0, 1], 2_000)
    splits = cut_splits(np.arange(4_000), label_ids, {"valid": 0.1}, seed=0, valid_split="blocks")
    valid = splits["valid"]
    for label in (0, 1):
        places = valid[label_ids[valid] == label]
        blocks = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        assert len(places) == 200
        assert 1 < len(blocks) <= NUM_BLOCKS
    distance = np.abs(splits["train"][:, None] - valid[None, :]).min(axis=1)
    is_same_label = label_ids[splits["train"]] == label_ids[valid[0]]
    assert distance[is_same_label & (splits["train"] < 1_800)].min() > MAX_GAP
    assert 0 < len(splits["left_out"]) <= 2 * MAX_GAP * NUM_BLOCKS * 2


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=30, max_size=120),
    st.floats(0.1, 0.3), st.integers(0, 5),
)  # fmt: skip
def test_a_group_is_never_in_two_splits(rows: list[tuple[int, int]], fraction: float, seed: int) -> None:
    label_ids, groups = (np.array(column) for column in zip(*rows, strict=True))
    try:
        fractions = {"test": fraction, "valid": fraction}
        splits = cut_splits(np.arange(len(rows)), label_ids, fractions, seed=seed, groups=groups)
    except DataError:
        return
    sets = [set(groups[order].tolist()) for order in splits.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))
    assert set(label_ids[splits["train"]]) == set(label_ids)


def sets_of(seed: int, size: int = 400) -> Any:
    """Five labels of unlike frequency, the last three of few texts; a third of the texts has none."""
    generator = np.random.default_rng(seed)
    has_label = generator.random((size, 5)) < [0.5, 0.2, 0.03, 0.02, 0.01]
    has_label[generator.random(size) < 0.33] = False
    has_label[:2, 4] = True
    return has_label.astype(np.uint8)


@settings(deadline=None, max_examples=25)
@example(44972, 0.25, 0.25)  # no text has the fourth label
@given(st.integers(0, 10**6), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_splits_of_several_labels_have_the_asked_size_and_of_each_label_its_fraction(
    seed: int, test: float, valid: float
) -> None:
    has_label = sets_of(seed)
    found = cut_splits(np.arange(400), has_label, {"test": test, "valid": valid}, seed=seed)
    assert [len(found["test"]), len(found["valid"])] == [round(test * 400), round(valid * 400)]
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(400))
    assert ((has_label[found["train"]].sum(0) > 0) == (has_label.sum(0) > 0)).all()  # some seeds leave a label out
    for name, fraction in (("test", test), ("valid", valid)):
        exact = fraction * has_label.sum(0)
        assert (np.abs(has_label[found[name]].sum(0) - exact) <= 2 + 0.1 * exact).all()


def test_groups_and_blocks_of_texts_with_several_labels() -> None:
    has_label, groups = sets_of(0), np.arange(400) // 4
    found = cut_splits(np.arange(400), has_label, {"test": 0.2}, seed=0, groups=groups)
    assert not np.intersect1d(groups[found["train"]], groups[found["test"]]).size
    assert 60 <= len(found["test"]) <= 100
    blocks = cut_splits(np.arange(400), has_label, {"valid": 0.1}, seed=0, valid_split="blocks")["valid"]
    assert len(blocks) == 40
    assert (np.diff(blocks) > 1).sum() == NUM_BLOCKS - 1
