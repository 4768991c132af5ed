"""What the fault plan needs: how many cases a test tries, how it counts them, and a run that nothing happened to."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from tests.faults.children import places_of
from tests.training.runs import result

Make = Callable[..., Config]
Tally = Callable[[Iterable[Any], Callable[[Any], int | None]], None]
MAX_TOLD = 5


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Returns a function that tries every case, goes on after those that are lost, and fails if there was one.

    A case is lost where its check raises. What it returns is how many faults it stands for; None is one.
    """

    def try_all(cases: Iterable[Any], check: Callable[[Any], int | None]) -> None:
        tried, lost = 0, []
        for case in cases:
            try:
                tried += check(case) or 1
            except Exception as error:  # to count all of them; told below
                tried += 1
                lost.append(f"{case!r}: {type(error).__name__}: {error}")
        record_property("tried", tried)
        record_property("lost", len(lost))
        told = "\n".join(text[:2000] for text in lost[:MAX_TOLD])
        assert not lost, f"{len(lost)} of {tried} lost, the first:\n{told}"
        assert tried

    return try_all


@pytest.fixture(scope="session")
def settings(tiny_config: Make) -> Callable[..., list[str]]:
    """Returns the command that trains 2 epochs of 11 steps into a folder, with a checkpoint after every step."""

    def make(output: Path, *overrides: str) -> list[str]:
        path = output / "config.yaml"
        often = ["train.epochs=2", "train.checkpoint_seconds=0"]
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_config(tiny_config(*often, f"output_dir={output}", *overrides)), "utf-8")
        return ["train", "-c", str(path), "--quiet"]

    return make


@pytest.fixture(scope="session")
def places(settings: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often that run, which starts with an empty cache, comes to each failpoint."""
    folder = tmp_path_factory.mktemp("counted")
    return places_of(*settings(folder), environment={"BILSTM_CLS_CACHE": str(folder / "cache")})


@pytest.fixture(scope="session")
def undisturbed(settings: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What that run leaves behind when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    places_of(*settings(folder))
    return result(folder / "tiny")
