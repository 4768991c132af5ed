"""F25: what every model promises whatever its options."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bilstm_cls.estimator import TextClassifier
from tests.conftest import reviews
from tests.faults.conftest import Tally

TINY: dict[str, Any] = {
    "max_length": 20, "dim": 4, "hidden_size": 6, "epochs": 1, "batch_size": 16, "learning_rate": 2e-2, "threads": 1,
    "valid": None,
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {}, {"pooling": "reduce_mean"}, {"pooling": "max"}, {"pooling": "last"}, {"pooling": "attention"},
    {"pooling": ["mean", "max"]}, {"tokenizer": "cjk"}, {"tokenizer": "bpe", "max_vocab_size": 300},
    {"ngrams": "nbsvm", "valid": 0.3}, {"class_weights": "balanced"}, {"overrides": {"model.cell": "gru"}},
    {"overrides": {"model.bidirectional": False}}, {"overrides": {"model.num_layers": 2, "model.layer_dropout": 0.1}},
    {"overrides": {"model.bigrams": 50}}, {"overrides": {"train.optimizer": "sgd"}},
    {"overrides": {"model.recurrent_dropout": 0.2}},
]  # fmt: skip
ROWS = reviews(40)


def test_every_kind_of_model_keeps_the_contract(tmp_path: Path, tally: Tally) -> None:
    """The same fit twice is the same; a text's answer depends on nothing else; saved and loaded is the same."""
    texts, labels = [text for text, _ in ROWS], [label for _, label in ROWS]
    odd = ["", "good", "zzyzx " * 50, "\0", *texts[:4]]

    def survives(options: dict[str, Any]) -> None:
        given = [list(texts), list(labels)]
        model = TextClassifier(**TINY | options).fit(*given)
        assert given == [texts, labels]
        together = model.predict_proba(odd)
        alone = np.concatenate([model.predict_proba([text]) for text in odd])
        assert np.isfinite(together).all()
        assert together.sum(axis=1) == pytest.approx(np.ones(len(odd)), abs=1e-6)
        assert alone == pytest.approx(together, abs=1e-6)
        assert model.predict_proba(odd[::-1])[::-1] == pytest.approx(together, abs=1e-6)
        again = TextClassifier(**TINY | options).fit(texts, labels)
        assert (again.predict_proba(odd) == together).all()
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        model.save(place)
        assert (TextClassifier.load(place).predict_proba(odd) == together).all()

    tally(OPTIONS, survives)
