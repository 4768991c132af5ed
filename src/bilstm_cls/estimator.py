"""The classifier as a scikit-learn estimator, trained on lists and columns in memory."""

import ast
import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, is_multilabel
from sklearn.utils.validation import check_is_fitted

from bilstm_cls.checkpoint import load_best
from bilstm_cls.classifier import Classifier
from bilstm_cls.config import Config
from bilstm_cls.data.dataset import IN_MEMORY, dataset_in_memory
from bilstm_cls.data.prepare import PreparedData, prepare, with_dim
from bilstm_cls.data.types import LabelIds, checked_texts
from bilstm_cls.device import choose_device
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.run_directory import LoadedModel, RunDirectory, environment
from bilstm_cls.training.calibration import calibrate
from bilstm_cls.training.distributed import ALONE
from bilstm_cls.training.record import StopSignals
from bilstm_cls.training.session import Session

Array = npt.NDArray[Any]
Row = dict[str, Any]

ARGUMENTS = {
    "tokenizer": "text.tokenizer", "min_freq": "text.min_freq", "max_vocab_size": "text.max_vocab_size",
    "max_length": "text.max_length", "embedding": "embedding.init", "dim": "embedding.dim",
    "hidden_size": "model.hidden_size", "pooling": "model.pooling", "dropout": "model.dropout",
    "embedding_dropout": "model.embedding_dropout", "word_dropout": "model.word_dropout", "ngrams": "model.ngrams",
    "epochs": "train.epochs", "batch_size": "train.batch_size", "learning_rate": "train.learning_rate",
    "class_weights": "train.class_weights", "patience": "train.patience", "threads": "train.threads",
    "device": "train.device", "valid": "data.valid", "seed": "seed",
}  # fmt: skip
"""The config's key of each argument."""

OVERRIDDEN = ("text", "embedding", "model", "train")
"""Sections whose other keys `overrides` takes, and `data.split_seed`."""

NOT_OVERRIDDEN = ("train.processes", "train.checkpoint_seconds", "train.baselines", "train.loggers")
LABEL_TYPES = ("str", "int", "float", "bool")
_LOCK = threading.Lock()
"""Held while fitting: PyTorch's random generator, which training seeds at every step, is shared by all threads."""


