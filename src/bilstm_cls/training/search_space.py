"""What `tune` searches: for each key of the config a range or a few choices, all checked by the config's schema."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bilstm_cls.config import Config, config_keys
from bilstm_cls.config_file import with_overrides
from bilstm_cls.errors import ConfigError, cut

DEFAULT = "default"
SECTIONS = ("text", "embedding", "model", "train")
FIXED = {
    "train.select_by": "trials are compared by it",
    "train.device": "it decides where a model learns, not what",
    "train.processes": "it decides where a model learns, not what",
    "train.threads": "it decides where a model learns, not what",
    "train.max_minutes": "it depends on the machine",
    "train.checkpoint_seconds": "it changes no score",
    "train.baselines": "it changes no score",
    "train.loggers": "it changes no score",
    "train.calibrate": "it comes after the score that trials are compared by",
    "model.ngrams": "it comes after the score that trials are compared by",
}
"""Keys of those sections that are not searched, and why."""

OF_THE_ENCODER = ("text.min_freq", "text.max_vocab_size", "embedding.dim", "model.hidden_size")
"""Keys that the encoder of `pretrain.enabled` or `model.init_from` decides."""


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included: whole ones where both are, and evenly by ratio with `is_log`."""

    low: float
    high: float
    is_log: bool = False

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether a value of the config is among them."""
        return isinstance(value, int if self.is_whole else float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' if self.is_log else ''}"


@dataclass(frozen=True)
class Choices:
    """Two or more values."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value of the config is among them."""
        return value in self.values

    def __str__(self) -> str:
        return "|".join(map(_as_yaml, self.values))


Space = dict[str, Range | Choices]


def parse_space(searches: Sequence[str], config: Config, *, limits_size: bool = False) -> Space:
    """Reads the words of `--search`; without any, the default space.

    Args:
        searches: `key.path=low..high`, `key.path=low..high:log` or `key.path=a|b|c`, of which the last of a key wins,
            and `default` for the default space.
        config: that the searched values are put into.
        limits_size: whether there is a limit on the model's size.

    Raises:
        ConfigError: with all problems at once.
    """
    space: Space = {}
    problems = []
    for words in searches or [DEFAULT]:
        try:
            if words == DEFAULT:
                space |= default_space(config, limits_size=limits_size)
            else:
                key, found = _parse(words, config)
                space[key] = found
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return space


def default_space(config: Config, *, limits_size: bool) -> Space:
    """Returns what is worth searching around a config: of these keys, those that its other keys leave free."""
    train, model, text = config.train, config.model, config.text
    dim, vocab_size = config.embedding.dim, text.max_vocab_size or 30000
    space: Space = {
        "train.learning_rate": Range(_short(train.learning_rate / 5), _short(train.learning_rate * 5), is_log=True),
        "train.epochs": Range(max(1, train.epochs // 2), 2 * train.epochs),
        "model.hidden_size": Range(max(4, model.hidden_size // 4), 2 * model.hidden_size, is_log=True),
        "embedding.dim": Range(max(4, dim // 4), 2 * dim, is_log=True),
        "model.pooling": Choices(("mean", "max", "attention", "concat")),
        "model.dropout": Range(0.0, 0.7),
        "model.embedding_dropout": Range(0.0, 0.5),
        "model.word_dropout": Range(0.0, 0.2),
        "text.min_freq": Choices((1, 2, 3, 5)),
    }
    if limits_size:
        sizes = sorted({max(300, vocab_size // part) for part in (8, 4, 2, 1)})
        space["text.max_vocab_size"] = Choices(tuple(sizes))
    if config.embedding.init not in ("random", "ppmi"):
        del space["embedding.dim"]  # the vectors have theirs
    if config.pretrain.enabled or config.model.init_from is not None:
        space = {key: found for key, found in space.items() if key not in OF_THE_ENCODER}
    return {key: found for key, found in space.items() if not isinstance(found, Choices) or len(found.values) > 1}


def _parse(words: str, config: Config) -> tuple[str, Range | Choices]:
    key, equals, text = (part.strip() for part in words.partition("="))
    where = f"--search {cut(words)}"
    section = key.partition(".")[0]
    if not equals or not text:
        raise ConfigError(f"{where}: must look like key.path=low..high, key.path=low..high:log or key.path=a|b|c")
    if section in config_keys()[""] and section not in SECTIONS:
        raise ConfigError(f"{where}: is not searched, trials could not be compared; use --set to fix it")
    if key in FIXED:
        raise ConfigError(f"{where}: is not searched, {FIXED[key]}; use --set to fix it")
    interval = re.fullmatch(r"([^|]+?)\.\.([^|]+?)(:log)?", text)
    values = [_parsed(part, key, where, config) for part in (interval.groups()[:2] if interval else text.split("|"))]
    if not interval:
        if len(values) < 2 or any(value in values[:i] for i, value in enumerate(values)):
            raise ConfigError(f"{where}: must name two values or more that differ; use --set to fix one")
        return key, Choices(tuple(values))
    low, high = values
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ConfigError(f"{where}: must have a number at both ends; choices are written a|b|c")
    if low >= high:
        raise ConfigError(f"{where}: must go from a lower number to a higher one")
    if interval[3] and low <= 0:
        raise ConfigError(f"{where}: must start above 0 with :log")
    return key, Range(low, high, is_log=interval[3] is not None)


def _parsed(text: str, key: str, where: str, config: Config) -> Any:
    """Returns a value as the schema takes it in the place of a key."""
    try:
        checked = with_overrides(config, [f"{key}={text.strip()}"])
    except ConfigError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{where}: {re.sub(r'^--set [^:]*: ', f'{text.strip()}: ', reason)}") from None
    return value_at(checked, key)


def value_at(config: Config, key: str) -> Any:
    """Returns the value of a key such as `train.epochs`."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _short(number: float) -> float:
    """Returns a number of three digits, which is all that a reader can use."""
    return float(f"{number:.3g}")
