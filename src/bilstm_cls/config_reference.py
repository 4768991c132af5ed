"""The reference of all config keys as a page, made from the schema so that the two cannot differ."""

import json
import re
from collections.abc import Iterator
from typing import Any

from bilstm_cls.config import Config, Section, config_schema

HEAD = """\
# All keys of the config

Made from the schema by `bilstm-cls config schema --markdown > docs/config.md`; a test holds it equal to the schema.

A config is one YAML file. A key that is left out has its default; `--set SECTION.KEY=VALUE` on the command line wins
over the file, and its value is YAML too: `--set model.hidden_size=64`, `--set "model.pooling=[mean, max]"`,
`--set data.test=null`. Unknown keys, duplicate keys and values out of range are refused, all of them at once, each with
its line. `bilstm-cls config show -c FILE` prints a config with every default in its place, `bilstm-cls config check -c
FILE` what is wrong with it, and `bilstm-cls config schema` the JSON schema, from which an editor completes keys.
"""

BOUNDS = {
    "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"
}  # fmt: skip
MAX_BOUND = 10**6
"""From here on an upper bound only keeps out nonsense."""


def config_reference() -> str:
    """Returns the page in Markdown: every key with its type, default and meaning, section by section."""
    schema = config_schema()
    parts = [HEAD, _section("The top level", "What is outside of all sections.", schema)]
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            section = schema["$defs"][field.annotation.__name__]
            parts.append(_section(f"`{name}`", section["description"], section))
    return "\n".join(parts)


def _section(title: str, meaning: str, schema: dict[str, Any]) -> str:
    rows = [
        f"| `{key}` | {_kind(value)} | `{_yaml(value['default'])}` | {_cell(value['description'])} |"
        for key, value in schema["properties"].items()
        if "$ref" not in value
    ]
    return "\n".join(
        [f"## {title}", "", meaning, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _kind(schema: dict[str, Any]) -> str:
    """Says in words which values a key takes."""
    return " or ".join(dict.fromkeys(_kinds(schema)))


def _kinds(schema: dict[str, Any]) -> Iterator[str]:
    if "const" in schema:
        yield f"`{_yaml(schema['const'])}`"
    elif "enum" in schema:
        yield ", ".join(f"`{_yaml(value)}`" for value in schema["enum"])
    elif "anyOf" in schema:
        for choice in schema["anyOf"]:
            yield from _kinds(choice)
    elif schema.get("type") in ("integer", "number"):
        kind = {"integer": "whole number", "number": "number"}[schema["type"]]
        limits = [words.format(schema[key]) for key, words in BOUNDS.items() if schema.get(key, MAX_BOUND) < MAX_BOUND]
        yield " ".join([kind, *limits])
    elif schema.get("type") == "array":
        yield f"list of {_kind(schema['items'])}"
    elif schema.get("type") == "object":
        yield f"map to {_kind(schema['additionalProperties'])}"
    else:
        yield {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}.get(schema.get("type", ""), "text")


def _yaml(value: Any) -> str:
    """Returns a plain value as it stands in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return re.sub(r"([|<])", r"\\\1", text)
