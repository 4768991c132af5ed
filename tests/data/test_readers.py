import csv
import gzip
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bilstm_cls.data.readers import READERS, ReadOptions, detect_format, read
from bilstm_cls.data.readers import csv as readers_csv
from bilstm_cls.data.readers import decoding as readers_decoding
from bilstm_cls.data.readers import encoding as readers_encoding
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError

Write = Callable[..., Path]
NO_LABEL = ReadOptions(label_column=None)

texts = st.text(st.characters(exclude_categories=["Cs"]))
labels = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1).filter(lambda label: label.strip())
rows_of_any_text = st.lists(st.tuples(texts, labels), min_size=1)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def pairs(path: Path, **kwargs: Any) -> list[tuple[str, str | None]]:
    return [(example.text, example.label) for example in read(path, **kwargs)]


def skipping(path: Path, **kwargs: Any) -> tuple[list[tuple[str, str | None]], list[BadRow]]:
    bad: list[BadRow] = []
    return pairs(path, bad_rows="skip", on_bad_row=bad.append, **kwargs), bad


def complaint(path: Path, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(read(path, **kwargs))
    return str(caught.value).replace(f"{path.parent}{os.sep}", "")


# csv


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=rows_of_any_text, newline=st.sampled_from(["\n", "\r\n"]), data=st.data())
def test_csv_gives_back_what_a_csv_writer_wrote(
    write: Write, rows: list[tuple[str, str]], newline: str, data: st.DataObject
) -> None:
    delimiter = data.draw(st.sampled_from(",;\t|"))
    quoting = data.draw(st.sampled_from(["all", "where needed"]))
    file = io.StringIO(newline="")
    is_needed = quoting == "where needed" and not any("\r" in cell for row in rows for cell in row)
    # Before Python 3.13 the writer leaves a carriage return without quotes unless it belongs to its line end.
    writer = csv.writer(
        file, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_MINIMAL if is_needed else csv.QUOTE_ALL
    )
    writer.writerows([("text", "label"), *rows])
    assert pairs(write("a.csv", file.getvalue())) == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "shift_jis"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\r\n"映画、\n良い",pos\r\nひどい,neg\r\n'),
        ("a.tsv", "text\tlabel\r\n映画、良い\tpos\r\nひどい\tneg\r\n"),
        ("a.txt", "pos\t映画、良い\r\nneg\tひどい\r\n"),
        ("a.jsonl", '{"text": "映画、良い", "label": "pos"}\r\n{"text": "ひどい", "label": "neg"}\r\n'),
    ],
)
def test_any_text_codec_is_read(write: Write, name: str, content: str, encoding: str) -> None:
    path = write(name, content, encoding)
    data_format = "label-text" if name == "a.txt" else "auto"
    found = pairs(path, format=data_format, options=ReadOptions(encoding=encoding))
    assert found == [("映画、\n良い" if name == "a.csv" else "映画、良い", "pos"), ("ひどい", "neg")]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le", "gb18030", "windows-1252"]
)
def test_auto_finds_the_encoding_and_says_it(write: Write, caplog: pytest.LogCaptureFixture, encoding: str) -> None:
    text = (
        "这部电影非常好看，我们都很喜欢，演员的表演也很精彩" if encoding == "gb18030" else "très café, déjà vu à l’été"
    )
    path = write("a.csv", f'text,label\n"{text}",pos\n', encoding)
    with caplog.at_level(logging.INFO):
        assert pairs(path, options=ReadOptions(encoding="auto")) == [(text, "pos")]
    assert f"reading as {encoding.removesuffix('-sig')}" in caplog.text


def test_auto_finds_a_byte_that_is_not_utf8_deep_in_a_file(write: Write) -> None:
    content = b"text,label\n" + b"plain,pos\n" * 60_000 + "naïve café,neg\n".encode("windows-1252")
    assert pairs(write("a.csv", content), options=ReadOptions(encoding="auto"))[-1] == ("naïve café", "neg")


def test_a_line_is_where_the_record_starts_and_ends_at_line_feeds_only(write: Write) -> None:
    path = write("a.csv", 'text,label\n"one\r\ntwo\n",a\nx\u2028y\x85\x0b,b\n"\r",c\n')
    found = [(example.text, example.line) for example in read(path)]
    assert found == [("one\r\ntwo\n", 2), ("x\u2028y\x85\x0b", 5), ("\r", 6)]


