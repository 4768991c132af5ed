"""What evaluation leaves behind: read back, it is what was written; damaged, it is named."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bilstm_cls.data.types import Split
from bilstm_cls.errors import CheckpointError
from bilstm_cls.evaluation.metrics import compute_metrics, example_losses
from bilstm_cls.evaluation.predictions import COLUMNS, Evaluation, read_predictions, read_split, write_predictions

LABELS = ["neg", "pos"]
TEXTS = ["fine", "two\nlines", 'a "quote", a comma', "cr\rhere", "lone \ud800", ""]
PROBABILITIES = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.99, 0.01], [0.5, 0.5], [0.6, 0.4]])
LABEL_IDS = np.array([1, 1, 0, 1, 0, 0])


def test_what_was_written_is_read_back_with_the_worst_first(tmp_path: Path) -> None:
    split = Split("test", TEXTS, LABEL_IDS, ["a.csv"] * 3 + ["b.csv"] * 3, np.arange(2, 8))
    evaluation = Evaluation(split, PROBABILITIES, compute_metrics(PROBABILITIES, LABEL_IDS, LABELS))
    write_predictions(tmp_path / "predictions_test.csv", evaluation)
    name, rows = read_predictions(tmp_path)
    order, split = np.array([3, 1, 2, 4, 5, 0]), read_split(tmp_path, LABELS)
    assert name == split.name == "test"
    assert split.texts == [TEXTS[i].replace("\ud800", "?") for i in order]
    assert split.paths == [evaluation.split.paths[i] for i in order]
    np.testing.assert_array_equal(split.lines, order + 2)
    np.testing.assert_array_equal(split.label_ids, LABEL_IDS[order])
    np.testing.assert_allclose([row.loss for row in rows], example_losses(PROBABILITIES, LABEL_IDS)[order], atol=1e-6)
    np.testing.assert_allclose([row.probability for row in rows], PROBABILITIES.max(1)[order], atol=1e-6)
    assert [row.prediction for row in rows] == ["neg", "neg", "pos", "neg", "neg", "pos"]


def test_a_very_long_text_is_read_back_and_the_limit_of_csv_files_is_left_alone(tmp_path: Path) -> None:
    text, limit = "word " * 100_000, csv.field_size_limit()
    split = Split("valid", [text], np.array([1]), ["a.csv"], np.array([2]))
    probabilities = np.array([[0.5, 0.5]])
    evaluation = Evaluation(split, probabilities, compute_metrics(probabilities, split.label_ids, LABELS))
    write_predictions(tmp_path / "predictions_valid.csv", evaluation)
    assert [row.text for row in read_predictions(tmp_path)[1]] == [text]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no predictions_test\.csv"),
        (b"text,label\na,b\n", "its first line is not path,line,label"),
        (f"{','.join(COLUMNS)}\n".encode(), "holds no text"),
        (f"{','.join(COLUMNS)}\na.csv,two,pos,pos,0.5,0.5,text\n".encode(), "after 0 rows"),
        (f"{','.join(COLUMNS)}\na.csv,2,pos,pos,0.5,0.5,\xff\n".encode("latin-1"), "it cannot be read"),
        (f'{",".join(COLUMNS)}\na.csv,2,pos,pos,0.5,0.5,"open\n'.encode(), "it cannot be read"),
    ],
)
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "predictions_test.csv").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_predictions(tmp_path)
