"""Optimizer, schedules, clipping and averaged weights, each beside its plain formula."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training.optimizer import SCHEDULES, WeightAverage, build_optimizers, clip_gradients, learning_rate_at

ANY_SCHEDULE = st.sampled_from(list(SCHEDULES))


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


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3])
def test_a_rate_rises_to_its_peak_and_never_rises_after_it(schedule: str, warmup: float) -> None:
    values = rates(schedule, warmup)
    top = round(100 * warmup)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_warming_up_follows_a_line_or_with_one_cycle_half_a_cosine() -> None:
    assert rates("linear", 0.1, 40)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates("one-cycle", 0.1, 40)[2] == pytest.approx((2 + 2 / 25) / 2)


@settings(deadline=None)
@given(ANY_SCHEDULE, st.floats(0, 0.99), st.integers(1, 10**6), st.data())
def test_every_update_has_a_rate_between_nothing_and_the_peak(
    schedule: str, warmup: float, total_steps: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total_steps - 1))
    rate = learning_rate_at(step, total_steps=total_steps, peak=0.1, schedule=schedule, warmup=warmup)
    assert 0 < rate <= 0.1 * (1 + 1e-12)
    assert rate == learning_rate_at(step, total_steps=total_steps, peak=0.1, schedule=schedule, warmup=warmup)


def test_a_rate_asked_for_past_the_end_is_the_last_one() -> None:
    assert learning_rate_at(500, total_steps=100, peak=1.0, schedule="one-cycle", warmup=0.1) == pytest.approx(1e-4)


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


ROWS = [[0, 1, 2, 2], [1, 3, 3, 0], [0, 2, 1, 3]]


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


@pytest.mark.parametrize(("name", "decay"), [("project.weight", 0.3), ("project.bias", 0.0)])
def test_adamw_follows_its_formula_and_decays_matrices_only(name: str, decay: float) -> None:
    model = Words()
    before = weights(model)[name]
    gradients = take_steps(model, ROWS, weight_decay=0.3)
    torch.testing.assert_close(weights(model)[name], adamw(before, [g[name] for g in gradients], decay))


@pytest.mark.parametrize(("name", "decay"), [("project.weight", 0.3), ("project.bias", 0.0)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_follows_its_formula_and_decays_matrices_only(name: str, decay: float, momentum: float) -> None:
    model = Words()
    before = weights(model)[name]
    gradients = take_steps(model, ROWS, name="sgd", weight_decay=0.3, momentum=momentum)
    expected = sgd(before, [g[name] for g in gradients], decay, momentum)
    torch.testing.assert_close(weights(model)[name], expected)


def test_rows_of_sgd_have_neither_momentum_nor_decay() -> None:
    model = Words()
    before = model.embedding.weight.detach().clone()
    gradients = take_steps(model, ROWS, name="sgd", weight_decay=0.3, momentum=0.9)
    expected = sgd(before, [g["embedding.weight"] for g in gradients], 0.0, 0.0)
    torch.testing.assert_close(model.embedding.weight.detach(), expected)


def test_rows_that_every_batch_has_are_updated_as_adam_would_update_them_dense() -> None:
    model = Words()
    before = model.embedding.weight.detach().clone()
    everywhere = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 5]]
    gradients = take_steps(model, everywhere, weight_decay=0.3)
    expected = adamw(before, [g["embedding.weight"] for g in gradients], 0.0)
    torch.testing.assert_close(model.embedding.weight.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_the_rows_of_the_batch_are_touched(name: str) -> None:
    model = Words()
    before = model.embedding.weight.detach().clone()
    take_steps(model, [[0, 1]], name=name, weight_decay=0.5, momentum=0.9)
    after_one = model.embedding.weight.detach().clone()
    take_steps(model, [[2]], name=name, weight_decay=0.5, momentum=0.9)
    changed = (after_one != before).any(1).tolist(), (model.embedding.weight != after_one).any(1).tolist()
    assert changed == ([True, True, False, False, False, False], [False, False, True, False, False, False])


def test_a_row_rests_while_batches_go_by_without_it() -> None:
    model = Words()
    take_steps(model, [[0, 1], [2], [3]])
    rested = model.embedding.weight[0].detach().clone()
    model = Words()
    take_steps(model, [[0, 1]])
    assert torch.equal(model.embedding.weight[0], rested)


def test_a_frozen_embedding_has_no_optimizer_and_stays() -> None:
    model = Words()
    model.embedding.weight.requires_grad_(False)
    before = model.embedding.weight.clone()
    take_steps(model, ROWS, weight_decay=0.5)
    assert len(build_optimizers(model, name="adamw", weight_decay=0.0, momentum=0.0)) == 1
    assert torch.equal(model.embedding.weight, before)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("sparse", [True, False])
def test_every_weight_is_in_one_group_of_one_optimizer(name: str, sparse: bool) -> None:
    model = Words(sparse=sparse)
    optimizers = build_optimizers(model, name=name, weight_decay=0.5, momentum=0.9)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


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


def test_weights_stand_in_the_order_in_which_older_checkpoints_have_them() -> None:
    model = BiLSTMClassifier(6, 2, embedding_dim=3, hidden_size=2, pooling=["attention"])
    first, _ = build_optimizers(model, name="adamw", weight_decay=0.0, momentum=0.0)
    dense = [p for name, p in model.named_parameters() if not name.startswith("embedding")]
    expected = [p for p in dense if p.dim() > 1] + [p for p in dense if p.dim() <= 1]
    assert [id(p) for group in first.param_groups for p in group["params"]] == [id(p) for p in expected]


def with_gradients(*, sparse: bool) -> Words:
    model = Words(sparse=sparse)
    model.loss(0, [0, 1, 1, 0]).backward()
    return model


def dense_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.to_dense().reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("sparse", [True, False])
def test_the_norm_is_that_of_all_gradients_together(sparse: bool) -> None:
    model = with_gradients(sparse=sparse)
    expected = dense_gradient(with_gradients(sparse=False)).norm().item()
    assert clip_gradients(model.parameters(), None) == pytest.approx(expected)


@pytest.mark.parametrize("sparse", [True, False])
def test_clipping_scales_all_gradients_together_down_to_the_norm(sparse: bool) -> None:
    model, plain = with_gradients(sparse=sparse), dense_gradient(with_gradients(sparse=False))
    norm = clip_gradients(model.parameters(), 0.25)
    assert norm == pytest.approx(plain.norm().item())
    torch.testing.assert_close(dense_gradient(model), plain * (0.25 / plain.norm()))


@pytest.mark.parametrize("max_norm", [None, 1e9])
def test_gradients_within_the_norm_keep_their_bits(max_norm: float | None) -> None:
    model = with_gradients(sparse=True)
    clip_gradients(model.parameters(), max_norm)
    assert torch.equal(dense_gradient(model), dense_gradient(with_gradients(sparse=True)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_nothing_is_scaled(value: float) -> None:
    model = with_gradients(sparse=True)
    before = model.project.weight.grad.clone()
    model.project.bias.grad[0] = value
    assert not math.isfinite(clip_gradients(model.parameters(), 1e-3))
    assert torch.equal(model.project.weight.grad, before)


def test_weights_without_a_gradient_are_left_out_of_the_norm() -> None:
    model = with_gradients(sparse=True)
    unused = nn.Parameter(torch.ones(3))
    assert clip_gradients([*model.parameters(), unused], None) == clip_gradients(model.parameters(), None)


@pytest.fixture
def averaged() -> tuple[Words, WeightAverage, list[dict[str, Tensor]]]:
    """A model after three updates, its average with a decay of 0.15, and the weights before and after each update."""
    model = Words()
    average = WeightAverage(model, 0.15)
    history = [weights(model)]
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step + 1)
        average.update(model)
        history.append(weights(model))
    return model, average, history


@pytest.mark.parametrize("name", ["embedding.weight", "project.weight", "project.bias"])
def test_the_average_forgets_at_the_decay_but_faster_at_first(
    averaged: tuple[Words, WeightAverage, list[dict[str, Tensor]]], name: str
) -> None:
    _, average, history = averaged
    expected = history[0][name]
    for decay, present in zip([0, 1 / 10, 0.15], history[1:], strict=True):
        expected = decay * expected + (1 - decay) * present[name]
    torch.testing.assert_close(average.weights[name], expected)
    assert average.num_updates == 3


def test_the_average_is_in_the_model_within_the_block_only(
    averaged: tuple[Words, WeightAverage, list[dict[str, Tensor]]],
) -> None:
    model, average, history = averaged
    parameter = model.project.weight
    with average.applied_to(model):
        assert all(torch.equal(p, average.weights[n]) for n, p in model.named_parameters())
        assert model.project.weight is parameter
    assert all(torch.equal(p, history[-1][n]) for n, p in model.named_parameters())


def test_a_block_that_fails_gives_the_weights_back_too(
    averaged: tuple[Words, WeightAverage, list[dict[str, Tensor]]],
) -> None:
    model, average, history = averaged
    with pytest.raises(KeyboardInterrupt), average.applied_to(model):
        raise KeyboardInterrupt
    assert all(torch.equal(p, history[-1][n]) for n, p in model.named_parameters())


def test_training_goes_on_from_the_weights_and_not_from_the_average(
    averaged: tuple[Words, WeightAverage, list[dict[str, Tensor]]],
) -> None:
    model, average, history = averaged
    with average.applied_to(model):
        pass
    kept = weights(model)
    gradients = take_steps(model, [[0, 1]], name="sgd")
    torch.testing.assert_close(model.project.bias.detach(), kept["project.bias"] - 0.1 * gradients[0]["project.bias"])
    assert torch.equal(kept["project.bias"], history[-1]["project.bias"])


def test_a_frozen_weight_is_not_averaged() -> None:
    model = Words()
    model.embedding.weight.requires_grad_(False)
    assert set(WeightAverage(model, 0.9).weights) == {"project.weight", "project.bias"}


def test_the_average_keeps_its_own_copy(averaged: tuple[Words, WeightAverage, list[dict[str, Tensor]]]) -> None:
    model, average, _ = averaged
    before = {name: tensor.clone() for name, tensor in average.weights.items()}
    with torch.no_grad():
        model.project.weight.zero_()
    assert all(torch.equal(average.weights[name], before[name]) for name in before)
