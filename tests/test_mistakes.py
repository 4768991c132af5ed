"""What users get wrong: each mistake has its exit code and one message that says where it is, and nothing is lost."""

import contextlib
import json
import resource
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training.loop import Trainer
from tests.command_line import Outcome, contents, run_cli, spawn_cli
from tests.conftest import reviews

BASE = """\
name: new
data: {train: reviews.csv, test: 0.2}
text: {max_length: 20}
embedding: {dim: 8}
model: {hidden_size: 8}
train: {epochs: 1, batch_size: 16, threads: 1}
"""
TABLE = "text,label\n" + "".join(f"{text},{label}\n" for text, label in reviews(60))
TRAIN = "train -c base.yaml --set "


@dataclass(frozen=True)
class Mistake:
    """A command that must fail, in a folder with `reviews.csv`, `base.yaml` and a finished run under `runs/tiny`.

    Attributes:
        says: the mistake in words.
        command: what is typed.
        code: the exit code of design section 2.
        names: what the message has to name.
        files: written before, by name.
        prepare: done to the folder before.
    """

    says: str
    command: str
    code: int
    names: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda folder: None


def flip_bit(name: str) -> Callable[[Path], object]:
    def flip(folder: Path) -> None:
        path = folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return flip


def cut_in_half(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def change(name: str, old: str, new: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), "utf-8")

    return replace


def interrupt_and_damage(run: Path) -> None:
    (run / "model.safetensors").unlink()
    status = json.loads((run / "status.json").read_text("utf-8"))
    (run / "status.json").write_text(json.dumps({**status, "status": "stopped"}), "utf-8")
    for checkpoint in (run / "checkpoints").glob("*.json"):
        flip_bit(checkpoint.name)(checkpoint.parent)


