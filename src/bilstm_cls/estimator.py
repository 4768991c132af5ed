"""The classifier as a scikit-learn estimator: the engine of the command line, fed from lists and columns in memory."""

import contextlib
import inspect
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bilstm_cls.checkpoint import load_best
from bilstm_cls.classifier import Classifier
from bilstm_cls.config import Config
from bilstm_cls.data.dataset import IN_MEMORY, dataset_in_memory
from bilstm_cls.data.prepare import PreparedData, prepare_in_memory
from bilstm_cls.device import choose_device, set_threads
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.estimator_input import classes_from, classes_of, config_of, names_of, params_of, texts_of, type_of
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import LoadedModel, RunDirectory, environment, flat_json
from bilstm_cls.training.calibration import calibrate
from bilstm_cls.training.distributed import ALONE
from bilstm_cls.training.record import StopSignals
from bilstm_cls.training.session import Session

Array = npt.NDArray[Any]
Row = dict[str, Any]

FITTED = ("classes_", "classifier_", "history_")


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A bidirectional LSTM over texts, with scikit-learn's `fit`, `predict` and `predict_proba`.

    Every argument is the config's key of that name, with its default and its meaning, which `bilstm-cls config schema`
    prints; `embedding` is the key `embedding.init`. It trains in one process, prints nothing and leaves no files. The
    same seed, texts and number of threads give the same bits.

    Args:
        valid: share of the texts, of each label alike, that chooses the best epoch. None trains on all texts and
            chooses on them too.
        split_seed: of that split.
        seed: of weights, batches and dropout.
        threads: CPU threads; as many as PyTorch uses already if None.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

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
        lowercase: bool = True,
        min_freq: int = 2,
        max_vocab_size: int | None = 30000,
        max_length: int = 400,
        truncate: str = "both",
        embedding: str = "random",
        dim: int = 100,
        freeze: bool = False,
        init_from: str | None = None,
        cell: str = "lstm",
        bidirectional: bool = True,
        hidden_size: int = 128,
        num_layers: int = 1,
        pooling: str | Sequence[str] = "mean",
        bigrams: int | None = None,
        dropout: float = 0.5,
        embedding_dropout: float = 0.2,
        word_dropout: float = 0.05,
        layer_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        ngrams: str | None = None,
        epochs: int = 5,
        objective: str = "cross_entropy",
        adversarial_epsilon: float = 0.05,
        unlabelled_batch_size: int | None = None,
        batch_size: int = 64,
        batch_tokens: int | None = None,
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        layer_lr_decay: float = 1.0,
        unfreeze: str = "all",
        momentum: float = 0.9,
        schedule: str = "one-cycle",
        warmup: float = 0.05,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        ema_decay: float | None = 0.999,
        class_weights: str | Mapping[Any, float] | None = None,
        label_smoothing: float = 0.0,
        precision: str = "auto",
        evaluate_every: str | int = "epoch",
        select_by: str = "valid/accuracy",
        patience: int | None = 2,
        calibrate: bool = True,
        max_minutes: float | None = None,
        valid: float | None = 0.1,
        split_seed: int = 0,
        seed: int = 1,
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        self.tokenizer = tokenizer
        self.lowercase = lowercase
        self.min_freq = min_freq
        self.max_vocab_size = max_vocab_size
        self.max_length = max_length
        self.truncate = truncate
        self.embedding = embedding
        self.dim = dim
        self.freeze = freeze
        self.init_from = init_from
        self.cell = cell
        self.bidirectional = bidirectional
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.pooling = pooling
        self.bigrams = bigrams
        self.dropout = dropout
        self.embedding_dropout = embedding_dropout
        self.word_dropout = word_dropout
        self.layer_dropout = layer_dropout
        self.recurrent_dropout = recurrent_dropout
        self.ngrams = ngrams
        self.epochs = epochs
        self.objective = objective
        self.adversarial_epsilon = adversarial_epsilon
        self.unlabelled_batch_size = unlabelled_batch_size
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.layer_lr_decay = layer_lr_decay
        self.unfreeze = unfreeze
        self.momentum = momentum
        self.schedule = schedule
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.precision = precision
        self.evaluate_every = evaluate_every
        self.select_by = select_by
        self.patience = patience
        self.calibrate = calibrate
        self.max_minutes = max_minutes
        self.valid = valid
        self.split_seed = split_seed
        self.seed = seed
        self.threads = threads
        self.device = device

    def fit(self, X: Any, y: Any) -> "TextClassifier":  # noqa: N803 - scikit-learn's names
        """Trains on texts and labels.

        Args:
            X: N texts: a list, a numpy array, a pandas or polars column.
            y: N labels of one type that numpy sorts, of at least two classes.

        Raises:
            TypeError: a text is no `str`.
            ValueError: an argument, the texts or the labels cannot be used.
            DivergedError: training produced a number that is not finite.
            ResourceError: the disk or memory is full.
        """
        texts = texts_of(X)
        if not texts:
            raise ValueError("X holds no text, and at least two classes need one each")
        classes, label_ids = classes_of(y, texts)
        config = config_of(self.get_params(deep=False))
        try:
            dataset = dataset_in_memory(
                texts, label_ids, names_of(classes), valid=self.valid, seed=config.data.split_seed
            )
            data = prepare_in_memory(dataset, config)
            loaded, history = _train(config, data)
        except (ConfigError, DataError) as error:
            raise ValueError(_in_arguments(error)) from error
        self.classes_ = classes
        self.classifier_ = Classifier(loaded, config.train.device)
        self.history_ = history
        return self

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Returns the likeliest label of each text, `[N]`; an empty text is one unknown token."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:  # noqa: N803
        """Returns probabilities `[N, C]`, columns in the order of `classes_`."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(texts_of(X))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes a run directory, for `load`, for `Classifier.load` and for every command that takes `--run`.

        Raises:
            ConfigError: the place is taken or cannot be written.
            ResourceError: the disk is full.
            ValueError: the labels are neither str, int, float nor bool.
        """
        check_is_fitted(self)
        facts = {"data/origin": IN_MEMORY, **type_of(self.classes_)}
        run = RunDirectory(Path(path))
        with run.locked():
            if overwrite:
                run.clear()
            elif run.is_taken:
                raise ConfigError(f"{run.path}: holds a run already; give overwrite=True to replace it")
            run.write_status("running", "being saved")
            self._write(run, facts)
            run.write_status("finished", "saved from TextClassifier")

    def _write(self, run: RunDirectory, facts: Row) -> None:
        loaded = self.classifier_.loaded
        run.save_model(loaded)
        run.write_json("environment.json", environment(str(self.classifier_.device), torch.get_num_threads()))
        write_atomic(run / "history.jsonl", "".join(flat_json(row) + "\n" for row in self.history_))
        best = next((row for row in reversed(self.history_) if row["is_best"]), {})
        scores = {name: value for name, value in best.items() if name.startswith("valid/")}
        run.write_json("metrics.json", scores | facts)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> "TextClassifier":
        """Reads what `save` wrote, or any run of the command line, whose labels are `str`.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the others.
            ConfigError: the device is not there.
        """
        run = RunDirectory(Path(path))
        loaded = run.load_model()
        classes = classes_from(loaded.labels, run.read_object("metrics.json"))
        params = params_of(loaded.config, classes)
        estimator = cls(**{name: params[name] for name in inspect.signature(cls).parameters} | {"device": device})
        estimator._take(run, loaded, classes)
        return estimator

    def _take(self, run: RunDirectory, loaded: LoadedModel, classes: Array) -> None:
        self.classes_ = classes
        self.classifier_ = Classifier(loaded, self.device)
        self.history_ = _history_of(run)

    def __getstate__(self) -> Row:
        """Plain arguments, and what was learned as the bytes of a zipped run directory: tensors, JSON and YAML."""
        state = {name: value for name, value in vars(self).items() if name not in FITTED}
        if self.__sklearn_is_fitted__():
            with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
                self.save(Path(folder) / "run")
                state["fitted"] = _zipped(Path(folder) / "run")
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
            self._take(run, loaded, classes_from(loaded.labels, run.read_object("metrics.json")))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classifier_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def _train(config: Config, data: PreparedData) -> tuple[LoadedModel, list[Row]]:
    """Returns the best model and its history. PyTorch's generators and threads are as before afterwards."""
    threads = torch.get_num_threads()
    here = config.train.model_copy(update={"threads": config.train.threads or threads, "checkpoint_seconds": 1e9})
    device = choose_device(config.train.device)
    with (
        tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        _same_threads(),
    ):
        run = RunDirectory(Path(folder))
        session = Session.start(run, config.model_copy(update={"train": here}), data, ALONE)
        for _ in session.reports(StopSignals()):  # never entered: Ctrl-C stays Python's own
            pass
        trainer = session.trainer
        trainer.load_weights(load_best(run.checkpoints, trainer.progress.best_step))
        ngrams, _ = calibrate(trainer.model, data, config)
        loaded = LoadedModel(trainer.model, data.tokenizer, data.dataset.labels, config, ngrams)
        return loaded, trainer.progress.history


@contextlib.contextmanager
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(threads)


def _in_arguments(error: Exception) -> str:
    """A message in the words of the arguments instead of the config's keys."""
    return re.sub(r"\b(data|text|train|embedding|model(?!\.safetensors))\.(?=[a-z_]+\b)", "", str(error))


def _history_of(run: RunDirectory) -> list[Row]:
    path = run / "history.jsonl"
    if not path.exists():  # taken over from another program
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            if path.name != ".lock":
                archive.write(path, path.name)
    return buffer.getvalue()
