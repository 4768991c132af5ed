"""The config file: strict YAML, overrides over it, and all problems at once, each with its line and a likely fix.

Scalars mean what YAML 1.2 says: `1e-3` is a number, `no` and `12:30` are text. What could surprise or explode is
refused: anchors, aliases, merge keys, tags, duplicate keys, keys that are not text, several documents, deep nesting.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from bilstm_cls.config import Config, Section, config_keys
from bilstm_cls.errors import ConfigError, KeyPath, cut, dotted, shown

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))
_PATTERNS = {
    _NULL: re.compile(r"(?:~|null|Null|NULL)?\Z"),
    _BOOL: re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    _INT: re.compile(r"[-+]?[0-9]+\Z"),
    _FLOAT: re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
SYNONYMS = {
    "amp": "train.precision", "batch": "train.batch_size", "bs": "train.batch_size", "clip_grad": "train.max_grad_norm",
    "data.label": "data.label_column", "data.text": "data.text_columns", "dataset": "data", "dev": "data.valid",
    "early_stopping": "train.patience", "ema": "train.ema_decay", "embed_dim": "embedding.dim",
    "embedding_dim": "embedding.dim", "fp16": "train.precision", "gpu": "train.device",
    "hidden_dim": "model.hidden_size", "layer_decay": "train.layer_lr_decay", "lr": "train.learning_rate",
    "max_seq_length": "text.max_length", "metric": "train.select_by", "min_count": "text.min_freq",
    "output": "output_dir", "perturbation": "train.adversarial_epsilon", "vocab_size": "text.max_vocab_size",
    "wd": "train.weight_decay", "wide": "model.ngrams",
}  # fmt: skip
"""What other tools call our keys, or within a section as `section.key`."""

VALUE_SYNONYMS = {"ce": "cross_entropy", "corpus": "ppmi", "plain": "cross_entropy"}

_MUST = {
    "bool_type": "true or false", "dict_type": "a mapping",
    "finite_number": "finite", "float_type": "a number", "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}", "int_type": "an integer", "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:.12g}", "list_type": "a list", "literal_error": "{expected}",
    "model_type": "a section with keys", "string_too_long": "at most {max_length} characters",
    "string_too_short": "text that is not empty", "string_type": "text", "too_short": "at least {min_length} long",
}  # fmt: skip

_HINTS = {
    "'\\t'": "; indent with spaces, not tabs",
    "alphabetic or numeric": "; put text that begins with '*', '&' or '%' in quotes",
    "block end": "; check the indentation",
    "mapping values": "; check the indentation, or put text that holds ': ' in quotes",
}


def load_config(path: Path | None, overrides: Sequence[str] = (), *, options: Mapping[str, str] = {}) -> Config:
    """Reads a config: defaults, over them a YAML file, over it `key.path=value` overrides, of which the last wins.

    Args:
        path: None for the defaults alone, which name no data.
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
    for written, override in options.items():
        given.add_override(override, written=written)
    plain_name = "run" if path is None else re.sub(r"[^\w.-]+", "-", Path(path).stem).strip(".-")[:80] or "run"
    given.values.setdefault("name", plain_name)
    return given.config()


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a config with `key.path=value` overrides put into it, checked as `load_config` does."""
    given = ConfigInput()
    given.values = config.model_dump()
    for override in overrides:
        given.add_override(override)
    return given.config()


def dump_config(config: Config) -> str:
    """Returns the config as YAML that `load_config` reads back to an equal one."""
    return dump_yaml(config.model_dump())


def config_schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def changed_keys(a: Config, b: Config) -> list[str]:
    """Returns what differs from `a` to `b`, such as `train.epochs: 5 -> 6`."""
    after = flat_config(b)
    return [f"{key}: {value} -> {after[key]}" for key, value in flat_config(a).items() if value != after[key]]


def flat_config(config: Section) -> dict[str, str]:
    """Returns all values as JSON by their keys, such as `train.epochs`."""
    flat: dict[str, str] = {}
    for name, value in config:
        parts = flat_config(value) if isinstance(value, Section) else {"": json.dumps(value, ensure_ascii=False)}
        flat |= {f"{name}.{key}".rstrip("."): text for key, text in parts.items()}
    return flat


class Place(NamedTuple):
    """Where something was written. Places sort as a user reads: defaults, the file by line, overrides, options."""

    rank: int
    position: int
    name: str


class ConfigInput:
    """The values that a file and overrides give, where each was written, and what is wrong with them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._keys = config_keys()
        self._file = ""
        self._places: dict[KeyPath, Place] = {}
        self._problems: list[tuple[Place, str]] = []

    def add_file(self, path: Path) -> None:
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
        """Takes one `key.path=value`; `written` is what the user wrote where it was an option, such as `--seed 7`."""
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
        """Returns the checked config, or raises with all problems, in the order in which they were written."""
        config = None
        try:
            config = Config.model_validate(self.values)
        except ValidationError as error:
            for path, problem in problems_of(error, self.values):
                place = self._place(path)
                # An override or an option names its key already.
                is_named = place.rank == 3 or place.name.startswith(f"--set {dotted(path)}=")
                self._problems.append((place, problem.removeprefix(f"{dotted(path)}: ") if is_named else problem))
        self._raise_problems()
        assert config is not None
        return config

    def _raise_problems(self) -> None:
        problems = sorted(self._problems, key=lambda problem: problem[0])
        lines = [f"{place.name}: {text}" if place.name else text for place, text in problems]
        if len(lines) > 1:
            lines.insert(0, f"{self._file}: {len(lines)} problems:" if self._file else f"{len(lines)} problems:")
        if lines:
            raise ConfigError("\n".join(lines))

    def _place(self, path: KeyPath) -> Place:
        for depth in range(len(path), 0, -1):
            for at, place in self._places.items():
                if at[:depth] == path[:depth]:
                    return place
        return Place(0, 0, self._file or "defaults")

    def _line(self, line: int) -> Place:
        return Place(1, line, f"{self._file}:{line}")