CONFIG_MISTAKES = [
    Mistake(
        "an unknown key is named with its line and the likely one", "train -c bad.yaml", 2,
        ("bad.yaml:2:", "'epochss'", "'epochs'"), {"bad.yaml": "data: {train: reviews.csv}\ntrain: {epochss: 3}\n"},
    ),
    Mistake(
        "a key in the wrong section is told where it belongs", "train -c bad.yaml", 2,
        ("bad.yaml:2:", "'learning_rate'", "train.learning_rate"),
        {"bad.yaml": "data: {train: reviews.csv}\nlearning_rate: 3\n"},
    ),
    Mistake(
        "a value of the wrong type is shown", "train -c bad.yaml", 2, ("bad.yaml:3:", "train.epochs", "'many'"),
        {"bad.yaml": "data: {train: reviews.csv}\ntrain:\n  epochs: many\n"},
    ),
    Mistake(
        "a value out of range is shown with its limit", "train -c bad.yaml", 2,
        ("bad.yaml:2:", "model.dropout", "less than 1", "1.5"),
        {"bad.yaml": "data: {train: reviews.csv}\nmodel: {dropout: 1.5}\n"},
    ),
    Mistake("a config that is not there has near names told", "train -c bse.yaml", 2, ("bse.yaml", "base.yaml")),
    Mistake("a config that is a folder", "train -c runs", 2, ("runs", "folder", "config.yaml")),
    Mistake(
        "a config that is not YAML", "train -c bad.yaml", 2, ("bad.yaml:", "YAML"), {"bad.yaml": "data: {train: [\n"},
    ),
    Mistake(
        "a key given twice names both lines", "train -c bad.yaml", 2, ("bad.yaml:2:", "'seed'", "line 1"),
        {"bad.yaml": "seed: 1\nseed: 2\n"},
    ),
    Mistake("an empty config", "train -c bad.yaml", 2, ("bad.yaml:1:", "empty"), {"bad.yaml": "# nothing yet\n"}),
    Mistake(
        "a config that is not UTF-8", "train -c bad.yaml", 2, ("bad.yaml:2:", "0xe9"),
        {"bad.yaml": b"seed: 1\n# caf\xe9\n"},
    ),
    Mistake(
        "a config that names no data", "train -c bad.yaml", 2, ("bad.yaml", "data.train"), {"bad.yaml": "seed: 1\n"},
    ),
    Mistake("training without any config", "train", 2, ("data.train", "-c FILE")),
    Mistake("a plan without any config", "train --dry-run", 2, ("data.train", "-c FILE")),
    Mistake("an override without a value", TRAIN + "train.epochs", 2, ("train.epochs", "key.path=value")),
    Mistake("an override of an unknown key", TRAIN + "train.epoch=3", 2, ("train.epoch=3", "'epochs'")),
    Mistake("an override of a whole section", TRAIN + "train=3", 2, ("'train'", "section")),
    Mistake("a name that leads elsewhere", TRAIN + "name=../x", 2, ("name", "'../x'")),
    Mistake("a seed below zero", "train -c base.yaml --seed -1", 2, ("error: --seed -1: must be at least 0",)),
    Mistake("an unknown codec", TRAIN + "data.encoding=utf-9", 2, ("data.encoding", "'utf-9'")),
    Mistake(
        "fractions that leave nothing to train on", TRAIN + "data.valid=0.9", 2,
        ("data.test", "0.2", "valid takes 0.9"),
    ),
    Mistake(
        "an unknown score to select by", TRAIN + "train.select_by=valid/acc", 2,
        ("train.select_by", "'valid/acc'", "valid/accuracy"),
    ),
    Mistake("a file for a built-in corpus", TRAIN + "data.source=imdb", 2, ("data.train", "'imdb'")),
    Mistake(
        "glove vectors of another width", TRAIN + "embedding.init=glove-6b-50d", 2,
        ("base.yaml:4:", "embedding.dim", "50"),
    ),
    Mistake("an unknown device to train on", "train -c base.yaml --device gpu", 2, ("error: --device gpu: must",)),
    Mistake("no name of an output directory", "train -c base.yaml -o ''", 2, ("error: --output-dir '': must be text",)),
    Mistake(
        "options beside an override", "train -c base.yaml --processes 0 --seed=-1 --set train.device=gpu", 2,
        ("3 problems", "--seed -1: must be", "--processes 0: must be at least 1", "--set train.device=gpu: must be"),
    ),
    Mistake("a CUDA device that is not here", "train -c base.yaml --device cuda:99", 2, ("'cuda:99'", "--device cpu")),
    Mistake("a check of a config with an unknown key", "config check --set x=1", 2, ("x=1", "'x'")),
    Mistake(
        "a weight for an unknown label", TRAIN + "train.class_weights='{pos: 1, neg: 1, good: 2}'", 3,
        ("train.class_weights", "'good'", "neg", "pos"),
    ),
    Mistake("a label without a weight", TRAIN + "train.class_weights='{pos: 1}'", 3, ("train.class_weights", "'neg'")),
]  # fmt: skip

