"""The scripts, with sizes that take no time."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.config import Config
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "model" / "fixtures"
VARIABLES = FIXTURES / "tf_classifier_variables.npz"
EXPECTED = dict(np.load(FIXTURES / "tf_classifier_expected.npz"))
Arrays = dict[str, np.ndarray]
WORDS = [f"w{i}" for i in range(23)]
"""The token of each of TensorFlow's ids; 0 is the padding there."""

LABELS = ["zeta", "alpha", "中文"]
VOCABULARIES = {
    "padding first": ["<pad>", *WORDS[1:]],
    "special tokens elsewhere": ["[PAD]", *WORDS[1:9], "_UNK_", *WORDS[10:]],
    "no special tokens": WORDS,
}


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script in this process."""

    def run(name: str, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise

    return run


@pytest.fixture
def imported(run_script: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Imports the fixture, or other variables, and returns the run."""

    def make(vocab: list[str], *, labels: list[str] = LABELS, variables: Path = VARIABLES) -> Path:
        for name, lines in (("vocab", vocab), ("labels", labels)):
            (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        files = ["--vocab", tmp_path / "vocab.txt", "--labels", tmp_path / "labels.txt", "-o", tmp_path / "run"]
        run_script("import-tensorflow", variables, *files, "--max-length", 11)
        return tmp_path / "run"

    return make


def texts_of(vocab: list[str]) -> list[str]:
    """The fixture's texts, of which TensorFlow read the ids."""
    rows = zip(EXPECTED["token_ids"], EXPECTED["lengths"], strict=True)
    return [" ".join(vocab[i] for i in row[:length]) for row, length in rows]


@pytest.mark.parametrize("vocab", VOCABULARIES.values(), ids=VOCABULARIES.keys())
def test_an_imported_run_gives_tensorflows_probabilities(vocab: list[str], imported: Callable[..., Path]) -> None:
    found = Classifier.load(imported(vocab), device="cpu").predict(texts_of(vocab))
    probabilities = [[prediction.probabilities[label] for label in LABELS] for prediction in found]
    np.testing.assert_allclose(probabilities, EXPECTED["probabilities"], atol=1e-5)


def test_one_column_is_a_sigmoid(imported: Callable[..., Path], tmp_path: Path) -> None:
    variables = {name: array for name, array in np.load(VARIABLES).items() if "/Adam" not in name}
    variables["output/W"], variables["output/b"] = variables["output/W"][:, :1], variables["output/b"][:1]
    np.savez(tmp_path / "v.npz", **variables)
    run = imported(WORDS, labels=["no", "yes"], variables=tmp_path / "v.npz")
    found = Classifier.load(run, device="cpu").predict_proba(texts_of(WORDS))
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-EXPECTED["logits"][:, 0])), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"attention/v": np.ones(10)},
        {"output/W": np.ones((5, 3))},
        {"output/b": np.array([1, np.inf, 0])},
        {"bidirectional_rnn/fw/fw_lstm/w_f_diag": np.ones(5)},
        {"other/fw/lstm_cell/kernel": np.ones((12, 20))},
    ],
)
def test_another_architecture_is_refused(change: Arrays, imported: Callable[..., Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", **{**np.load(VARIABLES), **change})
    with pytest.raises(SystemExit, match="two LSTM cells"):
        imported(WORDS, variables=tmp_path / "v.npz")
    assert not (tmp_path / "run").exists()


def test_the_config_reference_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "config-reference"))
    assert script["page"]() == script["PAGE"].read_text("utf-8"), "run scripts/config-reference"


def test_steps_are_timed_next_to_others(
    run_script: Callable[..., None], reviews_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["data.source=files", f"data.train={reviews_csv}", "data.valid_split=random"]
    sets = [f"--set={key}" for key in (*data, *TINY, "train.batch_size=4", "train.device=cpu")]
    run_script("benchmark", "steps", "--batches", 1, "--repeats", 1, *sets, "--json")
    found = json.loads(capsys.readouterr().out)
    ours = list(found["parts of a step"])
    assert ours in (["fp32"], ["fp32", "bf16"])
    assert [len(found[kind]) for kind in ("training", "prediction")] == [len(ours) + 3, len(ours) + 1]
    assert found["training"][0]["relative"] == 1
    assert 0 <= found["padding"] < 1
    assert all(0 < row["slowest"] <= row["ktokens_per_second"] <= row["fastest"] for row in found["training"])
    assert all(0 < share < 1 for share in found["share of the machine's matrix rate"].values())
    assert sum(found["parts of a step"]["fp32"].values()) == pytest.approx(1)


def test_a_whole_training_is_timed_by_its_parts(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    script = runpy.run_path(str(ROOT / "scripts" / "benchmark"))
    found = script["parts_of_training"](tiny_config(f"output_dir={tmp_path}", "train.epochs=1", "train.baselines=true"))
    first, whole = (found.pop(name) for name in ("to the first step", "whole"))
    assert 1 < found.pop("times a text is tokenized") < 2  # train a second time, for the vocabulary
    assert found.pop("bytes hashed") > 0
    assert set(found) == set(script["PARTS"])
    assert 0 < first < whole
    assert sum(found.values()) < whole


def test_a_busy_program_ends_with_its_block() -> None:
    busy_program = runpy.run_path(str(ROOT / "scripts" / "benchmark"))["busy_program"]
    with busy_program():
        (program,) = (child for child in psutil.Process().children() if "while True: pass" in child.cmdline())
        assert program.is_running()
    assert not program.is_running()


def test_a_run_is_timed_next_to_its_bundles(
    run_script: Callable[..., None], trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("benchmark", "predict", trained_run, "--repeats", 1, "--json")
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["prediction"]] == ["PyTorch", "onnxruntime"]


def test_seeds_are_one_row_with_the_network_alone_and_every_baseline(
    run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"test/examples": 40, "test/confidence_interval": [0.7, 0.9], "test/ece": 0.1, "time/train_seconds": 60}
    for seed, accuracy in ((1, 0.8), (2, 0.9)):
        alone = {"network/test/accuracy": accuracy - 0.1, "baseline/fasttext/accuracy": 0.625, "test/majority": 0.5}
        (tmp_path / f"a-seed{seed}").mkdir()
        metrics = both | alone | {"test/accuracy": accuracy}
        (tmp_path / f"a-seed{seed}" / "metrics.json").write_text(json.dumps(metrics))
    run_script("results", "table", *tmp_path.iterdir())
    header, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines())
    found = dict(zip(header, row, strict=True))
    assert (found["run"], found["seeds"], found["accuracy"]) == ("a", "2", "0.8500 +- 0.0707")
    assert (found["network alone"], found["TF-IDF"], found["fastText"]) == ("0.7500 +- 0.0707", "", "0.6250")
