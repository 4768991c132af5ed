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

from bilstm_cls.checkpoint import load_tensors, save_tensors
from bilstm_cls.classifier import Classifier, Task, predict_logits
from bilstm_cls.config import Config
from bilstm_cls.data.prepare import PreparedData
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.ngrams import Floats, NgramCounts, NgramModel
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


def ask_first(run: RunDirectory, config: Config, data: PreparedData) -> dict[str, dict[str, Floats]]:
    """Returns the logits `[N, C]` by split of teachers other than a network, by name.

    Process 0 comes here by itself, before the processes meet: nobody waits for another without a limit there.
    """
    found: dict[str, dict[str, Floats]] = {}
    names = teachers_of(config, data)
    if rank_by_torchrun() > 0 or (run / ANSWERS).exists():
        return found
    for name in names:
        splits = data.dataset.splits
        if name == "ngrams":
            logger.info("asking n-grams for labels")
            train = splits["train"]
            model = NgramModel.train(NgramCounts.of_split(train), train.label_ids, len(data.dataset.labels))
            found[name] = {split: model.logits(splits[split].texts) for split in ASKED}
        elif name != "network":
            logger.info(f"asking {name} for labels")
            other = Classifier.load(name, device=config.train.device)
            if other.labels != data.dataset.labels or other.config.data.labels != config.data.labels:
                raise ConfigError(f"train.teacher: {name} has the labels {other.labels}, not {data.dataset.labels}")
            found[name] = {split: other.task.logits(other.predict_proba(splits[split].texts)) for split in ASKED}
    return found


def taught(
    run: RunDirectory,
    config: Config,
    data: PreparedData,
    group: Group,
    signals: StopSignals,
    on_report: Callable[[Report], None],
    others: dict[str, dict[str, Floats]],
) -> tuple[PreparedData, Row]:
    """Returns the data with a teacher's labels of the unlabelled texts, and facts for `metrics.json`.

    The teacher is the calibrated sum of all that `train.teacher` names: `others` are what `ask_first` returned. All
    processes of the group come here.

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
        if "network" in names:
            logger.info(f"training a network of {EPOCHS} epochs to label the unlabelled texts")
            short = config.replace(**{"train.teacher": None, "train.epochs": EPOCHS})
            session = Session.start(RunDirectory(run / "teacher"), short, data, group)
            session.learn(signals, on_report)
            group.wait()  # process 0 has written the best weights
            model = session.load_best_weights()
            parts = {
                name: predict_logits(model, data.corpora[name], rank=group.rank, size=group.size) for name in ASKED
            }
            others["network"] = {name: group.sum_array(part).astype(np.float64) for name, part in parts.items()}
        if group.rank == 0:
            _write_answers(run, data, [others[name] for name in names])
        group.wait()
    tensors, metadata = load_tensors(run / ANSWERS)
    if any(metadata.get(key) != value for key, value in _identity(data).items()):
        raise DataError(f"{run / ANSWERS}: labels other texts than those of this run; restore them, or --overwrite")
    if group.rank == 0:
        shutil.rmtree(run / "teacher/checkpoints", ignore_errors=True)
    unlabelled = replace(data.corpora["unlabelled"], soft_labels=tensors["probabilities"].numpy())
    return replace(data, corpora=data.corpora | {"unlabelled": unlabelled}), json.loads(metadata["facts"])


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


def _identity(data: PreparedData) -> dict[str, str]:
    return {"data_digest": data.dataset.digest, "text_digest": text_digest(data.tokenizer, data.dataset.labels)}