def test_columns_are_joined_and_labels_stripped_and_records_kept(write: Write) -> None:
    path = write("a.csv", "id,title, label,body\n7, A , pos\u3000,b\n")
    options = ReadOptions(text_columns=("title", "body"), keep_record=True)
    (example,) = read(path, options=options)
    assert example == Example(" A \nb", "pos", str(path), 2, example.record)
    assert list((example.record or {}).items()) == [
        ("id", "7"),
        ("title", " A "),
        ("label", " pos\u3000"),
        ("body", "b"),
    ]


def test_an_empty_text_is_a_text(write: Write) -> None:
    assert pairs(write("a.csv", 'text,label\n,pos\n"",neg\n')) == [("", "pos"), ("", "neg")]


@pytest.mark.parametrize(
    ("content", "is_doubtful"),
    [
        ('label,title,text\npos,a,b\npos,A title,"A first line.\n\nA second, with a comma."\n', False),
        ('label,title,text\npos,a,b\nneg,A title,"wrong\npos,another,quotes"\n', True),
        ('text,label\nfine,neg\n"wrong,neg\nquotes",pos\n', True),
        ('text,label\nfine,neg\n"first line\nsecond line",pos\n', False),
    ],
)
def test_a_text_of_several_lines_is_doubtful_where_another_row_is_in_it(
    content: str, is_doubtful: bool, write: Write
) -> None:
    columns = tuple(name for name in content.partition("\n")[0].split(",") if name != "label")
    rows = list(READERS["csv"](write("t.csv", content), ReadOptions(text_columns=columns, label_column="label")))
    assert [row.line for row in rows if isinstance(row, BadRow)] == [3] * is_doubtful


