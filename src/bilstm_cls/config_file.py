"""The config file: strict YAML, overrides over it, and all problems at once, each with its line and a likely fix.

PyYAML cuts the text into nodes; what a scalar means is decided here, after YAML 1.2: `1e-3` is a number, `no` and
`12:30` are text. What could surprise or explode is refused: anchors, aliases, merge keys, tags, duplicate keys, keys
that are not text, numbers that are not finite, several documents, deep nesting.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from bilstm_cls.config import Config, Section, config_keys
from bilstm_cls.errors import ConfigError, KeyPath, cut, dotted, problems_of, shown

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_PROBLEMS = 200
"""So many are reported at once; a file with more is no config."""

_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))
_PATTERNS = {
    _NULL: re.compile(r"(?:~|null|Null|NULL)?\Z"),
    _BOOL: re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    _INT: re.compile(r"[-+]?[0-9]+\Z"),
    _FLOAT: re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
_HINTS = {
    "'\\t'": "; indent with spaces, not tabs",
    "alphabetic or numeric": "; put text that begins with '*', '&' or '%' in quotes",
    "another document": "; keep one document",
    "block end": "; check the indentation",
    "cannot start any token": "; put text that begins so in quotes",
    "mapping values": "; check the indentation, or put text that holds ': ' in quotes",
}


def load_config(
    path: Path | None, overrides: Sequence[str] = (), *, options: Mapping[str, str] | None = None
) -> Config:
    """Reads a config: defaults, over them the file, over it `key.path=value` overrides, of which the last wins.

    Args:
        path: a YAML file; None for the defaults alone, which name no data.
        overrides: values are YAML, as in the file.
        options: more overrides, which win over those, by what the user wrote for each, such as `--seed 7`.

    Raises:
        ConfigError: with all problems at once, each with its place.
    """
    given = ConfigInput()
    if path is not None:
        given.add_file(Path(path))
        given.values.setdefault("data", {})
    for override in overrides:
        given.add_override(override)
    for written, override in (options or {}).items():
        given.add_override(override, written=written)
    given.values.setdefault("name", "run" if path is None else _plain_name(Path(path).stem))
    return given.config()


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a config with `key.path=value` overrides put into it, checked as a whole.

    Raises:
        ConfigError: with all problems at once.
    """
    given = ConfigInput()
    given.values = config.model_dump()
    for override in overrides:
        given.add_override(override)
    return given.config()


def dump_config(config: Config) -> str:
    """Returns the resolved config as YAML that `load_config` reads back to an equal one."""
    return dump_yaml(config.model_dump())


def config_schema() -> dict[str, Any]:
    """Returns the JSON schema of the config file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def changed_keys(a: Config, b: Config) -> list[str]:
    """Returns what differs from `a` to `b`, such as `train.epochs: 5 -> 6`."""
    before, after = _flat(a), _flat(b)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def _flat(config: Section) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config:
        if isinstance(value, Section):
            flat |= {f"{name}.{key}": text for key, text in _flat(value).items()}
        else:
            flat[name] = json.dumps(value, ensure_ascii=False)
    return flat


class Place(NamedTuple):
    """Where something was written. Places sort as a user reads: defaults, the file by line, overrides, options."""

    rank: int
    position: int
    name: str


class ConfigInput:
    """The values that a file and overrides give, where each was written, and what is wrong with them.

    Attributes:
        values: nested plain data, for the schema to check.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._keys = config_keys()
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
            self._raise_problems()
        self._places = {at: self._line(line) for at, line in document.lines.items()}
        # A section whose keys are all commented out is an empty one.
        self.values = {k: {} if v is None and k in self._keys else v for k, v in document.value.items()}

    def add_override(self, override: str, *, written: str | None = None) -> None:
        """Takes one `key.path=value`, whose value is YAML, over what is there.

        Args:
            override: the key and its value.
            written: what the user wrote where it was a separate option, such as `--seed 7`; None for `--set`.
        """
        name = f"--set {cut(override)}" if written is None else cut(written)
        place = Place(2 if written is None else 3, len(self._places) + len(self._problems), name)
        key, equals, text = override.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        document = parse_yaml(text)
        problems = [problem for _, problem in document.problems]
        if not equals or not all(path):
            problems = ["must look like key.path=value"]
        elif len(path) > 1 and path[0] in self._keys[""] and ".".join(path[:-1]) not in self._keys:
            problems = [f"{'.'.join(path[:-1])!r} has no keys; set it as a whole"]
        self._problems += [(place, problem) for problem in problems]
        section = self.values
        for name in () if problems else path[:-1]:
            section = section.setdefault(name, {}) if isinstance(section, dict) else section
        # What is no mapping though it should be is a problem of the file, and reported as such.
        if not problems and isinstance(section, dict):
            section[path[-1]] = document.value
            self._places = {at: known for at, known in self._places.items() if at[: len(path)] != path} | {path: place}

    def config(self) -> Config:
        """Returns the checked config.

        Raises:
            ConfigError: with all problems at once, in the order in which they were written.
        """
        config = None
        try:
            config = Config.model_validate(self.values)
        except ValidationError as error:
            for path, problem in problems_of(error, self.values, self._keys):
                place = self._place(path)
                # An override or an option names its key already.
                is_named = place.rank == 3 or place.name.startswith(f"--set {dotted(path)}=")
                self._problems.append((place, problem.removeprefix(f"{dotted(path)}: ") if is_named else problem))
        self._raise_problems()
        assert config is not None
        return config

    def _raise_problems(self) -> None:
        problems = sorted(self._problems, key=lambda problem: problem[0])[:MAX_PROBLEMS]
        lines = [f"{place.name}: {text}" if place.name else text for place, text in problems]
        if len(lines) > 1:
            lines.insert(0, f"{self._file}: {len(lines)} problems:" if self._file else f"{len(lines)} problems:")
        if lines:
            raise ConfigError("\n".join(lines))

    def _place(self, path: KeyPath) -> Place:
        """Returns where a value was written, or else something of the section around it."""
        for depth in range(len(path), 0, -1):
            for at, place in self._places.items():
                if at[:depth] == path[:depth]:
                    return place
        return Place(0, 0, self._file or "defaults")

    def _line(self, line: int) -> Place:
        return Place(1, line, f"{self._file}:{line}")


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


