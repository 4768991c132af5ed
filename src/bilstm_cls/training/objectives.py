"""What a step minimises.

An objective has a term for the labelled texts of a batch and may have one for texts that need no label. A term computes
its loss and adds its gradients, as often as it has parts. Perturbations are added to embeddings
and are constants, so there is no second-order gradient; all passes of a step over the same texts drop the same words,
dimensions and units, because each begins with the seed of the step.

To add an objective, write its terms and a line in `OBJECTIVES`.

Shapes: B texts, T tokens (padded), E embedding_dim, C labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.pooling import is_token

XI = 0.1
"""Size of the random perturbation that a virtual adversarial one is found from, relative to the size of that one."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Texts as the model takes them.

    Attributes:
        token_ids: `[B, T]` int64 on the model's device.
        lengths: `[B]` int64 on the CPU.
        weight: of each text in a loss that needs no label: one by the number of such texts in the whole batch.
        label_ids: `[B]` int64 on the model's device, where the texts have labels; with several a text `[B, C]` uint8.
        label_weight: what the sum of their weighted losses is multiplied by for their part of the batch's mean.
        soft_labels: `[B, C]` probabilities of a teacher, for texts without labels.
    """

    token_ids: Tensor
    lengths: Tensor
    weight: float
    label_ids: Tensor | None = None
    label_weight: float = 0.0
    soft_labels: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a term needs in addition to texts: the same in every step.

    `loss_of` takes logits `[B, C]` of texts with labels, soft ones or not, and these, to their part of the mean loss;
    `epsilon` is the norm of a perturbation relative to that of the text's embedding.
    """

    model: BiLSTMClassifier
    loss_of: Callable[[Tensor, Inputs], Tensor]
    epsilon: float
    is_multi: bool = False


def label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, is_multi: bool) -> Tensor:
    """Returns the sum of the losses of texts: cross-entropy, or with several labels a text that of each label.

    `logits` are `[B, C]`; `labels` ids `[B]`, or `[B, C]` 1 and 0 or probabilities; `weights` `[C]`, of texts that have
    the label; `smoothing` is the probability that the target spreads over all answers.
    """
    if not is_multi:
        return F.cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="sum")
    targets = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")


def cross_entropy(context: StepContext, inputs: Inputs) -> Tensor:
    """The loss of the texts as they are."""
    loss = context.loss_of(context.model(inputs.token_ids, inputs.lengths), inputs)
    _backward(loss)
    return loss.detach()


def per_direction(context: StepContext, inputs: Inputs) -> Tensor:
    """The loss of the texts, plus the mean of what it is for each direction alone, so that each learns to answer."""
    embedded = context.model.embed(inputs.token_ids, inputs.lengths)
    parts = context.model.classify_by_direction(embedded, inputs.lengths)  # [directions, B, C]
    loss = context.loss_of(parts.mean(0), inputs)
    _backward(loss + sum(context.loss_of(part, inputs) for part in parts) / len(parts))
    return loss.detach()


def adversarial(context: StepContext, inputs: Inputs) -> Tensor:
    """The loss of the texts, plus their loss under the perturbation that raises it most (Miyato et al. 2017)."""
    embedded = _embed(context.model, inputs)  # [T, B, E]
    if embedded.requires_grad:
        embedded.retain_grad()
    else:  # frozen vectors
        embedded = embedded.detach().requires_grad_()
    loss = context.loss_of(context.model.classify(embedded, inputs.lengths), inputs)
    _backward(loss)
    assert embedded.grad is not None
    perturbation = scale_perturbation(embedded.grad, embedded.detach(), context.epsilon)
    _backward(context.loss_of(_classify(context.model, inputs, perturbation), inputs))
    return loss.detach()


def r_drop(context: StepContext, inputs: Inputs) -> Tensor:
    """The mean loss of two passes with different dropout, plus their KL divergence both ways (Liang et al. 2021)."""
    first = context.model(inputs.token_ids, inputs.lengths)  # [B, C]
    second = context.model(inputs.token_ids, inputs.lengths)
    loss = (context.loss_of(first, inputs) + context.loss_of(second, inputs)) / 2
    divergence = (kl_divergence(first, second, context.is_multi) + kl_divergence(second, first, context.is_multi)) / 2
    _backward(loss + inputs.weight * divergence.sum())
    return loss.detach()


def virtual_adversarial(context: StepContext, inputs: Inputs) -> None:
    """KL divergence of the answer under the perturbation that changes it most (Miyato et al. 2017).

    The perturbation is found by one step of the power method from a random direction.
    """
    model = context.model
    with torch.no_grad():
        embedded = _embed(model, inputs)  # [T, B, E]
        logits = model.classify(embedded, inputs.lengths)
    tokens = is_token(inputs.lengths, len(embedded), embedded.device).unsqueeze(2)  # [T, B, 1]
    random = scale_perturbation(torch.randn_like(embedded) * tokens, embedded, XI * context.epsilon).requires_grad_()
    divergence = kl_divergence(logits, _classify(model, inputs, random), context.is_multi).sum()
    (direction,) = torch.autograd.grad(divergence, random)  # its size does not matter
    perturbation = scale_perturbation(direction, embedded, context.epsilon)
    moved = _classify(model, inputs, perturbation)
    _backward(inputs.weight * kl_divergence(logits, moved, context.is_multi).sum())


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _embed(model: BiLSTMClassifier, inputs: Inputs) -> Tensor:
    torch.manual_seed(torch.initial_seed())
    return model.embed(inputs.token_ids, inputs.lengths)


def _classify(model: BiLSTMClassifier, inputs: Inputs, perturbation: Tensor) -> Tensor:
    """Returns the logits of perturbed texts, with the dropout of every other pass over them."""
    return model.classify(_embed(model, inputs) + perturbation, inputs.lengths)


def kl_divergence(logits: Tensor, others: Tensor, is_multi: bool = False) -> Tensor:
    """Returns the Kullback-Leibler divergence `[B]` of answers from others, of `[B, C]` logits, in nats."""
    if is_multi:  # of each label and its lack
        logs, other_logs = (torch.cat([F.logsigmoid(z), F.logsigmoid(-z)], 1) for z in (logits, others))
    else:
        logs, other_logs = logits.log_softmax(1), others.log_softmax(1)
    return F.kl_div(other_logs, logs, reduction="none", log_target=True).sum(1)


def scale_perturbation(direction: Tensor, embedded: Tensor, epsilon: float) -> Tensor:
    """Returns `direction` `[T, B, E]`, zero at padding, with its norm over each text `epsilon` times the text's."""
    largest = direction.abs().amax((0, 2), keepdim=True).clamp_min(1e-30)  # so that no square underflows
    direction = (direction / largest).float()
    norm_of_text = embedded.float().square().sum((0, 2), keepdim=True).sqrt()  # [1, B, 1]
    norm = direction.square().sum((0, 2), keepdim=True).sqrt().clamp_min(1e-12)
    return direction * (epsilon * norm_of_text / norm)


@dataclass(frozen=True, slots=True)
class Objective:
    """The terms of a loss, each of which adds its gradients; `labelled` returns the loss that is reported."""

    labelled: Callable[[StepContext, Inputs], Tensor]
    unlabelled: Callable[[StepContext, Inputs], None] | None = None


OBJECTIVES = {
    "cross_entropy": Objective(cross_entropy),
    "per_direction": Objective(per_direction),
    "adversarial": Objective(adversarial),
    "virtual_adversarial": Objective(cross_entropy, virtual_adversarial),
    "r_drop": Objective(r_drop),
}
