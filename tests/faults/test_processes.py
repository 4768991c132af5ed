"""F17, F18: several processes of one run of which one hangs or is stopped, and several runs that want one place."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.command_line import Outcome
from tests.faults.children import run, run_together, start, start_together
from tests.faults.conftest import Tally
from tests.faults.sizes import cases
from tests.training.runs import result

Settings = Callable[..., list[str]]
NUMBER = 8


def test_a_process_that_hangs_ends_the_others_and_is_named(settings: Settings, tmp_path: Path, tally: Tally) -> None:
    def survives(rank: int) -> None:
        command = settings(tmp_path / str(rank))
        children = start_together(
            *command, faults={rank: ["step.before:5:stop"]}, environment={"BILSTM_CLS_TIMEOUT": "5"}
        )
        try:
            outcome = children[1 - rank].wait(seconds=60)
        finally:
            os.kill(children[rank].pid, signal.SIGKILL)
        assert children[rank].wait().code == -signal.SIGKILL
        assert outcome.code == 6, outcome
        assert "Traceback" not in outcome.stderr

    tally([0, 1], survives)


def test_an_error_in_one_process_ends_both(settings: Settings, tmp_path: Path, tally: Tally) -> None:
    def survives(rank: int) -> None:
        outcomes = run_together(*settings(tmp_path / str(rank)), faults={rank: ["step.after_backward:5:ENOSPC"]})
        assert outcomes[rank].code == 6
        assert outcomes[1 - rank].code == 6
        assert all("Traceback" not in outcome.stderr for outcome in outcomes)

    tally([0, 1], survives)


def test_a_signal_to_one_process_stops_both_at_the_same_step(settings: Settings, tmp_path: Path, tally: Tally) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert [outcome.code for outcome in run_together(*settings(undisturbed), faults={})] == [0, 0]

    def survives(rank: int) -> None:
        output = tmp_path / str(rank)
        command = [*settings(output), "--resume"]
        outcomes = run_together(*command, faults={rank: ["step.after_backward:7:SIGTERM"]})
        assert [outcome.code for outcome in outcomes] == [143, 143], outcomes
        status = json.loads((output / "tiny/status.json").read_text("utf-8"))
        assert (status["status"], status["exit_code"]) == ("stopped", 143)
        assert [outcome.code for outcome in run_together(*command, faults={})] == [0, 0]
        assert result(output / "tiny") == result(undisturbed / "tiny")

    tally([0, 1], survives)


def is_told_who_is_there(outcome: Outcome) -> bool:
    words = ("another run is writing here", "already holds a run")
    return outcome.code == 2 and len(outcome.errors) == 1 and any(word in outcome.errors[0] for word in words)


@cases(few=2, many=20)
def test_of_eight_runs_that_want_one_place_one_gets_it(
    number: int, settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(seed: int) -> None:
        command = settings(tmp_path / str(seed))
        outcomes = [child.wait() for child in [start(*command) for _ in range(NUMBER)]]
        assert sorted(outcome.code for outcome in outcomes) == [0] + [2] * (NUMBER - 1), outcomes
        assert sum(map(is_told_who_is_there, outcomes)) == NUMBER - 1, outcomes
        assert result(tmp_path / str(seed) / "tiny") == undisturbed

    tally(range(number), survives)


@cases(few=1, many=10)
def test_eight_runs_that_fill_one_cache_agree_though_no_lock_holds(
    number: int, settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(seed: int) -> None:
        cache = tmp_path / f"cache-{seed}"
        environment = {"BILSTM_CLS_CACHE": str(cache), "CHILD_WITHOUT_LOCKS": "1"}
        outputs = [tmp_path / f"{seed}-{i}" for i in range(NUMBER)]
        outcomes = [child.wait() for child in [start(*settings(o), environment=environment) for o in outputs]]
        assert [outcome.code for outcome in outcomes] == [0] * NUMBER, outcomes
        assert all(result(output / "tiny") == undisturbed for output in outputs)
        assert not list(cache.rglob(".new-*"))

    tally(range(number), survives)


def test_the_lock_of_a_run_that_was_killed_is_free(settings: Settings, tmp_path: Path) -> None:
    command = settings(tmp_path)
    assert run(*command, faults=["step.before:3:kill"]).code == -9
    assert run(*command, "--resume").code == 0


def test_who_holds_a_place_is_not_taken_for_the_run_before(settings: Settings, tmp_path: Path) -> None:
    """Between the lock and the first status of a run, the status is still that of the run before."""
    command = settings(tmp_path)
    assert run(*command).code == 0
    held = start(*command, "--overwrite", faults=["save.before_open:1:stop"])
    held.wait_until_held()
    outcome = run(*command, "--overwrite")
    os.kill(held.pid, signal.SIGCONT)
    assert held.wait().code == 0
    assert outcome.code == 2
    assert "(just started)" in outcome.errors[0]
