"""From a config to what training reads: splits, vocabulary and encoded corpora, kept in the cache by their content."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers

from bilstm_cls.config import Config, TextConfig, own_width
from bilstm_cls.config_file import flat_config, load_config
from bilstm_cls.data.corpus import Corpus, encode_whole, load_corpus
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.store import cache_folder, cached
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.types import Dataset, LabelIds, Split, label_counts
from bilstm_cls.data.vectors import ENGLISH, frequent_words, width_of
from bilstm_cls.errors import CheckpointError, ConfigError, DataError

logger = logging.getLogger(__name__)

FORMAT = 6  # part of every key of the cache: raise it when the same texts and config give other ids
SPLITTERS = {"tokenizers": tokenizers.__version__}
"""What splits texts: another version may split otherwise."""

SHARED_KEYS = (
    "text.tokenizer", "text.lowercase", "text.normalize", "text.strip_html", "embedding.dim", "model.cell",
    "model.bidirectional", "model.hidden_size", "model.num_layers",
)  # fmt: skip
"""Keys that must be those that the encoder was made with."""

WEIGHTS, TOKENIZER = "encoder.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class PreparedData:
    """A data set, the tokenizer with its vocabulary, and its encoded splits: `unlabelled` only where it is read."""

    dataset: Dataset
    tokenizer: Tokenizer
    corpora: dict[str, Corpus]

    def facts(self) -> dict[str, Any]:
        """Returns flat counts for `metrics.json`: rows, tokens, truncated and empty texts, unknown tokens."""
        facts = self.dataset.facts() | {"text/vocab_size": len(self.tokenizer)}
        for name, corpus in self.corpora.items():
            facts |= {f"text/{name}/{key}": value for key, value in corpus.statistics.items()}
        return facts


def prepare(config: Config, *, only: Sequence[str] | None = None, in_memory: Dataset | None = None) -> PreparedData:
    """Reads the splits, learns the vocabulary from train alone, and encodes `only` these or all that training reads.

    Every text is encoded once: the files in the cache hold whole texts, for every `text.max_length`. With
    `model.init_from` the vocabulary is that of the encoder, and nothing is learned. Of splits that are given, in
    memory, nothing is left in the cache.

    Raises:
        DataError: something cannot be read, or no token is frequent enough.
        ConfigError: `model.init_from` names no encoder, or one that does not fit.
    """
    encoder = tokenizer_of_encoder(config)
    dataset = in_memory or load_dataset(config.data)
    names = [name for name in dataset.splits if name != "unlabelled" or config.reads_unlabelled]
    if only is not None:
        names = [name for name in dataset.splits if name in only]
    key = None if in_memory else [FORMAT, SPLITTERS, dataset.digest]
    tokenizer = encoder or _learned(dataset.splits["train"].texts, config, key)
    corpora = {name: _encoded(dataset.splits[name], tokenizer, config.text, key) for name in names}
    return PreparedData(dataset, tokenizer, corpora)


def _learned(texts: Sequence[str], config: Config, key: list[Any] | None) -> Tokenizer:
    """Learns the vocabulary, in which frequent words of `en-300` take the room that is left."""
    text = config.text

    def learn() -> Tokenizer:
        options = text.model_dump(exclude={"tokenizer", "max_length", "truncate"})
        tokenizer = Tokenizer.train(texts, kind=text.tokenizer, **options)
        if len(tokenizer) <= 2:
            raise DataError(f"no token of train occurs {text.min_freq} times; lower text.min_freq or give more texts")
        return tokenizer

    def build(folder: Path) -> None:
        logger.info("learning the vocabulary")
        (folder / TOKENIZER).write_text(learn().to_json(), "utf-8")

    if key is None:
        tokenizer = learn()
    else:
        settings = text.model_dump(exclude={"max_length", "truncate"})
        tokenizer = Tokenizer.load(cached("vocabulary", _digest_of([*key, settings]), build) / TOKENIZER)
    is_filled = ENGLISH in config.embedding.sources
    return tokenizer.with_words(frequent_words(), text.max_vocab_size) if is_filled else tokenizer


def _encoded(split: Split, tokenizer: Tokenizer, text: TextConfig, key: list[Any] | None) -> Corpus:
    def build(folder: Path) -> None:
        logger.info(f"encoding the texts of {split.name}")
        encode_whole(split.texts, tokenizer, folder)

    if key is None:
        corpus = encode_whole(split.texts, tokenizer, None)
    else:
        corpus = load_corpus(cached("corpus", _digest_of([*key, split.name, tokenizer.to_json()]), build))
    corpus = replace(corpus, label_ids=split.label_ids, max_length=text.max_length, truncate=text.truncate)
    names = ("texts", "tokens", "truncated", "empty", "unknown")
    logger.info(f"{split.name}: " + ", ".join(f"{corpus.statistics[name]:,} {name}" for name in names))
    return corpus


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def encoder_folder(config: Config, data_digest: str) -> Path:
    """Returns the encoder to start from: `model.init_from`, or with `pretrain.enabled` a folder of the cache."""
    if (start := start_folder(config)) is not None:
        return start
    assert config.pretrain.enabled
    text = config.text.model_dump(exclude={"max_length", "truncate"})
    sizes = config.model.model_dump(include={"cell", "bidirectional", "hidden_size", "num_layers", "recurrent_dropout"})
    content = [
        config.seed, data_digest, text, SPLITTERS, config.embedding.model_dump(), sizes, config.pretrain.model_dump()
    ]  # fmt: skip
    return cache_folder() / "encoders" / _digest_of(content)


def start_folder(config: Config) -> Path | None:
    """Returns the folder that `model.init_from` names, or that of the run of the config that it names."""
    name = config.model.init_from
    if name is not None and name.endswith((".yaml", ".yml")):
        return Path(config.output_dir) / load_config(Path(name)).name
    return None if name is None else Path(name)


def untrained_start(config: Config) -> Config | None:
    """Returns the config that `model.init_from` names, which has to fit, where its run is not there yet."""
    start, folder = config.model.init_from or "", start_folder(config)
    if folder is None or folder == Path(start) or weights_of_encoder(folder).is_file():
        return None
    keys = {f"train.{key}": getattr(config.train, key) for key in ("device", "processes", "threads")}
    first = load_config(Path(start)).replace(output_dir=config.output_dir, **keys)
    check_fit(with_dim(first), config)
    return first


def tokenizer_of_encoder(config: Config) -> Tokenizer | None:
    """Returns the tokenizer of the encoder that `model.init_from` names and that must fit, or None without one."""
    if (folder := start_folder(config)) is None:
        return None
    check_fit(_config_of_encoder(folder), config)
    return Tokenizer.load(folder / TOKENIZER)


def check_fit(start: Config, config: Config) -> None:
    """Raises a ConfigError where a config asks for other sizes or vectors than that of the encoder to start from."""
    there, here = flat_config(start), flat_config(config)
    keys = [key for key in SHARED_KEYS if key != "embedding.dim" or here[key] != "null"]
    if config.embedding.init != "random":  # the encoder brings its vectors, so that nothing has to be said of them
        keys.append("embedding.init")
    wrong = [f"{key} is {there[key]} there and {here[key]} here" for key in keys if there[key] != here[key]]
    if wrong:
        raise ConfigError(f"model.init_from: the encoder does not fit: {', '.join(wrong)}; make them agree")


def with_dim(config: Config) -> Config:
    """Returns the config with the width of its encoder's vectors, or its own, where `embedding.dim` is null."""
    embedding, encoder = config.embedding, start_folder(config)
    if embedding.dim is not None or (encoder is None and all(map(own_width, embedding.sources))):
        return config
    if encoder is not None:
        dim = _config_of_encoder(encoder).embedding.width
    else:
        dim = sum(own_width(name) or width_of(name) for name in embedding.sources)
    return config.replace(**{"embedding.dim": dim})