DATA_MISTAKES = [
    Mistake(
        "a data file that is not there has near names told", TRAIN + "data.train=review.csv", 3,
        ("review.csv", "reviews.csv"),
    ),
    Mistake(
        "a data file in a folder that is not there", TRAIN + "data.train=no/reviews.csv", 3,
        ("no/reviews.csv", "folder no"),
    ),
    Mistake(
        "a table without the text column", TRAIN + "data.train=t.csv", 3, ("t.csv:1:", "'text'", "'review'"),
        {"t.csv": "review,label\nfine,pos\n"},
    ),
    Mistake(
        "a table without the label column", TRAIN + "data.train=t.csv", 3, ("t.csv:1:", "'label'", "'mood'"),
        {"t.csv": "text,mood\nfine,pos\n"},
    ),
    Mistake(
        "a column that is there twice", TRAIN + "data.train=t.csv", 3, ("t.csv:1:", "'text'", "twice"),
        {"t.csv": "text,text,label\na,b,pos\n"},
    ),
    Mistake(
        "texts of one label only", TRAIN + "data.train=t.csv", 3, ("t.csv", "'pos'", "two"),
        {"t.csv": "text,label\n" + "fine,pos\n" * 20},
    ),
    Mistake("an empty data file", TRAIN + "data.train=t.csv", 3, ("t.csv", "empty"), {"t.csv": ""}),
    Mistake(
        "a data file of a header only", TRAIN + "data.train=t.csv", 3, ("t.csv", "header", "no rows"),
        {"t.csv": "text,label\n"},
    ),
    Mistake(
        "a byte that is not of the encoding", TRAIN + "data.train=t.csv", 3, ("t.csv:62:", "0xe9", "data.encoding"),
        {"t.csv": TABLE.encode() + b"caf\xe9,pos\n"},
    ),
    Mistake(
        "another encoding's mark", TRAIN + "data.train=t.csv", 3, ("t.csv", "utf-16", "data.encoding"),
        {"t.csv": TABLE.encode("utf-16")},
    ),
    Mistake(
        "a quote that never closes", TRAIN + "data.train=t.csv", 3, ("t.csv:62:", "quote"),
        {"t.csv": TABLE + '"never closed,pos\nfine,pos\ndull,neg\n'},
    ),
    Mistake(
        "a row with too many fields", TRAIN + "data.train=t.csv", 3, ("t.csv:62:", "3 fields", "2"),
        {"t.csv": TABLE + "a,b,c\n"},
    ),
    Mistake(
        "a row with too few fields", TRAIN + "data.train=t.csv", 3, ("t.csv:62:", "1 field", "2"),
        {"t.csv": TABLE + "lonely\n"},
    ),
    Mistake(
        "a test label that train does not have", TRAIN + "data.test=t.csv", 3, ("t.csv:3:", "'neutral'", "neg, pos"),
        {"t.csv": "text,label\ngood,pos\nhm,neutral\n"},
    ),
    Mistake(
        "a row with an empty label", TRAIN + "data.train=t.csv", 3, ("t.csv:62:", "label is empty"),
        {"t.csv": TABLE + "nice,\n"},
    ),
    Mistake(
        "a table whose rows are all skipped", TRAIN + "data.train=t.csv --set data.bad_rows=skip", 3,
        ("t.csv", "no text to train on", "2 rows", "t.csv:2:"), {"t.csv": "text,label\na,\nb,\n"},
    ),
    Mistake(
        "too few texts for a test split", TRAIN + "data.train=t.csv", 3, ("data.test", "0.2 of 4 texts"),
        {"t.csv": "text,label\na,pos\nb,neg\nc,pos\nd,neg\n"},
    ),
    Mistake(
        "too few texts for a valid split", TRAIN + "data.train=t.csv --set data.test=null", 3,
        ("data.valid", "0.1 of 4 texts"), {"t.csv": "text,label\na,pos\nb,neg\nc,pos\nd,neg\n"},
    ),
    Mistake("a format that the file is not in", TRAIN + "data.format=jsonl", 3, ("reviews.csv:1:", "JSON")),
    Mistake("a file where a folder is expected", TRAIN + "data.format=folder", 3, ("reviews.csv", "'folder'")),
    Mistake(
        "a folder without folders for its labels", TRAIN + "data.train=texts", 3, ("texts", "LABEL"),
        prepare=lambda folder: (folder / "texts").mkdir(),
    ),
    Mistake("a spreadsheet", TRAIN + "data.train=t.xlsx", 3, ("t.xlsx", "CSV"), {"t.xlsx": b"PK\3\4"}),
    Mistake(
        "JSON lines with a broken line", TRAIN + "data.train=t.jsonl", 3, ("t.jsonl:2:", "JSON"),
        {"t.jsonl": '{"text": "a", "label": "pos"}\n{"text": \n'},
    ),
    Mistake(
        "a JSON array for JSON lines", TRAIN + "data.train=t.jsonl", 3, ("t.jsonl:1:", "array"),
        {"t.jsonl": '[{"text": "a", "label": "pos"}]\n'},
    ),
    Mistake("a test file that is not there", TRAIN + "data.test=test.csv", 3, ("test.csv",)),
    Mistake("an empty test file", TRAIN + "data.test=t.csv", 3, ("t.csv", "no rows"), {"t.csv": "text,label\n"}),
    Mistake("a valid file that is not there", TRAIN + "data.valid=valid.csv", 3, ("valid.csv",)),
    Mistake("an unlabelled file that is not there", TRAIN + "data.unlabelled=more.txt", 3, ("more.txt",)),
    Mistake("a frequency that leaves no vocabulary", TRAIN + "text.min_freq=100000", 3, ("text.min_freq", "100000")),
    Mistake("vectors that are not there", TRAIN + "embedding.init=./v.txt", 3, ("v.txt", "embedding.init")),
    Mistake(
        "vectors with a damaged line", TRAIN + "embedding.init=./v.txt", 3, ("v.txt:2:", "x"),
        {"v.txt": "good 1 2 3 4 5 6 7 8\nbad 1 2 3 x 5 6 7 8\n"},
    ),
    Mistake(
        "vectors of another width", TRAIN + "embedding.init=./v.txt", 3, ("v.txt", "3 numbers", "embedding.dim"),
        {"v.txt": "good 1 2 3\nbad 1 2 3\n"},
    ),
    Mistake(
        "vectors of other words", TRAIN + "embedding.init=./v.txt", 3, ("v.txt", "no vector"),
        {"v.txt": "zork 1 2 3 4 5 6 7 8\n"},
    ),
    Mistake(
        "binary vectors that are cut", TRAIN + "embedding.init=./v.bin", 3, ("v.bin", "vector 1 of 2"),
        {"v.bin": b"2 8\ngood 0123"},
    ),
    Mistake(
        "compressed vectors that are not", TRAIN + "embedding.init=./v.gz", 3, ("v.gz",),
        {"v.gz": "good 1 2 3 4 5 6 7 8\n"},
    ),
]  # fmt: skip

