"""What a config takes over from an encoder's folder before any weight: the tokenizer, and sizes that have to agree."""

import hashlib
import json
from pathlib import Path

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.store import cache_folder
from bilstm_cls.data.tokenizer import Tokenizer, splitters
from bilstm_cls.errors import CheckpointError, ConfigError

SHARED_KEYS = (
    "text.tokenizer", "text.lowercase", "embedding.dim", "model.cell", "model.bidirectional", "model.hidden_size",
    "model.num_layers",
)  # fmt: skip
"""Keys that must be those that the encoder was made with."""

WEIGHTS = "encoder.safetensors"


def encoder_folder(config: Config, data_digest: str) -> Path:
    """Returns the folder of the encoder to start from: `model.init_from`, or with `pretrain.enabled` one in the cache.

    There it goes by all that it hangs on: the seed, the texts, how they are split, its sizes, and how it learns.
    """
    if config.model.init_from is not None:
        return Path(config.model.init_from)
    assert config.pretrain.enabled
    text = config.text.model_dump(exclude={"max_length", "truncate"})
    sizes = config.model.model_dump(include={"cell", "bidirectional", "hidden_size", "num_layers", "recurrent_dropout"})
    splitting = splitters(config.text.tokenizer)  # another version may learn another vocabulary
    content = [
        config.seed,
        data_digest,
        text,
        splitting,
        config.embedding.model_dump(),
        sizes,
        config.pretrain.model_dump(),
    ]
    return cache_folder() / "encoders" / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def tokenizer_of_encoder(config: Config) -> Tokenizer | None:
    """Returns the tokenizer of the encoder that `model.init_from` names, or None where it names none.

    That of an encoder that `train` pretrains itself is learned from the train split, as without an encoder.

    Raises:
        ConfigError: there is no encoder, or the config asks for other sizes or other vectors.
        CheckpointError: a file of it is missing or damaged.
    """
    if config.model.init_from is None:
        return None
    folder = Path(config.model.init_from)
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"model.init_from: {folder} holds no encoder; make it with bilstm-cls pretrain and the same config"
        )
    try:
        made_with = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise CheckpointError(f"{folder} is not an encoder that can be read:\n{error}") from error
    keys = list(SHARED_KEYS)
    if config.embedding.init != "random":  # the encoder brings its vectors, so that nothing has to be said of them
        keys.append("embedding.init")
    wrong = [
        f"{key} is {_value(made_with, key)!r} there and {_value(config, key)!r} here"
        for key in keys
        if _value(made_with, key) != _value(config, key)
    ]
    if wrong:
        raise ConfigError(f"model.init_from: the encoder in {folder} does not fit: {', '.join(wrong)}; make them agree")
    return Tokenizer.load(folder / "tokenizer.json")


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
