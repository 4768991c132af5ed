import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data import starter
from bilstm_cls.data.readers import data_files, detect_format, find_splits, read
from bilstm_cls.data.sources import read_options
from bilstm_cls.data.starter import DataProfile, profile_data, starter_config
from bilstm_cls.errors import DataError
from tests.data.conftest import Write

RNG = random.Random(0)
SENTENCES = [
    " ".join(RNG.choices(["film", "plot", "a", "of", "very", "good", "dull", "story", "and"], k=RNG.randint(5, 14)))
    for _ in range(60)
]


def as_jsonl(rows: Sequence[Sequence[Any]]) -> str:
    return "".join(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:])


def labelled(texts: Sequence[str] = SENTENCES, labels: Sequence[str] = "ab") -> list[Sequence[Any]]:
    """Returns a table of texts, the labels in turn."""
    return [("text", "label"), *((text, labels[i % len(labels)]) for i, text in enumerate(texts))]


def reloaded(found: DataProfile, path: Path) -> Config:
    config = path.parent / "config.yaml"
    config.write_text(starter_config(found, path), "utf-8")
    return load_config(config)


def config_for(path: Path) -> Config:
    return reloaded(profile_data(path), path)


def num_read(config: Config) -> int:
    """Reads the file as a config says."""
    assert isinstance(config.data.train, str)
    return sum(
        1 for _ in read(Path(config.data.train), format=config.data.format, options=read_options(config.data, "train"))
    )


TABLES: dict[str, tuple[list[str], Callable[[int], Sequence[Any]], tuple[str, ...], str]] = {
    "title and body": (["title", "category", "body"], lambda i: (SENTENCES[-i][:20], "abc"[i % 3], SENTENCES[i]),
                       ("title", "body"), "category"),
    "names that say nothing": (["a", "b", "c", "d"], lambda i: (i, f"user{i}", "xyz"[i % 3], SENTENCES[i]),
                               ("d",), "c"),
    "words run together": (["summary", "reviewText", "overall"], lambda i: (SENTENCES[-i], SENTENCES[i], i % 5),
                           ("summary", "reviewText"), "overall"),
    "a heading and more": (["headline", "lead", "tags"], lambda i: (SENTENCES[-i], SENTENCES[i], "ab"[i % 2]),
                           ("headline", "lead"), "tags"),
    "a label in its last word": (["text", "lang", "cause", "airline_sentiment"],
                                 lambda i: (SENTENCES[i], "xy"[i % 2], "xy"[i % 2], "abc"[i % 3]),
                                 ("text",), "airline_sentiment"),
    "details": (["text", "Language", "feeling"], lambda i: (SENTENCES[i], "xy"[i % 2], "abc"[i % 3]),
                ("text",), "feeling"),
    "a column of splits": (["text", "set", "feeling"], lambda i: (SENTENCES[i], ("train", "dev")[i % 2], "abc"[i % 3]),
                           ("text",), "feeling"),
    "a topic that is a text": (["topic", "text", "grade"], lambda i: (SENTENCES[-i], SENTENCES[i], "xyz"[i % 3]),
                               ("text",), "grade"),
    "no header, class, title, description": ([], lambda i: (i % 4 + 1, f"{SENTENCES[-i][:25]}, {i}", SENTENCES[i]),
                                             ("#2", "#3"), "#1"),
    "no header, a date": ([], lambda i: ("xyz"[i % 3] if i else "once", SENTENCES[i], f"2024-03-{i:02}"),
                          ("#2",), "#1"),
    "no header, y as a label": ([], lambda i: (SENTENCES[i], "ny"[i % 2]), ("#1",), "#2"),
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_guessed_and_the_config_reads_the_file(write: Write, table: str) -> None:
    header, row, texts, label = TABLES[table]
    path = write("a.csv", [*([header] if header else []), *map(row, range(60))])
    found = profile_data(path)
    assert (found.options.text_columns, found.options.label_column) == (texts, label)
    config = reloaded(found, path)
    assert (tuple(config.data.text_columns), config.data.label_column) == (texts, label)
    assert num_read(config) == len(found.texts) == found.num_rows == 60


def test_folders_are_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "MAX_ROWS", 3)
    for label, number in (("neg", 6), ("pos", 2)):
        (tmp_path / "corpus" / label).mkdir(parents=True)
        for i in range(number):
            (tmp_path / "corpus" / label / f"{i}.txt").write_text("très bon film à voir", "windows-1252")
    found = profile_data(tmp_path / "corpus")
    assert (found.format, found.options.encoding, found.labels) == ("folder", "auto", {"neg": 6, "pos": 2})
    assert (found.num_rows, found.is_whole) == (8, False)
    assert num_read(reloaded(found, tmp_path / "corpus")) == 8


