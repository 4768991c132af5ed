"""Fixtures of the tests that train whole runs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bilstm_cls.config import Config
from bilstm_cls.evaluation import plots
from bilstm_cls.training.run import train
from tests.training.runs import PICTURES, draw_nothing

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def light(trained_run: Path) -> Iterator[None]:
    """Lets runs end without drawing pictures or waiting for the disk, which is most of their time.

    The run that all tests share comes before it, whole.
    """

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for name in PICTURES:
            patch.setattr(plots, name, draw_nothing)
        yield


@pytest.fixture(scope="module")
def short_config(tiny_config: Make) -> Make:
    """Returns the config of a run of 2 epochs of 11 steps."""
    return lambda *overrides: tiny_config("train.epochs=2", *overrides)


@pytest.fixture(scope="module")
def whole_run(short_config: Make, light: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that config that nothing happened to."""
    return train(short_config(f"output_dir={tmp_path_factory.mktemp('whole')}")).run.path
