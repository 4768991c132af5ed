import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data import store
from bilstm_cls.data.prepare import prepare
from bilstm_cls.inspection import inspect_data, inspect_run, plan
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.recurrent import CELLS
from bilstm_cls.run_directory import RunDirectory, build_model
from bilstm_cls.training.loop import Trainer
from tests.command_line import run_cli
from tests.conftest import reviews


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Data with a repeated text, an overlap, a text too long, an empty and an unknown one."""
    files = {
        "train": "same,pos\nsame,pos\nsame,neg\nalso here,neg\none two three four five six,pos\n",
        "valid": "same,pos\n,neg\n",
        "test": "also here,neg\nunseen,pos\n",
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}", "utf-8")
    data = [f"data.{name}={tmp_path / f'{name}.csv'}" for name in files]
    return load_config(None, [*data, "text.max_length=4", "text.min_freq=1"])


def test_every_split_is_described(config: Config) -> None:
    findings = inspect_data(config)
    assert findings["labels"] == ["neg", "pos"]
    assert findings["vocabulary"] == 11
    train, valid, test = (findings["splits"][name] for name in ("train", "valid", "test"))
    assert train["labels"] == {"neg": 2, "pos": 3}
    assert (train["texts"], train["truncated"], train["longest"]) == (5, 1, 6)
    assert (valid["empty"], valid["known_tokens"]) == (1, 0.5)
    assert test["known_tokens"] == pytest.approx(2 / 3, abs=1e-4)
    expected = {"read": 9, "duplicates_train": 2, "valid_in_train": 1, "test_in_train": 1, "test_in_valid": 0}
    assert {key: findings["rows"][key] for key in expected} == expected


def test_near_copies_and_wrong_labels_are_found_by_their_rows(tmp_path: Path) -> None:
    rows = [[f"{text} zork" if label == "pos" else text, label] for text, label in reviews(120)]
    changed = f"{rows[1][0]} and more"
    test = [[rows[0][0], "neg"], [changed, "neg"], ["a plain film of the year", "neg"], ["fun fun fun zork", "pos"]]
    rows[40][1] = "pos"
    for name, content in (("train", rows), ("test", test)):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *content])
    data = [f"data.{name}={tmp_path / f'{name}.csv'}" for name in ("train", "test")]
    path, findings = tmp_path, inspect_data(load_config(None, [*data, "data.valid=0.05"]), deep=True, limit=3)
    near = findings["near_duplicates"]
    assert near["test in train"] + near.get("test in valid", 0) >= 2
    first = near["found"][0]  # of another label
    assert (first["place"], first["of"]) == (f"{path / 'test.csv'}:3", f"{path / 'train.csv'}:3")
    assert (first["labels"], first["split"]) == (["neg", "pos"], "test")
    assert 0.7 <= first["similarity"] < 1
    assert f"{path / 'test.csv'}:2" in {row["place"] for row in near["found"]}
    wrong = findings["likely_wrong_labels"]
    assert wrong["of"] == 124
    assert f"{path / 'train.csv'}:42" in [row["place"] for row in wrong["found"]]
    assert {(row["label"], row["likelier"]) for row in wrong["found"]} <= {("neg", "pos"), ("pos", "neg")}
    assert len(wrong["found"]) <= 3


def test_a_plan_is_what_training_would_do(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("name=planned")
    planned = plan(config)
    data = prepare(config)
    model = build_model(config, len(data.tokenizer), 2)
    assert planned["steps"] == Trainer(model, data.corpora["train"], config.train, seed=1).total_steps
    assert planned["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert planned["run_directory"] == str(Path(config.output_dir) / "planned")
    assert planned["tokens_per_epoch"] == data.corpora["train"].lengths.sum()
    assert 0 <= planned["padding"] < 1
    assert not (Path(config.output_dir) / "planned").exists()


def test_inspecting_reads_no_text_of_prepared_data(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(config, only=["train", "valid", "test", "unlabelled"])
    monkeypatch.setattr(store.Texts, "_of", lambda *_: pytest.fail("a text was read"))
    assert inspect_data(config)["splits"]["train"]["texts"] == 5


def test_a_run_is_shown_with_its_state_scores_and_all_members(trained_run: Path, tmp_path: Path) -> None:
    run = RunDirectory(Path(shutil.copytree(trained_run, tmp_path / "copy")))
    loaded, metrics = run.load_model(), run.read_object("metrics.json")
    run.save_model(replace(loaded, others=(loaded.model, loaded.model)))
    found = inspect_run(run.path)
    assert (found["members"], found["parameters"]) == (3, 3 * metrics["model/parameters"])
    assert (found["status"]["status"], found["metrics"]["test/accuracy"]) == ("finished", metrics["test/accuracy"])
    assert not any("confusion" in key or "per_class" in key for key in found["metrics"])


# doctor


def test_a_failed_check_is_named_in_a_table_and_ends_with_7(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = BiLSTMClassifier.forward

    def careless(self: BiLSTMClassifier, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return forward(self, token_ids, torch.full_like(lengths, token_ids.shape[1]))

    monkeypatch.setattr(BiLSTMClassifier, "forward", careless)
    done = run_cli("doctor", "--device", "cpu")
    assert done.code == 7
    assert done.stdout.count("with and without extra padding: FAILED") == len(CELLS)


def test_a_machine_without_faults_is_ok(cache: Path, trained_run: Path) -> None:
    before = torch.get_rng_state()
    done = run_cli("doctor", "--device", "cpu", "--run", trained_run, "--json")
    findings = done.json
    assert torch.equal(torch.get_rng_state(), before)
    assert [outcome.partition(",")[0] for outcome in findings["checks"].values()] == ["ok"] * 2 * len(CELLS)
    assert "torch" in findings["versions"]
    assert (findings["device"], findings["cache"], findings["ok"]) == ("cpu", str(cache), True)
