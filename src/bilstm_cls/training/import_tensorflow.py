"""A run directory from the variables of a model that was trained in TensorFlow 1.

Shapes: V vocabulary, E embedding_dim, H hidden_size, C labels.
"""

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.tokenizer import PADDING, TOKENIZERS, UNKNOWN, Tokenizer
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.files import sha256_of
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.tensorflow import TensorFlowModel, find_model, read_variables
from bilstm_cls.run_directory import LoadedModel, RunDirectory, build_model, environment

logger = logging.getLogger(__name__)

POOLINGS = ("reduce_mean", "mean", "last")
"""Poolings with which a TensorFlow 1 model of this kind has no further variables."""

NO_DATA = "imported-from-tensorflow"
"""What `data.train` of the run's config says: there are no texts to judge or train it on."""

_PADDINGS = {"<pad>", "[pad]", "_pad_", "_pad", "pad"}
_UNKNOWNS = {"<unk>", "[unk]", "_unk_", "_unk", "unk", "<oov>", "[oov]"}
"""How vocabularies spell the two special tokens, in any case; those of letters alone in capitals."""


@dataclass(frozen=True)
class Vocabulary:
    """How texts become ids, and where the row of each id comes from.

    Attributes:
        tokenizer: with ids as they are here: `<pad>` 0, `<unk>` 1.
        rows: `[V]`, for each id here the id there, or -1 where there is none.
        kind: key of `TOKENIZERS`.
        lowercase: whether texts are lower-cased.
    """

    tokenizer: Tokenizer
    rows: list[int]
    kind: str
    lowercase: bool


