"""What tests of faults share: how many cases they try, how they count them, and a run that nothing happened to."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from tests.faults.children import places_of
from tests.training.runs import result

Make = Callable[..., Config]
Settings = Callable[..., list[str]]
Tally = Callable[[Iterable[Any], Callable[[Any], int | None]], None]


def cases(few: int, many: int) -> pytest.MarkDecorator:
    """Gives a test its argument `number`: few in every run of the tests, many under the marker `nightly`."""
    return pytest.mark.parametrize(
        "number", [pytest.param(few, id="few"), pytest.param(many, id="nightly", marks=pytest.mark.nightly)]
    )


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Returns a function that tries every case, continues after lost ones, and fails if there was one.

    A case is lost if its check raises. A check returns how many faults it counts for; None is one.
    """

    def try_all(cases: Iterable[Any], check: Callable[[Any], int | None]) -> None:
        tried, lost = 0, []
        for case in cases:
            try:
                tried += check(case) or 1
            except Exception as error:  # reported below, when all were tried
                tried += 1
                lost.append(f"{case!r}: {type(error).__name__}: {error}"[:2000])
        record_property("tried", tried)
        record_property("lost", len(lost))
        assert not lost, f"{len(lost)} of {tried} lost, the first:\n" + "\n".join(lost[:5])
        assert tried

    return try_all


@pytest.fixture(scope="session")
def settings(tiny_config: Make) -> Settings:
    """Returns the command that trains 2 epochs of 11 steps into a folder, with a checkpoint after every step."""

    def make(output: Path, *overrides: str) -> list[str]:
        path = output / "config.yaml"
        output.mkdir(parents=True, exist_ok=True)
        often = ["train.epochs=2", "train.checkpoint_seconds=0", f"output_dir={output}"]
        path.write_text(dump_config(tiny_config(*often, *overrides)), "utf-8")
        return ["train", "-c", str(path), "--quiet"]

    return make


@pytest.fixture(scope="session")
def places(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often that run, which starts with an empty cache, comes to each failpoint."""
    folder = tmp_path_factory.mktemp("counted")
    return places_of(*settings(folder), environment={"BILSTM_CLS_CACHE": str(folder / "cache")})[0]


@pytest.fixture(scope="session")
def undisturbed(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What that run leaves behind when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    places_of(*settings(folder))
    return result(folder / "tiny")
