import csv
import datetime
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bilstm_cls.data import encoding as encoding_module
from bilstm_cls.data.readers import READERS, ReadOptions, read, read_label_names
from bilstm_cls.data.tables import Dialect
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError
from tests.data.conftest import Write
from tests.data.rows import pairs, skipping

ANY = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

texts = st.text(st.characters(exclude_categories=["Cs"]))
labels = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z", "Nd"]), min_size=1).filter(
    lambda label: label.strip()
)
rows_of_any_text = st.lists(st.tuples(texts, labels), min_size=1)


def error(path: Path, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(read(path, **kwargs))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path.parent}/")


# csv and tsv


@ANY
@given(rows=rows_of_any_text, newline=st.sampled_from(["\n", "\r\n"]), data=st.data())
def test_csv_gives_back_what_a_csv_writer_wrote(
    write: Write, rows: list[tuple[str, str]], newline: str, data: st.DataObject
) -> None:
    delimiter = data.draw(st.sampled_from(",;\t|"))
    is_needed = data.draw(st.booleans()) and not any("\r" in cell for row in rows for cell in row)
    # Before Python 3.13 the writer leaves a carriage return without quotes unless it belongs to its line end.
    quoting = csv.QUOTE_MINIMAL if is_needed else csv.QUOTE_ALL
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=newline, quoting=quoting).writerows([("text", "label"), *rows])
    assert pairs(write("a.csv", file.getvalue())) == rows


def test_a_line_is_where_the_record_starts_and_ends_at_line_feeds_only(write: Write) -> None:
    path = write("a.csv", 'text,label\n"one\r\ntwo\n",a\nx\u2028y\x85\x0b,b\n"\r",c\n')
    found = [(example.text, example.line) for example in read(path)]
    assert found == [("one\r\ntwo\n", 2), ("x\u2028y\x85\x0b", 5), ("\r", 6)]


def test_columns_are_joined_and_labels_stripped_and_records_kept(write: Write) -> None:
    path = write("a.csv", "id,title, label,body\n7, A , pos\u3000,b\n")
    (example,) = read(path, options=ReadOptions(text_columns=("title", "body"), keep_record=True))
    assert example == Example(" A \nb", "pos", str(path), 2, example.record)
    assert list((example.record or {}).values()) == ["7", " A ", " pos\u3000", "b"]


