"""What a user gave as config: a file and overrides, merged, with the place and the mending of every mistake."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bilstm_cls.config_words import CHOICE_OR_TYPE, cut, dotted, must_be, shown, unknown_key
from bilstm_cls.errors import ConfigError
from bilstm_cls.strict_yaml import KeyPath, parse_yaml

MAX_BYTES = 1_000_000
MAX_PROBLEMS = 200
"""So many are told at once; a file with more is no config."""


class Place(NamedTuple):
    """Where something was written; places sort as a reader meets them: defaults, the file by line, overrides,
    options of their own."""

    rank: int
    position: int
    name: str


class Given:
    """The values that a file and overrides give, where each was written, and what is wrong with them.

    Attributes:
        values: nested plain data, for the schema to check.
    """

    def __init__(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Takes the names of all keys by section, those of the top level under the empty name."""
        self.values: dict[str, Any] = {}
        self._keys = keys
        self._file = ""
        self._places: dict[KeyPath, Place] = {}
        self._problems: list[tuple[Place, str]] = []

    def add_file(self, path: Path) -> None:
        """Takes a file's values.

        Raises:
            ConfigError: it cannot be read as a mapping at all.
        """
        self._file = str(path)
        document = parse_yaml(_read(path))
        self._problems += [(self._line(line), problem) for line, problem in document.problems]
        if not isinstance(document.value, dict):
            if not document.problems:
                is_empty = document.value is None
                found = "is empty" if is_empty else f"must be a mapping of keys, not {shown(document.value)}"
                self._problems.append((self._line(1), f"{found}; `bilstm-cls init --data FILE` prints a config"))
            self.raise_problems()
        self._places = {at: self._line(line) for at, line in document.lines.items()}
        # A section whose keys are all commented out is an empty one.
        self.values = {k: {} if v is None and k in self._keys else v for k, v in document.value.items()}

    def add_override(self, override: str, position: int, *, written: str | None = None) -> None:
        """Takes one `key.path=value` over what is there.

        Args:
            override: the value is YAML.
            position: among all overrides.
            written: what the user wrote where it was an option of its own, such as `--seed 7`; `--set` if None.
        """
        place = Place(2, position, f"--set {cut(override)}") if written is None else Place(3, position, cut(written))
        key, equals, text = override.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        document = parse_yaml(text)
        fault = self._fault(path) if equals and all(path) else "must look like key.path=value"
        problems = [fault] if fault else [problem for _, problem in document.problems]
        self._problems += [(place, problem) for problem in problems]
        section = self.values.setdefault(path[0], {}) if len(path) == 2 and not problems else self.values
        # What is no mapping though it should be is a problem of the file, and told as such.
        if not problems and isinstance(section, dict):
            section[path[-1]] = document.value
            self._places = {at: known for at, known in self._places.items() if at[: len(path)] != path} | {path: place}

    def _fault(self, path: tuple[str, ...]) -> str | None:
        """Says why nothing can be set at a path, whatever the value."""
        if len(path) == 1 and path[0] in self._keys:
            example = f"--set {path[0]}.{self._keys[path[0]][0]}=VALUE"
            return f"{path[0]!r} is a section; set its keys, such as {example}"
        if len(path) > 2 or (len(path) == 2 and path[0] in self._keys[""] and path[0] not in self._keys):
            return f"{'.'.join(path[:-1])!r} has no keys of its own; set it as a whole"
        return None

    def add_validation(self, error: ValidationError) -> None:
        """Takes what the schema found wrong, in our words."""
        found = [(self._path_of(e["loc"]), e) for e in error.errors(include_url=False)[:MAX_PROBLEMS]]
        for path, errors in _deepest(found):
            place = self._place(path)
            for problem in self._words(path, errors):
                prefix = f"{dotted(path)}: "
                # An override or an option names its key already.
                is_named = place.rank == 3 or place.name.startswith(f"--set {dotted(path)}=")
                self._problems.append((place, problem.removeprefix(prefix) if is_named else problem))

    def raise_problems(self) -> None:
        """Raises all problems as one `ConfigError`, if there are any."""
        problems = sorted(self._problems, key=lambda problem: problem[0])[:MAX_PROBLEMS]
        lines = [f"{place.name}: {text}" if place.name else text for place, text in problems]
        if len(lines) > 1:
            lines.insert(0, f"{self._file}: {len(lines)} problems:" if self._file else f"{len(lines)} problems:")
        if lines:
            raise ConfigError("\n".join(lines))

    def _words(self, path: KeyPath, errors: Sequence[Any]) -> Iterator[str]:
        if errors[0]["type"] == "extra_forbidden":
            yield unknown_key(dotted(path[:-1]), str(path[-1]), self._keys)
            return
        broken_limits = [e for e in errors if e["type"] not in CHOICE_OR_TYPE]
        if broken_limits:
            yield from (f"{dotted(path)}: {must_be([e])}" for e in broken_limits)
        else:
            yield f"{dotted(path)}: {must_be(errors)}"

    def _path_of(self, location: Iterable[str | int]) -> KeyPath:
        """Drops what pydantic puts among keys and positions: which member of a union it tried."""
        path: list[str | int] = []
        node: Any = self.values
        for depth, step in enumerate(location):
            is_there = step in node if isinstance(node, dict) else isinstance(node, list) and isinstance(step, int)
            if is_there or depth < 1 or (depth == 1 and path[0] in self._keys):
                path.append(step)
                node = node[step] if is_there else None
        return tuple(path)

    def _place(self, path: KeyPath) -> Place:
        """Returns where a value was written, or else something of the section around it."""
        for depth in range(len(path), 0, -1):
            for at, place in self._places.items():
                if at[:depth] == path[:depth]:
                    return place
        return Place(0, 0, self._file or "defaults")

    def _line(self, line: int) -> Place:
        return Place(1, line, f"{self._file}:{line}")


def _deepest(found: Sequence[tuple[KeyPath, Any]]) -> Iterator[tuple[KeyPath, list[Any]]]:
    """Groups errors by path, leaving out the members of a union that a value had not even the shape of."""
    paths = dict.fromkeys(path for path, _ in found)
    for path in paths:
        if not any(other[: len(path)] == path and other != path for other in paths):
            yield path, [error for at, error in found if at == path]


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; give a config file, such as {path / 'config.yaml'}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file{_neighbours(path)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES:,} bytes, so it is no config")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error


def _neighbours(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    except OSError:
        return f", nor the folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=3) or [n for n in names if n.endswith((".yaml", ".yml"))][:8]
    return f"; in {path.parent} there is {', '.join(near)}" if near else ""
