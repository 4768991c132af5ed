"""Every command with every feature: it works, or one line says why not. Faults hide in pairs that nobody tried."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.estimator import TextClassifier
from tests.command_line import Outcome, run_cli
from tests.conftest import PRETRAINED, reviews

pytestmark = pytest.mark.usefixtures("light")

TINY = {
    "text.max_length": 12, "text.min_freq": 1, "embedding.dim": 4, "model.hidden_size": 4, "train.epochs": 1,
    "train.batch_size": 16, "train.threads": 1, "data.valid": 0.2, "data.test": 0.2,
}  # fmt: skip

FEATURES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "unlabelled texts": {"data.unlabelled": "more.txt", "train.objective": "virtual_adversarial"},
    "a teacher": {"data.unlabelled": "more.txt", "train.teacher": "auto"},
    "an n-gram model": {"model.ngrams": "nbsvm"},
    "an ensemble": {},
    "bigrams": {"model.bigrams": 50},
    "a pretrained encoder": {"model.init_from": "encoder"},
    "no test split": {"data.test": None},
    "numeric labels": {"data.train": "numbers.csv", "data.label_names": "names.txt"},
    "two processes": {"train.processes": 2},
    "a GRU": {"model.cell": "gru"},
    "several labels": {"data.train": "several.csv", "data.labels": "multi", "model.ngrams": "nbsvm"},
    "several poolings": {"model.pooling": ["mean", "max", "attention"]},
}

REFUSED = {
    ("no test split", "eval"): 2,
}
"""Cells that cannot work, and the exit code of the line that says so."""


def serve(run: Path) -> Outcome:
    pytest.importorskip("uvicorn")
    from tests.serve.served import serving

    with serving(Classifier.load(run, device="cpu")) as address:
        reply = address.predict(text="a good film", explain=True)
        assert reply.status == 200, reply.body
    return Outcome(0, "", "")


def fit(keys: dict[str, Any]) -> Outcome:
    leaves = {key: key.rpartition(".")[2] for key in keys if key.partition(".")[0] in ("text", "embedding", "model")}
    known = TextClassifier().get_params()
    named = {leaf: keys[key] for key, leaf in leaves.items() if leaf in known}
    others = {key: keys[key] for key, leaf in leaves.items() if leaf not in known}
    texts, labels = zip(*reviews(60), strict=True)
    if "data.labels" in keys:
        labels = tuple([i % 2, (i + 1) % 2, int(i % 3 > 0)] for i in range(len(labels)))
    model = TextClassifier(**named, epochs=1, threads=1, valid=0.2, overrides=others).fit(texts, labels)
    assert model.predict(["good"]).shape == ((1, 3) if "data.labels" in keys else (1,))
    return Outcome(0, "", "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with 60 texts, the same with numbers for labels, and texts without."""
    monkeypatch.chdir(tmp_path)
    rows = reviews(60)
    several = [(text, f"{label}|extra" if i % 3 else "") for i, (text, label) in enumerate(rows)]
    with Path("several.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *several])
    for name, labels in (("texts.csv", {}), ("numbers.csv", {"neg": 0, "pos": 1})):
        with Path(name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *((text, labels.get(label, label)) for text, label in rows)])
    Path("names.txt").write_text("bad\ngood\n", "utf-8")
    Path("more.txt").write_text("".join(f"{text}\n" for text, _ in reviews(40, seed=1)), "utf-8")
    return tmp_path


@pytest.mark.parametrize("feature", FEATURES)
def test_every_command_works_with_the_feature_or_says_in_one_line_why_not(feature: str, folder: Path) -> None:
    keys = {"data.train": "texts.csv", "name": "run", **TINY, **FEATURES[feature]}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in keys.items()]
    small = [f"--set={key}" for key in (*PRETRAINED, "pretrain.epochs=1")]
    seeds = ["--seeds", "2", "--ensemble"] if feature == "an ensemble" else []
    if "model.init_from" in keys:
        without = [option for option in sets if "init_from" not in option]
        assert run_cli("pretrain", *without, *small, "-o", "encoder").code == 0
    trained = run_cli("train", *sets, *seeds)
    assert trained.code == 0, trained.stderr
    run = Path("runs/run-ensemble" if seeds else "runs/run")
    tune = ("tune", *sets, "--trials", "1", "--search", "model.dropout=0.1..0.5")
    commands: dict[str, Callable[[], Outcome]] = {
        "eval": lambda: run_cli("eval", "--run", run),
        "eval --data": lambda: run_cli("eval", "--run", run, "--data", keys["data.train"]),
        "predict": lambda: run_cli("predict", "--run", run, "a good film", ""),
        "predict --input": lambda: run_cli("predict", "--run", run, "--input", "texts.csv", "--output", "out.csv"),
        "predict --explain": lambda: run_cli("predict", "--run", run, "--explain", "a good film"),
        "export": lambda: run_cli("export", "--run", run),
        "report": lambda: run_cli("report", "--run", run),
        "inspect -c": lambda: run_cli("inspect", *sets),
        "inspect --run": lambda: run_cli("inspect", "--run", run),
        "train --dry-run": lambda: run_cli("train", *sets, "--set", "name=dry", "--dry-run", *seeds),
        "baseline": lambda: run_cli("baseline", *sets, "--only", "nbsvm"),
        "tune": lambda: run_cli(*tune),
        "pretrain": lambda: run_cli("pretrain", *sets, *small, "-o", "another"),
        "doctor": lambda: run_cli("doctor", "--run", run),
        "serve": lambda: serve(run),
        "estimator": lambda: fit(keys),
    }
    wrong = {}
    for name, command in commands.items():
        outcome, expected = command(), REFUSED.get((feature, name), 0)
        is_one_line = len(outcome.errors) == bool(expected) and "Traceback" not in outcome.stderr
        if outcome.code != expected or not is_one_line:
            wrong[name] = (outcome.code, outcome.stderr[-600:])
    assert wrong == {}
