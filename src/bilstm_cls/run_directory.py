"""A run directory: its files, its lock and its status, and how a trained model is written and read.

Everything that a prediction needs is inside, and nothing in it is ever executed: text, JSON and safetensors only.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bilstm_cls.checkpoint import load_tensors, save_tensors
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config, load_config
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.files import make_folder, naming_disk_faults, write_atomic
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.language_model import LanguageModels
from bilstm_cls.ngrams import NgramModel
from bilstm_cls.runtime import Task

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
BASELINE = "evaluated"  # why the status of what `baseline` wrote is finished
RUN_FILES = (
    "model.safetensors", "model-*.safetensors", "encoder.safetensors", "ngrams.safetensors", "study.journal",
    "best.yaml", "trials.csv", "tuning.json", "checkpoints/*.json", "checkpoints/step-*.safetensors",
    "teacher/*.safetensors", "teacher/history.jsonl", "teacher/checkpoints/*.json",
    "teacher/checkpoints/step-*.safetensors", "tokenizer.json", "labels.json", "thresholds.json", "metrics.json",
    "history.jsonl", "predictions_*.csv", "plots/*.png", "report.html", "environment.json", "train.log",
    "loggers.json", "tensorboard/events.out.tfevents.*", "README.md", "config.yaml", "status.json",
)  # fmt: skip
"""Patterns of all files of a run, in the order in which they are deleted: a deletion that is interrupted leaves neither
a model nor checkpoints without their config and status."""


@dataclass(frozen=True)
class LoadedModel:
    """What a prediction needs. The logits of all parts are added up; `others` are an ensemble's further networks."""

    model: BiLSTMClassifier
    tokenizer: Tokenizer
    labels: list[str]
    config: Config
    ngrams: NgramModel | None = None
    others: tuple[BiLSTMClassifier, ...] = ()
    task: Task = Task()  # noqa: RUF009 - frozen

    @property
    def members(self) -> tuple[BiLSTMClassifier, ...]:
        """All networks."""
        return (self.model, *self.others)


