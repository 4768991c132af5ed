"""F10, F19: a disk that is full, fails or refuses, and a place that is none, are told, and nothing is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.children import run
from tests.faults.conftest import Tally
from tests.faults.sizes import cases
from tests.training.runs import result

Settings = Callable[..., list[str]]

WRITES = ("save.before_open", "save.after_write_half", "save.after_write")
FULL, REFUSING = ("ENOSPC", "EDQUOT"), ("EROFS", "EACCES")


def refusals(places: dict[str, int], number: int) -> list[str]:
    """So many moments of a run at which a write is refused, spread over all of it."""
    total = places["save.before_open"]
    moments = sorted({1 + (total - 1) * i // (number - 1) for i in range(number)})
    return [
        f"{WRITES[i % 3]}:{moment}:{(*FULL, *REFUSING)[i % 4]}" for i, moment in enumerate(moments)
    ]  # fmt: skip


@cases(few=12, many=120)
def test_a_disk_that_refuses_a_write_costs_nothing(
    number: int, settings: Settings, places: dict[str, int], undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(fault: str) -> None:
        output = tmp_path / fault.replace(":", "-")
        command = [*settings(output), "--resume"]
        environment = {"BILSTM_CLS_CACHE": str(output / "cache")}
        outcome = run(*command, faults=[fault], environment=environment)
        assert "Traceback" not in outcome.stderr
        is_full = fault.endswith(FULL)
        # A cache that cannot be written is done without, and an end that cannot be noted is not worth an error.
        if outcome.code != 0:
            assert outcome.code == (6 if is_full else 2), outcome
            assert len(outcome.errors) == 1, outcome.stderr
            assert ("no room left" if is_full else "cannot be written") in outcome.stderr
            assert not list((output / "tiny").rglob("*.tmp"))
        assert run(*command, environment=environment).code == 0
        assert result(output / "tiny") == undisturbed

    tally(refusals(places, number), survives)


def test_a_disk_that_fails_once_is_tried_again(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(fault: str) -> None:
        output = tmp_path / fault.replace(":", "-")
        outcome = run(*settings(output), faults=[fault])
        assert outcome.code == 0, outcome
        assert "trying again" in (output / "tiny/train.log").read_text("utf-8")
        assert result(output / "tiny") == undisturbed

    tally([f"{place}:{at}:EIO" for place, at in zip(WRITES, (12, 30, 44), strict=True)], survives)


def test_a_disk_that_fails_for_good_is_told_after_three_tries(settings: Settings, tmp_path: Path) -> None:
    outcome = run(*settings(tmp_path), faults=[f"save.after_write:{at}:EIO" for at in (20, 21, 22)])
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "Input/output error" in outcome.errors[0]


def a_file(place: Path) -> None:
    place.write_text("mine")


def a_dangling_link(place: Path) -> None:
    place.symlink_to(place.parent / "nowhere")


def a_link_to_a_folder(place: Path) -> None:
    (place.parent / "real").mkdir()
    place.symlink_to(place.parent / "real")


PLACES: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "missing parents": ("a/b/c", lambda place: None, 0),
    "blanks, a line feed and an emoji": ("a b\nc 😀", lambda place: None, 0),
    "a name of 255 bytes": ("x" * 255, lambda place: None, 0),
    "a link to a folder": ("link", a_link_to_a_folder, 0),
    "a name of 256 bytes": ("x" * 256, lambda place: None, 2),
    "a file": ("file", a_file, 2),
    "below a file": ("file/below", lambda place: a_file(place.parent), 2),
    "a dangling link": ("link", a_dangling_link, 2),
    "where nothing can be made": ("/proc/nowhere", lambda place: None, 2),
    "a name with NUL": ("a\0b", lambda place: None, 2),
}


def test_a_place_that_is_none_is_told_before_anything_is_trained(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(name: str) -> None:
        where, prepare, code = PLACES[name]
        folder = tmp_path / name
        command = settings(folder)
        place = folder / where
        prepare(place)
        outcome = run(*command, "--output-dir", place)
        assert outcome.code == code, outcome
        assert "Traceback" not in outcome.stderr
        if code == 0:
            assert result(place / "tiny") == undisturbed
        else:
            assert len(outcome.errors) == 1
            assert "epoch 1" not in outcome.stderr
        if prepare is a_file:
            assert place.read_text() == "mine"

    tally(PLACES, survives)


def test_a_full_disk_leaves_the_status_that_says_so(settings: Settings, tmp_path: Path) -> None:
    assert run(*settings(tmp_path), faults=["save.after_write_half:30:ENOSPC"]).code == 6
    status = json.loads((tmp_path / "tiny/status.json").read_text("utf-8"))
    assert (status["status"], status["exit_code"]) == ("failed", 6)
    assert "MB are free there" in status["reason"]


@pytest.mark.parametrize("name", ["config.yaml", "status.json"])
def test_a_file_of_the_run_that_was_taken_away_is_told(settings: Settings, tmp_path: Path, name: str) -> None:
    command = settings(tmp_path)
    assert run(*command, faults=["step.before:5:kill"]).code == -9
    (tmp_path / "tiny" / name).unlink()
    outcome = run(*command, "--resume")
    assert outcome.code in (2, 4)
    assert len(outcome.errors) == 1
