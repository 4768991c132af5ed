"""F1, F13, F17: a run that is killed, signalled or held at any moment, or loses a process, goes on to the same bits."""

import itertools
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Outcome
from tests.faults.children import places_of, run, run_together, start, start_together
from tests.faults.conftest import Settings, Tally, cases
from tests.training.runs import result

KILLED = -9


def moments(places: dict[str, int], seed: int) -> list[str]:
    """Every place at its first, middle and last time, in a random order."""
    found = {(name, at) for name, number in places.items() for at in (1, (number + 1) // 2, number)}
    return random.Random(seed).sample([f"{name}:{at}" for name, at in sorted(found)], len(found))


def chains(places: dict[str, int], number: int) -> Iterator[list[str | float]]:
    """So many of up to three deaths each, at places or after seconds, so that epochs are resumed twice.

    Every moment comes first once in turn; after every third chain there is one in which even the first death comes at a
    random time.
    """
    chooser = random.Random(number)
    for at, place in enumerate(itertools.islice(itertools.cycle(moments(places, number)), number), 1):
        others: list[str | float] = [f"{chooser.choice(moments(places, number))}:kill", chooser.uniform(0.05, 0.5)]
        chooser.shuffle(others)
        yield [f"{place}:kill", *others]
        if at % 3 == 0:
            yield [chooser.uniform(0.05, 1.0), *others]


@cases(few=4, many=100)
def test_a_killed_run_ends_with_the_same_bits(
    number: int, settings: Settings, places: dict[str, int], undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(deaths: list[str | float]) -> int:
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        command = [*settings(output), "--resume"]
        environment = {"BILSTM_CLS_CACHE": str(output / "cache")}
        codes = []
        for death in deaths:
            if isinstance(death, str):
                outcome = run(*command, faults=[death], environment=environment)
                # A resumed run comes to a place less often, or ends earlier.
                assert outcome.code in ((KILLED, 0) if codes else (KILLED,)), f"never came to {death}: {outcome}"
                codes.append(outcome.code)
            else:
                codes.append(start(*command, environment=environment).kill_after(death))
        outcome = run(*command, environment=environment)
        assert (outcome.code, "Traceback" in outcome.stderr) == (0, False), outcome.stderr
        assert result(output / "tiny") == undisturbed
        return codes.count(KILLED)

    tally(chains(places, number), survives)


def is_stopped(outcome: Outcome, number: int, path: Path) -> None:
    assert outcome.code == 128 + number, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    if (path / "status.json").exists():  # it is written when the data are there
        status = json.loads((path / "status.json").read_text("utf-8"))
        assert (status["status"], status["exit_code"]) == ("stopped", 128 + number)
    assert not list(path.rglob("*.tmp"))


@cases(few=4, many=36)
def test_a_signal_at_any_moment_loses_nothing(
    number: int, settings: Settings, places: dict[str, int], undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    """The second Ctrl-C of `SIGINT+SIGINT` does not wait for the end of the step."""
    names = itertools.cycle(("SIGTERM", "SIGINT", "SIGHUP", "SIGINT+SIGINT"))

    def survives(case: tuple[str, str]) -> None:
        moment, name = case
        output = tmp_path / moment.replace(":", "-")
        command = [*settings(output), "--resume"]
        environment = {"BILSTM_CLS_CACHE": str(output / "cache")}
        outcome = run(*command, faults=[f"{moment}:{name}"], environment=environment)
        if outcome.code or not is_last(moment, places):
            is_stopped(outcome, getattr(signal, name.partition("+")[0]), output / "tiny")
            assert run(*command, environment=environment).code == 0
        assert result(output / "tiny") == undisturbed

    tally(zip(moments(places, number)[:number], names, strict=False), survives)


def is_last(moment: str, places: dict[str, int]) -> bool:
    """Whether a run has nothing left to do there but to end."""
    place, _, at = moment.partition(":")
    return int(at) == places[place]


@pytest.fixture(scope="module")
def two_undisturbed(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    places_of(*settings(folder), size=2)
    return result(folder / "tiny")


@pytest.fixture(scope="module")
def two_places(
    settings: Settings, two_undisturbed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, int]]:
    """How often each process of such a run, which finds the cache filled, comes to each failpoint."""
    assert two_undisturbed  # it has filled the cache
    return places_of(*settings(tmp_path_factory.mktemp("counted")), size=2)


@cases(few=2, many=80)
def test_two_processes_of_which_one_is_killed_go_on_to_the_same_bits(
    number: int,
    settings: Settings,
    two_places: list[dict[str, int]],
    two_undisturbed: dict[str, Any],
    tmp_path: Path,
    tally: Tally,
) -> None:
    """The other one ends too, and says what to do."""
    both = zip(*(itertools.cycle(moments(places, rank)) for rank, places in enumerate(two_places)), strict=False)
    deaths = [(rank, moment) for pair in itertools.islice(both, number // 2) for rank, moment in enumerate(pair)]

    def survives(death: tuple[int, str]) -> None:
        rank, moment = death
        output = tmp_path / f"{rank}-{moment.replace(':', '-')}-{len(list(tmp_path.iterdir()))}"
        command = [*settings(output), "--resume"]
        # No torchrun is there to end the second process where the first died before they met.
        options: dict[str, Any] = {"seconds": 30, "environment": {"BILSTM_CLS_TIMEOUT": "10"}}
        outcomes = run_together(*command, faults={rank: [f"{moment}:kill"]}, **options)
        assert outcomes[rank].code == KILLED, f"never came to {moment}: {outcomes}"
        other = outcomes[1 - rank]
        assert other.code in (0, 6), other  # 0 where the other one needs the killed one no more
        assert "Traceback" not in other.stderr
        assert rank == 0 or other.code == 0 or "--resume" in other.stderr
        assert [outcome.code for outcome in run_together(*command, faults={})] == [0, 0]
        assert result(output / "tiny") == two_undisturbed

    tally(deaths, survives)


FAULTS = {
    "hangs": ("step.before:5:stop", 6),
    "fails": ("step.after_backward:5:ENOSPC", 6),
    "is asked to stop": ("step.after_backward:7:SIGTERM", 143),
}


@pytest.mark.parametrize(("name", "rank"), [*zip(FAULTS, (1, 0, 1), strict=True)])
def test_a_process_that_does_not_go_on_ends_the_other_one(
    name: str, rank: int, settings: Settings, two_undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    fault, code = FAULTS[name]
    command = [*settings(tmp_path), "--resume"]
    children = start_together(*command, faults={rank: [fault]}, environment={"BILSTM_CLS_TIMEOUT": "5"})
    try:
        other = children[1 - rank].wait(seconds=60)
    finally:
        if fault.endswith("stop"):
            os.kill(children[rank].pid, signal.SIGKILL)
    assert (other.code, "Traceback" in other.stderr) == (code, False), other
    assert children[rank].wait().code == (KILLED if fault.endswith("stop") else code)
    if code == 143:
        assert [outcome.code for outcome in run_together(*command, faults={})] == [0, 0]
        assert result(tmp_path / "tiny") == two_undisturbed
