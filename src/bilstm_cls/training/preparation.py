"""From a config to what training needs: splits, vocabulary, encoded corpora, first word vectors."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bilstm_cls.config import Config
from bilstm_cls.data.corpus import Corpus, encode, statistics
from bilstm_cls.data.example import Dataset, Split
from bilstm_cls.data.sources import load_dataset
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.vectors import corpus_vectors, load_vectors
from bilstm_cls.errors import DataError
from bilstm_cls.model.classifier import BiLSTMClassifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A data set with everything that training makes of its texts."""

    dataset: Dataset
    tokenizer: Tokenizer
    corpora: dict[str, Corpus]

    def facts(self) -> dict[str, Any]:
        """Returns flat counts for `metrics.json`: rows, tokens, truncated and empty texts, unknown tokens."""
        facts: dict[str, Any] = {
            "data/origin": self.dataset.origin,
            "data/is_official": self.dataset.is_official,
            "data/notes": list(self.dataset.notes),
            "text/vocab_size": len(self.tokenizer),
        }
        facts |= {f"data/{name}": count for name, count in self.dataset.counts.items()}
        for name, corpus in self.corpora.items():
            facts |= {f"text/{name}/{key}": value for key, value in statistics(corpus).items()}
        return facts


def prepare(config: Config) -> PreparedData:
    """Reads the splits, learns the vocabulary from the train split alone, and encodes them all."""
    dataset = load_dataset(config.data)
    text = config.text
    tokenizer = Tokenizer.train(
        dataset.splits["train"].texts,
        kind=text.tokenizer,
        lowercase=text.lowercase,
        min_freq=text.min_freq,
        max_vocab_size=text.max_vocab_size,
    )
    if len(tokenizer) <= 2:
        raise DataError(
            f"no token of the train split occurs {text.min_freq} times, so there is no vocabulary; "
            f"lower text.min_freq or give more texts"
        )
    corpora = {name: encode_split(split, tokenizer, config) for name, split in dataset.splits.items()}
    return PreparedData(dataset, tokenizer, corpora)


def encode_split(split: Split, tokenizer: Tokenizer, config: Config) -> Corpus:
    """Encodes one split as the config says, and logs what was cut, empty or unknown."""
    text = config.text
    corpus = encode(
        split.texts, tokenizer, max_length=text.max_length, truncate=text.truncate, label_ids=split.label_ids
    )
    counts = statistics(corpus)
    logger.info(
        f"{split.name}: {counts['texts']:,} texts, {counts['tokens']:,} tokens, {counts['truncated']:,} texts cut to "
        f"{text.max_length} tokens, {counts['empty']:,} empty, {counts['unknown']:,} unknown tokens"
    )
    return corpus


def initialize_embedding(model: BiLSTMClassifier, config: Config, data: PreparedData) -> dict[str, Any]:
    """Puts the first word vectors into the model and returns what is to be said of them."""
    init, dim = config.embedding.init, config.embedding.dim
    if init == "random":
        return {}
    if init == "corpus":
        logger.info("making word vectors from the train split")
        matrix = corpus_vectors(data.corpora["train"], len(data.tokenizer), dim=dim, seed=config.seed)
        model.set_embedding(torch.from_numpy(matrix))
        return {}
    vectors = load_vectors(init, data.tokenizer.tokens, dim=dim, seed=config.seed)
    model.set_embedding(torch.from_numpy(vectors.matrix))
    logger.info(f"word vectors {init}: {vectors.coverage:.1%} of the vocabulary found")
    return {"embedding/coverage": vectors.coverage}


def class_weights(setting: Any, label_ids: np.ndarray[Any, np.dtype[np.int64]], labels: list[str]) -> list[float] | None:
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