class RunDirectory:
    """The files of one run under `path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.plots, self.checkpoints = self.path / "plots", self.path / "checkpoints"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_taken(self) -> bool:
        """Whether the folder holds a run, in whatever state; raises `ConfigError` where it holds something else."""
        entries = self.path.iterdir() if self.path.exists() else ()
        if all(entry.name == ".lock" or entry.match(".*.tmp") for entry in entries):
            return False
        if "status" in self.read_status():
            return True
        raise ConfigError(
            f"{self.path}: holds other files and no run, so nothing is written or deleted there; choose another place "
            f"with -o or --set name=NAME"
        )

    @contextlib.contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Holds the directory for one writer; raises `ConfigError` where another process does, or waits for its end."""
        with naming_disk_faults(self.path):
            make_folder(self.path)
            lock = FileLock(self.path / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                status = self.read_status()
                known = f" (process {status['pid']} on {status['host']})" if "pid" in status else ""
                who = f"another run is writing here{known}"
                if not wait:
                    raise ConfigError(f"{self.path}: {who}; use another -o or name") from None
                logger.info(f"{self.path}: waiting, {who}")
                lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Deletes the files of an earlier run, and nothing that this program did not write."""
        if not self.is_taken:
            return
        with naming_disk_faults(self.path):
            for path in itertools.chain.from_iterable(sorted(self.path.glob(pattern)) for pattern in RUN_FILES):
                path.unlink()
            for folder in sorted({(self / pattern).parent for pattern in RUN_FILES} - {self.path}, reverse=True):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def remove_leftovers(self) -> None:
        """Deletes the temporary files of a run that was killed. Only the holder of the lock may call it."""
        with naming_disk_faults(self.path):
            for folder, _, name in (pattern.rpartition("/") for pattern in RUN_FILES):
                for path in (self.path / folder).glob(f".{name}.????????.tmp"):
                    path.unlink()

    def write_json(self, name: str, content: Any) -> None:
        write_atomic(self.path / name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes `history.jsonl`, one row per evaluation."""
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        write_atomic(self / "history.jsonl", "".join(lines))

    def read_history(self) -> list[dict[str, Any]]:
        """Returns the rows of `history.jsonl`, none where there is no such file, as in an ensemble."""
        path = self / "history.jsonl"
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error

    def read_json(self, name: str) -> Any:
        """Reads one JSON file, or raises `CheckpointError` where it is missing or damaged."""
        path = self / name
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing, so {self.path} is not a finished run directory") from error
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error

    def read_object(self, name: str) -> dict[str, Any]:
        content = self.read_json(name)
        if not isinstance(content, dict):
            raise CheckpointError(f"{self / name}: damaged, it holds no JSON object")
        return content

    def write_status(self, status: str, reason: str, **more: Any) -> None:
        """Writes into `status.json` whether the run is running, finished, stopped or failed, and why."""
        content = {"status": status, "reason": reason, "pid": os.getpid(), "host": socket.gethostname()}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        started = self.read_status().get("started", now) if status != "running" else now
        self.write_json("status.json", {**content, "updated": now, **more, "started": started})

    def read_status(self) -> dict[str, Any]:
        """Returns `status.json`, or an empty mapping where there is none that can be read."""
        try:
            return self.read_object("status.json")
        except CheckpointError:
            return {}

    def save_model(self, loaded: LoadedModel) -> None:
        """Writes the trained model and all that is needed to use it."""
        tokenizer, labels, config, task = loaded.tokenizer, loaded.labels, loaded.config, loaded.task
        if loaded.ngrams is not None:
            arrays = {name: torch.from_numpy(array) for name, array in loaded.ngrams.arrays().items()}
            save_tensors(self / "ngrams.safetensors", arrays, {})
        write_atomic(self / "config.yaml", dump_config(config))
        write_atomic(self / "tokenizer.json", tokenizer.to_json())
        self.write_json("labels.json", labels)
        if task.thresholds is not None:
            self.write_json("thresholds.json", dict(zip(labels, task.thresholds.tolist(), strict=True)))
        elif config.train.reject is not None:
            self.write_json("thresholds.json", {"min_probability": task.min_probability})
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "text_digest": text_digest(tokenizer, labels),
            "config": json.dumps(_model_keys(config)),
            "members": str(len(loaded.members)),
        }
        for number, member in reversed(list(enumerate(loaded.members, 1))):  # the first last: its file is the model
            save_tensors(self._weights(number), member.state_dict(), metadata)

    def _weights(self, number: int) -> Path:
        return self / ("model.safetensors" if number == 1 else f"model-{number}.safetensors")

    def load_config(self) -> Config:
        """Reads `config.yaml` back, or raises `CheckpointError` where it is missing or of an earlier version."""
        if not (self / "config.yaml").is_file():
            raise CheckpointError(f"{self / 'config.yaml'}: missing, so {self.path} is not a run directory")
        try:
            return load_config(self / "config.yaml")
        except ConfigError as error:
            problem = str(error).splitlines()[0].removesuffix(":")
            raise CheckpointError(f"{problem}; made by an earlier version, or changed: train it again") from error

    def load_model(self) -> LoadedModel:
        """Reads the model to the CPU, or raises `CheckpointError` where a file is missing, damaged, or does not fit."""
        config, path = self.load_config(), self._weights(1)
        if not path.exists():
            status = self.read_status()
            if status.get("reason") == BASELINE:
                raise CheckpointError(f"{self.path}: is a baseline and has no model; compare it with bilstm-cls report")
            state = f"its run is {status.get('status', 'not known')}: {status.get('reason')}"
            raise CheckpointError(f"{self.path}: holds no finished model ({state}); train it, or add --resume")
        tensors, metadata = load_tensors(path)
        if (found := metadata.get("format_version")) != str(FORMAT_VERSION):
            raise CheckpointError(f"{self.path}: made by an earlier version (format {found}); train it again")
        labels, tokenizer = self.read_json("labels.json"), Tokenizer.load(self / "tokenizer.json")
        if metadata.get("text_digest") != text_digest(tokenizer, labels):
            raise CheckpointError(f"{self.path}: tokenizer.json or labels.json is not what the model was trained with")
        try:
            trained, num_members = dict(json.loads(metadata["config"])), int(metadata["members"])
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: damaged, its metadata cannot be read ({error})") from error
        for key, value in trained.items():
            if (given := _model_keys(config).get(key)) != value:
                raise CheckpointError(f"{self / 'config.yaml'}: {key} is {given!r}, but the model has {value!r}")
        members = [_member(path, tensors, config, len(tokenizer), len(labels))]
        for other in map(self._weights, range(2, num_members + 1)):
            tensors, others = load_tensors(other)
            if any(others.get(key) != metadata[key] for key in ("text_digest", "config")):
                raise CheckpointError(f"{other}: is of another ensemble than model.safetensors")
            members.append(_member(other, tensors, config, len(tokenizer), len(labels)))
        ngrams = None if config.model.ngrams is None else self._load_ngrams(len(labels))
        task = self._load_task(labels, config)
        return LoadedModel(members[0], tokenizer, labels, config, ngrams, tuple(members[1:]), task)

    def _load_task(self, labels: list[str], config: Config) -> Task:
        is_multi = config.data.labels == "multi"
        if not is_multi and config.train.reject is None:
            return Task()
        values, names = self.read_object("thresholds.json"), labels if is_multi else ["min_probability"]
        is_number = [isinstance(value, int | float) and 0 < value <= 1 for value in values.values()]
        if list(values) != names or not all(is_number):
            raise CheckpointError(f"{self / 'thresholds.json'}: must hold a number from 0 to 1 for each of {names}")
        numbers = np.array(list(values.values()), dtype=np.float64)
        return Task(numbers) if is_multi else Task(None, float(numbers[0]))

    def _load_ngrams(self, num_labels: int) -> NgramModel:
        tensors, _ = load_tensors(self / "ngrams.safetensors")
        try:
            return NgramModel.from_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, num_labels)
        except ValueError as error:
            raise CheckpointError(f"{self / 'ngrams.safetensors'}: holds {error}") from error


