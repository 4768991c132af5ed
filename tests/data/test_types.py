"""Texts come in many containers; what is no text is named with its place."""

from typing import Any

import numpy as np
import pytest

from bilstm_cls.data.types import checked_texts

pandas = pytest.importorskip("pandas")
ARRAY = np.array(["a", "b"])


@pytest.mark.parametrize("texts", [("a", "b"), ARRAY, ARRAY.astype(object), pandas.Series(["a", "b"]), iter("ab")])
def test_texts_may_come_in_any_ordered_container(texts: Any) -> None:
    found = list(checked_texts(texts))
    assert found == ["a", "b"]
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a string", "texts is 'a string', a str"),
        (None, "texts is null, a NoneType"),
        ({"a": 1}, "texts is .*, a dict"),
        (np.array([["a"], ["b"]]), "texts is .*, a ndarray"),
        (pandas.DataFrame({"text": ["a"], "other": ["b"]}), "texts is .*, a DataFrame"),
        (["a", "b", "c", float("nan")], r"texts\[3\] is nan, a float"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        list(checked_texts(texts))
