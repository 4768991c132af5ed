"""Train, evaluate and deploy exact bidirectional-LSTM text classifiers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilstm_cls.classifier import Classifier as Classifier
    from bilstm_cls.config_file import load_config as load_config
    from bilstm_cls.estimator import TextClassifier as TextClassifier
    from bilstm_cls.evaluation.evaluate import evaluate as evaluate
    from bilstm_cls.evaluation.explain import explain as explain
    from bilstm_cls.model.classifier import BiLSTMClassifier as BiLSTMClassifier
    from bilstm_cls.model.recurrent import BidirectionalLSTM as BidirectionalLSTM
    from bilstm_cls.training.run import train as train

_HOMES = {
    "BiLSTMClassifier": "model.classifier",
    "BidirectionalLSTM": "model.recurrent",
    "Classifier": "classifier",
    "TextClassifier": "estimator",
    "evaluate": "evaluation.evaluate",
    "explain": "evaluation.explain",
    "load_config": "config_file",
    "train": "training.run",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is asked for, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bilstm_cls' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bilstm_cls.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
