from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bilstm_cls.classifier import Classifier
from bilstm_cls.data.hub import UnreachableError
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.files import sha256_of
from bilstm_cls.hub import pull, push
from bilstm_cls.run_directory import RunDirectory
from tests.command_line import answer, run_cli
from tests.hub_server import FakeHub, serving_hub

TEXTS = ["a good film", "a dull plot", ""]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with serving_hub(tmp_path / "hub-cache") as hub:
        yield hub


def test_a_pushed_run_answers_the_same_wherever_it_is_loaded(hub: FakeHub, trained_run: Path, tmp_path: Path) -> None:
    assert push(trained_run, "ada/films") == "hf://ada/films"
    pulled = pull("ada/films", tmp_path / "pulled")
    wanted = Classifier.load(trained_run, device="cpu").predict(TEXTS)
    assert Classifier.load("hf://ada/films", device="cpu").predict(TEXTS) == wanted
    assert Classifier.load(pulled, device="cpu").predict(TEXTS) == wanted
    assert RunDirectory(pulled).read_status()["status"] == "finished"
    for name in ("model.safetensors", "tokenizer.json", "config.yaml", "metrics.json", "plots/calibration.png"):
        assert sha256_of(pulled / name) == sha256_of(trained_run / name)


def test_texts_of_the_data_stay_here_unless_they_are_asked_for(hub: FakeHub, trained_run: Path) -> None:
    push(trained_run, "ada/films", is_private=True)
    pushed = hub.repositories["models", "ada/films"]["main"]
    assert {"model.safetensors", "README.md", "metrics.json"} <= pushed.keys()
    assert not {name for name in pushed if "predictions" in name or "report" in name or "log" in name}
    assert not any(name.startswith("checkpoints/") or name == "status.json" for name in pushed)
    assert (hub.commits, hub.private) == (["Add the run tiny"], {"ada/films"})
    _, front, rest = pushed["README.md"].decode().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["library_name"], facts["pipeline_tag"]) == ("bilstm-cls", "text-classification")
    assert rest.lstrip("\n") == (trained_run / "README.md").read_text("utf-8")
    push(trained_run, "ada/films", with_texts=True)
    assert {"report.html", "predictions_test.csv"} <= pushed.keys()


def test_what_was_loaded_once_is_loaded_without_the_hub(
    hub: FakeHub, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(trained_run, "ada/films")
    Classifier.load("hf://ada/films", device="cpu")
    monkeypatch.setenv("BILSTM_CLS_OFFLINE", "1")
    hub.asked.clear()
    assert Classifier.load("hf://ada/films", device="cpu").labels == ["neg", "pos"]
    assert hub.asked == []
    with pytest.raises(UnreachableError, match="ada/other: not in the cache, and BILSTM_CLS_OFFLINE is set"):
        Classifier.load("hf://ada/other")


@pytest.mark.parametrize("name", ["model.safetensors", "labels.json"])
def test_a_file_that_was_changed_on_the_hub_is_refused_and_others_are_not_even_fetched(
    name: str, hub: FakeHub, trained_run: Path, tmp_path: Path
) -> None:
    push(trained_run, "ada/films")
    files = hub.repositories["models", "ada/films"]["main"]
    files |= {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"x"}
    files[name] = b'["pos", "neg"]' if name == "labels.json" else files[name][:-1] + b"\x01"
    with pytest.raises(CheckpointError):
        pull("ada/films", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    assert not any(".py" in path or ".bin" in path for path in hub.asked)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ada/none", "hf://ada/none: there is no such repository"),
        ("ada/films@none", "hf://ada/films@none: there is no such repository or revision"),
        ("../films", "is no repository"),
    ],
)
def test_a_wrong_address_is_an_error(address: str, complaint: str, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        pull(address, tmp_path / "run")


def test_the_commands_push_and_pull(
    hub: FakeHub, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("push", "--run", trained_run, "ada/films", "-q").stdout.startswith("hf://ada/films\nnext: ")
    pulled = answer("pull", "ada/films", "--json", "-q")
    assert run_cli("pull", "ada/films", "-q").code == 2  # it is taken
    Path("runs/films/labels.json").write_text("[]")
    answer("pull", "ada/films", "-q", "--overwrite")
    assert pulled.json == {"run": "runs/films"}
    assert answer("predict", "--run", "hf://ada/films", "--device", "cpu", "a film", "--json").json["text"] == "a film"
