"""Where a score comes from: by length, by truncation, and the labels that confident answers put in doubt.

Shapes: N texts, C labels.
"""

import math
from dataclasses import dataclass

import numpy as np

from bilstm_cls.evaluation.metrics import Bools, Floats, Ints, accuracy_interval

MAX_GROUPS, NUM_BINS = 5, 40
MIN_TEXTS = 20
"""Texts of a group of similar length, where there are so many: of fewer an accuracy says little."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the judged texts: their name, number, accuracy, and its 95 % interval."""

    name: str
    texts: int
    accuracy: float
    interval: tuple[float, float]


def group_of(name: str, is_correct: Bools) -> Group:
    """Judges the texts of a group, of which there is at least one."""
    num_correct, number = int(is_correct.sum()), len(is_correct)
    return Group(name, number, num_correct / number, accuracy_interval(num_correct, number))


def by_length(num_tokens: Ints, is_correct: Bools) -> list[Group]:
    """Judges texts by length, in up to five groups of about the same size.

    Args:
        num_tokens: `[N]` tokens before truncation.
        is_correct: `[N]` whether the answer is right.
    """
    number = max(1, min(MAX_GROUPS, len(num_tokens) // MIN_TEXTS))
    inner = np.unique(np.quantile(num_tokens, np.arange(1, number) / number, method="higher"))
    groups = np.searchsorted(inner, num_tokens, side="left")
    found = []
    for i in np.unique(groups):
        own = num_tokens[groups == i]
        name = f"{own.min():,}" if own.min() == own.max() else f"{own.min():,}–{own.max():,}"
        found.append(group_of(name, is_correct[groups == i]))
    return found


def by_truncation(num_tokens: Ints, max_length: int, is_correct: Bools) -> list[Group]:
    """Judges the texts that are read whole and those that are cut; nothing where all are of one kind."""
    is_cut = num_tokens > max_length
    if is_cut.all() or not is_cut.any():
        return []
    return [group_of("read whole", is_correct[~is_cut]), group_of(f"cut to {max_length:,}", is_correct[is_cut])]


def length_histogram(num_tokens: Ints, max_length: int) -> tuple[list[int], int]:
    """Returns how many texts there are by length, in `NUM_BINS` bins of which the last holds all longer ones.

    Args:
        num_tokens: `[N]` tokens before truncation, of at least one text.
        max_length: tokens of a text that the model reads, which the bins show.

    Returns:
        The counts, and the tokens of a bin.
    """
    shown = max(1.1 * min(max_length, num_tokens.max()), float(np.percentile(num_tokens, 99)))
    width = max(1, math.ceil(shown / NUM_BINS))
    bins = np.minimum(np.maximum(0, num_tokens - 1) // width, NUM_BINS - 1)
    return np.bincount(bins, minlength=NUM_BINS).tolist(), width


def confident_disagreements(probabilities: Floats, label_ids: Ints) -> Ints:
    """Returns the texts whose label is likely wrong, the likeliest first.

    As in confident learning (Northcutt, Jiang & Chuang 2021), an answer disagrees confidently with a label where it is
    at least as probable as it is, in the mean, for the texts that do carry it as their label. The texts must not be
    those the model learned from.

    Args:
        probabilities: `[N, C]`.
        label_ids: `[N]`.
    """
    rows, num_labels = np.arange(len(label_ids)), probabilities.shape[1]
    own = probabilities[rows, label_ids]
    support = np.bincount(label_ids, minlength=num_labels)
    thresholds = np.bincount(label_ids, weights=own, minlength=num_labels) / np.maximum(1, support)
    thresholds[support == 0] = np.inf
    answers = probabilities.argmax(axis=1)
    confidence = probabilities[rows, answers]
    found = np.flatnonzero((answers != label_ids) & (confidence >= thresholds[answers]))
    margins = confidence[found] - own[found]
    return found[np.argsort(-margins, kind="stable")]
