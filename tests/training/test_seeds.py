import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bilstm_cls.classifier import Classifier
from bilstm_cls.config import Config
from bilstm_cls.errors import ConfigError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training import seeds
from bilstm_cls.training.run import train
from bilstm_cls.training.seeds import SeedsResult, train_seeds

pytestmark = pytest.mark.usefixtures("light")

Make = Callable[..., Config]
TEXTS = ["a good film", "a bad film", ""]


@pytest.fixture(scope="module")
def result(tiny_config: Make) -> SeedsResult:
    return train_seeds(tiny_config("name=many", "train.epochs=2", "model.ngrams=nbsvm"), 3, keep_ensemble=True)


def test_runs_differ_in_their_seed_alone_and_one_is_the_run_that_is_trained_alone(
    result: SeedsResult, tiny_config: Make
) -> None:
    configs = [item.run.load_config() for item in result.runs]
    assert [config.seed for config in configs] == [1, 2, 3]
    assert [item.run.path.name for item in result.runs] == ["many-seed1", "many-seed2", "many-seed3"]
    assert len({item.run.read_object("environment.json")["data_digest"] for item in result.runs}) == 1
    alone = train(tiny_config("name=alone", "seed=2", "train.epochs=2", "model.ngrams=nbsvm")).run
    first, second, expected = (
        run.load_model().model.project.weight for run in (result.runs[0].run, result.runs[1].run, alone)
    )
    assert torch.equal(second, expected)
    assert not torch.equal(first, second)


def test_the_ensemble_answers_with_the_mean_of_all_logits(result: SeedsResult) -> None:
    assert result.ensemble is not None

    def odds(path: Path) -> np.ndarray:
        probabilities = np.log(Classifier.load(path).predict_proba(TEXTS))
        return probabilities[:, 1] - probabilities[:, 0]

    ours = odds(result.ensemble.run.path)
    mean = np.mean([odds(item.run.path) for item in result.runs], axis=0)
    assert_allclose(ours / mean, (ours / mean)[0], rtol=1e-4)  # but for the scale of the whole
    assert 0.2 < (ours / mean)[0] < 5


def test_finished_runs_are_taken_as_they_are(result: SeedsResult, tiny_config: Make) -> None:
    assert result.ensemble is not None
    written = [(item.run / "model.safetensors").stat().st_mtime_ns for item in result.runs]
    config = tiny_config("name=many", "train.epochs=2", "model.ngrams=nbsvm")
    with pytest.raises(ConfigError, match="--resume"):
        train_seeds(config, 3)
    again = train_seeds(config, 3, keep_ensemble=True, resume=True)
    assert [(item.run / "model.safetensors").stat().st_mtime_ns for item in again.runs] == written
    assert again.summary() == result.summary()


@pytest.mark.parametrize("place", ["RunDirectory.save_model", "seeds.write_results"])
def test_an_ensemble_that_was_killed_while_it_was_written_is_written_again(
    place: str, result: SeedsResult, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result.ensemble is not None
    config = tiny_config("name=many", "train.epochs=2", "model.ngrams=nbsvm")
    target, before = result.ensemble.run.path, result.summary()
    shutil.rmtree(target)

    def die(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        owner, _, name = place.partition(".")
        patch.setattr({"RunDirectory": RunDirectory, "seeds": seeds}[owner], name, die)
        with pytest.raises(KeyboardInterrupt):
            train_seeds(config, 3, keep_ensemble=True, resume=True)
    assert not (target / "metrics.json").exists()
    assert train_seeds(config, 3, keep_ensemble=True, resume=True).summary() == before
