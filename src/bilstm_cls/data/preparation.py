"""From a config to what training reads: splits, vocabulary and encoded corpora, kept in the cache by their content."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilstm_cls.config import Config, TextConfig
from bilstm_cls.data.corpus import Corpus, encode, encode_to_files, load_corpus, statistics
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.example import Dataset
from bilstm_cls.data.texts import cached
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key of the cache: raise it when the same texts and config give other ids."""


@dataclass(frozen=True)
class PreparedData:
    """A data set with everything that training makes of its texts.

    Attributes:
        dataset: splits, labels and counts.
        tokenizer: with the vocabulary of the train split.
        corpora: by split; `unlabelled` only where it is read.
    """

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
    """Reads the splits, learns the vocabulary from the train split alone, and encodes them all.

    Raises:
        DataError: something cannot be read, or no token is frequent enough.
    """
    dataset = load_dataset(config.data)
    names = [name for name in dataset.splits if name != "unlabelled" or config.embedding.init == "corpus"]
    content = [FORMAT, dataset.digest, names, config.text.model_dump()]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    folder = cached("corpus", key, lambda empty: _build(empty, dataset, names, config.text))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    corpora = {name: load_corpus(folder, name, dataset.splits[name].label_ids) for name in names}
    for name, corpus in corpora.items():
        _log(name, corpus, config.text.max_length)
    return PreparedData(dataset, tokenizer, corpora)


def prepare_in_memory(dataset: Dataset, config: Config) -> PreparedData:
    """Does the same for splits that are in memory, and leaves nothing in the cache.

    Raises:
        DataError: no token is frequent enough.
    """
    text = config.text
    tokenizer = _learn_tokenizer(dataset, text)
    corpora = {
        name: encode(
            split.texts, tokenizer, max_length=text.max_length, truncate=text.truncate, label_ids=split.label_ids
        )
        for name, split in dataset.splits.items()
    }
    return PreparedData(dataset, tokenizer, corpora)


def _build(folder: Path, dataset: Dataset, names: list[str], text: TextConfig) -> None:
    logger.info("learning the vocabulary and encoding the texts")
    tokenizer = _learn_tokenizer(dataset, text)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    for name in names:
        texts = dataset.splits[name].texts
        encode_to_files(folder, name, texts, tokenizer, max_length=text.max_length, truncate=text.truncate)


def _learn_tokenizer(dataset: Dataset, text: TextConfig) -> Tokenizer:
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
    return tokenizer


def _log(name: str, corpus: Corpus, max_length: int) -> None:
    counts = statistics(corpus)
    logger.info(
        f"{name}: {counts['texts']:,} texts, {counts['tokens']:,} tokens, {counts['truncated']:,} texts cut to "
        f"{max_length} tokens, {counts['empty']:,} empty, {counts['unknown']:,} unknown tokens"
    )
