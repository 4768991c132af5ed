"""The training loop: what it reports, when it evaluates and stops, and that only seed and step decide its weights."""

import contextlib
import copy
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bilstm_cls.classifier import predict_logits
from bilstm_cls.config import METRICS, TrainConfig
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.device import Precision
from bilstm_cls.errors import ConfigError, DivergedError
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.recurrent import BidirectionalLSTM
from bilstm_cls.training import loop
from bilstm_cls.training.loop import EvaluationReport, Row, StepReport, Trainer, training
from tests.training.runs import without_time

NUM_TEXTS, NUM_LABELS, VOCAB_SIZE = 22, 3, 12
DROPOUTS = {"dropout": 0.3, "embedding_dropout": 0.2, "word_dropout": 0.1, "recurrent_dropout": 0.1}


def corpus() -> Corpus:
    generator = np.random.Generator(np.random.PCG64(7))
    lengths = generator.integers(1, 9, NUM_TEXTS)
    return Corpus(
        token_ids=generator.integers(1, VOCAB_SIZE, int(lengths.sum())).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        label_ids=generator.integers(0, NUM_LABELS, NUM_TEXTS),
    )


def make_trainer(
    *, dropouts: dict[str, float] = DROPOUTS, class_weights: list[float] | None = None, seed: int = 1, **config: Any
) -> Trainer:
    """A trainer of a small model; five batches an epoch."""
    freeze = config.pop("freeze_embedding", False)
    torch.manual_seed(0)
    model = BiLSTMClassifier(
        VOCAB_SIZE, NUM_LABELS, embedding_dim=4, hidden_size=3, freeze_embedding=freeze, **dropouts
    )
    given = {"epochs": 2, "batch_size": 5, "learning_rate": 0.05, "ema_decay": 0.9, "patience": None, **config}
    return Trainer(model, corpus(), TrainConfig(**given), seed=seed, class_weights=class_weights)


def scores(
    values: list[float] | None = None, key: str = "valid/accuracy", losses: list[float] | None = None
) -> Callable[[], Row]:
    """An evaluation that finds these values one after the other, or 0.5 for ever, and such log losses, or 0.5."""
    left = itertools.repeat(0.5) if values is None else iter(values)
    left_losses = itertools.repeat(0.5) if losses is None else iter(losses)
    return lambda: {"valid/log_loss": next(left_losses), key: next(left)}


def run(trainer: Trainer, evaluate: Callable[[], Row] | None = None) -> list[StepReport | EvaluationReport]:
    return list(training(trainer, evaluate or scores()))


def steps(reports: list[Any]) -> list[StepReport]:
    return [report for report in reports if isinstance(report, StepReport)]


def rows(reports: list[Any]) -> list[Row]:
    return [report.row for report in reports if isinstance(report, EvaluationReport)]


def bits(trainer: Trainer) -> dict[str, bytes]:
    """Everything that decides how training goes on, to the last bit; its times left out."""
    tensors, numbers = copy.deepcopy(trainer.state())
    numbers["progress"] |= {"seconds": 0.0, "history": list(map(without_time, numbers["progress"]["history"]))}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} | {"": json.dumps(numbers).encode()}


def weights(trainer: Trainer) -> dict[str, bytes]:
    return {name: value for name, value in bits(trainer).items() if name.startswith(("model.", "average."))}


def test_every_step_is_reported_in_order() -> None:
    trainer = make_trainer(max_grad_norm=1e-3)
    reports = steps(run(trainer))
    assert [report.step for report in reports] == list(range(1, 11))
    assert [report.epoch for report in reports] == [1] * 5 + [2] * 5
    assert {report.total_steps for report in reports} == {10}
    assert [report.learning_rate for report in reports] == [trainer.learning_rate(step) for step in range(10)]
    assert all(report.grad_norm > 1e-3 and math.isfinite(report.loss) for report in reports)


@pytest.mark.parametrize(
    ("every", "expected"), [("epoch", [5, 10]), (1, list(range(1, 11))), (3, [3, 6, 9, 10]), (5, [5, 10]), (99, [10])]
)
def test_the_valid_split_is_read_when_it_is_due_and_at_the_end(every: Any, expected: list[int]) -> None:
    found = rows(run(make_trainer(evaluate_every=every)))
    assert [row["step"] for row in found] == expected
    assert [row["epoch"] for row in found] == [step / 5 for step in expected]


