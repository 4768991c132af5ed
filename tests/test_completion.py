"""What the shell completes: asked as the scripts that `--install-completion` writes ask it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "import sys; sys.argv[0] = 'bilstm-cls'; from bilstm_cls.cli import main; main()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for run in ("runs/imdb", "runs/imdb-quick", "runs/news", "elsewhere/old"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "model.safetensors").touch()
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "configs").mkdir()
    for name in ("configs/imdb.yaml", "mine.yml", "mine.csv", "[odd].yaml", ".hidden.yaml"):
        (tmp_path / name).touch()
    return tmp_path


def completed(folder: Path, *words: str) -> list[str]:
    """Returns what bash is offered for the last word."""
    environment = {
        "_BILSTM_CLS_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(["bilstm-cls", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (["tr"], ["train"]),
        (["ex"], ["export"]),
        (["config", ""], ["show", "check", "schema"]),
        (["train", "--ov"], ["--overwrite"]),
        (["predict", "--run", ""], ["runs/imdb", "runs/imdb-quick", "runs/news"]),
        (["eval", "--run", "runs/im"], ["runs/imdb", "runs/imdb-quick"]),
        (["export", "--run", "elsewhere/"], ["elsewhere/old"]),
        (["train", "--config", "mi"], ["mine.yml"]),
        (["train", "-c", "configs/"], ["configs/imdb.yaml"]),
        (["train", "-c", "[o"], ["[odd].yaml"]),
        (["train", "-c", ""], ["[odd].yaml", "configs/", "elsewhere/", "mine.yml", "runs/", "configs/imdb.yaml"]),
        (["train", "--set", "train.learn"], ["train.learning_rate="]),
        (["tune", "--set", "se"], ["seed="]),
    ],
)
def test_tab_offers_commands_options_runs_configs_and_keys(words: list[str], offers: list[str], folder: Path) -> None:
    assert completed(folder, *words) == offers


def test_completing_imports_nothing_heavy(folder: Path) -> None:
    script = (
        "import sys; from bilstm_cls.commands.options import *; complete_run(''); complete_config(''); "
        "complete_override('train.'); print(sorted(set(sys.modules) & {'torch', 'numpy', 'sklearn', 'tokenizers'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_the_shell(shell: str) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--show-completion", shell], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0
    assert "_BILSTM_CLS_COMPLETE" in done.stdout
