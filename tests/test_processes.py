"""Several processes that train one model: the same sums everywhere, nothing lost when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bilstm_cls.config import Config
from bilstm_cls.data.batches import evaluation_batches
from bilstm_cls.errors import ConfigError, ResourceError
from bilstm_cls.evaluation.judge import evaluate as judge
from bilstm_cls.training.distributed import Group, joined
from bilstm_cls.training.loop import StepReport
from bilstm_cls.training.run import number_of_processes, train

Make = Callable[..., Config]

# Each process sums gradients of which some processes lack some, and writes what it got.
SUMMING = """
import sys, torch
from safetensors.torch import save_file
from bilstm_cls.training.distributed import joined
rank, folder = int(sys.argv[1]), sys.argv[2]
table, matrix, bias = (torch.zeros(6, 3, requires_grad=True), torch.zeros(2, 2, requires_grad=True),
                       torch.zeros(2, requires_grad=True))
rows = [[1, 4, 4], [], [4, 5]][rank]
if rows:
    values = torch.arange(3.0 * len(rows)).view(-1, 3) + rank
    table.grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, (6, 3), check_invariants=False)
    matrix.grad = torch.full((2, 2), 1.0 + rank)
with joined(torch.device("cpu"), rank=rank, size=3, meeting=f"file://{folder}/meeting") as group:
    group.sum_gradients([matrix, bias], [table])
    flags = [group.any(rank == 1), group.any(False)]
    total = group.sum(0.1 * (rank + 1))
save_file({"table": table.grad.to_dense(), "matrix": matrix.grad, "bias": bias.grad,
           "more": torch.tensor([*map(float, flags), total], dtype=torch.float64)}, f"{folder}/{rank}.safetensors")
