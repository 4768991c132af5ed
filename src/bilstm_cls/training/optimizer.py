"""Optimizer, learning-rate schedules, gradual unfreezing, gradient clipping and averaged weights."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, SparseAdam

INITIAL_DIVISOR, FINAL_DIVISOR = 25.0, 1e4  # of the peak learning rate at both ends of `one-cycle`
DEPTHS = {"encoder": 1, "embedding": 2, "bigrams": 2}
"""How far from the logits a part of the model lies; what is not named here is its head."""


def _anneal(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one-cycle": lambda progress: _anneal(1.0, 1.0 / FINAL_DIVISOR, progress),
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: _anneal(1.0, 0.0, progress),
    "constant": lambda progress: 1.0,
}
"""Factor of the peak learning rate after warm-up, by progress from 0 to 1."""


def learning_rate_at(step: int, *, total_steps: int, peak: float, schedule: str, warmup: float) -> float:
    """Returns the learning rate of step `step`, counted from 0: a pure function, so nothing has to be saved.

    Warm-up is linear from `peak / (warm-up steps)`; with `one-cycle` it rises along a cosine from `peak / 25`, and the
    fall ends at `peak / 10,000` (Smith & Topin 2018).
    """
    warmup_steps = round(warmup * total_steps)
    if step < warmup_steps:
        if schedule == "one-cycle":
            return peak * _anneal(1.0 / INITIAL_DIVISOR, 1.0, step / warmup_steps)
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * SCHEDULES[schedule](min(progress, 1.0))


def trainable_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns the parameters that learn: those with dense gradients, and embeddings with row-sparse ones."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trainable if id(p) not in tables], [p for p in trainable if id(p) in tables]


def build_optimizers(model: nn.Module, *, name: str, weight_decay: float, momentum: float) -> list[Optimizer]:
    """Returns one optimizer for the embeddings and one for all other weights.

    An embedding's gradient holds only the rows of the batch, and only these rows are updated. Weight decay is for
    weight matrices, not for biases and not for embeddings, whose unused rows it would shrink without end. With `sgd`,
    momentum is for the dense weights. The key `depth` of a parameter group says how far from the logits its part of
    the model lies: 0 for the head, 1 for the encoder, 2 for the embedding.
    """
    dense, rows = trainable_parameters(model)
    depths = {id(p): DEPTHS.get(key.partition(".")[0], 0) for key, p in model.named_parameters()}

    def by_depth(parameters: list[nn.Parameter], **options: float) -> list[dict[str, Any]]:
        found = sorted({depths[id(p)] for p in parameters}, reverse=True)
        return [{"params": [p for p in parameters if depths[id(p)] == d], "depth": d, **options} for d in found]

    groups = by_depth([p for p in dense if p.dim() > 1], weight_decay=weight_decay)
    groups += by_depth([p for p in dense if p.dim() <= 1], weight_decay=0.0)
    tables = by_depth(rows)
    if name == "adamw":
        return [AdamW(groups, fused=all(p.is_cuda for p in dense)), *([SparseAdam(tables)] if tables else [])]
    return [SGD(groups, lr=1e-3, momentum=momentum), *([SGD(tables, lr=1e-3)] if tables else [])]


def update(optimizers: Sequence[Optimizer], learning_rate: float, *, layer_lr_decay: float = 1.0) -> None:
    """Makes an update with this learning rate for the head, and for deeper parts that times the factor per depth."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * layer_lr_decay ** group["depth"]
        optimizer.step()


def freeze_below(optimizers: Sequence[Optimizer], depth: int) -> None:
    """Lets parts learn up to this depth and no deeper: those get no gradient, hence no update and no state."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(group["depth"] <= depth)


def optimizer_state(optimizers: Sequence[Optimizer]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Returns the state of optimizers: its tensors by name, and its numbers as JSON holds them."""
    tensors: dict[str, Tensor] = {}
    numbers: list[dict[str, Any]] = []
    for i, optimizer in enumerate(optimizers):
        plain: dict[str, dict[str, Any]] = {}
        for j, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{j}.{key}"] = value
                else:
                    plain.setdefault(str(j), {})[key] = value
        numbers.append(plain)
    return tensors, numbers


def load_optimizer_state(
    optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor], numbers: Sequence[Mapping[str, Any]]
) -> None:
    """Restores what `optimizer_state` returned; `tensors` may hold others as well."""
    for i, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, Any]] = {int(j): dict(s) for j, s in numbers[i].items()}
        for name, tensor in strip_prefix(tensors, f"optimizer.{i}.").items():
            j, _, key = name.partition(".")
            states.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with the prefix, by what follows it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> float:
    """Scales all gradients so that their norm is at most `max_norm`, if it is finite, and returns the norm before."""
    values: list[Tensor] = []
    for parameter in parameters:
        if (gradient := parameter.grad) is not None:
            parameter.grad = gradient.coalesce() if gradient.is_sparse else gradient
            values.append(parameter.grad._values() if gradient.is_sparse else gradient)
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm([v.float() for v in values]))))
    if max_norm is not None and math.isfinite(norm) and norm > max_norm:
        with torch.no_grad():
            torch._foreach_mul_(values, max_norm / norm)
    return norm


class WeightAverage:
    """Exponential moving average of the weights that learn, for evaluation and for the final model.

    The decay after n updates is `min(decay, n / (9 + n))`: the weights before the first update do not count at all, and
    the first ones after it are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's present weights."""
        decay = min(self.decay, self.num_updates / (9 + self.num_updates))
        self.num_updates += 1
        present = dict(model.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(list(self.weights.values()), [present[name] for name in self.weights], 1.0 - decay)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Puts the averaged weights into the model for a `with` block."""
        present = dict(model.named_parameters())
        before = {name: present[name].data for name in self.weights}
        try:
            for name, weights in self.weights.items():
                present[name].data = weights
            yield
        finally:
            for name, weights in before.items():
                present[name].data = weights
