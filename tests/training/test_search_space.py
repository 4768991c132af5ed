from collections.abc import Callable
from typing import Any

import pytest

from bilstm_cls.commands.train import parse_duration, parse_size
from bilstm_cls.config import Config
from bilstm_cls.errors import ConfigError
from bilstm_cls.training.search_space import parse_space

Make = Callable[..., Config]


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (parse_duration, "90s", 90), (parse_duration, "20m", 1200), (parse_duration, "1h30m", 5400),
        (parse_duration, "1.5H", 5400), (parse_size, "5MB", 5_000_000), (parse_size, "5 mib", 5 * 2**20),
        (parse_size, "500KB", 500_000),
    ],
)  # fmt: skip
def test_durations_and_sizes_have_units(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [(parse_duration, "20"), (parse_duration, "20 minutes"), (parse_duration, "-5m"), (parse_size, "MB")],
)
def test_what_cannot_be_read_is_refused(read: Callable[[str], float], text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read(text)


@pytest.mark.parametrize(
    ("words", "values", "is_interval"),
    [
        ("train.learning_rate=1e-4..1e-2:log", (1e-4, 1e-2), True),
        ("model.dropout = 0..0.5", (0.0, 0.5), True),
        ("model.hidden_size=32..256", (32, 256), True),
        ("text.max_vocab_size=1000|null", (1000, None), False),
        ("model.pooling=mean|[mean, max]", ("mean", ["mean", "max"]), False),
        ("text.lowercase=true|false", (True, False), False),
        ("embedding.init=random|../glove.txt", ("random", "../glove.txt"), False),
    ],
)
def test_a_search_is_an_interval_or_choices(
    words: str, values: tuple[Any, ...], is_interval: bool, tiny_config: Make
) -> None:
    (found,) = parse_space([words], tiny_config()).values()
    assert found.values == values
    assert [type(value) for value in found.values] == [type(value) for value in values]  # whole numbers stay whole
    assert found.is_interval is is_interval


@pytest.mark.parametrize(
    "words",
    [
        "train.learning_rate", "train.learning_rate=", "train.learning_rat=1..2", "learning_rate=1..2",
        "train.learning_rate=0..1", "model.hidden_size=1.5..9", "model.dropout=0.5..0.1", "model.dropout=0..0.5:log",
        "model.pooling=mean..max", "model.pooling=mean", "model.pooling=mean|mean", "model.pooling=mean|maximum",
        "data.valid=0.1|0.2", "seed=1..9", "train.select_by=valid/accuracy|valid/ece", "model.ngrams=nbsvm|null",
        "model=1..2",
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(words: str, tiny_config: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space([words], tiny_config())
    assert str(caught.value).startswith(f"--search {words}")


def test_all_problems_are_reported_at_once(tiny_config: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(["model.dropout=2..3", "text.x=1..2"], tiny_config())
    assert len(str(caught.value).splitlines()) == 2


def test_the_last_search_of_a_key_wins_over_the_default_space_too(tiny_config: Make) -> None:
    space = parse_space(["default", "train.epochs=1..2", "train.epochs=2..3"], tiny_config())
    assert space["train.epochs"].values == (2, 3)
    assert space.keys() == parse_space([], tiny_config()).keys()


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        ([], set()),
        (["embedding.init=glove-6b-50d", "embedding.dim=50"], {"embedding.dim"}),
        (
            ["model.init_from=encoder"],
            {"model.hidden_size", "embedding.dim", "text.min_freq", "text.max_vocab_size"},
        ),
    ],
)
def test_the_default_space_leaves_out_what_other_keys_decide(
    overrides: list[str], left_out: set[str], tiny_config: Make
) -> None:
    everything = parse_space([], tiny_config(), limits_size=True)
    assert "text.max_vocab_size" in everything
    assert everything.keys() - parse_space([], tiny_config(*overrides), limits_size=True).keys() == left_out
    assert "text.max_vocab_size" not in parse_space([], tiny_config())
