import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bilstm_cls.config_file import load_config
from bilstm_cls.data import sources, store
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.types import Dataset, Split
from bilstm_cls.errors import ConfigError, DataError

Rows = Sequence[tuple[str, str]]
Load = Callable[..., Dataset]

COUNTS = {"neg": 100, "pos": 60, "rare": 8}


def rows_of(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(f"{label} text {i}", label) for label, number in counts.items() for i in range(number)]


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads rows as train, and others as splits by name, in a separate cache, with `data.` keys."""
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))

    def load(rows: Rows, *keys: str, **splits: Rows) -> Dataset:
        paths = {name: write(tmp_path / f"{name}.csv", content) for name, content in {"train": rows, **splits}.items()}
        given = [f"data.{name}={path}" for name, path in paths.items()]
        return load_dataset(load_config(None, [*given, *(f"data.{key}" for key in keys)]).data)

    return load


def texts_of(dataset: Dataset) -> dict[str, list[str]]:
    return {name: list(split.texts) for name, split in dataset.splits.items()}


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


def test_given_files_are_splits_as_they_are(load: Load, tmp_path: Path) -> None:
    train, valid, test = rows_of({"b": 3, "a": 3}), [("v", "a")], [("t1", "b"), ("t2", "a")]
    dataset = load(train, valid=valid, test=test)
    assert texts_of(dataset) == {"train": [t for t, _ in train], "valid": ["v"], "test": ["t1", "t2"]}
    assert labels_of(dataset, dataset.splits["test"]) == ["b", "a"]
    assert set(dataset.splits["test"].paths) == {str(tmp_path / "test.csv")}
    assert dataset.splits["test"].lines.tolist() == [2, 3]


def test_unlabelled_texts_are_a_separate_split(load: Load, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("one\n\ntwo\n", "utf-8")
    dataset = load(rows_of(COUNTS), f"unlabelled={tmp_path / 'more.txt'}")
    assert texts_of(dataset)["unlabelled"] == ["one", "", "two"]
    assert dataset.splits["unlabelled"].label_ids.tolist() == [-1, -1, -1]
    assert dataset.labels == ["neg", "pos", "rare"]


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["pos", "neg", "Neu"], ["Neu", "neg", "pos"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["1", "01", "0"], ["0", "01", "1"]),
        (["1.5", "-1", "10"], ["-1", "1.5", "10"]),
        (["²", "1", "0"], ["0", "1", "²"]),
    ],
)
def test_labels_are_in_numerical_order_where_all_are_whole_numbers_else_alphabetical(
    labels: list[str], order: list[str], load: Load
) -> None:
    dataset = load(rows_of(dict.fromkeys(labels, 5)), "valid=0.2")
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


def test_empty_texts_are_no_duplicates_and_a_third_of_them_is_a_note(load: Load) -> None:
    train = [("", "a"), (" ", "b"), ("", "b"), ("one", "a")]
    dataset = load(train, valid=[("", "a"), ("new", "b")], test=[("", "b"), ("two", "a")])
    assert {key: value for key, value in dataset.counts.items() if value} == {"read": 8, "used": 8}
    assert dataset.notes == ["5 of 8 texts are empty."]
    assert not load([("x", "a"), ("y", "b"), ("z", "b")], valid=[("", "a")], test=[("w", "b")]).notes


def test_labels_without_a_text_in_a_split_are_counted_in_a_note(load: Load) -> None:
    rows = rows_of({"a": 50, "b": 50, **{f"rare {i}": 1 for i in range(6)}})
    notes = load(rows, "valid=0.1", "test=0.1").notes
    assert notes == [f"6 of 8 labels, with 6 texts, have no text in {name}." for name in ("valid", "test")]


def test_texts_between_blocks_are_left_out_and_counted(load: Load) -> None:
    dataset = load(rows_of({"a": 2000, "b": 2000}), "valid=0.1", "valid_split=blocks")
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    assert sizes["valid"] == 400
    assert sizes["train"] + dataset.counts["left_out"] == 3600
    assert dataset.counts["left_out"] > 0


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_texts_of_a_group_are_in_one_split(kind: str, tmp_path: Path, load: Load) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "user": f"user {i // 5}"} for i in range(100)]
    mark = {"csv": ",", "tsv": "\t"}.get(kind, "")
    lines = [mark.join(row) for row in [rows[0], *(r.values() for r in rows)]] if mark else map(json.dumps, rows)
    path = tmp_path / f"grouped.{kind}"
    path.write_text("\n".join(lines), "utf-8")
    settings = [f"data.train={path}", "data.test=0.2", "data.valid=0.2", "data.group_column=user"]
    dataset = load_dataset(load_config(None, settings).data)
    groups = [{int(text.split()[1]) // 5 for text in split.texts} for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    with pytest.raises(DataError, match=r":[12]: .*'who'.*data\.group_column"):
        load_dataset(load_config(None, [*settings[:3], "data.group_column=who"]).data)


def test_groups_that_given_files_share_are_a_note(load: Load, tmp_path: Path) -> None:
    for name, users in (("train", "xxyy"), ("test", "yz")):
        rows = [f"{name} {i},{'ab'[i % 2]},{user}" for i, user in enumerate(users)]
        (tmp_path / f"g-{name}.csv").write_text("\n".join(["text,label,user", *rows]), "utf-8")
    files = [f"data.{name}={tmp_path / f'g-{name}.csv'}" for name in ("train", "test")]
    dataset = load_dataset(load_config(None, [*files, "data.valid=0.5", "data.group_column=user"]).data)
    assert "1 groups of data.group_column are in train and in test." in dataset.notes


def test_blocks_and_groups_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"data\.group_column"):
        load_config(None, ["data.train=x", "data.valid_split=blocks", "data.group_column=user"])


def test_labels_that_look_alike_are_a_note(load: Load) -> None:
    rows = rows_of({"pos": 20, "Pos": 20, "neg": 20, "ne\u200bg": 20, "other": 20, "caf\u00e9": 20, "cafe\u0301": 20})
    dataset = load(rows)
    assert len(dataset.labels) == 7
    notes = " ".join(dataset.notes)
    assert all(pair in notes for pair in ("'Pos', 'pos'", r"'neg', 'ne\u200bg'", r"'cafe\u0301', 'caf\xe9'"))
    assert "other" not in notes


def test_what_can_be_read_only_once_is_an_error(load: Load, tmp_path: Path) -> None:
    (tmp_path / "first.csv").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a pipe or device"):
        load(rows_of(COUNTS), f"unlabelled={tmp_path / 'first.csv'}")


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([*rows_of(COUNTS)[:-1], ("other", "rare")], ()),
        ([*rows_of(COUNTS)[:-1], ("rare text 7", "pos")], ()),
        ([*rows_of(COUNTS), ("more", "rare")], ()),
        (rows_of(COUNTS)[::-1], ()),
        (rows_of(COUNTS), ("test=0.3",)),
        (rows_of(COUNTS), ("split_seed=1",)),
    ],
    ids=["a text", "a label", "a text more", "the order", "the fraction of test", "the seed of the splits"],
)
def test_the_digest_changes_with(rows: Rows, keys: tuple[str, ...], load: Load) -> None:
    assert load(rows, "test=0.2", *keys).digest != load(rows_of(COUNTS), "test=0.2").digest


def test_the_digest_does_not_depend_on_the_format_or_the_place(load: Load, tmp_path: Path) -> None:
    lines = ["label\ttext", *(f"{label}\t{text}" for text, label in rows_of(COUNTS))]
    (tmp_path / "same.tsv").write_text("\n".join(lines), "utf-8")
    config = load_config(None, [f"data.train={tmp_path / 'same.tsv'}", "data.test=0.2"]).data
    assert load_dataset(config).digest == load(rows_of(COUNTS), "test=0.2").digest


def plain(dataset: Dataset) -> dict[str, object]:
    """Returns all of a data set out of its files."""
    splits = {
        name: (list(split.texts), split.label_ids.tolist(), split.lines.tolist(), list(split.paths))
        for name, split in dataset.splits.items()
    }
    return {**vars(dataset), "splits": splits}


@pytest.mark.usefixtures("load")
def test_a_second_load_is_equal_reads_no_file_again_and_hashes_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "UNSETTLED_SECONDS", -1.0)
    config = load_config(None, [f"data.train={write(tmp_path / 'data.csv', rows_of(COUNTS))}", "data.test=0.2"]).data
    fresh = plain(load_dataset(config))
    for module in (store, sources):
        monkeypatch.setattr(module, "sha256_of", lambda path: pytest.fail(f"{path} was hashed"))
    monkeypatch.setattr(sources, "read", None)
    assert plain(load_dataset(config)) == fresh


@pytest.mark.parametrize("name", ["texts.bin", "train.bin", "train.label_ids.npy", "dataset.json"])
def test_a_damaged_cache_is_noticed_and_made_again(
    name: str, load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = plain(load(rows_of(COUNTS), "test=0.2"))
    [path] = (tmp_path / "cache/data").glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert plain(load(rows_of(COUNTS), "test=0.2")) == fresh
    assert "damaged" in caplog.text


@pytest.mark.parametrize("text", ["", "\0", "two\nlines", "cr\rhere", "😀", 'a "quote"', "\u2028", "x" * 100_000])
def test_an_odd_text_arrives_as_it_was(text: str, load: Load) -> None:
    assert texts_of(load([*rows_of({"a": 5, "b": 5}), (text, "c")], "valid=0.2"))["train"][-1] == text


@pytest.mark.parametrize(
    ("rows", "keys", "complaint"),
    [
        ([("a", "pos")] * 9, (), "only the label 'pos' in train"),
        ([("a", "pos"), ("b", "neg")], (), r"data\.valid"),
        ([("a", ""), ("b", "")], ("bad_rows=skip",), r"no text to train on; 2 rows were skipped, the first: .*:2:"),
    ],
)
def test_too_little_to_train_on_is_an_error(rows: Rows, keys: tuple[str, ...], complaint: str, load: Load) -> None:
    with pytest.raises(DataError, match=complaint):
        load(rows, *keys)


def test_a_test_file_whose_rows_are_all_skipped_is_an_error(load: Load) -> None:
    with pytest.raises(DataError, match="there is no text in test"):
        load(rows_of({"a": 5, "b": 5}), "bad_rows=skip", test=[("odd", "c")])
