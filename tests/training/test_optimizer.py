"""Optimizer, schedules, clipping and averaged weights, each beside its plain formula."""

import contextlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training.optimizer import SCHEDULES, WeightAverage, build_optimizers, clip_gradients, learning_rate_at


def rates(schedule: str, warmup: float, total_steps: int = 100, peak: float = 2.0) -> list[float]:
    return [
        learning_rate_at(step, total_steps=total_steps, peak=peak, schedule=schedule, warmup=warmup)
        for step in range(total_steps + 1)
    ]


@pytest.mark.parametrize(
    ("schedule", "warmup", "start", "middle", "end"),
    [
        ("one-cycle", 0.2, 2 / 25, (2 + 2e-4) / 2, 2e-4),
        ("one-cycle", 0.0, 2.0, (2 + 2e-4) / 2, 2e-4),
        ("linear", 0.2, 0.1, 1.0, 0.0),
        ("linear", 0.0, 2.0, 1.0, 0.0),
        ("cosine", 0.2, 0.1, 1.0, 0.0),
        ("constant", 0.2, 0.1, 2.0, 2.0),
        ("constant", 0.0, 2.0, 2.0, 2.0),
    ],
)
def test_a_schedule_starts_peaks_and_ends_where_it_should(
    schedule: str, warmup: float, start: float, middle: float, end: float
) -> None:
    values = rates(schedule, warmup)
    top = round(100 * warmup)
    assert values[0] == pytest.approx(start)
    assert values[top] == max(values) == pytest.approx(2.0)
    assert values[(top + 100) // 2] == pytest.approx(middle)
    assert values[100] == pytest.approx(end, abs=1e-12)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


@settings(deadline=None)
@given(st.sampled_from(list(SCHEDULES)), st.floats(0, 0.99), st.integers(1, 10**6), st.data())
def test_every_update_has_a_rate_between_nothing_and_the_peak(
    schedule: str, warmup: float, total_steps: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total_steps - 1))
    rate = learning_rate_at(step, total_steps=total_steps, peak=0.1, schedule=schedule, warmup=warmup)
    assert 0 < rate <= 0.1 * (1 + 1e-12)
    assert rate == learning_rate_at(step, total_steps=total_steps, peak=0.1, schedule=schedule, warmup=warmup)


