"""Batches: every text once an epoch, and of language models every prediction once, in both directions."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bilstm_cls.data.batches import LanguageModelTexts, evaluation_batches, number_of_chunks, training_batches
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.inspection import padding_share

lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=300).map(np.array)


@given(lengths_of, st.integers(1, 32), st.one_of(st.none(), st.integers(60, 500)), st.integers(0, 5))
def test_every_text_is_in_exactly_one_batch_of_an_epoch(
    lengths: np.ndarray, size: int, tokens: int | None, epoch: int
) -> None:
    batches = training_batches(lengths, batch_size=size, batch_tokens=tokens, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    if tokens is None:
        assert max(map(len, batches)) <= size
    else:
        assert all(len(batch) * lengths[batch].max() <= tokens for batch in batches)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 1000)

    def order(seed: int, epoch: int) -> list[int]:
        batches = training_batches(lengths, batch_size=16, batch_tokens=None, seed=seed, epoch=epoch)
        return [int(i) for i in np.concatenate(batches)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) not in (order(1, 1), order(2, 0))


def test_texts_of_a_batch_are_about_equally_long() -> None:
    lengths = np.random.default_rng(0).integers(10, 400, 10_000)
    batches = training_batches(lengths, batch_size=64, batch_tokens=None, seed=0, epoch=0)
    assert padding_share(batches, lengths) < 0.04


@given(lengths_of, st.integers(1, 500))
def test_evaluation_reads_every_text_once_within_its_budget(lengths: np.ndarray, budget: int) -> None:
    batches = evaluation_batches(lengths, max_tokens=budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)


TEXTS = st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=30), min_size=1, max_size=6)


def corpus(*texts: list[int]) -> Corpus:
    lengths = np.array([len(text) for text in texts])
    return Corpus(np.concatenate(texts).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12))
def test_every_token_but_the_first_is_predicted_once_from_the_one_before(texts: list[list[int]], bptt: int) -> None:
    rows = sorted(texts, key=len)
    chunks = list(LanguageModelTexts([corpus(*rows)]).chunks(np.arange(len(rows)), bptt))
    read: dict[str, list[list[tuple[int, int]]]] = {name: [[] for _ in rows] for name in ("forward", "backward")}
    first = 0
    for chunk in chunks:
        first += chunk.num_ended
        for name, pairs in read.items():
            tokens = getattr(chunk, name)
            for step, row in np.argwhere(chunk.is_predicted).tolist():
                pairs[first + row].append((int(tokens[step, row]), int(tokens[step + 1, row])))
    assert read["forward"] == [list(itertools.pairwise(row)) for row in rows]
    assert read["backward"] == [list(itertools.pairwise(row[::-1])) for row in rows]
    assert len(chunks) <= number_of_chunks(len(rows[-1]), bptt)
    assert all(len(chunk.is_predicted) <= bptt and chunk.is_predicted[0].all() for chunk in chunks)


def test_every_text_is_in_one_batch_and_batches_are_about_the_same_size() -> None:
    lengths = np.random.default_rng(0).integers(2, 300, 3000)
    chosen = np.flatnonzero(lengths % 7)
    texts = LanguageModelTexts([corpus(*([1] * length for length in lengths))])
    batches = texts.batches(chosen, batch_size=8, bptt=50, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == chosen.tolist()
    assert all((np.diff(lengths[batch]) >= 0).all() for batch in batches)
    sizes = [len(batch) * min(50, int(lengths[batch].max())) for batch in batches]
    assert max(sizes) <= 400
    assert np.mean(sizes) > 380


def test_texts_of_several_corpora_have_one_numbering() -> None:
    passages = LanguageModelTexts([corpus([1, 2], [3]), corpus([4, 5, 4])])
    assert passages.lengths.tolist() == [2, 1, 3]
    assert [text.tolist() for text in passages.read(np.array([2, 0, 1]))] == [[4, 5, 4], [1, 2], [3]]
    assert passages.counts(7).tolist() == [0, 1, 1, 1, 2, 1, 0]
