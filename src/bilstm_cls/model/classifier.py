"""The whole network: embed, drop, encode, pool, project.

Shapes: B texts, T tokens (padded), E embedding_dim, D pooled size, C labels, V vocabulary.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilstm_cls.model.pooling import Pooling
from bilstm_cls.model.recurrent import BidirectionalLSTM

PADDING_ID = 0
UNKNOWN_ID = 1

FIRST, SECOND, PRIME = 1_540_483_477, 668_265_263, 2**31 - 1  # factors of a pair's tokens, below the prime


class BiLSTMClassifier(nn.Module):
    """Classifies texts of token ids by a bidirectional recurrent encoder and a pooling over time.

    A text's logits do not depend on the other texts of its batch or on how much padding follows it.

    Args:
        vocab_size: V, with `<pad>` at 0 and `<unk>` at 1.
        num_labels: C.
        pooling: one or several of `mean`, `reduce_mean`, `max`, `last`, `attention`, joined in this order.
        max_length: what `reduce_mean` divides by.
        bigrams: rows of a table whose vectors, one for each pair of neighbouring tokens, are added to the tokens' own
            (Joulin et al. 2017 add them to a bag of words); None for no table.
        dropout: on the pooled vector.
        embedding_dropout: dimensions dropped for a whole text at once (Gal & Ghahramani 2016).
        word_dropout: tokens read as `<unk>` while training.
        freeze_embedding: keep the embedding of tokens as it is loaded.

    The others are E and those of `BidirectionalLSTM`.
    """

    def __init__(
        self, vocab_size: int, num_labels: int, *,
        embedding_dim: int = 100, hidden_size: int = 128, num_layers: int = 1,
        cell: str = "lstm", bidirectional: bool = True, pooling: Sequence[str] = ("mean",),
        max_length: int = 400, bigrams: int | None = None,
        dropout: float = 0.0, embedding_dropout: float = 0.0, word_dropout: float = 0.0,
        layer_dropout: float = 0.0, recurrent_dropout: float = 0.0, freeze_embedding: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dropout, self.embedding_dropout, self.word_dropout = dropout, embedding_dropout, word_dropout
        self.embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=PADDING_ID, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.embedding.weight.requires_grad_(not freeze_embedding)
        self.bigrams = None
        if bigrams is not None:
            self.bigrams = nn.Embedding(bigrams, embedding_dim, padding_idx=PADDING_ID, sparse=True)
            nn.init.zeros_(self.bigrams.weight)  # so that a pair that was never seen changes nothing
        self.encoder = BidirectionalLSTM(
            embedding_dim, hidden_size, num_layers=num_layers, cell=cell, bidirectional=bidirectional,
            layer_dropout=layer_dropout, recurrent_dropout=recurrent_dropout,
        )  # fmt: skip
        self.pooling = Pooling(pooling, hidden_size * self.encoder.num_directions, max_length)
        self.project = nn.Linear(self.pooling.output_size, num_labels)
        self._clear_padding()
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda model, _: model._clear_padding()
        )

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns logits `[B, C]` in 32 bits of int64 ids `[B, T]`, padded with 0, and lengths `[B]` on the CPU."""
        return self.classify(self.embed(token_ids, lengths), lengths)

    def embed(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns `[T, B, E]`, time-major and no longer than the longest text, with what is dropped while training."""
        token_ids = token_ids[:, : int(lengths.max())].t()  # [T, B]
        if self.training and self.word_dropout:
            is_dropped = torch.rand(token_ids.shape, device=token_ids.device) < self.word_dropout
            token_ids = token_ids.masked_fill(is_dropped & (token_ids != PADDING_ID), UNKNOWN_ID)
        embedded = self.embedding(token_ids)  # [T, B, E]
        if self.bigrams is not None:
            embedded = embedded + self.bigrams(bigram_ids(token_ids, self.bigrams.num_embeddings))
        if self.training and self.embedding_dropout:
            embedded = embedded * F.dropout(torch.ones_like(embedded[:1]), self.embedding_dropout)
        return cast("Tensor", embedded)

    def classify(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Returns logits `[B, C]` in 32 bits of what `embed` returned."""
        logits: Tensor = self.project(self._pooled(embedded, lengths))
        return logits.float()

    def classify_by_direction(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Returns the logits of each direction alone, `[directions, B, C]`; their mean is what `classify` returns."""
        number = self.encoder.num_directions
        parts = (-1, len(self.pooling.names), number, self.encoder.hidden_size)  # as `Pooling` joins them
        pooled, weight = self._pooled(embedded, lengths).view(parts), self.project.weight.view(parts)
        return number * torch.einsum("bpdh,cpdh->dbc", pooled, weight).float() + self.project.bias

    def _pooled(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        outputs = self.encoder.encode(embedded, lengths, aligned=self.pooling.needs_alignment)
        return F.dropout(self.pooling(outputs, lengths), self.dropout, self.training)  # [B, D]

    def set_embedding(self, matrix: Tensor) -> None:
        """Copies word vectors `[V, E]` into the embedding; the padding's row stays zero."""
        with torch.no_grad():
            self.embedding.weight.copy_(matrix)
        self._clear_padding()

    def _clear_padding(self) -> None:
        with torch.no_grad():
            self.embedding.weight[PADDING_ID].zero_()
            if self.bigrams is not None:
                self.bigrams.weight[PADDING_ID].zero_()


def bigram_ids(token_ids: Tensor, num_rows: int) -> Tensor:
    """Returns for each token of ids `[T, B]` below 2**31 the row of the pair that it makes with the token after it.

    The last token of a text makes a pair with the padding, and the padding has row 0. Pairs are spread over the rows by
    one of Carter & Wegman's (1979) universal hash functions, so few of them share one; no product leaves 64 bits.
    """
    following = torch.cat([token_ids[1:], torch.zeros_like(token_ids[:1])])
    return (token_ids * FIRST + following * SECOND) % PRIME % num_rows
