"""How a config's mistakes are put in words: what a value must be, and what an unknown key was probably meant to be."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bilstm_cls.strict_yaml import KeyPath

SYNONYMS = {
    "adam": "train.optimizer", "amp": "train.precision", "architecture": "model", "backend": "train.device",
    "batch": "train.batch_size", "bidi": "model.bidirectional", "bs": "train.batch_size", "bsz": "train.batch_size",
    "cased": "text.lowercase", "charset": "data.encoding", "class_weight": "train.class_weights",
    "clip": "train.max_grad_norm", "clip_grad": "train.max_grad_norm", "corpus": "data.source",
    "data.dataset": "data.source", "data.label": "data.label_column", "data.name": "data.source",
    "data.text": "data.text_columns", "dataset": "data", "decay": "train.weight_decay", "dev": "data.valid",
    "dropout_rate": "model.dropout", "early_stopping": "train.patience", "emb_dim": "embedding.dim",
    "embed_dim": "embedding.dim", "embed_size": "embedding.dim", "embedding_dim": "embedding.dim",
    "embedding_size": "embedding.dim", "ema": "train.ema_decay", "encoder": "model", "epoch": "train.epochs",
    "epsilon": "train.adversarial_epsilon",
    "eval_every": "train.evaluate_every", "eval_steps": "train.evaluate_every", "evaluation": "train.evaluate_every",
    "experiment": "name", "fp16": "train.precision", "gpu": "train.device", "grad_clip": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm", "hidden": "model.hidden_size", "hidden_dim": "model.hidden_size",
    "hidden_units": "model.hidden_size", "input": "data.train", "iterations": "train.epochs",
    "label": "data.label_column", "labels": "data.label_column", "layer_decay": "train.layer_lr_decay",
    "layers": "model.num_layers",
    "lower": "text.lowercase", "lr": "train.learning_rate", "lr_scheduler": "train.schedule",
    "max_epochs": "train.epochs", "max_len": "text.max_length", "max_seq_length": "text.max_length",
    "max_size": "text.max_vocab_size", "max_tokens": "text.max_vocab_size", "maxlen": "text.max_length",
    "metric": "train.select_by", "metric_for_best_model": "train.select_by", "min_count": "text.min_freq",
    "monitor": "train.select_by", "n_epochs": "train.epochs", "n_layers": "model.num_layers", "network": "model",
    "num_epochs": "train.epochs", "num_hidden": "model.hidden_size", "num_layer": "model.num_layers",
    "num_threads": "train.threads", "num_words": "text.max_vocab_size", "optim": "train.optimizer", "out": "output_dir",
    "out_dir": "output_dir", "output": "output_dir", "perturbation": "train.adversarial_epsilon",
    "pool": "model.pooling", "pretrained": "embedding.init",
    "random_seed": "seed", "random_state": "seed", "rnn_type": "model.cell", "run_name": "name",
    "save_dir": "output_dir", "scheduler": "train.schedule", "seq_len": "text.max_length",
    "text_column": "data.text_columns", "trainable": "embedding.freeze", "training": "train",
    "truncation": "text.truncate", "units": "model.hidden_size", "val": "data.valid", "validation": "data.valid",
    "vectors": "embedding.init", "vocab_size": "text.max_vocab_size", "warmup_ratio": "train.warmup",
    "wd": "train.weight_decay", "weights": "train.class_weights", "wide": "model.ngrams",
}  # fmt: skip
"""What other tools call our keys, or a section's own shorthand as `section.key`."""

VALUE_SYNONYMS = {"ce": "cross_entropy", "corpus": "ppmi", "plain": "cross_entropy"}
"""Other names of values, for keys that have that value as a choice."""

_MUST = {
    "bool_type": "true or false", "dict_type": "a mapping",
    "finite_number": "finite", "float_type": "a number", "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}", "int_type": "an integer", "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:.12g}", "list_type": "a list", "literal_error": "{expected}",
    "model_type": "a section with keys of its own", "string_too_long": "at most {max_length} characters",
    "string_too_short": "text that is not empty", "string_type": "text",
    "too_short": "at least {min_length} long",
}  # fmt: skip
CHOICE_OR_TYPE = {"literal_error", *(kind for kind in _MUST if kind.endswith("_type"))}


def unknown_key(section: str, key: str, keys: Mapping[str, Sequence[str]]) -> str:
    """Says that a key is unknown, and what was probably meant: here, in another section, or by another tool's name."""
    intro = f"unknown key {key!r} in {section}" if section else f"unknown key {key!r}"
    name = key.lower().replace("-", "_")
    all_keys = {_join(home, known): (home, known) for home, names in keys.items() for known in names}
    meant = SYNONYMS.get(_join(section, name))
    homes = [dotted for dotted, (home, known) in all_keys.items() if known == name and home != section]
    if meant is None and homes and name not in keys.get(section, ()):
        home = all_keys[homes[0]][0]
        return f"{intro}; {name!r} belongs {f'in {home}' if home else 'at the top level'}: write {homes[0]}"
    meant = meant or SYNONYMS.get(name) or _closest_key(section, name, all_keys)
    if meant is None:
        return f"{intro}; known are {', '.join(keys.get(section) or keys[''])}"
    home, known = all_keys[meant]
    if home == section:
        return f"{intro}; did you mean {known!r}?"
    return f"{intro}; did you mean {meant}{'' if home else ' at the top level'}?"


def _closest_key(section: str, name: str, all_keys: Mapping[str, tuple[str, str]]) -> str | None:
    def likeness(dotted: str) -> float:
        home, known = all_keys[dotted]
        return difflib.SequenceMatcher(None, known, name).ratio() + 0.1 * (home == section)

    best = max(all_keys, key=likeness)
    return best if likeness(best) >= 0.65 else None


def must_be(errors: Sequence[Any]) -> str:
    """Says what a value must be and is not, from the complaints of every type that it might have had."""
    value, wanted = errors[0]["input"], " or ".join(map(_wanted, errors))
    choices = [choice for e in errors for choice in re.findall(r"'([^']*)'", e.get("ctx", {}).get("expected", ""))]
    near = _closest_choices(value.lower(), choices) if isinstance(value, str) else []
    wanted, _, why = wanted.partition("; ")
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


def dotted(path: KeyPath) -> str:
    """Returns a path as a config's reader writes it, such as `model.pooling[1]`."""
    names = (step if isinstance(step, int) or re.fullmatch(r"[\w-]+", step) else repr(step) for step in path)
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).removeprefix(".")


def shown(value: Any) -> str:
    """Returns a value by `repr`, shortened; what YAML spells otherwise as in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else cut(repr(value))


def cut(text: str) -> str:
    """Returns a text that fits on a line and leaves the terminal alone."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:100])
    return text if len(text) <= 80 else f"{text[:77]}..."


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
