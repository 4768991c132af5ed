import csv
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls import cli
from bilstm_cls.classifier import Classifier
from bilstm_cls.config_file import load_config
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.runtime import given_chunks
from tests.command_line import answer, run_cli
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("light")

COMMANDS = [*([name] for name in cli.COMMANDS), *(["config", name] for name in ("show", "check", "schema")), ["config"]]
HEAVY = {"torch", "sklearn", "scipy", "matplotlib", "pydantic", "numpy", "yaml", "tokenizers", "pyarrow", "filelock"}
UNUSED = {"sklearn", "scipy", "matplotlib", "pyarrow", "psutil", "bilstm_cls.data.dataset"}  # in a prediction
OURS = [sys.executable, "-m", "bilstm_cls"]
# As in a user's shell: what is printed into a pipe waits in Python until it is flushed.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}
ODD_TEXTS = ["a good film", "", "two\nlines, a comma", 'she said "bad"', "tab\there", "cr\rhere", " fun 😀 ", ""]
ONE_LINE = [text for text in ODD_TEXTS if not re.search("[\t\n\r]", text)]


@pytest.fixture(scope="module")
def sets(reviews_csv: Path) -> list[str]:
    """Options of a model that trains in a second."""
    keys = [f"data.train={reviews_csv}", "data.test=0.2", "name=tiny", *TINY, "train.epochs=1"]
    return [word for key in keys for word in ("--set", key)]


