"""Objectives: what is moved, how far, and what stays the same."""

from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training.objectives import (
    OBJECTIVES,
    Inputs,
    StepContext,
    kl_divergence,
    label_loss,
    scale_perturbation,
)

TOKEN_IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 0, 0, 0]])
LENGTHS = torch.tensor([4, 2, 1])
LABELS = torch.tensor([0, 1, 1])


DROPS = {"dropout": 0.5, "word_dropout": 0.3, "embedding_dropout": 0.3, "recurrent_dropout": 0.3}


def make_model(**options: float) -> BiLSTMClassifier:
    torch.manual_seed(0)
    return BiLSTMClassifier(12, 2, embedding_dim=5, hidden_size=4, **options)  # type: ignore[arg-type]


def loss_of(logits: Tensor, inputs: Inputs | None = None) -> Tensor:
    return F.cross_entropy(logits, LABELS)


UNLABELLED = Inputs(torch.tensor([[5, 3, 9], [4, 11, 0]]), torch.tensor([3, 2]), 1 / 2)


def run(
    name: str, model: BiLSTMClassifier, size: float = 0.1, unlabelled: Inputs = UNLABELLED
) -> tuple[Tensor, list[Tensor]]:
    losses: list[Tensor] = []
    backward = Tensor.backward
    torch.manual_seed(5)
    context, objective = StepContext(model, loss_of, size), OBJECTIVES[name]
    with mock.patch.object(Tensor, "backward", lambda loss: losses.append(loss.detach()) or backward(loss)):
        loss = objective.labelled(context, Inputs(TOKEN_IDS, LENGTHS, 1 / 3))
        if objective.unlabelled is not None:
            objective.unlabelled(context, unlabelled)
    return loss, losses


@pytest.mark.parametrize("options", [{}, DROPS])
def test_the_moved_texts_are_harder(options: dict[str, float]) -> None:
    model = make_model(**options).train()
    value, (first, second) = run("adversarial", model, 0.05)
    assert value == first
    assert second > first


def test_both_passes_drop_the_same() -> None:
    """With no move at all, both losses are the same bits in spite of dropout."""
    model = make_model(**DROPS).train()
    _, (first, second) = run("adversarial", model, 0.0)
    assert torch.equal(first, second)
    assert run("virtual_adversarial", model, 1e-6)[1][1] < 1e-6


def test_the_loss_per_direction_is_joined_by_the_mean_of_those_of_both() -> None:
    model = make_model()
    parts = model.classify_by_direction(model.embed(TOKEN_IDS, LENGTHS), LENGTHS)
    value, (total,) = run("per_direction", model)
    assert torch.allclose(value, run("cross_entropy", model)[0], atol=1e-6)
    assert torch.allclose(total, value + (loss_of(parts[0]) + loss_of(parts[1])) / 2)


def test_the_virtual_adversarial_loss_is_of_the_texts_without_labels() -> None:
    model = make_model()
    value, (first, second) = run("virtual_adversarial", model)
    assert value == first == loss_of(model(TOKEN_IDS, LENGTHS))
    padded = Inputs(torch.tensor([[5, 3, 9, 0, 0], [4, 11, 0, 0, 0]]), UNLABELLED.lengths, 1 / 2)
    assert second > 0
    assert torch.equal(run("virtual_adversarial", model, unlabelled=padded)[1][1], second)


def test_the_virtual_adversarial_move_changes_the_answer_more_than_random_ones() -> None:
    model = make_model()
    found = run("virtual_adversarial", model, 0.05)[1][1]
    with torch.no_grad():
        embedded = model.embed(UNLABELLED.token_ids, UNLABELLED.lengths)
        answers = model.classify(embedded, UNLABELLED.lengths)
        generator = torch.Generator().manual_seed(3)
        for _ in range(50):
            noise = torch.randn(embedded.shape, generator=generator)
            noise[2, 1] = 0
            moved = model.classify(embedded + scale_perturbation(noise, embedded, 0.05), UNLABELLED.lengths)
            assert kl_divergence(answers, moved).mean() < found


def test_the_divergence_is_that_of_the_definition_and_of_several_labels_the_sum_over_them() -> None:
    one, other = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = one.softmax(1), other.softmax(1)
    assert torch.allclose(kl_divergence(one, other), (p * (p / q).log()).sum(1))
    assert torch.isfinite(kl_divergence(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]))).all()
    p, q = one.sigmoid(), other.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1)
    assert torch.allclose(kl_divergence(one, other, is_multi=True), expected)


def test_the_loss_of_several_labels_is_the_sum_of_their_cross_entropies() -> None:
    logits, weights = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]), torch.tensor([1.0, 2.0, 5.0])
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8)
    p = logits.sigmoid()
    terms = -(labels * weights * p.log() + (1 - labels) * (1 - p).log())
    assert torch.allclose(label_loss(logits, labels, weights, 0.0, True), terms.sum())
    smooth = 0.9 * labels + 0.05  # a tenth goes to both answers alike
    expected = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).sum()
    assert torch.allclose(label_loss(logits, labels, None, 0.1, True), expected)
    assert torch.allclose(label_loss(logits, smooth, None, 0.0, True), expected)
