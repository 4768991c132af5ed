"""The shipped configs: each is valid and says in its head what it is, how to run it and what to expect."""

import re
from pathlib import Path

import pytest

from bilstm_cls.config_file import load_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_says_what_it_is_how_to_run_it_and_what_to_expect(path: Path) -> None:
    assert load_config(path).name == path.stem
    what, how, expected = path.read_text("utf-8").splitlines()[:3]
    assert re.fullmatch(r"# \S.*\.", what)
    assert how.startswith("# Run: ")
    assert f"bilstm-cls train --config configs/{path.name}" in how
    measured = r"# Expect: accuracy 0\.\d+ .*(minute|seconds).*GB\."
    assert re.fullmatch(rf"{measured}|# Expect: not measured .*\.", expected)