DIALECTS = {
    "the wanted columns decide": ('text;label;a, b, c, d\nx,y;pos;1\n', [("x,y", "pos")]),
    "apostrophes": ("text,label\n'tis it,pos\n'so' he said,neg\n", [("'tis it", "pos"), ("'so' he said", "neg")]),
    "inches": ('text,label\n5" nail,pos\na 3" pipe",neg\n', [('5" nail', "pos"), ('a 3" pipe"', "neg")]),
    "tsv": ('text\tlabel\n"it is\tneg\n5" nails"\tpos\n', [('"it is', "neg"), ('5" nails"', "pos")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIALECTS)
def test_a_dialect_is_found(write: Write, kind: str) -> None:
    content, expected = DIALECTS[kind]
    assert pairs(write("a.tsv" if "tsv" in kind else "a.csv", content)) == expected


@pytest.mark.parametrize(
    ("dialect", "content"),
    [
        (Dialect(delimiter=":::"), "text:::label\nx y:::pos\n"),
        (Dialect(quotechar="'"), "text,label\n'x y',pos\n"),
        (Dialect(escapechar="!"), "text,label\nx! y,pos\n"),
        (Dialect(skip_lines=2), "a,b\nc,d\ntext,label\nx y,pos\n"),
        (Dialect(comment="//"), "text,label\n//old,pos\nx y,pos\n"),
        (Dialect(quotechar="none"), "text,label\nx y,pos\n"),
    ],
)
def test_a_given_dialect_is_used(write: Write, dialect: Dialect, content: str) -> None:
    assert pairs(write("a.csv", content), options=ReadOptions(csv=dialect)) == [("x y", "pos")]


def test_lines_that_are_no_rows_are_counted_by_kind(write: Write) -> None:
    path = write("a.csv", 'text,label\n\nx,a\n\n# so,"\ntext,label\ny,b\n\n')
    remarks: list[BadRow] = []
    found = pairs(path, options=ReadOptions(csv=Dialect(comment="#")), on_bad_row=remarks.append)
    assert found == [("x", "a"), ("y", "b")]
    assert {(row.line, row.reason) for row in remarks} == {
        (2, "skipped 3 blank lines, the first here"),
        (5, "skipped 1 comment line"),
        (6, "skipped 1 repeated header"),
    }


# bad rows

CSV_FAULTS = {
    'x,pos\n"oops,neg\ny,pos\n': "not csv (unexpected end of data; is a quote missing?); the rest of the file is not",
    'x,pos\n"oops,neg\ny,pos\n"z",neg\n': "not csv (",
    'x,pos\n"a "b" c",neg\ny,pos\n': "not csv (",
    'x,pos\n"a\nb",neg,1\ny,pos\n': "3 fields over 2 lines (is a quote missing?), but the first row has 2",
    "x,pos\na,b,neg\ny,pos\n": "3 fields, but the first row has 2",
    "x,pos\na\ny,pos\n": "1 field, but the first row has 2",
    "x,pos\na, \u3000\ny,pos\n": "the label is empty",
    "x,pos\na\rb,neg\ny,pos\n": "not csv (new-line character",
}


@pytest.mark.parametrize("body", CSV_FAULTS)
def test_a_bad_csv_row_is_named_and_costs_no_other_unless_quotes_are_wrong(write: Write, body: str) -> None:
    path = write("a.csv", f"text,label\n{body}")
    assert error(path).startswith(f"a.csv:3: {CSV_FAULTS[body]}")
    assert "data.bad_rows" in error(path)
    found, bad = skipping(path)
    assert "".join(text for text, _ in found) == ("x" if '"' in body and "not csv" in CSV_FAULTS[body] else "xy")
    assert bad == [3]


OBJECT = '{"text": "x", "label": "a"}\n'
OTHER_FAULTS = [
    ("a.tsv", "text\tlabel\nx\ta\nx\ta\ty\n", "3 fields, but the first row has 2"),
    ("a.ft", "__label__a x\n\nno label\n", "the label is empty"),
    ("a.ft", "__label__a x\n\n__label__a __label__b y\n", "data.labels: multi"),
    ("a.jsonl", OBJECT + '\n{"text": "y", "label": NaN}\n', "the label is empty"),
    ("a.jsonl", OBJECT + '\n["y", "b"]\n', "has no 'text' among '#1', '#2'"),
    ("a.jsonl", OBJECT + '\n{"text": "y"}\n', "has no 'label' among 'text'"),
    ("a.jsonl", OBJECT + '\n{"text": 1, "label": "b"}\n', "'text' must be text, not 1"),
    ("a.jsonl", OBJECT + '\n{"text": "y", "label": 1.5}\n', "'label' must be text, a whole number"),
    ("a.jsonl", OBJECT + '\n{"text": "y", "label": ["a", "b"]}\n', "data.labels: multi"),
    ("a.jsonl", OBJECT + '\n{"text": "\\ud800", "label": "b"}\n', "lone surrogate (U+D800)"),
    ("a.jsonl", OBJECT + '\n{"text": "y", \n', "not JSON: "),
    ("a.jsonl", OBJECT + '\n{"text": "\x01"}\n', "not JSON: Invalid control character at column"),
    ("a.jsonl", OBJECT + "\n" + "[" * 100_000 + "\n", "nested too deep"),
    ("a.jsonl", OBJECT + '\n{"text": "y", "label": ' + "9" * 5000 + "}\n", "not JSON: Exceeds"),
    ("a.json", f'[{OBJECT},\n{{"text": 3}} {{}}]', "'text' must be text"),
    ("a.json", f'[{OBJECT},\n{{"text": "y" "z"}}]', "the rest of the file after it is not read"),
    ("a.json", f"[{OBJECT}\n]\n[{OBJECT}]", "the rest of the file after it is not read"),
]


@pytest.mark.parametrize(("name", "content", "reason"), OTHER_FAULTS)
def test_a_bad_row_is_named(write: Write, name: str, content: str, reason: str) -> None:
    path = write(name, content)
    assert error(path).startswith(f"{name}:3: ")
    assert reason in error(path)
    assert len(error(path)) < 250
    found, bad = skipping(path)
    assert [text.strip() for text, _ in found] == ["x"]
    assert bad[0] == 3


def test_what_is_too_long_is_a_bad_row(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "MAX_CHARACTERS", 300_000)
    long = "y " * 500_000
    csv.field_size_limit(300_000)  # as the command line does, to a larger number
    assert skipping(write("a.csv", f"text,label\nx,a\n{long},b\nz,c\n")) == ([("x", "a"), ("z", "c")], [3])
    assert skipping(write("a.jsonl", OBJECT + f'{{"text": "{long}", "label": "b"}}\n' + OBJECT))[1] == [2]
    assert pairs(write("a.csv", f'text,label\n"{"y" * 200_000}",b\n')) == [("y" * 200_000, "b")]


# json


@ANY
@given(rows=rows_of_any_text, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 2]), data=st.data())
def test_json_gives_back_what_was_written(
    write: Write, rows: list[tuple[str, str]], ensure_ascii: bool, indent: int | None, data: st.DataObject
) -> None:
    records = [{"text": text, "label": label} for text, label in rows]
    columns = {name: {str(i): record[name] for i, record in enumerate(records)} for name in ("text", "label")}
    split = {"columns": ["text", "label"], "index": [*range(len(rows))], "data": rows}
    arrays = {"note": "", "text": [text for text, _ in rows], "label": [label for _, label in rows]}
    documents: list[Any] = [records, columns, {"data": records}, split, arrays]
    written = data.draw(st.sampled_from([records, *([document] for document in documents)]))
    options: Any = {"ensure_ascii": ensure_ascii, "indent": None if written is records else indent}
    assert pairs(write("a.json", "".join(json.dumps(value, **options) + "\n" for value in written))) == rows


