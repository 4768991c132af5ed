"""Optimizer, schedules, clipping and averaged weights, each beside its plain formula."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_matrices_alone_decay_and_rows_of_an_embedding_have_an_optimizer_of_their_own() -> None:
    dense, rows = build_optimizers(Words(), name="sgd", weight_decay=0.3, momentum=0.9)
    decays = {p.dim(): group["weight_decay"] for group in dense.param_groups for p in group["params"]}
    assert decays == {2: 0.3, 1: 0.0}
    assert [(group["weight_decay"], group["momentum"]) for group in rows.param_groups] == [(0, 0)]


def gradient_of(model: Words) -> Tensor:
    return torch.cat([p.grad.to_dense().reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("max_norm", [None, 1e9, 0.25])
def test_clipping_scales_all_gradients_together_down_to_the_norm(sparse: bool, max_norm: float | None) -> None:
    model = Words(sparse=sparse)
    model.project(model.embedding(torch.tensor([0, 1, 1, 0]))).pow(2).mean().backward()
    plain = gradient_of(model)
    norm = clip_gradients(model.parameters(), max_norm)
    assert norm == pytest.approx(plain.norm().item())
    torch.testing.assert_close(gradient_of(model), plain * min(1.0, (max_norm or 1e9) / float(plain.norm())))


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
