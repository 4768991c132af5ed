"""F14, F15: the same seed gives the same bits in every environment; a run that diverges says so and stops."""

from pathlib import Path
from typing import Any

from tests.command_line import spawn_cli
from tests.faults.children import run
from tests.faults.conftest import Settings, Tally, cases
from tests.training.runs import result

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "another locale": {"LANG": "C", "LC_ALL": "C"},
    "another time zone": {"TZ": "Asia/Kolkata"},
    "another terminal": {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"},
    "another temporary folder": {"TMPDIR": "."},
}
OPTIONS: dict[str, list[str]] = {
    "verbose": ["--verbose"],
    "JSON": ["--json"],
    "few checkpoints": ["--set", "train.checkpoint_seconds=1000"],
    "one process by name": ["--set", "train.processes=1", "--device", "cpu"],
}


def test_the_same_seed_gives_the_same_bits_everywhere(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(name: str) -> None:
        output = tmp_path / name
        command = [word for word in settings(output) if word != "--quiet"]
        cwd = output / "elsewhere"
        cwd.mkdir()
        outcome = run(*command, *OPTIONS.get(name, []), environment=ENVIRONMENTS.get(name, {}), cwd=cwd)
        assert outcome.code == 0, outcome
        assert result(output / "tiny") == undisturbed

    tally([*ENVIRONMENTS, *OPTIONS], survives)


@cases(few=1, many=5)
def test_the_same_seed_gives_the_same_bits_in_a_new_interpreter(
    number: int, settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    """Whose hashes of strings differ."""

    def survives(seed: int) -> None:
        output = tmp_path / str(seed)
        assert spawn_cli(*settings(output), PYTHONHASHSEED=str(seed)).code == 0
        assert result(output / "tiny") == undisturbed

    tally(range(1, number + 1), survives)


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
