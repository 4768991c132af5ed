"""How the weights start, and what each label weighs."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilstm_cls.checkpoint import load_tensors
from bilstm_cls.config import Config
from bilstm_cls.data.prepare import WEIGHTS, PreparedData, encoder_folder
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.vectors import corpus_vectors, load_vectors
from bilstm_cls.errors import CheckpointError, DataError
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.language_model import LanguageModels
from bilstm_cls.run_directory import RunDirectory, text_digest

logger = logging.getLogger(__name__)


def initialize_weights(model: BiLSTMClassifier | LanguageModels, config: Config, data: PreparedData) -> dict[str, Any]:
    """Puts the first word vectors, or a whole encoder, into the model and returns what is to be said of them.

    Raises:
        CheckpointError: a file of the encoder is missing, damaged, or does not fit the others.
        DataError: the vectors cannot be read.
    """
    if config.pretrain.enabled or config.model.init_from is not None:
        return load_encoder(model, encoder_folder(config, data.dataset.digest), data.tokenizer)
    init, dim = config.embedding.init, config.embedding.dim
    if init == "random":
        return {}
    if init == "ppmi":
        corpora = [data.corpora[name] for name in ("train", "unlabelled") if name in data.corpora]
        matrix = corpus_vectors(corpora, len(data.tokenizer), dim=dim, seed=config.seed)
        model.set_embedding(torch.from_numpy(matrix))
        return {}
    vectors = load_vectors(init, data.tokenizer.tokens, dim=dim, seed=config.seed)
    model.set_embedding(torch.from_numpy(vectors.matrix))
    logger.info(f"word vectors {init}: {vectors.coverage:.1%} of the vocabulary found")
    return {"embedding/coverage": vectors.coverage}


def load_encoder(model: BiLSTMClassifier | LanguageModels, folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Puts the embedding and the encoder that `pretrain` made into a model of the same sizes.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
    """
    tensors, metadata = load_tensors(folder / WEIGHTS)
    if metadata.get("text_digest") != text_digest(tokenizer, []):
        raise CheckpointError(f"{folder}: tokenizer.json is not what the encoder was made with")
    own = {name for name in model.state_dict() if name.startswith(("embedding.", "encoder."))}
    try:
        if tensors.keys() != own:
            raise RuntimeError(f"it holds {sorted(tensors)}")
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: {WEIGHTS} does not fit config.yaml: {error}") from error
    logger.info(f"starting from the encoder in {folder}")
    facts: dict[str, Any] = {"encoder/sha256": metadata["sha256"]}
    if (folder / "metrics.json").is_file():
        facts["time/pretrain_seconds"] = RunDirectory(folder).read_object("metrics.json").get("time/pretrain_seconds")
    return facts


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