RUN_MISTAKES = [
    Mistake(
        "no run to predict with", "predict x", 2, ("runs", "--run DIR"),
        prepare=lambda folder: shutil.rmtree(folder / "runs"),
    ),
    Mistake("no run to judge", "eval", 2, ("runs", "--run DIR"), prepare=lambda folder: shutil.rmtree(folder / "runs")),
    Mistake("a run that is not there", "predict x --run runs/nope", 4, ("runs/nope",)),
    Mistake("a folder that is no run", "predict x --run runs", 4, ("runs", "no finished model")),
    Mistake("a file for a run", "predict x --run reviews.csv", 4, ("reviews.csv",)),
    Mistake(
        "a model with a flipped bit", "predict x", 4, ("runs/tiny/model.safetensors", "damaged"),
        prepare=flip_bit("runs/tiny/model.safetensors"),
    ),
    Mistake(
        "a model that is cut", "predict x", 4, ("runs/tiny/model.safetensors", "damaged"),
        prepare=cut_in_half("runs/tiny/model.safetensors"),
    ),
    Mistake(
        "a damaged tokenizer", "predict x", 4, ("runs/tiny/tokenizer.json", "damaged"),
        prepare=cut_in_half("runs/tiny/tokenizer.json"),
    ),
    Mistake(
        "a missing tokenizer", "predict x", 4, ("runs/tiny/tokenizer.json", "missing"),
        prepare=remove("runs/tiny/tokenizer.json"),
    ),
    Mistake(
        "another tokenizer", "predict x", 4, ("runs/tiny", "tokenizer.json"),
        prepare=change("runs/tiny/tokenizer.json", "good", "gold"),
    ),
    Mistake(
        "damaged labels", "predict x", 4, ("runs/tiny/labels.json", "damaged"),
        prepare=change("runs/tiny/labels.json", "]", ""),
    ),
    Mistake(
        "changed labels", "predict x", 4, ("runs/tiny", "labels.json"),
        prepare=change("runs/tiny/labels.json", "pos", "positive"),
    ),
    Mistake(
        "missing labels", "predict x", 4, ("runs/tiny/labels.json", "missing"),
        prepare=remove("runs/tiny/labels.json"),
    ),
    Mistake(
        "a run's config with an unknown key", "predict x", 4, ("runs/tiny/config.yaml:", "'hidden'"),
        prepare=change("runs/tiny/config.yaml", "hidden_size", "hidden"),
    ),
    Mistake(
        "a run's config of another size", "predict x", 4, ("runs/tiny", "config.yaml"),
        prepare=change("runs/tiny/config.yaml", "hidden_size: 8", "hidden_size: 9"),
    ),
    Mistake(
        "a run without its config", "predict x", 4, ("runs/tiny/config.yaml",),
        prepare=remove("runs/tiny/config.yaml"),
    ),
    Mistake(
        "a run without its metrics", "eval", 4, ("runs/tiny/metrics.json", "missing"),
        prepare=remove("runs/tiny/metrics.json"),
    ),
    Mistake(
        "a run with a damaged environment", "eval", 4, ("runs/tiny/environment.json", "damaged"),
        prepare=cut_in_half("runs/tiny/environment.json"),
    ),
    Mistake(
        "data that have changed since training", "eval", 3, ("runs/tiny", "changed", "--data"),
        prepare=change("runs/tiny/environment.json", '"data_digest": "', '"data_digest": "0'),
    ),
    *(
        Mistake(
            f"an exported bundle for a run: {command}", f"{command} --run runs/x-onnx", 4,
            ("runs/x-onnx: is an exported bundle", "give the run", "bilstm_cls.runtime runs/x-onnx TEXT"),
            {"runs/x-onnx/model.onnx": b""},
        )
        for command in ("predict x", "eval", "report", "export", "serve --port 0", "inspect", "doctor")
    ),
    Mistake(
        "a damaged model that is inspected", "inspect --run runs/tiny", 4, ("runs/tiny/model.safetensors",),
        prepare=flip_bit("runs/tiny/model.safetensors"),
    ),
    Mistake(
        "a damaged model that the doctor sees", "doctor --run runs/tiny", 4, ("runs/tiny/model.safetensors",),
        prepare=flip_bit("runs/tiny/model.safetensors"),
    ),
    Mistake(
        "a run that is there already", "train -c base.yaml --set name=tiny", 2,
        ("runs/tiny", "--resume", "--overwrite"),
    ),
    Mistake(
        "a run resumed with another config", "train -c runs/tiny/config.yaml -o runs --resume --set train.epochs=9", 2,
        ("runs/tiny", "train.epochs: 4 -> 9"),
    ),
    Mistake("resume and overwrite together", "train -c base.yaml --resume --overwrite", 2, ("--resume", "--overwrite")),
    Mistake("an output directory that is a file", "train -c base.yaml -o reviews.csv", 2, ("reviews.csv", "-o")),
    Mistake(
        "an output directory below a file", "train -c base.yaml -o reviews.csv/runs", 2, ("reviews.csv/runs", "-o"),
    ),
    Mistake("an output directory that cannot be written", "train -c base.yaml -o /proc/runs", 2, ("/proc/runs", "-o")),
    Mistake("a run directory that is a file", "train -c base.yaml", 2, ("runs/new", "-o"), {"runs/new": "mine"}),
]  # fmt: skip

