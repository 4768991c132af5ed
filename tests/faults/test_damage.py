"""F3, F4, F5: a checkpoint or model that was cut, changed or forged is named, never loaded, and runs nothing."""

import contextlib
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bilstm_cls.checkpoint import load_newest, load_tensors, save_tensors
from bilstm_cls.errors import CheckpointError
from bilstm_cls.run_directory import RunDirectory
from tests.command_line import Outcome
from tests.faults.children import run
from tests.faults.conftest import Tally
from tests.faults.sizes import cases

Settings = Callable[..., list[str]]
ROLE = "last.json"
TENSORS = "step-00000015.safetensors"


@pytest.fixture(scope="module")
def stopped(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after step 15, whose best checkpoint is of step 11."""
    output = tmp_path_factory.mktemp("stopped")
    assert run(*settings(output), faults=["step.before:16:kill"]).code == -9
    return output / "tiny"


@pytest.fixture
def checkpoints(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped / "checkpoints", tmp_path / "checkpoints")


def is_named_and_stood_in_for(checkpoints: Path, name: str, log: pytest.LogCaptureFixture) -> None:
    """Asserts that the damage is told and that the other checkpoint is the one to go on from."""
    log.clear()
    loaded = load_newest(checkpoints)
    assert loaded is not None
    assert loaded[1]["step"] == 11
    assert f"{checkpoints / name}: " in log.text
    assert "going on from step 11 instead" in log.text


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    import logging

    monkeypatch.setattr(logging.getLogger("bilstm_cls"), "propagate", True)
    return caplog


@pytest.mark.parametrize("name", [ROLE, TENSORS])
def test_a_checkpoint_that_is_cut_anywhere_is_told(
    name: str, checkpoints: Path, log: pytest.LogCaptureFixture, tally: Tally
) -> None:
    """At every hundredth of the file, and at each of its first and last 64 bytes."""
    path = checkpoints / name
    whole = path.read_bytes()
    ends = [*(len(whole) * share // 100 for share in range(100)), *range(64), *range(len(whole) - 64, len(whole))]

    def survives(end: int) -> None:
        path.write_bytes(whole[:end])
        is_named_and_stood_in_for(checkpoints, name, log)

    tally(ends, survives)


@pytest.mark.parametrize(("name", "number"), [(TENSORS, 1000), (ROLE, 250)])
def test_a_checkpoint_with_a_flipped_bit_is_told(
    name: str, number: int, checkpoints: Path, log: pytest.LogCaptureFixture, tally: Tally
) -> None:
    path = checkpoints / name
    whole = path.read_bytes()

    def survives(place: int) -> None:
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        is_named_and_stood_in_for(checkpoints, name, log)

    tally(random.Random(name).sample(range(8 * len(whole)), number), survives)


FILES = ("model.safetensors", "tokenizer.json", "labels.json", "config.yaml")


@cases(few=100, many=1000)
def test_a_trained_model_with_a_flipped_bit_is_told_or_is_the_same(
    number: int, trained_run: Path, tmp_path: Path, tally: Tally
) -> None:
    """A change that means nothing, such as of a blank in a JSON file, may pass; another answer may not."""
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("checkpoints", "plots"))
    sound = RunDirectory(folder).load_model()
    ids = torch.tensor([[2, 3, 4, 1]])
    answer = sound.model(ids, torch.tensor([4]))

    def survives(case: tuple[str, int]) -> None:
        name, place = case
        whole = (folder / name).read_bytes()
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (folder / name).write_bytes(changed)
        loaded = None
        with contextlib.suppress(CheckpointError):
            loaded = RunDirectory(folder).load_model()
        (folder / name).write_bytes(whole)
        if loaded is not None:
            assert name != "model.safetensors"
            assert loaded.labels == sound.labels
            assert loaded.tokenizer.to_json() == sound.tokenizer.to_json()
            assert torch.equal(loaded.model(ids, torch.tensor([4])), answer)

    chooser = random.Random(0)
    names = chooser.choices(FILES, k=number)
    tally([(name, chooser.randrange(8 * (folder / name).stat().st_size)) for name in names], survives)


class Trap:
    """What a pickle would run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def safetensors(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def header(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


def one(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zipped(**members: bytes) -> bytes:
    import io

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def hostile_bytes(canary: Path) -> dict[str, bytes]:
    """What may lie in the place of a safetensors file."""
    trap = pickle.dumps(Trap(canary))
    return {
        "a pickle": trap,
        "a pickle that evaluates text": b"cbuiltins\neval\n(S'open(\"" + str(canary).encode() + b"\", \"w\")'\ntR.",
        "a pickle that runs a command": b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
        "a PyTorch file": zipped(**{"archive/data.pkl": trap, "archive/version": b"3"}),
        "a zip bomb": zipped(**{"archive/data.pkl": bytes(50_000_000)}),
        "a NumPy file of objects": b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n" + trap,
        "a header of 100 MB that is not there": struct.pack("<Q", 100_000_000) + b"{",
        "a header of 2^64 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
        "a header that is no JSON": safetensors(b"[" * 100_000),
        "a header of a million names": safetensors(header(**{f"t{i}": one(0, 0, [0]) for i in range(1_000_000)})),
        "offsets below zero": safetensors(header(w=one(-4, 0, [1])), bytes(4)),
        "offsets that overlap": safetensors(header(a=one(0, 8, [2]), b=one(4, 12, [2])), bytes(12)),
        "offsets beyond the end": safetensors(header(w=one(0, 4 * 10**12, [10**12])), bytes(4)),
        "a shape whose product overflows": safetensors(header(w=one(0, 4, [2**63, 2])), bytes(4)),
        "a shape below zero": safetensors(header(w=one(0, 4, [-1])), bytes(4)),
        "a type that is not known": safetensors(header(w=one(0, 4, [1], "OBJ")), bytes(4)),
        "metadata that name a class": safetensors(
            json.dumps({"__metadata__": {"_class_path": "os.system", "bilstm_cls": "{}"}}).encode()
        ),
    }  # fmt: skip


def forged(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """Changes a model as someone would who knows how it is sealed."""
    tensors, metadata = load_tensors(path)
    metadata.pop("sha256")
    change(tensors, metadata)
    save_tensors(path, tensors, metadata)


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(iter(tensors))


FORGED: dict[str, Callable[[dict[str, torch.Tensor], dict[str, str]], Any]] = {
    "weights that are no numbers": lambda tensors, _: tensors[first(tensors)].fill_(float("nan")),
    "weights that are infinite": lambda tensors, _: tensors[first(tensors)].fill_(float("inf")),
    "a vocabulary of another size": lambda tensors, _: tensors.update(
        {"embedding.weight": tensors["embedding.weight"][:-1].clone()}
    ),
    "a tensor too many": lambda tensors, _: tensors.update(more=torch.zeros(3)),
    "a tensor too few": lambda tensors, _: tensors.pop(first(tensors)),
    "a million members": lambda _, metadata: metadata.update(members="1000000"),
    "members that are no number": lambda _, metadata: metadata.update(members="../x"),
    "no digest of the texts": lambda _, metadata: metadata.pop("text_digest"),
    "a config that is no JSON": lambda _, metadata: metadata.update(config="{"),
    "a config of another kind": lambda _, metadata: metadata.update(config="[1]"),
    "a network of a billion units, in the config too": lambda _, metadata: metadata.update(
        config=metadata["config"].replace('"model.hidden_size": 8', '"model.hidden_size": 1000000000')
    ),
    "a million layers, in the config too": lambda _, metadata: metadata.update(
        config=metadata["config"].replace('"model.num_layers": 1', '"model.num_layers": 1000000')
    ),
    "a newer format": lambda _, metadata: metadata.update(format_version="2"),
}
OTHER_FILES: dict[str, tuple[str, Callable[[str], str]]] = {
    "a network of a billion units": ("config.yaml", lambda text: text.replace("_size: 8", f"_size: {10**9}")),
    "an embedding of a billion columns": ("config.yaml", lambda text: text.replace("dim: 8", f"dim: {10**9}")),
    "a million layers": ("config.yaml", lambda text: text.replace("num_layers: 1", f"num_layers: {10**6}")),
    "a config that names a class": ("config.yaml", lambda text: text + "_target_: os.system\n"),
    "a config with a tag": ("config.yaml", lambda text: text.replace("seed: 1", "seed: !!python/name:os.system")),
    "labels that are a number": ("labels.json", lambda _: "3"),
    "a million labels": ("labels.json", lambda _: json.dumps([str(i) for i in range(1_000_000)])),
    "labels nested without an end": ("labels.json", lambda _: "[" * 1_000_000),
    "a tokenizer that is a number": ("tokenizer.json", lambda _: "3"),
    "a tokenizer of another program": (
        "tokenizer.json", lambda _: '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'
    ),
}  # fmt: skip


def is_refused(outcome: Outcome, canary: Path) -> None:
    assert outcome.code == 4, outcome
    assert "Traceback" not in outcome.stderr
    assert len(outcome.errors) == 1, outcome.stderr
    assert len(outcome.stderr) < 3000
    assert not canary.exists()


def test_a_hostile_model_is_refused_runs_nothing_and_takes_no_memory(
    trained_run: Path, tmp_path: Path, tally: Tally
) -> None:
    canary = tmp_path / "canary"
    files = hostile_bytes(canary)

    def survives(name: str) -> None:
        folder = tmp_path / "run"
        shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("checkpoints", "plots"))
        try:
            if name in files:
                (folder / "model.safetensors").write_bytes(files[name])
            elif name in FORGED:
                forged(folder / "model.safetensors", FORGED[name])
                if name.endswith("in the config too"):
                    other, change = OTHER_FILES[name.removesuffix(", in the config too")]
                    (folder / other).write_text(change((folder / other).read_text("utf-8")), "utf-8")
            else:
                other, change = OTHER_FILES[name]
                before = (folder / other).read_text("utf-8")
                assert change(before) != before
                (folder / other).write_text(change(before), "utf-8")
            outcome = run("predict", "good", "--run", folder, "--device", "cpu", environment=LIMITS)
            is_refused(outcome, canary)
        finally:
            shutil.rmtree(folder)

    tally([*files, *FORGED, *OTHER_FILES], survives)


LIMITS = {"CHILD_MEMORY_MB": "500", "CHILD_SECONDS": "5"}


def test_a_hostile_checkpoint_is_refused_and_runs_nothing(
    stopped: Path, settings: Settings, tmp_path: Path, tally: Tally
) -> None:
    canary = tmp_path / "canary"
    files = hostile_bytes(canary)

    def survives(name: str) -> None:
        output = tmp_path / "output"
        command = [*settings(output), "--resume"]
        shutil.copytree(stopped, output / "tiny")
        try:
            (output / "tiny/config.yaml").write_text((output / "config.yaml").read_text("utf-8"), "utf-8")
            for path in (output / "tiny/checkpoints").glob("*.safetensors"):
                path.write_bytes(files[name])
            is_refused(run(*command, environment=LIMITS), canary)
        finally:
            shutil.rmtree(output)

    tally(files, survives)


def test_a_sound_model_loads_within_the_same_limits(trained_run: Path) -> None:
    outcome = run("predict", "good", "--run", trained_run, "--device", "cpu", "--json", environment=LIMITS)
    assert outcome.code == 0, outcome
    assert set(load_file(trained_run / "model.safetensors")) > {"embedding.weight"}
