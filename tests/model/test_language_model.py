"""The language models: the sampled loss beside the whole one, the carried state, and what learns."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bilstm_cls.model import language_model
from bilstm_cls.model.language_model import LanguageModels, UnigramSampler

VOCAB_SIZE, STEPS, TEXTS = 11, 6, 4


def models(*, seed: int = 0, **options: object) -> LanguageModels:
    torch.manual_seed(seed)
    return LanguageModels(VOCAB_SIZE, **{"embedding_dim": 5, "hidden_size": 3, **options})  # type: ignore[arg-type]


def tokens(model: LanguageModels, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (STEPS + 1, TEXTS)
    return [torch.randint(1, VOCAB_SIZE, size, generator=generator) for _ in model.project]


def everything_predicted() -> Tensor:
    return torch.ones(STEPS, TEXTS, dtype=torch.bool)


class EveryToken(UnigramSampler):
    """A sample that is the whole vocabulary, for certain."""

    def draw(self) -> Tensor:
        return torch.arange(VOCAB_SIZE)


ALL = EveryToken(torch.ones(VOCAB_SIZE).cumsum(0), torch.zeros(VOCAB_SIZE), VOCAB_SIZE)


def whole_loss(model: LanguageModels, own: list[Tensor], is_predicted: Tensor) -> Tensor:
    total = torch.zeros(())
    for direction, ids in enumerate(own):
        outputs, _ = model.encoder.read(direction, model.embedding(ids[:-1]))
        scores = model.project[direction](outputs[is_predicted]) @ model.embedding.weight.T + model.bias.weight[:, 0]
        total = total + F.cross_entropy(scores, ids[1:][is_predicted], reduction="sum")
    return total


def gradients(model: LanguageModels, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_sample_of_every_token_gives_the_whole_softmax_and_its_gradients(
    cell: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "BLOCK", {"cpu": 5})
    model = models(cell=cell, bidirectional=bidirectional)
    torch.nn.init.normal_(model.bias.weight)
    own, is_predicted = tokens(model), torch.rand(STEPS, TEXTS) < 0.7
    sampled, _ = model.sampled_loss(own, is_predicted, [None] * len(own), ALL)
    whole = whole_loss(model, own, is_predicted)
    torch.testing.assert_close(sampled, whole)
    torch.testing.assert_close(gradients(model, sampled), gradients(model, whole))
    assert -sum(model.log_likelihoods(own, is_predicted)) == pytest.approx(whole.item(), rel=1e-5)


def test_scores_that_are_right_for_the_vocabulary_are_best_for_any_sample() -> None:
    """Scores that are the log of the tokens' shares have no gradient on average, however small the sample."""
    torch.manual_seed(0)
    counts = torch.tensor([0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55])
    shares = counts / counts.sum()
    model = models(bidirectional=False)
    torch.nn.init.zeros_(model.embedding.weight)
    model.bias.weight.data = shares.log().clamp_min(-20).unsqueeze(1)
    own = [torch.multinomial(shares, 21 * 50, replacement=True).view(21, 50)]
    is_predicted = torch.ones(20, 50, dtype=torch.bool)
    noise, total = UnigramSampler.of(counts, 3), torch.zeros(VOCAB_SIZE)
    for _ in range(150):
        loss, _ = model.sampled_loss(own, is_predicted, [None], noise)
        total += gradients(model, loss / is_predicted.sum())["bias.weight"][:, 0] / 150
    assert total.tolist() == pytest.approx([0.0] * VOCAB_SIZE, abs=0.05)


def test_tokens_are_drawn_with_the_probability_that_scores_are_lowered_by() -> None:
    torch.manual_seed(0)
    noise = UnigramSampler.of(torch.tensor([0, 0, 1, 3, 0, 6, 0]), 2)
    times = sum(F.one_hot(noise.draw(), 7).sum(0) for _ in range(4000))
    assert (times / 4000).tolist() == pytest.approx(noise.log_included.exp().tolist(), abs=0.03)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_chunks_with_a_carried_state_are_one_long_read(cell: str) -> None:
    model = models(cell=cell)
    own, is_predicted = tokens(model), everything_predicted()
    whole, last = model.sampled_loss(own, is_predicted, [None, None], ALL)
    first, states = model.sampled_loss([ids[:3] for ids in own], is_predicted[:2], [None, None], ALL)
    second, end = model.sampled_loss([ids[2:] for ids in own], is_predicted[2:], states, ALL)
    torch.testing.assert_close(first + second, whole)
    torch.testing.assert_close(end, last)
    assert not any(part.requires_grad for state in states for part in state)


def test_every_weight_learns_and_the_padding_stays_zero() -> None:
    model = models(dropout=0.3, embedding_dropout=0.3, recurrent_dropout=0.2).train()
    noise = UnigramSampler.of((torch.arange(VOCAB_SIZE) > 0).long(), 20)
    loss, _ = model.sampled_loss(tokens(model), everything_predicted(), [None, None], noise)
    found = gradients(model, loss)
    assert {name for name, gradient in found.items() if gradient.any()} == dict(model.named_parameters()).keys()
    assert not model.embedding.weight[0].any()
    assert not found["embedding.weight"][0].any()
    own = tokens(model), everything_predicted()
    plain, _ = model.eval().sampled_loss(*own, [None, None], ALL)
    assert plain.item() == pytest.approx(whole_loss(model, *own).item(), rel=1e-5)
