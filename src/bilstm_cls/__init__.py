"""Train, evaluate and deploy exact bidirectional-LSTM text classifiers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilstm_cls.classifier import Classifier
    from bilstm_cls.config_file import load_config
    from bilstm_cls.estimator import TextClassifier
    from bilstm_cls.evaluation.evaluate import evaluate
    from bilstm_cls.evaluation.explain import explain
    from bilstm_cls.model.classifier import BiLSTMClassifier
    from bilstm_cls.model.recurrent import BidirectionalLSTM
    from bilstm_cls.training.run import train

__all__ = [
    "BiLSTMClassifier",
    "BidirectionalLSTM",
    "Classifier",
    "TextClassifier",
    "evaluate",
    "explain",
    "load_config",
    "train",
]

_HOMES = {
    "BiLSTMClassifier": "bilstm_cls.model.classifier",
    "BidirectionalLSTM": "bilstm_cls.model.recurrent",
    "Classifier": "bilstm_cls.classifier",
    "TextClassifier": "bilstm_cls.estimator",
    "explain": "bilstm_cls.evaluation.explain",
    "evaluate": "bilstm_cls.evaluation.evaluate",
    "load_config": "bilstm_cls.config_file",
    "train": "bilstm_cls.training.run",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is asked for, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bilstm_cls' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
