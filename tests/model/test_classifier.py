import pytest
import torch
from torch import Tensor

from bilstm_cls.model.classifier import BiLSTMClassifier
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
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("pooling", [*POOLING_NAMES, "last+attention+max"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_and_company_do_not_change_probabilities(
    cell: str, num_layers: int, pooling: str, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    model = BiLSTMClassifier(
        50, 3, cell=cell, num_layers=num_layers, pooling=pooling.split("+"), bidirectional=bidirectional, **SETTINGS
    ).eval()
    token_ids, lengths = make_batch()
    with torch.no_grad():
        together = model(token_ids, lengths).double().softmax(1)
        padded = model(torch.nn.functional.pad(token_ids, (0, 13)), lengths).double().softmax(1)
        alone = torch.cat([model(t[None, :n], n[None]) for t, n in zip(token_ids, lengths, strict=True)])
    assert (padded - together).abs().max() < 1e-6
    assert (alone.double().softmax(1) - together).abs().max() < 1e-6


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("pooling", POOLING_NAMES)
def test_every_parameter_gets_a_gradient(cell: str, pooling: str) -> None:
    torch.manual_seed(0)
    model = BiLSTMClassifier(50, 3, cell=cell, num_layers=2, pooling=[pooling], **SETTINGS)
    token_ids, lengths = make_batch()
    torch.nn.functional.cross_entropy(model(token_ids, lengths), torch.arange(64) % 3).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.to_dense().abs().max() > 0, name


def test_embedding_gradient_holds_only_the_rows_of_the_batch() -> None:
    model = BiLSTMClassifier(50, 2, **SETTINGS)
    model(torch.tensor([[5, 7, 0]]), torch.tensor([2])).sum().backward()
    assert model.embedding.weight.grad.coalesce().indices().tolist() == [[5, 7]]


def test_mean_divides_by_the_texts_own_length_and_reduce_mean_by_the_padded_one() -> None:
    outputs = [torch.arange(12.0).view(4, 3, 1)]
    lengths = torch.tensor([4, 2, 1])
    assert POOLINGS["mean"](outputs[0], lengths, 8).flatten().tolist() == [4.5, 2.5, 2.0]
    assert POOLINGS["reduce_mean"](outputs[0], lengths, 8).flatten().tolist() == [2.25, 0.625, 0.25]


def test_maximum_ignores_padding_above_it() -> None:
    outputs = -torch.ones(4, 2, 3)
    outputs[2:, 1] = 9.0
    assert POOLINGS["max"](outputs, torch.tensor([4, 2]), 4).max() == -1


def test_padding_row_is_zero_after_loading_anything() -> None:
    model = BiLSTMClassifier(50, 2, **SETTINGS)
    state = model.state_dict()
    state["embedding.weight"] = torch.ones(50, 6)
    model.load_state_dict(state)
    assert model.embedding.weight[0].abs().max() == 0
    model.set_embedding(torch.ones(50, 6))
    assert model.embedding.weight[0].abs().max() == 0


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


def test_frozen_embedding_has_no_gradient() -> None:
    model = BiLSTMClassifier(50, 2, freeze_embedding=True, **SETTINGS)
    model(*make_batch()).sum().backward()
    assert model.embedding.weight.grad is None