@pytest.mark.parametrize("content", ['["x", "a"]\n["y", "b"]\n', '[["x", "a"],\n["y", "b"]]'])
def test_rows_may_be_arrays(write: Write, content: str) -> None:
    options = ReadOptions(text_columns=("#1",), label_column="#2")
    assert pairs(write("a.json", content), options=options) == [("x", "a"), ("y", "b")]


def test_the_line_of_an_array_is_where_its_object_starts(write: Write) -> None:
    rows = '{"text": "x\\ny", "label": "a"}, {"text": "y", "label": "b"},\n\n{\n"text": "z", "label": "c"}'
    path = write("a.json", f"[\n {rows}\n]\n")
    assert [(e.text, e.line) for e in read(path)] == [("x\ny", 2), ("y", 2), ("z", 4)]


def test_a_large_document_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bilstm_cls.data.records.MAX_DOCUMENT_BYTES", 20)
    assert "one object a line" in error(write("a.json", f"[{OBJECT}]"))


def test_labels_may_be_numbers_or_truth_values(write: Write) -> None:
    values = {"3": "3", "-2.0": "-2", "true": "true", "false": "false", '" a "': "a", '"4.00"': "4", '"v1.0"': "v1.0"}
    path = write("a.jsonl", "".join(f'{{"text": "x", "label": {value}}}\n' for value in values))
    assert [label for _, label in pairs(path)] == list(values.values())
    path = write("a.csv", "text,label\nx,1.0\nx,1\nx,2.5\n")
    assert [label for _, label in pairs(path)] == ["1", "1", "2.5"]


# lines and folders


@pytest.mark.parametrize(
    ("data_format", "content", "expected"),
    [
        ("label-text", "pos\ta  b \n\nscience fiction\tc\r\n", [("a  b ", "pos"), ("c", "science fiction")]),
        ("label-text", "0 c\npos a\tb \n", [("c", "0"), ("a\tb ", "pos")]),
        ("text-label", "a b pos\nc neg \nd 1.0\n", [("a b", "pos"), ("c", "neg"), ("d", "1")]),
        ("fasttext", "__label__p a b\n__label__x-y\t c\nd __label__z\n", [("a b", "p"), (" c", "x-y"), ("d ", "z")]),
        ("fasttext", "__label__a, x, y\n__label__b,c ,z\n", [("x, y", "a"), (",z", "b,c")]),
        ("lines", "\ufeffa\n\nb\r\n \u2028\n", [("a", None), ("", None), ("b", None), (" \u2028", None)]),
    ],
)
def test_formats_of_one_text_a_line(write: Write, data_format: str, content: str, expected: list[Any]) -> None:
    assert pairs(write("a.txt", content), format=data_format) == expected


def test_a_folder_gives_a_text_a_file(write: Write, tmp_path: Path) -> None:
    for name in ("pos/2.txt", "pos/10.txt", "neg/a.TXT", "neg/.hidden.txt", "neg/notes.md", ".git/x.txt", "README.txt"):
        write(f"corpus/{name}", f"\ufeff{name}\n")
    found = [(e.text, e.label, e.path, e.line) for e in read(tmp_path / "corpus")]
    paths = {name: str(tmp_path / "corpus" / name) for name in ("neg/a.TXT", "pos/10.txt", "pos/2.txt")}
    assert found == [(f"{name}\n", name[:3], path, 1) for name, path in paths.items()]