@dataclass(kw_only=True, eq=False, repr=False)
class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A bidirectional LSTM over texts, with scikit-learn's `fit`, `predict` and `predict_proba`.

    An argument is the config's key of that name with its default, which `bilstm-cls config schema` prints; `embedding`
    is the key `embedding.init`. It trains in one process, prints nothing and leaves no files. The same seed, texts and
    number of threads give the same bits.

    Args:
        valid: fraction of the texts, of each label alike, that chooses the best epoch. None trains on all texts and
            chooses on them too.
        threads: CPU threads; as many as PyTorch uses already if None.
        overrides: other keys of the config, such as `{"model.num_layers": 2, "train.ema_decay": None}`.

    Attributes:
        classes_: `[C]` labels, sorted, of the type they were given in.
        classifier_: the trained `Classifier`, for `predict` with probabilities by name, or `explain`.
        history_: one dict of scores per evaluation.

    Example:
        >>> model = TextClassifier(epochs=10, hidden_size=64).fit(texts, labels)
        >>> model.predict(["A wonderful film."])
        array(['pos'], dtype='<U3')
    """

    tokenizer: str = "words"
    min_freq: int = 2
    max_vocab_size: int | None = 30000
    max_length: int = 400
    embedding: str | Sequence[str] = "random"
    dim: int | None = None
    hidden_size: int = 128
    pooling: str | Sequence[str] = "mean"
    dropout: float = 0.5
    embedding_dropout: float = 0.2
    word_dropout: float = 0.05
    ngrams: str | None = None
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 4e-3
    class_weights: str | Mapping[Any, float] | None = None
    patience: int | None = 2
    valid: float | None = 0.1
    seed: int = 1
    threads: int | None = None
    device: str = "auto"
    overrides: Mapping[str, Any] | None = None

    def fit(self, X: Any, y: Any) -> "TextClassifier":  # noqa: N803 - scikit-learn's names
        """Trains on N texts (list, array, series or generator) and N labels of one type that numpy sorts.

        Where texts have several labels, `y` is an indicator matrix `[N, C]`: array, sparse matrix or data frame.

        Raises:
            TypeError: `X` is one text, or a text is no `str`.
            ValueError: an argument, the texts or the labels cannot be used.
            DivergedError: training produced a number that is not finite.
            ResourceError: the disk or memory is full.
        """
        texts = list(checked_texts(X, "X"))
        if not texts:
            raise ValueError("X holds no text, and at least two classes need one each")
        classes, label_ids = _classes_of(y, texts)
        try:
            config = with_dim(_config_of(self.get_params(deep=False), is_multi=label_ids.ndim == 2))
            names, seed = list(map(str, classes.tolist())), config.data.split_seed
            dataset = dataset_in_memory(texts, label_ids, names, valid=self.valid, seed=seed)
            with _LOCK:
                loaded, history = _train(config, prepare(config, in_memory=dataset))
        except (ConfigError, DataError) as error:
            message = str(error)
            for argument, key in ARGUMENTS.items():
                message = message.replace(key, argument)
            raise ValueError(message) from error
        self.classes_ = classes
        self.classifier_ = Classifier(loaded, config.train.device)
        self.history_ = history
        return self

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Returns the likeliest label of each text, `[N]`, or 1 for each of several labels, `[N, C]`."""
        check_is_fitted(self)
        predicted = self.classifier_.task.predicted(self.predict_proba(X))
        return predicted.astype(np.int64) if predicted.ndim == 2 else np.asarray(self.classes_[predicted])

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:  # noqa: N803
        """Returns probabilities `[N, C]`, columns in the order of `classes_`."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(list(checked_texts(X, "X")))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes a run directory, for `load`, for `Classifier.load` and for every command that takes `--run`.

        Raises:
            ConfigError: the place is taken or cannot be written.
            ResourceError: the disk is full.
            ValueError: the labels are neither str, int, float nor bool.
        """
        check_is_fitted(self)
        kind = type(self.classes_.tolist()[0]).__name__
        if kind not in LABEL_TYPES:
            raise ValueError(f"labels of type {kind} cannot be saved; {', '.join(LABEL_TYPES)} can")
        best = next((row for row in reversed(self.history_) if row["is_best"]), {})
        metrics = {name: value for name, value in best.items() if name.startswith("valid/")}
        metrics |= {"data/origin": IN_MEMORY, "data/label_type": kind, "data/label_dtype": self.classes_.dtype.str}
        run = RunDirectory(path)
        with run.locked():
            if run.is_taken and not overwrite:
                raise ConfigError(f"{run.path}: holds a run already; give overwrite=True to replace it")
            run.clear()
            run.write_status("running", "being saved")
            run.save_model(self.classifier_.loaded)
            run.write_json("environment.json", environment(str(self.classifier_.device), torch.get_num_threads()))
            run.write_history(self.history_)
            run.write_json("metrics.json", metrics)
            run.write_status("finished", "saved from TextClassifier")

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> "TextClassifier":
        """Reads what `save` wrote, or any run of the command line, whose labels are `str`.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the others.
            ConfigError: the device is not there.
        """
        estimator = cls(device=device)
        estimator._read(RunDirectory(path))
        arguments = _arguments_of(estimator.classifier_.config, estimator.classes_)
        estimator.set_params(**arguments | {"device": device})
        return estimator

    def _read(self, run: RunDirectory) -> None:
        loaded = run.load_model()
        self.classes_ = _classes_from(loaded.labels, run.read_object("metrics.json"))
        self.classifier_ = Classifier(loaded, self.device)
        self.history_ = run.read_history()

    def __getstate__(self) -> Row:
        # Plain arguments, and what was learned as the files of a run directory: tensors, JSON and YAML.
        fitted = ("classes_", "classifier_", "history_")
        state = {name: value for name, value in vars(self).items() if name not in fitted}
        if "classifier_" in vars(self):
            with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
                self.save(run := Path(folder) / "run")
                state["files"] = {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"}
        return state

    def __setstate__(self, state: Row) -> None:
        files = state.pop("files", None)
        self.__dict__.update(state)
        if files is not None:
            with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
                self._read(RunDirectory(folder))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.classifier_tags.multi_label = True
        return tags


def _train(config: Config, data: PreparedData) -> tuple[LoadedModel, list[Row]]:
    """Trains in a temporary folder; leaves PyTorch's random generators and number of threads as they were."""
    before, device = torch.get_num_threads(), choose_device(config.train.device)
    here = config.replace(**{"train.threads": config.train.threads or before, "train.checkpoint_seconds": 1e9})
    devices = [device] if device.type == "cuda" else []
    try:
        with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder, torch.random.fork_rng(devices):
            run = RunDirectory(folder)
            session = Session.start(run, here, data, ALONE)
            for _ in session.reports(StopSignals()):  # never entered: Ctrl-C stays Python's
                pass
            trainer = session.trainer
            trainer.load_weights(load_best(run.checkpoints, trainer.progress.best_step))
            ngrams, task, _ = calibrate(trainer.model, data, config)
    finally:
        torch.set_num_threads(before)
    loaded = LoadedModel(trainer.model, data.tokenizer, data.dataset.labels, config, ngrams, task=task)
    return loaded, trainer.progress.history


def _classes_of(y: Any, texts: Sequence[str]) -> tuple[Array, LabelIds]:
    """Returns the classes `[C]`, sorted, and the label ids `[N]`, or `[N, C]` where texts have several labels."""
    if y is None:
        raise ValueError("TextClassifier requires y to be passed, but the target y is None")
    if isinstance(y, list | tuple) and len({len(row) for row in y if isinstance(row, list | tuple | set)}) > 1:
        raise ValueError("y holds lists of labels; give the matrix that sklearn's MultiLabelBinarizer makes of them")
    if is_multilabel(y):
        has_label = y.toarray() if hasattr(y, "toarray") else np.asarray(y)
        check_consistent_length(texts, has_label)
        if not np.isin(has_label, (0, 1)).all() or np.count_nonzero(has_label.any(axis=0)) < 2:
            raise ValueError("y is a matrix that holds others than 0 and 1, or has texts of fewer than two labels")
        return np.array(list(getattr(y, "columns", range(has_label.shape[1])))), has_label.astype(np.uint8)
    labels = column_or_1d(y, warn=True)
    check_consistent_length(texts, labels)
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
    try:
        classes, label_ids = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"y holds labels that cannot be sorted: missing ones or mixed types ({error})") from error
    if len(classes) < 2:
        raise ValueError(f"y holds one class only, {classes[0]!r}; a classifier needs at least two")
    return classes, label_ids.astype(np.int64)