def test_labels_that_are_not_wanted_may_be_missing(write: Write) -> None:
    assert pairs(write("a.csv", "text\nx\ny\n"), options=NO_LABEL) == [("x", None), ("y", None)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_columns_by_position_mean_that_there_is_no_header(write: Write, name: str) -> None:
    delimiter = "," if name == "a.csv" else "\t"
    path = write(name, "3,wall,street\n4,new,chip\n".replace(",", delimiter))
    options = ReadOptions(text_columns=("#2", "#3"), label_column="#1", keep_record=True)
    examples = list(read(path, options=options))
    assert [(e.text, e.label, e.line) for e in examples] == [("wall\nstreet", "3", 1), ("new\nchip", "4", 2)]
    assert examples[0].record == {"#1": "3", "#2": "wall", "#3": "street"}


def test_a_column_without_a_name_goes_by_its_position(write: Write) -> None:
    path = write("a.csv", ",text,label\n0,x,pos\n")
    (example,) = read(path, options=ReadOptions(keep_record=True))
    assert example.record == {"#1": "0", "text": "x", "label": "pos"}


@pytest.mark.parametrize("header", ['text;label;"a, b, c"', "text;label;a, b, c, d", "text;label;a|b|c|d"])
def test_the_delimiter_is_the_one_that_gives_the_wanted_columns(write: Write, header: str) -> None:
    assert pairs(write("a.csv", f"{header}\nx,y;pos;1\n")) == [("x,y", "pos")]


def test_tsv_takes_quotes_for_characters(write: Write) -> None:
    path = write("a.tsv", 'text\tlabel\n"it is\tneg\n5" nails"\tpos\n')
    assert pairs(path) == [('"it is', "neg"), ('5" nails"', "pos")]


def test_a_record_may_be_longer_than_a_block(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_encoding, "BLOCK_BYTES", 7)
    rows = [("é\n" * 40, "pos"), ("short", "neg"), ("\n\n中", "pos")]
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    path = write("a.csv", file.getvalue())
    assert [(e.text, e.line) for e in read(path)] == [(rows[0][0], 2), ("short", 43), ("\n\n中", 44)]


# bad rows


CSV_FAULTS = {
    'x,pos\n"oops,neg\ny,pos\n': (3, "a quote opens here and never closes", "xy"),
    'x,pos\n"oops,neg\ny,pos\n"z",neg\n': (3, "a quote closes in the middle of a field", "xyz"),
    'x,pos\n"a "b" c",neg\ny,pos\n': (3, "a quote closes in the middle of a field", "xy"),
    'x,pos\n5" nail,neg\ny,pos\n': (3, "its quotes do not pair up", "xy"),
    'x,pos\noops",neg\ny,pos\n': (3, "its quotes do not pair up", "xy"),
    'x,pos\n"a\nb",neg,1\ny,pos\n': (3, "3 fields over 2 lines (is a quote missing?), but the first row has 2", "xy"),
    'x,pos\n"a\nb "c" d",neg\ny,pos\n': (3, "a quote closes in the middle of a field", "xy"),
    'x,pos\na\n\nb",neg\ny,pos\n': (3, "1 field, but the first row has 2, in lines 3 to 5", "xy"),
    "x,pos\na,b,neg\ny,pos\n": (3, "3 fields, but the first row has 2", "xy"),
    "x,pos\na\ny,pos\n": (3, "1 field, but the first row has 2", "xy"),
    "x,pos\na, \u3000\ny,pos\n": (3, "the label is empty", "xy"),
    "x,pos\n\n\ny,pos\n\n\n": (3, "a blank line", "xy"),
    "x,pos\na\rb,neg\ny,pos\n": (3, "a carriage return outside quotes", "xy"),
}


@pytest.mark.parametrize("body", CSV_FAULTS)
def test_a_bad_csv_row_is_named_and_no_other_is_lost(write: Write, body: str) -> None:
    line, reason, kept = CSV_FAULTS[body]
    path = write("a.csv", f"text,label\n{body}")
    told = complaint(path)
    assert told.startswith(f"a.csv:{line}: {reason}")
    assert told.endswith("; mend the row, or set data.bad_rows: skip")
    found, bad = skipping(path)
    assert "".join(text for text, _ in found) == kept
    assert bad[0].line == line


def test_blank_lines_between_rows_are_counted_one_by_one(write: Write) -> None:
    found, bad = skipping(write("a.csv", "text,label\nx,a\n\n\ny,b\n\n"))
    assert found == [("x", "a"), ("y", "b")]
    assert [row.line for row in bad] == [3, 4]


def test_two_faults_close_together_cost_no_other_row(write: Write) -> None:
    found, bad = skipping(write("a.csv", 'text,label\n"a,x\nb,x\nc,x\nd,x\n5" e,x\nf,x\ng\nh,x\n'))
    assert [text for text, _ in found] == ["b", "c", "d", "f", "h"]
    assert [row.line for row in bad] == [2, 6, 8]


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("a.tsv", "text\tlabel\nx\ta\ty\n", 2, "3 fields, but the first row has 2"),
        ("a.tsv", "text\tlabel\nx\t \n", 2, "the label is empty"),
        ("a.tsv", "text\tlabel\nx\ta\n\ny\tb\n", 3, "a blank line"),
        ("a.ft", "__label__a x\nno label\n", 2, "has no label (__label__NAME)"),
        ("a.ft", "__label__a x\n__label__a __label__b y\n", 2, "has 2 labels, but each text takes one"),
        ("a.ft", "__label__a x\n\n__label__b y\n", 2, "a blank line"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y", "label": NaN}\n', 2, "not JSON: NaN is no number"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y", "text": "z"}\n', 2, "not JSON: key 'text' is there"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n["y", "b"]\n', 2, "must be a JSON object, not ['y', 'b']"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"}\n', 2, "has no 'label' among 'text'"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": 1, "label": "b"}\n', 2, "'text' must be text, not 1"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": null, "label": "b"}\n', 2, "'text' must be text, not null"),
        (
            "a.jsonl",
            '{"text": "x", "label": "a"}\n{"text": "y", "label": 1.5}\n',
            2,
            "'label' must be text, an integer",
        ),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y", "label": " "}\n', 2, "the label is empty"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "\\ud800", "label": "b"}\n', 2, "half a character (U+D800)"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y", \n', 2, "not JSON: "),
        ("a.jsonl", '{"text": "x", "label": "a"}\n\n{"text": "y", "label": "b"}\n', 2, "a blank line"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n' + "[" * 100_000 + "\n", 2, "nested too deep"),
        (
            "a.jsonl",
            '{"text": "x", "label": "a"}\n{"text": "y", "label": ' + "9" * 5000 + "}\n",
            2,
            "not JSON: Exceeds",
        ),
    ],
)
def test_a_bad_row_is_named(write: Write, name: str, content: str, line: int, reason: str) -> None:
    path = write(name, content)
    told = complaint(path)
    assert told.startswith(f"{name}:{line}: ")
    assert reason in told
    assert len(told) < 250
    found, bad = skipping(path)
    assert [text.strip() for text, _ in found] == ["x", "y"] if "blank" in reason else ["x"]
    assert [row.line for row in bad] == [line]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "gb18030", "utf-16-le", "shift_jis", "iso2022_jp"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.ft"])
