"""How the T outputs of a text become one vector. Every pooling takes the lengths: none of them reads padding.

Shapes: T tokens (padded), B texts, H units of one direction, D units of all directions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def is_token(lengths: Tensor, num_steps: int, device: torch.device) -> Tensor:
    """Returns `[T, B]` bool, true where a text has a token."""
    steps = torch.arange(num_steps, device=device).unsqueeze(1)
    return steps < lengths.to(device, non_blocking=True)


def mean(outputs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
    """Sum over a text's tokens divided by their number: `[T, B, H]` to `[B, H]`."""
    tokens = is_token(lengths, outputs.shape[0], outputs.device).to(outputs.dtype)
    weights = tokens / lengths.to(outputs.device, non_blocking=True)
    return _weighted_sum(outputs, weights)


def reduce_mean(outputs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
    """Sum over a text's tokens divided by the fixed padded length, as TensorFlow's `reduce_mean(outputs, axis=1)`."""
    weights = is_token(lengths, outputs.shape[0], outputs.device).to(outputs.dtype) / max_length
    return _weighted_sum(outputs, weights)


def maximum(outputs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
    """The largest value of each unit over a text's tokens: `[T, B, H]` to `[B, H]`."""
    largest: Tensor = _Maximum.apply(outputs, lengths)  # type: ignore[no-untyped-call]
    return largest


class _Maximum(torch.autograd.Function):
    """`outputs.masked_fill(padding, -inf).amax(0)`, and its gradient, without a masked copy of all outputs.

    Only steps after the end of the shortest text are masked: few, as the texts of a batch are of similar length.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, lengths: Tensor) -> Tensor:
        shortest = int(lengths.min())
        padding = ~is_token(lengths, outputs.shape[0], outputs.device)[shortest:].unsqueeze(2)  # [T - shortest, B, 1]
        largest = outputs[:shortest].amax(0)
        if len(padding):
            largest = torch.maximum(largest, outputs[shortest:].masked_fill(padding, -torch.inf).amax(0))
        ctx.save_for_backward(outputs, largest, padding)
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        outputs, largest, padding = ctx.saved_tensors
        hits = torch.eq(outputs, largest, out=torch.empty_like(outputs))  # 1.0 where it is: no detour by bool
        if len(padding):
            hits[-len(padding) :].masked_fill_(padding, 0.0)
        return hits.mul_(gradient / hits.sum(0)), None  # equal ones share


def last(outputs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
    """The output after the last token in the direction's own order of reading: its final state."""
    index = (lengths - 1).to(outputs.device, non_blocking=True)
    return outputs[index, torch.arange(outputs.shape[1], device=outputs.device)]


POOLINGS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "mean": mean, "reduce_mean": reduce_mean, "max": maximum, "last": last,
}  # fmt: skip
"""Poolings without weights, over one direction in its own order of reading. `attention` is in `Pooling`."""


class Pooling(nn.Module):
    """Joins the vectors of one or several poolings.

    Args:
        names: keys of `POOLINGS`, or `attention`: a softmax over the text's tokens of `v . tanh(W x + b)`
            (Yang et al. 2016), read over both directions together.
        output_size: D, units of all directions.
        max_length: the padded length that `reduce_mean` divides by.
    """

    def __init__(self, names: Sequence[str], output_size: int, max_length: int) -> None:
        super().__init__()
        self.names = list(names)
        self.max_length = max_length
        self.output_size = output_size * len(self.names)
        self.needs_alignment = "attention" in self.names
        if self.needs_alignment:
            self.project = nn.Linear(output_size, output_size)
            self.score = nn.Linear(output_size, 1, bias=False)

    def forward(self, outputs: list[Tensor], lengths: Tensor) -> Tensor:
        """Returns `[B, D * number of poolings]` in 32 bits whatever the outputs' type.

        Args:
            outputs: `[T, B, H]` per direction; the backward one in the order of the text if `needs_alignment`, else in
                its own order of reading.
            lengths: `[B]` int64 on the CPU.
        """
        directions = [output.float() for output in outputs]
        pooled = []
        for name in self.names:
            if name == "attention":
                pooled.append(self._attend(torch.cat(directions, 2), lengths))
                continue
            for number, output in enumerate(directions):
                if name == "last" and number and self.needs_alignment:
                    pooled.append(output[0])  # in the order of the text the backward direction ends at its start
                else:
                    pooled.append(POOLINGS[name](output, lengths, self.max_length))
        return torch.cat(pooled, 1)

    def _attend(self, outputs: Tensor, lengths: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.project(outputs))).squeeze(2).float()  # [T, B]
        tokens = is_token(lengths, outputs.shape[0], outputs.device)
        weights = scores.masked_fill(~tokens, -torch.inf).softmax(0)
        return _weighted_sum(outputs, weights)


def _weighted_sum(outputs: Tensor, weights: Tensor) -> Tensor:
    """`[T, B, H]` and `[T, B]` to `[B, H]`."""
    return (outputs * weights.unsqueeze(2)).sum(0)
