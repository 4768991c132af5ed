"""What holds on a GPU: answers as on a CPU, runs that resume to the same bits, and 16 bits that still learn."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bilstm_cls.classifier import predict_logits
from bilstm_cls.config import Config
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.device import choose_device
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.recurrent import CELLS
from bilstm_cls.training.run import train
from tests.training.runs import StoppedHereError, history, result, stop_at

Make = Callable[..., Config]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")]


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield choose_device("cuda")


def corpus(number: int, *, longest: int) -> Corpus:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, longest + 1, number)
    return Corpus(
        token_ids=generator.integers(1, 500, int(lengths.sum())).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        label_ids=generator.integers(0, 3, number),
    )


def one_of(texts: Corpus, index: int) -> Corpus:
    start, stop = texts.offsets[index : index + 2]
    return Corpus(texts.token_ids[start:stop], np.array([0, stop - start]))


def model_of(pooling: list[str], **options: object) -> BiLSTMClassifier:
    torch.manual_seed(0)
    return BiLSTMClassifier(500, 3, embedding_dim=40, hidden_size=64, pooling=pooling, max_length=300, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("pooling", [["mean", "max"], ["last"], ["attention", "reduce_mean"]])
def test_a_text_gets_the_same_logits_as_on_a_cpu_alone_and_in_company(
    device: torch.device, cell: str, num_layers: int, pooling: list[str]
) -> None:
    texts = corpus(60, longest=300)
    model = model_of(pooling, cell=cell, num_layers=num_layers)
    expected = predict_logits(model, texts)
    logits = predict_logits(model.to(device), texts)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    alone = np.concatenate([predict_logits(model, one_of(texts, index)) for index in range(20)])
    np.testing.assert_allclose(logits[:20], alone, atol=1e-6)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("objective", ["cross_entropy", "per_direction", "virtual_adversarial", "r_drop"])
def test_a_small_run_learns_in_every_precision(tiny_config: Make, precision: str, objective: str) -> None:
    config = tiny_config(
        "train.device=cuda", f"train.precision={precision}", f"train.objective={objective}", "train.epochs=8",
        "model.recurrent_dropout=0.1", f"name=cuda-{precision}-{objective}",
    )  # fmt: skip
    metrics = train(config).metrics
    assert metrics["test/accuracy"] > 0.8
    assert all(row["train/loss"] < 10 for row in history(Path(config.output_dir) / config.name))


@pytest.mark.parametrize("objective", ["cross_entropy", "virtual_adversarial"])
def test_a_run_that_is_interrupted_ends_with_the_same_bits(tiny_config: Make, objective: str) -> None:
    found = []
    for name in ("whole", "parts"):
        config = tiny_config(
            "train.device=cuda", f"name=cuda-{objective}-{name}", f"train.objective={objective}",
            "train.checkpoint_seconds=0",
        )  # fmt: skip
        if name == "parts":
            with pytest.raises(StoppedHereError):
                train(config, on_report=stop_at(17))
        train(config, resume=name == "parts")
        found.append(result(Path(config.output_dir) / config.name))
    whole, parts = found
    assert parts["weights"] == whole["weights"]
    assert parts["history"] == whole["history"]
    assert parts["predictions"] == whole["predictions"]