def test_a_byte_that_cannot_be_decoded_is_named_deep_in_a_file(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str
) -> None:
    monkeypatch.setattr(readers_encoding, "BLOCK_BYTES", 997)
    header = {"a.csv": "text,label\n", "a.tsv": "text\tlabel\n"}.get(name, "")
    text = "Q" if encoding == "ascii" else "Q中中中"  # which blocks of 997 bytes cut apart
    row = {
        "a.csv": f"{text},pos\n",
        "a.tsv": f"{text}\tpos\n",
        "a.txt": f"pos {text}\n",
        "a.jsonl": f'{{"text": "{text}", "label": "pos"}}\n',
        "a.ft": f"__label__pos {text}\n",
    }[name].encode(encoding)
    num_before = 1000
    wrong = b"\x00\xdc" if encoding == "utf-16-le" else b"\xff"
    harmed = row.replace("Q".encode(encoding), "Q".encode(encoding) + wrong)
    path = write(name, header.encode(encoding) + row * num_before + harmed + row * 5)
    kwargs = {"options": ReadOptions(encoding=encoding), "format": "label-text" if name == "a.txt" else "auto"}
    line = num_before + bool(header) + 1
    told = complaint(path, **kwargs)
    assert told.startswith(f"{name}:{line}: byte 0x{'00' if encoding == 'utf-16-le' else 'ff'} is not {encoding} (set")
    found, bad = skipping(path, **kwargs)
    assert found == [(text, "pos")] * (num_before + 5)
    assert [row.line for row in bad] == [line]


def test_half_a_character_of_a_codec_that_lets_it_pass_is_a_bad_row(write: Write) -> None:
    path = write("a.csv", b"text,label\nx+2AA-,pos\ny,neg\n")
    assert complaint(path, options=ReadOptions(encoding="utf-7")).startswith("a.csv:2: half a character (U+D800)")


def test_a_wrong_byte_in_a_long_record_is_placed(write: Write) -> None:
    path = write("a.csv", b'text,label\n"one\ntwo\nthr\xe9e",pos\nx,neg\n')
    assert complaint(path).startswith("a.csv:2: byte 0xe9 2 lines further down is not utf-8")


def test_what_is_too_long_is_a_bad_row(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_decoding, "MAX_CHARACTERS", 1000)
    path = write("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "' + "y" * 2000 + '", "label": "b"}\n')
    assert complaint(path).startswith("a.jsonl:2: longer than 16 MiB")
    assert len(skipping(path)[0]) == 1


def test_a_line_of_many_blocks_is_cut_and_reported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_decoding, "MAX_CHARACTERS", 300_000)
    monkeypatch.setattr(readers_csv, "MAX_CHARACTERS", 300_000)
    path = write("a.csv", "text,label\nx,a\n" + "y " * 500_000 + ",b\nz,c\n")
    found, bad = skipping(path)
    assert found == [("x", "a"), ("z", "c")]
    assert [row.line for row in bad] == [3]


def test_fields_longer_than_the_csv_modules_own_limit_are_read(write: Write) -> None:
    assert pairs(write("a.csv", f'text,label\n"{"y" * 300_000}",b\n')) == [("y" * 300_000, "b")]


