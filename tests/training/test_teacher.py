"""A teacher: what it knows reaches the network, the same bits whenever the run was cut short."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bilstm_cls.checkpoint import load_tensors, save_tensors
from bilstm_cls.config import Config
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.files import sha256_of
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.calibration import ANSWERS
from bilstm_cls.training.run import train
from tests.conftest import reviews
from tests.training.runs import StoppedHereError, result, stop_at

Make = Callable[..., Config]
ROWS = reviews(60, seed=9)

pytestmark = pytest.mark.usefixtures("light")


@pytest.fixture(scope="module")
def taught(short_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Returns the config of a run of 2 epochs of 11 steps with unlabelled texts that a teacher labels."""
    path = tmp_path_factory.mktemp("unlabelled") / "more.txt"
    path.write_text("".join(f"{text}\n" for text, _ in ROWS), "utf-8")
    given = (f"data.unlabelled={path}", "train.unlabelled_batch_size=8", "train.checkpoint_seconds=0")
    return lambda *overrides: short_config("train.teacher=auto", *given, *overrides)


@pytest.fixture(scope="module")
def whole(taught: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(taught(f"output_dir={tmp_path_factory.mktemp('whole')}")).run.path


def answers(run: Path) -> npt.NDArray[np.float32]:
    return load_tensors(run / ANSWERS)[0]["probabilities"].numpy()


def everything(run: Path) -> dict[str, Any]:
    return result(run) | {"answers": sha256_of(run / ANSWERS)}


def test_a_teacher_answers_every_text_in_its_place_and_is_learned_from(
    whole: Path, tmp_path: Path, taught: Make
) -> None:
    given = answers(whole)
    assert (given.argmax(1) == [label == "pos" for _, label in ROWS]).mean() > 0.9
    assert np.allclose(given.sum(1), 1)
    metrics = RunDirectory(whole).read_object("metrics.json")
    assert metrics["teacher/valid/accuracy"] > 0.8
    untaught = train(taught(f"output_dir={tmp_path}", "train.teacher=null")).run
    assert metrics["test/log_loss"] < untaught.read_object("metrics.json")["test/log_loss"]


@pytest.mark.parametrize("steps", [[1], [7, 15, 22], [20, 1, 14]], ids=str)
def test_a_taught_run_that_was_cut_short_goes_on_to_the_same_bits(
    taught: Make, whole: Path, tmp_path: Path, steps: list[int]
) -> None:
    """The first stop is in the teacher's own training, which has as many steps."""
    for step in steps:
        with pytest.raises(StoppedHereError):
            train(taught(f"output_dir={tmp_path}"), resume=True, on_report=stop_at(step))
    train(taught(f"output_dir={tmp_path}"), resume=True)
    assert everything(tmp_path / "tiny") == everything(whole)


@pytest.fixture
def stopped(taught: Make, tmp_path: Path) -> RunDirectory:
    """A run whose network has learned for some steps from its teacher."""
    steps = []

    def stop(report: Any) -> None:
        steps.append(report)
        if len(steps) == 30:
            raise StoppedHereError

    with pytest.raises(StoppedHereError):
        train(taught(f"output_dir={tmp_path}"), on_report=stop)
    return RunDirectory(tmp_path / "tiny")


def test_answers_that_are_damaged_or_others_are_noticed(taught: Make, stopped: RunDirectory) -> None:
    config = taught(f"output_dir={stopped.path.parent}")
    path = stopped / ANSWERS
    tensors, metadata = load_tensors(path)
    del metadata["sha256"]
    save_tensors(path, {"probabilities": tensors["probabilities"].flip(1)}, metadata)
    with pytest.raises(DataError, match="teacher differs"):
        train(config, resume=True)
    save_tensors(path, tensors, metadata | {"data_digest": "another"})
    with pytest.raises(DataError, match=path.name):
        train(config, resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=path.name):
        train(config, resume=True)


def test_without_unlabelled_texts_a_teacher_is_left_out_unless_it_is_named(
    short_config: Make, whole_run: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    run = train(short_config(f"output_dir={tmp_path}", "train.teacher=auto")).run
    assert result(run.path) == result(whole_run)
    assert sum("train.teacher" in record.message for record in log.records) == 1
    with pytest.raises(ConfigError, match=r"train\.teacher: .*data\.unlabelled"):
        train(short_config(f"output_dir={tmp_path}", "name=named", "train.teacher=[ngrams]"))


def test_a_finished_run_teaches_what_it_answers(taught: Make, whole: Path, tmp_path: Path, trained_run: Path) -> None:
    run = train(taught(f"output_dir={tmp_path}", f"train.teacher={trained_run}", "train.calibrate=false")).run
    from bilstm_cls.classifier import Classifier

    expected = Classifier.load(trained_run).predict_proba([text for text, _ in ROWS])
    found = answers(run.path)
    odds = [np.log(rows[:, 1] / rows[:, 0]) for rows in (found, expected)]
    assert np.corrcoef(odds)[0, 1] > 0.9999  # up to the factor that is fitted on valid
