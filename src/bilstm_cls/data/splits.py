"""Cutting `test` and `valid` out of train: stratified by label, in blocks of neighbours, or by whole groups.

Shapes: n texts of train, N of all; C labels, and where texts have several one more, which every text has.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.types import Ints, LabelIds, label_counts
from bilstm_cls.errors import DataError

NUM_BLOCKS = 4  # of each label that `valid_split: blocks` cuts out, where there are as many texts
MAX_GAP = 30  # texts on either side of a block that are in neither split, at most a quarter of those that are left


def cut_splits(
    train: Ints,
    label_ids: LabelIds,
    fractions: Mapping[str, float],
    *,
    seed: int,
    valid_split: str = "random",
    groups: Ints | None = None,
) -> dict[str, Ints]:
    """Cuts fractions out of the texts of train; returns the places of each split, in the order they were read.

    A split has the size that was asked for (with groups, about that), and of every label as near to the same fraction
    as whole texts allow (the method of largest remainders; for texts with several labels iterative stratification).
    The last text of a label stays in train. `DataError` where a fraction is less than one text that train can do
    without. `train` are `[n]` places of texts, in the order they were read; `label_ids` are of all texts. With
    `valid_split` `blocks`, valid is made of blocks of neighbours, where a text has one label of one, and the texts
    around them are `left_out`. `groups` are `[N]` numbers: texts with the same one are in the same split.
    """
    orders, size = {}, len(train)
    if is_multi := label_ids.ndim == 2:
        label_ids = np.column_stack([label_ids, np.ones(len(label_ids), dtype=np.uint8)])
    counts = label_counts(label_ids[train], 0)
    room = (counts - 1).clip(0)
    for number, name in enumerate(("test", "valid")):
        if name not in fractions:
            continue
        ties, generator = (np.random.Generator(np.random.PCG64([seed, number, *more])) for more in ([1], []))
        ids, is_gap = label_ids[train], np.zeros(len(train), dtype=bool)
        if is_multi:
            quotas = np.minimum(np.round(fractions[name] * counts).astype(np.int64), room)
        else:
            quotas = _quotas(counts, room, round(fractions[name] * size), ties)
        if groups is not None:
            is_chosen = _whole_groups(groups[train], ids, quotas, room, generator)
        elif name == "valid" and valid_split == "blocks":
            ids, quotas = (np.zeros_like(train), quotas[-1:]) if is_multi else (ids, quotas)
            is_chosen, is_gap = _blocks(ids, quotas, generator)
        else:
            is_chosen = (_iterative if is_multi else _random)(ids, quotas, generator)
        if not is_chosen.any():
            kept = f"train can do without, which keeps one text of each of {np.count_nonzero(counts)} labels"
            what = f"the fraction {fractions[name]:g} of {size} texts is less than one text (or group) that {kept}"
            raise DataError(f"data.{name}: {what}; give more texts, fewer labels, a greater fraction, or a file")
        orders[name] = train[is_chosen]
        room = room - label_counts(label_ids[orders[name]], len(room))
        if is_gap.any():
            orders["left_out"] = train[is_gap]
        train = train[~(is_chosen | is_gap)]
    return {"train": train, **orders}


def _quotas(counts: Ints, room: Ints, wanted: int, generator: np.random.Generator) -> Ints:
    """Returns how many texts of each label to take: `wanted` together, at most `room`, in proportion to `counts`."""
    wanted = min(wanted, int(room.sum()))
    weights = counts * (room > 0)
    exact = wanted * weights / max(1, weights.sum())
    quotas: Ints = np.minimum(exact.astype(np.int64), room)
    by_remainder = np.lexsort((generator.random(len(counts)), -(exact % 1)))
    while (missing := wanted - int(quotas.sum())) > 0:
        able = by_remainder[(room - quotas)[by_remainder] > 0][:missing]
        quotas[able] += 1
    return quotas


def _places_of_labels(label_ids: Ints, quotas: Ints) -> list[tuple[Ints, int]]:
    """Returns the places of each label that is there, and how many of them to take."""
    by_label = np.argsort(label_ids, kind="stable")
    places = np.split(by_label, np.searchsorted(label_ids[by_label], np.arange(1, len(quotas))))
    return [(several, int(quota)) for several, quota in zip(places, quotas, strict=True) if len(several)]


def _random(label_ids: Ints, quotas: Ints, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    is_chosen = np.zeros(len(label_ids), dtype=bool)
    for places, quota in _places_of_labels(label_ids, quotas):
        is_chosen[generator.permutation(places)[:quota]] = True
    return is_chosen


def _iterative(has: LabelIds, quotas: Ints, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Chooses texts by iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011), those of rare labels first.

    A text goes where more texts of its rarest label are still missing: to the split, or to what stays in train.
    """
    part, order = np.full(len(has), -1), generator.permutation(len(has))
    unseen = has.sum(0, dtype=np.int64)  # [C], texts of each label that have no place yet
    wanted = [len(has) - quotas[-1], quotas[-1]]
    missing = np.outer(wanted, unseen / len(has))  # [2, C], of what stays and of the split
    is_kept = np.zeros(len(unseen), dtype=bool)  # whether a text of the label stays
    while unseen[-1] > 0:
        label = int(np.where(unseen > 0, unseen, len(has) + 1).argmin())
        for i in order[(has[order, label] > 0) & (part[order] < 0)].tolist():
            labels = np.flatnonzero(has[i])
            is_full = missing[:, -1] < 0.5
            part[i] = tuple(missing[1, [label, -1]]) > tuple(missing[0, [label, -1]])
            part[i] = 1 - is_full.argmax() if is_full.any() else part[i]
            if (~is_kept[labels] & (unseen[labels] == 1)).any():
                part[i] = 0
            is_kept[labels] |= part[i] == 0
            missing[part[i], labels] -= 1
            unseen[labels] -= 1
    return np.asarray(part == 1)


def _blocks(
    label_ids: Ints, quotas: Ints, generator: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns which texts are in blocks, and which in the gaps around them."""
    is_chosen, is_gap = np.zeros((2, len(label_ids)), dtype=bool)
    for places, quota in _places_of_labels(label_ids, quotas):
        number, free = min(NUM_BLOCKS, quota), len(places) - quota
        shares = np.arange(number + 1)
        sizes, spaces = (np.diff(total * shares // max(number, 1)) for total in (quota, free))
        gap = min(MAX_GAP, free // (4 * max(number, 1)))
        begin = 0  # of a stretch that has one block and some of the other texts
        for size, space in zip(sizes.tolist(), spaces.tolist(), strict=True):
            start = begin + int(generator.integers(0, space + 1))
            is_chosen[places[start : start + size]] = True
            is_gap[places[max(0, start - gap) : start + size + gap]] = True
            begin += size + space
    return is_chosen, is_gap & ~is_chosen


def _whole_groups(
    groups: Ints, label_ids: LabelIds, quotas: Ints, room: Ints, generator: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Takes groups in random order, each that brings the labels nearer to their quotas."""
    is_chosen = np.zeros(len(groups), dtype=bool)
    by_group = np.argsort(groups, kind="stable")
    members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
    missing, left = quotas.copy(), room.copy()
    for i in generator.permutation(len(members)):
        labels = np.flatnonzero(counts := label_counts(label_ids[members[i]], 0))
        counts = counts[labels]
        is_nearer = np.abs(missing[labels] - counts).sum() < np.abs(missing[labels]).sum()
        if is_nearer and (counts <= left[labels]).all():
            is_chosen[members[i]] = True
            missing[labels] -= counts
            left[labels] -= counts
    return is_chosen
