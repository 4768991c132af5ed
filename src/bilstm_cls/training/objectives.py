"""What a step minimises: the plain loss, or with it the loss at the worst nearby point of the embedding space.

To add an objective, write a function of the same arguments and a line in `OBJECTIVES`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bilstm_cls.model.classifier import BiLSTMClassifier

LossOf = Callable[[Tensor], Tensor]
Backward = Callable[[Tensor], None]
Objective = Callable[[BiLSTMClassifier, Tensor, Tensor, LossOf, Backward, float], Tensor]
"""Model, token ids `[B, T]`, lengths `[B]`, loss of logits, its backward pass, size of the perturbation -> loss."""


def plain(
    model: BiLSTMClassifier, token_ids: Tensor, lengths: Tensor, loss_of: LossOf, backward: Backward, size: float
) -> Tensor:
    """The loss of the texts as they are."""
    loss = loss_of(model(token_ids, lengths))
    backward(loss)
    return loss.detach()


def adversarial(
    model: BiLSTMClassifier, token_ids: Tensor, lengths: Tensor, loss_of: LossOf, backward: Backward, size: float
) -> Tensor:
    """The loss of the texts, plus their loss where each is moved the way that raises it most (Miyato et al. 2017).

    The move of a text is its gradient scaled to `size` times the norm of the text's own embedding; it is a constant,
    so there is no second-order gradient. Both passes drop the same words, dimensions and units: the seed that the step
    began with is set again.
    """
    embedded = _leaf_or_node(model.embed(token_ids, lengths))
    loss = loss_of(model.classify(embedded, lengths))
    backward(loss)
    assert embedded.grad is not None
    move = scaled_move(embedded.grad, embedded.detach(), size)
    torch.manual_seed(torch.initial_seed())
    worst = loss_of(model.classify(model.embed(token_ids, lengths) + move, lengths))
    backward(worst)
    return loss.detach()


def scaled_move(direction: Tensor, embedded: Tensor, size: float) -> Tensor:
    """Returns `direction` with its norm over each text set to `size` times that of the text.

    Args:
        direction: `[T, B, E]`, zero at padding.
        embedded: `[T, B, E]`.
        size: share of the text's norm.
    """
    largest = direction.abs().amax((0, 2), keepdim=True).clamp_min(1e-30)  # so that no square underflows
    direction = (direction / largest).float()
    own = embedded.float().square().sum((0, 2), keepdim=True).sqrt()
    norm = direction.square().sum((0, 2), keepdim=True).sqrt().clamp_min(1e-12)
    return direction * (size * own / norm)


def _leaf_or_node(embedded: Tensor) -> Tensor:
    if embedded.requires_grad:
        embedded.retain_grad()
        return embedded
    return embedded.detach().requires_grad_()  # frozen vectors


OBJECTIVES: dict[str, Objective] = {"plain": plain, "adversarial": adversarial}
