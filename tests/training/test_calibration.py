import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bilstm_cls.checkpoint import load_best
from bilstm_cls.classifier import Classifier, softmax
from bilstm_cls.config import Config
from bilstm_cls.errors import CheckpointError
from bilstm_cls.evaluation.evaluate import evaluate
from bilstm_cls.evaluation.explain import explain
from bilstm_cls.ngrams import NgramCounts, NgramModel
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.runtime import Task
from bilstm_cls.training.calibration import fit_scales, out_of_fold
from bilstm_cls.training.run import train
from tests.command_line import run_cli
from tests.conftest import reviews

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
