"""Several processes that train one model: the same sums everywhere, nothing lost or left over when one dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.errors import ConfigError, UserError
from bilstm_cls.training.distributed import joined, launch, number_of_processes
from bilstm_cls.training.run import train
from tests.command_line import Outcome
from tests.conftest import reviews
from tests.training.runs import result

Make = Callable[..., Config]
Action = Callable[[psutil.Process, list[psutil.Process]], None]


@pytest.mark.parametrize(
    ("setting", "tokens", "cores", "device", "can_launch", "expected"),
    [
        ("auto", 100, 16, "cpu", True, 1), ("auto", 10**7, 16, "cpu", True, 8), ("auto", 10**7, 3, "cpu", True, 1),
        ("auto", 10**7, 16, "cuda", True, 1), ("3", 100, 2, "cpu", True, 3), ("auto", 10**7, 16, "cpu", False, 1),
        ("2", 100, 16, "cpu", False, None), ("2", 100, 16, "cuda", True, None),
    ],
)  # fmt: skip
def test_processes_are_started_where_they_pay_and_only_by_a_command(
    tiny_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    tokens: int,
    cores: int,
    device: str,
    can_launch: bool,
    expected: int | None,
) -> None:
    monkeypatch.setattr("bilstm_cls.training.distributed.usable_cores", lambda: cores)
    config = tiny_config(f"train.processes={setting}").train
    corpus = Corpus(np.zeros(tokens, dtype=np.int32), np.array([0, tokens]), np.array([0]))
    refusal = pytest.raises(ConfigError, match=r"train\.processes: 2.*torchrun --nproc-per-node 2")
    with refusal if expected is None else contextlib.nullcontext():
        assert number_of_processes(config, corpus, torch.device(device), can_launch=can_launch) == expected


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("WORLD_SIZE", "abc"), ("RANK", "-1"), ("RANK", ""), ("MASTER_ADDR", None), ("BILSTM_CLS_TIMEOUT", "0"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_an_error_of_the_user(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str | None
) -> None:
    for key, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv(name, given)
    with pytest.raises(ConfigError, match=name), joined(torch.device("cpu")):
        pass


class Command:
    """`train` in several processes, of one config whose runs go into one folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder
        (folder / "config.yaml").write_text(dump_config(config), "utf-8")

    def words(self, *more: str) -> list[str]:
        return ["train", "-c", str(self.folder / "config.yaml"), "-o", str(self.folder), *more]

    def start(self, *more: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, "-m", "bilstm_cls", *self.words(*more)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *more: str, launcher: Sequence[str] = ()) -> Outcome:
        process = self.start(*more, launcher=launcher)
        stdout, stderr = process.communicate(timeout=300)
        return Outcome(process.returncode, stdout, stderr)

    def interrupted(self, epoch: int, action: Action) -> Outcome:
        """Starts or resumes two processes, does something to them after an epoch, and returns how they ended.

        None of them is left over.
        """
        process = self.start("--processes", "2", "--set", "name=interrupted", "--resume")
        assert process.stderr is not None
        before = [next(line for line in process.stderr if line.startswith(f"epoch {epoch}"))]
        launcher = psutil.Process(process.pid)
        ranks = sorted(launcher.children(), key=lambda child: int(child.environ()["RANK"]))
        action(launcher, ranks)
        stdout, stderr = process.communicate(timeout=120)
        gone, left = psutil.wait_procs(ranks, timeout=5)
        assert (len(gone), left) == (2, [])
        return Outcome(process.returncode, stdout, "".join(before) + stderr)


def test_two_processes_that_are_interrupted_end_together_and_resume_to_the_same_bits(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the death of one of them and by that of their launcher, in one run."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = Command(tiny_config("train.epochs=8", "train.checkpoint_seconds=0"), tmp_path)
    whole = command.run("--processes", "2", "--set", "name=whole", "--json")
    assert whole.code == 0, whole.stderr
    assert whole.stderr.count("train: 168 texts") == 1
    assert whole.json == json.loads((tmp_path / "whole/metrics.json").read_text("utf-8"))
    interruptions: list[tuple[Action, int, set[str]]] = [
        (lambda launcher, ranks: ranks[1].kill(), 6, {"stopped", "failed"}),
        (lambda launcher, ranks: launcher.kill(), -signal.SIGKILL, {"stopped"}),
    ]
    for epoch, (action, code, statuses) in zip((2, 4), interruptions, strict=True):
        outcome = command.interrupted(epoch, action)
        assert outcome.code == code, outcome.stderr
        assert len(outcome.errors) == (code > 0), outcome.stderr
        assert json.loads((tmp_path / "interrupted/status.json").read_text("utf-8"))["status"] in statuses
    resumed = command.run("--processes", "2", "--set", "name=interrupted", "--resume")
    assert resumed.code == 0, resumed.stderr
    assert result(tmp_path / "interrupted") == result(tmp_path / "whole")


def test_an_error_in_several_processes_is_one_message_and_nothing_is_left_in_the_environment(
    tiny_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = Command(tiny_config(), tmp_path)
    before = os.environ.copy()
    words = command.words("--processes", "2", "--set", "name=wrong", "--set", "train.class_weights={pos: 1}")
    with pytest.raises(UserError, match=r"train\.class_weights") as caught:
        launch(words, 2)
    assert caught.value.exit_code == 3
    assert "error" not in capfd.readouterr().err
    assert os.environ.keys() - before.keys() <= {"TORCHELASTIC_SIGNALS_TO_HANDLE"}  # by PyTorch, and without effect


PLAIN = (
    "model.bigrams=60", "model.dropout=0", "model.embedding_dropout=0", "model.word_dropout=0", "train.batch_size=17",
    "train.epochs=2", "train.teacher=auto", "model.ngrams=nbsvm",
)  # fmt: skip


def test_two_processes_learn_what_one_learns(tiny_config: Make, tmp_path: Path) -> None:
    """Without dropout the sums differ in their order alone, whatever is left over in the last batch."""
    more = tmp_path / "more.txt"
    more.write_text("".join(f"{text}\n" for text, _ in reviews(50, seed=3)), "utf-8")
    config = tiny_config(*PLAIN, f"data.unlabelled={more}", f"output_dir={tmp_path}", "name=run1")
    names = ("run1", "run2")
    train(config)
    assert Command(config, tmp_path).run("--processes", "2", "--set", "name=run2").code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in names)
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=2e-4), name
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text("utf-8")) for name in names]
    assert metrics[0]["test/confusion_matrix"] == metrics[1]["test/confusion_matrix"]
    assert metrics[0]["text/train/texts"] == metrics[1]["text/train/texts"]


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def test_torchrun_trains_several_seeds_an_ensemble_and_an_encoder(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    command = Command(tiny_config("train.epochs=1", "pretrain.enabled=true", "pretrain.epochs=1"), tmp_path)
    outcome = command.run("--seeds", "2", "--ensemble", "--json", launcher=TORCHRUN)
    assert outcome.code == 0, outcome.stderr
    summary = json.loads(outcome.stdout)
    assert len(summary["runs"]) == 2
    for path in (*summary["runs"], tmp_path / "tiny-ensemble"):
        assert json.loads((Path(path) / "status.json").read_text("utf-8"))["status"] == "finished"