@pytest.mark.parametrize(("header", "kind"), [(["a", "b"], "label"), (["n", "label"], "text")])
def test_columns_that_cannot_be_guessed_are_asked_for(write: Write, header: list[str], kind: str) -> None:
    rows = [(i, SENTENCES[i] if kind == "label" else "ab"[i % 2]) for i in range(60)]
    path = write("a.jsonl", as_jsonl([header, *rows]))
    with pytest.raises(DataError, match=rf"which column holds the {kind}; there are '.*--set data.{kind}_col"):
        profile_data(path)


def test_what_the_user_sets_is_not_guessed(write: Write) -> None:
    path = write("a.csv", [("p", "q", "n"), *((SENTENCES[i], SENTENCES[-i], i) for i in range(60))])
    found = profile_data(path, ["data.label_column=n", "data.text_columns=p", "data.encoding=latin-1"])
    assert (found.options.text_columns, found.options.label_column, found.options.encoding) == (("p",), "n", "latin-1")
    with pytest.raises(DataError, match="no label column 'm' among 'p'"):
        profile_data(path, ["data.label_column=m"])
    path = write("b.csv", labelled(labels=["a/b", "b/c", "c"]))
    given = ["data.labels=multi", "data.label_separator=/"]
    assert reloaded(profile_data(path, given), path).data.label_separator == "/"


SCRIPTS = {
    "这部电影非常好看，演员也很好，值得一看再看": "cjk",
    "この映画はとても良かったです。": "cjk",
    "อาหารอร่อยมากที่กรุงเทพ ไปกับเพื่อน": "characters",
    "этот фильм мне очень понравился": "words",
    "यह फिल्म बहुत अच्छी थी": "words",
}


@pytest.mark.parametrize("text", SCRIPTS)
def test_texts_without_spaces_get_a_tokenizer_of_characters(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{text}{i}\t{i % 2}\n" for i in range(60)), "utf-8")
    config = config_for(path)
    assert (config.text.tokenizer, config.data.format) == (SCRIPTS[text], "text-label")


@pytest.mark.parametrize(
    ("num_words", "max_length", "has_dropout", "rate"), [(5, 20, 0, 4e-3), (33, 40, 0, 4e-3), (600, 400, 1, 2e-3)]
)
def test_length_dropout_and_rate_follow_the_texts(
    write: Write, num_words: int, max_length: int, has_dropout: int, rate: float
) -> None:
    config = config_for(write("a.csv", labelled(["word " * num_words] * 60)))
    assert (config.text.max_length, config.model.word_dropout > 0) == (max_length, has_dropout)
    assert config.train.learning_rate == rate


ENGLISH = [f"the film is one of those that you see with friends, part {i}" for i in range(60)]
DUTCH = [f"de film is er een van die je met vrienden ziet, deel {i}" for i in range(60)]


@pytest.mark.parametrize(
    ("texts", "is_installed", "init"),
    [
        (ENGLISH, True, ["en-300", "glove-6b-50d"]),
        (ENGLISH, False, "ppmi"),
        (DUTCH, True, "ppmi"),
        (ENGLISH * 20, True, "ppmi"),
    ],
    ids=["English", "English without the extra", "Dutch", "English and much of it"],
)
def test_english_texts_get_english_vectors_where_they_are_few(
    write: Write, monkeypatch: pytest.MonkeyPatch, texts: list[str], is_installed: bool, init: str | list[str]
) -> None:
    monkeypatch.setattr(starter, "has_vectors", lambda *_: is_installed)
    monkeypatch.setattr(starter, "MAX_TOKENS", 5_000)
    path = write("a.csv", labelled(texts))
    found = profile_data(path)
    config = reloaded(found, path)
    assert config.embedding.init == init
    assert ("pip install" in starter_config(found, path)) == (texts is ENGLISH and not is_installed)


def test_settings_follow_the_size_of_the_whole_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "MAX_ROWS", 50)
    path = write("a.csv", labelled(SENTENCES * 150))
    found = profile_data(path)
    assert (len(found.texts), found.is_whole) == (50, False)
    assert found.num_rows == pytest.approx(9000, rel=0.1)
    config = reloaded(found, path)
    assert (config.train.batch_size, config.data.valid, config.model.ngrams) == (32, 0.1, "nbsvm")


