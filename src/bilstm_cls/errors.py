"""What can go wrong that the user can fix, the exit code that says so, and how a wrong value is described.

Every error here prints as its message alone: where it is, what is wrong (the value by `repr`), what to do.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead from the root of nested data to a value."""


class ExitCode(IntEnum):
    """How the command line ends. A signal gives 128 + its number, as shells do: 129, 130 or 143."""

    DONE = 0
    BUG = 1
    USAGE = 2
    DATA = 3
    CHECKPOINT = 4
    DIVERGED = 5
    RESOURCES = 6
    CHECK_FAILED = 7
    CLOSED_PIPE = 141


class UserError(Exception):
    """Something the user can fix: shown as one message without a traceback."""

    exit_code: int = ExitCode.USAGE


class ConfigError(UserError):
    """A wrong option, config key or value, or an output directory that is taken. Exit code 2."""


class DataError(UserError):
    """A data file that is missing, unreadable or wrong. Exit code 3."""

    exit_code = ExitCode.DATA


class CheckpointError(UserError):
    """A checkpoint or run directory that is damaged or does not fit. Exit code 4."""

    exit_code = ExitCode.CHECKPOINT


class DivergedError(UserError):
    """Training produced a number that is not finite. Exit code 5."""

    exit_code = ExitCode.DIVERGED


class ResourceError(UserError):
    """The machine ran out of disk or memory. Exit code 6."""

    exit_code = ExitCode.RESOURCES


class CheckFailedError(UserError):
    """A check that was asked for failed: `eval --fail-under`, `doctor`. Exit code 7."""

    exit_code = ExitCode.CHECK_FAILED


class StoppedError(BaseException):
    """A signal asked us to stop, and what was done so far is saved. Exit code 128 + signal number.

    Not an `Exception`: it is raised in the middle of anything, and a library that tries something, such as an import,
    would take it for a failure of what it tries, and go on.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


SHORT_OF_MEMORY = ("out of memory", "can't allocate memory")
ONEDNN_SHORT_OF_MEMORY = ("could not create a primitive", "could not execute a primitive")
"""All that oneDNN says of it. What it cannot calculate is a `primitive descriptor` instead."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch could not get the memory it asked for; PyTorch says so in words alone."""
    words = str(error)
    return (
        isinstance(error, MemoryError)
        or any(said in words for said in SHORT_OF_MEMORY)
        or words in ONEDNN_SHORT_OF_MEMORY
    )


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
"""Other names of values, for keys that have that value as a choice."""

_MUST = {
    "bool_type": "true or false", "dict_type": "a mapping",
    "finite_number": "finite", "float_type": "a number", "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}", "int_type": "an integer", "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:.12g}", "list_type": "a list", "literal_error": "{expected}",
    "model_type": "a section with keys", "string_too_long": "at most {max_length} characters",
    "string_too_short": "text that is not empty", "string_type": "text", "too_short": "at least {min_length} long",
}  # fmt: skip


def problems_of(
    error: "ValidationError", values: Mapping[str, Any], keys: Mapping[str, Sequence[str]]
) -> Iterator[tuple[KeyPath, str]]:
    """Yields the path of each wrong value and what is wrong with it, as `train.epochs: must be an integer, not 'x'`.

    Args:
        error: what pydantic found wrong.
        values: what it validated.
        keys: the names of all keys by section, those of the top level under the empty name.
    """
    by_path: dict[KeyPath, list[Any]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_path_of(details["loc"], values), []).append(details)
    parents = {path[:depth] for path in by_path for depth in range(len(path))}
    for path, found in by_path.items():
        # A value is tried as every type it may have; where a part of it is wrong, its type was right.
        if path in parents:
            continue
        limits = [d for d in found if d["type"] != "literal_error" and not d["type"].endswith("_type")]
        if found[0]["type"] == "extra_forbidden":
            yield path, unknown_key(dotted(path[:-1]), str(path[-1]), keys)
        else:
            groups = [[details] for details in limits] or [found]
            yield from ((path, f"{dotted(path)}: {must_be(group)}") for group in groups)


def unknown_key(section: str, key: str, keys: Mapping[str, Sequence[str]]) -> str:
    """Says that a key is unknown, and what was probably meant: here, in another section, or by another tool's name."""
    intro = f"unknown key {key!r} in {section}" if section else f"unknown key {key!r}"
    name = key.lower().replace("-", "_")
    homes = {f"{home}.{known}".lstrip("."): (home, known) for home, names in keys.items() for known in names}
    meant = SYNONYMS.get(f"{section}.{name}" if section else name)
    elsewhere = [key for key, (home, known) in homes.items() if known == name and home != section]
    if meant is None and elsewhere and name not in keys.get(section, ()):
        home = homes[elsewhere[0]][0]
        return f"{intro}; {name!r} belongs {f'in {home}' if home else 'at the top level'}: write {elsewhere[0]}"
    if meant := meant or SYNONYMS.get(name) or _closest_key(section, name, homes):
        home, known = homes[meant]
        where = repr(known) if home == section else meant if home else f"{meant} at the top level"
        return f"{intro}; did you mean {where}?"
    return f"{intro}; known are {', '.join(keys.get(section) or keys[''])}"


def _closest_key(section: str, name: str, homes: Mapping[str, tuple[str, str]]) -> str | None:
    def likeness(key: str) -> float:
        home, known = homes[key]
        return difflib.SequenceMatcher(None, known, name).ratio() + 0.1 * (home == section)

    best = max(homes, key=likeness)
    return best if likeness(best) >= 0.65 else None


def must_be(errors: Sequence[Any]) -> str:
    """Says what a value must be and is not, from pydantic's errors of every type that it may have."""
    value, wanted = errors[0]["input"], " or ".join(map(_wanted, errors))
    wanted, _, why = wanted.partition("; ")
    choices = re.findall(r"'([^']*)'", wanted)
    near = _closest_choices(value.lower(), choices) if isinstance(value, str) else []
    advice = [why, *(f"did you mean {choice!r}?" for choice in near)]
    return "; ".join([f"must be {wanted}, not {shown(value)}", *filter(None, advice)])


def _closest_choices(value: str, choices: Sequence[str]) -> list[str]:
    meant = VALUE_SYNONYMS.get(value)
    return [meant] if meant is not None and meant in choices else difflib.get_close_matches(value, choices, n=1)


def _wanted(error: Any) -> str:
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"]).removeprefix("must be ")
    if error["type"] in _MUST:
        return _MUST[error["type"]].format(**context)
    return str(error["msg"]).removeprefix("Input should be ")


def _path_of(location: Sequence[str | int], values: Any) -> KeyPath:
    """Drops what pydantic puts among keys and positions: which member of a union it tried."""
    path: list[str | int] = []
    for depth, step in enumerate(location):
        is_there = step in values if isinstance(values, dict) else isinstance(values, list) and isinstance(step, int)
        if is_there or depth < 2:  # sections and their keys, which may be missing
            path.append(step)
            values = values[step] if is_there else None
    return tuple(path)


def dotted(path: KeyPath) -> str:
    """Returns a path as it is written for a user, such as `model.pooling[1]`."""
    names = (step if isinstance(step, int) or re.fullmatch(r"[\w-]+", step) else repr(step) for step in path)
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).removeprefix(".")


def shown(value: Any) -> str:
    """Returns a value by `repr`, shortened; what YAML spells otherwise as in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else cut(repr(value))


def cut(text: str) -> str:
    """Returns a text that fits on a line and holds nothing that a terminal would obey."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:100])
    return text if len(text) <= 80 else f"{text[:77]}..."
