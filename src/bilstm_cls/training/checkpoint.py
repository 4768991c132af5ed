"""Checkpoints that are whole, verified, and found again after any interruption.

A checkpoint is a safetensors file named after its step and a JSON file named after its role (`last`, `best`) that
holds the rest of the state and points to the tensors by name and digest. The JSON is written last, in one rename: that
is the moment at which the checkpoint exists. Tensors that no JSON points to are removed after it.
"""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from bilstm_cls.errors import CheckpointError
from bilstm_cls.files import write_atomic
from bilstm_cls.tensors import load_tensors, save_tensors

ROLES = ("best", "last")
"""In the order in which they are written: a run that is killed in between goes on from the new best one, and never from
a last one whose best weights are not under that name yet."""

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
    sealed = _seal({"step": step, "tensors": name, "tensors_sha256": digest, **numbers})
    for role in (role for role in ROLES if role in roles):
        write_atomic(folder / f"{role}.json", sealed)
    _remove_unused(folder)


def load_checkpoint(folder: Path, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint and verifies every byte of it.

    Raises:
        CheckpointError: it is missing, damaged, or its two files do not belong together.
    """
    path = folder / f"{role}.json"
    content = _read_json(path)
    name = content["tensors"]
    tensors, metadata = load_tensors(folder / name)
    if metadata["sha256"] != content.get("tensors_sha256"):
        raise CheckpointError(f"{folder / name}: not the file that {path.name} was written with")
    return tensors, content


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns the newest checkpoint that is sound, or None where none was written yet.

    All are verified, so that damage is told now and not when a checkpoint is needed at the end of the run.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    sound, problems = [], []
    for role in ROLES:
        if not (folder / f"{role}.json").exists():
            continue
        try:
            sound.append(load_checkpoint(folder, role))
        except CheckpointError as error:
            problems.append(str(error))
    if problems and not sound:
        raise CheckpointError("\n".join([*problems, "no sound checkpoint is left; start again with --overwrite"]))
    newest = max(sound, key=lambda checkpoint: checkpoint[1]["step"], default=None)
    for problem in problems:
        logger.warning(problem)
    if problems and newest is not None:
        logger.warning(f"going on from step {newest[1]['step']:,} instead")
    return newest


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """Returns the tensors of the best checkpoint, which the run says is that of `step`.

    Raises:
        CheckpointError: it is missing, damaged, or of another step.
    """
    try:
        tensors, content = load_checkpoint(folder, "best")
        if content["step"] != step:
            raise CheckpointError(f"{folder / 'best.json'}: is of step {content['step']} instead of step {step}")
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nthe best weights are lost; start again with --overwrite") from error
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)["checkpoint"]
        is_sound = text == _seal(content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing") from error
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
    if not is_sound:
        raise CheckpointError(f"{path}: damaged, its contents do not match the digest inside")
    is_known = isinstance(content, dict) and isinstance(content.get("step"), int)
    if not is_known or not re.fullmatch(r"step-\d+\.safetensors", str(content.get("tensors"))):
        raise CheckpointError(f"{path}: not a checkpoint of this program")
    return dict(content)


def _seal(content: Any) -> str:
    """Returns the text of a role's file. It is compared as a whole, so that no changed byte goes unnoticed."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": digest, "checkpoint": content}, indent=1)


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
