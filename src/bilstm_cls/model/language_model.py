"""Two language models over one embedding, one per direction of reading, whose encoder a classifier starts from.

Each predicts the next token in its own order of reading (Dai & Le 2015), so the backward one is a forward one over
every text reversed. Scores come from the embedding itself, which the hidden state is projected to (Press & Wolf 2017),
and in training from a sample of it (Jean et al. 2015).

Shapes: B texts, T tokens, E embedding_dim, H hidden_size, V vocabulary, N predictions, R rows of the embedding that a
step reads, S different tokens that are drawn in addition to the right one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilstm_cls.model.classifier import PADDING_ID
from bilstm_cls.model.recurrent import BidirectionalLSTM, State

BLOCK = {"cpu": 2**9, "cuda": 2**16}  # predictions whose scores are held at once: on a CPU they stay in its cache


@dataclass(frozen=True)
class UnigramSampler:
    """Draws tokens with the probability by which they occur."""

    cumulative: Tensor  # [V], probability of all ids up to each
    log_included: Tensor  # [V], log of the probability that each is among those drawn
    num_samples: int  # drawn with replacement

    @classmethod
    def of(cls, counts: Tensor, num_samples: int) -> "UnigramSampler":
        """Takes the number of times `[V]` that each token occurs; at least one does."""
        probabilities = counts.double() / counts.sum()
        included = -torch.expm1(num_samples * torch.log1p(-probabilities))
        return cls(probabilities.cumsum(0), included.log().float(), num_samples)

    def draw(self) -> Tensor:
        """Returns the different ids that are drawn, `[S]`."""
        drawn = torch.rand(self.num_samples, dtype=torch.float64, device=self.cumulative.device)
        ids = torch.searchsorted(self.cumulative, drawn * self.cumulative[-1], right=True)
        drawn_once: Tensor = torch.unique(ids)
        return drawn_once


class LanguageModels(nn.Module):
    """A forward and a backward language model; `embedding` and `encoder` are named as in `BiLSTMClassifier`.

    `embedding_dropout` drops dimensions of the tokens' vectors for a whole chunk at once, `dropout` those of the hidden
    states that predict, and `recurrent_dropout` recurrent weights.
    """

    def __init__(
        self, vocab_size: int, *, embedding_dim: int, hidden_size: int, cell: str = "lstm", bidirectional: bool = True,
        embedding_dropout: float = 0.0, dropout: float = 0.0, recurrent_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding_dropout = embedding_dropout
        self.dropout = dropout
        self.embedding = nn.Embedding(vocab_size, embedding_dim, sparse=True)
        self.encoder = BidirectionalLSTM(
            embedding_dim, hidden_size, cell=cell, bidirectional=bidirectional, recurrent_dropout=recurrent_dropout
        )
        self.project = nn.ModuleList(nn.Linear(hidden_size, embedding_dim) for _ in range(self.encoder.num_directions))
        self.bias = nn.Embedding(vocab_size, 1, sparse=True)
        nn.init.zeros_(self.bias.weight)
        self.set_embedding(nn.init.normal_(self.embedding.weight.data, std=0.1))

    def set_embedding(self, matrix: Tensor) -> None:
        """Copies word vectors `[V, E]` into the embedding; the padding's row stays zero."""
        with torch.no_grad():
            self.embedding.weight.copy_(matrix)
            self.embedding.weight[PADDING_ID].zero_()

    def set_unigram_bias(self, counts: Tensor) -> None:
        """Makes the first guess of every prediction how often tokens occur: log probabilities of counts `[V]`."""
        with torch.no_grad():
            self.bias.weight.copy_((counts / counts.sum()).log().clamp_min(-20.0).unsqueeze(1))

    def sampled_loss(
        self, tokens: Sequence[Tensor], is_predicted: Tensor, states: Sequence[State | None], sampler: UnigramSampler,
        *, precision: torch.dtype = torch.float32,
    ) -> tuple[Tensor, list[State]]:  # fmt: skip
        """Returns the sum of the sampled softmax losses of a chunk, in nats, and the states after it.

        A score is lowered by the log of the probability that its token is in the sample, so that the scores that are
        best for the sample are best for the whole vocabulary. A token that is drawn and right as well counts once, as
        the right one.

        Args:
            tokens: per direction, in its order of reading, `[T + 1, B]` int64: each predicts the one after it.
            is_predicted: `[T, B]`, which of these predictions count, the same in both directions.
            states: per direction that of the chunk before, each part `[B, H]`; None at the beginning of the texts.
            sampler: what to draw from; every token that is predicted occurs in it.
            precision: of the encoder; everything else is in 32 bits.
        """
        drawn = sampler.draw()
        ids, places = torch.unique(torch.cat([*(t.flatten() for t in tokens), drawn]), return_inverse=True)  # [R]
        table = F.embedding(ids, self.embedding.weight, sparse=True)  # [R, E]: one gradient for all its uses
        bias = F.embedding(ids, self.bias.weight, sparse=True).squeeze(1) - sampler.log_included[ids]  # [R]
        *by_direction, sample = places.split([*(t.numel() for t in tokens), len(drawn)])
        column = torch.full_like(ids, -1).index_copy_(0, sample, torch.arange(len(sample), device=ids.device))
        sample_rows, sample_bias = F.embedding(sample, table), bias[sample]
        predicted = is_predicted.flatten().nonzero().squeeze(1)  # [N]
        losses, finals = [], []
        for direction, (rows, state) in enumerate(zip(by_direction, states, strict=True)):
            rows = rows.view_as(tokens[direction])  # [T + 1, B]
            embedded = self._dropped(F.embedding(rows[:-1], table), self.embedding_dropout)
            with torch.autocast(embedded.device.type, precision, enabled=precision != torch.float32):
                outputs, final = self.encoder.read(direction, embedded, state)
            rows_read = _rows(self._dropped(outputs.to(embedded.dtype), self.dropout), predicted)
            hidden = self.project[direction](rows_read)
            right = rows[1:].flatten()[predicted]  # [N]
            losses.append(
                _SampledLoss.apply(  # type: ignore[no-untyped-call]
                    hidden, F.embedding(right, table), bias[right], sample_rows, sample_bias, column[right]
                )
            )
            finals.append(tuple(part.detach() for part in final))
        return torch.stack(losses).sum(), finals

    @torch.no_grad()
    def log_likelihoods(self, tokens: Sequence[Tensor], is_predicted: Tensor) -> list[float]:
        """Returns per direction the sum of the log probabilities of all that is predicted, over the whole vocabulary.

        `tokens` are per direction `[T + 1, B]`, from the beginning of the texts, and `is_predicted` is `[T, B]`.
        """
        predicted = is_predicted.flatten().nonzero().squeeze(1)
        sums = []
        for direction, ids in enumerate(tokens):
            outputs, _ = self.encoder.read(direction, self.embedding(ids[:-1]))
            hidden = self.project[direction](_rows(outputs, predicted))
            right = ids[1:].flatten()[predicted]
            total = 0.0
            for some, targets in zip(torch.split(hidden, BLOCK["cpu"]), torch.split(right, BLOCK["cpu"]), strict=True):
                scores = torch.addmm(self.bias.weight.squeeze(1), some, self.embedding.weight.t())
                total -= float(F.cross_entropy(scores, targets, reduction="sum"))
            sums.append(total)
        return sums

    def _dropped(self, steps: Tensor, probability: float) -> Tensor:
        """Drops the same dimensions of `[T, B, E]` at all steps of a text."""
        return steps * F.dropout(torch.ones_like(steps[:1]), probability) if self.training and probability else steps


