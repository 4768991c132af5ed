"""Texts come in many containers; what is no text is named with its place."""

from typing import Any

import numpy as np
import pytest

from bilstm_cls.data.types import checked_texts


@pytest.mark.parametrize(
    "texts",
    [["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], dtype=object), iter(["a", "b"])],
    ids=["list", "tuple", "array", "object array", "generator"],
)
def test_texts_may_come_in_any_ordered_container(texts: Any) -> None:
    found = list(checked_texts(texts))
    assert found == ["a", "b"]
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a string", "texts is 'a string', a str"),
        (b"bytes", "texts is b'bytes', a bytes"),
        (None, "texts is null, a NoneType"),
        ({"a": 1}, "texts is .*, a dict"),
        (np.array([["a"], ["b"]]), "texts is .*, a ndarray"),
        (["a", "b", "c", float("nan")], r"texts\[3\] is nan, a float"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        list(checked_texts(texts))


def test_a_series_holds_texts_and_a_table_does_not() -> None:
    pandas = pytest.importorskip("pandas")
    assert list(checked_texts(pandas.Series(["a", "b"]))) == ["a", "b"]
    with pytest.raises(TypeError, match=r"texts is .*, a DataFrame"):
        checked_texts(pandas.DataFrame({"text": ["a"], "other": ["b"]}))
