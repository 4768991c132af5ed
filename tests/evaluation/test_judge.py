import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.data.types import Split
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.evaluation.judge import evaluate, metrics_table
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.predictions import Judged

LABELS = ["neg", "pos"]
TEXTS = ["fine", "two\nlines", 'a "quote", a comma', "cr\rhere", "half \ud800", ""]
PROBABILITIES = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.99, 0.01], [0.5, 0.5], [0.6, 0.4]])
LABEL_IDS = np.array([1, 1, 0, 1, 0, 0])


@pytest.fixture
def judged() -> Judged:
    split = Split("test", TEXTS, LABEL_IDS, ["a.csv"] * 3 + ["b.csv"] * 3, np.arange(2, 8))
    return Judged(split, PROBABILITIES, compute_metrics(PROBABILITIES, LABEL_IDS, LABELS, majority_label_id=0))


def test_the_table_has_every_score_and_label(judged: Judged) -> None:
    lines = metrics_table(judged.metrics, "test").splitlines()
    assert lines[0] == "test: 6 texts"
    assert lines[1].startswith("accuracy     0.5000  (95 % interval ")
    assert lines[2].startswith("majority     0.5000")
    assert [line.split()[0] for line in lines[-2:]] == LABELS


def test_the_predictions_of_a_run_are_those_of_its_classifier(trained_run: Path) -> None:
    with (trained_run / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    predictions = Classifier.load(trained_run).predict([row["text"] for row in rows])
    assert len(rows) == 48
    assert [row["prediction"] for row in rows] == [prediction.label for prediction in predictions]
    assert np.allclose([float(row["probability"]) for row in rows], [p.probability for p in predictions], atol=1e-5)


def test_a_run_is_judged_as_its_metrics_say(trained_run: Path) -> None:
    stored = json.loads((trained_run / "metrics.json").read_text("utf-8"))
    name, metrics = evaluate(trained_run)
    again = metrics.flat(name)
    assert name == "test"
    assert again == {key: stored[key] for key in again}


def test_the_split_that_chose_the_weights_scores_as_it_did(trained_run: Path) -> None:
    stored = json.loads((trained_run / "metrics.json").read_text("utf-8"))
    _, metrics = evaluate(trained_run, split="valid")
    assert metrics.accuracy == stored["valid/accuracy"]
    assert metrics.log_loss == pytest.approx(stored["calibrated/valid/log_loss"], abs=1e-6)


def test_another_file_is_judged_by_the_labels_of_the_run(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\ngood great,pos\nlovely fun,pos\n", "utf-8")
    name, metrics = evaluate(trained_run, data=tmp_path / "one.csv")
    assert (name, metrics.examples, metrics.accuracy) == (str(tmp_path / "one.csv"), 2, 1.0)
    assert metrics.per_class["neg"].support == 0
    assert metrics.auroc is None


def test_a_run_with_names_for_its_labels_is_keyed_by_them(chinese_run: Path) -> None:
    assert json.loads((chinese_run / "labels.json").read_text("utf-8")) == ["体育", "财经"]
    metrics = json.loads((chinese_run / "metrics.json").read_text("utf-8"))
    assert metrics["test/per_class/体育/f1"] > 0.9
    assert evaluate(chinese_run)[1].accuracy == metrics["test/accuracy"]


@pytest.mark.parametrize("labels", [("0", "1"), ("体育", "财经"), ("0", "财经")])
def test_another_file_is_judged_by_numbers_or_by_their_names(
    labels: tuple[str, str], chinese_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text(f"球队比赛冠军\t{labels[0]}\n股票基金银行\t{labels[1]}\n" * 2, "utf-8")
    _, metrics = evaluate(chinese_run, data=tmp_path / "more.txt", data_format="text-label")
    assert (metrics.accuracy, metrics.per_class["体育"].support) == (1.0, 2)


def test_names_will_do_where_the_file_of_names_is_gone(
    chinese_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bilstm_cls.evaluation.judge.read_label_names", None)
    (tmp_path / "more.csv").write_text("text,label\n球队比赛冠军,体育\n", "utf-8")
    assert evaluate(chinese_run, data=tmp_path / "more.csv")[1].accuracy == 1.0


@pytest.mark.parametrize("label", ["2", "科技"])
def test_a_label_that_a_run_with_names_does_not_know_is_told(label: str, chinese_run: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(f"text,label\n球队,0\n球队,{label}\n", "utf-8")
    with pytest.raises(DataError, match=rf"more\.csv:3: label '{label}' is not one that the run knows: 体育, 财经"):
        evaluate(chinese_run, data=tmp_path / "more.csv")


def test_rows_that_cannot_be_used_are_skipped_and_told_where_the_run_says_so(
    trained_copy: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained_copy("bad_rows: error", "bad_rows: skip")
    (tmp_path / "some.csv").write_text("text,label\ngood,pos\nno label,\n", "utf-8")
    assert evaluate(run, data=tmp_path / "some.csv")[1].examples == 1
    assert "1 rows could not be used, the first: " in caplog.text
    assert "some.csv:3: the label is empty" in caplog.text


def test_a_file_whose_rows_are_all_skipped_is_told(trained_copy: Callable[..., Path], tmp_path: Path) -> None:
    run = trained_copy("bad_rows: error", "bad_rows: skip")
    (tmp_path / "none.csv").write_text("text,label\nno label,\n", "utf-8")
    with pytest.raises(DataError, match=r"none\.csv: there is no text to judge"):
        evaluate(run, data=tmp_path / "none.csv")


@pytest.fixture
def trained_copy(trained_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a copy of the trained run with something in its config replaced."""

    def copy(old: str, new: str) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        for path in trained_run.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        config = (folder / "config.yaml").read_text("utf-8")
        assert old in config
        (folder / "config.yaml").write_text(config.replace(old, new), "utf-8")
        return folder

    return copy


def test_a_run_without_a_test_split_has_none_to_judge(trained_copy: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="the run has no 'test' split; it has train, valid"):
        evaluate(trained_copy("  test: 0.2\n", "  test: null\n"))


def test_data_that_are_split_otherwise_are_not_those_of_the_run(trained_copy: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="its data have changed since it was trained"):
        evaluate(trained_copy("split_seed: 0", "split_seed: 1"))


def test_a_device_that_is_not_here_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cuda:99' is not here"):
        evaluate(tmp_path / "nowhere", device="cuda:99")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished model"):
        evaluate(tmp_path)
