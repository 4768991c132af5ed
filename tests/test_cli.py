import csv
import importlib.metadata
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls import cli
from bilstm_cls.classifier import Classifier
from bilstm_cls.config_file import load_config
from tests.command_line import Outcome, run_cli, spawn_cli
from tests.conftest import TINY

COMMANDS = [
    *([str(command.name or command.callback.__name__)] for command in cli.app.registered_commands if command.callback),
    *(["config", str(command.name)] for command in cli.config_app.registered_commands),
    ["config"],
]
HEAVY = {"torch", "sklearn", "scipy", "matplotlib", "pydantic", "numpy", "yaml", "tokenizers", "pyarrow", "filelock"}
ODD_TEXTS = [
    "a good film",
    "",
    "two\nlines, a comma",
    'she said "bad"',
    "tab\there",
    "cr\rhere",
    " blanks ",
    "fun 😀",
    "",
]


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


def answer(*args: object, stdin: bytes = b"") -> Outcome:
    """Runs a command that has to succeed."""
    outcome = run_cli(*args, stdin=stdin)
    assert outcome.code == 0, outcome.stderr
    return outcome


def imports_of(*args: str, cwd: Path | None = None) -> set[str]:
    """Returns the top-level packages that a command imports in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bilstm_cls", *args],
        capture_output=True, text=True, check=True, cwd=cwd,
    )  # fmt: skip
    return set(re.findall(r"^import time:.*\|\s+(\w+)", done.stderr, re.MULTILINE))


def test_help_is_instant() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert spawn_cli("--help").code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    imported = imports_of("--help")
    assert "typer" in imported
    assert imported & HEAVY == set()


@pytest.mark.parametrize("command", [["config", "show"], ["config", "schema"], ["init", "--data", "reviews.csv"]])
def test_what_needs_no_model_imports_no_torch(command: list[str], reviews_csv: Path) -> None:
    imported = imports_of(*command, cwd=reviews_csv.parent)
    assert "pydantic" in imported
    assert imported & {"torch", "sklearn", "matplotlib"} == set()


def test_the_commands_are_those_that_people_build_on() -> None:
    assert {"train", "eval", "predict", "baseline", "inspect", "init", "doctor", "config show"} <= {
        " ".join(command) for command in COMMANDS
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(command: list[str], option: str) -> None:
    outcome = answer(*command, option)
    assert outcome.stdout.startswith(f"Usage: bilstm-cls {' '.join(command)}")
    assert outcome.stderr == ""


def test_the_version_is_that_of_the_package() -> None:
    assert answer("--version").stdout == importlib.metadata.version("bilstm-cls") + "\n"


def test_no_command_shows_the_help() -> None:
    outcome = run_cli()
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Commands:" in outcome.stderr


def test_train_prints_its_metrics_and_tells_the_rest_on_stderr(sets: list[str], tmp_path: Path) -> None:
    outcome = answer("train", *sets, "--json", "-o", tmp_path)
    assert outcome.json == json.loads((tmp_path / "tiny/metrics.json").read_text("utf-8"))
    assert {"test/accuracy", "test/macro_f1", "valid/accuracy", "train/steps", "time/train_seconds"} <= set(
        outcome.json
    )
    assert outcome.stdout.count("\n") == 1
    assert "epoch 1" in outcome.stderr


def test_train_in_words_names_the_score_and_the_place_and_quiet_says_no_more(sets: list[str], tmp_path: Path) -> None:
    outcome = answer("train", *sets, "-q", "-o", tmp_path)
    assert "accuracy on the test split, 48 texts" in outcome.stdout
    assert str(tmp_path / "tiny/report.html") in outcome.stdout
    assert outcome.stderr == ""


def test_a_finished_run_is_returned_when_it_is_resumed(folder: Path) -> None:
    outcome = answer("train", "-c", "runs/tiny/config.yaml", "-o", "runs", "--resume", "--json")
    assert outcome.json == json.loads((folder / "runs/tiny/metrics.json").read_text("utf-8"))
    assert "finished already" in outcome.stderr


def test_options_go_over_the_file_and_over_overrides(sets: list[str]) -> None:
    plan = answer("train", *sets, "--dry-run", "--json", "-o", "elsewhere", "--seed", "7", "--set", "output_dir=other")
    assert plan.json["run_directory"] == "elsewhere/tiny"


def test_a_plan_counts_texts_and_steps_and_writes_nothing(sets: list[str], tmp_path: Path) -> None:
    outcome = answer("train", *sets, "--dry-run", "--json", "-o", tmp_path / "runs")
    assert outcome.json["texts"] == {"train": 168, "valid": 24, "test": 48}
    assert outcome.json["steps"] == 11
    assert not (tmp_path / "runs").exists()


def test_a_plan_in_words_has_the_same_figures(sets: list[str]) -> None:
    assert "steps: 11\n" in answer("train", *sets, "--dry-run").stdout


def test_eval_repeats_the_scores_of_the_run_to_the_last_bit(folder: Path) -> None:
    metrics = json.loads((folder / "runs/tiny/metrics.json").read_text("utf-8"))
    outcome = answer("eval", "--json")
    assert list(outcome.json) == [
        "split", "examples", "accuracy", "macro_f1", "loss", "ece", "confidence_interval", "per_class"
    ]  # fmt: skip
    assert outcome.json == {
        "split": "test",
        "examples": metrics["test/examples"],
        "accuracy": metrics["test/accuracy"],
        "macro_f1": metrics["test/macro_f1"],
        "loss": metrics["test/log_loss"],
        "ece": metrics["test/ece"],
        "confidence_interval": metrics["test/confidence_interval"],
        "per_class": {
            label: {key: metrics[f"test/per_class/{label}/{key}"] for key in ("precision", "recall", "f1", "support")}
            for label in ("neg", "pos")
        },
    }
    assert outcome.stderr.startswith("using runs/tiny, the newest run\n")


def test_eval_in_words_shows_accuracy_and_every_label(folder: Path) -> None:
    outcome = answer("eval")
    assert outcome.stdout.startswith("test: 48 texts\naccuracy")
    assert re.findall(r"^(neg|pos) ", outcome.stdout, re.MULTILINE) == ["neg", "pos"]


@pytest.mark.parametrize(("split", "examples"), [("train", 168), ("valid", 24), ("test", 48)])
def test_eval_judges_every_split(split: str, examples: int, folder: Path) -> None:
    judged = answer("eval", "--split", split, "--json").json
    assert (judged["split"], judged["examples"]) == (split, examples)


def test_eval_judges_another_file_by_other_columns(folder: Path) -> None:
    (folder / "other.tsv").write_text(
        "id\tmood\treview\n1\tpos\tgood great\n2\tneg\tbad awful\n3\tneg\tfine\n", "utf-8"
    )
    judged = answer("eval", "--data", "other.tsv", "--text-column", "review", "--label-column", "mood", "--json").json
    assert (judged["split"], judged["examples"]) == ("other.tsv", 3)
    assert judged["per_class"]["neg"]["support"] == 2


def test_eval_judges_a_folder_of_texts(folder: Path) -> None:
    for label, text in (("pos", "good great"), ("neg", "bad awful")):
        (folder / "texts" / label).mkdir(parents=True)
        (folder / "texts" / label / "1.txt").write_text(text, "utf-8")
    assert answer("eval", "--data", "texts", "--json").json["examples"] == 2


@pytest.mark.parametrize(("share", "code"), [("0", 0), ("0.5", 0), ("1", 7)])
def test_fail_under_ends_with_7_where_the_accuracy_is_lower(share: str, code: int, folder: Path) -> None:
    outcome = run_cli("eval", "--fail-under", share, "--json", "-q")
    assert outcome.code == code
    assert 0.5 < outcome.json["accuracy"] < 1
    assert ("--fail-under" in outcome.stderr) == bool(code)


def test_predict_answers_arguments_as_the_classifier_does(folder: Path, classifier: Classifier) -> None:
    texts = ["a good film", "", "so bad", "it's 100 % \"fun\", isn't it?\nYes."]
    outcome = answer("predict", "--json", *texts)
    assert [json.loads(line) for line in outcome.stdout.splitlines()] == [
        p.as_dict() for p in classifier.predict(texts)
    ]


def test_predictions_as_json_have_the_keys_that_programs_build_on(folder: Path) -> None:
    prediction = answer("predict", "--json", "a good film " * 20).json
    results = ["label", "probability", "probabilities", "tokens", "truncated", "unknown_tokens"]
    assert list(prediction) == ["text", *results]
    assert prediction["probability"] == prediction["probabilities"][prediction["label"]]
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)
    assert (prediction["tokens"], prediction["truncated"]) == (60, True)


def test_predictions_in_words_are_one_line_each_and_leave_the_terminal_alone(folder: Path) -> None:
    lines = answer("predict", "a good film", "two\nlines\x1b[31m", "-0.5" * 0, "é😀").stdout.split("\n")
    assert [line.split("\t")[2] for line in lines[:4]] == ["a good film", "two\\nlines\\x1b[31m", "", "é😀"]
    assert re.fullmatch(r"(neg|pos)\t0\.\d{4}\t.*", lines[0])
    assert lines[4:] == [""]


def test_data_are_utf_8_whatever_the_locale(folder: Path) -> None:
    outcome = spawn_cli("predict", "--json", "é😀", cwd=folder, PYTHONIOENCODING="latin-1")
    assert outcome.json["text"] == "é😀"


def test_stdin_has_one_text_a_line_and_every_line_its_result(folder: Path) -> None:
    lines = "\ufeffgood\r\n\n two blanks \r\n\t\nlast without end".encode() + b" \xff"
    outcome = answer("predict", "-", "--json", stdin=lines)
    texts = [json.loads(line)["text"] for line in outcome.stdout.splitlines()]
    assert texts == ["good", "", " two blanks ", "\t", "last without end \ufffd"]


def test_stdin_may_stand_among_texts(folder: Path) -> None:
    outcome = answer("predict", "first", "-", "last", "--json", stdin=b"a\nb\n")
    assert [json.loads(line)["text"] for line in outcome.stdout.splitlines()] == ["first", "a", "b", "last"]


def test_no_line_of_stdin_gives_no_result(folder: Path) -> None:
    assert answer("predict", "-").stdout == ""


def write_csv(path: Path, texts: list[str], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "text", "label"], *([i, text, "x"] for i, text in enumerate(texts))])


def write_jsonl(path: Path, texts: list[str]) -> None:
    lines = (json.dumps({"id": str(i), "text": text, "label": "x"}) + "\n" for i, text in enumerate(texts))
    path.write_text("".join(lines), "utf-8")


def write_lines(path: Path, texts: list[str]) -> None:
    path.write_bytes("".join(text + "\n" for text in texts).encode())


def write_tabs(path: Path, texts: list[str]) -> None:
    path.write_bytes(b"id\ttext\tlabel\n" + "".join(f"{i}\t{t}\tx\n" for i, t in enumerate(texts)).encode())


def read_table(path: Path, delimiter: str) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, strict=True))


def read_tabs(path: Path) -> list[dict[str, Any]]:
    """A line a row, and quotes are characters like others."""
    header, *rows = (line.split("\t") for line in path.read_bytes().decode().split("\n")[:-1])
    return [dict(zip(header, row, strict=True)) for row in rows]


ONE_LINE = [text for text in ODD_TEXTS if not re.search("[\t\n\r]", text)]
INPUTS: dict[str, tuple[Callable[[Path, list[str]], None], list[str]]] = {
    "in.csv": (write_csv, ODD_TEXTS),
    "in.jsonl": (write_jsonl, ODD_TEXTS),
    "in.tsv": (write_tabs, ONE_LINE),
    "in.txt": (write_lines, ONE_LINE),
}
OUTPUTS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "out.csv": lambda path: read_table(path, ","),
    "out.tsv": lambda path: read_tabs(path),
    "out.jsonl": lambda path: [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]],
}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("source", INPUTS)
def test_every_row_of_a_file_has_its_result_in_order(
    source: str, target: str, folder: Path, classifier: Classifier
) -> None:
    write, texts = INPUTS[source]
    texts = [text for text in texts if target != "out.tsv" or text in ONE_LINE]
    write(folder / source, texts)
    outcome = answer("predict", "--input", source, "--output", target)
    rows = OUTPUTS[target](folder / target)
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows] == [prediction.label for prediction in classifier.predict(texts)]
    assert outcome.stdout == ""
    assert f"wrote {target}" in outcome.stderr


@pytest.mark.parametrize("target", OUTPUTS)
def test_own_fields_are_kept_beside_the_results(target: str, folder: Path) -> None:
    row = {"id": 7, "text": "good", "label": "x", "probability_pos": "mine", "input_label": "y", "tokens": "t"}
    (folder / "in.jsonl").write_text(json.dumps(row), "utf-8")
    answer("predict", "--input", "in.jsonl", "--output", target)
    (found,) = OUTPUTS[target](folder / target)
    own = ("id", "text", "input_label", "input_probability_pos", "input_input_label", "input_tokens")
    assert [str(found[name]) for name in own] == ["7", "good", "x", "mine", "y", "t"]
    assert (found["label"], str(found["tokens"])) == ("pos", "1")


@pytest.mark.parametrize(("target", "texts"), [("out.csv", ODD_TEXTS), ("out.tsv", ONE_LINE), ("out.jsonl", ODD_TEXTS)])
def test_results_can_be_classified_again(target: str, texts: list[str], folder: Path) -> None:
    write_csv(folder / "in.csv", texts)
    answer("predict", "--input", "in.csv", "--output", target)
    answer("predict", "--input", target, "--output", "again.jsonl")
    assert [row["text"] for row in OUTPUTS["out.jsonl"](folder / "again.jsonl")] == texts


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\r"])
def test_what_a_tsv_cannot_hold_is_named_and_nothing_is_written(text: str, folder: Path) -> None:
    write_csv(folder / "in.csv", ["good", text])
    outcome = run_cli("predict", "--input", "in.csv", "--output", "out.tsv")
    assert outcome.code == 3
    assert f"row 2 has {text!r}, and a tab-separated file can hold no tab" in outcome.stderr
    assert not (folder / "out.tsv").exists()


def test_nested_fields_go_into_a_table_as_json(folder: Path) -> None:
    (folder / "in.jsonl").write_text(
        '{"text": "good", "meta": {"tags": ["é"]}, "none": null}\n{"text": "bad"}', "utf-8"
    )
    answer("predict", "--input", "in.jsonl", "--output", "out.csv")
    rows = read_table(folder / "out.csv", ",")
    assert [(row["meta"], row["none"]) for row in rows] == [('{"tags": ["é"]}', ""), ("", "")]


def test_a_file_without_output_is_answered_on_stdout(folder: Path) -> None:
    write_csv(folder / "in.csv", ODD_TEXTS)
    table = list(csv.DictReader(io.StringIO(answer("predict", "--input", "in.csv").stdout, newline="")))
    lines = [json.loads(line) for line in answer("predict", "--input", "in.csv", "--json").stdout.split("\n")[:-1]]
    assert [row["text"] for row in table] == [row["text"] for row in lines] == ODD_TEXTS


def test_several_columns_of_a_file_are_joined(folder: Path, classifier: Classifier) -> None:
    (folder / "in.csv").write_text("title,body\ngood,film\n", "utf-8")
    outcome = answer("predict", "--input", "in.csv", "--text-column", "title", "--text-column", "body", "--json")
    assert outcome.json["probability"] == classifier.predict(["good\nfilm"])[0].probability
    assert (outcome.json["title"], outcome.json["body"]) == ("good", "film")


def test_a_run_answers_elsewhere_without_its_training_data(folder: Path, reviews_csv: Path, tmp_path: Path) -> None:
    config = folder / "runs/tiny/config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(reviews_csv), "gone.csv"), "utf-8")
    expected = answer("predict", "--json", *ODD_TEXTS).stdout
    shutil.move(folder / "runs/tiny", tmp_path / "moved")
    assert answer("predict", "--json", "--run", tmp_path / "moved", *ODD_TEXTS).stdout == expected


def test_the_newest_run_is_used_and_named(folder: Path) -> None:
    shutil.copytree(folder / "runs/tiny", folder / "runs/newer")
    os.utime(folder / "runs/newer/model.safetensors")
    assert "using runs/newer, the newest run" in answer("predict", "x").stderr
    assert "using" not in answer("predict", "x", "--run", "runs/tiny").stderr


def test_a_reader_that_leaves_early_ends_predict_quietly(folder: Path) -> None:
    (folder / "many.txt").write_text("a good film\n" * 20_000, "utf-8")
    command = [sys.executable, "-m", "bilstm_cls", "predict", "--input", "many.txt", "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=folder, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["text"] == "a good film"
        process.stdout.close()
        assert process.stderr.read() == b"using runs/tiny, the newest run\n"
    assert process.returncode == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_left_before_anything_is_printed_ends_a_command_quietly(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bilstm_cls", "config", "show"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_stream_that_is_closed_gets_nothing(folder: Path, sets: list[str], closed: tuple[int, ...]) -> None:
    """And neither it nor the files that are opened next, which would have its number, are written to by others."""
    streams = " ".join(f"{number}>&-" for number in closed)
    words = shlex.join([sys.executable, "-m", "bilstm_cls", "train", *sets, "--set", "name=silent"])
    assert subprocess.run(["sh", "-c", f"{words} {streams}"], check=False).returncode == 0
    assert (folder / "runs/silent/report.html").exists()


def test_a_notebooks_way_to_draw_does_not_matter(folder: Path, sets: list[str]) -> None:
    outcome = spawn_cli("train", *sets, "--set", "name=drawn", cwd=folder, MPLBACKEND="nonsense")
    assert outcome.code == 0, outcome.stderr
    assert (folder / "runs/drawn/report.html").exists()


def test_ctrl_c_during_the_start_leaves_no_traceback() -> None:
    program = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from bilstm_cls.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_a_current_folder_that_was_deleted_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    words = shlex.join([sys.executable, "-m", "bilstm_cls", "doctor"])
    done = subprocess.run(["sh", "-c", f"rmdir {gone} && {words}"], cwd=gone, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.decode() == "error: the current folder was deleted; change to one that is there\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout_is_told(unbuffered: str) -> None:
    command = [sys.executable, "-m", "bilstm_cls", "config", "show"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    assert (done.returncode, done.stderr) == (6, b"error: output: no room left to write it (No space left on device)\n")


def test_baselines_are_judged_on_the_splits_of_the_model(sets: list[str], folder: Path) -> None:
    outcome = answer("baseline", *sets, "--json", "-o", "runs")
    assert set(outcome.json) == {"tfidf", "nbsvm"}
    assert outcome.json["nbsvm"]["test/examples"] == 48
    assert outcome.json["nbsvm"] == json.loads((folder / "runs/tiny-nbsvm/metrics.json").read_text("utf-8"))
    digests = {
        json.loads((folder / "runs" / name / "environment.json").read_text("utf-8"))["data_digest"]
        for name in ("tiny", "tiny-tfidf", "tiny-nbsvm")
    }
    assert len(digests) == 1


def test_one_baseline_in_words(sets: list[str], tmp_path: Path) -> None:
    outcome = answer("baseline", *sets, "--only", "nbsvm", "-o", tmp_path, "-q")
    assert outcome.stdout.startswith("NB-SVM of 1-3 grams: accuracy ")
    assert "majority class: accuracy 0.5000" in outcome.stdout
    assert outcome.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-nbsvm"]


def test_baselines_are_replaced_when_asked(sets: list[str], tmp_path: Path) -> None:
    first = answer("baseline", *sets, "--only", "nbsvm", "-o", tmp_path, "--json").json
    again = answer("baseline", *sets, "--only", "nbsvm", "-o", tmp_path, "--json", "--overwrite").json
    assert again["nbsvm"]["test/log_loss"] == first["nbsvm"]["test/log_loss"]


def test_inspect_shows_a_config_a_file_and_overrides_alike(sets: list[str], reviews_csv: Path, folder: Path) -> None:
    (folder / "data.yaml").write_text(f"data: {{train: {reviews_csv}}}\n", "utf-8")
    of_config = answer("inspect", "-c", "data.yaml", "--json").json
    of_file = answer("inspect", "--data", reviews_csv, "--json").json
    of_overrides = answer("inspect", "--set", f"data.train={reviews_csv}", "--json").json
    assert of_config == of_file == of_overrides
    assert of_config["rows"]["used"] == 240


def test_inspect_shows_the_newest_run(folder: Path) -> None:
    outcome = answer("inspect", "--json")
    assert (outcome.json["run"], outcome.json["labels"]) == ("runs/tiny", ["neg", "pos"])
    assert "using runs/tiny" in outcome.stderr


def test_inspect_in_words_has_a_line_for_each_finding(folder: Path) -> None:
    lines = answer("inspect").stdout.splitlines()
    assert "run: runs/tiny" in lines
    assert "labels: neg, pos" in lines


def test_init_prints_a_config_that_trains_as_it_is(reviews_csv: Path, folder: Path) -> None:
    outcome = answer("init", "--data", reviews_csv)
    (folder / "new.yaml").write_text(outcome.stdout, "utf-8")
    assert load_config(folder / "new.yaml").data.train == str(reviews_csv)
    assert answer("train", "-c", "new.yaml", "--dry-run", "--json").json["labels"] == ["neg", "pos"]


def test_init_writes_a_file_and_replaces_it_only_when_asked(reviews_csv: Path, folder: Path) -> None:
    outcome = answer("init", "--data", reviews_csv, "-o", "new.yaml", "--set", "train.epochs=77")
    assert (outcome.stdout, load_config(folder / "new.yaml").train.epochs) == ("", 77)
    assert "bilstm-cls train -c new.yaml" in outcome.stderr
    answer("init", "--data", reviews_csv, "-o", "new.yaml", "--overwrite")
    assert load_config(folder / "new.yaml").train.epochs != 77


def test_init_and_inspect_take_what_is_set_instead_of_guessing(folder: Path) -> None:
    long_label = "a label that nobody would take for one because it is so long " * 2
    rows = "".join(f"good film {i},bad plot {i},{long_label}{i % 2}\n" for i in range(30))
    (folder / "odd.csv").write_text("one,two,three\n" + rows, "utf-8")
    sets = ["--set", "data.text_columns=[two]", "--set", "data.label_column=three"]
    assert run_cli("init", "--data", "odd.csv").code == run_cli("inspect", "--data", "odd.csv").code == 3
    (folder / "new.yaml").write_text(answer("init", "--data", "odd.csv", *sets).stdout, "utf-8")
    data = load_config(folder / "new.yaml").data
    assert (data.text_columns, data.label_column) == (["two"], "three")
    labels = answer("inspect", "--data", "odd.csv", *sets, "--json").json["labels"]
    assert labels == [f"{long_label}0", f"{long_label}1"]


def test_config_show_prints_what_loads_to_the_same(reviews_csv: Path, folder: Path) -> None:
    (folder / "a.yaml").write_text(f"seed: 5\ndata: {{train: {reviews_csv}}}\n", "utf-8")
    (folder / "b.yaml").write_text(answer("config", "show", "-c", "a.yaml", "--set", "train.epochs=9").stdout, "utf-8")
    assert load_config(folder / "b.yaml") == load_config(folder / "a.yaml", ["train.epochs=9"])
    assert answer("config", "show", "-c", "b.yaml", "--json").json["train"]["epochs"] == 9


def test_config_check_says_that_a_config_is_valid(folder: Path) -> None:
    assert answer("config", "check", "-c", "runs/tiny/config.yaml").stdout == (
        "runs/tiny/config.yaml: valid (run 'tiny')\n"
    )


def test_config_schema_describes_every_section() -> None:
    schema = answer("config", "schema").json
    assert {"data", "text", "embedding", "model", "train"} <= set(schema["properties"])


def test_doctor_finds_this_machine_sound_and_the_run_whole(folder: Path) -> None:
    findings = answer("doctor", "--run", "runs/tiny", "--device", "cpu", "--json").json
    assert findings["is_sound"] is True
    assert findings["run"] == "runs/tiny: every digest fits"
    assert {"python", "versions", "extras", "device", "threads", "cache", "checks"} <= set(findings)


def test_verbose_and_quiet_change_stderr_alone(folder: Path) -> None:
    plain, verbose, quiet = (answer("eval", "--run", "runs/tiny", *option) for option in ([], ["-v"], ["-q"]))
    assert plain.stdout == verbose.stdout == quiet.stdout
    assert plain.stderr.startswith("test: 48 texts")
    assert plain.stderr in verbose.stderr
    assert quiet.stderr == ""
