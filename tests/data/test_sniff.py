import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.readers import ReadOptions, read
from bilstm_cls.data.sniff import Sniffed, sniff, starter_config
from bilstm_cls.data.sniff import look as sniff_look
from bilstm_cls.errors import ConfigError, DataError

Write = Callable[..., Path]
RNG = random.Random(0)
SENTENCES = [
    " ".join(RNG.choices(["film", "plot", "a", "of", "very", "good", "dull", "story", "and"], k=RNG.randint(5, 14)))
    for _ in range(60)
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, rows: Sequence[Sequence[Any]], encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding=encoding) as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:])
            else:
                csv.writer(file, lineterminator="\n").writerows(rows)
        return path

    return write


def reloaded(found: Sniffed, path: Path) -> Config:
    config = path.parent / "config.yaml"
    config.write_text(starter_config(found, path), "utf-8")
    return load_config(config)


def num_read(config: Config) -> int:
    """Reads the file as a config says."""
    data = config.data
    options = ReadOptions(tuple(data.text_columns), data.label_column, data.encoding)
    assert data.train is not None
    return sum(1 for _ in read(Path(data.train), format=data.format, options=options))


TABLES: dict[str, tuple[list[str], Callable[[int], Sequence[Any]], tuple[str, ...], str]] = {
    "usual names": (["id", "text", "label"], lambda i: (i, SENTENCES[i], "ab"[i % 2]), ("text",), "label"),
    "other case": (["Review", "Sentiment"], lambda i: (SENTENCES[i], "ab"[i % 2]), ("Review",), "Sentiment"),
    "title and body": (
        ["title", "category", "body"],
        lambda i: (SENTENCES[-i][:20], "abc"[i % 3], SENTENCES[i]),
        ("title", "body"),
        "category",
    ),
    "a pair": (
        ["premise", "hypothesis", "label"],
        lambda i: (SENTENCES[i], ["good", "dull", "long"][i % 3], i % 2),
        ("premise", "hypothesis"),
        "label",
    ),
    "names that say nothing": (
        ["a", "b", "c", "d"],
        lambda i: (i, f"user{i}", "xyz"[i % 3], SENTENCES[i]),
        ("d",),
        "c",
    ),
    "a topic that is a text": (
        ["topic", "text", "grade"],
        lambda i: (SENTENCES[-i], SENTENCES[i], "xyz"[i % 3]),
        ("text",),
        "grade",
    ),
    "part of a name": (["airline_label", "words"], lambda i: (i % 3, SENTENCES[i]), ("words",), "airline_label"),
}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("table", TABLES)
def test_columns_are_guessed_and_the_config_reads_the_file(write: Write, table: str, name: str) -> None:
    header, row, texts, label = TABLES[table]
    path = write(name, [header, *map(row, range(60))])
    found = sniff(path)
    assert (found.text_columns, found.label_column) == (texts, label)
    config = reloaded(found, path)
    assert (tuple(config.data.text_columns), config.data.label_column) == (texts, label)
    assert num_read(config) == found.rows == found.num_rows == 60


@pytest.mark.parametrize(
    ("row", "texts", "label"),
    [
        (lambda i: (i % 4 + 1, f"{SENTENCES[-i][:25]}, {i}", SENTENCES[i]), ("#2", "#3"), "#1"),
        (lambda i: ("pos" if i % 2 else "neg", SENTENCES[i]), ("#2",), "#1"),
        (lambda i: (SENTENCES[i], "ny"[i % 2]), ("#1",), "#2"),
    ],
    ids=["class, title, description", "label first", "y as a label"],
)
def test_a_file_without_a_header_is_read_by_position(
    write: Write, row: Callable[[int], Sequence[Any]], texts: tuple[str, ...], label: str
) -> None:
    path = write("a.csv", [row(i) for i in range(60)])
    found = sniff(path)
    assert (found.text_columns, found.label_column, found.rows) == (texts, label, 60)
    assert num_read(reloaded(found, path)) == 60


def test_formats_without_columns_need_none(tmp_path: Path) -> None:
    path = tmp_path / "a.ft"
    path.write_text("".join(f"__label__{'ab'[i % 2]} {SENTENCES[i]}\n" for i in range(40)))
    found = sniff(path)
    assert (found.format, found.text_columns, found.label_column) == ("fasttext", (), None)
    assert found.labels == {"a": 20, "b": 20}
    assert num_read(reloaded(found, path)) == 40


def test_folders_are_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sniff_look, "MAX_FILES", 3)
    for label, number in (("neg", 6), ("pos", 2)):
        (tmp_path / "corpus" / label).mkdir(parents=True)
        for i in range(number):
            (tmp_path / "corpus" / label / f"{i}.txt").write_text("très bon film à voir", "windows-1252")
    found = sniff(tmp_path / "corpus")
    assert (found.format, found.encoding, found.labels) == ("folder", "auto", {"neg": 6, "pos": 2})
    assert (found.num_rows, found.is_whole) == (8, False)
    assert num_read(reloaded(found, tmp_path / "corpus")) == 8


def test_parquet_is_sniffed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(sniff_look, "MAX_ROWS", 40)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"review": SENTENCES, "stars": [i % 5 for i in range(60)]}), path)
    found = sniff(path)
    assert (found.text_columns, found.label_column, found.num_rows) == (("review",), "stars", 60)
    assert num_read(reloaded(found, path)) == 60


def test_the_encoding_is_found(write: Write) -> None:
    path = write(
        "a.csv",
        [("text", "label"), *((f"{s}, café “déjà vu”", "ab"[i % 2]) for i, s in enumerate(SENTENCES))],
        "cp1252",
    )
    found = sniff(path)
    assert found.encoding == "windows-1252"
    assert num_read(reloaded(found, path)) == 60


