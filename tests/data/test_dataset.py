import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bilstm_cls.data import sources
from bilstm_cls.data.types import Dataset, Split
from bilstm_cls.errors import DataError
from tests.data.conftest import Write
from tests.data.rows import loaded, texts_of

Rows = Sequence[tuple[str, str]]
Load = Callable[..., Dataset]

COUNTS = {"neg": 100, "pos": 60, "rare": 8}


def rows_of(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(f"{label} text {i}", label) for label, number in counts.items() for i in range(number)]


@pytest.fixture
def load(write: Write) -> Load:
    """Loads rows as train, and others as splits by name, with `data.` keys."""

    def load(rows: Rows, *keys: str, **splits: Rows) -> Dataset:
        files = {"train": rows, **splits}
        given = [f"{name}={write(f'{name}.csv', [('text', 'label'), *files[name]])}" for name in files]
        return loaded(*given, *keys)

    return load


def labels_of(dataset: Dataset, split: Split) -> list[str]:
    return [dataset.labels[i] for i in split.label_ids]


def test_splits_hold_every_text_once_with_its_label_file_and_line(load: Load, tmp_path: Path) -> None:
    rows = rows_of(COUNTS)
    dataset = load(rows, "valid=0.1", "test=0.25")
    assert list(dataset.splits) == ["train", "valid", "test"]
    assert sorted(itertools.chain(*texts_of(dataset).values())) == sorted(text for text, _ in rows)
    for split in dataset.splits.values():
        places = [rows[line - 2] for line in split.lines]
        assert places == list(zip(split.texts, labels_of(dataset, split), strict=True))
        assert set(split.paths) == {str(tmp_path / "train.csv")}
    counts = {name: Counter(labels_of(dataset, split)) for name, split in dataset.splits.items()}
    assert counts["test"] == {"neg": 25, "pos": 15, "rare": 2}
    assert counts["valid"] == {"neg": 10, "pos": 6, "rare": 1}  # of all texts, as test is
    assert texts_of(load(rows, "test=0.25"))["test"] == texts_of(dataset)["test"]  # whatever valid is


def test_given_files_are_splits_as_they_are(load: Load) -> None:
    train, valid, test = rows_of({"b": 3, "a": 3}), [("v", "a")], [("t1", "b"), ("t2", "a")]
    dataset = load(train, valid=valid, test=test)
    assert texts_of(dataset) == {"train": [t for t, _ in train], "valid": ["v"], "test": ["t1", "t2"]}
    assert labels_of(dataset, dataset.splits["test"]) == ["b", "a"]


def test_unlabelled_texts_are_a_separate_split(load: Load, write: Write) -> None:
    path = write("more.txt", "one\n\ntwo\n")
    dataset = load(rows_of(COUNTS), f"unlabelled={path}")
    assert texts_of(dataset)["unlabelled"] == ["one", "", "two"]
    assert dataset.splits["unlabelled"].label_ids.tolist() == [-1, -1, -1]
    assert dataset.labels == ["neg", "pos", "rare"]


@pytest.mark.parametrize(
    "order", [["2", "9", "10"], ["Neu", "neg", "pos"], ["10", "9", "a"], ["0", "01", "1"], ["-1", "1.5", "10"]]
)
def test_labels_are_in_numerical_order_where_all_are_whole_numbers_else_alphabetical(
    order: list[str], load: Load
) -> None:
    dataset = load(rows_of(dict.fromkeys(sorted(order, reverse=True), 5)), "valid=0.2")
    assert dataset.labels == order
    assert all(text.startswith(f"{dataset.labels[i]} ") for split in dataset.splits.values()
               for text, i in zip(split.texts, split.label_ids, strict=True))  # fmt: skip


