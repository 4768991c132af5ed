"""What the valid split decides: how certain the answers are, how much an n-gram model counts, what a teacher says.

A teacher (n-grams, a first network, finished runs) labels the unlabelled texts, for a network to learn from. Its
answers are written once, so that a run that is resumed learns from the same ones.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from bilstm_cls.checkpoint import load_tensors, save_tensors
from bilstm_cls.classifier import Classifier, Task, predict_logits, softmax
from bilstm_cls.config import Config
from bilstm_cls.data.dataset import IN_MEMORY
from bilstm_cls.data.prepare import PreparedData
from bilstm_cls.data.types import LabelIds
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.ngrams import Floats, NgramCounts, NgramModel
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.distributed import Group, rank_by_torchrun
from bilstm_cls.training.loop import Row
from bilstm_cls.training.record import StopSignals
from bilstm_cls.training.session import OnReport, Session, identity_of

logger = logging.getLogger(__name__)

LIMIT = 20.0
"""Logits are never made more times larger or smaller."""
SPREAD = 0.3
SHARES, SHARES_SPREAD = (0.6, 0.5), 0.25
"""Usual factors of a network and of a calibrated n-gram model that answer together, found on six data sets."""
FEW_VALID, FOLDS, MAX_FOLDED = 1000, 5, 20_000

EPOCHS = 2  # of a teacher's network
ASKED = ("valid", "unlabelled")
ANSWERS = "teacher/answers.safetensors"

Scale = float | Floats
"""A factor of all logits, or `[C]` of each label's."""


def calibrate(model: BiLSTMClassifier, data: PreparedData, config: Config) -> tuple[NgramModel | None, Task, Row]:
    """Scales the model's last layer, and an n-gram model to be added to it, so that valid is most probable.

    Without an n-gram model this is temperature scaling (Guo et al. 2017): one number that changes no answer. It is put
    into the weights, so that whatever reads them needs to know nothing of it. Where texts have several labels each
    label has its scales, and a threshold with the greatest F1 on valid. The n-gram model learns from train.

    Returns:
        The n-gram model, where there is one; how to answer; and facts for `metrics.json`.

    Raises:
        ConfigError: an n-gram model is to be weighted, and valid is train.
    """
    has_ngrams, labels, reject = config.model.ngrams is not None, data.dataset.labels, config.train.reject
    task = Task.of(data.dataset.splits["valid"].label_ids)
    if config.data.valid in (None, IN_MEMORY):  # the texts of train
        if has_ngrams or reject is not None:
            raise ConfigError("model.ngrams, train.reject: need texts that train lacks; give valid a fraction of them")
        return None, task, {}
    if not config.train.calibrate and not has_ngrams and task.thresholds is None and reject is None:
        return None, task, {}
    train, valid = data.dataset.splits["train"], data.dataset.splits["valid"]
    ngrams, other, own = None, None, None
    if has_ngrams:
        logger.info("learning the n-gram model")
        counts = NgramCounts.of_split(train)
        ngrams = NgramModel.train(counts, train.label_ids, len(labels))
        other = ngrams.logits(valid.texts)  # [N, C]
        if len(valid) < FEW_VALID and len(train) <= MAX_FOLDED:
            own, _ = fit_scales(out_of_fold(counts, train.label_ids, len(labels)), train.label_ids)
    logits = predict_logits(model, data.corpora["valid"]).astype(np.float64)  # [N, C]
    scale, weight = fit_scales(logits, valid.label_ids, other, own=own, keeps_first=not config.train.calibrate)
    scale_logits(model, scale)
    total = scale * logits + (0.0 if other is None else weight * other)
    probabilities = task.probabilities(total)
    task = task.tuned(probabilities, valid.label_ids)
    metrics = compute_metrics(probabilities, valid.label_ids, labels, task=task)
    facts = {"calibration/scale": np.asarray(scale).tolist(), **metrics.scalars("calibrated/valid")}
    if reject is not None:
        task = task.rejecting(probabilities, valid.label_ids, reject)
        facts["calibration/min_probability"] = task.min_probability
        facts["calibration/answered"] = float((probabilities.max(1) >= task.min_probability).mean())
    if ngrams is not None:
        facts["calibration/ngrams"] = np.asarray(weight).tolist()
        alone = Task.of(valid.label_ids).tuned(task.probabilities(scale * logits), valid.label_ids).thresholds
        facts |= {} if alone is None else {"calibration/network_thresholds": alone.tolist()}
        ngrams = ngrams.scaled(weight)
    logger.info(
        f"calibrated: logits times {np.mean(scale):.3g}, n-grams {np.mean(weight):.3g}; "
        f"valid/accuracy {metrics.accuracy:.4f}, valid/log_loss {metrics.log_loss:.4f}, valid/ece {metrics.ece:.4f}"
    )
    return ngrams, task, facts


