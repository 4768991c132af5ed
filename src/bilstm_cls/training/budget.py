"""What a study may spend: time, trials, and the bytes of the model that it looks for."""

import re
from dataclasses import dataclass

from bilstm_cls.errors import ConfigError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
DEFAULT_TRIALS = 20
_NUMBER = r"\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Budget:
    """The limits of a study, over all its calls together.

    Attributes:
        trials: that are trained, finished or not; None where time alone is the limit.
        seconds: of training; None for no limit.
        max_bytes: of weights, tokenizer and labels; None for no limit.
    """

    trials: int | None = DEFAULT_TRIALS
    seconds: float | None = None
    max_bytes: int | None = None

    @classmethod
    def parse(cls, trials: int | None, duration: str | None, max_size: str | None) -> "Budget":
        """Reads what `--trials`, `--time` and `--max-size` say. Without the first two there are `DEFAULT_TRIALS`.

        Raises:
            ConfigError: a duration or size cannot be read.
        """
        if trials is None and duration is None:
            trials = DEFAULT_TRIALS
        return cls(
            trials,
            None if duration is None else parse_duration(duration),
            None if max_size is None else parse_size(max_size),
        )


def parse_duration(text: str) -> float:
    """Returns the seconds of a duration such as `90s`, `20m` or `1h30m`.

    Raises:
        ConfigError: it is none, or nothing.
    """
    words = text.lower().replace(" ", "")
    parts = re.findall(rf"({_NUMBER})([smhd])", words)
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if not re.fullmatch(rf"(?:{_NUMBER}[smhd])+", words) or seconds == 0:
        raise ConfigError(f"--time: {text!r} must be a duration with its unit, such as 90s, 20m or 1h30m")
    return seconds


def parse_size(text: str) -> int:
    """Returns the bytes of a size such as `500KB`, `5MB` or `5MiB`.

    Raises:
        ConfigError: it is none, or nothing.
    """
    match = re.fullmatch(rf"({_NUMBER})([kmg]?i?b)", text.lower().replace(" ", ""))
    number_of_bytes = int(float(match[1]) * BYTES[match[2]]) if match and match[2] in BYTES else 0
    if number_of_bytes == 0:
        raise ConfigError(f"--max-size: {text!r} must be a size with its unit, such as 500KB, 5MB or 5MiB")
    return number_of_bytes