def test_few_texts_get_small_batches_and_keep_all_words(write: Write) -> None:
    config = config_for(write("a.csv", labelled(SENTENCES[:40])))
    found = (config.train.batch_size, config.text.min_freq, config.data.valid, config.model.ngrams)
    assert found == (8, 1, 0.2, None)


def test_many_labels_get_no_ngram_model(write: Write) -> None:
    rows = [(f"text number {i}", [f"tag {(i + j) % 600}" for j in range(i % 7)]) for i in range(800)]
    assert config_for(write("a.jsonl", as_jsonl([("text", "tags"), *rows]))).model.ngrams is None


ODD_NAMES = ["it's: a #1 [file].csv", "- yes.csv", "null.csv", "中文 데이터.csv", "a\nb\u2028c\x07.csv", "….csv"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_path_and_label_can_be_written_in_a_config(write: Write, name: str) -> None:
    labels = ["no", "null", "a: b # c", "new\nline\u2028\x07"]
    header = ["no: #", "yes, [no]"]
    path = write(name, [header, *labelled(labels=labels)[1:]])
    found = profile_data(path)
    config = reloaded(found, path)
    assert (config.data.train, config.data.label_column) == (str(path), "yes, [no]")
    assert num_read(config) == 60


def test_a_path_that_is_not_unicode_is_an_error(write: Write) -> None:
    with pytest.raises(DataError, match="cannot be written in a config"):
        starter_config(profile_data(write("a.csv", labelled())), Path("a\udcff.csv"))


@pytest.mark.parametrize(("content", "is_asked"), [("", False), ("text,label\n", False), ("text,label\nx,\n", True)])
def test_a_file_without_rows_is_no_question_of_columns(tmp_path: Path, content: str, is_asked: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.csv") as caught:
        profile_data(path)
    assert ("label_column" in str(caught.value)) == is_asked


UNBALANCED = labelled(labels=["a"] * 25 + [f"rare {i}" for i in range(20)])


@pytest.mark.parametrize(
    ("rows", "remark"),
    [
        (UNBALANCED, "20 labels have fewer than 10"),
        (UNBALANCED, "class_weights: balanced"),
        (labelled(labels=["neg", "Pos", "pos"]), "case alone: Pos, pos"),
        (labelled(labels=["neg", "pos", "NaN"]), "labelled NaN"),
        (labelled(labels=[f"{i / 7:.3f}" for i in range(60)]), "measurements"),
        (
            [("text", "split", "label"), *((s, ("train", "test")[i % 2], "a") for i, s in enumerate(SENTENCES))],
            "'split'",
        ),
        ([("text", "kind", "reason"), *((s, "ab"[i % 2], "cd"[i % 2]) for i, s in enumerate(SENTENCES))], "'reason'"),
        ([("text", "answer", "label"), *((s, s[::-1], "a") for s in SENTENCES)], "'answer'"),
    ],
)
def test_what_may_be_wrong_with_labels_and_columns_is_remarked_on(
    write: Write, rows: Sequence[Sequence[Any]], remark: str
) -> None:
    path = write("a.csv", rows)
    assert remark in starter_config(profile_data(path), path)


def test_a_heading_is_no_label(write: Write) -> None:
    rows = [(("Help", "Order", "Other")[i % 3], s, "ab"[i % 2]) for i, s in enumerate(SENTENCES)]
    assert profile_data(write("a.csv", [("subject", "message", "team"), *rows])).remarks == []


def test_a_test_split_without_labels_is_not_used(write: Write, tmp_path: Path) -> None:
    write("data/train.csv", labelled())
    write("data/test.csv", [("text",), *((text,) for text in SENTENCES)])
    found = profile_data(tmp_path / "data")
    assert found.splits == {"train": [str(tmp_path / "data" / "train.csv")]}
    assert reloaded(found, tmp_path / "data").data.test == 0.2
    assert "test.csv" in found.remarks[0]


# formats and files


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.CSV.gz", "", "csv"),
        ("a.pq", "", "parquet"),
        ("a.txt", '{"text": "x"}\n{"text": "y"}\n', "jsonl"),
        ("a.data", "PAR1....", "parquet"),
        ("a.txt", "pos\tx y\nneg\tz\npos\tw\n", "label-text"),
        ("a.txt", "好看的电影\t0\n难看\t1\n还行\t0\n", "text-label"),
        ("a.txt", "sentence\tlabel\nx\t1\ny\t0\n", "tsv"),
        ("a.txt", "pos;x, y\nneg;z, w\npos;so\n", "csv"),
    ],
)
def test_a_format_is_found_by_name_or_first_lines(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert detect_format(tmp_path / name) == expected


def test_labels_are_found_where_all_of_one_come_before_those_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.all").write_text("".join(f"{i // 5000} {SENTENCES[i % 60]} .\n" for i in range(10_000)))
    assert detect_format(tmp_path / "a.all") == "label-text"


@pytest.mark.parametrize(
    "content",
    [
        "one text\nanother line\nand more\n",
        "".join(f"{SENTENCES[i % 60]} z{i % 35}\n" for i in range(99)),
    ],
)
def test_between_words_alone_no_label_is_guessed_and_both_readings_are_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=r"label-text, or text-label") as caught:
        detect_format(path)
    assert repr(content.splitlines()[0])[:40] in str(caught.value)


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_files_are_named_by_path_pattern_list_and_folder(tmp_path: Path) -> None:
    names = ("b.csv", "a.csv", "[c].csv", "d.txt", "parts/1.jsonl", "parts/0.jsonl", "parts/README.md", "l/pos/1.txt")
    tree(tmp_path, *names)
    given = [f"{tmp_path}/?.csv", f"{tmp_path}/[c].csv", f"{tmp_path}/parts", f"{tmp_path}/l"]
    found = [str(path.relative_to(tmp_path)) for path in data_files(given)]
    assert found == ["a.csv", "b.csv", "[c].csv", "parts/0.jsonl", "parts/1.jsonl", "l"]
    with pytest.raises(DataError, match="matches no file"):
        data_files(f"{tmp_path}/x*.csv")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/pos/1.txt", "test/pos/1.txt", "README.md"], {"train": ["train"], "test": ["test"]}),
        (["train.csv", "dev.csv", "sample.csv"], {"train": ["train.csv"], "valid": ["dev.csv"]}),
        (["sst_training.tsv", "sst_test.tsv"], {"train": ["sst_training.tsv"], "test": ["sst_test.tsv"]}),
        (["train.txt", "val.txt"], {"train": ["train.txt"], "valid": ["val.txt"]}),
        (
            ["train-0-of-2.parquet", "train-1-of-2.parquet", "validation-0-of-1.parquet"],
            {"train": ["train-0-of-2.parquet", "train-1-of-2.parquet"], "valid": ["validation-0-of-1.parquet"]},
        ),
        (["train/1.txt", "plane/1.txt"], {}),
        (["test.csv"], {}),
    ],
)
def test_splits_of_a_folder_are_found(tmp_path: Path, names: list[str], expected: dict[str, list[str]]) -> None:
    found = find_splits(tree(tmp_path, *names))
    assert found == {split: [str(tmp_path / name) for name in files] for split, files in expected.items()}