def _rows(outputs: Tensor, predicted: Tensor) -> Tensor:
    """Returns the rows `[N, H]` of `[T, B, H]` that predict."""
    rows = outputs.reshape(-1, outputs.shape[2])
    return rows if len(predicted) == len(rows) else F.embedding(predicted, rows)


class _SampledLoss(torch.autograd.Function):
    """Sum over N of `-log(exp(right) / (exp(right) + sum of exp(sampled)))`.

    The scores `[N, S]` are never whole in memory: each block of them gives its part of the loss and, at once, of the
    gradients.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        """Takes `[N, E]`, `[N, E]`, `[N]`, `[S, E]`, `[S]`, and for each N the place of its token in S, or -1."""
        hidden, right_rows, right_bias, sample_rows, sample_bias, column = inputs
        right = (hidden * right_rows).sum(1) + right_bias  # [N]
        losses, wrong = torch.empty_like(right), torch.empty_like(right)
        for_hidden = torch.empty_like(hidden)
        for_rows, for_bias = torch.zeros_like(sample_rows), torch.zeros_like(sample_bias)
        block = BLOCK[hidden.device.type]
        for start in range(0, len(hidden), block):
            part = slice(start, start + block)
            scores = torch.addmm(sample_bias, hidden[part], sample_rows.t())  # [BLOCK, S]
            places = column[part]
            drawn_too = (places >= 0).nonzero().squeeze(1)
            scores[drawn_too, places[drawn_too]] = -torch.inf
            top = torch.maximum(scores.amax(1), right[part])
            odds = scores.sub_(top.unsqueeze(1)).exp_()
            against = odds.sum(1)
            total = against + (right[part] - top).exp()
            losses[part] = total.log() + top - right[part]
            wrong[part] = against / total
            torch.mm(odds, sample_rows, out=for_hidden[part])
            for_hidden[part].div_(total.unsqueeze(1))
            for_rows.addmm_(odds.t(), hidden[part] / total.unsqueeze(1))
            for_bias.addmv_(odds.t(), 1 / total)
        for_hidden.addcmul_(wrong.unsqueeze(1), right_rows, value=-1)
        ctx.save_for_backward(for_hidden, -wrong.unsqueeze(1) * hidden, -wrong, for_rows, for_bias)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * saved for saved in ctx.saved_tensors), None