OTHER_MISTAKES = [
    Mistake("an unknown option", "train --epoch 3", 2, ("--epoch",)),
    Mistake("an unknown command", "fit", 2, ("'fit'",)),
    Mistake("a word too many", "train reviews.csv", 2, ("reviews.csv",)),
    Mistake("a number that is none", "tune --trials many", 2, ("--trials",)),
    Mistake("a number out of range", "tune --trials 0", 2, ("--trials",)),
    Mistake("nothing to predict", "predict", 2, ("--input FILE",)),
    Mistake("texts and a file to predict", "predict x --input reviews.csv", 2, ("--input", "texts")),
    Mistake("a file to explain", "predict --input reviews.csv --explain", 2, ("--explain", "--input")),
    Mistake("gates of two texts", "predict a b --gates gates.png", 2, ("--gates", "one text", "2")),
    Mistake("gates in a file of an unknown kind", "predict a --gates gates.txt", 2, ("--gates", "gates.txt", ".png")),
    Mistake("a bundle of a run that is not there", "export --run runs/nope", 4, ("runs/nope",)),
    Mistake("an output without an input", "predict x --output out.csv", 2, ("--output", "--input")),
    Mistake("an output of an unknown kind", "predict --input reviews.csv --output out.xlsx", 2, ("out.xlsx", ".jsonl")),
    Mistake(
        "an output that is the input", "predict --input reviews.csv --output ./reviews.csv", 2,
        ("reviews.csv", "--output"),
    ),
    Mistake(
        "an output below a file", "predict --input reviews.csv --output base.yaml/out.csv", 2, ("base.yaml/out.csv",),
    ),
    Mistake(
        "an output that is a folder", "predict --input reviews.csv --output runs.csv", 2, ("runs.csv",),
        prepare=lambda folder: (folder / "runs.csv").mkdir(),
    ),
    Mistake("an input that is not there", "predict --input review.csv", 3, ("review.csv", "reviews.csv")),
    Mistake(
        "an input without the text column", "predict --input t.csv", 3, ("t.csv:1:", "'text'", "'review'"),
        {"t.csv": "review\nfine\n"},
    ),
    Mistake(
        "an input without the named column", "predict --input reviews.csv --text-column body", 3,
        ("reviews.csv:1:", "'body'"),
    ),
    Mistake(
        "an input with a ragged row", "predict --input t.csv --output out.csv", 3, ("t.csv:62:", "3 fields"),
        {"t.csv": TABLE + "a,b,c\n"},
    ),
    Mistake("an empty input", "predict --input t.csv", 3, ("t.csv", "empty"), {"t.csv": ""}),
    Mistake(
        "rows of different fields for a table", "predict --input t.jsonl --output out.csv", 3,
        ("row 2", "'id'", ".jsonl"), {"t.jsonl": '{"text": "a"}\n{"text": "b", "id": 3}\n'},
    ),
    Mistake("an unknown device to predict on", "predict x --device gpu", 2, ("--device gpu: must be", "'cpu'")),
    Mistake("a device whose results are wrong", "predict x --device mps", 2, ("error: --device mps: must be", "'mps'")),
    Mistake("an unknown device to judge on", "eval --device tpu", 2, ("error: --device tpu: must be", "'tpu'")),
    Mistake("a CUDA device to judge on that is not here", "eval --device cuda:99", 2, ("'cuda:99'",)),
    Mistake("an unknown device for the doctor", "doctor --device gpu", 2, ("error: --device gpu: must be", "'gpu'")),
    Mistake("an unknown split", "eval --split dev", 2, ("--split", "'dev'", "train, valid, test")),
    Mistake("a split of another file", "eval --split valid --data reviews.csv", 2, ("--split", "--data")),
    Mistake(
        "a file to judge with a label the run does not know", "eval --data t.csv", 3,
        ("t.csv:3:", "'neutral'", "neg, pos"), {"t.csv": "text,label\ngood,pos\nhm,neutral\n"},
    ),
    Mistake(
        "a file to judge without the label column", "eval --data t.csv", 3, ("t.csv:1:", "'label'", "'mood'"),
        {"t.csv": "text,mood\nfine,pos\n"},
    ),
    Mistake("a file to judge that is not there", "eval --data review.csv", 3, ("review.csv", "reviews.csv")),
    Mistake("an unknown format of the file to judge", "eval --data reviews.csv --format cvs", 2, ("'cvs'", "'csv'")),
    Mistake("a percentage for a share", "eval --fail-under 90", 2, ("--fail-under",)),
    Mistake("an unknown baseline", "baseline -c base.yaml --only svm", 2, ("--only", "'svm'", "tfidf")),
    Mistake(
        "baselines that are there already", "baseline -c base.yaml --only tfidf", 2, ("runs/new-tfidf", "--overwrite"),
        {"runs/new-tfidf/status.json": '{"status": "finished"}'},
    ),
    Mistake("two things to inspect", "inspect --run runs/tiny --data reviews.csv", 2, ("--data", "--run")),
    Mistake("a run that is inspected with overrides", "inspect --run runs/tiny --set seed=3", 2, ("--run", "--set")),
    Mistake("a file to inspect that is not there", "inspect --data review.csv", 3, ("review.csv", "reviews.csv")),
    Mistake("a file to begin with that is not there", "init --data review.csv", 3, ("review.csv", "reviews.csv")),
    Mistake("a beginning without data", "init", 2, ("--data",)),
    Mistake(
        "a config that would be written over", "init --data reviews.csv -o base.yaml", 2,
        ("base.yaml", "--overwrite"),
    ),
    Mistake(
        "a config where none can be written", "init --data reviews.csv -o reviews.csv/new.yaml", 2,
        ("reviews.csv/new.yaml",),
    ),
]  # fmt: skip

