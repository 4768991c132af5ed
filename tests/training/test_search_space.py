import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from bilstm_cls.config import Config
from bilstm_cls.errors import ConfigError
from bilstm_cls.training.search_space import Choices, Range, default_space, parse_space

Make = Callable[..., Config]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("train.learning_rate=1e-4..1e-2:log", Range(1e-4, 1e-2, is_log=True)),
        ("model.dropout = 0..0.5", Range(0.0, 0.5)),
        ("model.hidden_size=32..256", Range(32, 256)),
        ("text.max_vocab_size=1000|null", Choices((1000, None))),
        ("model.pooling=mean|[mean, max]", Choices(("mean", ["mean", "max"]))),
        ("text.lowercase=true|false", Choices((True, False))),
        ("embedding.init=random|../glove.txt", Choices(("random", "../glove.txt"))),
        ("train.ema_decay=0.9|0.99|null", Choices((0.9, 0.99, None))),
    ],
)
def test_a_search_is_a_range_or_choices(words: str, found: Range | Choices, tiny_config: Make) -> None:
    assert list(parse_space([words], tiny_config()).values()) == [found]


@pytest.mark.parametrize(
    ("words", "kind", "is_whole"),
    [
        ("model.hidden_size=1..9", Range, True),
        ("model.dropout=0..0.5", Range, False),
        ("train.epochs=1..3", Range, True),
    ],
)
def test_a_range_is_of_whole_numbers_where_the_schema_says_so(
    words: str, kind: type, is_whole: bool, tiny_config: Make
) -> None:
    (found,) = parse_space([words], tiny_config()).values()
    assert isinstance(found, Range)
    assert found.is_whole is is_whole


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("train.learning_rate", "must look like key.path=low..high"),
        ("train.learning_rate=", "must look like key.path=low..high"),
        ("train.learning_rat=1..2", "did you mean 'learning_rate'"),
        ("learning_rate=1..2", "write train.learning_rate"),
        ("train.learning_rate=0..1", "0: must be greater than 0, not 0"),
        ("model.hidden_size=1.5..9", "must be an integer, not 1.5"),
        ("model.dropout=0.5..0.1", "from a lower number to a higher one"),
        ("model.dropout=0..0.5:log", "must start above 0 with :log"),
        ("model.pooling=mean..max", "must have a number at both ends"),
        ("model.pooling=mean", "two values or more"),
        ("model.pooling=mean|mean", "two values or more that differ"),
        ("model.pooling=mean|maximum", "must be 'mean'"),
        ("data.valid=0.1|0.2", "trials could not be compared"),
        ("seed=1..9", "trials could not be compared"),
        ("train.select_by=valid/accuracy|valid/ece", "trials are compared by it"),
        ("model.ngrams=nbsvm|null", "comes after the score"),
        ("model=1..2", "must look|must be a section"),
    ],
)
def test_what_cannot_be_searched_is_said(words: str, complaint: str, tiny_config: Make) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_space([words], tiny_config())
    assert str(caught.value).startswith(f"--search {words}")


def test_all_problems_are_told_at_once(tiny_config: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(["model.dropout=2..3", "text.x=1..2"], tiny_config())
    assert len(str(caught.value).splitlines()) == 2


def test_the_last_search_of_a_key_wins_over_the_default_space_too(tiny_config: Make) -> None:
    space = parse_space(["default", "train.epochs=1..2", "train.epochs=2..3"], tiny_config())
    assert space["train.epochs"] == Range(2, 3)
    assert space.keys() == default_space(tiny_config(), limits_size=False).keys()


@pytest.mark.parametrize("overrides", [[], ["embedding.init=glove-6b-50d", "embedding.dim=50"], ["train.epochs=1"]])
@pytest.mark.parametrize("limits_size", [False, True])
def test_the_default_space_is_one_that_the_schema_takes(
    overrides: list[str], limits_size: bool, tiny_config: Make
) -> None:
    config = tiny_config(*overrides)
    space = default_space(config, limits_size=limits_size)
    assert parse_space([f"{key}={found}" for key, found in space.items()], config).keys() == space.keys()
    assert ("embedding.dim" in space) == (not overrides or "epochs" in overrides[0])
    assert ("text.max_vocab_size" in space) == limits_size


@pytest.mark.parametrize("override", ["model.init_from=encoder", "pretrain.enabled=true"])
def test_sizes_of_an_encoder_are_not_searched(override: str, tiny_config: Make) -> None:
    space = default_space(tiny_config(override), limits_size=True)
    assert not {"model.hidden_size", "embedding.dim", "text.min_freq", "text.max_vocab_size"} & space.keys()
    assert "train.learning_rate" in space


def test_a_range_and_choices_know_what_they_hold() -> None:
    assert [Range(1, 3).holds(value) for value in (0, 1, 3, 2.5, None)] == [False, True, True, False, False]
    assert [Range(0.1, 0.3).holds(value) for value in (0.2, 0.4, None)] == [True, False, False]
    assert [Choices((None, "a")).holds(value) for value in (None, "a", "b")] == [True, True, False]


def test_the_searches_of_the_documentation_are_taken(tiny_config: Make) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tune.md").read_text("utf-8")
    words = [shlex.split(found)[0] for found in re.findall(r'--search ("[^"]+"|[\w.]+=\S+)', page)]
    assert len(words) == 4
    assert len(parse_space(words, tiny_config())) == 4
