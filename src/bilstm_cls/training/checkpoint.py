"""Checkpoints that are whole, verified, and found again after any interruption.

A checkpoint is a safetensors file named after its step and a JSON file named after its role (`last`, `best`) that
holds the rest of the state and points to the tensors by name and digest. The JSON is written last, in one rename: that
is the moment at which the checkpoint exists. Tensors that no JSON points to are removed after it.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from bilstm_cls.errors import CheckpointError
from bilstm_cls.files import write_atomic
from bilstm_cls.tensors import load_tensors, save_tensors

ROLES = ("last", "best")

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], numbers: dict[str, Any], *, roles: tuple[str, ...]
) -> None:
    """Writes a checkpoint and gives it one or both roles.

    Raises:
        ResourceError: the disk is full; the checkpoints that were there still are.
    """
    name = f"step-{step:08d}.safetensors"
    digest = save_tensors(folder / name, tensors, {"step": str(step)})
    content = {"step": step, "tensors": name, "tensors_sha256": digest, **numbers}
    sealed = json.dumps({"sha256": _digest(content), "checkpoint": content}, indent=1)
    for role in roles:
        write_atomic(folder / f"{role}.json", sealed)
    _remove_unused(folder)


def load_checkpoint(folder: Path, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint and verifies every byte of it.

    Raises:
        CheckpointError: it is missing, damaged, or its two files do not belong together.
    """
    path = folder / f"{role}.json"
    content = _read_json(path)
    try:
        name, digest = content["tensors"], content["tensors_sha256"]
    except KeyError as error:
        raise CheckpointError(f"{path}: damaged, {error} is missing") from error
    if Path(name).name != name:
        raise CheckpointError(f"{path}: points outside its folder: {name!r}")
    tensors, metadata = load_tensors(folder / name)
    if metadata["sha256"] != digest:
        raise CheckpointError(f"{folder / name}: not the file that {path.name} was written with")
    return tensors, content


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns the newest checkpoint that is sound, or None where none was written yet.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    problems = []
    for role in ROLES:
        if not (folder / f"{role}.json").exists():
            continue
        try:
            loaded = load_checkpoint(folder, role)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            logger.warning("%s", problems[0])
            logger.warning("going on from the older checkpoint of step %d instead", loaded[1]["step"])
        return loaded
    if problems:
        raise CheckpointError("\n".join([*problems, "no sound checkpoint is left; start again with --overwrite"]))
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        sealed = json.loads(path.read_text("utf-8"))
        content, digest = sealed["checkpoint"], sealed["sha256"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing") from error
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
    if not isinstance(content, dict) or _digest(content) != digest:
        raise CheckpointError(f"{path}: damaged, its contents do not match the digest inside")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_unused(folder: Path) -> None:
    try:
        used = {_read_json(folder / f"{role}.json")["tensors"] for role in ROLES if (folder / f"{role}.json").exists()}
    except CheckpointError as error:
        logger.warning("%s; older checkpoints are kept", error)
        return
    leftovers = [path for path in folder.glob("step-*.safetensors") if path.name not in used]
    leftovers += folder.glob(".*.tmp")
    for path in leftovers:
        path.unlink(missing_ok=True)
