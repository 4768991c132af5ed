"""The last step of a run, on the valid split: how certain the answers are, and how much an n-gram model counts."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bilstm_cls.classifier import Task, predict_logits, softmax
from bilstm_cls.config import Config
from bilstm_cls.data.dataset import IN_MEMORY
from bilstm_cls.data.prepare import PreparedData
from bilstm_cls.data.types import LabelIds
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.ngrams import Floats, NgramCounts, NgramModel

logger = logging.getLogger(__name__)

LIMIT = 20.0
"""Logits are never made more times larger or smaller."""

SPREAD = 0.3
SHARES, SHARES_SPREAD = (0.6, 0.5), 0.25
"""Usual factors of a network and of a calibrated n-gram model that answer together, found on six data sets."""

FEW_VALID, FOLDS, MAX_FOLDED = 1000, 5, 20_000


def calibrate(
    model: BiLSTMClassifier, data: PreparedData, config: Config
) -> tuple[NgramModel | None, Task, dict[str, Any]]:
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
        ngrams = NgramModel.train(NgramCounts.of_split(train), train.label_ids, len(labels))
        other = ngrams.logits(valid.texts)  # [N, C]
        if len(valid) < FEW_VALID and len(train) <= MAX_FOLDED:
            own, _ = fit_scales(out_of_fold(NgramCounts.of_split(train), train.label_ids, len(labels)), train.label_ids)
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
        model = NgramModel.train(kept, label_ids[folds != fold], num_labels)
        logits[folds == fold] = model.logits_of_counts(rest)
    return logits.clip(-10, 10)  # a label that some folds have no text of is no reason to doubt all others


def scale_logits(model: BiLSTMClassifier, factor: float | Floats) -> None:
    """Makes a model's logits `factor` times as large, one number or one for each label."""
    with torch.no_grad():
        factors = torch.as_tensor(factor).to(model.project.bias)
        model.project.weight.mul_(factors.reshape(-1, 1))
        model.project.bias.mul_(factors)


Scale = float | Floats
"""Of all logits, or `[C]` of each label's."""


def fit_scales(
    logits: Floats,
    label_ids: LabelIds,
    other: Floats | None = None,
    *,
    own: Scale | None = None,
    keeps_first: bool = False,
) -> tuple[Scale, Scale]:
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
    second = None if other is None else factor * other
    usual = np.zeros(2) if other is None else np.array([np.log(SHARES[0]), SHARES[1]])

    def loss(point: Floats) -> tuple[float, Floats]:
        scale, weight = float(np.exp(point[0])), float(point[1])
        probabilities = softmax(scale * logits if second is None else scale * logits + weight * second)
        surprise = -np.log(probabilities[rows, label_ids].clip(1e-300))
        residuals = probabilities
        residuals[rows, label_ids] -= 1.0
        slope = 0.0 if second is None else float((residuals * second).sum())
        slopes = np.array([scale * float((residuals * logits).sum()), slope])
        pull = (point - usual) / np.array([SPREAD, SHARES_SPREAD]) ** 2
        return float(surprise.sum()) + float((point - usual) @ pull) / 2, slopes + pull

    limit = 0.0 if keeps_first else np.log(LIMIT)
    bounds = [(-limit, limit), (0.0, 0.0 if other is None else LIMIT)]
    found = minimize(loss, usual, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(np.exp(found.x[0])), float(found.x[1]) * float(factor)
