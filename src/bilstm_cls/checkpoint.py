"""Tensors and checkpoints on disk: whole, verified, and found again after any interruption.

Neither safetensors nor PyTorch's own format notices a flipped bit in a weight. Here a file's metadata hold a SHA-256
over names, types, shapes, bytes and the other metadata, and nothing is returned before it is checked.

A checkpoint is a safetensors file named after its step and a JSON file named after its role (`last`, `best`) that
holds the rest of the state and points to the tensors by name and digest. The JSON is written last, in one rename: that
is the moment at which the checkpoint exists. Tensors that no JSON points to are removed after it.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bilstm_cls.errors import CheckpointError
from bilstm_cls.files import write_atomic

ROLES = ("best", "last")
"""In the order in which they are written: a run that is killed in between is resumed from the new best one, and never
from a last one whose best weights are not under that name yet."""

MAX_HEADER_BYTES = 10_000_000  # a forged header of the 100 MB that safetensors allows fills the memory
_DIGEST = "sha256"
_KEY = "bilstm_cls"
"""All metadata are one JSON text under this key: safetensors writes several keys in a random order, and the same
run has to give the same bytes."""

logger = logging.getLogger(__name__)


def digest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Returns the SHA-256 over metadata and tensors, whatever their order."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Writes tensors and metadata as one whole file and returns their digest."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = digest_of(on_cpu, metadata)
    # safetensors makes three copies, and where memory runs out it aborts the process: here that is an error
    torch.empty(3 * sum(tensor.nbytes for tensor in on_cpu.values()), dtype=torch.uint8)
    write_atomic(path, save(on_cpu, {_KEY: json.dumps({**metadata, _DIGEST: digest}, sort_keys=True)}))
    return digest


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors onto the CPU, with their metadata and the digest under `sha256`.

    Raises:
        CheckpointError: the file is missing, cut short, changed, or not of this kind.
    """
    try:
        with path.open("rb") as opened:
            if (size := int.from_bytes(opened.read(8), "little")) > MAX_HEADER_BYTES:
                raise ValueError(f"its header has {size} bytes, which is too many")
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
    expected = metadata.pop(_DIGEST, None) if isinstance(metadata, dict) else None
    if expected is None or digest_of(tensors, metadata) != expected:
        raise CheckpointError(f"{path}: damaged, or not of this program: its contents do not match a digest inside")
    return tensors, {**metadata, _DIGEST: expected}


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], numbers: dict[str, Any], *, roles: tuple[str, ...]
) -> None:
    """Writes a checkpoint and gives it one or both roles.

    Raises:
        ResourceError: the disk is full; the checkpoints that were there still are.
    """
    name = f"step-{step:08d}.safetensors"
    digest = save_tensors(folder / name, tensors, {"step": str(step)})
    sealed = _seal({"step": step, "tensors": name, "tensors_sha256": digest, **numbers})
    for role in (role for role in ROLES if role in roles):
        write_atomic(folder / f"{role}.json", sealed)
    _remove_unused(folder)


def load_checkpoint(folder: Path, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint and verifies every byte of it; raises a CheckpointError where they are not as written."""
    content = _read_json(folder / f"{role}.json")
    path = folder / content["tensors"]
    tensors, metadata = load_tensors(path)
    if metadata[_DIGEST] != content.get("tensors_sha256"):
        raise CheckpointError(f"{path}: not the file that {role}.json was written with")
    return tensors, content


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns the newest intact checkpoint, None where there was none, or raises a CheckpointError.

    All are verified, so that damage is reported now and not at the end of the run.
    """
    intact, problems = [], []
    for role in (role for role in ROLES if (folder / f"{role}.json").exists()):
        try:
            intact.append(load_checkpoint(folder, role))
        except CheckpointError as error:
            problems.append(str(error))
    if problems and not intact:
        raise CheckpointError("\n".join([*problems, "no intact checkpoint is left; start again with --overwrite"]))
    newest = max(intact, key=lambda checkpoint: checkpoint[1]["step"], default=None)
    for problem in problems:
        logger.warning(f"{problem}; the other checkpoint is used")
    return newest


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """Returns the tensors of the best checkpoint; raises a CheckpointError where it is lost, or not of `step`."""
    try:
        tensors, content = load_checkpoint(folder, "best")
        if content["step"] == step:
            return tensors
        raise CheckpointError(f"{folder / 'best.json'}: is of step {content['step']} instead of step {step}")
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nthe best weights are lost; start again with --overwrite") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)["checkpoint"]
        is_intact = text == _seal(content) and isinstance(content["step"], int)
        is_intact = is_intact and bool(re.fullmatch(r"step-\d+\.safetensors", content["tensors"]))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing") from error
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
    if not is_intact:
        raise CheckpointError(f"{path}: damaged, its contents do not match the digest inside")
    return dict(content)


def _seal(content: Any) -> str:
    """Returns the text of a role's file. It is compared as a whole, so that no changed byte goes unnoticed."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": digest, "checkpoint": content}, indent=1)


def _remove_unused(folder: Path) -> None:
    try:
        used = {_read_json(path)["tensors"] for role in ROLES if (path := folder / f"{role}.json").exists()}
    except CheckpointError:  # reported when it is read: what it needs is kept
        return
    for path in (*folder.glob("step-*.safetensors"), *folder.glob(".*.tmp")):
        if path.name not in used:
            path.unlink(missing_ok=True)
