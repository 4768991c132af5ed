from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bilstm_cls.model.classifier import FIRST, PRIME, SECOND, BiLSTMClassifier, bigram_ids
from bilstm_cls.model.pooling import POOLINGS

POOLING_NAMES = [*POOLINGS, "attention"]
SETTINGS = {"embedding_dim": 6, "hidden_size": 5, "max_length": 20}


def make_batch(num_texts: int = 64, longest: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest + 1, (num_texts,), generator=generator)
    lengths[0], lengths[1] = longest, 1
    token_ids = torch.randint(1, 50, (num_texts, longest), generator=generator)
    return token_ids * (torch.arange(longest) < lengths.unsqueeze(1)), lengths


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("pooling", [*POOLING_NAMES, "last+attention+max"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_and_company_do_not_change_probabilities(
    cell: str, num_layers: int, pooling: str, bidirectional: bool
) -> None:
    model = with_bigrams(cell=cell, num_layers=num_layers, pooling=pooling.split("+"), bidirectional=bidirectional)
    model.eval()
    token_ids, lengths = make_batch()
    with torch.no_grad():
        together = model(token_ids, lengths).double().softmax(1)
        padded = model(torch.nn.functional.pad(token_ids, (0, 13)), lengths).double().softmax(1)
        alone = torch.cat([model(t[None, :n], n[None]) for t, n in zip(token_ids, lengths, strict=True)])
    assert (padded - together).abs().max() < 1e-6
    assert (alone.double().softmax(1) - together).abs().max() < 1e-6


def with_bigrams(bigrams: int = 40, **options: Any) -> BiLSTMClassifier:
    """A model whose vectors of pairs are as long as those of tokens."""
    torch.manual_seed(0)
    model = BiLSTMClassifier(50, 3, bigrams=bigrams, **SETTINGS, **options)
    assert model.bigrams is not None
    torch.nn.init.normal_(model.bigrams.weight, std=0.5)
    model._clear_padding()
    return model


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("pooling", POOLING_NAMES)
@pytest.mark.parametrize("bigrams", [None, 40])
def test_every_parameter_gets_a_gradient(cell: str, pooling: str, bigrams: int | None) -> None:
    torch.manual_seed(0)
    model = BiLSTMClassifier(50, 3, cell=cell, num_layers=2, pooling=[pooling], bigrams=bigrams, **SETTINGS)
    token_ids, lengths = make_batch()
    torch.nn.functional.cross_entropy(model(token_ids, lengths), torch.arange(64) % 3).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.to_dense().abs().max() > 0, name


def row_of(first: int, second: int, num_rows: int) -> int:
    return (first * FIRST + second * SECOND) % PRIME % num_rows


IDS = st.integers(0, 2**31 - 1)


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=9), st.integers(1, 2**31 - 1))
def test_pairs_of_any_ids_have_their_rows(columns: list[tuple[int, int]], num_rows: int) -> None:
    token_ids = torch.tensor(columns)  # [T, 2]
    after = [*columns[1:], (0, 0)]
    expected = [
        [row_of(a, b, num_rows) for a, b in zip(*pair, strict=True)] for pair in zip(columns, after, strict=True)
    ]
    assert bigram_ids(token_ids, num_rows).tolist() == expected


@pytest.mark.parametrize("num_rows", [1000, 1024, 1021, 3000, 10_000])
def test_pairs_are_spread_over_all_rows_alike(num_rows: int) -> None:
    first, second = torch.cartesian_prod(torch.arange(1, 201), torch.arange(1, 201)).t()
    counts = bigram_ids(torch.stack([first, second]), num_rows)[0].bincount(minlength=num_rows).double()
    mean = 40_000 / num_rows
    assert ((counts - mean).square().sum() / mean / num_rows) < 1.2  # 1 where they are drawn at random


def test_a_pair_has_one_vector_wherever_it_stands_and_the_last_token_pairs_with_the_padding() -> None:
    model = with_bigrams(bigrams=1000).eval()
    assert model.bigrams is not None
    embedded = model.embed(torch.tensor([[5, 7, 9], [7, 9, 0], [9, 5, 7]]), torch.tensor([3, 2, 3]))  # [T, B, E]
    pairs = embedded - model.embedding(torch.tensor([[5, 7, 9], [7, 9, 0], [9, 5, 7]])).transpose(0, 1)
    table = model.bigrams.weight
    for step, text, pair in [(0, 0, (5, 7)), (1, 0, (7, 9)), (2, 0, (9, 0)), (1, 1, (9, 0)), (1, 2, (5, 7))]:
        torch.testing.assert_close(pairs[step, text], table[row_of(*pair, 1000)], msg=f"{pair}")
    assert embedded[2, 1].abs().max() == 0  # padding


