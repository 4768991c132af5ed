"""Tokens and vocabulary: every kind of splitting, and ids that any text gets."""

import collections
import re
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from bilstm_cls.data import tokenizer as tokenizer_module
from bilstm_cls.data.tokenizer import (
    PADDING_ID,
    TOKENIZERS,
    UNKNOWN_ID,
    Tokenizer,
)
from bilstm_cls.errors import CheckpointError

REVIEW = "Don't miss it!!! It's 3.5/10...<br /><br />\"Great\" 中文 text; so: café"


def tokens_of(text: str, kind: str, *, lowercase: bool = True) -> list[str]:
    """Splits a text by a tokenizer that knows all of its tokens."""
    tokenizer = Tokenizer.train([text], kind=kind, lowercase=lowercase)
    return [tokenizer.tokens[i] for i in tokenizer.encode_batch([text])[0]]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("words", REVIEW, "don't miss it !!! it's 3.5 / 10 ... \" great \" 中文 text ; so : café"),
        ("whitespace", REVIEW, "don't miss it!!! it's 3.5/10...<br /><br />\"great\" 中文 text; so: café"),
        ("cjk", REVIEW, "don't miss it !!! it's 3.5 / 10 ... \" great \" 中 文 text ; so : café"),
        (
            "characters",
            "Don't\tmiss<br/>it!! 中かな e\u0301 👍🏽\u3000\n3.5",
            " ".join("don'tmissit!!中かなe\u0301👍🏽3.5"),
        ),
    ],
)
def test_a_text_is_split_as_the_kind_says(kind: str, text: str, expected: str) -> None:
    assert tokens_of(text, kind) == expected.split()


def basic_english(text: str) -> list[str]:
    """The documented rules of torchtext's tokenizer of that name, one replacement after the other."""
    text = text.lower().replace('"', "")
    for mark in "'.":
        text = text.replace(mark, f" {mark} ")
    text = text.replace("<br />", " ")
    for mark in ",()!?":
        text = text.replace(mark, f" {mark} ")
    return re.sub("[;:]", " ", text).split()


def has_odd_case(text: str) -> bool:
    """Sigma and marks between letters, where Unicode versions of two libraries may lower a letter differently."""
    return "Σ" in text or any(unicodedata.category(c) in ("Cn", "Co", "Cs") for c in text)


ODD = st.sampled_from("aB '\".,;:!?()<br/>\t\n\x1c\x85\xa0\u2028ÉİςCJ中")


@given(st.text(alphabet=st.one_of(ODD, st.characters())))
@example('<br "/>; <BR /> a<br />b')
@example("ΟΔΟΣ Σ ΑΣ.")
def test_basic_english_follows_its_rules_on_any_text(text: str) -> None:
    if has_odd_case(text) and text != "ΟΔΟΣ Σ ΑΣ.":
        return
    assert tokens_of(text, "basic_english") == basic_english(text)


def test_a_vocabulary_takes_more_words_while_there_is_room() -> None:
    given = Tokenizer.train(["a film a"], kind="words")
    words = ["the", "Film", "THE", "two words", "n't!", "plot", "end"]
    assert given.with_words(words, 6).tokens == ["<pad>", "<unk>", "a", "film", "the", "plot"]
    assert len(given.with_words(words, None)) == 7


@given(st.lists(st.text(alphabet="abcxyz é中", max_size=20), min_size=1), st.none() | st.integers(3, 9))
def test_a_vocabulary_holds_the_most_frequent_tokens_and_of_equal_ones_the_first(
    texts: list[str], size: int | None
) -> None:
    counts = collections.Counter(token for text in texts for token in text.split())
    expected = sorted((token for token in counts if counts[token] >= 2), key=lambda token: (-counts[token], token))
    found = Tokenizer.train(texts, kind="whitespace", min_freq=2, max_vocab_size=size).tokens
    assert found == ["<pad>", "<unk>", *expected][:size]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", ["<pad>", "<pad> <unk> a", "a <pad>b", "\ud800 a", "", "\0", "😀👍🏽", "a" * 5000])