def out_of_fold(ngrams: NgramCounts, label_ids: LabelIds, num_labels: int) -> Floats:
    """Returns logits `[N, C]` of texts by n-gram models that learned from four fifths of them, without these."""
    folds = np.random.default_rng(0).permutation(len(label_ids)) % FOLDS
    logits = np.zeros((len(label_ids), num_labels))
    for fold in range(FOLDS):
        kept, rest = (replace(ngrams, sets=ngrams.sets[is_chosen]) for is_chosen in (folds != fold, folds == fold))
        logits[folds == fold] = NgramModel.train(kept, label_ids[folds != fold], num_labels).logits_of_counts(rest)
    return logits.clip(-10, 10)  # a label that some folds have no text of is no reason to doubt all others


def scale_logits(model: BiLSTMClassifier, factor: Scale) -> None:
    """Makes a model's logits `factor` times as large, one number or one for each label."""
    with torch.no_grad():
        factors = torch.as_tensor(factor).to(model.project.bias)
        model.project.weight.mul_(factors.reshape(-1, 1))
        model.project.bias.mul_(factors)


def fit_scales(
    logits: Floats, label_ids: LabelIds, other: Floats | None = None, *, own: Scale | None = None,
    keeps_first: bool = False,
) -> tuple[Scale, Scale]:  # fmt: skip
    """Returns the factors of two models' logits whose sum makes the labels most probable; the second is 0 without one.

    A few texts cannot pull far, even if all are answered well: the logarithm of the first has a normal prior with the
    deviation `SPREAD`, the second one, in units of `own`, with `SHARES_SPREAD`.

    Args:
        logits: `[N, C]`.
        label_ids: of N texts.
        other: `[N, C]` of another model, or None.
        own: the factor that calibrates the other model by itself; None finds it from the same texts.
        keeps_first: whether the first factor is 1.
    """
    from scipy.optimize import minimize

    factor = own if own is not None else 1.0 if other is None else fit_scales(other, label_ids)[0]
    if label_ids.ndim == 2:  # each label is a task with two answers, whose logits are half the label's each way
        halves = [[None] * logits.shape[1] if z is None else np.stack([-z.T, z.T], 2) / 2 for z in (logits, other)]
        owns = np.broadcast_to(factor, logits.shape[1]).tolist()
        pairs = zip(*halves, label_ids.T.astype(np.int64), owns, strict=True)
        fitted = [fit_scales(one, y, two, own=each, keeps_first=keeps_first) for one, two, y, each in pairs]
        return np.array([scale for scale, _ in fitted]), np.array([weight for _, weight in fitted])
    rows = np.arange(len(logits))
    second = np.zeros_like(logits) if other is None else factor * other
    usual = np.zeros(2) if other is None else np.array([np.log(SHARES[0]), SHARES[1]])

    def loss(point: Floats) -> tuple[float, Floats]:
        scale, weight = float(np.exp(point[0])), float(point[1])
        residuals = softmax(scale * logits + weight * second)
        surprise = -np.log(residuals[rows, label_ids].clip(1e-300))
        residuals[rows, label_ids] -= 1.0
        slopes = np.array([scale * float((residuals * logits).sum()), float((residuals * second).sum())])
        pull = (point - usual) / np.array([SPREAD, SHARES_SPREAD]) ** 2
        return float(surprise.sum()) + float((point - usual) @ pull) / 2, slopes + pull

    limit = 0.0 if keeps_first else np.log(LIMIT)
    bounds = [(-limit, limit), (0.0, 0.0 if other is None else LIMIT)]
    found = minimize(loss, usual, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(np.exp(found.x[0])), float(found.x[1]) * float(factor)


def teachers_of(config: Config, data: PreparedData) -> list[str]:
    """Returns what is to label the unlabelled texts: nothing where there are none, unless the config insists on it."""
    names = config.train.teacher or []
    if "unlabelled" in data.corpora:
        return ["network", "ngrams"] if names == ["auto"] else names
    if names not in ([], ["auto"]):
        raise ConfigError("train.teacher: there are no unlabelled texts; name some in data.unlabelled, or set auto")
    return []


def ask_first(run: RunDirectory, config: Config, data: PreparedData) -> dict[str, dict[str, Floats]]:
    """Returns the logits `[N, C]` by split of teachers other than a network: process 0 asks, before all meet."""
    found: dict[str, dict[str, Floats]] = {}
    names, splits = teachers_of(config, data), data.dataset.splits
    if rank_by_torchrun() > 0 or (run / ANSWERS).exists():
        return found
    for name in names:
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
    run: RunDirectory, config: Config, data: PreparedData, group: Group, signals: StopSignals, on_report: OnReport,
    others: dict[str, dict[str, Floats]],
) -> tuple[PreparedData, Row]:  # fmt: skip
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
            others["network"] = {}
            for name in ASKED:
                part = predict_logits(model, data.corpora[name], rank=group.rank, size=group.size)
                others["network"][name] = group.sum_array(part).astype(np.float64)
        if group.rank == 0:
            _write_answers(run, data, [others[name] for name in names])
        group.wait()
    tensors, metadata = load_tensors(run / ANSWERS)
    if any(metadata.get(key) != value for key, value in identity_of(data, data.dataset.labels).items()):
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
    metadata = identity_of(data, data.dataset.labels) | {"facts": json.dumps(facts)}
    save_tensors(run / ANSWERS, {"probabilities": probabilities}, metadata)
