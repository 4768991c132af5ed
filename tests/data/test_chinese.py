"""Marks between Chinese words: nothing else of a text changes, and every place is found again."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilstm_cls.data.chinese import CUT, places_without_cuts, with_cuts
from bilstm_cls.errors import ConfigError

ANY = st.text(
    st.one_of(st.sampled_from("中国人民A股々〇㐀𠀀カな한 ab'3.5%<br/>\x1f\n"), st.characters(exclude_categories=["Cs"]))
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("南京市长江大桥", ["南京市", "长江大桥"]),
        ("60年铁树开花(组图)", ["60", "年", "铁树开花", "(", "组图", ")"]),
        ("A股首秀don't 3.5%涨", ["A股", "首秀", "don't 3.5%", "涨"]),
        ("上海<br />大学", ["上海", "<br />", "大学"]),
        ("one (two) 3.5", ["one (two) 3.5"]),
        ("カタカナ", ["カタカナ"]),
        ("", [""]),
    ],
)
def test_cuts_are_jiebas_and_border_on_han_characters(text: str, words: list[str]) -> None:
    assert with_cuts(text).split(CUT) == words


@given(ANY)
def test_nothing_but_marks_is_put_in(text: str) -> None:
    assert with_cuts(text).replace(CUT, "") == text.replace(CUT, " ")


@given(ANY)
def test_every_character_is_found_at_its_place(text: str) -> None:
    marked = with_cuts(text)
    places = places_without_cuts(marked)
    assert places[-1] == len(text)
    original = text.replace(CUT, " ")
    assert all(c == CUT or original[place] == c for c, place in zip(marked, places, strict=False))


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ConfigError, match=r"'chinese_words' needs rjieba; run: pip install 'bilstm-cls\[chinese\]'"):
        with_cuts("中国")
