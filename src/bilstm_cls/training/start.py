"""How the weights start, and what each label weighs."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bilstm_cls.config import Config
from bilstm_cls.data.preparation import PreparedData
from bilstm_cls.data.vectors import corpus_vectors, load_vectors
from bilstm_cls.errors import DataError
from bilstm_cls.model.classifier import BiLSTMClassifier

logger = logging.getLogger(__name__)


def initialize_embedding(model: BiLSTMClassifier, config: Config, data: PreparedData) -> dict[str, Any]:
    """Puts the first word vectors into the model and returns what is to be said of them."""
    init, dim = config.embedding.init, config.embedding.dim
    if init == "random":
        return {}
    if init == "corpus":
        corpora = [data.corpora[name] for name in ("train", "unlabelled") if name in data.corpora]
        matrix = corpus_vectors(corpora, len(data.tokenizer), dim=dim, seed=config.seed)
        model.set_embedding(torch.from_numpy(matrix))
        return {}
    vectors = load_vectors(init, data.tokenizer.tokens, dim=dim, seed=config.seed)
    model.set_embedding(torch.from_numpy(vectors.matrix))
    logger.info(f"word vectors {init}: {vectors.coverage:.1%} of the vocabulary found")
    return {"embedding/coverage": vectors.coverage}


def class_weights(
    setting: Any, label_ids: np.ndarray[Any, np.dtype[np.int64]], labels: list[str]
) -> list[float] | None:
    """Returns one weight per label from `train.class_weights`: null, `balanced`, or a map from label to weight.

    `balanced` gives `N / (C * count)`, so that every label weighs the same in sum.

    Raises:
        DataError: the map names a label that is not there, or lacks one.
    """
    if setting is None:
        return None
    if setting == "balanced":
        counts = np.bincount(label_ids, minlength=len(labels))
        weights = [len(label_ids) / (len(labels) * max(1, int(count))) for count in counts]
    else:
        for wrong in _difference(setting, labels):
            raise DataError(f"train.class_weights: {wrong!r} is not in both the map and the labels {labels}")
        weights = [float(setting[label]) for label in labels]
    logger.info("class weights: " + ", ".join(f"{n} {w:.3g}" for n, w in zip(labels, weights, strict=True)))
    return weights


def _difference(setting: dict[str, float], labels: list[str]) -> Iterator[str]:
    yield from sorted(set(setting) ^ set(labels))