MISTAKES = [*CONFIG_MISTAKES, *DATA_MISTAKES, *RUN_MISTAKES, *OTHER_MISTAKES]


@pytest.fixture
def folder(tmp_path: Path, reviews_csv: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: some reviews, a sound config, and a finished run."""
    shutil.copy(reviews_csv, tmp_path / "reviews.csv")
    (tmp_path / "base.yaml").write_text(BASE, "utf-8")
    shutil.copytree(trained_run, tmp_path / "runs/tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(outcome: Outcome, code: int, *names: str) -> None:
    """Asserts that a command failed with one message that names the mistake."""
    assert outcome.code == code, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(outcome.errors) == 1, outcome.stderr
    message = outcome.stderr[outcome.stderr.index(outcome.errors[0]) :]
    assert [name for name in names if name not in message] == [], message


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.says.replace(" ", "-"))
def test_a_mistake_is_told_in_one_message_and_nothing_is_lost(mistake: Mistake, folder: Path) -> None:
    for name, content in mistake.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    mistake.prepare(folder)
    before = contents(folder)
    outcome = run_cli(*shlex.split(mistake.command))
    check(outcome, mistake.code, *mistake.names)
    assert outcome.stdout == ""
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    assert not (folder / "out.csv").exists()


def test_there_are_many_mistakes_and_each_has_its_own_name() -> None:
    assert len({mistake.says for mistake in MISTAKES}) == len(MISTAKES) >= 70


def test_all_problems_of_a_config_are_told_at_once(folder: Path) -> None:
    (folder / "bad.yaml").write_text("data: {trian: reviews.csv}\nmodel: {cell: lsmt}\ntrain: {epochs: 0}\n", "utf-8")
    check(
        run_cli("config", "check", "-c", "bad.yaml", "--set", "seed=x"), 2, "5 problems", "bad.yaml:1:", "'trian'",
        "data.train", "bad.yaml:2:", "'lstm'", "bad.yaml:3:", "train.epochs", "seed=x",
    )  # fmt: skip


def test_checkpoints_that_are_all_damaged_are_told_and_kept(folder: Path) -> None:
    interrupt_and_damage(folder / "runs/tiny")
    before = contents(folder / "runs/tiny/checkpoints")
    outcome = run_cli("train", "-c", "runs/tiny/config.yaml", "-o", "runs", "--resume")
    check(outcome, 4, "runs/tiny/checkpoints/last.json", "damaged", "--overwrite")
    assert contents(folder / "runs/tiny/checkpoints") == before


@pytest.mark.parametrize("mistake", ["--set data.train=nope.csv", "--device cuda:99"])
def test_an_earlier_run_is_not_deleted_before_the_new_one_can_start(mistake: str, folder: Path) -> None:
    before = contents(folder / "runs/tiny")
    assert run_cli("train", "-c", "base.yaml", "--set", "name=tiny", "--overwrite", *mistake.split()).code in (2, 3)
    after = contents(folder / "runs/tiny")
    assert {name: after.get(name) for name in before} == before


def test_a_run_that_could_not_start_is_not_in_the_way_of_the_mended_one(folder: Path) -> None:
    assert run_cli("train", "-c", "base.yaml", "--set", "data.train=review.csv").code == 3
    assert run_cli("train", "-c", "base.yaml", "-q").code == 0


def test_overwriting_a_run_leaves_files_that_are_not_its_own(folder: Path) -> None:
    (folder / "runs/tiny/notes.txt").write_text("mine", "utf-8")
    assert run_cli("train", "-c", "base.yaml", "--set", "name=tiny", "--overwrite", "-q").code == 0
    assert (folder / "runs/tiny/notes.txt").read_text("utf-8") == "mine"


@pytest.mark.parametrize(
    ("command", "run"),
    [("train -c base.yaml", "new"), ("train -c base.yaml --overwrite", "new"), ("baseline -c base.yaml", "new-tfidf")],
)
def test_a_run_directory_that_another_process_holds_is_refused(command: str, run: str, folder: Path) -> None:
    (folder / "runs" / run).mkdir()
    with FileLock(folder / "runs" / run / ".lock"):
        check(run_cli(*command.split()), 2, f"runs/{run}", "another run")


@pytest.mark.parametrize("settings", ["train.learning_rate=1e6 train.weight_decay=1e6 train.max_grad_norm=null"])
def test_a_learning_rate_that_diverges_ends_with_5_and_names_step_and_rate(settings: str, folder: Path) -> None:
    overrides = [word for setting in settings.split() for word in ("--set", setting)]
    outcome = run_cli("train", "-c", "base.yaml", *overrides)
    check(outcome, 5, "step", "train.learning_rate")
    assert json.loads((folder / "runs/new/status.json").read_text("utf-8"))["exit_code"] == 5


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """Lets no file grow beyond some kilobytes, which is told as a full disk is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_under_a_checkpoint_ends_with_6_and_names_it(folder: Path) -> None:
    assert run_cli("train", "-c", "base.yaml", "--dry-run").code == 0  # the data are in the cache now
    with small_disk():
        outcome = run_cli("train", "-c", "base.yaml")
    check(outcome, 6, "runs/new/checkpoints/", "no room left")
    assert not list(folder.rglob("*.tmp"))


def test_a_full_disk_under_the_cache_ends_with_6_and_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(folder / "cache"))
    with small_disk():
        outcome = run_cli("train", "-c", "base.yaml")
    check(outcome, 6, str(folder / "cache"), "BILSTM_CLS_CACHE")
    assert [path for path in (folder / "cache").rglob("*") if path.is_file()] == []


