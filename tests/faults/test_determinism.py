"""F14, F15: the same seed gives the same bits wherever a run takes place; one that goes astray says so at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.command_line import spawn_cli
from tests.faults.children import run
from tests.faults.conftest import Tally
from tests.faults.sizes import cases
from tests.training.runs import result

Settings = Callable[..., list[str]]

SURROUNDINGS: dict[str, dict[str, str]] = {
    "the same again": {},
    "another language": {"LANG": "C", "LC_ALL": "C"},
    "another time zone": {"TZ": "Asia/Kolkata"},
    "another terminal": {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"},
    "another temporary folder": {"TMPDIR": "."},
}
OPTIONS: dict[str, list[str]] = {
    "in all words": ["--verbose"],
    "as JSON": ["--json"],
    "few checkpoints": ["--set", "train.checkpoint_seconds=1000"],
    "in one process by name": ["--set", "train.processes=1"],
    "on this device by name": ["--device", "cpu"],
}


def test_the_same_seed_gives_the_same_bits_wherever_it_is(
    settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    def survives(name: str) -> None:
        output = tmp_path / name
        command = [word for word in settings(output) if word != "--quiet"]
        cwd = output / "elsewhere"
        cwd.mkdir()
        outcome = run(*command, *OPTIONS.get(name, []), environment=SURROUNDINGS.get(name, {}), cwd=cwd)
        assert outcome.code == 0, outcome
        assert result(output / "tiny") == undisturbed

    tally([*SURROUNDINGS, *OPTIONS], survives)


@cases(few=1, many=5)
def test_the_same_seed_gives_the_same_bits_in_a_new_interpreter(
    number: int, settings: Settings, undisturbed: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    """Whose hashes of strings are others."""

    def survives(seed: int) -> None:
        output = tmp_path / str(seed)
        assert spawn_cli(*settings(output), PYTHONHASHSEED=str(seed)).code == 0
        assert result(output / "tiny") == undisturbed

    tally(range(1, number + 1), survives)


ASTRAY = {
    "a learning rate beyond all bounds": ["train.learning_rate=1e20", "train.max_grad_norm=null"],
    "one that grows the weights without end": ["train.learning_rate=1e6", "train.weight_decay=1e6"],
    "plain gradient descent": ["train.optimizer=sgd", "train.learning_rate=1e30", "train.max_grad_norm=null"],
}


def test_a_run_that_goes_astray_says_where_and_saves_no_such_weights(
    settings: Settings, tmp_path: Path, tally: Tally
) -> None:
    def survives(name: str) -> None:
        output = tmp_path / name
        outcome = run(*settings(output, *ASTRAY[name]))
        assert outcome.code == 5, outcome
        assert "Traceback" not in outcome.stderr
        assert "training diverged at step" in outcome.errors[0]
        assert "learning rate" in outcome.errors[0]
        assert not (output / "tiny/model.safetensors").exists()

    tally(ASTRAY, survives)


def test_vectors_that_are_no_numbers_are_refused(settings: Settings, tmp_path: Path, tally: Tally) -> None:
    def survives(number: str) -> None:
        (tmp_path / "vectors.txt").write_text(f"good {number} 1 1 1 1 1 1 1\n")
        outcome = run(*settings(tmp_path / number, f"embedding.init={tmp_path / 'vectors.txt'}"))
        assert outcome.code == 3, outcome
        assert "vectors.txt" in outcome.errors[0]

    tally(["nan", "inf", "-inf", "1e999", "x"], survives)