def problems_of(error: ValidationError, values: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yields the path of each wrong value and what is wrong with it, as `train.epochs: must be an integer, not 'x'`."""
    by_path: dict[KeyPath, list[Any]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_path_of(details["loc"], values), []).append(details)
    parents = {path[:depth] for path in by_path for depth in range(len(path))}
    for path, found in by_path.items():
        if path in parents:  # a value is tried as every type it may have; this type was right, and a part is wrong
            continue
        limits = [d for d in found if d["type"] != "literal_error" and not d["type"].endswith("_type")]
        if found[0]["type"] == "extra_forbidden":
            yield path, unknown_key(dotted(path[:-1]), str(path[-1]))
        else:
            groups = [[details] for details in limits] or [found]
            yield from ((path, f"{dotted(path)}: {_must_be(group)}") for group in groups)


def unknown_key(section: str, key: str) -> str:
    """Says that a key is unknown, and what was probably meant: here, in another section, or by another tool's name."""
    keys = config_keys()
    intro = f"unknown key {key!r} in {section}" if section else f"unknown key {key!r}"
    name = key.lower().replace("-", "_")
    homes = {f"{home}.{known}".lstrip("."): (home, known) for home, names in keys.items() for known in names}
    meant = SYNONYMS.get(f"{section}.{name}" if section else name)
    likeness = {
        full: difflib.SequenceMatcher(None, known, name).ratio() + 0.1 * (home == section)
        for full, (home, known) in homes.items()
    }
    closest = max(likeness, key=lambda full: likeness[full])
    if meant := meant or SYNONYMS.get(name) or (closest if likeness[closest] >= 0.65 else None):
        home, known = homes[meant]
        where = repr(known) if home == section else meant if home else f"{meant} at the top level"
        return f"{intro}; did you mean {where}?"
    return f"{intro}; known are {', '.join(keys.get(section) or keys[''])}"


def _must_be(errors: Sequence[Any]) -> str:
    """Says what a value must be and is not, from pydantic's errors of every type that it may have."""
    value, wanted = errors[0]["input"], " or ".join(map(_wanted, errors))
    wanted, _, why = wanted.partition("; ")
    choices = re.findall(r"'([^']*)'", wanted)
    text = value.lower() if isinstance(value, str) else ""
    near = (
        [VALUE_SYNONYMS[text]] if VALUE_SYNONYMS.get(text) in choices else difflib.get_close_matches(text, choices, 1)
    )
    advice = [why, *(f"did you mean {choice!r}?" for choice in near)]
    return "; ".join([f"must be {wanted}, not {shown(value)}", *filter(None, advice)])


def _wanted(error: Any) -> str:
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"]).removeprefix("must be ")
    if error["type"] in _MUST:
        return _MUST[error["type"]].format(**context)
    return str(error["msg"]).removeprefix("Input should be ")


def _path_of(location: Sequence[str | int], values: Any) -> KeyPath:
    # Drops what pydantic puts among keys and positions: which member of a union it tried.
    path: list[str | int] = []
    for depth, step in enumerate(location):
        is_there = step in values if isinstance(values, dict) else isinstance(values, list) and isinstance(step, int)
        if is_there or depth < 2:  # sections and their keys, which may be missing
            path.append(step)
            values = values[step] if is_there else None
    return tuple(path)


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; give a config file, such as {path / 'config.yaml'}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = ", ".join(sorted(entry.name for entry in path.parent.glob("*.y*ml"))[:8])
        raise ConfigError(f"{path}: there is no such file{f'; in its folder there is {near}' * bool(near)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES:,} bytes, so it is no config")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"0x{content[error.start]:02x}"
        raise ConfigError(f"{path}:{line}: byte {byte} is not UTF-8; save the file as UTF-8") from error


@dataclass
class Document:
    """What a YAML text holds: plain data, the line of every value (counted from 1), and the line of every problem."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def parse_yaml(text: str) -> Document:
    # Never raises: all that is wrong is in `problems`.
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Document(problems=[(line, f"character {chr(error.character)!r} is not allowed in YAML")])
    document = Document()
    try:
        node = loader.get_single_node()
        document.value = None if node is None else _plain(node, (), node.start_mark.line + 1, document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = next((hint for part, hint in _HINTS.items() if part in str(error.problem)), "")
        problem = f"not valid YAML: {error.problem}{hint}"
        document.problems.append(((loader if mark is None else mark).line + 1, problem))
    except (yaml.YAMLError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
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
    if isinstance(node, yaml.ScalarNode):
        document.lines[path] = node.start_mark.line + 1
        return _scalar(node)
    document.lines[path] = key_line
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, n), item.start_mark.line + 1, document) for n, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = _key(key_node, document), key_node.start_mark.line + 1
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
        document.problems.append((node.start_mark.line + 1, f'key {key} is not text; put it in quotes: "{key}"'))
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


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def dump_yaml(value: Any) -> str:
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