@pytest.fixture
def folder(tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a finished run under `runs/`."""
    shutil.copytree(trained_run, tmp_path / "runs/tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run)


def json_of(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("command", "needed", "unwanted"),
    [
        (["--help"], "typer", HEAVY | UNUSED),
        (["init", "--data", "reviews.csv"], "pydantic", {"torch", "sklearn", "matplotlib", "pyarrow"}),
        (["predict", "a", "--run"], "torch", UNUSED),
    ],
)
def test_a_command_imports_no_more_than_it_needs(
    command: list[str], needed: str, unwanted: set[str], reviews_csv: Path, trained_run: Path
) -> None:
    words = [*command, trained_run] if command[-1] == "--run" else command
    timed = [sys.executable, "-X", "importtime", "-m", "bilstm_cls", *words]
    done = subprocess.run(timed, capture_output=True, text=True, check=True, cwd=reviews_csv.parent)
    imported = set(re.findall(r"^import time:.*\|\s+([\w.]+)", done.stderr, re.MULTILINE))
    assert needed in imported
    assert imported & unwanted == set()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    outcome = answer(*command, "-h")
    assert outcome.stdout.startswith(f"Usage: bilstm-cls {' '.join(command)}")
    assert outcome.stderr == ""


def test_the_version_is_that_of_the_package() -> None:
    assert answer("--version").stdout == importlib.metadata.version("bilstm-cls") + "\n"


def test_train_prints_its_metrics_and_reports_the_rest_on_stderr(sets: list[str], tmp_path: Path) -> None:
    outcome = answer("train", *sets, "--json", "-o", tmp_path)
    assert outcome.json == json_of(tmp_path / "tiny/metrics.json")
    expected = {"test/accuracy", "test/macro_f1", "valid/accuracy", "train/steps", "time/train_seconds"}
    assert expected <= set(outcome.json)
    assert outcome.stdout.count("\n") == 1
    assert "epoch 1" in outcome.stderr
    again = answer("train", *sets, "--json", "-o", tmp_path, "--resume")
    assert (again.json, again.stderr.count("epoch")) == (outcome.json, 0)


def test_baselines_are_evaluated_on_the_splits_of_the_model(sets: list[str], folder: Path) -> None:
    outcome = answer("baseline", *sets, "--json", "-o", "runs")
    assert {"tfidf", "nbsvm"} <= set(outcome.json)
    assert outcome.json["nbsvm"] == json_of(folder / "runs/tiny-nbsvm/metrics.json")
    names = ("tiny", "tiny-tfidf", "tiny-nbsvm")
    assert len({json_of(folder / "runs" / name / "environment.json")["data_digest"] for name in names}) == 1
    only = ["baseline", *sets, "--only", "nbsvm", "-o", "runs", "-q"]
    assert "tiny-nbsvm" in run_cli(*only).stderr  # which is taken
    again = answer(*only, "--overwrite")
    assert "\nNB-SVM of 1-3 grams  " in again.stdout
    assert again.stderr == ""


def test_eval_repeats_the_scores_of_the_run_to_the_last_bit(folder: Path) -> None:
    metrics = json_of(folder / "runs/tiny/metrics.json")
    outcome = answer("eval", "--json")
    scores = ("examples", "accuracy", "macro_f1", "micro_f1", "weighted_f1", "auroc", "log_loss", "ece")
    names = {name: name for name in scores} | {"loss": "log_loss"}
    keys = ("precision", "recall", "f1", "support", "false_positives", "false_negatives")
    per_class = {label: {key: metrics[f"test/per_class/{label}/{key}"] for key in keys} for label in ("neg", "pos")}
    assert outcome.json == {
        "split": "test",
        **{name: metrics[f"test/{key}"] for name, key in names.items()},
        "confidence_interval": metrics["test/confidence_interval"],
        "per_class": per_class,
    }
    assert outcome.stderr.startswith("using runs/tiny, the newest run\n")


def test_eval_evaluates_other_files_by_other_columns_and_folders(folder: Path) -> None:
    (folder / "other.tsv").write_text("id\tmood\treview\n1\tpos\tgood great\n2\tneg\tbad\n3\tneg\tfine\n", "utf-8")
    found = answer("eval", "--data", "other.tsv", "--text-column", "review", "--label-column", "mood", "--json").json
    assert (found["split"], found["examples"], found["per_class"]["neg"]["support"]) == ("other.tsv", 3, 2)
    for label, text in (("pos", "good great"), ("neg", "bad awful")):
        (folder / "texts" / label).mkdir(parents=True)
        (folder / "texts" / label / "1.txt").write_text(text, "utf-8")
    assert answer("eval", "--data", "texts", "--json").json["examples"] == 2


def test_fail_under_ends_with_7_where_the_accuracy_is_lower(folder: Path) -> None:
    assert run_cli("eval", "--fail-under", "0.5", "-q").code == 0
    outcome = run_cli("eval", "--fail-under", "1", "--json", "-q")
    assert (outcome.code, 0.5 < outcome.json["accuracy"] < 1) == (7, True)
    assert "--fail-under" in outcome.stderr


def test_the_newest_run_is_looked_for_where_runs_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "runs").rename("elsewhere")
    assert "using elsewhere/tiny" in answer("inspect", "--output-dir", "elsewhere").stderr
    monkeypatch.setenv("BILSTM_CLS_OUTPUT_DIR", "elsewhere")
    assert "using elsewhere/tiny, the newest run" in answer("inspect").stderr


def test_predict_answers_arguments_as_the_classifier_does(folder: Path, classifier: Classifier) -> None:
    texts = ["a good film " * 20, "", "so bad", "it's 100 % \"fun\", isn't it?\nYes."]
    lines = [json.loads(line) for line in answer("predict", "--json", *texts).stdout.splitlines()]
    assert lines == [prediction.as_dict() for prediction in classifier.predict(texts)]
    results = ["label", "probability", "probabilities", "tokens", "truncated", "unknown_tokens"]
    assert list(lines[0]) == ["text", *results]
    assert (lines[0]["tokens"], lines[0]["truncated"]) == (60, True)


def test_lines_are_answered_before_the_next_ones_come_and_bytes_are_read_as_utf_8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    with open(reader) as stdin:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stdin)
        chunks = given_chunks(["half \udcc3", "-"])
        assert next(chunks) == ["half \N{REPLACEMENT CHARACTER}"]
        for part, texts in ((b"\xef\xbb\xbfa\r\n\nGr\xc3", ["a", ""]), (b"\xbcn\nlast", ["Grün"])):
            os.write(writer, part)
            assert next(chunks) == texts
        os.close(writer)
        assert list(chunks) == [["last"]]


@pytest.mark.parametrize("target", ["out.csv", "out.tsv", "out.jsonl"])
def test_every_row_of_a_file_keeps_its_fields_next_to_its_result_and_is_read_again(
    target: str, folder: Path, classifier: Classifier
) -> None:
    texts = ONE_LINE if target == "out.tsv" else ODD_TEXTS
    fields = {"id": "7", "label": "x", "probability_pos": "mine", "input_label": "y", "tokens": "t"}
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text} | fields) + "\n" for text in texts), "utf-8")
    outcome = answer("predict", "--input", "in.jsonl", "--output", target)
    assert (outcome.stdout, f"wrote {target}" in outcome.stderr) == ("", True)
    answer("predict", "--input", target, "--output", "again.jsonl")
    rows = [json.loads(line) for line in (folder / "again.jsonl").read_bytes().decode().split("\n")[:-1]]
    labels = [prediction.label for prediction in classifier.predict(texts)]
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows] == [row["input_input_input_label"] for row in rows] == labels
    kept = ("id", "input_label", "input_probability_pos", "input_input_label", "input_tokens")
    assert {tuple(row[name] for name in kept) for row in rows} == {("7", "x", "mine", "y", "t")}


def test_a_file_without_output_is_answered_on_stdout_and_columns_are_joined(
    folder: Path, classifier: Classifier
) -> None:
    (folder / "in.csv").write_text("title,body\ngood,film\n", "utf-8")
    options = ["--input", "in.csv", "--text-column", "title", "--text-column", "body"]
    found = answer("predict", *options, "--json").json
    assert found["probability"] == classifier.predict(["good\nfilm"])[0].probability
    assert (found["title"], found["body"]) == ("good", "film")
    (row,) = csv.DictReader(io.StringIO(answer("predict", *options).stdout, newline=""))
    assert (row["title"], row["label"]) == ("good", found["label"])


def test_a_reader_that_leaves_early_ends_predict_quietly_with_141(folder: Path) -> None:
    (folder / "many.txt").write_text("a good film\n" * 20_000, "utf-8")
    line = f"{shlex.join(OURS)} predict - --json < many.txt | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()[:2]] == ["a good film"] * 2
    assert done.stdout.splitlines()[2:] == ["141"]
    assert done.stderr == "using runs/tiny, the newest run\n"


def test_a_file_is_written_whatever_streams_are_closed(tmp_path: Path, reviews_csv: Path) -> None:
    """And neither they nor the files that are opened next, which would have their numbers, are written to by others."""
    words = shlex.join([*OURS, "init", "--data", str(reviews_csv), "-o", str(tmp_path / "new.yaml")])
    assert subprocess.run(["sh", "-c", f"{words} 0>&- 1>&- 2>&-"], check=False).returncode == 0
    assert load_config(tmp_path / "new.yaml").data.train == str(reviews_csv)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_under_stdout_ends_with_6() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [*OURS, "config", "show"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (6, 1)
    assert done.stderr.startswith(b"error: output: no room left")


def test_init_writes_a_config_that_trains_as_it_is_and_replaces_it_only_when_asked(
    reviews_csv: Path, folder: Path
) -> None:
    (folder / "new.yaml").write_text(answer("init", "--data", reviews_csv).stdout, "utf-8")
    assert load_config(folder / "new.yaml").data.train == str(reviews_csv)
    assert answer("train", "-c", "new.yaml", "--dry-run", "--json").json["labels"] == ["neg", "pos"]
    options = ["init", "--data", reviews_csv, "-o", "new.yaml", "--set", "train.epochs=77"]
    assert run_cli(*options).code == 2
    outcome = answer(*options, "--overwrite")
    assert (outcome.stdout, load_config(folder / "new.yaml").train.epochs) == ("", 77)
    assert all(part in outcome.stderr for part in ("label_column: label", "bilstm-cls train -c new.yaml"))


def test_config_commands_show_what_loads_to_the_same_check_it_and_print_the_schema(
    reviews_csv: Path, folder: Path
) -> None:
    (folder / "a.yaml").write_text(f"seed: 5\ndata: {{train: {reviews_csv}}}\n", "utf-8")
    (folder / "b.yaml").write_text(answer("config", "show", "-c", "a.yaml", "--set", "train.epochs=9").stdout, "utf-8")
    assert load_config(folder / "b.yaml") == load_config(folder / "a.yaml", ["train.epochs=9"])
    assert answer("config", "show", "-c", "b.yaml", "--json").json["train"]["epochs"] == 9
    assert "b.yaml: valid" in answer("config", "check", "-c", "b.yaml").stdout
    assert {"data", "text", "embedding", "model", "train"} <= set(answer("config", "schema").json["properties"])


def test_the_cache_is_listed_by_kind_and_cleared_by_kind_or_as_a_whole(
    sets: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(folder / "cache"))
    answer("train", *sets, "--dry-run")
    entries = answer("cache", "--json").json["entries"]
    kind = entries[0]["kind"]
    assert all(entry["bytes"] > 0 and Path(entry["path"]).exists() and entry["last_used"] for entry in entries)
    assert kind in answer("cache").stdout
    removed = answer("cache", "--clear", kind, "--json").json["removed"]
    assert {entry["kind"] for entry in removed} == {kind}
    assert len(answer("cache", "--json").json["entries"]) == len(entries) - len(removed)
    answer("cache", "--clear", "all")
    assert answer("cache", "--json").json["entries"] == []


def test_a_finished_run_is_trained_on(trained_run: Path, reviews_csv: Path, tmp_path: Path) -> None:
    given = ["--from", trained_run, "--set", f"data.train={reviews_csv}", "--output-dir", tmp_path, "--json"]
    answer("train", *given, "--set", "train.epochs=1")
    before, run = RunDirectory(trained_run), RunDirectory(tmp_path / f"{trained_run.name}-continued")
    assert run.load_config().model.init_from == str(trained_run)
    first, continued = (json.loads((f.path / "history.jsonl").read_text().splitlines()[0]) for f in (before, run))
    assert continued["valid/log_loss"] < first["valid/log_loss"] - 0.05


def test_without_a_valid_split_the_epoch_is_chosen_on_train(reviews_csv: Path, tmp_path: Path) -> None:
    given = ["--set", f"data.train={reviews_csv}", "--set", "data.valid=null", "--output-dir", tmp_path, "--json"]
    tiny = [word for option in (*TINY, "train.epochs=1") for word in ("--set", option)]
    outcome = answer("train", *given, *tiny)
    assert outcome.json["text/train/texts"] == outcome.json["text/valid/texts"] == 240
    assert "data.valid: null" in " ".join(outcome.json["data/notes"])
    for key, value in (("model.ngrams", "nbsvm"), ("train.reject", "0.9")):
        refused = run_cli("train", *given, *tiny, "--set", f"{key}={value}", "--set", "name=other")
        assert refused.code == 2
        assert key.partition(".")[2] in refused.stderr
        assert not (tmp_path / "other").exists()  # before any training
