"""What users get wrong: each ends with its exit code and one message that names key, file and line; nothing is lost."""

import contextlib
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training.loop import Trainer
from tests.command_line import Outcome, contents, run_cli, spawn_cli
from tests.conftest import reviews
from tests.training.runs import flip

pytestmark = pytest.mark.usefixtures("light")

BASE = """\
name: new
data: {train: reviews.csv, test: 0.2}
text: {max_length: 20}
embedding: {dim: 8}
model: {hidden_size: 8}
train: {epochs: 1, batch_size: 16, threads: 1}
"""
TABLE = "text,label\n" + "".join(f"{text},{label}\n" for text, label in reviews(60))
DATA = "data: {train: reviews.csv}\n"

CONFIGS: list[tuple[str | bytes, str]] = [
    (DATA + "train: {epochss: 3}\n", "bad.yaml:2: 'epochss' 'epochs'"),
    ("data: {trian: a}\nmodel: {cell: lsmt}\n", "bad.yaml: 2 bad.yaml:1: 'trian' data.train bad.yaml:2: 'lstm'"),
]
USAGE = [
    ("train -c bse.yaml", "bse.yaml: read"),
    ("train", "data.train -c FILE"),
    ("train -c base.yaml --device cuda:99", "'cuda:99' --device cpu"),
    ("train -c base.yaml -o ''", "--output-dir '': character"),
    (
        "train -c base.yaml --processes 0 --seed=-1 --set train.device=gpu",
        "3 --seed -1: --processes 0: train.device=gpu:",
    ),
    ("train -c base.yaml --resume --overwrite", "--resume --overwrite"),
    ("train -c base.yaml --set name=tiny", "runs/tiny --resume --overwrite"),
    ("train -c runs/tiny/config.yaml -o runs --resume --set train.epochs=9", "runs/tiny train.epochs: 4 -> 9"),
    ("cache --clear nonsense", "--clear nonsense"),
    ("predict", "--input FILE"),
    ("predict x --input reviews.csv", "--input texts"),
    ("predict --input reviews.csv --explain", "--explain --input"),
    ("predict --input reviews.csv --output ./reviews.csv", "reviews.csv --output"),
    ("eval --fail-under 90", "--fail-under"),
    ("inspect --run runs/tiny --data reviews.csv", "--data --run"),
    ("init --data reviews.csv -o base.yaml", "base.yaml --overwrite"),
    *((f"{command} {'a' * 300}", "aaa long shorter") for command in ("predict x --run", "baseline -c base.yaml -o")),
]
TABLES: list[tuple[str | bytes, str]] = [
    ("text,label\n" + "fine,pos\n" * 20, "t.csv 'pos' two"),
    (TABLE.encode() + b"caf\xe9,pos\n", "t.csv:62: 0xe9 data.encoding"),
    (TABLE + "a,b,c\n", "t.csv:62: 3 fields"),
    ("text,label\na,pos\nb,neg\nc,pos\nd,neg\n", "data.valid 0.1"),
]
FILES = [
    ("train -c base.yaml --set data.train=review.csv", "review.csv"),
    ("train -c base.yaml --set data.format=jsonl", "reviews.csv:1: JSON"),
    ("train -c base.yaml --set text.min_freq=100000", "text.min_freq 100000"),
    ("train -c base.yaml --set embedding.init=./v.txt", "v.txt embedding.init"),
    ("train -c base.yaml --set 'train.class_weights={pos: 1, neg: 1, good: 2}'", "train.class_weights 'good' neg"),
    ("predict --input reviews.csv --text-column body", "reviews.csv:1: 'body'"),
    ("init --data review.csv", "review.csv"),
]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def change(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


DAMAGES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("predict x", "model.safetensors", flip, "damaged"),
    ("predict x", "labels.json", change("pos", "positive"), ""),
    ("predict x", "config.yaml", change("hidden_size", "hidden"), "'hidden'"),
    ("eval", "metrics.json", Path.unlink, "missing"),
    ("eval", "environment.json", cut_off, "damaged"),
]
"""A command, a file of the newest run, what happens to the file, and what is said of it."""
NO_RUNS = [
    ("predict x --run runs/nope", "runs/nope"),
    ("predict x --run runs", "runs/config.yaml"),
    ("predict x --run reviews.csv", "reviews.csv"),
    ("predict x --run bundle", "bundle run"),
    ("eval --run bundle", "bundle run"),
]
CASES: list[tuple[str, int, str, dict[str, str | bytes]]] = [
    *(("train -c bad.yaml", 2, words, {"bad.yaml": text}) for text, words in CONFIGS),
    ("train -c base.yaml --set train.epoch=3", 2, "train.epoch=3 'epochs'", {}),
    *((command, 2, words, {}) for command, words in USAGE),
    *(("train -c base.yaml --set data.train=t.csv", 3, words, {"t.csv": text}) for text, words in TABLES),
    ("train -c base.yaml --set data.test=t.csv", 3, "t.csv:2: 'hm' neg pos", {"t.csv": "text,label\nx,hm\n"}),
    ("eval --data t.csv", 3, "t.csv:2: 'hm' neg pos", {"t.csv": "text,label\nx,hm\n"}),
    ("predict --input t.csv --output out.csv", 3, "t.csv:62: 3 fields", {"t.csv": TABLE + "a,b,c\n"}),
    *((command, 3, words, {}) for command, words in FILES),
    ("init --data t.jsonl", 3, "t.jsonl: no columns", {"t.jsonl": "{}\n{}\n"}),
    *((command, 4, words, {"bundle/model.onnx": ""}) for command, words in NO_RUNS),
]


