"""Tensors on disk: safetensors files that carry a digest of everything in them.

Neither safetensors nor PyTorch's own format notices a flipped bit in a weight. Here the file's metadata hold a SHA-256
over names, types, shapes, bytes and the other metadata, and nothing is returned before it is checked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bilstm_cls.errors import CheckpointError
from bilstm_cls.files import write_atomic

MAX_HEADER_BYTES = 10_000_000
"""Of a file's names, shapes and metadata; a forged header of the 100 MB that safetensors allows fills the memory."""

_DIGEST = "sha256"
_KEY = "bilstm_cls"
"""Everything of ours is one JSON text under this key: safetensors writes several keys in a random order, and the same
run has to give the same bytes."""


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
    write_atomic(path, save(on_cpu, {_KEY: json.dumps({**metadata, _DIGEST: digest}, sort_keys=True)}))
    return digest


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors onto the CPU, with their metadata and the digest under `sha256`.

    Raises:
        CheckpointError: the file is missing, cut short, changed, or not of this kind.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
    expected = metadata.pop(_DIGEST, None) if isinstance(metadata, dict) else None
    if expected is None:
        raise CheckpointError(f"{path}: carries no digest, so it was not written by this program")
    if digest_of(tensors, metadata) != expected:
        raise CheckpointError(f"{path}: damaged, its contents do not match the digest {str(expected)[:12]}... inside")
    return tensors, {**metadata, _DIGEST: expected}


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {size} bytes, which is too many")
