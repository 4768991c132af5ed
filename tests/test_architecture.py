"""The arrows between the parts: who may import whom, and what no part may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bilstm_cls

SOURCE = Path(bilstm_cls.__file__).parent
PACKAGE = "bilstm_cls"

FLOORS = [
    {"errors", "files", "device", "config", "config_file"},
    {"data", "model"},
    {"runtime", "checkpoint", "ngrams"},
    {"run_directory", "hub", "classifier", "evaluation"},
    {"training", "serve"},
    {"doctor", "estimator", "estimator_input", "inspection", "progress", "__init__"},
    {"commands"},
    {"cli", "__main__"},
]
"""Parts from the ground up. A part imports from floors below, and from its own folder."""

NEIGHBOURS = {
    *((one, "run_directory") for one in ("evaluation", "classifier", "hub")),
    ("evaluation", "classifier"),
    ("classifier", "hub"),
    *((one, other) for floor in (FLOORS[0], FLOORS[2], FLOORS[5], FLOORS[-1]) for one in floor for other in floor),
}  # fmt: skip
"""Parts of one floor of which the first may import the second, as far as that makes no circle."""

STANDS_ALONE = {"model": {"model"}, "errors": set()}
"""Parts that know nothing of ours but this."""

MODULES = {
    ".".join((PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def nodes_of(path: Path) -> Iterator[ast.AST]:
    """Yields all nodes of a file but those that only a type checker reads."""
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def imports_of(path: Path) -> Iterator[str]:
    """Yields the names of all modules that a file imports, in functions too."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield from {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }


OWN_IMPORTS = {
    module: {name for name in imports_of(path) if name.split(".")[0] == PACKAGE} for module, path in MODULES.items()
}


def floor_of(part: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def test_every_part_has_its_floor() -> None:
    assert {part_of(module) for module in MODULES} <= set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_a_part_imports_only_what_lies_below_it(module: str) -> None:
    part = part_of(module)
    wrong = {
        name
        for name in OWN_IMPORTS[module]
        if (other := part_of(name)) != part and not (floor_of(other) < floor_of(part) or (part, other) in NEIGHBOURS)
    }
    assert wrong == set()


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) in STANDS_ALONE])
def test_the_model_and_the_ground_know_nothing_else_of_ours(module: str) -> None:
    assert {part_of(name) for name in OWN_IMPORTS[module]} <= STANDS_ALONE[part_of(module)]


def test_the_model_stands_on_torch_alone() -> None:
    outside = {
        name.split(".")[0] for module in MODULES if part_of(module) == "model" for name in imports_of(MODULES[module])
    }
    assert outside - set(sys.stdlib_module_names) <= {"torch", "numpy", PACKAGE}


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: names - {module} for module, names in OWN_IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "imp"}
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "tarfile.open", "shutil.unpack_archive",
    "dist.all_gather_object", "dist.broadcast_object_list", "dist.gather_object", "dist.scatter_object_list",
}  # fmt: skip
BANNED_METHODS = {"extractall", "read_pickle"}
EXCUSED = {("bilstm_cls.estimator", "extractall")}
"""Unpacks bytes that only come out of a pickle, which its reader has chosen to trust."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls_of(path: Path) -> Iterator[tuple[str, ast.Call]]:
    yield from ((dotted(node.func), node) for node in nodes_of(path) if isinstance(node, ast.Call))


@pytest.mark.parametrize("module", MODULES)
def test_nothing_read_from_a_file_is_ever_executed(module: str) -> None:
    path = MODULES[module]
    assert {name.split(".")[0] for name in imports_of(path)} & BANNED_MODULES == set()
    called = {name for name, _ in calls_of(path)}
    assert called & BANNED_CALLS == set()
    methods = {name.rpartition(".")[2] for name in called} & BANNED_METHODS
    assert {(module, method) for method in methods} <= EXCUSED


@pytest.mark.parametrize("module", MODULES)
def test_arrays_are_loaded_and_commands_run_in_the_safe_way_only(module: str) -> None:
    for name, call in calls_of(MODULES[module]):
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in ("np.load", "numpy.load", "np.save", "numpy.save"):
            assert ast.unparse(options.get("allow_pickle", ast.Constant(None))) == "False", call.lineno
        assert "shell" not in options, call.lineno


@pytest.mark.parametrize("module", ["bilstm_cls", "bilstm_cls.cli", "bilstm_cls.config", "bilstm_cls.data.readers"])
def test_what_the_command_line_starts_with_imports_no_torch(module: str) -> None:
    heavy = "{'torch', 'sklearn', 'matplotlib', 'pyarrow', 'tokenizers'}"
    script = f"import sys, {module}; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_one_module_at_most_imports_torchtext() -> None:
    assert sum(any(name.split(".")[0] == "torchtext" for name in imports_of(path)) for path in MODULES.values()) <= 1


@pytest.mark.parametrize("path", [SOURCE / "cli.py", *sorted((SOURCE / "commands").glob("*.py"))], ids=lambda p: p.stem)
def test_command_line_imports_nothing_heavy_at_its_top(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    names = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module is not None}
    light = {
        "bilstm_cls.errors",
        "bilstm_cls.device",
        "bilstm_cls.commands",
        "bilstm_cls.commands.options",
        "bilstm_cls.commands.completion",
    }
    assert {name for name in names if name.startswith(PACKAGE)} <= light