def test_a_wrong_byte_in_a_folder_is_named(write: Write, tmp_path: Path) -> None:
    write("corpus/neg/1.txt", b"one\ntw\xf3\n")
    write("corpus/pos/1.txt", "fine")
    with pytest.raises(DataError, match=r"neg.1\.txt:1: byte 0xf3 is not utf-8"):
        list(read(tmp_path / "corpus"))
    auto = ReadOptions(encoding="auto")
    assert [e.text for e in read(tmp_path / "corpus", options=auto)] == ["one\ntwó\n", "fine"]


# Parquet and Arrow


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_rows_of_a_table_are_read_and_counted(tmp_path: Path, suffix: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    day, path, twice = datetime.date(2024, 1, 2), tmp_path / f"a{suffix}", tmp_path / f"twice{suffix}"
    table = pa.table({"day": [day] * 3, "text": ["x", "y", "z"], "label": [0.0, None, float("nan")]})
    for content, target in ((table, path), (table.rename_columns(["text", "text", "label"]), twice)):
        if suffix == ".parquet":
            pq.write_table(content, target)
        else:
            with pa.ipc.new_stream(str(target), content.schema) as writer:
                writer.write_table(content)
    assert "column 'text' is there twice" in error(twice)
    assert skipping(path) == ([("x", "0")], [2, 3])
    records = [row.record for row in read(path, options=ReadOptions(label_column=None, keep_record=True))]
    assert records[2] == {"day": "2024-01-02", "text": "z", "label": None}  # as JSON can have it


def test_a_table_without_pyarrow_names_the_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error(write("a.parquet", b"PAR1")).endswith("pip install 'bilstm-cls[parquet]'")


# files that are wrong as a whole


@pytest.mark.parametrize("data_format", READERS)
def test_an_empty_file_is_an_error(write: Write, tmp_path: Path, data_format: str) -> None:
    path = write("empty.bin", b"")
    if data_format == "folder":
        path = tmp_path / "empty"
        path.mkdir()
    assert error(path, format=data_format, bad_rows="skip").startswith(f"{path.name}: ")


@pytest.mark.parametrize(
    ("name", "content", "start"),
    [
        ("a.csv", "text,label\n", "a.csv: has a header and no rows"),
        ("a.csv", "\n\n", "a.csv:1: holds blank lines only"),
        ("a.csv", "Txt,label\nx,y\n", "a.csv:1: no text column 'text' among 'Txt', 'label'; name another"),
        ("a.csv", "text,label,text\nx,y,z\n", "a.csv:1: column 'text' is there twice"),
        ("a.csv", 'text,"label\nx,y\n', "a.csv:1: not csv (unexpected end"),
        ("a.csv", b"text,label\xff\nx,y\n", "a.csv:1: byte 0xff is not utf-8"),
        ("a.jsonl", '{"txt": "x", "label": "a"}\n', "a.jsonl:1: no text column 'text' among 'txt', 'label'; name"),
        ("a.parquet", b"PAR1 damaged", "a.parquet: cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_an_error_even_when_skipping(
    write: Write, name: str, content: str | bytes, start: str
) -> None:
    assert error(write(name, content), bad_rows="skip").startswith(start)


def test_what_does_not_fit_the_format_is_an_error(write: Write, tmp_path: Path) -> None:
    path = write("a.csv", "text,label\n")
    for place, data_format in ((tmp_path, "csv"), (path, "folder")):
        with pytest.raises(DataError, match=r"is a (folder|file), and format"):
            read(place, format=data_format)
    with pytest.raises(ConfigError, match="unknown data format 'cvs'; choose auto, csv"):
        read(path, format="cvs")


# names of numbered labels


def test_a_number_has_the_name_on_its_line_and_one_without_a_name_is_a_bad_row(write: Write) -> None:
    options = ReadOptions(label_names=read_label_names(write("names.txt", "\ufeffa\r\nb\r\nc\r\n"), "utf-8"))
    path = write("a.csv", "text,label\nx,1\ny,b\nz,7\n")
    assert error(path, options=options).startswith("a.csv:4: label '7' has no name")
    assert skipping(path, options=options) == ([("x", "b"), ("y", "b")], [4])


def test_a_file_that_does_not_name_labels_is_an_error(write: Write) -> None:
    with pytest.raises(DataError, match=r"names\.txt:3: "):
        read_label_names(write("names.txt", "a\nb\na\n"), "utf-8")
