"""The config file: strict YAML, overrides over it, and all problems at once, each with its line and a likely fix.

Scalars mean what YAML 1.2 says: `1e-3` is a number, `no` and `12:30` are text. Keys are text as they are written.
Anchors, aliases, tags, duplicate keys and several documents are refused.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bilstm_cls.config import Config, Section, config_keys
from bilstm_cls.errors import ConfigError, KeyPath, cut, dotted, shown

MAX_BYTES = 1_000_000
SYNONYMS = {
    "batch": "train.batch_size", "bs": "train.batch_size", "ema": "train.ema_decay", "embedding_dim": "embedding.dim",
    "epochs": "train.epochs", "gpu": "train.device", "hidden_dim": "model.hidden_size", "lr": "train.learning_rate",
    "max_len": "text.max_length", "max_seq_length": "text.max_length", "min_count": "text.min_freq",
    "vectors": "embedding.init", "vocab_size": "text.max_vocab_size", "wide": "model.ngrams",
}  # fmt: skip
"""Names that other tools, or earlier versions, have for a key."""
_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))
_PATTERNS = [
    (_NULL, re.compile(r"(?:~|null|Null|NULL)?\Z")),
    (_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    (_INT, re.compile(r"[-+]?[0-9]+\Z")),
    (_FLOAT, re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)\Z")),
]


def load_config(path: Path | None, overrides: Sequence[str] = (), *, options: Mapping[str, str] = {}) -> Config:
    """Reads a config: defaults, over them a YAML file, over it `key.path=value` overrides, of which the last wins.

    `options` are more overrides, which win over those, by what the user wrote for each, such as `--seed 7`.
    `ConfigError` names all wrong keys and values at once, each with its place.
    """
    given = _ConfigInput() if path is None else _ConfigInput(_read(path), str(path))
    if path is not None:
        given.values.setdefault("data", {})
    for written, override in [*((f"--set {override}", override) for override in overrides), *options.items()]:
        given.add_override(override, written)
    plain_name = "run" if path is None else re.sub(r"[^\w.-]+", "-", path.stem).strip(".-")[:80] or "run"
    given.values.setdefault("name", plain_name)
    return given.config()


def parse_config(text: str, overrides: Sequence[str]) -> Config:
    """Does the same for the text of a config that names its data, such as `dump_config` gives."""
    given = _ConfigInput(text, "config")
    for override in overrides:
        given.add_override(override, f"--set {override}")
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


class _ConfigInput:
    """The values that a file and overrides give, and where each was written, in the order of writing."""

    def __init__(self, text: str = "{}", name: str = "defaults") -> None:
        self._file = name
        values, lines = parse_yaml(text, lambda line: f"{name}:{line}")
        if not isinstance(values, dict):
            raise ConfigError(f"{name}:1: must be a mapping of keys, not {shown(values)}; `bilstm-cls init` prints one")
        self._places = {path: f"{name}:{line}" for path, line in lines.items()}
        # A section whose keys are all commented out is an empty one.
        self.values = {key: {} if value is None and key in config_keys() else value for key, value in values.items()}

    def add_override(self, override: str, written: str) -> None:
        """Takes one `key.path=value`, and what the user wrote for it."""
        place = cut(written)
        key, equals, text = override.partition("=")
        *sections, name = path = tuple(part.strip() for part in key.split("."))
        section: Any = self.values if equals and all(path) else None
        for step in sections:
            section = section.setdefault(step, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise ConfigError(f"{place}: must look like key.path=value, where the key can have keys below it")
        section[name], _ = parse_yaml(text, lambda _: place)
        self._places = {at: known for at, known in self._places.items() if at[: len(path)] != path} | {path: place}

    def config(self) -> Config:
        """Returns the checked config, or raises with all problems, in the order in which they were written."""
        try:
            return Config.model_validate(self.values)
        except ValidationError as error:
            found = sorted((self._place(path), problem) for path, problem in _problems_of(error, self.values))
        lines = [f"{place}: {problem}" for (_, place), problem in found]
        if len(lines) > 1:
            lines.insert(0, f"{self._file}: {len(lines)} problems:")
        raise ConfigError("\n".join(lines))

    def _place(self, path: KeyPath) -> tuple[int, str]:
        """Returns where a value was written, or its section where it is missing, after its number in that order."""
        for depth in range(len(path), 0, -1):
            for number, (at, place) in enumerate(self._places.items()):
                if at[:depth] == path[:depth]:
                    return number, place
        return -1, self._file


def _problems_of(error: ValidationError, values: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yields the path of each wrong value and what is wrong with it, as `train.epochs: must be ..., not 'x'`."""
    by_path: dict[KeyPath, list[Any]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_path_of(details["loc"], values), []).append(details)
    parents = {path[:depth] for path in by_path for depth in range(len(path))}
    for path, found in by_path.items():
        if path in parents:  # a value is tried as every type it may have; this type was right, and a part is wrong
            continue
        limits = [d for d in found if d["type"] != "literal_error" and not d["type"].endswith("_type")]
        if found[0]["type"] == "extra_forbidden":
            yield path, _unknown_key(dotted(path[:-1]), str(path[-1]))
        else:
            yield path, f"{dotted(path)}: {_must_be(limits or found)}"