def import_tensorflow(
    variables: Path,
    target: Path,
    *,
    vocab: Path,
    labels: Path,
    max_length: int | None = None,
    tokenizer: str | None = None,
    lowercase: bool | None = None,
    truncate: str = "head",
    pooling: str = "reduce_mean",
    forget_bias: float = 1.0,
    scope: str | None = None,
    names: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> RunDirectory:
    """Makes a run directory that `predict` and `eval --data` accept.

    Args:
        variables: an `.npz` of all variables by name, as `scripts/dump_tensorflow.py` writes it.
        target: the run directory.
        vocab: one token a line, whose number from 0 is its id in TensorFlow, or a `tokenizer.json` of this program.
        labels: one label a line, in the order of the projection's columns.
        max_length: tokens that texts were cut and padded to; the config's default if None, and not with `reduce_mean`.
        tokenizer: how texts are split, for a vocabulary of lines; `whitespace` if None.
        lowercase: whether texts are lower-cased; if None, where no token of the vocabulary has a capital letter.
        truncate: which end of a longer text is kept: `head`, `tail` or `both`.
        pooling: one of `POOLINGS`.
        forget_bias: what the cells add to the forget gate.
        scope: look only at variables under this prefix.
        names: variables by role where they are not found by themselves, see `find_model`.
        overwrite: replace an earlier run.

    Raises:
        CheckpointError: the variables cannot be read or are not those of such a model.
        ConfigError: an option does not fit, or the directory is taken.
        DataError: vocabulary or labels cannot be read or do not fit the variables.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"--pooling: {pooling!r} cannot be taken over; choose one of {', '.join(POOLINGS)}")
    if pooling == "reduce_mean" and max_length is None:
        raise ConfigError("--max-length: reduce_mean divides by the length that texts were padded to there; give it")
    if not math.isfinite(forget_bias):
        raise ConfigError(f"--forget-bias: must be a finite number, not {forget_bias}")
    found = _read_model(variables, scope, names)
    vocabulary = _read_vocabulary(vocab, tokenizer, lowercase)
    num_tokens = len(vocabulary.rows) - vocabulary.rows.count(-1)
    if num_tokens != len(found.embedding):
        raise DataError(
            f"{vocab}: has {num_tokens:,} tokens, but the embedding has {len(found.embedding):,} rows; each row needs "
            f"its token, the padding's too, such as {PADDING}"
        )
    label_names = _read_labels(labels, found)
    config = _config(target, found, vocabulary, {"max_length": max_length, "truncate": truncate}, pooling)
    model = _build(config, found, vocabulary, len(label_names), forget_bias)
    run = RunDirectory(target)
    with run.locked():
        if run.is_taken and not overwrite:
            raise ConfigError(f"{run.path}: already holds a run; add --overwrite to replace it, or choose another -o")
        run.clear()
        run.write_status("running", "importing")
        run.save_model(LoadedModel(model, vocabulary.tokenizer, label_names, config))
        run.write_json("environment.json", environment("cpu", torch.get_num_threads()))
        run.write_json("metrics.json", {"data/origin": f"{variables.name}, sha256 {sha256_of(variables)}"})
        run.write_status("finished", "imported from TensorFlow")
    logger.info(f"wrote {run.path}: {len(vocabulary.tokenizer):,} tokens, labels {', '.join(label_names[:20])}")
    return run


def _read_model(path: Path, scope: str | None, names: Mapping[str, str] | None) -> TensorFlowModel:
    try:
        variables = read_variables(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        return find_model(variables, scope=scope, names=names)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_vocabulary(path: Path, kind: str | None, lowercase: bool | None) -> Vocabulary:
    if path.suffix.lower() == ".json":
        if kind is not None or lowercase is not None:
            raise ConfigError(f"--tokenizer and --lowercase go with a vocabulary of lines; {path} says both itself")
        return _own_vocabulary(path)
    kind = kind or "whitespace"
    if kind not in TOKENIZERS or kind == "bpe":
        known = ", ".join(name for name in TOKENIZERS if name != "bpe")
        raise ConfigError(f"--tokenizer: {kind!r} is none that takes a vocabulary of lines; they are {known}")
    tokens = _read_lines(path)
    padding, unknown = _only(path, tokens, _PADDINGS), _only(path, tokens, _UNKNOWNS)
    others = [i for i in range(len(tokens)) if i not in (padding, unknown)]
    if lowercase is None:
        lowercase = kind == "basic_english" or not any(c.isupper() for i in others for c in tokens[i])
    content = _empty_tokenizer(kind, lowercase)
    content["model"]["vocab"] = {PADDING: 0, UNKNOWN: 1} | {tokens[i]: place for place, i in enumerate(others, 2)}
    rows = [-1 if place is None else place for place in (padding, unknown)] + others
    return Vocabulary(Tokenizer.from_json(json.dumps(content)), rows, kind, lowercase)


def _empty_tokenizer(kind: str, lowercase: bool) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Tokenizer.train([], kind=kind, lowercase=lowercase).to_json())
    return content


def _own_vocabulary(path: Path) -> Vocabulary:
    tokenizer = Tokenizer.load(path)
    content = json.loads(tokenizer.to_json())
    for kind, lowercase in itertools.product(TOKENIZERS, (True, False)):
        same = _empty_tokenizer(kind, lowercase)
        if all(content[part] == same[part] for part in ("normalizer", "pre_tokenizer")):
            return Vocabulary(tokenizer, list(range(len(tokenizer))), kind, lowercase)
    raise DataError(f"{path}: splits texts in none of the ways that are known here: {', '.join(TOKENIZERS)}")


def _only(path: Path, tokens: Sequence[str], spellings: set[str]) -> int | None:
    """Returns the place of the one token that is spelled so, if there is one."""
    found = [i for i, token in enumerate(tokens) if token.lower() in spellings]
    found = [i for i in found if not tokens[i].isalpha() or tokens[i].isupper()]
    if len(found) > 1:
        first, second = found[:2]
        raise DataError(
            f"{path}:{second + 1}: {tokens[second]!r} means the same as {tokens[first]!r} in line {first + 1}; "
            "rename one of them"
        )
    return found[0] if found else None


def _read_lines(path: Path) -> list[str]:
    """Returns the lines of a file, all different."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{number}: is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if "\t" in line.strip():  # a tab alone may be a character of a vocabulary
            raise DataError(f"{path}:{number}: {line[:80]!r} holds a tab; there must be one name a line, nothing else")
        if line in first:
            raise DataError(f"{path}:{number}: {line[:80]!r} is in line {first[line]} already")
        first[line] = number
    return lines


def _read_labels(path: Path, found: TensorFlowModel) -> list[str]:
    labels = _read_lines(path)
    if "" in labels:
        raise DataError(f"{path}:{labels.index('') + 1}: is empty; there must be one label a line")
    columns = found.project_kernel.shape[1]
    if len(labels) != max(columns, 2):
        raise DataError(f"{path}: has {len(labels)} labels, but the model's projection has {columns} column(s)")
    return labels


def _config(
    target: Path, found: TensorFlowModel, vocabulary: Vocabulary, text: Mapping[str, Any], pooling: str
) -> Config:
    folder = target.absolute()
    values = {
        "name": folder.name,
        "output_dir": str(folder.parent),
        "data.train": NO_DATA,
        "text.tokenizer": vocabulary.kind,
        "text.lowercase": vocabulary.lowercase,
        "text.min_freq": 1,
        **{f"text.{key}": value for key, value in text.items() if value is not None},
        "embedding.dim": found.embedding.shape[1],
        "model.hidden_size": found.project_kernel.shape[0] // 2,
        "model.pooling": pooling,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_config(None, [*overrides, "text.max_vocab_size=null"])


def _build(
    config: Config, found: TensorFlowModel, vocabulary: Vocabulary, num_labels: int, forget_bias: float
) -> BiLSTMClassifier:
    model = build_model(config, len(vocabulary.tokenizer), num_labels)
    model.set_embedding(torch.from_numpy(_rows(found.embedding, vocabulary.rows)))
    model.encoder.load_tensorflow(*found.cells, forget_bias=forget_bias)
    kernel, bias = found.project_kernel, found.project_bias
    if kernel.shape[1] < num_labels:  # one logit z under a sigmoid is the softmax of 0 and z
        kernel, bias = (np.concatenate([np.zeros_like(array), array], -1) for array in (kernel, bias))
    with torch.no_grad():
        model.project.weight.copy_(torch.from_numpy(kernel).t())
        model.project.bias.copy_(torch.from_numpy(bias))
    return model


def _rows(embedding: npt.NDArray[Any], places: Sequence[int]) -> npt.NDArray[np.float32]:
    """Picks rows `[V, E]`, zeros for a place of -1."""
    padded = np.concatenate([embedding, np.zeros_like(embedding[:1])])
    return np.asarray(padded[np.array(places)], dtype=np.float32)
