"""An encoded split: all token ids in one flat array, with the place where each text begins."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.store import chunks, mapped_numbers, release
from bilstm_cls.data.tokenizer import UNKNOWN_ID, Tokenizer

Ints = npt.NDArray[np.int64]

CHUNK = 4096
"""Texts that are handed to the tokenizer at once."""


@dataclass(frozen=True)
class Corpus:
    """N encoded texts.

    Attributes:
        token_ids: `[total]` int32, all texts one after the other, in memory or memory-mapped.
        offsets: `[N + 1]` int64, where each text begins.
        label_ids: `[N]` int64, or None where there are no labels.
        num_tokens: `[N]` int64, tokens of each text before it was cut; 0 for an empty one, which is encoded as `<unk>`.
    """

    token_ids: npt.NDArray[np.int32]
    offsets: Ints
    label_ids: Ints | None
    num_tokens: Ints

    def __len__(self) -> int:
        return len(self.num_tokens)

    @functools.cached_property
    def lengths(self) -> Ints:
        """`[N]` tokens of each text as the model reads it, at least 1."""
        lengths = self.offsets[1:] - self.offsets[:-1]
        release(self.offsets)
        return lengths

    def release(self) -> None:
        """Gives back the memory of what was read of memory-mapped arrays."""
        release(self.token_ids, self.offsets, self.label_ids, self.num_tokens)


def encode(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    truncate: str = "both",
    label_ids: Ints | None = None,
) -> Corpus:
    """Encodes texts in memory, each cut to `max_length` tokens.

    Args:
        texts: N raw texts, at least one.
        tokenizer: with its vocabulary.
        max_length: tokens of a text that are kept.
        truncate: a key of `TRUNCATIONS`.
        label_ids: `[N]`, kept beside the texts.
    """
    parts = list(_encode_chunks(texts, tokenizer, max_length, truncate))
    token_ids, lengths, num_tokens = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Corpus(token_ids, _offsets(lengths), label_ids, num_tokens)


def encode_to_files(
    folder: Path, name: str, texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int, truncate: str
) -> None:
    """Like `encode`, chunk by chunk into files that `load_corpus` maps, so that memory does not grow with the texts."""
    with contextlib.ExitStack() as stack:
        ids, ends, numbers = (
            stack.enter_context((folder / f"{name}.{key}.bin").open("wb"))
            for key in ("token_ids", "offsets", "num_tokens")
        )
        offsets = _offsets(np.empty(0, dtype=np.int64))
        ends.write(offsets.data)
        for token_ids, lengths, num_tokens in _encode_chunks(texts, tokenizer, max_length, truncate):
            offsets = offsets[-1] + np.cumsum(lengths)
            ids.write(token_ids.data)
            ends.write(offsets.data)
            numbers.write(num_tokens.data)


def load_corpus(folder: Path, name: str, label_ids: Ints | None) -> Corpus:
    """Memory-maps what `encode_to_files` wrote."""
    token_ids = np.memmap(folder / f"{name}.token_ids.bin", dtype=np.int32, mode="r")
    offsets, num_tokens = (mapped_numbers(folder / f"{name}.{key}.bin") for key in ("offsets", "num_tokens"))
    return Corpus(token_ids, offsets, label_ids, num_tokens)


def _encode_chunks(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int, truncate: str
) -> Iterator[tuple[npt.NDArray[np.int32], Ints, Ints]]:
    """Yields flat token ids, and for each text its tokens as read and before it was cut."""
    cut = TRUNCATIONS[truncate]
    for chunk in chunks(texts, CHUNK):
        flat: list[int] = []
        lengths, num_tokens = [], []
        for ids in tokenizer.encode_batch(chunk):
            kept = cut(ids, max_length) if len(ids) > max_length else ids or [UNKNOWN_ID]
            flat += kept
            lengths.append(len(kept))
            num_tokens.append(len(ids))
        yield np.array(flat, dtype=np.int32), np.array(lengths, dtype=np.int64), np.array(num_tokens, dtype=np.int64)


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _head(ids: list[int], max_length: int) -> list[int]:
    return ids[:max_length]


def _tail(ids: list[int], max_length: int) -> list[int]:
    return ids[-max_length:]


def _both(ids: list[int], max_length: int) -> list[int]:
    first = (max_length + 1) // 2
    return ids[:first] + ids[len(ids) - (max_length - first) :]


TRUNCATIONS = {"head": _head, "tail": _tail, "both": _both}
"""Which tokens of a text that is too long are kept; `both`: the first and the last half of what fits."""


def statistics(corpus: Corpus) -> dict[str, int]:
    """Returns how many texts, tokens (as read), truncated texts, empty texts and unknown tokens there are."""
    counts = {
        "texts": len(corpus),
        "tokens": int(corpus.lengths.sum()),
        "truncated": int((corpus.num_tokens > corpus.lengths).sum()),
        "empty": int((corpus.num_tokens == 0).sum()),
        "unknown": _number_of_unknown(corpus.token_ids),
        "longest": int(corpus.num_tokens.max()),
        "median_length": int(np.median(corpus.num_tokens)),
    }
    corpus.release()
    return counts


def _number_of_unknown(token_ids: npt.NDArray[np.int32], size: int = 2**20) -> int:
    number = 0
    for start in range(0, len(token_ids), size):
        number += int((token_ids[start : start + size] == UNKNOWN_ID).sum())
        release(token_ids)
    return number
