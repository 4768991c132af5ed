"""F3, F4, F5: a checkpoint or model that was cut, changed or forged is named, never loaded, and runs nothing."""

import contextlib
import io
import json
import pickle
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bilstm_cls.checkpoint import _seal, load_newest, load_tensors, save_tensors
from bilstm_cls.errors import CheckpointError
from bilstm_cls.run_directory import RunDirectory
from tests.command_line import Outcome, run_cli
from tests.faults.children import run
from tests.faults.conftest import Settings, Tally, cases

ROLE, TENSORS = "last.json", "step-00000015.safetensors"
FILES = ("model.safetensors", "tokenizer.json", "labels.json", "config.yaml")
LARGE = re.compile("bomb|million|250,000|billion|100 MB|nested")
LIMITS = {"CHILD_MEMORY_MB": "500", "CHILD_SECONDS": "5"}
"""Within which an intact model loads, and a hostile one is refused."""


@pytest.fixture(scope="module")
def stopped(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after step 15, whose best checkpoint is of step 11."""
    output = tmp_path_factory.mktemp("stopped")
    assert run(*settings(output), faults=["step.before:16:kill"]).code == -9
    return output / "tiny"


@pytest.fixture
def is_refused(stopped: Path, tmp_path: Path, log: pytest.LogCaptureFixture) -> Callable[[str, bytes], None]:
    """Returns a check that a changed file of the last checkpoint is named, and the best one is loaded instead."""
    folder = shutil.copytree(stopped / "checkpoints", tmp_path / "checkpoints")

    def check(name: str, content: bytes) -> None:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        log.clear()
        loaded = load_newest(folder)
        (folder / name).write_bytes(before)
        assert loaded is not None
        assert loaded[1]["step"] == 11
        assert f"{folder / name}: " in log.text

    return check


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place // 8 % len(changed)] ^= 1 << place % 8
    return bytes(changed)


@cases(few=50, many=1000)
@pytest.mark.parametrize("name", [ROLE, TENSORS])
def test_a_checkpoint_that_is_cut_is_refused(
    name: str, number: int, stopped: Path, is_refused: Callable[[str, bytes], None], tally: Tally
) -> None:
    """Anywhere, and at each of its first and last 16 bytes."""
    whole = (stopped / "checkpoints" / name).read_bytes()
    chooser = random.Random(name)
    ends = [*(chooser.randrange(len(whole)) for _ in range(number)), *range(16), *range(-16, 0)]
    tally(ends, lambda end: is_refused(name, whole[:end]))


@cases(few=100, many=1000)
@pytest.mark.parametrize("name", [ROLE, TENSORS])
def test_a_checkpoint_with_a_flipped_bit_is_refused(
    name: str, number: int, stopped: Path, is_refused: Callable[[str, bytes], None], tally: Tally
) -> None:
    whole = (stopped / "checkpoints" / name).read_bytes()
    chooser = random.Random(name)
    tally([chooser.randrange(2**32) for _ in range(number)], lambda place: is_refused(name, flipped(whole, place)))


@cases(few=60, many=1000)
def test_a_model_with_a_flipped_bit_is_refused_or_is_the_same(
    number: int, trained_run: Path, tmp_path: Path, tally: Tally
) -> None:
    """A change that means nothing, such as of a space in a JSON file, may pass; another answer may not."""
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("checkpoints", "plots"))
    intact = RunDirectory(folder).load_model()
    ids, length = torch.tensor([[2, 3, 4, 1]]), torch.tensor([4])
    logits = intact.model(ids, length)
    chooser = random.Random(0)

    def survives(name: str) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(flipped(whole, chooser.randrange(2**32)))
        loaded = None
        with contextlib.suppress(CheckpointError):
            loaded = RunDirectory(folder).load_model()
        (folder / name).write_bytes(whole)
        if loaded is not None:
            assert name != "model.safetensors"
            assert (loaded.labels, loaded.tokenizer.to_json()) == (intact.labels, intact.tokenizer.to_json())
            assert torch.equal(loaded.model(ids, length), logits)

    tally(chooser.choices(FILES, k=number), survives)


class Trap:
    """What a pickle would run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def safetensors(header: bytes | dict[str, Any], body: bytes = b"") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + body


def one(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3")
    return file.getvalue()


def hostile_bytes(canary: Path) -> dict[str, bytes]:
    """What may be in the place of a safetensors file."""
    trap = pickle.dumps(Trap(canary))
    return {
        "a pickle": trap,
        "a pickle that runs a command": b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
        "a PyTorch file": zipped(trap),
        "a zip bomb": zipped(bytes(50_000_000)),
        "a header of 100 MB that is missing": struct.pack("<Q", 100_000_000) + b"{",
        "a header that is not JSON": safetensors(b"[" * 100_000),
        "offsets that overlap": safetensors({"a": one(0, 8, [2]), "b": one(4, 12, [2])}, bytes(12)),
        "a shape whose product overflows": safetensors({"w": one(0, 4, [2**63, 2])}, bytes(4)),
        "metadata that name a class": safetensors({"__metadata__": {"_class_path": "os.system", "bilstm_cls": "{}"}}),
    }


Change = Callable[[dict[str, torch.Tensor], dict[str, str]], Any]


def in_config(before: str, after: str) -> Change:
    return lambda _, metadata: metadata.update(config=metadata["config"].replace(before, after))


FORGED: dict[str, Change] = {
    "weights that are NaN": lambda tensors, _: tensors["embedding.weight"].fill_(float("nan")),
    "a tensor too few": lambda tensors, _: tensors.pop("embedding.weight"),
    "a million members": lambda _, metadata: metadata.update(members="1000000"),
    "no digest of the texts": lambda _, metadata: metadata.pop("text_digest"),
    "a million layers in both configs": in_config('num_layers": 1', f'num_layers": {10**6}'),
    "a newer format": lambda _, metadata: metadata.update(format_version="999"),
}
OTHER_FILES: dict[str, tuple[str, Callable[[str], str]]] = {
    "a million layers": ("config.yaml", lambda text: text.replace("num_layers: 1", f"num_layers: {10**6}")),
    "a config with a tag": ("config.yaml", lambda text: text.replace("seed: 1", "seed: !!python/name:os.system")),
    "a million labels": ("labels.json", lambda _: json.dumps([str(i) for i in range(1_000_000)])),
    "labels nested without end": ("labels.json", lambda _: "[" * 1_000_000),
    "a tokenizer that is a number": ("tokenizer.json", lambda _: "3"),
}


def ends_in_one_line(outcome: Outcome, canary: Path) -> None:
    assert outcome.code == 4, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stderr) < 3000
    assert not canary.exists()


def test_a_hostile_model_is_refused_and_runs_nothing(trained_run: Path, tmp_path: Path, tally: Tally) -> None:
    """What would take much memory or time is tried in a process that has little of both."""
    canary, folder = tmp_path / "canary", tmp_path / "run"
    files = hostile_bytes(canary)

    def survives(name: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("checkpoints", "plots"))
        model = folder / "model.safetensors"
        if name in files:
            model.write_bytes(files[name])
        if name in FORGED:  # as someone would who knows how it is sealed
            tensors, metadata = load_tensors(model)
            metadata.pop("sha256")
            FORGED[name](tensors, metadata)
            save_tensors(model, tensors, metadata)
        if (other := name.removesuffix(" in both configs")) in OTHER_FILES:
            path, change = folder / OTHER_FILES[other][0], OTHER_FILES[other][1]
            before = path.read_text("utf-8")
            assert change(before) != before
            path.write_text(change(before), "utf-8")
        command = ("predict", "good", "--run", folder, "--device", "cpu")
        ends_in_one_line(run(*command, environment=LIMITS) if LARGE.search(name) else run_cli(*command), canary)

    tally([*files, *FORGED, *OTHER_FILES], survives)


NUMBERS: dict[str, tuple[str, Any]] = {
    "a step that is text": ("step", "eleven"),
    "a step of 400 digits": ("step", 10**400),
    "seconds that are infinite": ("seconds", float("inf")),
    "a history of an empty row": ("history", [{}]),
}


def test_a_hostile_checkpoint_is_refused_and_runs_nothing(
    settings: Settings, stopped: Path, tmp_path: Path, tally: Tally
) -> None:
    """Both of a run's checkpoints are: tensors of another kind, or numbers that were forged and sealed anew."""
    canary = tmp_path / "canary"
    files = {name: content for name, content in hostile_bytes(canary).items() if not LARGE.search(name)}
    command = [*settings(tmp_path), "--resume"]

    def survives(name: str) -> None:
        shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
        folder = shutil.copytree(stopped, tmp_path / "tiny") / "checkpoints"
        for path in folder.glob("*.safetensors" if name in files else "*.json"):
            if name in files:
                path.write_bytes(files[name])
            else:
                content = json.loads(path.read_text("utf-8"))["checkpoint"]
                key, value = NUMBERS[name]
                content["trainer"]["progress"][key] = value
                path.write_text(_seal(content), "utf-8")
        ends_in_one_line(run_cli(*command), canary)

    tally([*files, *NUMBERS], survives)
