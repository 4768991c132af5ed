"""F10, F18: a disk that is full, fails or refuses costs nothing, and of several runs in one place one gets it."""

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.command_line import run_cli
from tests.faults.children import run, start
from tests.faults.conftest import Settings, Tally, cases
from tests.training.runs import result

WRITES = ("save.before_open", "save.after_write")
FULL, REFUSING = ("ENOSPC", "EDQUOT"), ("EROFS", "EACCES")
NUMBER = 3


def refusals(places: dict[str, int], number: int) -> list[str]:
    """So many moments of a run at which a write is refused, spread over all of it."""
    total = places["save.before_open"]
    moments = sorted({1 + (total - 1) * i // (number - 1) for i in range(number)})
    return [f"{WRITES[i % 2]}:{moment}:{(*FULL, *REFUSING)[i % 4]}" for i, moment in enumerate(moments)]


@cases(few=4, many=120)
def test_a_disk_that_refuses_a_write_costs_nothing(
    number: int, settings: Settings, places: dict[str, int], undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(fault: str) -> None:
        output = tmp_path / fault.replace(":", "-")
        command = [*settings(output), "--resume"]
        environment = {"BILSTM_CLS_CACHE": str(output / "cache")}
        outcome = run(*command, faults=[fault], environment=environment)
        # A run goes on without a cache that cannot be written, and ends well though it cannot note its end.
        if outcome.code != 0:
            assert outcome.code == (6 if fault.endswith(FULL) else 2), outcome
            assert len(outcome.errors) == 1, outcome.stderr
            assert not list((output / "tiny").rglob("*.tmp"))
        assert "Traceback" not in outcome.stderr
        assert run(*command, environment=environment).code == 0
        assert result(output / "tiny") == undisturbed

    tally(refusals(places, number), survives)


@pytest.mark.parametrize("command", ["train", "pretrain", "predict", "export"])
@pytest.mark.parametrize("kind", ["a file in the way", "a read-only folder"])
def test_a_place_that_cannot_be_written_is_one_line(
    command: str, kind: str, settings: Settings, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any time is spent on what would be written there."""
    train = settings(tmp_path / "config")[:3]
    place = tmp_path / "place"
    if kind == "a file in the way":
        place.write_text("the user's own")
    else:
        place.mkdir()
        refuse = mock.Mock(side_effect=PermissionError(errno.EACCES, "Permission denied", str(place)))
        for name in ("open", "mkdir"):  # the tests may run as root, whom no mode stops
            monkeypatch.setattr(os, name, functools.partial(below, place, refuse, getattr(os, name)))
    words = {
        "train": [*train, "-o", place / "runs"],
        "pretrain": ["pretrain", *train[1:], "-o", place / "encoder"],
        "predict": ["predict", "--run", trained_run, "--input", "in.txt", "--output", place / "out.csv"],
        "export": ["export", "--run", trained_run, "--output", place / "bundle"],
    }
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("good\n")
    outcome = run_cli(*words[command])
    assert (outcome.code, len(outcome.errors), "Traceback" in outcome.stderr) == (2, 1, False), outcome
    assert "place" in outcome.errors[0]
    assert not place.is_file() or place.read_text() == "the user's own"


def below(place: Path, refuse: mock.Mock, call: Callable[..., Any], path: Any, *args: Any, **options: Any) -> Any:
    is_below = isinstance(path, str | Path) and place in (Path(path), *Path(path).parents)
    return (refuse if is_below else call)(path, *args, **options)


@cases(few=1, many=20)
def test_of_several_runs_that_want_one_place_one_gets_it(
    number: int, settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(seed: int) -> None:
        command = settings(tmp_path / str(seed))
        outcomes = [child.wait() for child in [start(*command) for _ in range(NUMBER)]]
        assert sorted(outcome.code for outcome in outcomes) == [0] + [2] * (NUMBER - 1), outcomes
        assert all(len(outcome.errors) == bool(outcome.code) for outcome in outcomes), outcomes
        assert result(tmp_path / str(seed) / "tiny") == undisturbed

    tally(range(number), survives)