def _plain_name(stem: str) -> str:
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-")[:80] or "run"


@dataclass
class Document:
    """What a YAML text holds.

    Attributes:
        value: plain data; None also where the text is empty or cannot be read.
        lines: the line, counted from 1, of every value: a scalar's line, and of a list or mapping that of its key.
        problems: (line, what is wrong) of everything refused. Only without any is `value` all that was written.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def parse_yaml(text: str) -> Document:
    """Reads one YAML document. Never raises: all that is wrong is in `problems`."""
    document = Document()
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append((line, f"character {chr(error.character)!r} is not allowed in YAML"))
        return document
    try:
        node = loader.get_single_node()
        document.value = None if node is None else _plain(node, (), _line_of(node), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = next((hint for part, hint in _HINTS.items() if part in str(error.problem)), "")
        problem = f"not valid YAML: {error.problem}{hint}"
        document.problems.append(((loader if mark is None else mark).line + 1, problem))
    except (yaml.YAMLError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        # PyYAML lets these out of its scanner: chr() of a too large escape, int() of a too long version, and the like.
        document.problems.append((loader.line + 1, f"not valid YAML: {error}"))
    finally:
        loader.dispose()
    return document


class _Loader(yaml.SafeLoader):
    """Composes nodes without anchors, aliases and tags, nested `MAX_DEPTH` levels deep at most."""

    yaml_implicit_resolvers: Any = {None: list(_PATTERNS.items())}  # noqa: RUF012 - as PyYAML has it
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor is not None:
            sign = "alias *" if isinstance(event, yaml.AliasEvent) else "anchor &"
            raise _error(f"{sign}{event.anchor} is not allowed; write the value out, or put text in quotes", event)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _error(f"tag {tag} is not allowed; take it out, or put text in quotes", event)
        if self._depth > MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} levels deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _plain(node: yaml.Node, path: KeyPath, key_line: int, document: Document) -> Any:
    """Returns the data that a node stands for."""
    if isinstance(node, yaml.ScalarNode):
        document.lines[path] = _line_of(node)
        return _scalar(node)
    document.lines[path] = key_line
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, n), _line_of(item), document) for n, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = _key(key_node, document), _line_of(key_node)
        if key in values:
            before = f"duplicate key {dotted((*path, key))!r}, first on line {document.lines[(*path, key)]}"
            document.problems.append((line, before))
        else:
            values[key] = _plain(value_node, (*path, key), line, document)
    return values


def _key(node: yaml.Node, document: Document) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _error("a key must be text", node)
    key = str(_scalar(node))
    if node.style is None and node.value == "<<":
        raise _error("a merge key '<<' is not allowed; write the values out", node)
    if node.tag != _STR:
        key = node.value
        document.problems.append((_line_of(node), f'key {key} is not text; put it in quotes: "{key}"'))
    return key


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if re.search("[\0\ud800-\udfff]", text):
        raise _error(f"{shown(text)} holds a NUL or a lone surrogate", node)
    if node.tag in (_NULL, _BOOL):
        return None if node.tag == _NULL else text.lower() == "true"
    if node.tag == _FLOAT:
        return float(text.replace(".", "") if text[-1].isalpha() else text)  # .inf and .nan
    try:
        return int(text) if node.tag == _INT else text
    except ValueError:
        raise _error(f"a number of {len(text)} digits is too long", node) from None


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def dump_yaml(value: Any) -> str:
    """Writes plain data as YAML that `parse_yaml`, and any YAML 1.1 reader, reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


class _Dumper(yaml.SafeDumper):
    """Lists on one line, no anchors, and text in quotes wherever YAML 1.1 or 1.2 would take it for something else."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        is_number = kind is yaml.ScalarNode and implicit[0] and _PATTERNS[_FLOAT].match(value)
        is_float = is_number and not _PATTERNS[_INT].match(value)
        return _FLOAT if is_float else super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_scalar(self, tag: str, value: Any, style: str | None = None) -> Any:
        # Only double quotes keep every kind of line break as it is.
        return super().represent_scalar(tag, value, '"' if re.search("[\r\n\x85\u2028\u2029]", value) else style)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, sequence, flow_style=True)
