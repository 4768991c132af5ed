import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.errors import ConfigError
from bilstm_cls.serve.predict_file import PredictOptions, predict_file, predict_part
from tests.command_line import run_cli

BAD = "text,id\nlovely soup,1\nbland, rude soup,2\nfine,3\n"


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run, device="cpu")


def predicted(classifier: Classifier, content: str, target: Path, **options: Any) -> list[dict[str, Any]]:
    source = target.with_name("in.csv")
    source.write_text(content, "utf-8")
    predict_file(classifier, source, target, PredictOptions(**options))
    if target.suffix == ".jsonl":
        return [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    with target.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t" if target.suffix == ".tsv" else ","))


def test_an_output_that_is_the_input_or_of_an_unknown_kind_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\ngood\n", "utf-8")
    (tmp_path / "link.csv").symlink_to(tmp_path / "in.csv")
    for name, complaint in (("link.csv", "is the input as well"), ("out.xlsx", r"must end in \.csv, \.tsv, \.jsonl")):
        with pytest.raises(ConfigError, match=complaint):
            predict_file(classifier, tmp_path / "in.csv", tmp_path / name)


def test_columns_and_encoding_are_those_of_the_run(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = classifier.config.data.model_copy(update={"text_columns": ["title", "body"], "encoding": "latin-1"})
    monkeypatch.setattr(classifier, "config", classifier.config.model_copy(update={"data": data}))
    (tmp_path / "in.csv").write_bytes("title,body\ncafé,good\n".encode("latin-1"))
    predict_file(classifier, tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text("utf-8"))["title"] == "café"


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl"])
@pytest.mark.parametrize("content", [BAD, "text,id\na,b,c\ngood,1\n", "text,id\na,b,c\nd,e,f\n"])
def test_a_row_that_cannot_be_read_keeps_its_place_and_says_why(
    name: str, content: str, classifier: Classifier, tmp_path: Path
) -> None:
    rows = predicted(classifier, content, tmp_path / name, bad_rows="empty")
    is_bad = [line.count(",") == 2 for line in content.splitlines()[1:]]
    assert [bool(row["label"]) for row in rows] == [not bad for bad in is_bad]
    assert [f"in.csv:{i}: " in (row["error"] or "") for i, row in enumerate(rows, 2)] == is_bad
    assert all(bad or row["id"] for bad, row in zip(is_bad, rows, strict=True))


def test_a_row_that_cannot_be_read_is_left_out_or_ends_the_file(
    trained_run: Path, classifier: Classifier, tmp_path: Path
) -> None:
    rows = predicted(classifier, BAD, tmp_path / "out.csv", bad_rows="skip")
    assert ([row["id"] for row in rows], "error" in rows[0]) == (["1", "3"], False)
    command = ["predict", "--run", trained_run, "--input", tmp_path / "in.csv", "--json"]
    assert run_cli(*command).code == 3  # as the run's data.bad_rows says
    assert run_cli(*command, "--bad-rows", "maybe").code == 2
    done = run_cli(*command, "--bad-rows", "empty", "--top-k", 1, "--min-probability", 1)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["label"], len(row["probabilities"] or ())) for row in rows] == [(None, 1), (None, 0), (None, 1)]
    assert "1 rows could not be read" in done.stderr
    assert run_cli("predict", "--run", trained_run, "--min-probability", 1, "good").stdout.startswith("null\t")


def test_parts_joined_in_order_are_the_whole_and_stay_those_of_one_job(classifier: Classifier, tmp_path: Path) -> None:
    texts = [("good " if i % 3 else "bad ") * (i % 5 + 1) for i in range(11)]
    rows = [f"{i},{text}" if i != 4 else "4,a,b" for i, text in enumerate(texts)]
    (tmp_path / "in.csv").write_text("\n".join(["id,text", *rows, ""]), "utf-8")
    source, options = tmp_path / "in.csv", PredictOptions(bad_rows="empty")
    predict_file(classifier, source, tmp_path / "whole.jsonl", options)
    for rank in (2, 0, 1):
        predict_part(classifier, source, tmp_path / "out", options, rank=rank, size=3)
    parts = sorted((tmp_path / "out").glob("part-*.jsonl"))
    assert [len(part.read_text("utf-8").splitlines()) for part in parts] == [3, 4, 4]
    assert "".join(part.read_text("utf-8") for part in parts) == (tmp_path / "whole.jsonl").read_text("utf-8")
    parts[1].write_text("kept", "utf-8")
    predict_part(classifier, source, tmp_path / "out", options, rank=1, size=3)
    assert parts[1].read_text("utf-8") == "kept"
    for other, size in ((PredictOptions(bad_rows="empty", top_k=1), 3), (options, 2)):
        with pytest.raises(ConfigError, match=r"job\.json.*another --output"):
            predict_part(classifier, source, tmp_path / "out", other, rank=0, size=size)


@pytest.mark.parametrize(("output", "code"), [("out", 0), ("out.csv", 2)])
def test_under_torchrun_every_process_writes_a_part(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\ngood\nbad\nfine\n", "utf-8")
    for rank in range(2):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        assert run_cli("predict", "--run", trained_run, "--input", source, "--output", tmp_path / output).code == code
    assert len(list((tmp_path / output).glob("part-*-of-00002.jsonl"))) == (2 if code == 0 else 0)
