"""Is this machine fit: versions, devices, caches, and the promises about padding checked here and now."""

import importlib.metadata
import platform
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bilstm_cls.data.store import cache_folder
from bilstm_cls.device import choose_device
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.pooling import POOLINGS
from bilstm_cls.model.recurrent import CELLS
from bilstm_cls.run_directory import RunDirectory

TOLERANCE = 1e-6
PACKAGES = ("bilstm-cls", "torch", "tokenizers", "safetensors", "numpy", "scikit-learn", "pydantic", "typer")


@dataclass(frozen=True)
class Check:
    """One promise as it held on this machine: the largest difference found, and what is allowed."""

    name: str
    difference: float
    limit: float

    @property
    def is_sound(self) -> bool:
        return self.difference <= self.limit


def examine(device: str = "auto", run: Path | None = None) -> dict[str, Any]:
    """Returns versions, devices and extras, and the outcome of every check on `device`.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        run: a run directory whose files are verified as well.

    Raises:
        CheckpointError: the run is damaged.
        ConfigError: there is no such device.
    """
    chosen = choose_device(device)
    checks = run_checks(chosen)
    if run is not None:
        RunDirectory(run).load_model()
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "extras": {name: not missing for name, missing in missing_packages().items()},
        "device": str(chosen),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "cache": str(cache_folder()),
        "checks": [
            {"name": c.name, "difference": c.difference, "limit": c.limit, "is_sound": c.is_sound} for c in checks
        ],
        **({} if run is None else {"run": f"{run}: every digest fits"}),
        "is_sound": all(check.is_sound for check in checks),
    }


def missing_packages() -> dict[str, list[str]]:
    """Returns the packages of each extra that are not installed, by extra, as this package's own metadata list them."""
    missing: dict[str, list[str]] = defaultdict(list)
    for requirement in importlib.metadata.requires("bilstm-cls") or []:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if package and extra and extra[1] != "dev":
            missing[extra[1]] += [] if _is_installed(package[0]) else [package[0]]
    return dict(missing)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def run_checks(device: torch.device) -> list[Check]:
    """Compares the probabilities of 64 random texts together, alone and with extra padding, for every cell."""
    checks = []
    for cell in CELLS:
        alone, padded = _differences(cell, device)
        checks.append(Check(f"{cell}: a text alone and in a batch of 64", alone, TOLERANCE))
        checks.append(Check(f"{cell}: with and without extra padding", padded, TOLERANCE))
    return checks


def _differences(cell: str, device: torch.device) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (64,), generator=generator)
    token_ids = torch.randint(1, 1000, (64, 60), generator=generator) * (torch.arange(60) < lengths.unsqueeze(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BiLSTMClassifier(1000, 3, cell=cell, num_layers=2, pooling=[*POOLINGS, "attention"], hidden_size=32)
    model = model.to(device).eval()
    with torch.inference_mode():
        together = model(token_ids.to(device), lengths).double().softmax(1)
        padded = model(torch.nn.functional.pad(token_ids, (0, 40)).to(device), lengths).double().softmax(1)
        alone = torch.cat([model(t[None].to(device), n[None]) for t, n in zip(token_ids, lengths, strict=True)])
    return (
        float((alone.double().softmax(1) - together).abs().max()),
        float((padded - together).abs().max()),
    )