def test_every_row_is_counted_as_used_or_skipped(load: Load) -> None:
    rows = [*rows_of(COUNTS), ("no label", ""), ("no label either", " ")]
    dataset = load(rows, "bad_rows=skip")
    assert {key: dataset.counts[key] for key in ("read", "used", "skipped")} == {"read": 170, "used": 168, "skipped": 2}
    assert sum(map(len, dataset.splits.values())) == 168
    assert "2 rows of 1 files could not be used" in dataset.notes[0]
    assert ":170: the label is empty" in dataset.notes[0]


def test_an_unknown_label_in_test_is_never_a_new_class(load: Load) -> None:
    rows, test = rows_of({"a": 5, "b": 5}), [("t", "a"), ("odd", "c")]
    dataset = load(rows, "bad_rows=skip", "valid=0.2", test=test)
    assert (dataset.labels, texts_of(dataset)["test"], dataset.counts["skipped"]) == (["a", "b"], ["t"], 1)
    with pytest.raises(DataError, match=r"test\.csv:3: label 'c' does not occur in train"):
        load(rows, test=test)


def test_duplicates_and_overlaps_are_counted(load: Load) -> None:
    train = [("same", "a"), ("same", "a"), ("same", "b"), ("one", "a"), ("two", "b")]
    dataset = load(train, valid=[("one", "a"), ("new", "b")], test=[("two", "b"), ("two", "b"), ("new", "a")])
    counts = {key: value for key, value in dataset.counts.items() if key not in ("read", "used", "skipped")}
    assert counts == {
        "duplicates_train": 2, "duplicates_valid": 0, "duplicates_test": 1,
        "valid_in_train": 1, "test_in_train": 2, "test_in_valid": 1,
    }  # fmt: skip
    assert any("2 test texts" in note for note in dataset.notes)


def test_texts_of_a_group_are_in_one_split(write: Write) -> None:
    rows = [(f"text {i}", "ab"[i % 2], f"user {i // 5}") for i in range(100)]
    settings = [f"train={write('grouped.csv', [('text', 'label', 'user'), *rows])}", "test=0.2", "valid=0.2"]
    dataset = loaded(*settings, "group_column=user")
    groups = [{int(text.split()[1]) // 5 for text in split.texts} for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    with pytest.raises(DataError, match=r":[12]: .*'who'.*data\.group_column"):
        loaded(*settings, "group_column=who")


def test_the_digest_changes_with_a_text_a_label_the_order_or_the_seed_of_the_splits(load: Load) -> None:
    rows = rows_of(COUNTS)
    others = [[*rows[:-1], ("other", "rare")], [*rows[:-1], ("rare text 7", "pos")], rows[::-1]]
    digests = [load(rows, "test=0.2").digest, load(rows, "test=0.2", "split_seed=1").digest]
    assert len({*digests, *(load(other, "test=0.2").digest for other in others)}) == 5


def plain(dataset: Dataset) -> dict[str, object]:
    """Returns all of a data set out of its files."""
    splits = {
        name: (list(split.texts), split.label_ids.tolist(), split.lines.tolist(), list(split.paths))
        for name, split in dataset.splits.items()
    }
    return {**vars(dataset), "splits": splits}


def test_a_second_load_is_equal_and_reads_no_file_again(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"train={write('data.csv', [('text', 'label'), *rows_of(COUNTS)])}", "test=0.2"]
    fresh = plain(loaded(*keys))
    monkeypatch.setattr(sources, "read", None)
    assert plain(loaded(*keys)) == fresh


@pytest.mark.parametrize(
    ("rows", "splits", "complaint"),
    [
        ([("a", "pos")] * 9, {}, "only the label 'pos' in train"),
        ([("a", "pos"), ("b", "neg")], {}, r"data\.valid"),
        ([("a", ""), ("b", "")], {}, r"no text to train on; 2 rows were skipped, the first: .*:2:"),
        (rows_of({"a": 5, "b": 5}), {"test": [("odd", "c")]}, "there is no text in test"),
    ],
)
def test_too_few_texts_are_an_error(rows: Rows, splits: dict[str, Rows], complaint: str, load: Load) -> None:
    with pytest.raises(DataError, match=complaint):
        load(rows, "bad_rows=skip", **splits)
