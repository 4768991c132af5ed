"""What is wrong with data: labels in doubt, and near duplicates.

Shapes: N texts, C labels.
"""

import functools
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilstm_cls.data.types import LabelIds
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.baselines import by_label, tfidf_model
from bilstm_cls.evaluation.metrics import likelihoods
from bilstm_cls.ngrams import PAIRS, Floats, Ints, count, is_spaced, kept

NUM_FOLDS = 5
NUM_HASHES, NUM_BANDS, BAND = 64, 16, 4
"""Two texts are compared where four hashes next to each other agree: at a similarity of 0.7 in 99 of 100 cases, at 0.3
in 12."""

NEAR = 0.7
RUN_LENGTH = {True: 3, False: 5}
"""Words of a run, or characters where words are not separated by spaces."""


def confident_disagreements(probabilities: Floats, label_ids: LabelIds) -> Ints:
    """Returns the texts whose label is likely wrong, the likeliest first.

    As in confident learning (Northcutt, Jiang & Chuang 2021), a prediction disagrees confidently with a label where it
    is at least as probable as it is, on average, for the texts that have it as their label. Of texts with several
    labels this is asked of each label, or its lack, by itself. The texts must not be those the model learned from.
    """
    if label_ids.ndim == 2:
        of_label, lowest = likelihoods(probabilities, label_ids), np.ones(len(label_ids))
        for i, has_label in enumerate(label_ids.T.astype(np.int64)):
            pair = np.stack([1 - probabilities[:, i], probabilities[:, i]], axis=1)
            found = confident_disagreements(pair, has_label)
            lowest[found] = np.minimum(lowest[found], of_label[found, i])
        found = np.flatnonzero(lowest < 1)
        return found[np.argsort(lowest[found], kind="stable")]
    rows, num_labels = np.arange(len(label_ids)), probabilities.shape[1]
    of_label, support = probabilities[rows, label_ids], np.bincount(label_ids, minlength=num_labels)
    thresholds = np.bincount(label_ids, weights=of_label, minlength=num_labels) / np.maximum(1, support)
    thresholds[support == 0] = np.inf
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities[rows, predicted]
    found = np.flatnonzero((predicted != label_ids) & (confidence >= thresholds[predicted]))
    return found[np.argsort(of_label[found] - confidence[found], kind="stable")]


def label_errors(texts: Sequence[str], label_ids: LabelIds, groups: Ints, num_labels: int) -> tuple[Ints, Floats]:
    """Checks every label by a logistic regression over TF-IDF of 1-2 grams that was trained on the other folds.

    Args:
        texts: N texts.
        label_ids: of the texts, of at least two labels.
        groups: `[N]`: texts of one number are kept in one fold, as near duplicates have to be.
        num_labels: C.

    Returns:
        The texts whose label is likely wrong, the likeliest first, and `[N, C]` their probabilities by the other folds.
    """
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    kinds, members = np.unique(groups, return_inverse=True)
    folds = np.random.default_rng(0).permutation(np.arange(len(kinds)) % NUM_FOLDS)[members]
    [counts] = count(texts, PAIRS, spaced=is_spaced(texts))
    is_shared = np.bincount(counts.indices, minlength=1).max() > 1
    counts, _ = kept(counts, min_texts=2 if is_shared else 1)  # an n-gram of one text says nothing about another
    present, ids = np.arange(num_labels), label_ids
    if not (several := label_ids.ndim == 2):
        present, ids = np.unique(label_ids, return_inverse=True)
    with warnings.catch_warnings():  # about labels that a fold lacks, and the last digits of an optimum
        warnings.simplefilter("ignore")
        split = PredefinedSplit(folds)
        predicted = cross_val_predict(tfidf_model(tol=1e-2), counts, ids, cv=split, method="predict_proba")
    probabilities = by_label(predicted, present.tolist(), num_labels, is_multi=several)
    return confident_disagreements(probabilities, label_ids), probabilities


class Pair(NamedTuple):
    """Two texts by number, the earlier one first, and the fraction of runs that they have in common, up to 1."""

    first: int
    second: int
    similarity: float


def near_duplicates(texts: Sequence[str]) -> list[Pair]:
    """Pairs every text that has a near duplicate before it with the most similar one that was found.

    A text is the set of its runs of three words, or of five characters where words are not separated by spaces. Two
    texts are near duplicates where these sets share at least 70 % of what is in either of them. They are found by
    MinHash (Broder 1997) and locality-sensitive hashing. Texts without a word are left out.

    Raises:
        ConfigError: `datasketch` is not installed.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise ConfigError("near duplicates need datasketch; run: pip install 'bilstm-cls[quality]'") from error
    runs_of = functools.partial(_runs, spaced=is_spaced(texts))
    index = MinHashLSH(num_perm=NUM_HASHES, params=(NUM_BANDS, BAND))
    firsts: dict[bytes, int] = {}  # by signature: of many copies only the first is looked up
    pairs: list[Pair] = []
    for row, text in enumerate(texts):
        if not (runs := runs_of(text)):
            continue
        signature = MinHash(num_perm=NUM_HASHES, hashfunc=int)
        signature.update_batch(runs)
        key = signature.hashvalues.tobytes()
        candidates = [firsts[key]] if key in firsts else sorted(index.query(signature))
        near = [(len(runs & (them := runs_of(texts[other]))) / len(runs | them), -other) for other in candidates]
        if near and max(near)[0] >= NEAR:
            pairs.append(Pair(-max(near)[1], row, max(near)[0]))
        if key not in firsts:
            firsts[key] = row
            index.insert(row, signature)
    return pairs


def clusters(pairs: Sequence[Pair], number: int) -> Ints:
    """Returns for each of `number` texts the first of those that pairs join it with: itself where there is none."""
    leader = np.arange(number)
    for pair in pairs:  # the first of a pair comes before the second, whose pair is the only one it is second in
        leader[pair.second] = leader[pair.first]
    return leader


def _runs(text: str, *, spaced: bool) -> set[int]:
    words = re.findall(r"\w+" if spaced else r"\S", text.casefold())
    length = RUN_LENGTH[spaced]
    if not any(word[0].isalnum() for word in words):
        return set()
    runs = (" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1)))
    return {zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs}
