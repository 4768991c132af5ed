"""The last step of a run, on the valid split: how certain the answers are, and how much an n-gram model counts."""

import logging
from typing import Any

import numpy as np
import torch

from bilstm_cls.classifier import predict_logits, softmax
from bilstm_cls.config import Config
from bilstm_cls.data.dataset import IN_MEMORY
from bilstm_cls.data.prepare import PreparedData
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.metrics import Floats, Ints, compute_metrics
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.ngrams import NgramModel

logger = logging.getLogger(__name__)

LIMIT = 20.0
"""Logits are never made more times larger or smaller."""

SPREAD = 0.3


def calibrate(model: BiLSTMClassifier, data: PreparedData, config: Config) -> tuple[NgramModel | None, dict[str, Any]]:
    """Scales the model's last layer, and an n-gram model to be added to it, so that valid is most probable.

    Without an n-gram model this is temperature scaling (Guo et al. 2017): one number that changes no answer. It is put
    into the weights, so that whatever reads them needs to know nothing of it.

    Args:
        model: its last layer is changed, unless `train.calibrate` is false.
        data: the n-gram model learns from train, the scales from valid.
        config: `model.ngrams` and `train.calibrate`.

    Returns:
        The n-gram model, where there is one, and facts for `metrics.json`.

    Raises:
        ConfigError: an n-gram model is to be weighted, and valid is train.
    """
    has_ngrams = config.model.ngrams is not None
    if config.data.valid == IN_MEMORY:  # the texts of train
        if has_ngrams:
            raise ConfigError("model.ngrams: is weighted on texts that train lacks; give valid a fraction of the texts")
        return None, {}
    if not config.train.calibrate and not has_ngrams:
        return None, {}
    train, valid = data.dataset.splits["train"], data.dataset.splits["valid"]
    ngrams, other = None, None
    if has_ngrams:
        logger.info("learning the n-gram model")
        ngrams = NgramModel.train(train.texts, train.label_ids, len(data.dataset.labels))
        other = ngrams.logits(valid.texts)  # [N, C]
    logits = predict_logits(model, data.corpora["valid"]).astype(np.float64)  # [N, C]
    scale, weight = fit_scales(logits, valid.label_ids, other, keeps_first=not config.train.calibrate)
    scale_logits(model, scale)
    total = scale * logits + (0.0 if other is None else weight * other)
    metrics = compute_metrics(softmax(total), valid.label_ids, data.dataset.labels)
    facts = {"calibration/scale": scale, **metrics.scalars("calibrated/valid")}
    if ngrams is not None:
        facts["calibration/ngrams"] = weight
        ngrams = ngrams.scaled(weight)
    logger.info(
        f"calibrated: logits times {scale:.3g}{'' if other is None else f', n-grams times {weight:.3g}'}; "
        f"valid/accuracy {metrics.accuracy:.4f}, valid/log_loss {metrics.log_loss:.4f}, valid/ece {metrics.ece:.4f}"
    )
    return ngrams, facts


def scale_logits(model: BiLSTMClassifier, factor: float) -> None:
    """Makes a model's logits `factor` times as large."""
    with torch.no_grad():
        model.project.weight.mul_(factor)
        model.project.bias.mul_(factor)


def fit_scales(
    logits: Floats, label_ids: Ints, other: Floats | None = None, *, keeps_first: bool = False
) -> tuple[float, float]:
    """Returns the factors of two models' logits whose sum makes the labels most probable; the second is 0 without one.

    A few texts cannot pull far, even if all are answered well: the logarithm of the first has a normal prior with the
    deviation `SPREAD`, the second one with 1.

    Args:
        logits: `[N, C]`.
        label_ids: `[N]`.
        other: `[N, C]` of another model, or None.
        keeps_first: whether the first factor is 1.
    """
    from scipy.optimize import minimize

    rows = np.arange(len(logits))
    second = np.zeros_like(logits) if other is None else other

    def loss(point: Floats) -> tuple[float, Floats]:
        scale, weight = float(np.exp(point[0])), float(point[1])
        probabilities = softmax(scale * logits + weight * second)
        surprise = -np.log(probabilities[rows, label_ids].clip(1e-300))
        residuals = probabilities
        residuals[rows, label_ids] -= 1.0
        slopes = np.array([scale * float((residuals * logits).sum()), float((residuals * second).sum())])
        pull = point / np.array([SPREAD**2, 1.0])
        return float(surprise.sum()) + float(point @ pull) / 2, slopes + pull

    limit = 0.0 if keeps_first else np.log(LIMIT)
    bounds = [(-limit, limit), (0.0, 0.0 if other is None else LIMIT)]
    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(np.exp(found.x[0])), float(found.x[1])
