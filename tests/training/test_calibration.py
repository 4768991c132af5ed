"""How certain a run is, what an n-gram model adds, and what a teacher knows: the same bits however it was cut short."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bilstm_cls.checkpoint import load_best, load_tensors, save_tensors
from bilstm_cls.classifier import Classifier, softmax
from bilstm_cls.config import Config
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.evaluation.evaluate import evaluate
from bilstm_cls.evaluation.explain import explain
from bilstm_cls.files import sha256_of
from bilstm_cls.ngrams import NgramCounts, NgramModel
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.runtime import Task
from bilstm_cls.training.calibration import ANSWERS, fit_scales, out_of_fold
from bilstm_cls.training.run import train
from tests.command_line import run_cli
from tests.conftest import reviews
from tests.training.runs import StoppedHereError, result, stop_at

pytestmark = pytest.mark.usefixtures("light")

Make = Callable[..., Config]


def draw(logits: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels drawn from the probabilities that the logits stand for."""
    random = np.random.default_rng(seed)
    return (random.random((len(logits), 1)) > softmax(logits).cumsum(1)).sum(1)


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 4.0])
def test_the_factor_undoes_what_logits_were_multiplied_by(labels: int, overconfidence: float) -> None:
    true = np.random.default_rng(1).normal(0, 2, (20000, labels))
    scale, share = fit_scales(true * overconfidence, draw(true))
    assert scale * overconfidence == pytest.approx(1, abs=0.05)
    assert share == 0


def test_two_models_get_the_factors_that_they_were_joined_with() -> None:
    one, other = np.random.default_rng(2).normal(0, 2, (2, 20000, 3))
    scale, share = fit_scales(one, draw(0.7 * one + 0.4 * other), other)
    assert_allclose([scale, share], [0.7, 0.4], atol=0.03)


def test_a_few_texts_that_are_all_right_do_not_pull_to_certainty() -> None:
    scale, _ = fit_scales(np.array([[1.0, -1.0]] * 3), np.zeros(3, dtype=np.int64))
    assert 1 < scale < 1.2
    assert np.isfinite(fit_scales(np.array([[1e30, -1e30], [-1e30, 1e30]]), np.array([1, 1]))).all()


def test_logits_out_of_fold_know_nothing_of_their_own_labels() -> None:
    texts = [text for text, _ in reviews(200)]
    ngrams, drawn = NgramCounts.of(texts), np.random.default_rng(0).integers(0, 2, 200)
    assert (NgramModel.train(ngrams, drawn, 2).logits(texts).argmax(1) == drawn).mean() > 0.9
    assert 0.3 < (out_of_fold(ngrams, drawn, 2).argmax(1) == drawn).mean() < 0.7
    true = np.arange(200) % 2
    assert (out_of_fold(ngrams, true, 2).argmax(1) == true).mean() > 0.9


def test_uncertain_answers_are_rejected_so_that_the_others_have_the_wanted_precision() -> None:
    certain = np.array([0.99, 0.95, 0.9, 0.9, 0.8, 0.7])
    probabilities = np.stack([certain, 1 - certain], 1)
    label_ids = np.array([0, 0, 0, 1, 0, 1])  # right, right, right, wrong, right, wrong
    found = [Task().rejecting(probabilities, label_ids, wanted).min_probability for wanted in (1.0, 0.8, 0.75, 0.6)]
    assert found == [0.95, 0.8, 0.8, 0.7]
    assert Task().rejecting(probabilities, 1 - label_ids, 0.9).min_probability == 1.0  # the most certain one is wrong


def test_a_run_answers_null_below_what_it_found_on_valid(tiny_config: Make, reviews_csv: Path, tmp_path: Path) -> None:
    run = train(tiny_config("train.reject=0.9", f"output_dir={tmp_path}")).run
    least = run.read_object("metrics.json")["calibration/min_probability"]
    assert Classifier.load(run.path).task.min_probability == least > 0.5
    answers = run_cli("predict", "--run", run.path, "--input", reviews_csv, "--json").stdout.splitlines()
    rows = [json.loads(line) for line in answers]
    assert {row["label"] is None for row in rows} == {True, False}
    assert all((row["label"] is None) == (row["probability"] < least) for row in rows)
    given = ["--min-probability", "0", "--json"]
    assert run_cli("predict", "--run", run.path, "the", *given).json["label"] is not None
    (run / "thresholds.json").write_text('{"min_probability": "high"}')
    with pytest.raises(CheckpointError, match=r"thresholds\.json"):
        Classifier.load(run.path)


