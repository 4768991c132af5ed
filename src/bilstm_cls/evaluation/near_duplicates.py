"""Texts that are nearly the same, found by MinHash (Broder 1997) and locality-sensitive hashing.

A text is the set of its runs of three words (of five characters, where the writing has no blanks between words), and
two texts are near duplicates where these sets share at least 70 % of what is in either of them. Of a text 256 bytes are
held in memory.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.store import chunks
from bilstm_cls.ngrams import is_spaced

CHUNK = 2048
NUM_HASHES, BAND = 64, 4
"""Two texts are looked at where four hashes next to each other agree: at a similarity of 0.7 in 99 of 100 cases, at 0.3
in 12."""

NEAR = 0.7
_RUN = {True: 3, False: 5}
_WORD = re.compile(r"\w+")
_CHARACTER = re.compile(r"\S")
_GENERATOR = np.random.default_rng(20)
_FACTORS = _GENERATOR.integers(0, 2**63, size=NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_ADDENDS = _GENERATOR.integers(0, 2**63, size=NUM_HASHES, dtype=np.uint64)
_PLACES = _GENERATOR.integers(0, 2**63, size=max(_RUN.values()), dtype=np.uint64) * np.uint64(2) + np.uint64(1)

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts by number, the earlier one first, and the share of runs that they have in common, up to 1."""

    first: int
    second: int
    similarity: float


def near_duplicates(texts: Sequence[str]) -> list[Pair]:
    """Pairs every text that has a near duplicate before it with the most similar one that was found.

    Texts without a word are left out.

    Args:
        texts: N texts, each read twice at most where it is like another.
    """
    spaced = is_spaced(texts[:CHUNK])
    parts = [_signatures(chunk, spaced) for chunk in chunks(texts, CHUNK)]
    signatures = np.concatenate([part for part, _ in parts])
    rows = np.flatnonzero(np.concatenate([has_words for _, has_words in parts]))
    if len(rows) == 0:
        return []
    _, firsts, kinds = np.unique(signatures[rows], axis=0, return_index=True, return_inverse=True)
    alike = np.stack([rows[firsts[kinds.ravel()]], rows], axis=1)  # each with the first of the same signature
    best: dict[int, Pair] = {}
    for first, second in np.concatenate([alike, _candidates(signatures, np.sort(rows[firsts]))]).tolist():
        if first == second or (second in best and best[second].similarity == 1.0):
            continue
        similarity = _similarity(texts[first], texts[second], spaced)
        if similarity >= NEAR and (second not in best or similarity > best[second].similarity):
            best[second] = Pair(first, second, similarity)
    return [best[second] for second in sorted(best)]


def clusters(pairs: Sequence[Pair], number: int) -> Ints:
    """Returns for each of `number` texts the first of those that pairs join it with: itself where there is none."""
    leader = np.arange(number)
    for pair in pairs:  # the first of a pair comes before the second, whose pair is the only one it is second in
        leader[pair.second] = leader[pair.first]
    return leader


def _signatures(texts: Sequence[str], spaced: bool) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Returns `[N, 64]` least hashes of the runs of each text, and `[N]` whether it has a word."""
    cache: dict[str, int] = {}
    runs = [_runs(text, spaced, cache) for text in texts]
    starts = np.cumsum([0, *(len(own) for own in runs[:-1])])
    flat = np.concatenate(runs)
    signatures = np.empty((len(texts), NUM_HASHES), dtype=np.uint32)
    for i, (factor, addend) in enumerate(zip(_FACTORS, _ADDENDS, strict=True)):
        signatures[:, i] = np.minimum.reduceat(((flat * factor + addend) >> np.uint64(32)).astype(np.uint32), starts)
    pattern = _WORD if spaced else _CHARACTER
    return signatures, np.array([pattern.search(text) is not None for text in texts])


def _runs(text: str, spaced: bool, cache: dict[str, int]) -> Hashes:
    """Returns a hash of every run of words."""
    length = _RUN[spaced]
    words = (_WORD if spaced else _CHARACTER).findall(text.casefold())
    hashes = []
    for word in words:
        if word not in cache:
            cache[word] = zlib.crc32(word.encode("utf-8", "surrogatepass")) + 1
        hashes.append(cache[word])
    hashes += [0] * (length - len(hashes))  # a text of fewer words is one run
    numbers = np.array(hashes, dtype=np.uint64)
    joined = np.zeros(len(numbers) - length + 1, dtype=np.uint64)
    for i in range(length):
        joined += numbers[i : len(numbers) - length + 1 + i] * _PLACES[i]
    joined ^= joined >> np.uint64(31)
    joined *= np.uint64(0x9E3779B97F4A7C15)
    return joined ^ (joined >> np.uint64(29))


def _candidates(signatures: npt.NDArray[np.uint32], rows: Ints) -> Ints:
    """Returns `[M, 2]` pairs of rows whose signatures agree in a band and on the whole.

    Of many rows that agree, each is paired with the first and with the last before it, so that M grows with their
    number and not with its square.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, NUM_HASHES, BAND):
        _, kinds = np.unique(signatures[rows, start : start + BAND], axis=0, return_inverse=True)
        order = np.argsort(kinds.ravel(), kind="stable")
        is_first = np.diff(kinds.ravel()[order], prepend=-1) > 0
        firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
        others = np.flatnonzero(~is_first)
        for before in (firsts[others], others - 1):
            found.append(np.stack([rows[order[before]], rows[order[others]]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    parts = (pairs[i : i + CHUNK].T for i in range(0, len(pairs), CHUNK))
    agreement = [(signatures[first] == signatures[second]).mean(axis=1) for first, second in parts]
    return pairs[np.concatenate([np.empty(0), *agreement]) >= NEAR - 0.25]  # four deviations of this estimate


def _similarity(one: str, other: str, spaced: bool) -> float:
    """Returns the share of runs in either text that are in both."""
    runs, others = (set(_runs(text, spaced, {}).tolist()) for text in (one, other))
    return len(runs & others) / len(runs | others)
