"""Probabilities for a corpus, the same for every text whatever its company."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bilstm_cls.data.batches import Batch, collate, evaluation_batches
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.device import allow_tf32, on_device
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.run_directory import LoadedModel

MAX_TOKENS = {"cpu": 2**14, "cuda": 2**17}
"""Padded tokens of a batch: as many as a device reads fastest."""


def answer(loaded: LoadedModel, texts: Sequence[str], corpus: Corpus) -> npt.NDArray[np.float64]:
    """Returns the probabilities `[N, C]` of everything that a run holds: networks and n-gram model.

    Args:
        loaded: a run's models.
        texts: N raw texts.
        corpus: the same texts, encoded.
    """
    logits = np.stack([predict_logits(member, corpus) for member in loaded.members]).sum(0, dtype=np.float64)
    return softmax(logits if loaded.ngrams is None else logits + loaded.ngrams.logits(texts))


def predict_logits(model: BiLSTMClassifier, corpus: Corpus, *, rank: int = 0, size: int = 1) -> npt.NDArray[np.float32]:
    """Returns `[N, C]` logits in the corpus's own order.

    Batches are cut by padded tokens after sorting by length, in 32 bits on any device. The model is left as it was, in
    training mode or not, and no random number is drawn.

    Args:
        model: on its device.
        corpus: N encoded texts.
        rank: number of this process, from 0, where several share the batches. The logits of texts that others read
            are zero: the sum over all processes has each once.
        size: number of processes.
    """
    num_labels = model.project.out_features
    logits = np.zeros((len(corpus), num_labels), dtype=np.float32)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), allow_tf32(False):
            max_tokens = MAX_TOKENS[model.embedding.weight.device.type]
            own = evaluation_batches(corpus.lengths, max_tokens=max_tokens)[rank::size]
            for batch, result in _run(model, (collate(corpus, indices) for indices in own)):
                logits[batch.indices] = result.cpu().numpy()
    finally:
        model.train(was_training)
    return logits


def _run(model: BiLSTMClassifier, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    device = model.embedding.weight.device
    for batch in batches:
        yield batch, model(on_device(batch.token_ids, device), batch.lengths)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns `[N, C]` probabilities in 64 bits from `[N, C]` logits."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
