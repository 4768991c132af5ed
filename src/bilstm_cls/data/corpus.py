"""An encoded split: all token ids in one flat array, with the place where each text begins.

Texts are stored whole, so that one file serves every `max_length`; they are cut when they are read.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.store import chunks, mapped_numbers, release
from bilstm_cls.data.tokenizer import UNKNOWN_ID, Tokenizer
from bilstm_cls.data.types import LabelIds

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]

TOKEN_IDS, OFFSETS = "token_ids.bin", "offsets.bin"
CHUNK = 4096  # texts that are encoded together
BLOCK_TOKENS = 2**16  # that are looked at together where all texts are read in order


@dataclass(frozen=True, eq=False)
class Corpus:
    """N encoded texts, cut to at most `max_length` tokens when they are read; the arrays may be memory-mapped."""

    token_ids: Tokens  # [total] int32, all texts one after the other and whole
    offsets: Ints  # [N + 1] int64, where each text begins
    label_ids: LabelIds | None = None  # of N texts
    max_length: int | None = None  # tokens of a text that are read; None for all
    truncate: str = "both"  # which of a longer text: the first (`head`), last (`tail`), or as many of both ends
    digest: str = ""  # of the texts and their encoding
    soft_labels: npt.NDArray[np.float32] | None = None  # [N, C] float32 probabilities that a teacher gives

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> Ints:
        """`[N]` tokens of each text before it is cut; 0 for an empty one, which is read as `<unk>`."""
        num_tokens = self.offsets[1:] - self.offsets[:-1]
        release(self.offsets)
        return np.asarray(num_tokens)

    @functools.cached_property
    def lengths(self) -> Ints:
        """`[N]` tokens of each text as the model reads it, at least 1."""
        return self.num_tokens.clip(1, self.max_length)

    def read(self, indices: Ints) -> tuple[Tokens, Ints]:
        """Returns the token ids of some texts as the model reads them, one after the other, and their lengths `[B]`."""
        starts = self.offsets[indices]
        sizes = self.offsets[indices + 1] - starts
        lengths = sizes.clip(1, self.max_length)
        skipped = sizes - lengths  # -1 for an empty text
        # Where each text begins in the result, subtracted from where it begins in the file, for each of its tokens.
        shift = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        places = np.arange(len(shift)) + shift
        if skipped.max(initial=0) > 0:
            assert self.max_length is not None
            kept = {"head": self.max_length, "tail": 0, "both": (self.max_length + 1) // 2}[self.truncate]
            is_behind = places - np.repeat(starts, lengths) >= kept
            places += np.where(is_behind, np.repeat(skipped.clip(0), lengths), 0)
        if skipped.min(initial=0) == 0:
            return np.asarray(self.token_ids[places]), lengths
        is_empty = np.repeat(skipped < 0, lengths)
        token_ids = np.full(len(places), UNKNOWN_ID, dtype=np.int32)
        token_ids[~is_empty] = self.token_ids[places[~is_empty]]
        return token_ids, lengths

    def blocks(self, size: int = BLOCK_TOKENS) -> Iterator[tuple[Ints, Tokens, Ints]]:
        """Yields all texts in order, about `size` tokens at a time: their indices, token ids and lengths, as `read`."""
        starts = np.searchsorted(self.offsets, np.arange(0, len(self.token_ids), size))
        bounds = np.unique(np.concatenate([starts, [0, len(self)]]))
        for first, last in itertools.pairwise(bounds.tolist()):
            indices = np.arange(first, last)
            yield indices, *self.read(indices)
            self.release()

    def release(self) -> None:
        """Gives back the memory of what was read of memory-mapped arrays."""
        release(self.token_ids, self.offsets, self.label_ids)

    @functools.cached_property
    def statistics(self) -> dict[str, int]:
        """How many texts, tokens (as read), truncated texts, empty texts and unknown tokens there are."""
        num_tokens = self.num_tokens
        return {
            "texts": len(self),
            "tokens": int(self.lengths.sum()),
            "truncated": int((num_tokens > self.lengths).sum()),
            "empty": int((num_tokens == 0).sum()),
            "unknown": sum(int((token_ids == UNKNOWN_ID).sum()) for _, token_ids, _ in self.blocks()),
            "longest": int(num_tokens.max()),
            "median_length": int(np.median(num_tokens)),
        }


def encode(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_length: int | None,
    truncate: str = "both",
    label_ids: LabelIds | None = None,
) -> Corpus:
    """Encodes texts, at least one, in memory, to be read as `Corpus` says."""
    return replace(encode_whole(texts, tokenizer, None), max_length=max_length, truncate=truncate, label_ids=label_ids)


def encode_whole(texts: Sequence[str], tokenizer: Tokenizer, folder: Path | None) -> Corpus:
    """Encodes texts, of which nothing is cut: in memory, or chunk by chunk into files, in memory that does not grow."""
    if folder is None:
        token_ids, lengths = (np.concatenate(arrays) for arrays in zip(*_encode_chunks(texts, tokenizer), strict=True))
        digest = hashlib.sha256(lengths.tobytes() + token_ids.tobytes()).hexdigest()
        return Corpus(token_ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), digest=digest)
    with (folder / TOKEN_IDS).open("wb") as ids, (folder / OFFSETS).open("wb") as ends:
        offsets = np.zeros(1, dtype=np.int64)
        ends.write(offsets.data)
        for token_ids, lengths in _encode_chunks(texts, tokenizer):
            offsets = offsets[-1] + np.cumsum(lengths)
            ids.write(token_ids.data)
            ends.write(offsets.data)
    return load_corpus(folder)


def load_corpus(folder: Path) -> Corpus:
    """Memory-maps what `encode_whole` wrote; the folder is named by its digest."""
    return Corpus(mapped_numbers(folder / TOKEN_IDS, np.int32), mapped_numbers(folder / OFFSETS), digest=folder.name)


def _encode_chunks(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[Tokens, Ints]]:
    """Yields flat token ids, and for each text how many are its."""
    for chunk in chunks(texts, CHUNK):
        ids = tokenizer.encode_batch(chunk)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        yield np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum())), lengths
