"""A teacher: n-grams, a first network and finished runs label the unlabelled texts, for a network to learn from.

Its answers are written once, so that a run that is resumed learns from the same ones.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bilstm_cls.checkpoint import load_tensors, save_tensors
from bilstm_cls.classifier import Classifier, Task, predict_logits
from bilstm_cls.config import Config
from bilstm_cls.data.prepare import PreparedData
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.metrics import Floats, compute_metrics
from bilstm_cls.ngrams import NgramCounts, NgramModel
from bilstm_cls.run_directory import RunDirectory, text_digest
from bilstm_cls.training.calibration import fit_scales
from bilstm_cls.training.distributed import Group, rank_by_torchrun
from bilstm_cls.training.loop import Row
from bilstm_cls.training.record import StopSignals
from bilstm_cls.training.session import Report, Session

logger = logging.getLogger(__name__)

EPOCHS = 2
ASKED = ("valid", "unlabelled")
ANSWERS = "teacher/answers.safetensors"


def teachers_of(config: Config, data: PreparedData) -> list[str]:
    """Returns what is to label the unlabelled texts: nothing where there are none, unless the config insists on it."""
    names = config.train.teacher or []
    if "unlabelled" in data.corpora:
        return ["network", "ngrams"] if names == ["auto"] else names
    if names not in ([], ["auto"]):
        raise ConfigError(
            "train.teacher: there are no unlabelled texts; name them in data.unlabelled, or set it to auto"
        )
    return []


def ask_first(run: RunDirectory, config: Config, data: PreparedData) -> None:
    """Writes what teachers other than a network answer: by itself, as others wait for no process without a limit."""
    for number, name in enumerate(teachers_of(config, data)):
        path = run / f"teacher/{number}.safetensors"
        if name == "network" or rank_by_torchrun() > 0 or path.exists() or (run / ANSWERS).exists():
            continue
        logger.info(f"asking {name} for labels")
        splits = data.dataset.splits
        if name == "ngrams":
            train = splits["train"]
            model = NgramModel.train(NgramCounts.of_split(train), train.label_ids, len(data.dataset.labels))
            logits = {split: model.logits(splits[split].texts) for split in ASKED}
        else:
            other = Classifier.load(name, device=config.train.device)
            if other.labels != data.dataset.labels or other.config.data.labels != config.data.labels:
                raise ConfigError(f"train.teacher: {name} has the labels {other.labels}, not {data.dataset.labels}")
            logits = {split: other.task.logits(other.predict_proba(splits[split].texts)) for split in ASKED}
        save_tensors(path, {split: torch.from_numpy(part) for split, part in logits.items()}, _identity(data))


def taught(
    run: RunDirectory,
    config: Config,
    data: PreparedData,
    group: Group,
    signals: StopSignals,
    on_report: Callable[[Report], None],
) -> tuple[PreparedData, Row]:
    """Returns the data with a teacher's labels of the unlabelled texts, and facts for `metrics.json`.

    The teacher is the calibrated sum of all that `train.teacher` names, of which `ask_first` has asked the others than
    the network. All processes of the group come here.

    Raises:
        ConfigError: a teacher is demanded where there are no unlabelled texts, or has other labels.
        CheckpointError: its answers are damaged.
        DataError: they are of other texts.
    """
    names = teachers_of(config, data)
    if not names:
        if config.train.teacher:
            logger.info("no unlabelled texts, so train.teacher is not used")
        return data, {}
    if not group.any(group.rank == 0 and (run / ANSWERS).exists()):
        network: dict[str, Floats] = {}  # logits [N, C] by split
        if "network" in names:
            logger.info(f"training a network of {EPOCHS} epochs to label the unlabelled texts")
            short = config.replace(**{"train.teacher": None, "train.epochs": EPOCHS})
            session = Session.start(RunDirectory(run / "teacher"), short, data, group)
            session.learn(signals, on_report)
            group.wait()  # process 0 has written the best weights
            model = session.load_best_weights()
            for split in ASKED:
                part = predict_logits(model, data.corpora[split], rank=group.rank, size=group.size)
                network[split] = group.sum_array(part).astype(np.float64)
        if group.rank == 0:
            logits = [network if name == "network" else _logits(run, i, data) for i, name in enumerate(names)]
            _write_answers(run, data, logits)
        group.wait()
    tensors, metadata = _read(run, ANSWERS, data)
    if group.rank == 0:
        shutil.rmtree(run / "teacher/checkpoints", ignore_errors=True)
    unlabelled = replace(data.corpora["unlabelled"], soft_labels=tensors["probabilities"].numpy())
    return replace(data, corpora=data.corpora | {"unlabelled": unlabelled}), json.loads(metadata["facts"])


def _logits(run: RunDirectory, number: int, data: PreparedData) -> dict[str, Floats]:
    return {split: part.numpy() for split, part in _read(run, f"teacher/{number}.safetensors", data)[0].items()}


def _write_answers(run: RunDirectory, data: PreparedData, models: Sequence[dict[str, Floats]]) -> None:
    """Writes the probabilities of the sum of some models' logits, whose factors are fitted on valid one by one."""
    label_ids = data.dataset.splits["valid"].label_ids
    total = models[0]
    scale, _ = fit_scales(total["valid"], label_ids)
    total, scales = {split: scale * part for split, part in total.items()}, [scale]
    for other in models[1:]:
        scale, weight = fit_scales(total["valid"], label_ids, other["valid"])
        total = {split: scale * part + weight * other[split] for split, part in total.items()}
        scales = [*(scale * before for before in scales), weight]
    task, factors = Task.of(label_ids), [np.asarray(scale) for scale in scales]
    metrics = compute_metrics(task.probabilities(total["valid"]), label_ids, data.dataset.labels, task=task)
    shown = ", ".join(f"{factor.mean():.3g}" for factor in factors)
    logger.info(f"teacher: valid/accuracy {metrics.accuracy:.4f}, factors {shown}")
    facts = {"teacher/factors": [factor.tolist() for factor in factors], **metrics.scalars("teacher/valid")}
    probabilities = torch.from_numpy(task.probabilities(total["unlabelled"]).astype(np.float32))
    save_tensors(run / ANSWERS, {"probabilities": probabilities}, _identity(data) | {"facts": json.dumps(facts)})


def _read(run: RunDirectory, name: str, data: PreparedData) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = load_tensors(run / name)
    if any(metadata.get(key) != value for key, value in _identity(data).items()):
        raise DataError(f"{run / name}: labels other texts than those of this run; restore them, or --overwrite")
    return tensors, metadata


def _identity(data: PreparedData) -> dict[str, str]:
    return {"data_digest": data.dataset.digest, "text_digest": text_digest(data.tokenizer, data.dataset.labels)}