"""


def test_gradients_are_summed_to_the_same_bits_in_every_process(tmp_path: Path) -> None:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", SUMMING]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    results = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(3)]
    table = torch.zeros(6, 3)
    table[1] = torch.tensor([0.0, 1, 2])
    table[4] = torch.tensor([3.0 + 6 + 2, 4 + 7 + 3, 5 + 8 + 4])
    table[5] = torch.tensor([5.0, 6, 7])
    for result in results:
        assert torch.equal(result["table"], table)
        assert torch.equal(result["matrix"], torch.full((2, 2), 4.0))
        assert torch.equal(result["bias"], torch.zeros(2))
        assert result["more"].tolist() == [1.0, 0.0, results[0]["more"][2].item()]
    assert results[0]["more"][2].item() == pytest.approx(0.6)


def test_a_group_of_one_does_nothing() -> None:
    group = Group()
    array = np.ones(3)
    assert (group.any(True), group.any(False), group.sum(2.5)) == (True, False, 2.5)
    assert group.sum_array(array) is array
    group.sum_gradients([torch.zeros(2, requires_grad=True)], [])


@pytest.mark.parametrize("num_texts", [1, 2, 7, 25, 500])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_text_is_judged_once_whatever_the_number_of_processes(size: int, num_texts: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 90, num_texts)
    batches = evaluation_batches(lengths, max_tokens=600)
    shared = [batch for rank in range(size) for batch in batches[rank::size]]
    assert sorted(np.concatenate(shared).tolist()) == list(range(num_texts))


@pytest.mark.parametrize(
    ("setting", "tokens", "device", "expected"),
    [("auto", 100, "cpu", 1), ("auto", 10**7, "cuda", 1), ("3", 100, "cpu", 3), ("1", 10**7, "cpu", 1)],
)
def test_processes_are_started_where_they_pay(
    tiny_config: Make, setting: str, tokens: int, device: str, expected: int
) -> None:
    config = tiny_config(f"train.processes={setting}").train
    assert number_of_processes(config, _long(tokens), torch.device(device)) == expected


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8)])
def test_auto_takes_two_cores_for_a_process_when_work_is_long(
    cores: int, expected: int, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bilstm_cls.training.run.usable_cores", lambda: cores)
    assert number_of_processes(tiny_config().train, _long(10**7), torch.device("cpu")) == expected


def test_several_processes_on_one_gpu_are_refused(tiny_config: Make) -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        number_of_processes(tiny_config("train.processes=2").train, _long(10), torch.device("cuda"))


def _long(num_tokens: int) -> Any:
    from bilstm_cls.data.corpus import Corpus

    offsets = np.array([0, num_tokens])
    return Corpus(np.zeros(0, dtype=np.int32), offsets, np.array([0]))


PLAIN = (
    "model.bigrams=60", "model.dropout=0", "model.embedding_dropout=0", "model.word_dropout=0", "train.batch_size=17"
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tiny_config: Make) -> Path:
    return train(tiny_config("train.processes=2", "name=two", "train.epochs=2")).run.path


def test_two_processes_learn_what_one_learns(tiny_config: Make) -> None:
    """Without dropout the sums differ in their order alone, whatever is left over in the last batch."""
    one, two = (
        train(tiny_config(*PLAIN, f"train.processes={n}", f"name=plain-{n}", "train.epochs=2")).run for n in (1, 2)
    )
    weights = [load_file(run / "model.safetensors") for run in (one, two)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-4), name
    metrics = [run.read_json("metrics.json") for run in (one, two)]
    assert metrics[0]["test/confusion_matrix"] == metrics[1]["test/confusion_matrix"]
    assert metrics[0]["text/train/texts"] == metrics[1]["text/train/texts"]


@pytest.mark.parametrize("num_texts", [1, 2, 7, 25])
def test_two_processes_judge_what_one_judges(
    num_texts: int, tiny_config: Make, reviews_csv: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.csv"
    few.write_text("".join(reviews_csv.read_text("utf-8").splitlines(keepends=True)[: num_texts + 1]), "utf-8")
    result = train(
        tiny_config(f"data.test={few}", "train.processes=2", "train.epochs=1", f"name=few-{num_texts}"), overwrite=True
    )
    _, alone = judge(result.run.path)
    assert result.metrics["test/examples"] == num_texts
    assert result.metrics["test/confusion_matrix"] == alone.confusion_matrix
    assert result.metrics["test/log_loss"] == pytest.approx(alone.scalars("test")["test/log_loss"], abs=1e-6)


def test_a_stopped_run_of_two_resumes_to_the_same_bits(tiny_config: Make, undisturbed: Path) -> None:
    config = tiny_config("train.processes=2", "name=stopped", "train.epochs=2", "train.checkpoint_seconds=0")

    def stop(report: Any) -> None:
        if isinstance(report, StepReport) and report.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_report=stop)
    resumed = train(config, resume=True).run.path
    assert (resumed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_a_dead_worker_ends_the_run_and_it_goes_on_to_the_same_bits(tiny_config: Make, undisturbed: Path) -> None:
    config = tiny_config("train.processes=2", "name=dead", "train.epochs=2", "train.checkpoint_seconds=0")
    victims: list[int] = []

    def kill(report: Any) -> None:
        if isinstance(report, StepReport) and report.step == 5 and not victims:
            victims.extend(_workers())
            os.kill(victims[0], signal.SIGKILL)

    with pytest.raises(ResourceError, match="--resume"):
        train(config, on_report=kill)
    assert len(victims) == 1
    assert not _workers()
    resumed = train(config, resume=True).run
    assert (resumed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert json.loads((resumed / "status.json").read_text())["status"] == "finished"


def _workers() -> list[int]:
    """Returns the processes that train for this one, dead ones that were not waited for included."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("needs Linux's /proc")
    found = []
    for pid in children.read_text().split():
        if b"bilstm_cls.training.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(int(pid))
    return found


@pytest.mark.parametrize("given", ["abc", "-1", "0", "", "nan", "inf"])
def test_a_patience_that_is_no_time_is_told(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("BILSTM_CLS_TIMEOUT", given)
    meeting = joined(torch.device("cpu"), rank=0, size=2, meeting="env://")
    with pytest.raises(ConfigError, match="BILSTM_CLS_TIMEOUT"), meeting:
        pass


@pytest.mark.parametrize(
    ("name", "given"), [("WORLD_SIZE", "abc"), ("RANK", "-1"), ("WORLD_SIZE", "2.0"), ("RANK", "")]
)
def test_numbers_in_the_environment_that_torchrun_never_gave_are_told(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, name: str, given: str
) -> None:
    for key, value in {"WORLD_SIZE": "2", "RANK": "1", name: given}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=f"{name}: '{given}' .*torchrun"):
        train(tiny_config())


def test_a_place_to_meet_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    meeting = joined(torch.device("cpu"), rank=0, size=2, meeting="env://")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.*torchrun"), meeting:
        pass


def test_a_process_whose_first_one_never_comes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("BILSTM_CLS_TIMEOUT", "0.2")
    found = pytest.raises(ResourceError, match=r"the 2 processes did not find each other within 0\.2 seconds")
    with found, joined(torch.device("cpu"), rank=1, size=2, meeting="env://"):
        pass
