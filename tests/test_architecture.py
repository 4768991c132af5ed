"""The package: imports run downward, the network stands on torch alone, and nothing grows beyond its limit."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/architecture"
loader = SourceFileLoader("architecture", str(SCRIPT))
spec = importlib.util.spec_from_loader("architecture", loader)
assert spec is not None
architecture = importlib.util.module_from_spec(spec)
loader.exec_module(architecture)


def test_imports_run_downward_without_a_circle() -> None:
    assert architecture.broken_order(architecture.import_graph()) == []


def test_an_import_that_leads_upward_or_in_a_circle_is_found() -> None:
    graph = {"model.x": {"data.y"}, "data.y": {"data.z"}, "data.z": {"data.y"}, "cellar": set()}
    found = architecture.broken_order(graph)
    assert [line.split()[0] for line in found] == ["cellar", "model.x", "a"]


@pytest.mark.parametrize("name", architecture.LIMITS)
def test_no_figure_is_above_its_limit(name: str) -> None:
    figure, what = architecture.figures()[name]
    assert figure <= architecture.LIMITS[name], what


def test_the_network_stands_on_torch_alone() -> None:
    modules = {name: path for name, path in architecture.FILES.items() if name.startswith("model.")}
    imported = {name for path in modules.values() for name in architecture.imports_of(path)}
    outside = {name.split(".")[0] for name in imported if not name.startswith("bilstm_cls.model")}
    assert outside - set(sys.stdlib_module_names) == {"torch"}
