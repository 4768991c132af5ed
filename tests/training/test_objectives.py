"""Objectives: what is moved, how far, and what stays the same."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training.objectives import OBJECTIVES, adversarial, plain, scaled_move

TOKEN_IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 0, 0, 0]])
LENGTHS = torch.tensor([4, 2, 1])
LABELS = torch.tensor([0, 1, 1])


def make_model(**options: float) -> BiLSTMClassifier:
    torch.manual_seed(0)
    return BiLSTMClassifier(12, 2, embedding_dim=5, hidden_size=4, **options)  # type: ignore[arg-type]


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS)


def run(name: str, model: BiLSTMClassifier, size: float = 0.1) -> tuple[Tensor, list[Tensor]]:
    losses: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        losses.append(loss.detach())
        loss.backward()

    torch.manual_seed(5)
    return OBJECTIVES[name](model, TOKEN_IDS, LENGTHS, loss_of, backward, size), losses


def test_the_plain_objective_is_the_loss() -> None:
    model = make_model()
    value, losses = run("plain", model)
    assert value == loss_of(model(TOKEN_IDS, LENGTHS))
    assert losses == [value]


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5, "word_dropout": 0.3, "embedding_dropout": 0.3}])
def test_the_moved_texts_are_harder(options: dict[str, float]) -> None:
    model = make_model(**options).train()
    value, (first, second) = run("adversarial", model, 0.05)
    assert value == first
    assert second > first


def test_both_passes_drop_the_same() -> None:
    """With no move at all, both losses are the same bits in spite of dropout."""
    model = make_model(dropout=0.5, word_dropout=0.5, embedding_dropout=0.5, recurrent_dropout=0.5).train()
    _, (first, second) = run("adversarial", model, 0.0)
    assert torch.equal(first, second)


def test_gradients_are_those_of_both_losses() -> None:
    model = make_model()
    run("adversarial", model, 0.0)
    doubled = {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    run("plain", model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(doubled[name], 2 * parameter.grad.to_dense(), atol=1e-6), name


def test_frozen_vectors_are_moved_but_do_not_learn() -> None:
    model = make_model(freeze_embedding=True)
    _, (first, second) = run("adversarial", model)
    assert second > first
    assert model.embedding.weight.grad is None


def test_a_move_is_a_share_of_the_texts_own_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(4, 3, 5, generator=generator)
    direction = torch.randn(4, 3, 5, generator=generator) * torch.tensor([1.0, 1e-25, 0.0]).view(1, 3, 1)
    move = scaled_move(direction, embedded, 0.1)
    norms = move.square().sum((0, 2)).sqrt() / embedded.square().sum((0, 2)).sqrt()
    assert torch.allclose(norms, torch.tensor([0.1, 0.1, 0.0]), atol=1e-6)
    assert torch.isfinite(move).all()


def test_a_text_is_moved_whatever_its_company() -> None:
    embedded, direction = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    together = scaled_move(direction, embedded, 0.2)
    alone = scaled_move(direction[:, 1:2], embedded[:, 1:2], 0.2)
    assert torch.allclose(together[:, 1:2], alone, atol=1e-6)


def test_every_objective_is_a_choice_of_the_config() -> None:
    from bilstm_cls.config import config_schema

    choices = config_schema()["$defs"]["TrainConfig"]["properties"]["objective"]["enum"]
    assert choices == list(OBJECTIVES)
    assert {"plain": plain, "adversarial": adversarial} == OBJECTIVES
