"""F1: a run that is killed at any moment, again and again, ends with the bits of one that nothing happened to."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.children import places_together, run, run_together, start
from tests.faults.conftest import Tally
from tests.faults.sizes import cases
from tests.training.runs import result

Settings = Callable[..., list[str]]
KILLED = -9


def moments(places: dict[str, int], seed: int) -> list[str]:
    """Every place at its first, middle and last time, in a random order."""
    found = {(name, at) for name, number in places.items() for at in (1, (number + 1) // 2, number)}
    return random.Random(seed).sample([f"{name}:{at}:kill" for name, at in sorted(found)], len(found))


@dataclass(frozen=True)
class Deaths:
    """What a run dies of: at a place, if one is named, that it must come to, and then wherever it happens to be.

    A run that is gone on with meets a place less often, or ends before its time: such a death may not come to pass.
    """

    place: str | None
    others: list[str | float]


def chains(places: dict[str, int], number: int) -> Iterator[Deaths]:
    """So many of up to three deaths each, so that epochs are resumed twice; every moment comes once in turn.

    After every third, one in which even the first death comes at a random time.
    """
    chooser = random.Random(number)
    for at, place in enumerate(itertools.islice(itertools.cycle(moments(places, number)), number), 1):
        others: list[str | float] = [chooser.choice(moments(places, number)), chooser.uniform(0.05, 0.5)]
        chooser.shuffle(others)
        yield Deaths(place, others)
        if at % 3 == 0:
            yield Deaths(None, [chooser.uniform(0.05, 1.0), *others])


@cases(few=14, many=100)
def test_a_killed_run_ends_with_the_same_bits(
    number: int,
    settings: Settings,
    places: dict[str, int],
    undisturbed: dict[str, Any],
    tmp_path: Path,
    tally: Tally,
) -> None:
    def survives(deaths: Deaths) -> int:
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        command = [*settings(output), "--resume"]
        environment = {"BILSTM_CLS_CACHE": str(output / "cache")}
        num_kills = 0
        if deaths.place is not None:
            outcome = run(*command, faults=[deaths.place], environment=environment)
            assert outcome.code == KILLED, f"never came to {deaths.place}: {outcome}"
            num_kills += 1
        for death in deaths.others:
            if isinstance(death, str):
                outcome = run(*command, faults=[death], environment=environment)
                assert outcome.code in (KILLED, 0), outcome.stderr
                num_kills += outcome.code == KILLED
            else:
                num_kills += start(*command, environment=environment).kill_after(death) == KILLED
        outcome = run(*command, environment=environment)
        assert outcome.code == 0, outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert result(output / "tiny") == undisturbed
        return num_kills

    tally(chains(places, number), survives)


@pytest.fixture(scope="module")
def two_undisturbed(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    outcomes = run_together(*settings(folder), faults={})
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    return result(folder / "tiny")


@pytest.fixture(scope="module")
def two_places(
    settings: Settings, two_undisturbed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, int]]:
    """How often each process of such a run, which finds the cache filled, comes to each failpoint."""
    assert two_undisturbed  # it has filled the cache
    return places_together(*settings(tmp_path_factory.mktemp("counted")))


@cases(few=6, many=80)
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
    deaths = [(rank, death) for pair in itertools.islice(both, number // 2) for rank, death in enumerate(pair)]

    def survives(death: tuple[int, str]) -> None:
        rank, fault = death
        output = tmp_path / f"{rank}-{fault.replace(':', '-')}-{len(list(tmp_path.iterdir()))}"
        command = [*settings(output), "--resume"]
        # No agent of torchrun ends the second process where the first died before they met.
        outcomes = run_together(*command, faults={rank: [fault]}, seconds=30, environment={"BILSTM_CLS_TIMEOUT": "10"})
        assert outcomes[rank].code == KILLED, f"never came to {fault}: {outcomes}"
        other = outcomes[1 - rank]
        assert "Traceback" not in other.stderr
        if other.code != 0:  # a place at the very end is one that the other needs no more
            assert other.code == 6, other
            assert rank == 0 or "--resume" in other.stderr
        again = run_together(*command, faults={})
        assert [outcome.code for outcome in again] == [0, 0], again
        assert result(output / "tiny") == two_undisturbed

    tally(deaths, survives)
