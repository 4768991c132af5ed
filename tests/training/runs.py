"""What tests of whole runs do with them: cut them short, and read what they left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bilstm_cls.files import sha256_of
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.loop import StepReport

PICTURES = ("learning_curves", "confusion_matrix", "calibration")


def draw_nothing(*args: Any) -> None:
    """Takes the place of a function of `PICTURES`: drawing is most of a short run's time."""
    args[-1].parent.mkdir(exist_ok=True)
    args[-1].write_bytes(b"\x89PNG" + bytes(20))  # up to its width


class StoppedHereError(Exception):
    """Stands for whatever may end a run from outside."""


def stop_at(step: int) -> Callable[[Any], None]:
    """Ends a run after a step, before anything is saved of it."""

    def stop(report: Any) -> None:
        if isinstance(report, StepReport) and report.step == step:
            raise StoppedHereError

    return stop


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what may differ between two runs of one seed."""
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of `history.jsonl`, their times left out."""
    lines = (path / "history.jsonl").read_text("utf-8").splitlines()
    return [without_time(json.loads(line)) for line in lines]


def result(path: Path) -> dict[str, Any]:
    """All that two runs of one seed have in common, however often they were interrupted."""
    run = RunDirectory(path)
    return {
        "weights": sha256_of(run / "model.safetensors"),
        "state": run.read_json("checkpoints/last.json")["checkpoint"]["tensors_sha256"],
        "predictions": sha256_of(run / "predictions_test.csv"),
        "metrics": without_time(run.read_json("metrics.json")),
        "history": history(path),
        "status": run.read_status()["status"],
        "leftovers": sorted(str(left.relative_to(path)) for left in path.rglob("*.tmp")),
    }


def flip(path: Path) -> None:
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