@pytest.fixture(scope="module")
def wide_run(tiny_config: Make) -> Path:
    return train(tiny_config("name=ngrams", "model.ngrams=nbsvm")).run.path


def test_the_scale_is_in_the_last_layer_and_in_the_metrics(trained_run: Path) -> None:
    run = RunDirectory(trained_run)
    metrics = run.read_object("metrics.json")
    best = load_best(run.checkpoints, metrics["train/best_step"])
    key = "project.weight"
    before = best.get(f"average.{key}", best[f"model.{key}"])
    after = run.load_model().model.state_dict()[key]
    assert metrics["calibration/scale"] != 1
    assert torch.equal(after, before * metrics["calibration/scale"])
    assert metrics["calibrated/valid/accuracy"] == metrics["valid/accuracy"]
    assert metrics["calibrated/valid/log_loss"] <= metrics["valid/log_loss"] + 0.05  # the prior pulls a little


def test_every_answer_of_a_wide_run_is_of_both_models(wide_run: Path) -> None:
    metrics = json.loads((wide_run / "metrics.json").read_text())
    _, again = evaluate(wide_run, split="test")
    assert again.accuracy == metrics["test/accuracy"]
    assert again.log_loss == pytest.approx(metrics["test/log_loss"], abs=1e-6)
    classifier = Classifier.load(wide_run)
    texts = ["a good film", "a bad film"]
    (alone,) = classifier.predict(texts[:1])
    before = classifier.predict_proba(texts)
    assert classifier.predict(texts)[0].probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    explanation = explain(classifier.loaded, texts[0])
    odds = np.log(before[0, 0] / before[0, 1]) * (1 if explanation.label == classifier.labels[0] else -1)
    assert explanation.logit == pytest.approx(odds, abs=1e-5)
    assert classifier.loaded.ngrams is not None
    network = classifier.loaded.model
    with torch.no_grad():
        network.project.weight.zero_()
        network.project.bias.zero_()
    expected = softmax(classifier.loaded.ngrams.logits(texts))
    assert_allclose(classifier.predict_proba(texts), expected, atol=1e-6)
    assert np.abs(before - expected).max() > 1e-4


UNLABELLED = reviews(60, seed=9)


@pytest.fixture(scope="module")
def taught(short_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Returns the config of a run of 2 epochs of 11 steps with unlabelled texts that a teacher labels."""
    path = tmp_path_factory.mktemp("unlabelled") / "more.txt"
    path.write_text("".join(f"{text}\n" for text, _ in UNLABELLED), "utf-8")
    given = (f"data.unlabelled={path}", "train.unlabelled_batch_size=8", "train.checkpoint_seconds=0")
    return lambda *overrides: short_config("train.teacher=auto", *given, *overrides)


@pytest.fixture(scope="module")
def whole(taught: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(taught(f"output_dir={tmp_path_factory.mktemp('whole')}")).run.path


def answers(run: Path) -> np.ndarray:
    return load_tensors(run / ANSWERS)[0]["probabilities"].numpy()


def everything(run: Path) -> dict[str, Any]:
    return result(run) | {"answers": sha256_of(run / ANSWERS)}


def test_a_teacher_answers_every_text_in_its_place_and_is_learned_from(
    whole: Path, tmp_path: Path, taught: Make
) -> None:
    given = answers(whole)
    assert (given.argmax(1) == [label == "pos" for _, label in UNLABELLED]).mean() > 0.9
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
    expected = Classifier.load(trained_run).predict_proba([text for text, _ in UNLABELLED])
    found = answers(run.path)
    odds = [np.log(rows[:, 1] / rows[:, 0]) for rows in (found, expected)]
    assert np.corrcoef(odds)[0, 1] > 0.9999  # up to the factor that is fitted on valid
