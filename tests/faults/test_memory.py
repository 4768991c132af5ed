"""F9, F20, F22: memory does not grow with the data or with time, and too little of it is an error of one line."""

import contextlib
from pathlib import Path

from bilstm_cls.data.readers import read
from tests.faults.children import run, start
from tests.faults.conftest import Settings, Tally, cases
from tests.faults.failpoints import resident

MB = 2**20

HUNGRY = ["model.hidden_size=600", "embedding.dim=100", "train.epochs=1", "train.batch_size=2"]
"""A network whose weights, gradients and optimizer take some 50 MB."""

SHORTAGES = {
    "building the model": "data.row:240:memory=30",
    "the first step": "step.before:1:memory=15",
    "the optimizer's state": "step.after_backward:1:memory=5",
}


def test_too_little_memory_is_an_error_wherever_it_ends(settings: Settings, tmp_path: Path, tally: Tally) -> None:
    def survives(where: str) -> None:
        output = tmp_path / where
        environment = {"BILSTM_CLS_CACHE": str(output / "cache")}
        outcome = run(*settings(output, *HUNGRY), faults=[SHORTAGES[where]], environment=environment)
        assert outcome.code == 6, outcome
        assert "Traceback" not in outcome.stderr
        assert len(outcome.errors) == 1, outcome.stderr
        assert "train.batch_size" in outcome.errors[0]

    tally(SHORTAGES, survives)


def large(path: Path, size: int) -> Path:
    """A csv file of so many bytes."""
    block = b"".join(b'"a film, number %d, and some words",%s\n' % (i, (b"pos", b"neg")[i % 2]) for i in range(20_000))
    with path.open("wb") as file:
        file.write(b"text,label\n")
        for _ in range(size // len(block)):
            file.write(block)
    return path


@cases(few=20, many=1000)
def test_a_file_of_any_size_is_read_in_the_same_memory(number: int, tmp_path: Path, tally: Tally) -> None:
    """Of so many megabytes; the first tenth is the start."""

    def survives(_: str) -> int:
        count, level = 0, 0
        for count, _row in enumerate(read(large(tmp_path / "a.csv", number * MB), format="csv"), 1):
            if count == number * 2000:
                level = resident()
        assert level
        assert resident() - level <= 20 * MB
        return count

    tally(["rows"], survives)


@cases(few=24, many=300)
def test_memory_and_files_stay_the_same_over_many_epochs(
    number: int, settings: Settings, tmp_path: Path, tally: Tally
) -> None:
    """Less than a megabyte for a hundred epochs, once the first third is over."""
    history = tmp_path / "tiny/history.jsonl"

    def epochs() -> int:
        with contextlib.suppress(FileNotFoundError):
            return history.read_text("utf-8").count("\n")
        return 0

    def survives(_: str) -> int:
        child = start(*settings(tmp_path, f"train.epochs={number}", "train.checkpoint_seconds=1000"))
        levels: list[tuple[int, int, int]] = []
        while child.process.is_alive() and (at := epochs()) < number:
            if at >= number // 3 and (not levels or at > levels[-1][0]):
                with contextlib.suppress(FileNotFoundError, IndexError):  # it may end while it is looked at
                    levels.append((at, resident(child.pid), len(list(Path(f"/proc/{child.pid}/fd").iterdir()))))
            child.process.join(0.01)
        assert child.wait(seconds=600).code == 0
        first, last = levels[0], levels[-1]
        assert last[0] - first[0] >= number // 3
        assert last[1] - first[1] <= MB * max(1.0, (last[0] - first[0]) / 100)
        open_files = [number_of_files for _, _, number_of_files in levels[:-1]]
        assert max(open_files) - min(open_files) <= 1  # the one that is being written
        kept = sorted(path.name for path in (tmp_path / "tiny/checkpoints").iterdir())
        assert len(kept) in (3, 4)
        return number

    tally(["epochs"], survives)
