"""From a config to what training reads: splits, vocabulary and encoded corpora, kept in the cache by their content."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilstm_cls.config import Config, TextConfig
from bilstm_cls.data.corpus import Corpus, encode, encode_to_files, load_corpus, statistics
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.encoder import tokenizer_of_encoder
from bilstm_cls.data.store import cached
from bilstm_cls.data.tokenizer import Tokenizer, splitters
from bilstm_cls.data.types import Dataset
from bilstm_cls.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 3
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


def prepare(config: Config, *, only: Sequence[str] | None = None) -> PreparedData:
    """Reads the splits, learns the vocabulary from the train split alone, and encodes them.

    With `model.init_from` the vocabulary is that of the encoder, and nothing is learned.

    Args:
        config: what to read, and how.
        only: splits to encode, where they are there; by default all that training reads.

    Raises:
        DataError: something cannot be read, or no token is frequent enough.
        ConfigError: `model.init_from` names no encoder, or one that does not fit.
    """
    given = tokenizer_of_encoder(config)
    dataset = load_dataset(config.data)
    names = [name for name in dataset.splits if name != "unlabelled" or config.reads_unlabelled]
    if only is not None:
        names = [name for name in dataset.splits if name in only]
    content = [FORMAT, splitters(config.text.tokenizer), dataset.digest, names, config.text.model_dump()]
    if given is not None:
        content.append(hashlib.sha256(given.to_json().encode()).hexdigest())
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    folder = cached("corpus", key, lambda empty: _build(empty, dataset, names, config.text, given))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    corpora = {name: load_corpus(folder, name, dataset.splits[name].label_ids) for name in names}
    for name, corpus in corpora.items():
        _log(name, corpus, config.text.max_length)
    return PreparedData(dataset, tokenizer, corpora)


def prepare_in_memory(dataset: Dataset, config: Config) -> PreparedData:
    """Does the same for splits that are in memory, and leaves nothing in the cache.

    Raises:
        DataError: no token is frequent enough.
        ConfigError: `model.init_from` names no encoder, or one that does not fit.
    """
    text = config.text
    tokenizer = tokenizer_of_encoder(config) or _learn_tokenizer(dataset, text)
    corpora = {
        name: encode(
            split.texts, tokenizer, max_length=text.max_length, truncate=text.truncate, label_ids=split.label_ids
        )
        for name, split in dataset.splits.items()
    }
    return PreparedData(dataset, tokenizer, corpora)


def _build(folder: Path, dataset: Dataset, names: list[str], text: TextConfig, given: Tokenizer | None) -> None:
    logger.info("encoding the texts" if given is not None else "learning the vocabulary and encoding the texts")
    tokenizer = given or _learn_tokenizer(dataset, text)
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
    cut = f"{counts['truncated']:,} texts cut to {max_length} tokens, " if counts["truncated"] else ""
    logger.info(
        f"{name}: {counts['texts']:,} texts, {counts['tokens']:,} tokens, {cut}"
        f"{counts['empty']:,} empty, {counts['unknown']:,} unknown tokens"
    )
