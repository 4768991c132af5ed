"""F13: a run that is asked to stop, at whatever moment, says so, and goes on to the same bits."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.command_line import Outcome
from tests.faults.children import run, start
from tests.faults.conftest import Tally
from tests.training.runs import result

Settings = Callable[..., list[str]]

MOMENTS = [
    "data.row:1", "data.row:120", "data.index:1", "step.before:1", "step.after_backward:4", "step.after_opt:22",
    "eval.start:1", "eval.mid:1", "eval.mid:2", "save.before_open:1", "save.after_write_half:9", "save.after_write:17",
    "save.after_fsync:26", "save.after_rename:33", "save.after_dirsync:41", "save.before_prune:5", "save.mid_prune:3",
    "save.after_rename:48", "save.after_write_half:52", "save.before_open:57",
]  # fmt: skip
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


def is_stopped(outcome: Outcome, number: int, path: Path) -> None:
    assert outcome.code == 128 + number, outcome
    assert "Traceback" not in outcome.stderr
    assert len(outcome.errors) == 1, outcome.stderr
    if (path / "status.json").exists():  # it is written when the data are there
        status = json.loads((path / "status.json").read_text("utf-8"))
        assert (status["status"], status["exit_code"]) == ("stopped", 128 + number)
    assert not list(path.rglob("*.tmp"))


def test_a_signal_at_any_moment_loses_nothing(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(case: tuple[str, str]) -> None:
        moment, name = case
        output = tmp_path / moment.replace(":", "-")
        command = [*settings(output), "--resume"]
        environment = {"BILSTM_CLS_CACHE": str(output / "cache")}
        outcome = run(*command, faults=[f"{moment}:{name}"], environment=environment)
        is_stopped(outcome, getattr(signal, name), output / "tiny")
        assert run(*command, environment=environment).code == 0
        assert result(output / "tiny") == undisturbed

    tally(zip(MOMENTS, itertools.cycle(SIGNALS), strict=False), survives)


def test_a_second_ctrl_c_does_not_wait_and_does_no_harm(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(moment: str) -> None:
        output = tmp_path / moment.replace(":", "-")
        command = [*settings(output), "--resume"]
        is_stopped(run(*command, faults=[f"{moment}:SIGINT+SIGINT"]), signal.SIGINT, output / "tiny")
        assert run(*command).code == 0
        assert result(output / "tiny") == undisturbed

    tally(["step.after_backward:7", "eval.mid:1", "save.after_write_half:20", "save.after_rename:21"], survives)


def test_a_run_that_is_held_for_a_while_goes_on_as_if_nothing_had_happened(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(moment: str) -> None:
        output = tmp_path / moment.replace(":", "-")
        child = start(*settings(output), faults=[f"{moment}:stop"])
        child.wait_until_held()
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait().code == 0
        assert result(output / "tiny") == undisturbed

    tally(["step.after_backward:5", "save.after_write:11"], survives)
