import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bilstm_cls.config import Config
from bilstm_cls.data.prepare import prepare
from bilstm_cls.device import peak_memory_mb
from bilstm_cls.errors import ConfigError
from bilstm_cls.training.run import TrainResult, train
from bilstm_cls.training.summary import baselines_table, score_table, write_baselines

Row = dict[str, object]


@pytest.fixture(scope="module")
def without_test(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that has no test split, begins with vectors of two words and judges the baselines too."""
    vectors = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    vectors.write_text("good 1 2 3 4 5 6 7 8\nbad 8 7 6 5 4 3 2 1\nzork 0 0 0 0 0 0 0 0\n", "utf-8")
    overrides = ["name=without-test", "data.test=null", f"embedding.init={vectors}"]
    return train(tiny_config(*overrides, "train.epochs=2", "train.baselines=true"))


@pytest.fixture(scope="module")
def metrics(trained_run: Path) -> Row:
    content: Row = json.loads((trained_run / "metrics.json").read_text("utf-8"))
    return content


def test_a_finished_run_has_every_file(trained_run: Path) -> None:
    names = {str(path.relative_to(trained_run)) for path in trained_run.rglob("*") if path.is_file()}
    assert {
        "config.yaml", "model.safetensors", "tokenizer.json", "labels.json", "metrics.json", "history.jsonl",
        "predictions_test.csv", "report.html", "environment.json", "status.json", "train.log", "README.md",
        "plots/loss.png", "plots/scores.png", "plots/learning_rate.svg", "plots/confusion_matrix.png",
        "plots/calibration_before.png", "plots/calibration.png", "plots/score_by_length.png", "plots/lengths.svg",
        "checkpoints/best.json", "checkpoints/last.json",
    } <= names  # fmt: skip


def test_metrics_have_the_scores_of_the_test_split_and_what_they_depend_on(metrics: Row) -> None:
    assert {
        "test/examples", "test/accuracy", "test/macro_f1", "test/log_loss", "test/ece", "test/auroc", "test/majority",
        "test/confidence_interval", "test/confusion_matrix", "test/per_class/pos/f1", "valid/accuracy", "train/steps",
        "train/best_step", "model/parameters", "text/vocab_size", "data/read", "data/used", "data/skipped",
        "data/majority_label", "data/notes", "text/train/tokens", "time/train_seconds", "time/peak_memory_mb",
    } <= set(metrics)  # fmt: skip


def test_times_and_loads_are_all_under_time(metrics: Row) -> None:
    assert [key for key in metrics if ("second" in key or "memory" in key) and not key.startswith("time/")] == []


def test_metrics_say_how_the_best_weights_did_on_the_valid_split(metrics: Row, trained_run: Path) -> None:
    history = [json.loads(line) for line in (trained_run / "history.jsonl").read_text("utf-8").splitlines()]
    (best,) = (row for row in history if row["step"] == metrics["train/best_step"])
    assert best["is_best"]
    assert metrics["valid/log_loss"] == best["valid/log_loss"]
    assert metrics["train/steps"] == history[-1]["step"] == 44


def test_facts_of_the_data_are_those_of_the_preparation(metrics: Row, tiny_config: Callable[..., Config]) -> None:
    facts = prepare(tiny_config()).facts()
    assert {key: metrics[key] for key in facts} == facts


def test_metrics_say_how_much_of_the_vocabulary_the_vectors_have(without_test: TrainResult, metrics: Row) -> None:
    assert without_test.metrics["embedding/coverage"] == 2 / without_test.metrics["text/vocab_size"]
    assert "embedding/coverage" not in metrics


def test_predictions_have_a_row_for_every_text(trained_run: Path) -> None:
    with (trained_run / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file, strict=True))) == 48


def test_the_report_and_the_card_name_the_score(trained_run: Path, metrics: Row) -> None:
    score = f"{100 * metrics['test/accuracy']:.2f}"  # type: ignore[operator]
    assert score in (trained_run / "report.html").read_text("utf-8")
    assert score in (trained_run / "README.md").read_text("utf-8")


def test_without_a_test_split_the_valid_one_is_judged_and_said_so(without_test: TrainResult) -> None:
    run = without_test.run
    assert not any(key.startswith("test/") for key in without_test.metrics)
    assert without_test.metrics["valid/examples"] == 24
    assert (run / "predictions_valid.csv").exists()
    assert not (run / "predictions_test.csv").exists()
    note = "There is no test split"
    assert note in (run / "report.html").read_text("utf-8")
    assert note in (run / "README.md").read_text("utf-8")
    assert note in score_table(without_test.metrics, run.path)


def test_baselines_stand_beside_the_model_where_they_are_asked_for(without_test: TrainResult, metrics: Row) -> None:
    assert {"baseline/tfidf/accuracy", "baseline/nbsvm/macro_f1", "time/baseline_nbsvm_seconds"} <= set(
        without_test.metrics
    )
    assert not any(key.startswith("baseline/") for key in metrics)
    assert "NB-SVM of 1-3 grams" in (without_test.run / "report.html").read_text("utf-8")


def test_the_table_of_scores_names_what_has_to_be_beaten(without_test: TrainResult) -> None:
    lines = score_table(without_test.metrics, Path("runs/mine")).splitlines()
    assert lines[0] == "accuracy on the valid split, 24 texts:"
    names = ["this model", "TF-IDF of 1-2", "NB-SVM of 1-3", "majority class  "]
    assert [line.strip()[: len(name)] for line, name in zip(lines[1:5], names, strict=True)] == names
    assert lines[-1] == "everything is in runs/mine; open runs/mine/report.html"


def test_baselines_have_run_directories_of_their_own(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config(f"output_dir={tmp_path}")
    results = write_baselines(config, ["nbsvm", "nbsvm"], overwrite=False)
    assert list(results) == ["nbsvm"]
    run = tmp_path / "tiny-nbsvm"
    assert json.loads((run / "metrics.json").read_text("utf-8")) == results["nbsvm"]
    assert json.loads((run / "status.json").read_text("utf-8"))["status"] == "finished"
    assert {"report.html", "predictions_test.csv", "README.md", "config.yaml"} <= {path.name for path in run.iterdir()}
    assert "tiny-nbsvm" in (run / "report.html").read_text("utf-8")
    assert baselines_table(results).startswith("NB-SVM of 1-3 grams: accuracy ")


def test_a_directory_of_a_baseline_is_not_written_over_unasked(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(f"output_dir={tmp_path}")
    first = write_baselines(config, ["tfidf"], overwrite=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="tiny-tfidf: is there already; add --overwrite"):
        write_baselines(config, None, overwrite=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    again = write_baselines(config, ["tfidf"], overwrite=True)
    assert again["tfidf"]["test/log_loss"] == first["tfidf"]["test/log_loss"]


def test_an_unknown_baseline_is_told_before_anything_is_read(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"baseline 'svm' is not known; choose one of tfidf, nbsvm"):
        write_baselines(tiny_config("data.train=nowhere.csv"), ["svm"], overwrite=False)


def test_the_most_memory_is_in_megabytes() -> None:
    assert 50 < peak_memory_mb() < 100_000
