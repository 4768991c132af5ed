"""From a table to a server, with nothing but an installed wheel: each command names the next, and no file is edited."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.command_line import Outcome, answer, serving
from tests.conftest import TINY, WORDS, reviews

ROOT = Path(__file__).parent.parent
MOODS = {"neg": "unhappy", "pos": "happy"}
GOOD, BAD = (" ".join(WORDS[label] * 3) for label in ("pos", "neg"))
SMALL = [word for key in (*TINY, "embedding.init=random") for word in ("--set", key)]
"""Sizes of a model that trains in seconds; what `init` writes is as it is."""

pytestmark = pytest.mark.slow


def test_a_new_user_comes_from_a_table_to_a_server(tmp_path: Path) -> None:
    """`walk`, in one new process that finds the package in the wheel alone."""
    for package in ("hatchling", "onnx", "onnxruntime", "fastapi", "prometheus_client", "uvicorn"):
        pytest.importorskip(package)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, __file__], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def follow(text: str, *options: str) -> Outcome:
    """Runs what a command says to run next."""
    (hint,) = re.findall(r"next: (.*)$", text, re.M)
    program, *words = shlex.split(hint)
    assert program == "bilstm-cls"
    return answer(*words, *options)


def write_tables() -> None:
    """Writes a table as an office program of Western Europe exports it, and new texts."""
    with Path("my comments.csv").open("w", encoding="cp1252", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Id", "Date", "Comment", "Mood"])
        for number, (text, label) in enumerate(reviews(300)):
            writer.writerow([number, "2026-01-31", f"Café {number}: {text}", MOODS[label]])
    Path("new.csv").write_text(f"Comment\n{GOOD}\n{BAD}\n", "utf-8")


def walk() -> None:
    import bilstm_cls

    assert Path(bilstm_cls.__file__).is_relative_to(Path("site").resolve())
    write_tables()
    made = answer("init", "--data", "my comments.csv", "-o", "my comments.yaml")
    trained = follow(made.stderr, *SMALL)
    report = "runs/my-comments/report.html"
    assert all(words in trained.stdout for words in ("network alone", "TF-IDF", "NB-SVM", report))
    scores = answer("eval", "--json").json
    assert scores["examples"] == 30
    assert scores["accuracy"] > 0.9
    assert follow(trained.stderr).stdout.endswith("\ta text of yours\n")
    answer("predict", "--input", "new.csv", "--output", "answers.csv")
    with Path("answers.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["happy", "unhappy"]
    answer("predict", GOOD, "--explain", "--html", "explained.html")
    pages = ("explained.html", answer("report").stdout.strip())
    assert all(Path(page).read_text("utf-8").startswith("<!doctype html>") for page in pages)
    exported = answer("export", "--run", "runs/my-comments")
    (hint,) = re.findall(r"try it: (.*)$", exported.stdout, re.M)
    command = shlex.split(hint.replace("TEXT", shlex.quote(GOOD)))
    answered = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=True)
    assert json.loads(answered.stdout)["label"] == "happy"
    with serving(["--run", "runs/my-comments"]) as (address, _):
        body = json.dumps({"text": BAD}).encode()
        request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            (found,) = json.load(response)["predictions"]
        assert found["label"] == "unhappy"
        with urllib.request.urlopen(address, timeout=60) as response:
            assert b"</html>" in response.read()


if __name__ == "__main__":
    walk()