def _member(
    path: Path, tensors: dict[str, Tensor], config: Config, vocab_size: int, num_labels: int
) -> BiLSTMClassifier:
    """Makes a network of its tensors; no memory is taken for one that a config describes and the file does not hold."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(f"{path}: damaged, a weight is not finite")
    try:
        if config.model.num_layers > len(tensors):
            raise RuntimeError(f"{config.model.num_layers} layers, but {len(tensors)} tensors")
        with torch.device("meta"), _WithoutDraws():  # shapes alone
            model = build_model(config, vocab_size, num_labels)
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path.parent}: {path.name} does not fit config.yaml: {fault}") from error
    return model.eval()


class _WithoutDraws(TorchFunctionMode):
    """Leaves out normal numbers: to draw them on the device `meta` PyTorch imports its compiler, for seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ == "normal_":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build_model(config: Config, vocab_size: int, num_labels: int) -> BiLSTMClassifier:
    """Turns the config into the network's plain arguments."""
    of_config = {"init_from", "pooling", "ngrams"}
    pooling = config.model.pooling
    if isinstance(pooling, str):
        pooling = ["mean", "max", "last"] if pooling == "concat" else [pooling]
    return BiLSTMClassifier(
        vocab_size, num_labels, embedding_dim=config.embedding.width, pooling=pooling,
        max_length=config.text.max_length, freeze_embedding=config.embedding.freeze,
        **config.model.model_dump(exclude=of_config),
    )  # fmt: skip


def load_encoder(model: BiLSTMClassifier | LanguageModels, folder: Path, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Puts an encoder, or what of a run fits, into a model of the same sizes that has these labels.

    Of a run, pooling and the head's rows of the same labels come along where they fit. Raises a `CheckpointError`
    where a file is missing, damaged, or does not fit the others.
    """
    from bilstm_cls.data.prepare import WEIGHTS, weights_of_encoder

    path, run = weights_of_encoder(folder), RunDirectory(folder)
    tensors, metadata = load_tensors(path)
    known = [] if path.name == WEIGHTS else run.read_json("labels.json")
    if metadata.get("text_digest") != text_digest(Tokenizer.load(folder / "tokenizer.json"), known):
        raise CheckpointError(f"{folder}: tokenizer.json is not what the encoder was made with")
    state = model.state_dict()
    rows = [(labels.index(label), place) for place, label in enumerate(known) if label in labels]
    for name in ("project.weight", "project.bias") if rows else ():
        if name in state and tensors[name].shape[1:] == state[name].shape[1:]:
            new, old = map(list, zip(*rows, strict=True))
            tensors[name] = state[name].index_copy(0, torch.tensor(new), tensors[name][old])
    wanted, found = ({n for n in names if n.startswith(("embedding.", "encoder."))} for names in (state, tensors))
    fitting = {n: t for n, t in tensors.items() if n in wanted or (n in state and t.shape == state[n].shape)}
    try:
        if found != wanted:
            raise RuntimeError(f"it holds {sorted(tensors)}")
        model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: {path.name} does not fit config.yaml: {error}") from error
    logger.info(f"starting from {path}")
    metrics = run.read_object("metrics.json") if (folder / "metrics.json").is_file() else {}
    return {"encoder/sha256": metadata["sha256"], "time/pretrain_seconds": metrics.get("time/pretrain_seconds")}


def text_digest(tokenizer: Tokenizer, labels: list[str]) -> str:
    """Binds a model to its tokenizer and label order."""
    return hashlib.sha256(json.dumps([tokenizer.to_json(), labels]).encode()).hexdigest()


def _model_keys(config: Config) -> dict[str, Any]:
    keys = {f"{name}.{key}": value for name in ("text", "model") for key, value in getattr(config, name)}
    return keys | {"data.labels": config.data.labels}


def newest_run(output_dir: str | Path) -> RunDirectory:
    """Returns the run under `output_dir` whose model was written last, or raises `ConfigError`."""
    runs = sorted(Path(output_dir).glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ConfigError(f"{output_dir}: holds no finished run; train one, or name it with --run DIR")
    return RunDirectory(runs[-1].parent)


def environment(device: str, threads: int) -> dict[str, Any]:
    """Returns what the figures of a run may depend on."""
    packages = ("bilstm-cls", "torch", "numpy", "tokenizers", "safetensors", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor(),
        "threads": threads,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):  # there is no git, or no repository
        return None
