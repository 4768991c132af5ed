"""Tokens that decide alone: counted once a text, and only where it is no chance."""

import numpy as np
import pytest

from bilstm_cls.data.corpus import Corpus
from bilstm_cls.evaluation.deciding_tokens import deciding_tokens

TOKENS = ["<pad>", "<unk>", "common", "leak", "rare", "mixed"]


def corpus_of(texts: list[list[int]], label_ids: list[int]) -> Corpus:
    lengths = np.array([len(text) for text in texts])
    flat = np.array([token for text in texts for token in text], dtype=np.int32)
    return Corpus(flat, np.concatenate([[0], np.cumsum(lengths)]), np.array(label_ids))


@pytest.mark.parametrize("number", [200, 5000])  # one chunk, and several
def test_a_token_of_one_label_is_found_with_its_texts(number: int) -> None:
    label_ids = [i % 2 for i in range(number)]
    texts = [[2, 1] + [3, 3] * (label and i >= 20) + [5] * (i % 3 > 0) for i, label in enumerate(label_ids)]
    texts[21] = [2, 1, 4, 4]
    (found,) = deciding_tokens(corpus_of(texts, label_ids), TOKENS, 2)
    assert (found.token, found.label_id, found.first) == ("leak", 1, 23)
    assert found.texts == found.with_label == sum(3 in text for text in texts)


def test_an_exception_is_counted() -> None:
    label_ids = [i % 2 for i in range(400)]
    texts = [[2, 3] if label else [2] for label in label_ids]
    texts[0] = [2, 3]
    (found,) = deciding_tokens(corpus_of(texts, label_ids), TOKENS, 2)
    assert (found.with_label, found.texts, found.first) == (200, 201, 0)


def test_a_few_texts_are_no_evidence() -> None:
    label_ids = [i % 2 for i in range(400)]
    texts = [[2, 4] if i in (1, 3, 5, 7, 9) else [2] for i in range(400)]
    assert deciding_tokens(corpus_of(texts, label_ids), TOKENS, 2) == []


def test_where_one_label_is_nearly_everything_its_tokens_decide_nothing() -> None:
    label_ids = [int(i % 25 > 0) for i in range(1000)]
    texts = [[2, 3] if label else [2, 3] if i % 100 == 0 else [2] for i, label in enumerate(label_ids)]
    assert deciding_tokens(corpus_of(texts, label_ids), TOKENS, 2) == []