def _unknown_key(section: str, key: str) -> str:
    """Says that a key is unknown, and what was probably meant, here or in another section."""
    keys = config_keys()
    name = key.lower().replace("-", "_")
    homes = {known: f"{home}.{known}".lstrip(".") for home, names in keys.items() for known in names}
    here = [SYNONYMS[name]] if name in SYNONYMS else difflib.get_close_matches(name, keys.get(section, []), 1, 0.65)
    meant = here or [homes[known] for known in difflib.get_close_matches(name, homes, 1, 0.75)]
    advice = f"did you mean {meant[0]!r}?" if meant else f"known are {', '.join(keys.get(section) or keys[''])}"
    return f"unknown key {key!r} in {section or 'the top level'}; {advice}"


def _must_be(errors: Sequence[Any]) -> str:
    """Says what a value must be and is not, from pydantic's errors of every type that it may have."""
    value = errors[0]["input"]
    parts = [re.sub(r"^(Value error, must|\w+ should) |valid dictionary or instance of ", "", d["msg"]) for d in errors]
    wanted, _, advice = " or ".join([parts[0], *(part.removeprefix("be ") for part in parts[1:])]).partition("; ")
    near = difflib.get_close_matches(str(value).lower(), re.findall(r"'([^']*)'", wanted), 1)
    advice = advice or "".join(f"did you mean {choice!r}?" for choice in near)
    return f"must {wanted}, not {shown(value)}{'; ' * bool(advice)}{advice}"


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
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES:,} bytes, so it is no config")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: {content[error.start]:#x} is not UTF-8; save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def parse_yaml(text: str, place: Callable[[int], str] = str) -> tuple[Any, dict[KeyPath, int]]:
    """Returns what a YAML text holds, as plain data, and the line of every value, counted from 1.

    `ConfigError` where it is not valid, or holds what could surprise, after the `place` of its line.
    """
    lines: dict[KeyPath, int] = {}
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _plain(node, (), node.start_mark.line + 1, lines), lines
    except (yaml.YAMLError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = max(lines.values(), default=1) if mark is None else mark.line + 1
        if isinstance(error, yaml.reader.ReaderError):
            line = text.count("\n", 0, error.position) + 1
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    hint = "check the indentation, and put text with * & % or ': ' in quotes"
    raise ConfigError(f"{place(line)}: not valid YAML: {problem}; {hint}")


class _Loader(yaml.SafeLoader):
    """Composes nodes without anchors, aliases and tags."""

    yaml_implicit_resolvers: Any = {None: _PATTERNS}  # noqa: RUF012 - as PyYAML has it

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor is not None or event.tag is not None:
            found = event.anchor or event.tag.removeprefix("tag:yaml.org,2002:")
            raise _error(f"anchors, aliases and tags such as {found!r} are not allowed", event)
        return super().compose_node(parent, index)


def _plain(node: yaml.Node, path: KeyPath, key_line: int, lines: dict[KeyPath, int]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        lines[path] = node.start_mark.line + 1
        return _scalar(node)
    lines[path] = key_line
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, n), item.start_mark.line + 1, lines) for n, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error("a key must be text", key_node)
        key = key_node.value
        if key in values:
            raise _error(f"duplicate key {dotted((*path, key))!r}, first on line {lines[(*path, key)]}", key_node)
        values[key] = _plain(value_node, (*path, key), key_node.start_mark.line + 1, lines)
    return values


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if re.search("[\0\ud800-\udfff]", text):
        raise _error(f"{shown(text)} holds a NUL or a lone surrogate", node)
    if node.tag in (_NULL, _BOOL):
        return None if node.tag == _NULL else text.lower() == "true"
    if node.tag == _FLOAT:
        return float(text.replace(".", "") if text[-1].isalpha() else text)  # .inf and .nan
    return int(text) if node.tag == _INT else text


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes what is no text in YAML 1.1 or 1.2."""

    yaml_implicit_resolvers: Any = {**yaml.SafeDumper.yaml_implicit_resolvers, None: _PATTERNS}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)


def dump_yaml(values: Mapping[str, Any], *, is_flow: bool = False) -> str:
    """Returns plain data as YAML that means the same in versions 1.1 and 1.2, sections as blocks."""
    options: Any = {"sort_keys": False, "allow_unicode": True, "width": float("inf"), "default_flow_style": is_flow}
    return str(yaml.dump(values, Dumper=_Dumper, **options))


def flow_yaml(value: Any) -> str:
    """Returns a value as YAML on one line."""
    return dump_yaml(value, is_flow=True).removesuffix("\n").removesuffix("\n...")
