"""The script that prints figures on speed, with sizes that take no time."""

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "benchmark"))
TINY = {"device": "cpu", "repeats": 1}


@pytest.fixture(scope="module")
def curves() -> list[Any]:
    sizes = {"length": (10, 20), "hidden_size": (4, 8), "batch_size": (4, 8)}
    globals_ = SCRIPT["epoch_curve"].__globals__
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals_, "VOCAB_SIZE", 50)
        patch.setitem(globals_, "usable_cores", lambda: 1)
        measured: list[Any] = SCRIPT["rate_curves"](sizes, num_tokens=100, **TINY)
        return [*measured, SCRIPT["epoch_curve"]((8, 16), length=20, batch_size=4, **TINY)]


def test_every_point_is_measured(curves: list[Any]) -> None:
    assert [tuple(curve.values) for curve in curves] == [(10, 20), (4, 8), (4, 8), (8, 16)]
    assert all(len(ys) == 2 and min(ys) > 0 for curve in curves for ys in curve.lines.values())
    assert [list(curve.lines) for curve in curves] == [[""], [""], [""], ["1 process"]]


def test_steps_read_about_as_many_tokens_whatever_their_size() -> None:
    numbers = [SCRIPT["steps_way"](length, batch_size=4, device="cpu", num_tokens=240)() for length in (10, 20, 30)]
    assert numbers == [240, 240, 240]


def test_the_table_has_every_figure(curves: list[Any]) -> None:
    table = SCRIPT["curve_table"](curves)
    assert table.count(SCRIPT["RATE"]) == 3
    assert all(f"{y:.2f}" in table for curve in curves for ys in curve.lines.values() for y in ys)


def test_the_picture_is_a_png(curves: list[Any], tmp_path: Path) -> None:
    SCRIPT["draw"](curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_timed_beside_its_bundles(trained_run: Path, tmp_path: Path) -> None:
    first, *rows = SCRIPT["bundle_table"](trained_run, tmp_path, repeats=1).splitlines()
    assert first.endswith("median of 1 interleaved rounds")
    assert [row.split("  ")[1] for row in rows] == ["PyTorch", "onnxruntime", "onnxruntime, 8 bits"]
    assert rows[0].count(" 1.00 of PyTorch's") == 2