def test_skipped_rows_are_logged_unless_the_caller_counts_them(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert pairs(write("a.csv", "text,label\nx,a\ny\n"), bad_rows="skip") == [("x", "a")]
    assert "a.csv:3: 1 field" in caplog.text


def test_advice_about_bad_rows_is_for_those_who_can_follow_it(write: Write) -> None:
    assert complaint(write("a.csv", "text,id\nx\n"), options=NO_LABEL).endswith("; mend the row")


# other formats


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=rows_of_any_text, ensure_ascii=st.booleans())
def test_jsonl_gives_back_what_was_written(write: Write, rows: list[tuple[str, str]], ensure_ascii: bool) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=ensure_ascii) for text, label in rows]
    assert pairs(write("a.jsonl", "".join(f"{line}\n" for line in lines))) == rows


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(written=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")), min_size=1))
def test_lines_give_one_text_a_line(write: Write, written: list[str]) -> None:
    path = write("a.txt", "".join(f"{line}\n" for line in written))
    found = pairs(path, format="lines", options=NO_LABEL)
    assert [text for text, _ in found] == [written[0].removeprefix("\ufeff"), *written[1:]]


def test_jsonl_labels_may_be_numbers_or_truth_values(write: Write) -> None:
    path = write(
        "a.jsonl", "".join(f'{{"text": "x", "label": {value}}}\n' for value in ("3", "true", "false", '" a "'))
    )
    assert [label for _, label in pairs(path)] == ["3", "true", "false", "a"]


def test_jsonl_keeps_the_whole_record_in_order(write: Write) -> None:
    path = write("a.jsonl", '{"id": 1, "text": "x", "label": "a", "more": {"list": [1, null]}}\n')
    (example,) = read(path, options=ReadOptions(keep_record=True))
    assert json.dumps(example.record) == '{"id": 1, "text": "x", "label": "a", "more": {"list": [1, null]}}'


@pytest.mark.parametrize(
    ("data_format", "content", "expected"),
    [
        ("label-text", "pos\ta  b \nscience fiction\tc\r\n", [("a  b ", "pos"), ("c", "science fiction")]),
        ("label-text", "0 c\npos a\tb \n", [("c", "0"), ("a\tb ", "pos")]),
        ("text-label", "a\tb\tpos\nc\tneg\n", [("a\tb", "pos"), ("c", "neg")]),
        ("text-label", "a b pos\nc neg \n", [("a b", "pos"), ("c", "neg")]),
        (
            "fasttext",
            "__label__pos a b\n__label__x-y\t c\nd __label__z\n",
            [("a b", "pos"), (" c", "x-y"), ("d ", "z")],
        ),
        ("lines", "a\n\nb\r\n \u2028\n", [("a", None), ("", None), ("b", None), (" \u2028", None)]),
    ],
)
def test_formats_of_one_text_a_line(
    write: Write, data_format: str, content: str, expected: list[tuple[str, str | None]]
) -> None:
    assert pairs(write("a.txt", content), format=data_format) == expected


def test_a_line_without_the_tab_of_the_first_line_is_a_bad_row(write: Write) -> None:
    path = write("a.txt", "pos\tx\nneg y\n")
    assert complaint(path, format="label-text").startswith("a.txt:2: has no tab between label and text")


def test_a_folder_gives_a_text_a_file(write: Write, tmp_path: Path) -> None:
    for name in ("pos/2.txt", "pos/10.txt", "neg/a.TXT", "neg/.hidden.txt", "neg/notes.md", ".git/x.txt", "README.txt"):
        path = write(f"corpus/{name}", f"\ufeff{name}\n")
    examples = list(read(tmp_path / "corpus"))
    assert [(e.text, e.label, e.line) for e in examples] == [
        ("neg/a.TXT\n", "neg", 1),
        ("pos/10.txt\n", "pos", 1),
        ("pos/2.txt\n", "pos", 1),
    ]
    assert examples[1].path == str(tmp_path / "corpus" / "pos" / "10.txt")
    assert path.exists()


def test_a_wrong_byte_in_a_folder_is_placed(write: Write, tmp_path: Path) -> None:
    write("corpus/neg/1.txt", b"one\ntw\xf3\n")
    write("corpus/pos/1.txt", "fine")
    with pytest.raises(DataError, match=r"neg.1\.txt:2: byte 0xf3 is not utf-8"):
        list(read(tmp_path / "corpus"))
    auto = ReadOptions(encoding="auto")
    assert [e.text for e in read(tmp_path / "corpus", options=auto)] == ["one\ntwó\n", "fine"]


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write_table(**columns: Any) -> Path:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write_table


def test_parquet_rows_are_read_and_counted(write_table: Callable[..., Path]) -> None:
    path = write_table(id=[1, 2, 3], text=["x", "y", "z"], label=[0, 1, None])
    found, bad = skipping(path)
    assert found == [("x", "0"), ("y", "1")]
    assert [(row.line, row.reason) for row in bad] == [
        (3, "row 3: 'label' must be text, an integer or true or false, not null")
    ]


def test_parquet_records_can_be_written_as_json(write_table: Callable[..., Path]) -> None:
    import datetime

    path = write_table(text=["x"], label=["a"], day=[datetime.date(2024, 1, 2)], score=[float("nan")])
    (example,) = read(path, options=ReadOptions(keep_record=True))
    assert example.record == {"text": "x", "label": "a", "day": "2024-01-02", "score": None}


def test_parquet_columns_that_are_missing_are_named(write_table: Callable[..., Path]) -> None:
    assert "no text column 'text' among 'Text', 'label'; did you mean 'Text'?" in complaint(
        write_table(Text=["x"], label=["a"])
    )


def test_parquet_without_pyarrow_names_the_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert complaint(write("a.parquet", b"PAR1")).endswith("pip install 'bilstm-cls[parquet]'")


# files that are wrong as a whole


@pytest.mark.parametrize("data_format", READERS)
def test_an_empty_file_is_an_error(write: Write, tmp_path: Path, data_format: str) -> None:
    path = write("empty.bin", b"")
    if data_format == "folder":
        path = tmp_path / "empty"
        path.mkdir()
    assert complaint(path, format=data_format, bad_rows="skip").startswith(f"{path.name}: ")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "text,label\n", "a.csv: has a header and no rows"),
        ("a.csv", "\n\n", "a.csv:1: a blank line, in the header"),
        ("a.csv", "Txt,label\nx,y\n", "a.csv:1: no text column 'text' among 'Txt', 'label'; did you mean 'Txt'?"),
        ("a.csv", "text,Class\nx,y\n", "a.csv:1: no label column 'label' among 'text', 'Class'; name another"),
        ("a.csv", "text,label,text\nx,y,z\n", "a.csv:1: column 'text' is there twice"),
        ("a.csv", 'text,"label\nx,y\n', "a.csv:1: a quote opens here and never closes, in the header"),
        ("a.csv", "text,label\rx,y\r", "a.csv:1: a carriage return outside quotes, in the header"),
        ("a.csv", "t\0e\0x\0t\0\n\0", "a.csv:1: the header holds NUL"),
        ("a.csv", b"\xff\xfet\0e\0", "a.csv: begins with the byte order mark of utf-16; set data.encoding: utf-16"),
        ("a.csv", b"text,label\xff\nx,y\n", "a.csv:1: byte 0xff is not utf-8"),
        ("a.tsv", "text\tlabel\n", "a.tsv: has a header and no rows"),
        ("a.jsonl", "\n\n", "a.jsonl: holds blank lines only"),
        ("a.jsonl", '{"txt": "x", "label": "a"}\n', "a.jsonl:1: no text column 'text' among 'txt', 'label'; did you"),
        ("a.json", '[{"text": "x"}]', "a.json: is one JSON array; write one object a line"),
        ("a.jsonl", '[{"text": "x"}]', "a.jsonl:1: is one JSON array; write one object a line"),
        ("a.parquet", b"PAR1 damaged", "a.parquet: cannot be read as Parquet ("),
        ("a.csv.gz", gzip.compress(b"text,label\n", mtime=0), "a.csv.gz: .gz files are not read; unpack it first"),
        ("a.xlsx", b"PK", "a.xlsx: .xlsx files are not read; save it as CSV"),
        ("a.txt", "one text\nanother line\nand more\n", "a.txt: cannot tell what format this is"),
        ("a.txt", "\n\n", "a.txt: cannot tell what format this is, by its name or by lines that are blank"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_an_error_even_when_skipping(
    write: Write, name: str, content: str | bytes, told: str
) -> None:
    assert complaint(write(name, content), bad_rows="skip").startswith(told)


def test_a_missing_file_is_told_at_once_with_its_neighbours(write: Write, tmp_path: Path) -> None:
    write("reviews.csv", "")
    with pytest.raises(DataError, match=r"review\.csv: there is no such file or folder; in .* there is reviews\.csv$"):
        read(tmp_path / "review.csv")
    with pytest.raises(DataError, match="nor the folder"):
        read(tmp_path / "missing" / "review.csv")


@pytest.mark.parametrize(("data_format", "told"), [("csv", "is a folder"), ("folder", "is a file")])
def test_a_folder_in_place_of_a_file_is_an_error_and_the_reverse(
    write: Write, tmp_path: Path, data_format: str, told: str
) -> None:
    path = tmp_path if data_format == "csv" else write("a.csv", "text,label\n")
    with pytest.raises(DataError, match=told):
        read(path, format=data_format)


def test_a_label_folder_without_texts_is_an_error(write: Write, tmp_path: Path) -> None:
    write("corpus/neg/1.md", "x")
    with pytest.raises(DataError, match=r"neg: is a label's folder without any \*\.txt file"):
        list(read(tmp_path / "corpus"))


def test_an_unreadable_file_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write("a.csv", "text,label\nx,y\n")
    monkeypatch.setattr(Path, "open", refuse)
    assert complaint(path) == "a.csv: cannot be read (Permission denied)"


def test_an_unknown_format_is_a_config_error(write: Write) -> None:
    with pytest.raises(ConfigError, match="unknown data format 'cvs'; did you mean 'csv'"):
        read(write("a.csv", "x"), format="cvs")


@pytest.mark.parametrize("encoding", ["utf-9", "rot13", "hex", "\0", "é", "idna", "unicode_escape"])
def test_an_unknown_codec_is_a_config_error(write: Write, encoding: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.encoding: "):
        list(read(write("a.csv", "text,label\nx,y\n"), options=ReadOptions(encoding=encoding)))


ODD_CODECS = ["idna", "utf-7", "cp037", "utf-32", "utf-16-be", "iso2022_jp"]


@pytest.mark.parametrize("encoding", ODD_CODECS)
@pytest.mark.parametrize("data_format", sorted({*READERS} - {"folder", "parquet"}))
@pytest.mark.parametrize(
    "content",
    [b"text,label\n\xe9\\x,+2AA-\n", b"\x80" * 99, bytes(range(256)), b"xn--a\n"],
    ids=["text", "high", "all", "xn"],
)
def test_a_wrong_codec_gives_rows_or_one_message(write: Write, data_format: str, encoding: str, content: bytes) -> None:
    path = write("a.bin", content)
    options = ReadOptions(encoding=encoding)
    told = ""
    try:
        for row in read(path, format=data_format, options=options, bad_rows="skip", on_bad_row=lambda bad: None):
            row.text.encode()
    except (DataError, ConfigError) as error:
        told = str(error)
    assert "\n" not in told


# telling formats


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.CSV", "", "csv"),
        ("a.tab", "", "tsv"),
        ("a.ndjson", "", "jsonl"),
        ("a.pq", "", "parquet"),
        ("a.ft", "", "fasttext"),
        ("a.json", '{"text": "x"}\n{"text": "y"}\n', "jsonl"),
        ("a.train", "__label__a x\n__label__b y\n", "fasttext"),
        ("a.data", b"PAR1....", "parquet"),
        ("a.txt", "pos\tx y\nneg\tz\npos\tw\n", "label-text"),
        ("a.txt", "好看的电影\t0\n难看\t1\n还行\t0\n", "text-label"),
        ("a.txt", "sentence\tlabel\nx\t1\ny\t0\n", "tsv"),
        ("a.txt", "text,label\nx,1\ny,0\n", "csv"),
        ("a.all", "0 dull .\n0 a mess .\n1 a gem .\n1 fine .\n", "label-text"),
        ("noname", "great film pos\nawful neg\nso fine pos\n", "text-label"),
    ],
)
def test_a_format_is_told_by_name_or_first_lines(write: Write, name: str, content: str | bytes, expected: str) -> None:
    assert detect_format(write(name, content)) == expected


@pytest.mark.parametrize("number", [300, 30_000])
def test_a_format_is_told_though_labels_come_in_blocks(write: Write, number: int) -> None:
    path = write("a.all", "0 something dull\n" * number + "1 something fine\n" * number)
    assert detect_format(path) == "label-text"


def test_a_folder_is_a_format(tmp_path: Path) -> None:
    assert detect_format(tmp_path) == "folder"


def test_a_file_is_read_in_the_memory_of_a_few_rows(write: Write) -> None:
    import tracemalloc

    path = write("a.csv", "text,label\n" + "some words that go on and on,pos\n" * 60_000)
    rows = read(path)
    next(rows)
    tracemalloc.start()
    for _ in range(50_000):
        next(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
