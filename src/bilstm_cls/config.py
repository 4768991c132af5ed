"""The config: one strict YAML file, defaults below it and overrides above it, checked as a whole."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo
from pydantic import field_validator as check
from pydantic_core import InitErrorDetails

from bilstm_cls.config_input import Given
from bilstm_cls.config_sections import (
    METRICS,
    DataConfig,
    EmbeddingConfig,
    ModelConfig,
    PretrainConfig,
    Section,
    TextConfig,
    TrainConfig,
)
from bilstm_cls.config_words import cut
from bilstm_cls.strict_yaml import dump_yaml

__all__ = [
    "METRICS",
    "Config",
    "DataConfig",
    "EmbeddingConfig",
    "ModelConfig",
    "PretrainConfig",
    "TextConfig",
    "TrainConfig",
    "changed",
    "changed_keys",
    "config_keys",
    "config_schema",
    "dump_config",
    "load_config",
]


class Config(Section):
    """Everything that decides a run."""

    name: str = Field("run", max_length=80, description="Name of the run directory; left out, the config file's name.")
    seed: int = Field(1, ge=0, lt=2**63, description="Seed of weights, batches and dropout.")
    output_dir: str = Field("runs", description="Folder in which run directories are made.")
    # Unchecked, so that there are defaults without data; a file always has the section checked.
    data: DataConfig = Field(default_factory=DataConfig.model_construct, description="The texts and labels.")
    text: TextConfig = Field(default_factory=TextConfig, description="Tokens and vocabulary.")
    embedding: EmbeddingConfig = Field(default_factory=EmbeddingConfig, description="Word vectors.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="Training.")
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig, description="Language models, before training.")

    @property
    def reads_unlabelled(self) -> bool:
        """Whether texts without a label are of use: for word vectors, or to the objective."""
        return self.embedding.init == "ppmi" or self.train.reads_unlabelled

    @check("name")
    @classmethod
    def _name_is_a_plain_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise ValueError(
                "must be a plain folder name; it may hold letters, digits, '.', '_' and '-', and not start with '.'"
            )
        return name

    @check("pretrain")
    @classmethod
    def _one_encoder_to_start_from(cls, pretrain: PretrainConfig, info: ValidationInfo) -> PretrainConfig:
        folder = getattr(info.data.get("model"), "init_from", None)
        if pretrain.enabled and folder is not None:
            why = f"must be false with model.init_from {cut(repr(folder))}; a run starts from one encoder"
            problem = InitErrorDetails(type="value_error", loc=("enabled",), input=True, ctx={"error": ValueError(why)})
            raise ValidationError.from_exception_data("pretrain", [problem])  # which names the key, not its section
        return pretrain


def load_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, str] | None = None,
    defaults_name: str | None = None,
) -> Config:
    """Reads a config: defaults, over them the file, over it `key.path=value` overrides, of which the last wins.

    Args:
        path: a YAML file; None for the defaults alone, which name no data.
        overrides: values are YAML, as in the file.
        options: more overrides, which win over those, by what the user wrote for each, such as `--seed 7`.
        defaults_name: the run's name where nothing gives one; by default the file's name without its suffix.

    Raises:
        ConfigError: with all problems at once, each with its place.
    """
    given = Given(config_keys())
    if path is not None:
        given.add_file(Path(path))
        given.values.setdefault("data", {})
    for position, override in enumerate(overrides):
        given.add_override(override, position)
    for position, (written, override) in enumerate((options or {}).items(), len(overrides)):
        given.add_override(override, position, written=written)
    given.values.setdefault("name", defaults_name or _plain_name("run" if path is None else Path(path).stem))
    return _validated(given)


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a config with `key.path=value` overrides put into it, checked as a whole.

    Raises:
        ConfigError: with all problems at once.
    """
    given = Given(config_keys())
    given.values = config.model_dump()
    for position, override in enumerate(overrides):
        given.add_override(override, position)
    return _validated(given)


def _validated(given: Given) -> Config:
    try:
        config = Config.model_validate(given.values)
    except ValidationError as error:
        given.add_validation(error)
    given.raise_problems()
    return config


def dump_config(config: Config) -> str:
    """Returns the resolved config as YAML that `load_config` reads back to an equal one."""
    return dump_yaml(config.model_dump())


def config_schema() -> dict[str, Any]:
    """Returns the JSON schema of the config file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def config_keys() -> dict[str, list[str]]:
    """Returns the names of all keys by section in their order, those of the top level under the empty name."""
    sections = {n: f.annotation for n, f in Config.model_fields.items() if isinstance(f.annotation, type)}
    keys = {n: list(kind.model_fields) for n, kind in sections.items() if issubclass(kind, Section)}
    return {"": list(Config.model_fields), **keys}


def changed_keys(a: Config, b: Config) -> list[str]:
    """Returns what differs from `a` to `b`, such as `train.epochs: 5 -> 6`."""
    before, after = _flat(a), _flat(b)
    return [
        f"{key}: {json.dumps(before[key], ensure_ascii=False)} -> {json.dumps(after[key], ensure_ascii=False)}"
        for key in before
        if before[key] != after[key]
    ]


def _flat(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config:
        flat |= {f"{name}.{key}": v for key, v in value} if isinstance(value, Section) else {name: value}
    return flat


def _plain_name(stem: str) -> str:
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-")[:80] or "run"
