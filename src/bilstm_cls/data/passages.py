"""Texts as a language model reads them: rows of about the same length, a chunk of all rows at a time.

Every row is one text, from its first token in both directions, as a classifier reads it. So no prediction crosses from
one text into another, and no token that means the end of a text has to be invented.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.batches import POOL_BATCHES, Indices, cut_by_tokens
from bilstm_cls.data.corpus import Corpus, Tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of B texts.

    Attributes:
        forward: `[T + 1, B]` int64, time-major, zero past each text: each token predicts the one after it. The last
            ones are the first of the next chunk.
        backward: the same of the texts read from their ends.
        is_predicted: `[T, B]`, whether there is a token to predict.
        num_ended: texts of the chunk before, its first, that are not in this one.
    """

    forward: Indices
    backward: Indices
    is_predicted: npt.NDArray[np.bool_]
    num_ended: int


@dataclass(frozen=True)
class LanguageModelTexts:
    """The texts of several corpora under one numbering, whole."""

    corpora: Sequence[Corpus]

    def __post_init__(self) -> None:
        object.__setattr__(self, "corpora", [corpus.whole() for corpus in self.corpora])

    @property
    def lengths(self) -> Indices:
        """`[N]` tokens of each text."""
        return np.concatenate([corpus.lengths for corpus in self.corpora])

    def counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """Returns how often each token occurs, `[V]`."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for corpus in self.corpora:
            for _, token_ids, _ in corpus.blocks():
                counts += np.bincount(token_ids, minlength=vocab_size)
        return counts

    def texts(self, indices: Indices) -> list[Tokens]:
        """Returns the token ids of each text."""
        starts = np.cumsum([0, *map(len, self.corpora)])
        places = np.searchsorted(starts, indices, side="right") - 1
        return [
            self.corpora[i].read(np.array([index - starts[i]]))[0] for i, index in zip(places, indices, strict=True)
        ]


def passage_batches(
    indices: Indices, lengths: Indices, *, batch_size: int, bptt: int, seed: int, epoch: int
) -> list[Indices]:
    """Shuffles texts, sorts them by length within large pools, cuts these into batches and shuffles the batches.

    A batch holds `batch_size` texts, or more where they are shorter than `bptt`, so that steps are about the same size.
    Every text is in exactly one batch; within one they are ordered by rising length.

    Args:
        indices: the texts to read.
        lengths: `[N]` tokens of every text there is.
        batch_size: texts that are read in parallel.
        bptt: tokens of each that are read at once.
        seed: of the order, which differs by `epoch`, counted from 0.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(indices)
    at_once = np.minimum(lengths, bptt)
    pool_size = POOL_BATCHES * batch_size * bptt // max(1, int(at_once[indices].mean()))
    batches: list[Indices] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        batches += cut_by_tokens(pool[np.argsort(lengths[pool], kind="stable")], at_once, batch_size * bptt)
    return [batches[i] for i in generator.permutation(len(batches))]


def number_of_chunks(longest: int, bptt: int) -> int:
    """Returns in how many chunks a batch is read whose longest text has so many tokens: the last predicts nothing."""
    return -(-(longest - 1) // bptt)


def chunks(texts: Sequence[Tokens], bptt: int) -> Iterator[Chunk]:
    """Cuts texts, ordered by rising length, into chunks of one size, at most `bptt`; a text that ends drops out.

    Args:
        texts: B arrays of at least 2 token ids.
        bptt: tokens of each text in a chunk.
    """
    lengths = np.array([len(text) for text in texts])
    steps = int(lengths[-1]) - 1
    size = -(-steps // number_of_chunks(steps + 1, bptt))
    forward = np.zeros((steps + 1, len(texts)), dtype=np.int64)
    backward = np.zeros_like(forward)
    for row, text in enumerate(texts):
        forward[: len(text), row], backward[: len(text), row] = text, text[::-1]
    ended = 0
    for start in range(0, steps, size):
        first = int(np.searchsorted(lengths, start + 1, side="right"))
        part = slice(start, start + size + 1), slice(first, None)
        times = np.arange(start + 1, min(start + size, steps) + 1)
        yield Chunk(forward[part], backward[part], times[:, None] < lengths[first:], first - ended)
        ended = first
