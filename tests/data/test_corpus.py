"""Encoded splits: what is kept of a text, and what is counted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilstm_cls.data import corpus as module
from bilstm_cls.data.batches import collate, pad
from bilstm_cls.data.corpus import Corpus, encode, encode_whole, load_corpus
from bilstm_cls.data.tokenizer import UNKNOWN_ID, Tokenizer

TEXTS = ["a b c d e f", "b", "", "  ", "a zebra", "c c c c c"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a a a a a a", "b b b b b", "c c c c", "d d d", "e e", "f"], kind="whitespace")


TRUNCATIONS = {
    "head": lambda ids, size: ids[:size],
    "tail": lambda ids, size: ids[-size:],
    "both": lambda ids, size: ids[: (size + 1) // 2] + ids[len(ids) - size // 2 :],
}


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=6),
    st.none() | st.integers(1, 13), st.sampled_from(sorted(TRUNCATIONS)), st.data(),
)  # fmt: skip
def test_any_texts_are_read_as_each_would_be_alone(
    texts: list[list[int]], max_length: int | None, truncate: str, data: st.DataObject
) -> None:
    flat = np.array([i for text in texts for i in text], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    corpus = Corpus(flat, offsets, None, max_length, truncate)
    expected = [
        TRUNCATIONS[truncate](text, max_length) if max_length and len(text) > max_length else text or [UNKNOWN_ID]
        for text in texts
    ]
    assert corpus.lengths.tolist() == [len(ids) for ids in expected]
    assert corpus.num_tokens.tolist() == [len(text) for text in texts]
    chosen = data.draw(st.lists(st.sampled_from(range(len(texts))), min_size=1))
    token_ids, lengths = pad(corpus, np.array(chosen))
    assert [row[:n].tolist() for row, n in zip(token_ids, lengths, strict=True)] == [expected[i] for i in chosen]
    assert not any(row[n:].any() for row, n in zip(token_ids, lengths, strict=True))
    blocks = list(corpus.blocks(3))
    assert np.concatenate([ids for _, ids, _ in blocks]).tolist() == [i for ids in expected for i in ids]
    assert np.concatenate([indices for indices, _, _ in blocks]).tolist() == list(range(len(texts)))


def same(one: Corpus, other: Corpus) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in ("token_ids", "offsets", "label_ids"))


def test_files_hold_what_memory_holds(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode(TEXTS, tokenizer, max_length=None)
    monkeypatch.setattr(module, "CHUNK", 4)
    assert same(encode_whole(TEXTS, tokenizer, tmp_path), whole)
    assert same(load_corpus(tmp_path), whole)
    empty = encode_whole(["", " "], tokenizer, tmp_path)
    assert empty.statistics["unknown"] == 2
    assert pad(empty, np.array([1]))[0].tolist() == [[UNKNOWN_ID]]


def test_a_batch_is_padded_with_zeros_after_each_text(tokenizer: Tokenizer) -> None:
    batch = collate(encode(TEXTS, tokenizer, max_length=4, label_ids=np.arange(6)), np.array([4, 0, 1]))
    assert batch.token_ids.tolist() == [[2, 1, 0, 0], [2, 3, 6, 7], [3, 0, 0, 0]]
    assert batch.lengths.tolist() == [2, 4, 1]
    assert batch.label_ids is not None
    assert batch.label_ids.tolist() == [4, 0, 1]
    assert batch.num_tokens == 7
