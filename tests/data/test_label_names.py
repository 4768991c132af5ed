"""Names of numbered labels: right names, and a place for everything that has none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bilstm_cls.config_file import load_config
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.types import Dataset
from bilstm_cls.errors import DataError

Load = Callable[..., Dataset]

ROWS = [("0", "stock"), ("2", "star"), ("1", "goal")] * 4


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads rows with the names of a file, which lies beside them."""
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))

    def load(names: str | bytes, *keys: str, content: str = "", name: str = "train.txt") -> Dataset:
        lines = "".join(f"{text} {i}\t{label}\n" for i, (label, text) in enumerate(ROWS))
        (tmp_path / name).write_text(content or lines, "utf-8")
        (tmp_path / "names.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
        given = [f"train={tmp_path / name}", f"label_names={tmp_path / 'names.txt'}", "valid=0.25", *keys]
        return load_dataset(load_config(None, [f"data.{key}" for key in given]).data)

    return load


def labels_by_text(dataset: Dataset) -> dict[str, str]:
    return {
        text.split()[0]: dataset.labels[label_id]
        for split in dataset.splits.values()
        for text, label_id in zip(split.texts, split.label_ids, strict=True)
    }


EXPECTED = {"stock": "finance", "goal": "sports", "star": "entertainment"}

FORMATS = {
    "a.txt": "".join(f"{text} {i}\t{label}\n" for i, (label, text) in enumerate(ROWS)),
    "b.txt": "".join(f"{label}\t{text} {i}\n" for i, (label, text) in enumerate(ROWS)),
    "a.csv": "text,label\n" + "".join(f"{text} {i},{label}\n" for i, (label, text) in enumerate(ROWS)),
    "a.tsv": "label\ttext\n" + "".join(f"{label}\t{text} {i}\n" for i, (label, text) in enumerate(ROWS)),
    "a.jsonl": "".join(f'{{"text": "{text} {i}", "label": {label}}}\n' for i, (label, text) in enumerate(ROWS)),
    "a.ft": "".join(f"__label__{label} {text} {i}\n" for i, (label, text) in enumerate(ROWS)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_of_any_format_get_the_names_of_their_lines(name: str, load: Load) -> None:
    dataset = load("finance\nsports\nentertainment\n", content=FORMATS[name], name=name)
    assert labels_by_text(dataset) == EXPECTED


@pytest.mark.parametrize(
    "names", ["finance\r\nsports\r\nentertainment", b"\xef\xbb\xbffinance\nsports\nentertainment\n\n"]
)
def test_line_ends_a_byte_order_mark_and_blank_lines_at_the_end_are_no_names(names: str | bytes, load: Load) -> None:
    assert labels_by_text(load(names)) == EXPECTED


def test_labels_are_in_the_order_of_the_file_without_those_that_no_text_has(load: Load) -> None:
    assert load("finance\nsports\nentertainment\nweather\n").labels == ["finance", "sports", "entertainment"]


def test_a_blank_line_lets_numbers_begin_with_1(load: Load) -> None:
    dataset = load("\nWorld\nSports\n", content="a x\t1\nb x\t2\n" * 4)
    assert labels_by_text(dataset) == {"a": "World", "b": "Sports"}
    assert dataset.labels == ["World", "Sports"]


def test_names_are_read_in_the_encoding_of_the_data(load: Load, tmp_path: Path) -> None:
    assert load("财经\n体育\n娱乐\n".encode("gb18030"), "encoding=gb18030").labels == ["财经", "体育", "娱乐"]


def test_other_names_in_the_same_file_are_another_data_set(load: Load) -> None:
    one = load("finance\nsports\nentertainment\n")
    other = load("finance\nsports\nshow\n")
    assert other.labels == ["finance", "sports", "show"]
    assert other.digest != one.digest


def test_texts_without_labels_need_no_names(load: Load, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("7\n8\n")
    dataset = load("finance\nsports\nentertainment\n", f"unlabelled={tmp_path / 'more.txt'}")
    assert list(dataset.splits["unlabelled"].texts) == ["7", "8"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("3", "label '3' has no name in {names} (data.label_names), whose lines name 0 to 2"),
        ("-1", "label '-1' is not the number of a line of {names} (data.label_names), counted from 0"),
        ("sports", "label 'sports' is not the number of a line of {names} (data.label_names), counted from 0"),
    ],
)
def test_a_label_without_a_name_is_told_or_counted(label: str, words: str, load: Load, tmp_path: Path) -> None:
    names, content = "finance\nsports\nentertainment\n", FORMATS["a.csv"] + f"odd,{label}\n"
    words = f"{tmp_path / 'train.csv'}:14: {words.format(names=tmp_path / 'names.txt')}"
    with pytest.raises(DataError) as caught:
        load(names, content=content, name="train.csv")
    assert str(caught.value) == f"{words}; mend the row or that file, or set data.bad_rows to skip"
    dataset = load(names, "bad_rows=skip", content=content, name="train.csv")
    assert {key: dataset.counts[key] for key in ("read", "used", "skipped")} == {"read": 13, "used": 12, "skipped": 1}
    assert words in dataset.notes[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("finance\nsports\nfinance\n", "names.txt:3: 'finance' is in line 1 already; every label needs its own name"),
        ("finance\n1\n", "names.txt:2: '1' is a number itself; give the label a name in words"),
        ("0\tfinance\n1\tsports\n", r"names.txt:1: '0\tfinance' holds a tab; there must be one name a line"),
        ("\n\n", "names.txt: holds no name; there must be one a line, the first that of label 0"),
        (b"finance\nsport\xff\n", "names.txt:2: "),
    ],
)
def test_a_file_that_does_not_name_labels_is_told(names: str | bytes, words: str, load: Load, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(names)
    assert str(caught.value).startswith(f"{tmp_path}/{words}")


def test_a_file_that_is_not_there_is_told_with_what_is(load: Load, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nmes\.txt: there is no such file or folder; in .* there is names\.txt"):
        load("finance\n", f"label_names={tmp_path / 'nmes.txt'}")