def weights_of_encoder(folder: Path) -> Path:
    """Returns the file of weights in a folder of an encoder, or of a run, whose encoder is as good a start."""
    return folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / "model.safetensors"


def _config_of_encoder(folder: Path) -> Config:
    if not weights_of_encoder(folder).is_file():
        raise ConfigError(f"model.init_from: {folder} holds no encoder; make it with bilstm-cls pretrain, or train it")
    try:
        config = load_config(folder / "config.yaml")
        return config.replace(**{"embedding.dim": config.embedding.width})
    except ConfigError as error:
        raise CheckpointError(f"{folder} is not an encoder that can be read:\n{error}") from error


def class_weights(setting: Any, label_ids: LabelIds, labels: list[str]) -> list[float] | None:
    """Returns one weight per label from `train.class_weights`: null, `balanced`, or a map from label to weight.

    `balanced` gives `N / (C * count)`, so that every label has the same weight in sum; where a text may have several,
    `(N - count) / count`. `DataError` where the map names a label that is not there, or lacks one.
    """
    if setting is None:
        return None
    if setting == "balanced":
        counts = label_counts(label_ids, len(labels))  # [C]
        against = (len(label_ids) - counts).clip(1) if label_ids.ndim == 2 else len(label_ids) / len(labels)
        return list(map(float, against / counts.clip(1)))
    for wrong in sorted(set(setting) ^ set(labels)):
        raise DataError(f"train.class_weights: {wrong!r} is not in both the map and the labels {labels}")
    return [float(setting[label]) for label in labels]
