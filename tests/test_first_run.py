"""From one's own CSV to a server: each command as it tells of the next, and no file is edited on the way."""

import csv
import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.command_line import Outcome, run_cli, serving
from tests.conftest import reviews


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a table as an office program of Western Europe exports it, and new texts."""
    with (tmp_path / "my comments.csv").open("w", encoding="cp1252", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Id", "Date", "Comment", "Mood"])
        for number, (text, label) in enumerate(reviews(300)):
            writer.writerow([number, "2026-01-31", f"Café {number}: {text}", {"neg": "unhappy", "pos": "happy"}[label]])
    (tmp_path / "new.csv").write_text("Comment\na wonderful film\na dull film\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(hint: str) -> Outcome:
    """Runs what a command says to run next."""
    program, *words = shlex.split(hint)
    assert program == "bilstm-cls"
    return succeeding(*words)


def succeeding(*words: str) -> Outcome:
    outcome = run_cli(*words)
    assert outcome.code == 0, f"{words}: {outcome.stderr[-1000:]}"
    return outcome


def hint_of(text: str, mark: str) -> str:
    (hint,) = re.findall(rf"{mark}: (.*)$", text, re.M)
    return str(hint)


def test_a_new_user_comes_from_a_table_to_a_server(folder: Path) -> None:
    for package in ("onnx", "onnxruntime", "fastapi", "prometheus_client", "uvicorn"):
        pytest.importorskip(package)
    made = succeeding("init", "--data", "my comments.csv", "-o", "my comments.yaml")
    trained = follow(hint_of(made.stderr, "next"))
    assert all(
        line in trained.stdout for line in ("this model", "TF-IDF", "NB-SVM", "open runs/my-comments/report.html")
    )
    judged = succeeding("eval", "--json").json
    assert judged["examples"] == 30
    assert judged["accuracy"] > 0.9
    assert follow(hint_of(trained.stderr, "next")).stdout.endswith("\ta text of yours\n")
    succeeding("predict", "--input", "new.csv", "--output", "answers.csv")
    with Path("answers.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["happy", "unhappy"]
    assert Path(succeeding("report").stdout.strip()).read_text("utf-8").startswith("<!doctype html>")
    exported = succeeding("export")
    command = shlex.split(hint_of(exported.stdout, "try it").replace("TEXT", "'a wonderful film'"))
    answered = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=True)
    assert json.loads(answered.stdout)["label"] == "happy"
    with serving([]) as address:
        body = json.dumps({"text": "a dull film"}).encode()
        request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            (answer,) = json.load(response)["predictions"]
        assert answer["label"] == "unhappy"


def test_the_list_of_commands_says_each_in_full() -> None:
    help_text = succeeding("--help").stdout
    assert "predict " in help_text
    assert "..." not in help_text.partition("Commands:")[2]
