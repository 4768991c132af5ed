import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bilstm_cls import classifier as module
from bilstm_cls.classifier import Classifier
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.serve.predict_file import predict_file

Answer = Callable[[str], list[dict[str, object]]]


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run, device="cpu")


@pytest.fixture
def answer(classifier: Classifier, tmp_path: Path) -> Answer:
    """Classifies a file of that content and returns the lines of the result."""

    def answer(content: str, name: str = "in.csv") -> list[dict[str, object]]:
        (tmp_path / name).write_text(content, "utf-8")
        predict_file(classifier, tmp_path / name, tmp_path / "out.jsonl")
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]

    return answer


def test_a_label_in_the_file_is_kept_and_not_looked_at(answer: Answer) -> None:
    (row,) = answer("text,label\ngood great,whatever\n")
    assert (row["input_label"], row["label"]) == ("whatever", "pos")


def test_the_own_fields_come_first_in_their_order(answer: Answer) -> None:
    (row,) = answer("z,text,a\n1,good,2\n")
    assert list(row) == ["z", "text", "a", "label", "probability", "probabilities", "tokens", "truncated"]


def test_a_file_longer_than_a_chunk_keeps_rows_and_answers_together(
    answer: Answer, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    texts = [("good " if i % 3 else "bad ") * (i % 5 + 1) for i in range(11)]
    rows = answer("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    assert [(row["id"], row["text"]) for row in rows] == [(str(i), text) for i, text in enumerate(texts)]
    assert [row["label"] for row in rows] == [p.label for p in classifier.predict(texts)]


def test_fasttext_lines_keep_their_labels_beside_the_answers(answer: Answer) -> None:
    (row,) = answer("__label__x good great\n", "in.ft")
    assert (row["text"], row["input_label"], row["label"]) == ("good great", "x", "pos")


def test_a_parquet_file_is_answered(classifier: Classifier, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["good", "bad"], "n": [1, 2]}), tmp_path / "in.parquet")
    predict_file(classifier, tmp_path / "in.parquet", tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text("utf-8").splitlines()
    assert lines[0] == "text,n,label,probability,tokens,truncated,probability_neg,probability_pos"
    assert [line.split(",")[:2] for line in lines[1:]] == [["good", "1"], ["bad", "2"]]


def test_a_line_feed_alone_ends_a_line_of_a_table(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\nbad\n", "utf-8")
    predict_file(classifier, tmp_path / "in.txt", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().count(b"\n") == 3
    assert b"\r" not in (tmp_path / "out.csv").read_bytes()


def test_a_bad_row_leaves_the_earlier_result_as_it_was(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\ngood\na,b\n", "utf-8")
    (tmp_path / "out.csv").write_text("earlier", "utf-8")
    with pytest.raises(DataError, match=r"in\.csv:3: 2 fields"):
        predict_file(classifier, tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text("utf-8") == "earlier"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_input_is_not_written_over_by_another_name_for_it(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\ngood\n", "utf-8")
    (tmp_path / "link.csv").symlink_to(tmp_path / "in.csv")
    with pytest.raises(ConfigError, match="is the input as well"):
        predict_file(classifier, tmp_path / "in.csv", tmp_path / "link.csv")
    assert (tmp_path / "in.csv").read_text("utf-8") == "text\ngood\n"


def test_the_columns_and_the_encoding_are_those_of_the_run(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = classifier.config.data.model_copy(update={"text_columns": ["title", "body"], "encoding": "latin-1"})
    monkeypatch.setattr(classifier, "config", classifier.config.model_copy(update={"data": data}))
    (tmp_path / "in.csv").write_bytes("title,body\ncafé,good\n".encode("latin-1"))
    predict_file(classifier, tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text("utf-8"))["title"] == "café"


@pytest.mark.parametrize("name", ["out", "out.xlsx", "out.txt", "out.csv.gz"])
def test_an_unknown_ending_of_the_output_is_told_before_anything_is_read(
    name: str, classifier: Classifier, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must end in \.csv, \.tsv, \.jsonl"):
        predict_file(classifier, tmp_path / "nowhere.csv", tmp_path / name)
