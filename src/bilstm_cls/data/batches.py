"""Batches: which texts go together, and how they become tensors.

The order of an epoch is a pure function of the seed and the epoch's number, so a resumed run needs no more than a
position to go on with the same batches.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.corpus import Corpus

if TYPE_CHECKING:
    from torch import Tensor

Indices = npt.NDArray[np.int64]

POOL_BATCHES = 50
"""Batches whose texts are drawn at random together and then sorted by length among themselves."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded texts.

    Attributes:
        indices: `[B]` int64, places in the corpus.
        token_ids: `[B, T]` int64, zero past each text.
        lengths: `[B]` int64 on the CPU.
        label_ids: `[B]` int64, of several labels a text `[B, C]` uint8, or None where the corpus has none.
        soft_labels: `[B, C]` float32, or None where the corpus has none.
    """

    indices: Indices
    token_ids: "Tensor"
    lengths: "Tensor"
    label_ids: "Tensor | None"
    soft_labels: "Tensor | None"

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch, padding left out."""
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
    lengths: npt.NDArray[np.int64], *, batch_size: int, batch_tokens: int | None, seed: int, epoch: int
) -> list[Indices]:
    """Shuffles, sorts by length within large pools, cuts into batches and shuffles the batches: each text is in one.

    Args:
        lengths: `[N]` tokens of each text.
        batch_size: texts in a batch.
        batch_tokens: padded tokens in a batch, instead of `batch_size`, or None. A longer text is alone in its batch.
        seed: of the order, which differs by `epoch`, counted from 0.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(len(lengths))
    if batch_tokens is not None:
        batch_size = max(1, batch_tokens // max(1, int(lengths.mean())))
    batches: list[Indices] = []
    pool_size = POOL_BATCHES * batch_size
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool[:] = pool[np.argsort(lengths[pool], kind="stable")]  # in its place: the batches are views of the order
        if batch_tokens is None:
            batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        else:
            batches += cut_by_tokens(pool, lengths, batch_tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def evaluation_batches(lengths: npt.NDArray[np.int64], *, max_tokens: int) -> list[Indices]:
    """Cuts texts, shortest first, into batches of at most `max_tokens` padded tokens."""
    return cut_by_tokens(np.argsort(lengths, kind="stable"), lengths, max_tokens)


def cut_by_tokens(order: Indices, lengths: npt.NDArray[np.int64], max_tokens: int) -> list[Indices]:
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
