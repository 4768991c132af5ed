"""What `tune` searches, and what it may spend: each searched value is checked by the config's schema."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bilstm_cls.config import Config, config_keys
from bilstm_cls.config_file import with_overrides
from bilstm_cls.errors import ConfigError, cut

if TYPE_CHECKING:
    import optuna

DEFAULT_TRIALS = 20
SECTIONS = ("text", "embedding", "model", "train")
NOT_SEARCHED = (
    "train.select_by", "train.device", "train.processes", "train.threads", "train.max_minutes",
    "train.checkpoint_seconds", "train.baselines", "train.loggers", "train.calibrate", "model.ngrams",
)  # fmt: skip
"""Keys of these sections that change no score that trials are compared by, or the comparison itself."""
OF_THE_ENCODER = ("text.min_freq", "text.max_vocab_size", "embedding.dim", "model.hidden_size")
"""Keys that the encoder of `pretrain.enabled` or `model.init_from` decides."""


@dataclass(frozen=True)
class Budget:
    """The limits of a study, over all its calls together: trained trials, seconds, and bytes of a model."""

    trials: int | None = None
    seconds: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class Values:
    """What a key is searched over: `words` as they are written, and the choices, or both ends of an interval."""

    words: str
    values: tuple[Any, ...]
    is_interval: bool = False

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if not self.is_interval:
            return CategoricalDistribution([json.dumps(value) for value in self.values])
        low, high = self.values
        kind = IntDistribution if isinstance(low, int) else FloatDistribution
        return kind(low, high, log=self.words.endswith(":log"))

    def value(self, parameter: Any) -> Any:
        """Returns what Optuna proposes as the config has it: choices are kept as text, and numbers get four digits."""
        if not self.is_interval:
            return json.loads(parameter)
        low, high = self.values
        return parameter if isinstance(parameter, int) else min(max(float(f"{parameter:.4g}"), low), high)

    def parameter(self, value: Any) -> Any:
        """Returns a value as Optuna keeps it, or None where it is outside."""
        if self.is_interval:
            is_inside = isinstance(value, type(self.values[0])) and self.values[0] <= value <= self.values[1]
            return value if is_inside else None
        return json.dumps(value) if value in self.values else None


Space = dict[str, Values]


def parse_space(searches: Sequence[str], config: Config, *, limits_size: bool = False) -> Space:
    """Reads the words of `--search`, of which the last of a key wins; without any, or by `default`, the default space.

    Raises:
        ConfigError: with all problems at once.
    """
    defaults = default_space(config, limits_size=limits_size)
    space: Space = {}
    problems = []
    for words in [w for given in searches or ["default"] for w in (defaults if given == "default" else [given])]:
        key, _, text = (part.strip() for part in words.partition("="))
        try:
            space[key] = _parse(key, text, config)
        except ConfigError as error:
            problems.append(f"--search {cut(words)}: {error}".partition("\n")[0])
    if problems:
        raise ConfigError("\n".join(problems))
    return space


def default_space(config: Config, *, limits_size: bool) -> list[str]:
    """Returns, as words of `--search`, what is worth searching around a config and free to choose there."""
    train, hidden_size, dim = config.train, config.model.hidden_size, config.embedding.width
    sizes = sorted({max(300, (config.text.max_vocab_size or 30000) // part) for part in (8, 4, 2, 1)})
    space = {
        "train.learning_rate": f"{train.learning_rate / 5:.3g}..{train.learning_rate * 5:.3g}:log",
        "train.epochs": f"{max(1, train.epochs // 2)}..{2 * train.epochs}",
        "model.hidden_size": f"{max(4, hidden_size // 4)}..{2 * hidden_size}:log",
        "embedding.dim": f"{max(4, dim // 4)}..{2 * dim}:log",
        "model.pooling": "mean|max|attention|concat",
        "model.dropout": "0..0.7",
        "model.embedding_dropout": "0..0.5",
        "model.word_dropout": "0..0.2",
        "text.min_freq": "1|2|3|5",
        "text.max_vocab_size": "|".join(map(str, sizes)),
    }
    left_out = set() if limits_size and len(sizes) > 1 else {"text.max_vocab_size"}
    if config.embedding.init not in ("random", "ppmi"):
        left_out.add("embedding.dim")  # the vectors have theirs
    if config.pretrain.enabled or config.model.init_from is not None:
        left_out.update(OF_THE_ENCODER)
    return [f"{key}={words}" for key, words in space.items() if key not in left_out]


def _parse(key: str, text: str, config: Config) -> Values:
    section = key.partition(".")[0]
    if key in NOT_SEARCHED or (section in config_keys()[""] and section not in SECTIONS):
        raise ConfigError("is not searched, trials would not compare by it; use --set to fix it")
    interval = re.fullmatch(r"([^|]+?)\.\.([^|]+?)(:log)?", text)
    parts = interval.groups()[:2] if interval else text.split("|")
    values = tuple(value_at(with_overrides(config, [f"{key}={part.strip()}"]), key) for part in parts)
    if interval:
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not is_number or values[0] >= values[1] or (interval[3] and values[0] <= 0):
            raise ConfigError("must go from a lower number to a higher one, and start above 0 with :log")
    elif len(values) < 2 or any(value in values[:i] for i, value in enumerate(values)):
        raise ConfigError("must look like KEY.PATH=LOW..HIGH or KEY.PATH=A|B; use --set to fix one value")
    return Values(text, values, is_interval=interval is not None)


def value_at(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
