"""Fixtures of the tests that train whole runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bilstm_cls.config import Config
from bilstm_cls.training.run import train

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def short_config(tiny_config: Make) -> Make:
    """Returns the config of a run of 2 epochs of 11 steps."""
    return lambda *overrides: tiny_config("train.epochs=2", *overrides)


@pytest.fixture(scope="module")
def whole_run(short_config: Make, light: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that config that nothing happened to."""
    return train(short_config(f"output_dir={tmp_path_factory.mktemp('whole')}")).run.path
