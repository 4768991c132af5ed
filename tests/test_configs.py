"""The shipped configs: each is sound and says in its head what it is, how to run it and what to expect."""

import re
from pathlib import Path

import pytest

from bilstm_cls.config import load_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"imdb", "imdb-quick", "rotten-tomatoes", "bbc-news", "csv-example"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_sound_and_named_after_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_it_is_how_to_run_it_and_what_to_expect(path: Path) -> None:
    what, how, expected = path.read_text("utf-8").splitlines()[:3]
    assert re.fullmatch(r"# \S.*\.", what)
    assert how.startswith("# Run: ")
    assert f"bilstm-cls train --config configs/{path.name}" in how
    assert re.fullmatch(r"# Expect: accuracy 0\.\d+ .*minute.*GB\.|# Expect: accuracy 0\.\d+ .*seconds.*GB\.", expected)
