import pytest

from bilstm_cls.errors import ConfigError
from bilstm_cls.training.budget import DEFAULT_TRIALS, Budget


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5H", 5400), ("2 d", 172800), ("0.5s", 0.5)]
)
def test_a_duration_has_units(text: str, seconds: float) -> None:
    assert Budget.parse(None, text, None) == Budget(None, seconds, None)


@pytest.mark.parametrize("text", ["20", "m", "20 minutes", "0s", "-5m", "1h 30", "1e3s", ""])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--time"):
        Budget.parse(None, text, None)


@pytest.mark.parametrize(
    ("text", "size"), [("5MB", 5_000_000), ("5 mib", 5 * 2**20), ("500KB", 500_000), ("0.5GB", 5 * 10**8), ("9B", 9)]
)
def test_a_size_has_a_unit(text: str, size: int) -> None:
    assert Budget.parse(3, None, text) == Budget(3, None, size)


@pytest.mark.parametrize("text", ["5", "MB", "0MB", "-1MB", "5TB", "5M", "ib", "5ib"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-size"):
        Budget.parse(None, None, text)


def test_without_time_and_trials_there_is_still_an_end() -> None:
    assert Budget.parse(None, None, None) == Budget(DEFAULT_TRIALS, None, None)