@pytest.mark.parametrize(
    ("patience", "values", "losses", "best"),
    [
        (1, [0.5, 0.6, 0.55, 0.9], None, [True, True, False]),
        (2, [0.5, 0.4, 0.6, 0.6, 0.5, 0.9], None, [True, False, True, False, False]),
        (None, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], None, [True, False, False, False, False, False]),
        # Of equal scores the one of lower log loss is the best, but that alone does not lengthen a run.
        (None, [0.7, 0.7, 0.7, 0.8, 0.7, 0.7], [0.6, 0.2, 0.3, 0.9, 0.1, 0.1], [True, True, False, True, False, False]),
        (2, [0.7] * 6, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [True, True, True]),
    ],
)
def test_training_stops_after_so_many_evaluations_without_a_better_score(
    patience: int | None, values: list[float], losses: list[float] | None, best: list[bool]
) -> None:
    trainer = make_trainer(epochs=6, patience=patience)
    reports = run(trainer, scores(values, losses=losses))
    assert [row["is_best"] for row in rows(reports)] == best
    assert len(steps(reports)) == 5 * len(best)
    assert trainer.progress.best_value == max(values[: len(best)])


@pytest.mark.parametrize("name", METRICS)
def test_a_loss_or_calibration_error_is_better_the_lower_and_a_score_the_higher(name: str) -> None:
    key = f"valid/{name}"
    trainer = make_trainer(epochs=4, select_by=key)
    found = rows(run(trainer, scores([0.5, 0.7, 0.3, 0.4], key)))
    is_lower = name in ("log_loss", "ece")
    assert [row["is_best"] for row in found] == [True, not is_lower, is_lower, False]


@pytest.fixture
def _ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes ten seconds, and so does an evaluation: time passes whenever it is looked at."""
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=itertools.count(0.0, 10.0).__next__))


@pytest.mark.usefixtures("_ten_seconds")
@pytest.mark.parametrize(("minutes", "num_steps"), [(0.5, 3), (1.0, 5), (100.0, 10)])
def test_training_stops_when_its_time_is_over_and_is_evaluated_then(minutes: float, num_steps: int) -> None:
    trainer = make_trainer(max_minutes=minutes)
    reports = run(trainer)
    assert len(steps(reports)) == num_steps
    assert [row["step"] for row in rows(reports)] == sorted({*range(5, num_steps, 5), num_steps})
    assert rows(reports)[-1]["time/train_seconds"] == trainer.progress.seconds


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("label_weights", [None, [0.5, 1.0, 3.0]])
def test_the_loss_is_the_weighted_and_smoothed_mean_cross_entropy(
    smoothing: float, label_weights: list[float] | None
) -> None:
    trainer = make_trainer(
        dropouts={}, batch_size=NUM_TEXTS, label_smoothing=smoothing, class_weights=label_weights
    )  # fmt: skip
    batch = loop.collate(trainer.corpus, np.arange(NUM_TEXTS))
    logits = trainer.model(batch.token_ids, batch.lengths).detach()
    weight = None if label_weights is None else torch.tensor(label_weights)
    expected = cross_entropy(logits, batch.label_ids, weight, label_smoothing=smoothing)
    assert trainer.step().loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("spoils_gradient", [False, True])
def test_a_number_that_is_not_finite_stops_the_step_before_it_changes_anything(
    value: float, spoils_gradient: bool
) -> None:
    trainer = make_trainer()
    trainer.step()
    bias = trainer.model.project.bias
    if spoils_gradient:
        bias.register_hook(lambda gradient: gradient * value)
    else:
        bias.data[0] = value
    before = bits(trainer)
    loss = r"\d\.\d+" if spoils_gradient else "nan"
    with pytest.raises(DivergedError, match=rf"at step 2: loss {loss}, gradient norm (nan|inf), learning rate 0\.0487"):
        trainer.step()
    assert bits(trainer) == before


def moved_parts(trainer: Trainer) -> dict[str, float]:
    """Makes the next step, and returns how far each part of the model moved at most."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step()
    moved: dict[str, float] = {}
    for name, parameter in trainer.model.named_parameters():
        part = name.partition(".")[0]
        moved[part] = max(moved.get(part, 0.0), float((parameter.detach() - before[name]).abs().max()))
    return moved


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradual_unfreezing_lets_one_more_part_learn_in_each_epoch(optimizer: str) -> None:
    trainer = make_trainer(unfreeze="gradual", epochs=4, optimizer=optimizer)
    part_of = {id(p): name.partition(".")[0] for name, p in trainer.model.named_parameters()}
    expected = [{"project"}, {"project", "encoder"}, *[{"project", "encoder", "embedding"}] * 2]
    for parts in expected:
        for _ in range(5):
            moved = moved_parts(trainer)
            assert {part for part, distance in moved.items() if distance} == parts
            assert {part_of[id(p)] for p in trainer.model.parameters() if p.grad is not None} == parts
        if optimizer == "adamw":
            assert {part_of[id(p)] for each in trainer.optimizers for p in each.state} == parts


