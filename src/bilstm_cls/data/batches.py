"""Batches: which texts go together, and how they become tensors.

The order of an epoch is a pure function of the seed and the epoch's number, so a resumed run needs no more than a
position to go on with the same batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.corpus import Corpus, Tokens
from bilstm_cls.data.store import chunks

if TYPE_CHECKING:
    from torch import Tensor

Indices = npt.NDArray[np.int64]

POOL_BATCHES = 50  # whose texts are drawn at random together and then sorted by length among themselves


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded texts; the labels are None where the corpus has none."""

    indices: Indices  # [B] int64, places in the corpus
    token_ids: "Tensor"  # [B, T] int64, zero past each text
    lengths: "Tensor"  # [B] int64 on the CPU
    label_ids: "Tensor | None"  # [B] int64, of several labels a text [B, C] uint8
    soft_labels: "Tensor | None"  # [B, C] float32

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


def collate(corpus: Corpus, indices: Indices) -> Batch:
    """Copies texts out of the flat corpus into one padded batch of tensors."""
    import torch  # not above: without PyTorch an exported model answers from the same batches

    token_ids, lengths = pad(corpus, indices)
    batch = Batch(
        indices=indices,
        token_ids=torch.from_numpy(token_ids),
        lengths=torch.from_numpy(lengths),
        label_ids=None if corpus.label_ids is None else torch.from_numpy(corpus.label_ids[indices]),
        soft_labels=None if corpus.soft_labels is None else torch.from_numpy(corpus.soft_labels[indices]),
    )
    corpus.release()
    return batch


def pad(corpus: Corpus, indices: Indices) -> tuple[Indices, Indices]:
    """Returns token ids `[B, T]`, zero past each text, and lengths `[B]`, both int64. Long texts are cut here."""
    flat, lengths = corpus.read(indices)
    is_token = np.arange(lengths.max()) < lengths[:, None]  # [B, T]
    token_ids = np.zeros(is_token.shape, dtype=np.int64)
    token_ids[is_token] = flat
    return token_ids, lengths


def training_batches(
    lengths: Indices, *, batch_size: int, batch_tokens: int | None, seed: int, epoch: int
) -> list[Indices]:
    """Shuffles, sorts by length within large pools, cuts into batches and shuffles the batches: each text is in one.

    A batch has `batch_size` texts, or where they are given at most `batch_tokens` padded tokens; a longer text is alone
    in its batch. `lengths` are `[N]` tokens of each text; `epoch` counts from 0.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(len(lengths))
    if batch_tokens is not None:
        batch_size = max(1, batch_tokens // max(1, int(lengths.mean())))
    batches: list[Indices] = []
    for pool in _sorted_pools(order, lengths, POOL_BATCHES * batch_size):
        batches += chunks(pool, batch_size) if batch_tokens is None else cut_by_tokens(pool, lengths, batch_tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def _sorted_pools(order: Indices, lengths: Indices, pool_size: int) -> Iterator[Indices]:
    for pool in chunks(order, pool_size):
        pool[:] = pool[np.argsort(lengths[pool], kind="stable")]  # in its place: the batches are views of the order
        yield pool


def evaluation_batches(lengths: Indices, *, max_tokens: int) -> list[Indices]:
    """Cuts texts, shortest first, into batches of at most `max_tokens` padded tokens."""
    return cut_by_tokens(np.argsort(lengths, kind="stable"), lengths, max_tokens)


def cut_by_tokens(order: Indices, lengths: Indices, max_tokens: int) -> list[Indices]:
    """Cuts texts that are sorted by rising length so that texts times longest length stays within `max_tokens`."""
    batches: list[Indices] = []
    start = 0
    for stop, length in enumerate(lengths[order].tolist()):
        if stop > start and (stop - start + 1) * length > max_tokens:
            batches.append(order[start:stop])
            start = stop
    if start < len(order):
        batches.append(order[start:])
    return batches


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of B texts, as a language model reads them: whole, each from its first token in both directions.

    So no prediction crosses from one text into another, and no token for the end of a text has to be invented.

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


class LanguageModelTexts:
    """The texts of several corpora under one numbering, whole; `lengths`, `[N]`, are their tokens."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self.corpora = [replace(corpus, max_length=None) for corpus in corpora]
        self.lengths = np.concatenate([corpus.lengths for corpus in self.corpora])

    def counts(self, vocab_size: int) -> Indices:
        """Returns how often each token occurs, `[V]`."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for corpus in self.corpora:
            for _, token_ids, _ in corpus.blocks():
                counts += np.bincount(token_ids, minlength=vocab_size)
        return counts

    def batches(self, indices: Indices, *, batch_size: int, bptt: int, seed: int, epoch: int) -> list[Indices]:
        """Shuffles texts into batches as `training_batches` does; within one they are ordered by rising length.

        A batch holds `batch_size` texts, or more where they are shorter than `bptt`, the tokens of each that are read
        at once, so that steps are about the same size.
        """
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        at_once = np.minimum(self.lengths, bptt)
        pool_size = POOL_BATCHES * batch_size * bptt // max(1, int(at_once[indices].mean()))
        batches: list[Indices] = []
        for pool in _sorted_pools(generator.permutation(indices), self.lengths, pool_size):
            batches += cut_by_tokens(pool, at_once, batch_size * bptt)
        return [batches[i] for i in generator.permutation(len(batches))]

    def read(self, indices: Indices) -> list[Tokens]:
        """Returns the token ids of each text."""
        starts = np.cumsum([0, *map(len, self.corpora)])
        places = np.searchsorted(starts, indices, side="right") - 1
        return [
            self.corpora[i].read(np.array([index - starts[i]]))[0] for i, index in zip(places, indices, strict=True)
        ]

    def chunks(self, indices: Indices, bptt: int) -> Iterator[Chunk]:
        """Cuts B texts of at least 2 tokens, by rising length, into chunks of one size; a text that ends drops out.

        A chunk has at most `bptt` predictions of a text.
        """
        lengths, texts = self.lengths[indices], self.read(indices)
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


def number_of_chunks(longest: int, bptt: int) -> int:
    """Returns in how many chunks a batch is read whose longest text has so many tokens: the last predicts nothing."""
    return -(-(longest - 1) // bptt)
