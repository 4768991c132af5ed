"""What a step minimises.

An objective computes the loss of a batch and adds its gradients by calling `backward`, as often as it has terms. All
moves are made in the space of embeddings and are constants, so there is no second-order gradient; all passes of a step
over the same texts drop the same words, dimensions and units, because each begins with the seed of the step.

To add an objective, write a function of a `Task` and a line in `OBJECTIVES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.pooling import is_token

FIRST_MOVE = 0.1
"""Size of the random move that a virtual adversarial one is found from, as a share of its own size."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Texts as the model takes them.

    Attributes:
        token_ids: `[B, T]` int64 on the model's device.
        lengths: `[B]` int64 on the CPU.
        weight: what each text counts in a loss that needs no label: one by the number of such texts in the whole batch.
    """

    token_ids: Tensor
    lengths: Tensor
    weight: float


@dataclass(frozen=True, slots=True)
class Task:
    """What an objective is given.

    Attributes:
        model: in training mode.
        labelled: texts whose labels `loss_of` knows.
        unlabelled: texts that need no label; the labelled ones where the data bring no others.
        loss_of: logits `[B, C]` of the labelled texts to their part of the batch's mean loss.
        backward: adds the gradients of a loss.
        scaled: multiplies what is differentiated by a constant, so that in float16 no gradient vanishes.
        size: of a move, as a share of the norm of a text's embedding.
    """

    model: BiLSTMClassifier
    labelled: Inputs
    unlabelled: Inputs
    loss_of: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], None]
    scaled: Callable[[Tensor], Tensor]
    size: float


def cross_entropy(task: Task) -> Tensor:
    """The loss of the texts as they are."""
    loss = task.loss_of(task.model(task.labelled.token_ids, task.labelled.lengths))
    task.backward(loss)
    return loss.detach()


def adversarial(task: Task) -> Tensor:
    """The loss of the texts, plus their loss where each is moved the way that raises it most (Miyato et al. 2017)."""
    embedded = _leaf_or_node(_embed(task.model, task.labelled))
    loss = task.loss_of(task.model.classify(embedded, task.labelled.lengths))
    task.backward(loss)
    assert embedded.grad is not None
    move = scaled_move(embedded.grad, embedded.detach(), task.size)
    task.backward(task.loss_of(_classify(task.model, task.labelled, move)))
    return loss.detach()


def virtual_adversarial(task: Task) -> Tensor:
    """The loss of the texts, plus how far the answer to a text without a label can be moved (Miyato et al. 2017)."""
    loss = cross_entropy(task)
    _smooth(task, with_entropy=False)
    return loss


def mixed(task: Task) -> Tensor:
    """The adversarial loss, plus of texts without a label the virtual adversarial one and the entropy of the answer.

    Sachan et al. 2019, with all weights 1; there the last two are read on the labelled texts as well.
    """
    loss = adversarial(task)
    _smooth(task, with_entropy=True)
    return loss


def r_drop(task: Task) -> Tensor:
    """The mean loss of two passes with different dropout, plus how far their answers are apart (Liang et al. 2021)."""
    inputs = task.labelled
    first = task.model(inputs.token_ids, inputs.lengths)
    second = task.model(inputs.token_ids, inputs.lengths)  # drops others
    loss = (task.loss_of(first) + task.loss_of(second)) / 2
    apart = (divergence(first, second) + divergence(second, first)) / 2
    task.backward(loss + inputs.weight * apart.sum())
    return loss.detach()


def _smooth(task: Task, *, with_entropy: bool) -> None:
    """Adds the gradients of the virtual adversarial loss, and of the entropy of the answers, of unlabelled texts.

    The move is the one that changes the answer most: one step of the power method from a random direction.
    """
    model, inputs = task.model, task.unlabelled
    with torch.set_grad_enabled(with_entropy):
        embedded = _embed(model, inputs)
        logits = model.classify(embedded, inputs.lengths)
    if with_entropy:
        task.backward(inputs.weight * entropy(logits).sum())
    embedded, logits = embedded.detach(), logits.detach()
    noise = torch.randn_like(embedded) * is_token(inputs.lengths, len(embedded), embedded.device).unsqueeze(2)
    first = scaled_move(noise, embedded, FIRST_MOVE * task.size).requires_grad_()
    apart = divergence(logits, _classify(model, inputs, first)).sum()
    (direction,) = torch.autograd.grad(task.scaled(apart), first)  # tiny: a direction has no size to keep
    move = scaled_move(direction, embedded, task.size)
    task.backward(inputs.weight * divergence(logits, _classify(model, inputs, move)).sum())


def _embed(model: BiLSTMClassifier, inputs: Inputs) -> Tensor:
    torch.manual_seed(torch.initial_seed())
    return model.embed(inputs.token_ids, inputs.lengths)


def _classify(model: BiLSTMClassifier, inputs: Inputs, move: Tensor) -> Tensor:
    """Returns the logits of moved texts, with the dropout of every other pass over them."""
    return model.classify(_embed(model, inputs) + move, inputs.lengths)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Returns the Kullback-Leibler divergence `[B]` of answers from others, of `[B, C]` logits, in nats."""
    return F.kl_div(others.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def entropy(logits: Tensor) -> Tensor:
    """Returns the entropy `[B]` of answers, of `[B, C]` logits, in nats."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


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


OBJECTIVES: dict[str, Callable[[Task], Tensor]] = {
    "cross_entropy": cross_entropy,
    "adversarial": adversarial,
    "virtual_adversarial": virtual_adversarial,
    "mixed": mixed,
    "r_drop": r_drop,
}
