"""Files as people have them: `init` writes a config under which every row is read as it was meant.

Each kind is written from the same rows by other means than ours (csv, json, pandas, pyarrow, datasets, or by hand), so
that what is read can be compared with what was written.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.types import Dataset
from bilstm_cls.errors import DataError
from tests.command_line import run_cli
from tests.conftest import reviews

Rows = list[tuple[str, str]]

ROWS = [(f"{text}, “naïve” {number}", label) for number, (text, label) in enumerate(reviews(80))]
TEXTS, LABELS = map(list, zip(*ROWS, strict=True))
PLAIN_ROWS = [(text.replace(",", "").replace("“naïve” ", ""), label) for text, label in ROWS]
THAI = [("ไปกับเพื่อน" * (i % 3 + 1) + ("อร่อยมาก" if i % 2 else "ไม่ชอบเลย") + f" {i}", "ab"[i % 2]) for i in range(80)]
LATIN = [(f"{text} costs £{number}", label) for number, (text, label) in enumerate(PLAIN_ROWS)]


def as_csv(rows: Any, *header: str, **dialect: Any) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n", **dialect).writerows([header, *rows] if header else rows)
    return file.getvalue()


def lines(rows: Rows, form: str) -> str:
    return "".join(form.format(text=text, label=label) + "\n" for text, label in rows)


def objects(rows: Rows) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows]


NUMBERED = [(text, str(int(label == "pos"))) for text, label in ROWS]
NUMBERED_PLAIN = [(text, str(int(label == "pos"))) for text, label in PLAIN_ROWS]
SIGNED = [(f'{text} "so" she said', label) for text, label in ROWS]
BARRED = [(f"'{text}|||{text}|||{text}'", label) for text, label in ROWS]
IDS = [(number, *row) for number, row in enumerate(ROWS)]
QUOTED = [(f'"So" {text}', label) for text, label in ROWS]
HEADED = [(f"{text[:9]}\n{text}", label) for text, label in ROWS]

TEXT_FILES: dict[str, tuple[str, str | bytes, Rows]] = {
    "usual names": ("a.csv", as_csv(((i, *row) for i, row in enumerate(ROWS)), "id", "Review", "Sentiment"), ROWS),
    "no header": ("a.csv", as_csv(((label, i, text) for i, (text, label) in enumerate(ROWS))), ROWS),
    "row index": ("a.csv", as_csv(((i, *row) for i, row in enumerate(ROWS)), "", "text", "label"), ROWS),
    "unnamed trailing columns": (
        "a.csv",
        as_csv(((y, x, "more" * (" 7" in x), "") for x, y in LATIN), "v1", "v2", "", "").encode("cp1252"),
        LATIN,
    ),
    "trailing delimiters": ("a.csv", "text,label\n" + lines(PLAIN_ROWS, "{text},{label},,"), PLAIN_ROWS),
    "column twice": ("a.csv", as_csv((("x", *row, "y") for row in ROWS), "note", "text", "label", "note"), ROWS),
    "semicolons": ("a.csv", as_csv(ROWS, "text", "label", delimiter=";"), ROWS),
    "Excel": ("a.csv", ("sep=;\n" + as_csv(ROWS, "text", "label", delimiter=";")).replace("\n", "\r\n"), ROWS),
    "Excel's Unicode text": ("a.csv", as_csv(ROWS, "text", "label", delimiter="\t").encode("utf-16"), ROWS),
    "backslash": ("a.csv", as_csv(SIGNED, "text", "label", escapechar="\\", doublequote=False), SIGNED),
    "spaces after commas": ("a.csv", "text, label\n" + lines(ROWS, '"{text}", {label}'), ROWS),
    "single quotes": ("a.csv", "'text','label'\n" + lines(ROWS, "'{text}','{label}'"), ROWS),
    "comments": ("a.csv", as_csv(ROWS, "text", "label").replace("text,label\n", "# page\ntext,label\n# more\n"), ROWS),
    "title above": ("a.csv", "Survey of March\n\n" + as_csv(ROWS, "text", "label"), ROWS),
    "title with a comma": ("a.csv", "Survey, of March\n\n" + as_csv(IDS, "id", "text", "label"), ROWS),
    "title over all columns": ("a.csv", "Survey,,\n,,\n" + as_csv(IDS, "id", "text", "label"), ROWS),
    "comments with commas": ("a.csv", "# page\n# version 2, final\n" + as_csv(ROWS, "text", "label"), ROWS),
    "marks in quotes in quotes": ("a.csv", as_csv([(y, x) for x, y in BARRED], "type", "posts"), BARRED),
    "colons and quotes": ("a.txt", lines(QUOTED, "{text} ::: {label}"), QUOTED),
    "words as delimiters": ("a.txt", lines(ROWS, "1_!_{label}_!_{text}"), ROWS),
    "carriage returns": ("a.csv", as_csv(ROWS, "text", "label").replace("\n", "\r"), ROWS),
    "whole floats": ("a.csv", as_csv(((t, f"{label}.0") for t, label in NUMBERED), "text", "score"), NUMBERED),
    "tsv": ("a.tsv", "label\ttext\n" + lines(SIGNED, "{label}\t{text}"), SIGNED),
    "tsv with quotes": ("a.tsv", as_csv(HEADED, "text", "label", delimiter="\t"), HEADED),
    "table in a txt": ("a.txt", as_csv(ROWS, "text", "label", delimiter="|"), ROWS),
    "space, label last": ("a.txt", lines(NUMBERED_PLAIN, "{text} {label}"), NUMBERED_PLAIN),
    "space, label first": ("a.txt", lines(NUMBERED_PLAIN, "{label} {text}"), NUMBERED_PLAIN),
    "colons": ("a.txt", lines(ROWS, "{text} ::: {label}"), ROWS),
    "fastText": ("a.txt", lines(ROWS, "__label__{label} {text}"), ROWS),
    "Thai": ("a.csv", as_csv(THAI, "text", "label"), THAI),
    "JSON lines": ("a.jsonl", "".join(json.dumps(o) + "\n" for o in objects(ROWS)), ROWS),
    "JSON blank lines": ("a.jsonl", "".join(json.dumps(o) + "\n\n" for o in objects(ROWS)), ROWS),
    "JSON array": ("a.json", json.dumps(objects(ROWS)), ROWS),
    "JSON data": ("a.json", json.dumps({"version": "1.0", "data": objects(ROWS)}), ROWS),
    "JSON columns of arrays": ("a.json", json.dumps({"text": TEXTS, "label": LABELS}), ROWS),
    "JSON pairs": ("a.json", json.dumps(ROWS), ROWS),
    "JSON texts by label": ("a.json", json.dumps({y: [x for x, z in ROWS[:75] if z == y] for y in LABELS}), ROWS[:75]),
    "JSON floats": ("a.jsonl", "".join(json.dumps({"text": x, "y": float(y)}) + "\n" for x, y in NUMBERED), NUMBERED),
}  # fmt: skip


def pandas_json(orient: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame(ROWS, columns=["text", "label"]).to_json(folder / "a.json", orient=orient)
        return folder / "a.json"

    return write


def hub_dataset() -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    columns = {"text": [t for t, _ in ROWS], "label": [int(label == "pos") for _, label in ROWS]}
    return datasets.Dataset.from_dict(columns, features=features)


def class_label_parquet(folder: Path) -> Path:
    hub_dataset().to_parquet(str(folder / "a.parquet"))
    return folder / "a.parquet"


def feather(folder: Path) -> Path:
    pa, feather = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.feather")
    feather.write_feather(pa.table({"text": TEXTS, "label": LABELS}), folder / "a.arrow")
    return folder / "a.arrow"


def folder_of_parts(folder: Path) -> Path:
    for number in range(4):
        (folder / f"part-{number}.csv").write_text(as_csv(ROWS[number::4], "text", "label"), "utf-8")
    return folder


def parts(folder: Path) -> Path:
    return folder_of_parts(folder) / "part-*.csv"


def folders(folder: Path) -> Path:
    for number, (text, label) in enumerate(ROWS):
        path = folder / ("test" if number >= 60 else "train") / label / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def split_files(folder: Path) -> Path:
    for name, rows in {"train.csv": ROWS[:60], "dev.csv": ROWS[60:70], "test.csv": ROWS[70:]}.items():
        (folder / name).write_text(as_csv(rows, "text", "label"), "utf-8")
    return folder


OTHERS: dict[str, Callable[[Path], Path]] = {
    **{f"pandas {orient}": pandas_json(orient) for orient in ("columns", "records", "split", "index", "values")},
    "Parquet with class names": class_label_parquet, "Feather": feather,
    "pattern": parts, "folder of parts": folder_of_parts, "folders": folders, "files of splits": split_files,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def written(folder: Path, kind: str) -> tuple[Path, Rows]:
    """Writes a file of a kind; returns its path, and the rows that are in it."""
    if kind in OTHERS:
        return OTHERS[kind](folder), ROWS
    name, content, rows = TEXT_FILES[kind]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name, rows


def config_of(path: Path, *overrides: str) -> Config:
    """Returns the config that `init` writes."""
    config = path.parent.parent / "config.yaml"
    outcome = run_cli("init", "--data", path, "-o", config, "--overwrite")
    assert outcome.code == 0, outcome.stderr
    return load_config(config, overrides)


def rows_of(dataset: Dataset) -> Counter[tuple[str, str]]:
    return Counter(
        (text, dataset.labels[label_id])
        for split in dataset.splits.values()
        for text, label_id in zip(split.texts, split.label_ids, strict=True)
    )


@pytest.mark.parametrize("kind", [*TEXT_FILES, *OTHERS])
def test_every_row_is_read_as_it_was_meant(kind: str, folder: Path) -> None:
    path, rows = written(folder, kind)
    dataset = load_dataset(config_of(path).data)
    assert rows_of(dataset) == Counter(rows)
    assert dataset.counts["skipped"] == 0
    assert {"train", "valid", "test"} <= set(dataset.splits)


@pytest.mark.parametrize("kind", ["folders", "files of splits"])
def test_the_splits_of_a_folder_are_kept(kind: str, folder: Path) -> None:
    path, rows = written(folder, kind)
    dataset = load_dataset(load_config(None, [f"data.train={path}"]).data)
    assert sorted(dataset.splits["test"].texts) == sorted(text for text, _ in rows[60 if kind == "folders" else 70 :])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(dict(ROWS))),
        ("a.json", json.dumps({"train": objects(ROWS), "test": objects(ROWS[:9])})),
        ("a.csv", as_csv(ROWS, "te\0xt", "label")),
        ("a.xml", "<rows></rows>"),
        ("a.xml", lines(ROWS, '<row>\n  <text>{text} .</text>\n  <label is="{label}"/>\n</row>')),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content, "utf-8")
    outcome = run_cli("init", "--data", folder / name)
    assert (outcome.code, outcome.stderr.count("\n")) == (3, 1), outcome.stderr
    assert name in outcome.stderr


def test_a_date_that_python_does_not_have_is_refused_in_one_line(folder: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    times = pa.array([0, 2**62] * (len(TEXTS) // 2), pa.timestamp("us"))
    pq.write_table(pa.table({"text": TEXTS, "label": times}), folder / "a.parquet")
    outcome = run_cli("init", "--data", folder / "a.parquet")
    assert (outcome.code, outcome.stderr.count("\n")) == (3, 1), outcome.stderr


SETS = [(text, {label, *(["extra"] if i % 3 == 0 else [])} - ({label} if i % 4 == 0 else set()))
        for i, (text, label) in enumerate(PLAIN_ROWS)]  # fmt: skip
"""Texts with one label, two, or none."""
NAMES = ("neg", "pos", "extra", "never")


ONE_HOT = as_csv(
    ((i, x, *(int(name in y) for name in NAMES)) for i, (x, y) in enumerate(SETS)), "id", "comment", *NAMES
)


def one_column(form: Callable[[list[str]], str]) -> str:
    return as_csv(((text, form(sorted(labels))) for text, labels in SETS), "text", "label")


def fasttext(mark: str) -> str:
    return "".join(mark.join(f"__label__{label}" for label in labels) + f" {text}\n" for text, labels in SETS)


MULTI = {
    "columns of 1 and 0": ("a.csv", ONE_HOT),
    "bars": ("a.csv", one_column("|".join)),
    "semicolons": ("a.csv", one_column("; ".join)),
    "lists in text": ("a.csv", one_column(repr)),
    "JSON lists": ("a.jsonl", "".join(json.dumps({"text": x, "tags": [*y]}) + "\n" for x, y in SETS)),
    "fastText": ("a.txt", fasttext(" ")),
    "fastText with commas": ("a.txt", fasttext(", ")),
}


@pytest.mark.parametrize("kind", MULTI)
def test_several_labels_of_a_text_are_found_and_read(kind: str, folder: Path) -> None:
    name, content = MULTI[kind]
    (folder / name).write_text(content, "utf-8")
    config = config_of(folder / name)
    assert (config.data.labels, config.train.select_by) == ("multi", "valid/average_precision")
    dataset = load_dataset(config.data)
    found = {
        text.strip(): {dataset.labels[i] for i in row.nonzero()[0]}
        for split in dataset.splits.values()
        for text, row in zip(split.texts, split.label_ids, strict=True)
    }
    assert found == dict(SETS)
    assert ("never" in dataset.labels) == (kind == "columns of 1 and 0")


def test_what_is_neither_1_nor_0_is_a_bad_row(folder: Path) -> None:
    content = ONE_HOT.splitlines()
    content[9] = content[9].rpartition(",")[0] + ",2"
    (folder / "a.csv").write_text("\n".join(content), "utf-8")
    config = config_of(folder / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv:10: 'never' must be 1 or 0"):
        load_dataset(config.data)