def _classes_from(names: Sequence[str], metrics: Mapping[str, Any]) -> Array:
    """Returns the labels of these names, of the type that `save` noted; names where a run was trained from files."""
    kind, dtype = metrics.get("data/label_type", "str"), metrics.get("data/label_dtype", "O")
    try:
        return np.array(names if kind == "str" else list(map(ast.literal_eval, names)), dtype=np.dtype(dtype))
    except (SyntaxError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the labels {list(names)} are not of the type {kind!r} in metrics.json") from error


def _config_of(params: Mapping[str, Any], *, is_multi: bool = False) -> Config:
    """Returns the config of an estimator's arguments, or raises `ConfigError` with all wrong ones at once."""
    values, overrides = {key: params[argument] for argument, key in ARGUMENTS.items()}, params["overrides"] or {}
    if wrong := [key for key in overrides if not _is_override(key)]:
        raise ConfigError(f"overrides: {wrong[0]!r} is an argument, or no key of {', '.join(OVERRIDDEN)}")
    if isinstance(weights := params["class_weights"], Mapping):
        values["train.class_weights"] = {str(label): weight for label, weight in weights.items()}
    values |= {"name": "text-classifier", "data.train": IN_MEMORY, "train.processes": 1}
    values["data.labels"] = "multi" if is_multi else "single"
    values["data.valid"] = IN_MEMORY if params["valid"] is None else params["valid"]
    # As YAML would give them: grids are made of numpy's numbers, and of tuples.
    plain = json.dumps({**values, **overrides}, default=lambda value: getattr(value, "tolist", value.__repr__)())
    return Config().replace(**json.loads(plain))


def _arguments_of(config: Config, classes: Array) -> Row:
    """Returns the arguments of a config, so that fitting again does the same with texts in memory."""
    flat, defaults = (
        {f"{s}.{key}": value for s in ("data", *OVERRIDDEN) for key, value in getattr(c, s)} for c in (config, Config())
    )
    arguments = {argument: flat.get(key, config.seed) for argument, key in ARGUMENTS.items()}
    if isinstance(weights := arguments["class_weights"], dict):
        by_name = {str(label): label for label in classes.tolist()}
        arguments["class_weights"] = {by_name[name]: weight for name, weight in weights.items()}
    if isinstance(valid := arguments["valid"], str):
        arguments["valid"] = None if valid == IN_MEMORY else defaults["data.valid"]
    changed = {key: value for key, value in flat.items() if _is_override(key) and value != defaults[key]}
    return arguments | {"overrides": changed or None}


def _is_override(key: str) -> bool:
    is_open = key == "data.split_seed" or (key.partition(".")[0] in OVERRIDDEN and key not in NOT_OVERRIDDEN)
    return is_open and key not in ARGUMENTS.values()