def test_pairs_change_nothing_before_they_learn() -> None:
    plain, paired = BiLSTMClassifier(50, 3, **SETTINGS), BiLSTMClassifier(50, 3, bigrams=40, **SETTINGS)
    paired.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(plain.eval()(*make_batch()), paired.eval()(*make_batch()))


def test_a_dropped_word_pairs_as_the_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_bigrams(word_dropout=0.5).train()
    monkeypatch.setattr(torch, "rand", lambda shape, device: torch.tensor([[0.9], [0.1], [0.9]]))
    dropped = model.embed(torch.tensor([[5, 7, 9]]), torch.tensor([3]))
    monkeypatch.undo()
    assert torch.equal(dropped, model.eval().embed(torch.tensor([[5, 1, 9]]), torch.tensor([3])))


def test_dropout_acts_while_training_and_never_afterwards() -> None:
    model = BiLSTMClassifier(50, 2, dropout=0.5, embedding_dropout=0.5, word_dropout=0.5, **SETTINGS)
    batch = make_batch()
    assert not torch.equal(model(*batch), model(*batch))
    model.eval()
    assert torch.equal(model(*batch), model(*batch))


def test_embedding_dropout_drops_a_dimension_for_a_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BiLSTMClassifier(50, 2, embedding_dropout=0.5, **SETTINGS)
    torch.nn.init.ones_(model.embedding.weight)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        model.encoder, "encode", lambda steps, lengths, aligned: seen.append(steps) or [steps[..., :5], steps[..., :5]]
    )
    model(torch.ones(8, 9, dtype=torch.int64), torch.full((8,), 9))
    assert torch.equal(seen[0], seen[0][:1].expand_as(seen[0]))
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("is_frozen", [True, False])
def test_gradients_hold_only_the_rows_of_the_batch_and_none_of_a_frozen_embedding(is_frozen: bool) -> None:
    model = with_bigrams(bigrams=1000, freeze_embedding=is_frozen)
    model(torch.tensor([[5, 7, 9], [5, 0, 0]]), torch.tensor([3, 1])).sum().backward()
    assert model.bigrams is not None
    rows = sorted(row_of(*pair, 1000) for pair in [(5, 7), (7, 9), (9, 0), (5, 0)])
    assert model.bigrams.weight.grad.coalesce().indices().tolist() == [rows]
    if is_frozen:
        assert model.embedding.weight.grad is None
    else:
        assert model.embedding.weight.grad.coalesce().indices().tolist() == [[5, 7, 9]]


def test_padding_rows_are_zero_after_loading_anything() -> None:
    model = with_bigrams()
    assert model.bigrams is not None
    ones = {"embedding.weight": torch.ones(50, 6), "bigrams.weight": torch.ones(40, 6)}
    model.load_state_dict(model.state_dict() | ones)
    assert model.bigrams.weight.sum(1).tolist() == [0, *[6] * 39]
    assert model.embedding.weight[0].abs().max() == 0
    model.set_embedding(torch.ones(50, 6))
    assert model.embedding.weight[0].abs().max() == 0


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("pooling", [["mean", "max"], ["last", "attention"]])
def test_directions_answer_by_their_own_units_and_together_as_the_whole(
    pooling: list[str], bidirectional: bool
) -> None:
    torch.manual_seed(0)
    model = BiLSTMClassifier(50, 3, pooling=pooling, bidirectional=bidirectional, **SETTINGS).eval()
    token_ids, lengths = make_batch()
    embedded = model.embed(token_ids, lengths)
    parts = model.classify_by_direction(embedded, lengths)
    assert len(parts) == 1 + bidirectional
    assert torch.allclose(parts.mean(0), model(token_ids, lengths), atol=1e-6)
    with torch.no_grad():  # the last direction's units, wherever they are joined
        model.project.weight.view(3, 2, -1, 5)[:, :, -1] = 0
    changed = model.classify_by_direction(embedded, lengths)
    assert torch.equal(changed[:-1], parts[:-1])
    assert torch.allclose(changed[-1], model.project.bias.expand(64, 3))
