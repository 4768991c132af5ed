"""The classifier as a scikit-learn estimator, trained on lists and columns in memory."""

import contextlib
import io
import json
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from bilstm_cls.checkpoint import load_best
from bilstm_cls.classifier import Classifier
from bilstm_cls.config import Config
from bilstm_cls.data.dataset import IN_MEMORY, dataset_in_memory
from bilstm_cls.data.prepare import PreparedData, prepare_in_memory, with_dim
from bilstm_cls.data.types import LabelIds, check_texts
from bilstm_cls.device import choose_device, set_threads
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

SECTIONS = ("data", "text", "embedding", "model", "train")
OVERRIDDEN = SECTIONS[1:]
"""Sections whose other keys `overrides` takes, and `data.split_seed`."""

NOT_OVERRIDDEN = ("train.processes", "train.checkpoint_seconds", "train.baselines", "train.loggers")
LABEL_TYPES = {kind.__name__: kind for kind in (str, int, float, bool)}
FITTED = ("classes_", "classifier_", "history_")
_LOCK = threading.Lock()
"""Held while fitting: PyTorch's random generator, which training seeds at every step, is shared by all threads."""


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A bidirectional LSTM over texts, with scikit-learn's `fit`, `predict` and `predict_proba`.

    An argument is the config's key of that name with its default, which `bilstm-cls config schema` prints; `embedding`
    is the key `embedding.init`. It trains in one process, prints nothing and leaves no files. The same seed, texts and
    number of threads give the same bits.

    Args:
        valid: fraction of the texts, of each label alike, that chooses the best epoch. None trains on all texts and
            chooses on them too.
        seed: of weights, batches and dropout.
        threads: CPU threads; as many as PyTorch uses already if None.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
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

    def __init__(
        self,
        *,
        tokenizer: str = "words",
        min_freq: int = 2,
        max_vocab_size: int | None = 30000,
        max_length: int = 400,
        embedding: str | Sequence[str] = "random",
        dim: int | None = None,
        hidden_size: int = 128,
        pooling: str | Sequence[str] = "mean",
        dropout: float = 0.5,
        embedding_dropout: float = 0.2,
        word_dropout: float = 0.05,
        ngrams: str | None = None,
        epochs: int = 5,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        class_weights: str | Mapping[Any, float] | None = None,
        patience: int | None = 2,
        valid: float | None = 0.1,
        seed: int = 1,
        threads: int | None = None,
        device: str = "auto",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.min_freq = min_freq
        self.max_vocab_size = max_vocab_size
        self.max_length = max_length
        self.embedding = embedding
        self.dim = dim
        self.hidden_size = hidden_size
        self.pooling = pooling
        self.dropout = dropout
        self.embedding_dropout = embedding_dropout
        self.word_dropout = word_dropout
        self.ngrams = ngrams
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.class_weights = class_weights
        self.patience = patience
        self.valid = valid
        self.seed = seed
        self.threads = threads
        self.device = device
        self.overrides = overrides

    def fit(self, X: Any, y: Any) -> "TextClassifier":  # noqa: N803 - scikit-learn's names
        """Trains on N texts (list, array, series or generator) and N labels of one type that numpy sorts.

        Where texts have several labels, `y` is an indicator matrix `[N, C]` (array, sparse matrix or data frame), or
        holds a list of labels for each text.

        Raises:
            TypeError: `X` is one text, or a text is no `str`.
            ValueError: an argument, the texts or the labels cannot be used.
            DivergedError: training produced a number that is not finite.
            ResourceError: the disk or memory is full.
        """
        texts = check_texts(X, "X")
        if not texts:
            raise ValueError("X holds no text, and at least two classes need one each")
        classes, label_ids = _classes_of_several(y, texts) or _classes_of(y, texts)
        try:
            config = with_dim(_config_of(self.get_params(deep=False), is_multi=label_ids.ndim == 2))
            seed, names = config.data.split_seed, _names_of(classes)
            dataset = dataset_in_memory(texts, label_ids, names, valid=self.valid, seed=seed)
            with _LOCK, _same_for_every_caller(config):
                loaded, history = _train(config, prepare_in_memory(dataset, config))
        except (ConfigError, DataError) as error:
            raise ValueError(_in_arguments(str(error))) from error
        self.classes_ = classes
        self.classifier_ = Classifier(loaded, config.train.device)
        self.history_ = history
        return self

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Returns the likeliest label of each text, `[N]`, or 1 for each of several labels, `[N, C]`.

        An empty text is one unknown token.
        """
        check_is_fitted(self)
        predicted = self.classifier_.task.predicted(self.predict_proba(X))
        return predicted.astype(np.int64) if predicted.ndim == 2 else np.asarray(self.classes_[predicted])

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:  # noqa: N803
        """Returns probabilities `[N, C]`, columns in the order of `classes_`."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(check_texts(X, "X"))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes a run directory, for `load`, for `Classifier.load` and for every command that takes `--run`.

        Raises:
            ConfigError: the place is taken or cannot be written.
            ResourceError: the disk is full.
            ValueError: the labels are neither str, int, float nor bool.
        """
        check_is_fitted(self)
        kinds = {type(label).__name__ for label in self.classes_.tolist()}
        if len(kinds) != 1 or not kinds <= LABEL_TYPES.keys():
            known = ", ".join(LABEL_TYPES)
            raise ValueError(f"labels of type {', '.join(sorted(kinds))} cannot be saved; {known} can")
        best = next((row for row in reversed(self.history_) if row["is_best"]), {})
        metrics = {name: value for name, value in best.items() if name.startswith("valid/")}
        metrics |= {
            "data/origin": IN_MEMORY,
            "data/label_type": kinds.pop(),
            "data/label_dtype": self.classes_.dtype.str,
        }
        run = RunDirectory(Path(path))
        with run.locked():
            if run.is_taken and not overwrite:
                raise ConfigError(f"{run.path}: holds a run already; give overwrite=True to replace it")
            if overwrite:
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
        run = RunDirectory(Path(path))
        loaded = run.load_model()
        classes = _classes_from(loaded.labels, run.read_object("metrics.json"))
        estimator = cls(**_params_of(loaded.config, classes) | {"device": device})
        estimator._take(run, loaded, classes)
        return estimator

    def _take(self, run: RunDirectory, loaded: LoadedModel, classes: Array) -> None:
        self.classes_ = classes
        self.classifier_ = Classifier(loaded, self.device)
        try:
            path = run / "history.jsonl"  # missing where a run was imported
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            self.history_ = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error

    def __getstate__(self) -> Row:
        # Plain arguments, and what was learned as the bytes of a zipped run directory: tensors, JSON and YAML.
        state = {name: value for name, value in vars(self).items() if name not in FITTED}
        if self.__sklearn_is_fitted__():
            buffer = io.BytesIO()
            with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder, zipfile.ZipFile(buffer, "w") as archive:
                self.save(Path(folder) / "run")
                for path in sorted(Path(folder, "run").iterdir()):
                    if path.name != ".lock":
                        archive.write(path, path.name)
            state["fitted"] = buffer.getvalue()
        return state

    def __setstate__(self, state: Row) -> None:
        fitted = state.pop("fitted", None)
        self.__dict__.update(state)
        if fitted is None:
            return
        with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
            try:
                zipfile.ZipFile(io.BytesIO(fitted)).extractall(folder)
            except zipfile.BadZipFile as error:
                raise CheckpointError(f"the pickled TextClassifier is damaged ({error}); fit it again") from error
            run = RunDirectory(Path(folder))
            loaded = run.load_model()
            self._take(run, loaded, _classes_from(loaded.labels, run.read_object("metrics.json")))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classifier_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.classifier_tags.multi_label = True
        return tags


def _train(config: Config, data: PreparedData) -> tuple[LoadedModel, list[Row]]:
    threads = config.train.threads or torch.get_num_threads()
    here = config.replace(**{"train.threads": threads, "train.checkpoint_seconds": 1e9})
    with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
        run = RunDirectory(Path(folder))
        session = Session.start(run, here, data, ALONE)
        for _ in session.reports(StopSignals()):  # never entered: Ctrl-C stays Python's
            pass
        trainer = session.trainer
        trainer.load_weights(load_best(run.checkpoints, trainer.progress.best_step))
        ngrams, task, _ = calibrate(trainer.model, data, config)
        loaded = LoadedModel(trainer.model, data.tokenizer, data.dataset.labels, config, ngrams, task=task)
        return loaded, trainer.progress.history


@contextlib.contextmanager
def _same_for_every_caller(config: Config) -> Iterator[None]:
    """Trains alike inside `no_grad`, autocast and the like, and leaves generators, threads and types as they were."""
    device, threads, dtype = choose_device(config.train.device), torch.get_num_threads(), torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)
            set_threads(threads)


def _classes_of(y: Any, texts: Sequence[str]) -> tuple[Array, npt.NDArray[np.int64]]:
    """Returns the classes `[C]`, sorted, and for each text the place of its class `[N]`."""
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
        raise ValueError(f"y holds labels that cannot be sorted: missing ones or mixed types ({error})") from error
    if len(classes) < 2:
        raise ValueError(f"y holds one class only, {classes[0]!r}; a classifier needs at least two")
    if len(set(_names_of(classes))) < len(classes):
        raise ValueError(f"y holds labels that read alike: {classes.tolist()}; give them as str")
    return classes, label_ids.astype(np.int64)


def _classes_of_several(y: Any, texts: Sequence[str]) -> tuple[Array, LabelIds] | None:
    """Returns the classes `[C]` and 1 or 0 for each text and class, `[N, C]`; None where a text has one label."""
    columns, y = getattr(y, "columns", None), y.toarray() if hasattr(y, "toarray") else y
    is_matrix, is_column = getattr(y, "ndim", 1) == 2, getattr(y, "shape", ())[1:] == (1,)
    rows = [] if is_column else np.asarray(y) if is_matrix else list(y) if isinstance(y, Iterable) else []
    if not len(rows) or not (is_matrix or all(isinstance(row, list | tuple | set | np.ndarray) for row in rows)):
        return None
    check_consistent_length(texts, rows)
    if isinstance(rows, list) and len({*map(len, rows)}) == 1 and {label for row in rows for label in row} == {0, 1}:
        rows = np.array(rows)  # of lists
    if isinstance(rows, list):
        has_label = (binarizer := MultiLabelBinarizer()).fit_transform(rows)
        classes = np.array(binarizer.classes_.tolist())
    elif np.isin(rows, (0, 1)).all():
        has_label, classes = rows, np.arange(rows.shape[1]) if columns is None else np.array(list(columns))
    else:
        raise ValueError("y is a matrix that holds others than 0 and 1")
    if np.count_nonzero(has_label.any(axis=0)) < 2:
        raise ValueError("y has texts of fewer than two labels; a classifier needs at least two")
    return classes, has_label.astype(np.uint8)


def _names_of(classes: Array) -> list[str]:
    return [str(label) for label in classes.tolist()]


def _classes_from(names: Sequence[str], metrics: Mapping[str, Any]) -> Array:
    """Returns the labels of these names, of the type that `save` noted; names where a run was trained from files."""
    kind, dtype = metrics.get("data/label_type", "str"), metrics.get("data/label_dtype", "O")
    try:
        values = [name == "True" if kind == "bool" else LABEL_TYPES[kind](name) for name in names]
        classes = np.array(values, dtype=np.dtype(dtype))
        if _names_of(classes) != list(names):
            raise ValueError("they read otherwise")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the labels {list(names)} are not of the type {kind!r} in metrics.json") from error
    return classes


def _config_of(params: Mapping[str, Any], *, is_multi: bool = False) -> Config:
    """Returns the config of an estimator's arguments, or raises `ConfigError` with all wrong ones at once."""
    overrides = {str(key): _plain(value) for key, value in (params["overrides"] or {}).items()}
    for key in overrides:
        if key in ARGUMENTS.values():
            raise ConfigError(f"overrides: {key} is an argument; give it as that")
        if not _is_override(key):
            raise ConfigError(f"overrides: {key!r} must be another key of {', '.join(OVERRIDDEN)}, or data.split_seed")
    values = {key: _plain(params[argument]) for argument, key in ARGUMENTS.items()}
    values |= {"name": "text-classifier", "data.train": IN_MEMORY, "train.processes": 1}
    values["data.labels"] = "multi" if is_multi else "single"
    values["data.valid"] = IN_MEMORY if params["valid"] is None else values["data.valid"]
    return Config().replace(**values | overrides)


def _params_of(config: Config, classes: Array) -> Row:
    """Returns the arguments of a config, so that fitting again does the same with texts in memory."""
    flat, defaults = (
        {f"{s}.{key}": value for s in SECTIONS for key, value in getattr(c, s)} for c in (config, Config())
    )
    params = {argument: flat.get(key, config.seed) for argument, key in ARGUMENTS.items()}
    if isinstance(params["class_weights"], dict):
        by_name = dict(zip(_names_of(classes), classes.tolist(), strict=True))
        params["class_weights"] = {by_name[name]: weight for name, weight in params["class_weights"].items()}
    if isinstance(params["valid"], str):
        params["valid"] = None if params["valid"] == IN_MEMORY else defaults["data.valid"]
    changed = {key: value for key, value in flat.items() if _is_override(key) and value != defaults[key]}
    return params | {"overrides": changed or None}


def _is_override(key: str) -> bool:
    is_open = key == "data.split_seed" or (key.partition(".")[0] in OVERRIDDEN and key not in NOT_OVERRIDDEN)
    return is_open and key not in ARGUMENTS.values()


def _in_arguments(message: str) -> str:
    """Puts the names of arguments in the place of the config's keys."""
    for argument, key in ARGUMENTS.items():
        message = message.replace(key, argument)
    return message


def _plain(value: Any) -> Any:
    """Returns what YAML could hold: grids of parameters are made of numpy's numbers, and labels are no keys of YAML."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value
