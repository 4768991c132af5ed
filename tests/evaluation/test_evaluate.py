"""A run evaluated: on its splits, on other files, at its end, and again from its directory."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.config import Config
from bilstm_cls.errors import CheckpointError, DataError
from bilstm_cls.evaluation.evaluate import evaluate, rebuild_report
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.report import metrics_table, score_table
from bilstm_cls.training.run import TrainResult, train
from tests.command_line import contents

Row = dict[str, Any]


@pytest.fixture(scope="module")
def metrics(trained_run: Path) -> Row:
    content: Row = json.loads((trained_run / "metrics.json").read_text("utf-8"))
    return content


@pytest.fixture(scope="module")
def without_test(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run without a test split, with an n-gram model, vectors of two words, and baselines."""
    vectors = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    vectors.write_text("good 1 2 3 4 5 6 7 8\nbad 8 7 6 5 4 3 2 1\nzork 0 0 0 0 0 0 0 0\n", "utf-8")
    overrides = ["name=without-test", "data.test=null", f"embedding.init={vectors}", "model.ngrams=nbsvm"]
    return train(tiny_config(*overrides, "train.epochs=2", "train.baselines=true"))


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(trained_run, tmp_path / "copy"))


# evaluate


def test_the_valid_split_is_evaluated_too(trained_run: Path, metrics: Row) -> None:
    _, valid = evaluate(trained_run, split="valid")
    assert valid.accuracy == metrics["valid/accuracy"]
    assert valid.log_loss == pytest.approx(metrics["calibrated/valid/log_loss"], abs=1e-6)


def test_another_file_may_have_numbers_or_names_for_labels(chinese_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.csv"
    path.write_text("text,label\n球队比赛冠军,0\n股票基金银行,财经\n球队,科技\n", "utf-8")
    with pytest.raises(DataError, match=r"more\.csv:4: label '科技'"):
        evaluate(chinese_run, data=path)
    _, found = evaluate(chinese_run, data=path, bad_rows="skip")
    assert (found.accuracy, found.per_class["体育"].support) == (1.0, 1)


def test_bad_rows_are_skipped_where_the_run_says_so(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = (run / "config.yaml").read_text("utf-8")
    (run / "config.yaml").write_text(config.replace("bad_rows: error", "bad_rows: skip"), "utf-8")
    path = tmp_path / "some.csv"
    path.write_text("text,label\na text,new\nanother,\n", "utf-8")
    with pytest.raises(DataError, match=r"some\.csv: there is no text"):
        evaluate(run, data=path)
    path.write_text("text,label\ngood great,pos\nlovely fun,pos\na text,new\n", "utf-8")
    name, found = evaluate(run, data=path)
    assert (name, found.examples, found.accuracy, found.auroc) == (str(path), 2, 1.0, None)
    assert "some.csv:4: " in caplog.text


def test_the_table_has_every_score_and_label_the_worst_of_many() -> None:
    few = compute_metrics(np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]), ["neg", "pos"], majority_label_id=0)
    lines = metrics_table(few, "test").splitlines()
    assert lines[1].split()[:3] == ["accuracy", "0.6667", "(95"]
    assert [line.split()[0] for line in lines[-2:]] == ["neg", "pos"]
    many = compute_metrics(np.eye(300), np.arange(300), [f"label {i}" for i in range(300)])
    assert len(metrics_table(many, "test").splitlines()) < 220


# The end of a run


def test_a_finished_run_has_every_file_and_score(trained_run: Path, metrics: Row) -> None:
    pictures = [f"plots/{name}.png" for name in ("curves", "confusion_matrix", "calibration")]
    assert all(
        (trained_run / name).is_file() for name in ("predictions_test.csv", "report.html", "README.md", *pictures)
    )
    assert {
        "test/examples", "test/accuracy", "test/auroc", "test/majority", "test/confidence_interval",
        "test/confusion_matrix", "test/confusions", "test/per_class/pos/f1", "valid/accuracy", "train/steps",
        "model/parameters", "text/vocab_size", "data/skipped", "data/majority_label", "data/notes", "text/train/tokens",
        "time/peak_memory_mb",
    } <= set(metrics)  # fmt: skip
    assert [key for key in metrics if ("second" in key or "memory" in key) and not key.startswith("time/")] == []
    assert metrics["network/test/accuracy"] == metrics["test/accuracy"]
    history = [json.loads(line) for line in (trained_run / "history.jsonl").read_text("utf-8").splitlines()]
    (best,) = (row for row in history if row["step"] == metrics["train/best_step"])
    assert best["is_best"]
    assert metrics["valid/log_loss"] == best["valid/log_loss"]


def test_predictions_and_report_are_those_of_the_classifier(trained_run: Path, metrics: Row) -> None:
    with (trained_run / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    predictions = Classifier.load(trained_run).predict([row["text"] for row in rows])
    assert len(rows) == 48
    assert [row["prediction"] for row in rows] == [prediction.label for prediction in predictions]
    assert np.allclose([float(row["probability"]) for row in rows], [p.probability for p in predictions], atol=1e-5)
    for name in ("report.html", "README.md"):
        assert f"{100 * metrics['test/accuracy']:.2f}" in (trained_run / name).read_text("utf-8")


def test_without_a_test_split_the_valid_one_is_evaluated_next_to_network_and_baselines(
    without_test: TrainResult, metrics: Row
) -> None:
    run, found = without_test.run, without_test.metrics
    assert not any(key.startswith("test/") for key in found)
    assert found["valid/examples"] == 24
    assert (run / "predictions_valid.csv").exists()
    report = (run / "report.html").read_text("utf-8")
    for text in (report, (run / "README.md").read_text("utf-8"), score_table(found, run.path)):
        assert "There is no test split" in text
    assert {"network/valid/accuracy", "baseline/tfidf/accuracy", "baseline/nbsvm/macro_f1"} <= set(found)
    assert not any(key.startswith("baseline/") for key in metrics)
    assert "network alone" in report
    assert found["embedding/coverage"] == 2 / found["text/vocab_size"]


# The report, made again


def test_the_report_made_again_is_the_same_and_needs_no_data(trained_run: Path, run: Path) -> None:
    (run / "report.html").unlink()
    shutil.rmtree(run / "plots")
    assert rebuild_report(run, device="cpu") == run / "report.html"
    again = (run / "report.html").read_text("utf-8").replace(str(run), "RUN")
    assert again == (trained_run / "report.html").read_text("utf-8").replace(str(trained_run), "RUN")
    assert set(contents(run)) == set(contents(trained_run))


PREDICTIONS = "path,line,label,prediction,probability,loss,text\na.csv,2,good,pos,0.5,0.5,x\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("predictions_test.csv", PREDICTIONS, "has the label 'good'"), ("metrics.json", "{}", r"metrics\.json: damaged")],
)
def test_a_damaged_file_is_named(name: str, content: str, message: str, run: Path) -> None:
    (run / name).write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=message):
        rebuild_report(run, device="cpu")
