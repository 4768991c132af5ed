"""YAML read strictly: a value is what it looks like, and every value knows its line.

PyYAML only cuts the text into events; what they mean is decided here, after YAML 1.2: `1e-3` is a number, `no` and
`12:30` are text, `012` is 12. Whatever could surprise or explode is refused with its line: anchors, aliases, merge
keys, tags, duplicate keys, keys that are not text, numbers that are not finite, several documents, deep nesting.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import AliasEvent, MappingEndEvent, ScalarEvent, SequenceEndEvent, SequenceStartEvent, StreamEndEvent

KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead from the root to a value."""

MAX_DEPTH = 20

_NULL = re.compile(r"(?:~|null|Null|NULL)?\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_FLOAT_TAG = "tag:yaml.org,2002:float"
_NOT_FINITE = re.compile(r"[-+]?\.[a-zA-Z]")
_LINE_BREAKS = re.compile("[\r\n\x85\u2028\u2029]")
_UNUSABLE = re.compile("[\0\ud800-\udfff]")

_REFUSED = object()
_HINTS = {
    "'\\t'": "; indent with blanks, not tabs",
    "alphabetic or numeric": "; put text that begins with '*', '&' or '%' in quotes",
    "cannot start any token": "; put text that begins so in quotes",
    "block end": "; check the indentation",
    "mapping values": "; check the indentation, or put text that holds ': ' in quotes",
}


@dataclass(frozen=True)
class Document:
    """What a YAML text holds.

    Attributes:
        value: plain data; refused values are left out. None also where the text is empty or cannot be read at all.
        lines: the line, counted from 1, of every value: its own for a scalar, its key's for a list or mapping.
        problems: (line, what is wrong) of everything refused. Only without any is `value` all that was written.
    """

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def parse_yaml(text: str) -> Document:
    """Reads one YAML document. Never raises: all that is wrong is in `problems`."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Document(None, problems=[(line, f"character {chr(error.character)!r} is not allowed in YAML")])
    reader = _Reader(loader)
    try:
        return Document(reader.document(), reader.lines, reader.problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = loader.line + 1 if mark is None else mark.line + 1
        problem = str(error.problem)
        hint = next((hint for part, hint in _HINTS.items() if part in problem), "")
        reader.problems.append((line, f"not valid YAML: {problem}{hint}"))
    except (yaml.YAMLError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        # PyYAML lets these out of its scanner: chr() of a too large escape, int() of a too long version, and the like.
        reader.problems.append((loader.line + 1, f"not valid YAML: {error}"))
    finally:
        loader.dispose()
    return Document(None, reader.lines, reader.problems)


def dump_yaml(value: Any) -> str:
    """Writes plain data as YAML that `parse_yaml`, and any YAML 1.1 reader, reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


class _Reader:
    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[tuple[int, str]] = []

    def document(self) -> Any:
        self.loader.get_event()
        if self.loader.check_event(StreamEndEvent):
            return None
        self.loader.get_event()
        value = self._node(())
        self.loader.get_event()
        if not self.loader.check_event(StreamEndEvent):
            self._refuse(self.loader.peek_event(), "a second document starts here; keep one")
        return None if value is _REFUSED else value

    def _node(self, path: KeyPath, key_line: int | None = None) -> Any:
        return self._value(self.loader.get_event(), path, key_line)

    def _value(self, event: Any, path: KeyPath, key_line: int | None) -> Any:
        line = event.start_mark.line + 1
        is_sound = self._is_bare(event)
        if isinstance(event, AliasEvent):
            return _REFUSED
        if isinstance(event, ScalarEvent):
            self.lines.setdefault(path, line)
            return self._scalar(event) if is_sound else _REFUSED
        self.lines.setdefault(path, key_line or line)
        if len(path) >= MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return self._sequence(path) if isinstance(event, SequenceStartEvent) else self._mapping(path)

    def _sequence(self, path: KeyPath) -> list[Any]:
        values: list[Any] = []
        while not self.loader.check_event(SequenceEndEvent):
            value = self._node((*path, len(values)))
            if value is not _REFUSED:
                values.append(value)
        self.loader.get_event()
        return values

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        while not self.loader.check_event(MappingEndEvent):
            event = self.loader.get_event()
            key, line = self._key(event, path), event.start_mark.line + 1
            if key in first_lines:
                whole = ".".join(map(str, (*path, key)))
                self._refuse(event, f"duplicate key {whole!r}, first on line {first_lines[key]}")
            value = self._node((*path, "?" if key is None else key), line)
            if key is not None and key not in first_lines:
                first_lines[key] = line
                if value is not _REFUSED:
                    values[key] = value
        self.loader.get_event()
        return values

    def _key(self, event: Any, path: KeyPath) -> str | None:
        """Returns a key's text, or None where it is refused."""
        if not isinstance(event, ScalarEvent):
            self._refuse(event, "a key must be text")
            self._value(event, (*path, "?"), None)
            return None
        key = self._scalar(event) if self._is_bare(event) else _REFUSED
        if event.style is None and event.value == "<<":
            self._refuse(event, "a merge key '<<' is not allowed; write the values out")
            return None
        if key is _REFUSED:
            return None
        if not isinstance(key, str):
            self._refuse(event, f'key {event.value} is not text; put it in quotes: "{event.value}"')
        return str(event.value)

    def _scalar(self, event: ScalarEvent) -> Any:
        text = event.value
        if _UNUSABLE.search(text):
            self._refuse(event, f"{text!r} holds a NUL or half a character")
            return _REFUSED
        if event.style is not None:
            return text
        if _NULL.match(text):
            return None
        if _BOOL.match(text):
            return text.lower() == "true"
        if _INT.match(text):
            return self._number(event, int)
        return self._number(event, float) if _FLOAT.match(text) else text

    def _number(self, event: ScalarEvent, kind: type[int] | type[float]) -> Any:
        text = event.value
        try:
            value = math.nan if _NOT_FINITE.match(text) else kind(text)
            is_finite = math.isfinite(value)
        except (ValueError, OverflowError):
            self._refuse(event, f"a number of {len(text)} digits is too long")
            return _REFUSED
        if not is_finite:
            self._refuse(event, f"{text} is not a finite number")
        return value if is_finite else _REFUSED

    def _is_bare(self, event: Any) -> bool:
        """Refuses what an event carries besides its value."""
        if isinstance(event, AliasEvent):
            self._refuse(event, f"alias *{event.anchor} is not allowed; write the value out, or put text in quotes")
            return False
        if event.anchor is not None:
            self._refuse(event, f"anchor &{event.anchor} is not allowed; take it out, or put text in quotes")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(event, f"tag {tag} is not allowed; take it out, or put text in quotes")
        return event.anchor is None and event.tag is None

    def _refuse(self, event: Any, reason: str) -> None:
        self.problems.append((event.start_mark.line + 1, reason))


class _Dumper(yaml.SafeDumper):
    """Lists on one line, no anchors, and text in quotes wherever YAML 1.1 or 1.2 would take it for something else."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        is_number = kind is yaml.ScalarNode and implicit[0] and _FLOAT.match(value) and not _INT.match(value)
        return _FLOAT_TAG if is_number else super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_scalar(self, tag: str, value: Any, style: str | None = None) -> Any:
        # Only double quotes keep every kind of line break as it is.
        return super().represent_scalar(tag, value, '"' if _LINE_BREAKS.search(value) else style)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, sequence, flow_style=True)