@pytest.fixture
def folder(tmp_path: Path, reviews_csv: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: some reviews, a valid config, and a finished run."""
    shutil.copy(reviews_csv, tmp_path / "reviews.csv")
    (tmp_path / "base.yaml").write_text(BASE, "utf-8")
    shutil.copytree(trained_run, tmp_path / "runs/tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(outcome: Outcome, code: int, *names: str) -> None:
    """Asserts that a command failed with one message that names what is wrong."""
    assert outcome.code == code, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(outcome.errors) == 1, outcome.stderr
    message = outcome.stderr[outcome.stderr.index(outcome.errors[0]) :]
    assert [name for name in names if name not in message] == [], message


@pytest.mark.parametrize(("command", "code", "words", "files"), CASES)
def test_an_error_has_its_exit_code_and_one_message_and_nothing_is_lost(
    command: str, code: int, words: str, files: dict[str, str | bytes], folder: Path
) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = contents(folder)
    outcome = run_cli(*shlex.split(command))
    check(outcome, code, *words.split())
    assert outcome.stdout == ""
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    assert not (folder / "out.csv").exists()


@pytest.mark.parametrize(("command", "name", "damage", "words"), DAMAGES)
def test_a_damaged_run_is_named_with_the_file(
    command: str, name: str, damage: Callable[[Path], object], words: str, folder: Path
) -> None:
    damage(folder / "runs/tiny" / name)
    check(run_cli(*command.split()), 4, "runs/tiny", name, words)


def test_data_that_have_changed_since_training_are_not_evaluated_as_the_test_split(folder: Path) -> None:
    change('"data_digest": "', '"data_digest": "0')(folder / "runs/tiny/environment.json")
    check(run_cli("eval"), 3, "runs/tiny", "changed", "--data")


@pytest.mark.parametrize("setting", ["--set data.train=nope.csv", "--device cuda:99"])
def test_an_earlier_run_is_not_deleted_before_the_new_one_can_start(setting: str, folder: Path) -> None:
    before = contents(folder / "runs/tiny")
    assert run_cli("train", "-c", "base.yaml", "--set", "name=tiny", "--overwrite", *setting.split()).code in (2, 3)
    after = contents(folder / "runs/tiny")
    assert {name: after.get(name) for name in before} == before


def test_a_run_that_could_not_start_is_not_in_the_way_of_the_fixed_one(folder: Path) -> None:
    assert run_cli("train", "-c", "base.yaml", "--set", "data.train=review.csv").code == 3
    assert run_cli("train", "-c", "base.yaml", "-q").code == 0
    (folder / "runs/new/notes.txt").write_text("mine", "utf-8")
    assert run_cli("train", "-c", "base.yaml", "--overwrite", "-q").code == 0
    assert (folder / "runs/new/notes.txt").read_text("utf-8") == "mine"  # no file of a run


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """Lets no file grow beyond some kilobytes, which the system reports as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_with_6_and_names_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli("train", "-c", "base.yaml", "--dry-run").code == 0  # the data are in the cache now
    (folder / "out.csv").write_text("old", "utf-8")
    with small_disk():
        check(run_cli("train", "-c", "base.yaml"), 6, "runs/new/checkpoints/", "no room left")
        check(run_cli("predict", "--input", "reviews.csv", "--output", "out.csv"), 6, "out.csv", "no room left")
        monkeypatch.setenv("BILSTM_CLS_CACHE", str(folder / "cache"))
        outcome = run_cli("train", "-c", "base.yaml", "--set", "name=other")
        check(outcome, 6, str(folder / "cache"), "BILSTM_CLS_CACHE")
    assert not list(folder.rglob("*.tmp"))
    assert (folder / "out.csv").read_text("utf-8") == "old"
    assert {path.suffix for path in (folder / "cache").rglob("*") if path.is_file()} <= {".lock"}


OUT_OF_MEMORY = [
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("could not execute a primitive"),
    MemoryError(),
]


PREDICTING = ("predict x", (BiLSTMClassifier, "forward"))


@pytest.mark.parametrize(
    ("command", "where", "error"),
    [*((*PREDICTING, error) for error in OUT_OF_MEMORY), ("train -c base.yaml", (Trainer, "step"), MemoryError())],
    ids=["torch", "onednn", "python", "training"],
)
def test_too_little_memory_ends_with_6_and_advice(
    command: str, where: tuple[type, str], error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*where, fail)
    check(run_cli(*command.split()), 6, "out of memory", "train.batch_size", "text.max_length")


def test_too_little_memory_to_start_ends_with_6_where_libraries_would_abort(folder: Path) -> None:
    command = f"ulimit -v 620000; exec {shlex.quote(sys.executable)} -m bilstm_cls predict x"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    check(Outcome(done.returncode, done.stdout, done.stderr), 6, "out of memory")


def test_a_bug_of_ours_ends_with_1_and_a_traceback_to_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(BiLSTMClassifier, "forward", fail)
    outcome = run_cli("predict", "x")
    assert outcome.code == 1
    assert "Traceback" in outcome.stderr
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("internal error: this is a bug in bilstm-cls")
    assert "ZeroDivisionError: division by zero" in last


def test_a_process_ends_as_its_exit_code_says(folder: Path) -> None:
    check(spawn_cli("eval", "--fail-under", "1", "--run", "runs/tiny", "-q", "--json", cwd=folder), 7, "--fail-under")
