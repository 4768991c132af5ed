"""What scikit-learn's users hand over, as the rest of the program has it: texts, label ids and a config."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from bilstm_cls.config import Config, config_keys
from bilstm_cls.data.dataset import IN_MEMORY
from bilstm_cls.errors import CheckpointError, dotted, problems_of

Array = npt.NDArray[Any]

SECTIONS = ("data", "text", "embedding", "model", "train")
RENAMED = {"init": "embedding"}
"""The one key whose name says too little outside of its section."""

LABEL_TYPES = {kind.__name__: kind for kind in (str, int, float, bool)}


def texts_of(X: Any) -> list[str]:  # noqa: N803 - scikit-learn's name
    """Returns the texts of a list, array or column.

    Raises:
        ValueError: it is one text, or no one-dimensional collection with an order.
        TypeError: a text is no `str`.
    """
    shape = getattr(X, "shape", None)
    if isinstance(X, str | bytes):
        raise ValueError(f"X is one {type(X).__name__}; give a list of texts, as in [text]")
    if isinstance(X, Mapping | AbstractSet) or not hasattr(X, "__iter__"):
        raise ValueError(f"X is a {type(X).__name__}; give a list, an array or a column of texts")
    if shape is not None and len(shape) != 1:
        raise ValueError(f"X has the shape {tuple(shape)}; give one column of texts, as in X['text'] or X[:, 0]")
    texts = list(X)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"X[{place}] is {text!r}, a {type(text).__name__}; every text must be a str")
    return texts


def classes_of(y: Any, texts: Sequence[str]) -> tuple[Array, npt.NDArray[np.int64]]:
    """Returns the classes `[C]`, sorted, and for each text the place of its own `[N]`.

    Raises:
        ValueError: the labels are missing, too few, of one class, or of a kind that has no order.
    """
    if y is None:
        raise ValueError("TextClassifier requires y to be passed, but the target y is None")
    labels = column_or_1d(y, warn=True)
    check_consistent_length(texts, labels)
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
    try:
        classes, label_ids = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(
            f"y holds labels that cannot be sorted, such as missing ones or mixed types ({error})"
        ) from error
    if len(classes) < 2:
        raise ValueError(f"y holds one class only, {classes[0]!r}; a classifier needs at least two")
    if len(set(names_of(classes))) < len(classes):
        raise ValueError(f"y holds labels that read alike: {classes.tolist()}; give them as str")
    return classes, label_ids.astype(np.int64)


def names_of(classes: Array) -> list[str]:
    """Returns what the classes are called in files and messages."""
    return [str(label) for label in classes.tolist()]


def type_of(classes: Array) -> dict[str, str]:
    """Returns what `classes_from` needs to turn names back into labels.

    Raises:
        ValueError: the labels are of a type that has no plain spelling.
    """
    kinds = {type(label).__name__ for label in classes.tolist()}
    if len(kinds) != 1 or not kinds <= LABEL_TYPES.keys():
        raise ValueError(f"labels of type {', '.join(sorted(kinds))} cannot be saved; {', '.join(LABEL_TYPES)} can")
    return {"data/label_type": kinds.pop(), "data/label_dtype": classes.dtype.str}


def classes_from(names: Sequence[str], metrics: Mapping[str, Any]) -> Array:
    """Returns the labels that names stand for: those names themselves where a run was trained from files.

    Raises:
        CheckpointError: the names do not have the type that was noted.
    """
    kind, dtype = metrics.get("data/label_type", "str"), metrics.get("data/label_dtype", "O")
    try:
        values = [name == "True" if kind == "bool" else LABEL_TYPES[kind](name) for name in names]
        classes = np.array(values, dtype=np.dtype(dtype))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"the labels {list(names)} are not of the type {kind!r} that metrics.json names"
        ) from error
    if names_of(classes) != list(names):
        raise CheckpointError(f"the labels {list(names)} are not of the type {kind!r} that metrics.json names")
    return classes


def config_of(params: Mapping[str, Any]) -> Config:
    """Returns the config that an estimator's arguments stand for.

    Raises:
        ValueError: with all wrong arguments at once.
    """
    given: dict[str, Any] = {"name": "text-classifier", "seed": _plain(params["seed"])}
    for section in SECTIONS:
        keys = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        given[section] = {key: _plain(params[argument(key)]) for key in keys if argument(key) in params}
    valid = given["data"]["valid"]
    given["data"] |= {"train": IN_MEMORY, "valid": IN_MEMORY if valid is None else valid}
    given["train"]["processes"] = 1
    try:
        return Config.model_validate(given)
    except ValidationError as error:
        raise ValueError("\n".join(_problems(error, given))) from None


def argument(key: str) -> str:
    """Returns what a config's key is called among the estimator's arguments."""
    return RENAMED.get(key, key)


def _plain(value: Any) -> Any:
    """Returns what YAML could hold: grids of parameters are made of numpy's numbers, and labels are no keys of YAML."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value


def _problems(error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    for path, problem in problems_of(error, given, config_keys()):
        yield f"{argument(str(path[:2][-1]))}: {problem.removeprefix(f'{dotted(path)}: ')}"


def params_of(config: Config, classes: Array) -> dict[str, Any]:
    """Returns the arguments that a config stands for, so that fitting again does the same with texts in memory."""
    params: dict[str, Any] = {"seed": config.seed}
    for section in SECTIONS:
        params |= {argument(key): value for key, value in getattr(config, section)}
    if isinstance(params["class_weights"], dict):
        by_name = dict(zip(names_of(classes), classes.tolist(), strict=True))
        params["class_weights"] = {by_name[name]: weight for name, weight in params["class_weights"].items()}
    if isinstance(params["valid"], str):
        params["valid"] = None if params["valid"] == IN_MEMORY else Config().data.valid
    return params