def test_bad_rows_are_counted_and_told(write: Write) -> None:
    rows = [(SENTENCES[i], "ab"[i % 2]) for i in range(50)]
    path = write("a.csv", [("text", "label"), *rows[:5], ("x", ""), ("x", "y", "z"), *rows[5:]])
    found = sniff(path)
    assert (found.rows, found.num_bad_rows) == (50, 2)
    assert found.first_bad_row == f"{path}:7: the label is empty"
    assert f"# {path}:7: the label is empty\n" in starter_config(found, path)


@pytest.mark.parametrize(
    ("header", "row", "kind"),
    [
        (["a", "b"], lambda i: (i, SENTENCES[i]), "label"),
        (["text"], lambda i: (SENTENCES[i],), "label"),
        (["label", "n"], lambda i: ("ab"[i % 2], i), "text"),
    ],
)
def test_columns_that_cannot_be_guessed_are_asked_for(
    write: Write, header: list[str], row: Callable[[int], Sequence[Any]], kind: str
) -> None:
    path = write("a.jsonl", [header, *map(row, range(60))])
    with pytest.raises(
        DataError, match=rf"cannot tell which column holds the {kind}; there are '.*--set data.{kind}_col"
    ):
        sniff(path)


def test_what_the_user_sets_is_not_guessed(write: Write) -> None:
    path = write("a.csv", [("p", "q", "n"), *((SENTENCES[i], SENTENCES[-i], i) for i in range(60))])
    found = sniff(path, ["data.label_column=n", "data.text_columns=p", "data.encoding=latin-1"])
    assert (found.text_columns, found.label_column, found.encoding) == (("p",), "n", "latin-1")
    with pytest.raises(DataError, match="there is no column 'm'; there are 'p' "):
        sniff(path, ["data.label_column=m"])
    with pytest.raises(ConfigError, match="unknown key"):
        sniff(path, ["data.lable=m"])


def test_chinese_texts_get_characters_and_short_lengths(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"这部电影非常好看，演员也很好，值得一看再看{i}\t{i % 2}\n" for i in range(300)), "utf-8")
    config = reloaded(sniff(path), path)
    assert (config.text.tokenizer, config.text.max_length, config.data.format) == ("cjk", 30, "text-label")


@pytest.mark.parametrize(("num_words", "max_length"), [(5, 20), (33, 40), (150, 150), (3000, 400)])
def test_the_length_follows_the_texts(write: Write, num_words: int, max_length: int) -> None:
    path = write("a.csv", [("text", "label"), *(("word " * num_words, "ab"[i % 2]) for i in range(60))])
    assert reloaded(sniff(path), path).text.max_length == max_length


def test_unequal_labels_are_weighted(write: Write, tmp_path: Path) -> None:
    few, many = (
        sniff(write(f"{n}.csv", [("text", "label"), *((s, "a" if i % n else "b") for i, s in enumerate(SENTENCES))]))
        for n in (6, 3)
    )
    assert reloaded(few, tmp_path / "x").train.class_weights == "balanced"
    assert reloaded(many, tmp_path / "x").train.class_weights is None


def test_settings_follow_the_size_of_the_whole_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sniff_look, "MAX_ROWS", 50)
    path = write("a.csv", [("text", "label"), *((SENTENCES[i % 60], "ab"[i % 2]) for i in range(9000))])
    found = sniff(path)
    assert (found.rows, found.is_whole) == (49, False)
    assert found.num_rows == pytest.approx(9000, rel=0.1)
    config = reloaded(found, path)
    assert (config.train.batch_size, config.text.min_freq, config.data.valid, config.data.test) == (64, 2, 0.1, 0.1)


def test_few_texts_get_small_batches_and_keep_all_words(write: Write) -> None:
    path = write("a.csv", [("text", "label"), *((SENTENCES[i], "ab"[i % 2]) for i in range(60))])
    config = reloaded(sniff(path), path)
    assert (config.train.batch_size, config.text.min_freq, config.data.valid) == (8, 1, 0.2)


ODD_NAMES = [
    "it's: a #1 [file].csv",
    "- yes.csv",
    "null.csv",
    "中文 데이터.csv",
    "a\nb\u2028c\x07.csv",
    "*x&y!.csv",
    "…….csv",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_path_and_label_can_be_written_in_a_config(write: Write, name: str) -> None:
    labels = ["no", "null", "a: b # c", "new\nline\u2028\x07"]
    header = ["no: #", "yes, [no]"]
    path = write(name, [header, *((SENTENCES[i], labels[i % 4]) for i in range(60))])
    found = sniff(path)
    config = reloaded(found, path)
    assert (config.data.train, config.data.label_column) == (str(path), "yes, [no]")
    assert num_read(config) == 60


def test_a_path_that_is_not_unicode_is_told(write: Write) -> None:
    path = write("a.csv", [("text", "label"), *((SENTENCES[i], "ab"[i % 2]) for i in range(60))])
    with pytest.raises(DataError, match="cannot be written in a config"):
        starter_config(sniff(path), Path("a\udcff.csv"))


def test_a_config_for_one_label_says_that_it_cannot_be_learned(write: Write) -> None:
    path = write("a.csv", [("text", "label"), *((sentence, "a") for sentence in SENTENCES)])
    assert "one label alone cannot be learned" in starter_config(sniff(path), path)


@pytest.mark.parametrize("content", ["", "text,label\n", "text,label\nx,\n"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.csv"):
        sniff(path)


def test_a_look_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'tokenizers', 'sklearn', 'pyarrow', 'charset_normalizer'}"
    code = f"import sys, bilstm_cls.data.sniff; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
