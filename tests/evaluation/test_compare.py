"""Runs compared: the figures of textbooks, and no comparison of what cannot be compared."""

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bilstm_cls.data.types import Split
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.compare import compare, comparison_table, write_comparison
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.predictions import Evaluation, write_predictions
from tests.command_line import answer, run_cli
from tests.evaluation.pages import Page

Row = dict[str, Any]

LABELS = ["a", "b", "c"]


def write_run(folder: Path, answers, label_ids, *, texts=None, order=None, labels=LABELS, confidence=0.8) -> Path:
    """Writes the predictions of a run, and returns its directory."""
    folder.mkdir()
    number = len(label_ids)
    order = np.arange(number) if order is None else order
    texts = [f"text {i}" for i in range(number)] if texts is None else texts
    probabilities = np.full((number, len(labels)), (1 - confidence) / (len(labels) - 1))
    probabilities[np.arange(number), answers] = confidence
    ids = np.asarray(label_ids)
    split = Split("test", [texts[i] for i in order], ids[order], ["a.csv"] * number, np.arange(number)[order] + 2)
    evaluation = Evaluation(split, probabilities[order], compute_metrics(probabilities[order], ids[order], labels))
    write_predictions(folder / "predictions_test.csv", evaluation)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> Row:
    """Of 100 texts the first run alone answers 5 rightly, the second alone 15; both answer 70 rightly."""
    label_ids = np.arange(100) % 3
    wrong = (label_ids + 1) % 3
    first = np.where(np.arange(100) < 75, label_ids, wrong)
    second = np.where((np.arange(100) >= 5) & (np.arange(100) < 90), label_ids, wrong)
    one = write_run(tmp_path / "one", first, label_ids)
    found = compare([one, write_run(tmp_path / "two", second, label_ids, confidence=0.9)], 3)
    for run, answers in zip(found["runs"], (first, second), strict=True):
        assert run["macro_f1"] == pytest.approx(f1_score(label_ids, answers, average="macro"))
    return found


def test_scores_differences_and_tests_are_those_of_paired_texts(two: Row) -> None:
    assert [run["accuracy"] for run in two["runs"]] == [0.75, 0.85]
    assert all(run["confidence_interval"][0] < run["accuracy"] < run["confidence_interval"][1] for run in two["runs"])
    assert two["runs"][0]["ece"] == pytest.approx(0.05, abs=1e-6)
    (found,) = two["differences"]
    assert found["right_alone"] == {"one": 5, "two": 15}
    assert found["mcnemar_p"] == pytest.approx(2 * sum(comb(20, k) for k in range(6)) / 2**20)
    width = 1.96 * np.sqrt((20 / 100 - 0.1**2) / 100)  # of the mean of 100 differences of -1, 0 and 1
    assert found["accuracy"]["difference"] == pytest.approx(0.1)
    assert found["accuracy"]["confidence_interval"] == pytest.approx([0.1 - width, 0.1 + width], abs=1e-4)
    difference = two["runs"][1]["log_loss"] - two["runs"][0]["log_loss"]
    assert found["log_loss"]["difference"] == pytest.approx(difference)


def test_texts_are_matched_whatever_their_order_and_with_those_that_stand_twice(tmp_path: Path) -> None:
    texts = ["same", "same", "same", "other"]
    label_ids, answers = np.array([0, 1, 0, 2]), np.array([0, 0, 0, 2])
    one = write_run(tmp_path / "one", answers, label_ids, texts=texts)
    two = write_run(tmp_path / "two", answers, label_ids, texts=texts, order=np.array([3, 1, 2, 0]))
    found = compare([one, two], 9)
    assert (found["num_disagreements"], found["differences"][0]["mcnemar_p"]) == (0, 1.0)
    assert found["differences"][0]["accuracy"] == {"difference": 0, "confidence_interval": [0, 0]}


def test_texts_answered_differently_are_listed_by_their_difference_in_loss(tmp_path: Path) -> None:
    label_ids = np.zeros(6, dtype=int)
    one = write_run(tmp_path / "one", [0, 0, 0, 1, 1, 0], label_ids)
    two = write_run(tmp_path / "two", [0, 1, 0, 2, 1, 2], label_ids, confidence=0.98)
    rows = compare([one, two], 2)
    assert rows["num_disagreements"] == 3
    assert [row["place"] for row in rows["disagreements"]] == ["a.csv:3", "a.csv:7"]
    assert rows["disagreements"][0]["answers"]["two"] == {"label": "b", "probability": 0.98}


@pytest.mark.parametrize(("label_ids", "texts"), [([0, 1, 1], ["x", "z", "z"]), ([0, 2], ["x", "y"])])
def test_runs_on_other_texts_or_labels_are_refused(label_ids: list[int], texts: list[str], tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [0, 1], [0, 1], texts=["x", "y"])
    other = write_run(tmp_path / "two", label_ids, label_ids, texts=texts)
    with pytest.raises(ConfigError, match="not evaluated on the same texts with the same labels"):
        compare([one, other], 0)
    with pytest.raises(ConfigError, match="given twice"):
        compare([one, tmp_path / "." / "one"], 0)


def test_the_table_says_how_probable_a_difference_is_by_chance(two: Row) -> None:
    shown = comparison_table(two)
    assert "5 : 15" in shown
    assert "0.0414" in shown
    assert f"{two['num_disagreements']} texts differently" in shown
    assert shown.count(": label ") == 3


def test_the_page_shows_markup_as_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    labels = [evil, "ok", "c"]
    one = write_run(tmp_path / "one", [0, 1], [0, 1], texts=[evil, "y"], labels=labels)
    found = compare([one, write_run(tmp_path / "<two>", [1, 1], [0, 1], texts=[evil, "y"], labels=labels)], 10)
    write_comparison(tmp_path / "page.html", found)
    source = (tmp_path / "page.html").read_text("utf-8")
    assert "<script>" not in source
    assert "<two>" not in source
    assert Page(source).text.count(evil) >= 2  # the text, its label


def test_the_command_compares_a_run_with_a_baseline(trained_run: Path, tmp_path: Path) -> None:
    from bilstm_cls.evaluation.evaluate import write_baselines
    from bilstm_cls.run_directory import RunDirectory

    config = RunDirectory(trained_run).load_config().model_copy(update={"output_dir": str(tmp_path)})
    write_baselines(config, ["nbsvm"], overwrite=False)
    both = ["--run", trained_run, "--run", tmp_path / "tiny-nbsvm"]
    done = answer("report", *both, "--json", "--html", tmp_path / "page.html", "-q")
    metrics = RunDirectory(trained_run).read_object("metrics.json")
    first = done.json["runs"][0]
    assert (first["run"], first["accuracy"]) == ("tiny", metrics["test/accuracy"])
    for command in (("predict", "x"), ("eval",)):  # which need a model
        refused = run_cli(*command, "--run", tmp_path / "tiny-nbsvm")
        assert (refused.code, "baseline" in refused.stderr, "not finished" in refused.stderr) == (4, True, False)
        assert "bilstm-cls report" in refused.stderr
    assert first["macro_f1"] == pytest.approx(metrics["test/macro_f1"])
    assert first["log_loss"] == pytest.approx(metrics["test/log_loss"], abs=1e-5)
    assert (tmp_path / "page.html").stat().st_size < 2 * 2**20
    assert run_cli("report", "--html", tmp_path / "x.html").code == 2