def evaluating(trainer: Trainer) -> Callable[[], Row]:
    def evaluate() -> Row:
        with trainer.averaged():
            logits = predict_logits(trainer.model, trainer.corpus)
        return {"valid/accuracy": float(logits.mean()), "valid/log_loss": 0.5}

    return evaluate


@pytest.mark.parametrize("every", [1, 2, "epoch"])
def test_only_the_seed_decides_and_not_how_often_it_is_evaluated_and_saved(every: Any) -> None:
    undisturbed, trainer = make_trainer(evaluate_every=99), make_trainer(evaluate_every=every)
    run(undisturbed)
    for _ in training(trainer, evaluating(trainer)):
        torch.rand(3)  # the caller draws from the generator that all share
        trainer.state()
    assert weights(trainer) == weights(undisturbed)
    other = make_trainer(seed=2)
    run(other)
    assert weights(other) != weights(undisturbed)


HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()

OPTIONS: list[Any] = [
    {},
    {"ema_decay": None},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0},
    {"freeze_embedding": True},
    {"batch_tokens": 30},
    {"unfreeze": "gradual", "layer_lr_decay": 0.385},
    pytest.param({"precision": "bf16"}, marks=pytest.mark.skipif(not HAS_BF16, reason="the CPU lacks it")),
    {"schedule": "constant", "weight_decay": 0.1, "label_smoothing": 0.1},
]


def taken_up(trainer: Trainer, **options: Any) -> Trainer:
    """Another trainer with the state of one, as a file would keep it."""
    tensors, numbers = trainer.state()
    other = make_trainer(**options)
    other.load_state(copy.deepcopy(tensors), json.loads(json.dumps(numbers)))
    return other


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_trainers_that_take_up_each_others_state_end_with_the_bits_of_one(options: dict[str, Any]) -> None:
    undisturbed = make_trainer(**options)
    run(undisturbed, evaluating(undisturbed))
    trainer = make_trainer(**options)
    for stop in (1, 3, 4, 5, 7):
        reports = training(trainer, evaluating(trainer))
        while trainer.progress.step < stop:
            next(reports)
        trainer = taken_up(trainer, **options)
    run(trainer, evaluating(trainer))
    assert bits(trainer) == bits(undisturbed)


@pytest.mark.parametrize(
    ("precision", "device", "has_bf16", "cell", "units", "expected"),
    [
        ("fp32", "cpu", True, "lstm", 256, "float32"), ("bf16", "cpu", True, "gru", 8, "bfloat16"),
        ("auto", "cpu", True, "lstm", 128, "bfloat16"), ("auto", "cpu", True, "lstm", 127, "float32"),
        ("auto", "cpu", True, "gru", 256, "float32"), ("auto", "cpu", False, "lstm", 256, "float32"),
        ("auto", "cuda", False, "lstm", 256, "tf32"), ("tf32", "cuda", False, "gru", 8, "tf32"),
        ("fp32", "cuda", False, "gru", 8, "float32"),
        ("bf16", "cuda", False, "gru", 8, None), ("half", "cpu", True, "gru", 8, None),
        ("tf32", "cpu", True, "gru", 8, None),
        ("bf16", "cpu", False, "gru", 8, None),
    ],
)  # fmt: skip
def test_precision_is_chosen_by_rule_and_refused_where_the_device_lacks_it(
    precision: str,
    device: str,
    has_bf16: bool,
    cell: str,
    units: int,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91200)  # too old for bf16
    refusal = pytest.raises(ConfigError, match=f"precision: '{precision}'")
    with refusal if expected is None else contextlib.nullcontext():
        encoder = BidirectionalLSTM(4, units, cell=cell)
        assert str(Precision.named(precision, torch.device(device), encoder)) == expected


@pytest.mark.parametrize("objective", ["cross_entropy", "per_direction"])
def test_texts_that_a_teacher_is_sure_of_are_learned_from_as_labelled_ones_are(objective: str) -> None:
    plain = make_trainer(batch_size=NUM_TEXTS, dropouts={}, objective=objective)
    labels = np.eye(NUM_LABELS, dtype=np.float32)[corpus().label_ids]
    texts = replace(corpus(), label_ids=np.full(NUM_TEXTS, -1), soft_labels=labels)
    taught = Trainer(plain.model, corpus(), plain.config, seed=2, unlabelled=texts)
    gradients = []
    for trainer in (plain, taught):
        plain.model.zero_grad()
        trainer._gradients(trainer.batches[0])
        gradients.append({n: p.grad.to_dense() for n, p in plain.model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        assert torch.allclose(2 * gradient, gradients[1][name], atol=1e-6), name