class Words(nn.Module):
    """An embedding of 6 rows, and a matrix and a bias on top of it."""

    def __init__(self, *, sparse: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(6, 3, sparse=sparse)
        self.project = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def loss(self, step: int, ids: list[int]) -> Tensor:
        outputs: Tensor = self.project(self.embedding(torch.tensor(ids)))
        return (outputs * torch.arange(1.0, 3.0) * (step + 1)).pow(2).mean()


def take_steps(model: Words, rows: list[list[int]], *, rate: float = 0.1, **options: Any) -> list[dict[str, Tensor]]:
    """Makes one update for each list of rows, and returns the gradients by step, dense."""
    optimizers = build_optimizers(model, **{"name": "adamw", "weight_decay": 0.0, "momentum": 0.0, **options})
    gradients = []
    for step, ids in enumerate(rows):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.loss(step, ids).backward()
        gradients.append({n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None})
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    return gradients


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def adamw(weight: Tensor, gradients: list[Tensor], decay: float) -> Tensor:
    """Loshchilov & Hutter 2019, algorithm 2, with a rate of 0.1."""
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for n, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        weight = weight * (1 - 0.1 * decay)
        weight = weight - 0.1 * (mean / (1 - 0.9**n)) / ((square / (1 - 0.999**n)).sqrt() + 1e-8)
    return weight


def sgd(weight: Tensor, gradients: list[Tensor], decay: float, momentum: float) -> Tensor:
    velocity = torch.zeros_like(weight)
    for gradient in gradients:
        velocity = momentum * velocity + gradient + decay * weight
        weight = weight - 0.1 * velocity
    return weight


@pytest.mark.parametrize("momentum", [None, 0.0, 0.9], ids=["adamw", "sgd", "momentum"])
def test_an_update_follows_its_formula_and_decays_matrices_only(momentum: float | None) -> None:
    """Rows of the embedding have neither momentum nor decay; where every batch has them all, Adam's are as if dense."""
    model = Words()
    before = weights(model)
    name = "adamw" if momentum is None else "sgd"
    rows = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 5]]
    gradients = take_steps(model, rows, name=name, weight_decay=0.3, momentum=momentum or 0.0)
    for part, decay in (("project.weight", 0.3), ("project.bias", 0.0), ("embedding.weight", 0.0)):
        given = before[part], [gradient[part] for gradient in gradients], decay
        expected = adamw(*given) if momentum is None else sgd(*given, 0.0 if "embedding" in part else momentum)
        torch.testing.assert_close(weights(model)[part], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_the_rows_of_the_batch_are_touched(name: str) -> None:
    model = Words()
    before = model.embedding.weight.detach().clone()
    take_steps(model, [[0, 1]], name=name, weight_decay=0.5, momentum=0.9)
    after_one = model.embedding.weight.detach().clone()
    take_steps(model, [[2]], name=name, weight_decay=0.5, momentum=0.9)
    changed = (after_one != before).any(1).tolist(), (model.embedding.weight != after_one).any(1).tolist()
    assert changed == ([True, True, False, False, False, False], [False, False, True, False, False, False])


def test_a_group_knows_how_far_from_the_answer_its_part_lies() -> None:
    model = BiLSTMClassifier(6, 2, embedding_dim=3, hidden_size=2, pooling=["attention"], bigrams=5)
    depths = {
        id(p): group["depth"]
        for optimizer in build_optimizers(model, name="adamw", weight_decay=0.5, momentum=0.9)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    found = {(name.partition(".")[0], depths[id(p)]) for name, p in model.named_parameters()}
    assert found == {("embedding", 2), ("bigrams", 2), ("encoder", 1), ("pooling", 0), ("project", 0)}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_frozen_embedding_has_neither_optimizer_nor_average_and_stays(name: str) -> None:
    model = Words()
    model.embedding.weight.requires_grad_(False)
    before = model.embedding.weight.clone()
    take_steps(model, [[0, 1], [2, 3]], name=name, weight_decay=0.5)
    optimizers = build_optimizers(model, name=name, weight_decay=0.5, momentum=0.9)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.project.parameters())
    assert torch.equal(model.embedding.weight, before)
    assert set(WeightAverage(model, 0.9).weights) == {"project.weight", "project.bias"}


def with_gradients(*, sparse: bool) -> tuple[Words, Tensor]:
    model = Words(sparse=sparse)
    model.loss(0, [0, 1, 1, 0]).backward()
    return model, dense_gradient(model)


def dense_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.to_dense().reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("max_norm", [None, 1e9, 0.25])
def test_clipping_scales_all_gradients_together_down_to_the_norm(sparse: bool, max_norm: float | None) -> None:
    model, _ = with_gradients(sparse=sparse)
    _, plain = with_gradients(sparse=False)
    norm = clip_gradients(model.parameters(), max_norm)
    assert norm == pytest.approx(plain.norm().item())
    torch.testing.assert_close(dense_gradient(model), plain * min(1.0, (max_norm or 1e9) / float(plain.norm())))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_nothing_is_scaled(value: float) -> None:
    model, _ = with_gradients(sparse=True)
    before = model.project.weight.grad.clone()
    model.project.bias.grad[0] = value
    assert not math.isfinite(clip_gradients(model.parameters(), 1e-3))
    assert torch.equal(model.project.weight.grad, before)


def test_the_average_forgets_at_the_decay_but_faster_at_first_and_is_in_the_model_for_a_block() -> None:
    model = Words()
    average, expected = WeightAverage(model, 0.15), weights(model)
    for step, decay in enumerate([0, 1 / 10, 0.15]):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step + 1)
        average.update(model)
        expected = {n: decay * expected[n] + (1 - decay) * p.detach() for n, p in model.named_parameters()}
    torch.testing.assert_close(average.weights, expected)
    last, parameter = weights(model), model.project.weight
    with contextlib.suppress(KeyboardInterrupt), average.applied_to(model):
        assert all(torch.equal(p, average.weights[n]) for n, p in model.named_parameters())
        assert model.project.weight is parameter
        raise KeyboardInterrupt
    assert all(torch.equal(p, last[n]) for n, p in model.named_parameters())