def test_no_text_gives_the_padding_or_an_id_out_of_range(kind: str, text: str) -> None:
    tokenizer = Tokenizer.train(["a b <pad> <unk>", "a c"], kind=kind)
    ids = tokenizer.encode_batch([text])[0]
    assert all(PADDING_ID < i < len(tokenizer) for i in ids)
    assert tokenizer.offsets(text)[0] == ids


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("size", [1, 40])
def test_a_text_that_is_cut_into_pieces_has_the_ids_of_the_whole(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{REVIEW} and so on ", "short", "", f"{REVIEW} and  <br /> x y\nz " * 30, "a b"]
    tokenizer = Tokenizer.train(texts, kind=kind)
    whole = tokenizer.encode_batch(texts)
    monkeypatch.setattr(tokenizer_module, "MAX_PIECE", 60)
    monkeypatch.setattr(tokenizer_module, "MAX_CHARACTERS", size)
    assert tokenizer.encode_batch(texts) == whole


def test_bpe_knows_every_text_and_learns_what_is_frequent() -> None:
    tokenizer = Tokenizer.train(["the theatre there"] * 5, kind="bpe", max_vocab_size=300)
    assert UNKNOWN_ID not in tokenizer.encode_batch(["zebra 中文 😀"])[0]
    assert "Ġthe" in tokenizer.tokens
    assert len(tokenizer) <= 300


@pytest.mark.parametrize("kind", ["words", "characters", "cjk", "whitespace"])
@pytest.mark.parametrize("text", [REVIEW, "2010年 \ud800南京市\x1f长江大桥<br />A股!!!don't 中国\x1f\x1f人"])
def test_offsets_point_at_the_tokens_of_the_original_text(kind: str, text: str) -> None:
    tokenizer = Tokenizer.train([text], kind=kind)
    ids, offsets = tokenizer.offsets(text)
    found = [text[start:stop].lower().replace("\ud800", "?") for start, stop in offsets]
    assert found == [tokenizer.tokens[i] for i in ids]


@pytest.mark.parametrize(
    ("normalize", "one", "other", "is_same"),
    [
        ("nfc", "cafe\u0301", "caf\u00e9", True), ("none", "cafe\u0301", "caf\u00e9", False),
        ("nfkc", "\uff26\uff55\uff4c\uff4c", "full", True), ("nfc", "\uff26\uff55\uff4c\uff4c", "full", False),
    ],
)  # fmt: skip
def test_texts_are_brought_to_a_unicode_form_by_whatever_reads_the_file(
    normalize: str, one: str, other: str, is_same: bool
) -> None:
    tokenizer = Tokenizer.train([f"a {one} b {other}"] * 3, normalize=normalize)
    first, second = tokenizer.encode_batch([one, other])
    assert (first == second) == is_same
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert [library.encode(text).ids for text in (one, other)] == [first, second]


HTML = "<p class='x'>Rock &amp; roll</p><!-- no --><script>if (a < b) x()</script>1 < 2 &quot;ok&quot;<br/>e\u0301nd"


def test_html_is_left_out_and_offsets_are_those_of_the_given_text() -> None:
    tokenizer = Tokenizer.train([HTML], kind="words", strip_html=True, normalize="nfc")
    ids, offsets = tokenizer.offsets(HTML)
    tokens = [tokenizer.tokens[i] for i in ids]
    assert tokens == ["rock", "&", "roll", "1", "<", "2", '"', "ok", '"', "\u00e9nd"]
    found = [HTML[start:stop] for start, stop in offsets]
    assert [found[i] for i in (0, 2, 3, 5, 7, 9)] == ["Rock", "roll", "1", "2", "ok", "e\u0301nd"]


@pytest.mark.parametrize("content", [None, "", "{}", "[1", '{"version": "1.0", "model": {"type": "Evil"}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(path)
