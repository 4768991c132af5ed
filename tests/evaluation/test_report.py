"""The report and the model card: one file, nothing loaded, nothing of a text ever markup."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bilstm_cls.config import Config
from bilstm_cls.data.types import Split
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.predictions import Evaluation
from bilstm_cls.evaluation.report import MAX_ROWS, score_table, scores_of, write_report
from bilstm_cls.run_directory import RunDirectory
from tests.evaluation.pages import Page
from tests.serve.untrained import untrained

pytestmark = pytest.mark.usefixtures("light")

EVIL = '<script>alert("1")</script>'
LABELS = ["neg", "pos"]
HISTORY = [{"step": 5, "epoch": 1.0, "train/loss": 0.5, "valid/accuracy": 0.7, "valid/auroc": None}]


def evaluation_of(labels: list[str], texts: list[str] | None = None, number: int = 40) -> Evaluation:
    """Three of four predictions are right, with probability 0.9."""
    ids = np.arange(number) % len(labels)
    predicted = np.where(np.arange(number) < 0.75 * number, ids, (ids + 1) % len(labels))
    probabilities = np.full((number, len(labels)), 0.1 / (len(labels) - 1))
    probabilities[np.arange(number), predicted] = 0.9
    texts = (texts or ["so bad it is good"]) * number
    split = Split("test", texts[:number], ids, ["data/a.csv"] * number, np.arange(number) + 2)
    return Evaluation(split, probabilities, compute_metrics(probabilities, ids, labels, majority_label_id=0))


def metrics_of(evaluation: Evaluation, **more: Any) -> dict[str, Any]:
    counts = {"texts": 4321, "tokens": 50_000, "truncated": 3, "empty": 1, "unknown": 7, "longest": 900}
    return {
        **evaluation.metrics.flat("test"),
        "network/test/accuracy": 0.75,
        "data/origin": "films.csv, see https://example.org/films",
        "data/notes": ["This is not the official test split."],
        "data/skipped": 17,
        "model/parameters": 12_345,
        "baseline/tfidf/accuracy": 0.6,
        **{f"text/train/{key}": value for key, value in {**counts, "median_length": 9}.items()},
        **{f"data/labels/train/{label}": 1000 + i for i, label in enumerate(evaluation.metrics.per_class)},
        **more,
    }


def report_of(folder: Path, evaluation: Evaluation, *, title: str = "films", **more: Any) -> tuple[Page, str, str]:
    """Returns the page, its source, and the model card."""
    run = RunDirectory(folder / "runs" / "my films")
    run.plots.mkdir(parents=True)
    run.write_json("environment.json", {"versions": {"torch": "2.13.0"}})
    metrics = metrics_of(evaluation, **more)
    config = Config(seed=77).model_copy(update={"name": title})
    loaded = replace(untrained(labels=evaluation.labels), config=config)
    write_report(run, loaded, evaluation, metrics, history=HISTORY)
    source = (run / "report.html").read_text("utf-8")
    return Page(source), source, (run / "README.md").read_text("utf-8")


def test_the_page_holds_what_it_was_given_and_loads_nothing(tmp_path: Path) -> None:
    page, source, _ = report_of(tmp_path, evaluation_of(LABELS))
    expected = [
        "films", "75.00%", "95 % interval", "TF-IDF", "60.00%", "majority class", "50.00%", "12,345", "4,321",
        "so bad it is good", "90.0%", "seed: 77", "bilstm-cls predict --run", "data/a.csv:", "1,000 (23.1%)",
        "rows skipped", "2.13.0", "Loss, and scores", "network alone", "bilstm-cls report --run",
    ]  # fmt: skip
    assert [text for text in expected if text not in page.text] == []
    assert page.text.index("not the official test split") < page.text.index("75.00%")
    page.check_loads_nothing(source)


def test_nothing_of_a_text_is_markup(tmp_path: Path) -> None:
    evaluation = evaluation_of([EVIL, "a|b\n# c"], [EVIL, "\ud800", "\x00\x1b[31m", "عربي \u202e abc", "{{ title }}"])
    notes = {"data/notes": [EVIL], "data/origin": EVIL}
    page, _, card = report_of(tmp_path, evaluation, title=EVIL, **notes)
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(EVIL) > 5
    assert "<script" not in card.replace("\\<script", "")
    assert "a\\|b \\# c" in card
    assert "--run 'runs/my films'" in card.replace(str(tmp_path) + "/", "")


def test_network_n_grams_and_baselines_have_a_row_each() -> None:
    metrics = metrics_of(evaluation_of(LABELS), **{"model/ngrams": "nbsvm", "network/test/accuracy": 0.7})
    metrics |= {"train/steps": 3, "time/train_seconds": 60.0, "time/peak_memory_mb": 99.0}
    rows = [(score.name, score.value) for score in scores_of(metrics)]
    assert rows == [
        ("network with n-grams", 0.75), ("network alone", 0.7),
        ("TF-IDF of 1-2 grams and logistic regression", 0.6), ("majority class", 0.5),
    ]  # fmt: skip
    lines = score_table(metrics, Path("runs/films")).splitlines()
    assert [line.split("  ")[1] for line in lines[1:5]] == [name for name, _ in rows]
    assert lines[-1] == "everything is in runs/films; open runs/films/report.html"


def test_of_many_labels_the_worst_are_listed_and_a_better_baseline_is_named(tmp_path: Path) -> None:
    evaluation = evaluation_of([f"label {i}" for i in range(300)], number=600)
    page, source, card = report_of(tmp_path, evaluation, **{"baseline/nbsvm/accuracy": 0.9})
    assert "not better than NB-SVM of 1-3 grams (90.00%)" in page.text
    assert "not better than NB\\-SVM" in card or "not better than NB-SVM" in card
    assert card.count("` | label ") == MAX_ROWS
    assert "labels with the lowest F1 of 300" in page.text
    assert "texts confused" in page.text
    assert not (tmp_path / "runs" / "my films" / "plots" / "confusion_matrix.png").exists()
    assert len(source) < 2**20
