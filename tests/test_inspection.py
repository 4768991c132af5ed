import csv
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data import store
from bilstm_cls.data.prepare import prepare
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.inspection import (
    PACKAGES,
    as_lines,
    examine,
    inspect_data,
    inspect_file,
    inspect_run,
    plan,
)
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.recurrent import CELLS
from bilstm_cls.run_directory import RunDirectory
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
    assert (train["texts"], train["truncated"], train["duplicates"], train["longest"]) == (5, 1, 2, 6)
    assert (valid["empty"], valid["duplicates"], valid["known_tokens"]) == (1, 0, 0.5)
    assert test["known_tokens"] == pytest.approx(2 / 3, abs=1e-4)
    assert findings["overlap"] == {"valid in train": 1, "test in train": 1, "test in valid": 0}
    assert findings["rows"]["read"] == 9


@pytest.fixture(scope="module")
def deep_findings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What is found in 120 reviews of which one is wrongly labelled, two occur again in test, and all of one label have
    a word that the others lack."""
    path = tmp_path_factory.mktemp("deep")
    rows = [[f"{text} zork" if label == "pos" else text, label] for text, label in reviews(120)]
    changed = f"{rows[1][0]} and more"
    test = [[rows[0][0], "neg"], [changed, "neg"], ["a plain film of the year", "neg"], ["fun fun fun zork", "pos"]]
    rows[40][1] = "pos"
    for name, content in (("train", rows), ("test", test)):
        with (path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *content])
    data = [f"data.{name}={path / f'{name}.csv'}" for name in ("train", "test")]
    return path, inspect_data(load_config(None, [*data, "data.valid=0.05"]), deep=True, limit=3)


def test_copies_wrong_labels_and_words_that_give_a_label_away_are_found_by_their_rows(
    deep_findings: tuple[Path, dict[str, Any]],
) -> None:
    path, findings = deep_findings
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
    leak = findings["leaking_tokens"]["found"][0]
    assert (leak["token"], leak["label"]) == ("zork", "pos")
    assert leak["place"].startswith(f"{path / 'train.csv'}:")
    plain = inspect_data(load_config(None, [f"data.train={path / 'train.csv'}"]))
    assert not {"near_duplicates", "likely_wrong_labels"} & set(plain)


def test_a_file_of_another_encoding_and_a_name_with_spaces_is_inspected(tmp_path: Path) -> None:
    rows = "".join(f"Un café numéro {i} très cher,{'bon' if i % 2 else 'mauvais'}\n" for i in range(40))
    path = tmp_path / "mes avis: 'été'.csv"
    path.write_bytes(f"text,label\n{rows}".encode("cp1252"))
    findings = inspect_file(path, [])
    assert findings["labels"] == ["bon", "mauvais"]
    assert findings["rows"]["read"] == 40


def test_a_plan_is_what_training_would_do(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("name=planned")
    planned = plan(config)
    data = prepare(config)
    from bilstm_cls.run_directory import build_model

    model = build_model(config, len(data.tokenizer), 2)
    assert planned["steps"] == Trainer(model, data.corpora["train"], config.train, seed=1).total_steps
    assert planned["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert planned["run_directory"] == str(Path(config.output_dir) / "planned")
    assert planned["tokens_per_epoch"] == data.corpora["train"].lengths.sum()
    assert 0 <= planned["padding"] < 1
    assert not (Path(config.output_dir) / "planned").exists()


def test_findings_are_shown_as_indented_lines() -> None:
    findings = {
        "sizes": {"train": 12345, "share": 0.123456},
        "labels": ["a", "b"],
        "checks": [{"name": "one", "ok": True}, {"name": "two", "ok": False}],
        "found": [{"place": "a.csv:3", "labels": ["x", "y"], "text": "odd \x1b text"}],
        "none": None,
        "notes": [],
    }
    assert list(as_lines(findings)) == [
        "sizes:", "  train: 12,345", "  share: 0.1235", "labels: a, b",
        "checks:", "  name one, ok yes", "  name two, ok no",
        "found:", "  a.csv:3: labels x / y: odd \\x1b text", "none: none", "notes: ",
    ]  # fmt: skip


def test_inspecting_reads_no_text_of_prepared_data(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(config, only=["train", "valid", "test", "unlabelled"])
    monkeypatch.setattr(store.Texts, "_of", lambda *_: pytest.fail("a text was read"))
    assert inspect_data(config)["splits"]["train"]["texts"] == 5


def test_a_run_is_shown_with_its_state_scores_and_all_members(trained_run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

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
    rows = [line.split() for line in done.stdout.splitlines() if "padding" in line]
    assert [row[0] for row in rows] == ["FAILED"] * len(CELLS)
    assert "is_sound" not in done.stdout


def test_a_machine_without_faults_is_ok(cache: Path, trained_run: Path) -> None:
    before = torch.get_rng_state()
    done = run_cli("doctor", "--device", "cpu", "--run", trained_run, "--json")
    findings = done.json
    assert torch.equal(torch.get_rng_state(), before)
    assert [check["ok"] for check in findings["checks"]] == [True] * 2 * len(CELLS)
    assert set(findings["versions"]) == set(PACKAGES)
    assert (findings["device"], findings["cache"], findings["ok"]) == ("cpu", str(cache), True)
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    assert set(findings["extras"]) <= set(project["optional-dependencies"]) - {"dev"}


def test_a_damaged_run_and_a_missing_device_are_errors(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "copy"))
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        examine("cpu", run)
    with pytest.raises(ConfigError, match="'cuda:99'"):
        examine("cuda:99")
