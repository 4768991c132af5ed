"""F14, F15: the same seed gives the same bits in every environment; a run that diverges says so and stops."""

from pathlib import Path
from typing import Any

from tests.command_line import spawn_cli
from tests.faults.children import run
from tests.faults.conftest import Settings, Tally
from tests.training.runs import result

ENVIRONMENT = {
    "LANG": "C", "LC_ALL": "C", "TZ": "Asia/Kolkata", "COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb", "TMPDIR": ".",
}  # fmt: skip
OPTIONS = ["--verbose", "--json", "--set", "train.checkpoint_seconds=1000", "--device", "cpu"]
CASES: dict[str, tuple[dict[str, str], list[str]]] = {
    "another environment": (ENVIRONMENT, []),
    "options that change nothing": ({}, OPTIONS),
}


def test_the_same_seed_gives_the_same_bits_everywhere(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(name: str) -> None:
        environment, options = CASES[name]
        output = tmp_path / name
        command = [word for word in settings(output) if word != "--quiet"]
        cwd = output / "elsewhere"
        cwd.mkdir()
        outcome = run(*command, *options, environment=environment, cwd=cwd)
        assert outcome.code == 0, outcome
        assert result(output / "tiny") == undisturbed

    tally(CASES, survives)


def test_the_same_seed_gives_the_same_bits_in_a_new_interpreter(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Whose hashes of strings differ."""
    assert spawn_cli(*settings(tmp_path), PYTHONHASHSEED="1").code == 0
    assert result(tmp_path / "tiny") == undisturbed


DIVERGING = {
    "adamw": ["train.learning_rate=1e20", "train.max_grad_norm=null"],
    "weight decay": ["train.learning_rate=1e6", "train.weight_decay=1e6"],
    "sgd": ["train.optimizer=sgd", "train.learning_rate=1e30", "train.max_grad_norm=null"],
}


def test_a_run_that_diverges_stops_and_saves_no_such_weights(settings: Settings, tmp_path: Path, tally: Tally) -> None:
    def survives(name: str) -> None:
        output = tmp_path / name
        outcome = run(*settings(output, *DIVERGING[name]))
        assert outcome.code == 5, outcome
        assert len(outcome.errors) == 1
        assert not (output / "tiny/model.safetensors").exists()

    tally(DIVERGING, survives)