def test_a_full_disk_under_predictions_leaves_the_old_ones(folder: Path) -> None:
    (folder / "out.csv").write_text("old", "utf-8")
    with small_disk():
        outcome = run_cli("predict", "--input", "reviews.csv", "--output", "out.csv")
    check(outcome, 6, "out.csv", "no room left")
    assert (folder / "out.csv").read_text("utf-8") == "old"


OUT_OF_MEMORY = [
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "cuda", "python"])
@pytest.mark.parametrize(
    ("command", "where"), [("train -c base.yaml", (Trainer, "step")), ("predict x", (BiLSTMClassifier, "forward"))]
)
def test_too_little_memory_ends_with_6_and_advice(
    command: str, where: tuple[type, str], error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*where, fail)
    check(run_cli(*command.split()), 6, "out of memory", "train.batch_size", "text.max_length")


def test_our_own_mistakes_end_with_1_and_a_traceback_to_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BiLSTMClassifier, "forward", lambda *_: 1 / 0)
    outcome = run_cli("predict", "x")
    assert outcome.code == 1
    assert "Traceback" in outcome.stderr
    assert "internal error: this is a bug in bilstm-cls" in outcome.stderr.splitlines()[-1]


REAL = [
    ("train -c base.yaml --set train.epoch=3", 2, ("'epochs'",)),
    ("train --epoch 3", 2, ("--epoch",)),
    ("config show -c nope.yaml", 2, ("nope.yaml",)),
    ("init --data nope.csv", 3, ("nope.csv",)),
    ("predict x --run runs/nope", 4, ("runs/nope",)),
]


@pytest.mark.parametrize(("command", "code", "names"), REAL, ids=[command for command, _, _ in REAL])
def test_a_process_ends_as_its_exit_code_says(command: str, code: int, names: tuple[str, ...], folder: Path) -> None:
    outcome = spawn_cli(*command.split(), cwd=folder)
    check(outcome, code, *names)
    assert outcome.stdout == ""
