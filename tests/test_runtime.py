import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bilstm_cls.classifier import Classifier, Prediction
from bilstm_cls.errors import CheckpointError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.runtime import Runtime, main, sealed
from bilstm_cls.serve.export import export
from tests.conftest import reviews
from tests.serve.untrained import untrained

TEXTS = [
    "a good film", "", "   ", "never seen words", "Bad BAD bad", "a\tdull\nplot<br />", "<pad> <unk>",
    "half \ud800 of one",    " ".join(["good"] * 10 + ["bad"] * 30), " ".join(["the"] * 21), "好 fine 🎬",
    *(text for text, _ in reviews(80, seed=3)),
]  # fmt: skip
"""Empty, unknown, too long, and of every length there is."""


@pytest.fixture(scope="module")
def bundle(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export(trained_run, tmp_path_factory.mktemp("bundles") / "tiny")["path"])


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "bundle")


CHINESE = ["中国球队夺得冠军！", "A股市场2010年利率", "好", "", "\ud800 the 基金\x1f银行"]


@pytest.mark.parametrize(("of", "texts"), [("trained_run", TEXTS), ("chinese_run", CHINESE)])
def test_predictions_are_those_of_the_run(
    of: str, texts: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(of)
    runtime = Runtime.load(export(run, tmp_path / "bundle")["path"], threads=1)
    agree(runtime.predict(texts), Classifier.load(run, device="cpu").predict(texts))


def agree(found: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        numbers = {"probability": other.probability, "probabilities": other.probabilities}
        assert dataclasses.replace(one, **numbers) == other


@pytest.mark.parametrize("truncate", ["head", "tail", "both"])
def test_a_long_text_is_cut_as_in_training(truncate: str, tmp_path: Path) -> None:
    text = "good " * 15 + "the " * 15 + "bad " * 15
    run = RunDirectory(tmp_path / "run")
    run.save_model(untrained(f"text.truncate={truncate}", "data.train=texts.csv", texts=[text]))
    (found,) = Runtime.load(export(run.path)["path"]).predict([text])
    assert (found.truncated, found.tokens) == (True, 45)
    agree([found], Classifier.load(run.path, device="cpu").predict([text]))


def test_nothing_but_numpy_onnxruntime_and_tokenizers_is_loaded(bundle: Path) -> None:
    code = """
import sys, sysconfig
from bilstm_cls.runtime import Runtime
Runtime.load(sys.argv[1]).predict(["good"])
places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
files = {name.partition(".")[0]: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
installed = {name for name, file in files.items() if file.startswith(tuple(places))}
print(*sorted(installed - {"_distutils_hack", "bilstm_cls"}))
"""
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, timeout=60, check=True)
    assert done.stdout.split() == [b"numpy", b"onnxruntime", b"tokenizers"]


def test_as_a_program_it_prints_json_lines_until_the_reader_has_seen_enough(bundle: Path) -> None:
    command = f'"{sys.executable}" -m bilstm_cls.runtime "{bundle}" "good film" - bad | head -5'
    stdin = "\ufefffirst é\r\n\nlast\n".encode() + b"\xff\n" * 20_000
    done = subprocess.run(["bash", "-c", command], input=stdin, capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    answers = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    assert [answer["text"] for answer in answers] == ["good film", "first é", "", "last", "\ufffd"]
    names = [field.name for field in dataclasses.fields(Prediction)]
    assert list(answers[0]) == [name for name in names if name != "labels"]


@pytest.mark.parametrize("content", [None, "5", "null", "[]", "[" * 100_000])
def test_a_bundle_without_a_config_ends_the_program_with_one_line(
    content: str | None, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_text(content, "utf-8")
    assert main([str(copy), "good"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {copy}")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "labels.json", "config.json"])
def test_a_missing_file_and_a_flipped_bit_are_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{'' if name == 'config.json' else name}: damaged"):
        Runtime.load(copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        Runtime.load(copy)


def test_another_format_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps(sealed({"format_version": 999})))
    with pytest.raises(CheckpointError, match=r"format 999 is not .*; export it again"):
        Runtime.load(copy)
