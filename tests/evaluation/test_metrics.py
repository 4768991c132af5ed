"""Scores, against scikit-learn and against sums done by hand."""

import json
import math

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls.evaluation.metrics import METRICS, calibration_error, compute_metrics, example_losses
from bilstm_cls.runtime import Task

LABELS = ["neg", "neutral", "pos"]


def predicted(num_examples: int, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Random probabilities, better than chance, with every label present where that is possible."""
    rng = np.random.default_rng(seed)
    label_ids = np.concatenate([np.arange(num_labels), rng.integers(num_labels, size=num_examples)])[:num_examples]
    logits = rng.normal(size=(num_examples, num_labels)) + np.eye(num_labels)[label_ids]
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), label_ids, [f"label {i}" for i in range(num_labels)]


@given(st.builds(predicted, st.integers(1, 60), st.integers(2, 6), st.integers(0, 10_000)))
@settings(deadline=None, max_examples=25)
def test_scores_equal_scikit_learn(case):
    probabilities, label_ids, labels = case
    metrics = compute_metrics(*case)
    answers, ids = probabilities.argmax(axis=1), list(range(len(labels)))
    assert metrics.accuracy == pytest.approx(oracle.accuracy_score(label_ids, answers))
    for average in ("micro", "macro", "weighted"):
        expected = oracle.f1_score(label_ids, answers, average=average)
        assert getattr(metrics, f"{average}_f1") == pytest.approx(expected)
    assert metrics.log_loss == pytest.approx(oracle.log_loss(label_ids, probabilities, labels=ids))
    assert metrics.confusion_matrix == oracle.confusion_matrix(label_ids, answers, labels=ids).tolist()
    if len(label_ids) >= len(labels):  # every label has a text
        scores = probabilities[:, 1] if len(labels) == 2 else probabilities
        assert metrics.auroc == pytest.approx(oracle.roc_auc_score(label_ids, scores, multi_class="ovr"))
    expected = oracle.precision_recall_fscore_support(label_ids, answers, labels=ids, zero_division=0)
    rows = np.array([scores[:6] for scores in metrics.per_class.values()], dtype=np.float64)
    np.testing.assert_allclose(rows[:, :4], np.array(expected).T)
    confused = oracle.confusion_matrix(label_ids, answers, labels=ids) * (1 - np.eye(len(ids)))
    np.testing.assert_array_equal(rows[:, 4:], np.stack([confused.sum(0), confused.sum(1)], axis=1))


def test_many_labels_have_no_matrix():
    num_labels = 300
    label_ids = np.repeat(np.arange(num_labels), 2)
    rng = np.random.default_rng(0)
    probabilities = rng.random((len(label_ids), num_labels))
    probabilities[np.arange(len(label_ids)), label_ids] += rng.integers(2, size=len(label_ids))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    metrics = compute_metrics(probabilities, label_ids, [f"label {i}" for i in range(num_labels)])
    assert metrics.confusion_matrix is None
    assert len(metrics.confusions) == 50
    assert len(json.dumps(metrics.flat("test"))) < 350 * num_labels
    assert metrics.auroc == pytest.approx(0.75, abs=0.03)


def test_the_most_frequent_confusions_come_first():
    probabilities = np.eye(3)[[1, 1, 2, 0, 1, 2]]
    found = compute_metrics(probabilities, np.array([0, 0, 0, 0, 1, 1]), LABELS).confusions
    assert found == [("neg", "neutral", 2), ("neg", "pos", 1), ("neutral", "pos", 1)]


def test_calibration_error_by_hand():
    # One bin holds 0.9 and 0.92 with one right answer (1 - 1.82), another 0.6 with a right one (1 - 0.6).
    error = calibration_error(np.array([0.9, 0.92, 0.6]), np.array([True, False, True]))
    assert error == pytest.approx((0.82 + 0.4) / 3)


def test_certainty_costs_nothing_where_right_and_a_finite_loss_where_wrong():
    metrics = compute_metrics(np.eye(3), np.arange(3), LABELS)
    assert (metrics.accuracy, metrics.macro_f1, metrics.auroc, metrics.log_loss, metrics.ece) == (1, 1, 1, 0, 0)
    assert not np.signbit(example_losses(np.eye(3), np.arange(3))).any()
    wrong = compute_metrics(np.eye(2), np.array([1, 0]), ["neg", "pos"])
    assert wrong.log_loss == pytest.approx(-math.log(np.finfo(np.float64).eps))


def test_a_label_that_does_not_occur_at_all_is_left_out_of_the_macro_mean():
    metrics = compute_metrics(np.array([[0.8, 0.0, 0.2], [0.3, 0.0, 0.7]]), np.array([0, 2]), LABELS)
    assert (metrics.macro_f1, metrics.auroc) == (1, None)


def test_rows_and_objects_carry_every_score_and_survive_json():
    metrics = compute_metrics(*predicted(40, 3, seed=5), majority_label_id=0)
    row, content = metrics.flat("test"), metrics.as_object("test")
    assert {f"test/{name}" for name in METRICS} < set(row)
    assert row["test/per_class/label 1/f1"] == content["per_class"]["label 1"]["f1"] == metrics.per_class["label 1"].f1
    assert list(content) == ["split", "examples", *METRICS, "loss", "confidence_interval", "per_class"]
    for found in (row, content):
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_scores_of_several_labels_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    has_label = (generator.random((60, 4)) < [0.6, 0.3, 0.2, 0.1]).astype(np.uint8)
    probabilities = 0.6 * generator.random((60, 4)) + 0.4 * has_label * generator.random((60, 1))
    predicted = probabilities >= 0.4
    found = compute_metrics(probabilities, has_label, ["a", "b", "c", "d"], task=Task(np.full(4, 0.4)))
    expected = {
        "accuracy": oracle.accuracy_score(has_label, predicted),
        "hamming_loss": oracle.hamming_loss(has_label, predicted),
        "micro_f1": oracle.f1_score(has_label, predicted, average="micro"),
        "macro_f1": oracle.f1_score(has_label, predicted, average="macro"),
        "weighted_f1": oracle.f1_score(has_label, predicted, average="weighted"),
        "samples_f1": oracle.f1_score(has_label, predicted, average="samples", zero_division=1),
        "lrap": oracle.label_ranking_average_precision_score(has_label, probabilities),
        "average_precision": oracle.average_precision_score(has_label, probabilities),
        "auroc": oracle.roc_auc_score(has_label, probabilities),
        "log_loss": np.mean([oracle.log_loss(y, p) for y, p in zip(has_label.T, probabilities.T, strict=True)]),
    }  # fmt: skip
    assert found.scalars("x").keys() - {"x/ece"} == {f"x/{name}" for name in expected}
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)
    missed = [row.false_negatives for row in found.per_class.values()]
    assert missed == ((has_label == 1) & ~predicted).sum(0).tolist()
    per_label = oracle.average_precision_score(has_label, probabilities, average=None)
    assert [row.average_precision for row in found.per_class.values()] == pytest.approx(per_label.tolist())
    json.dumps(found.flat("test"), allow_nan=False)
    # The interval is that of the bootstrap over texts.
    rows = generator.integers(60, size=(2000, 60))
    hits, totals = (has_label & predicted).sum(1)[rows].sum(1), (has_label.sum(1) + predicted.sum(1))[rows].sum(1)
    draws = 2 * hits / totals
    assert found.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.03)


def test_of_few_texts_all_right_and_of_a_label_without_a_text() -> None:
    has_label = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=np.uint8)
    found = compute_metrics(has_label * 0.8 + 0.1, has_label, ["a", "b", "c"], task=Task.of(has_label))
    assert found.accuracy == found.micro_f1 == found.samples_f1 == found.macro_f1 == found.average_precision == 1
    assert found.interval == found.confidence_interval
    assert (found.hamming_loss, found.auroc, found.per_class["c"].average_precision) == (0, 1, None)
