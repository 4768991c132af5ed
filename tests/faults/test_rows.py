"""F8: a wrong row in any kind of table is named by its line, and no other row is lost or merged."""

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bilstm_cls.data.readers import ReadOptions, read
from bilstm_cls.data.types import BadRow
from bilstm_cls.errors import DataError
from tests.faults.conftest import Tally
from tests.faults.sizes import cases

Fault = Callable[[str, random.Random], str]
Row = tuple[str, str]

WORDS = [
    "film", "the plot", "naïve", "“so”", "中文", "it's", 'a "great"', "(sic)", "x\u2028y", "end.", "\x0b", "\x85",
    "\u00a0", "👩‍👩‍👧", "\u202ertl", "\\n", "'", "%s", "{}", "#1", "=1+1", "0", "NaN", "null",
]  # fmt: skip
LABELS = ["pos", "neg", "none of both"]


def as_csv(row: Sequence[str]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerow(row)
    return file.getvalue().removesuffix("\n")


def as_json(row: Sequence[str]) -> str:
    return json.dumps({"text": row[0], "label": row[1]}, ensure_ascii=False)


WRITERS: dict[str, tuple[str, Callable[[Sequence[str]], str]]] = {
    "csv": ("text,label", as_csv),
    "tsv": ("text\tlabel", "\t".join),
    "jsonl": ("", as_json),
}


def text_of(format: str, rng: random.Random) -> str:
    """One line, and in csv up to four. None but the last holds a comma: a line that looks like a row is one."""
    num_lines = rng.choice([1, 1, 1, 2, 4]) if format == "csv" else 1
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(2, 8))) for _ in range(num_lines)]
    return "\n".join(lines) + rng.choice(["", ", really", ", so, so"] if num_lines == 1 else [""])


def insert(text: str, place: int, piece: str) -> str:
    return text[:place] + piece + text[place:]


def anywhere(piece: str) -> Fault:
    return lambda raw, rng: insert(raw, rng.randrange(1, len(raw)), piece)


A_BYTE = "a wrong byte"
ANY_FORMAT: dict[str, Fault] = {
    A_BYTE: anywhere("\udcff"),
    "half a character's bytes": anywhere("\udce4\udcb8"),
    "many wrong bytes": anywhere("\udcfe" * 3000),
}
FAULTS: dict[str, dict[str, Fault]] = {
    "csv": {
        "a quote before the first field": lambda raw, _: raw if raw.startswith('"') else f'"{raw}',
        "a quote somewhere": lambda raw, rng: insert(raw, rng.randrange(1, len(raw.split("\n")[0])), '"'),
        "no first quote": lambda raw, _: raw.removeprefix('"'),
        "no last quote": lambda raw, _: raw if "\n" in raw else "".join(raw.rpartition('"')[::2]),
        "one field more": lambda raw, _: f"{raw},x",
        "one field less": lambda raw, _: raw.rpartition(",")[0],
        "no label": lambda raw, _: raw.rpartition(",")[0] + ", ",
        "a carriage return": lambda raw, _: f"{raw[:-1]}\r{raw[-1]}",
        **ANY_FORMAT,
    },
    "tsv": {
        "one field more": lambda raw, _: f"{raw}\tx",
        "one field less": lambda raw, _: raw.rpartition("\t")[0],
        "no label": lambda raw, _: raw.rpartition("\t")[0] + "\t ",
        "a tab somewhere": anywhere("\t"),
        **ANY_FORMAT,
    },
    "jsonl": {
        "no end": lambda raw, _: raw[:-1],
        "no quote": lambda raw, _: raw.replace('"text"', 'text"', 1),
        "a text that is null": lambda raw, _: json.dumps({**json.loads(raw), "text": None}),
        "a text that is a number": lambda raw, _: json.dumps({**json.loads(raw), "text": 3}),
        "a label that is NaN": lambda raw, _: json.dumps({**json.loads(raw), "label": float("nan")}),
        "a label that is a list": lambda raw, _: json.dumps({**json.loads(raw), "label": ["pos"]}),
        "no label": lambda raw, _: json.dumps({"text": json.loads(raw)["text"]}),
        "an empty label": lambda raw, _: json.dumps({**json.loads(raw), "label": "\t"}),
        "a key twice": lambda raw, _: raw[:-1] + ', "text": "again"}',
        "half a character": lambda raw, _: json.dumps({**json.loads(raw), "text": "\ud83d"}),
        "an array": lambda raw, _: f"[{raw}]",
        "two objects": lambda raw, _: f"{raw}{raw}",
        "deep nesting": lambda raw, _: raw[:-1] + ', "x": ' + "[" * 100_000,
        "a number of 5,000 digits": lambda raw, _: raw[:-1] + ', "x": ' + "9" * 5000 + "}",
        "a bare control character": lambda raw, _: raw[:-2] + '\x01"}',
        **ANY_FORMAT,
    },
}


def make_file(path: Path, format: str, raw: list[str]) -> None:
    header = WRITERS[format][0]
    lines = [*([header] if header else []), *raw, ""]
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))


def found_in(path: Path) -> tuple[list[Row], list[BadRow]]:
    bad: list[BadRow] = []
    rows = [(row.text, row.label or "") for row in read(path, bad_rows="skip", on_bad_row=bad.append)]
    return rows, bad


def is_rest_lost(bad: list[BadRow]) -> bool:
    """Whether a stray quote ended a csv file whose records have several lines."""
    return any("the rest of the file" in row.reason for row in bad)


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read(path))
    return str(caught.value)


@cases(few=1000, many=5000)
@pytest.mark.parametrize("format", FAULTS)
def test_of_a_file_with_one_fault_exactly_that_row_is_bad(
    number: int, format: str, tmp_path: Path, tally: Tally
) -> None:
    path = tmp_path / f"a.{format}"
    faults = FAULTS[format]

    def survives(seed: int) -> None:
        name = list(faults)[seed % len(faults)]
        rng = random.Random(f"{format} {seed}")
        rows = [(text_of(format, rng), rng.choice(LABELS)) for _ in range(rng.randint(2, 12))]
        rows += [("quoted, surely", "pos"), ("not quoted", "neg")]
        raw = [WRITERS[format][1](row) for row in rows]
        first = format == "jsonl"  # its first object says which columns there are
        changeable = [at for at, text in enumerate(raw) if faults[name](text, rng) != text and at >= first]
        place = rng.choice(changeable)
        line = 1 + bool(WRITERS[format][0]) + sum(record.count("\n") + 1 for record in raw[:place])
        raw[place] = faults[name](raw[place], rng)
        make_file(path, format, raw)
        found, bad = found_in(path)
        if format == "csv" and not bad:  # a quote within a field without quotes is a character
            assert [row for at, row in enumerate(found) if at != place] == rows[:place] + rows[place + 1 :], name
            return
        assert complaint(path).startswith(f"{path}:{line}: "), (name, complaint(path))
        assert found == rows[:place] + ([] if is_rest_lost(bad) else rows[place + 1 :]), name
        assert all(line <= row.line <= line + raw[place].count("\n") for row in bad), (name, bad)

    tally(range(number // len(FAULTS)), survives)


BYTES = [
    b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\t", b"\0", b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"{", b"}",
    b"\\", b"[", b" ", b";", b":", b"'", b"\x1a", b"\\u0000", b"\\ud800", b"1e999", b"\xed\xa0\x80",
]  # fmt: skip


@cases(few=1000, many=5000)
@pytest.mark.parametrize("format", FAULTS)
def test_a_file_with_any_change_gives_its_other_rows_or_names_where_it_is_wrong(
    number: int, format: str, tmp_path: Path, tally: Tally
) -> None:
    """Bytes are put in, taken out or changed in one row; what becomes of that row alone is open."""
    path = tmp_path / f"a.{format}"

    def survives(seed: int) -> None:
        rng = random.Random(f"any {format} {seed}")
        rows = [(text_of(format, rng), rng.choice(LABELS)) for _ in range(8)]
        raw = [WRITERS[format][1](row) for row in rows]
        place = rng.randrange(2, 6)
        line = 1 + bool(WRITERS[format][0]) + sum(record.count("\n") + 1 for record in raw[:place])
        content = raw[place].encode()
        at = rng.randrange(len(content))
        content = rng.choice([
            content[:at] + rng.choice(BYTES) + content[at:], content[:at] + content[at + 1 :],
            content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :], content[:at],
        ])  # fmt: skip
        raw[place] = content.decode(errors="surrogateescape")
        make_file(path, format, raw)
        found, bad = found_in(path)
        last_line = line + raw[place].count("\n")
        assert all(line <= row.line <= last_line for row in bad), bad
        assert found[:place] == rows[:place]
        if is_rest_lost(bad):
            assert len(found) <= place + 1
            return
        assert found[len(found) - 2 :] == rows[6:], "the rows at the end"
        own = found[place : len(found) - len(rows) + place + 1]
        assert found[place + len(own) :] == rows[place + 1 :], "the rows after it"
        assert bad or own, "neither read nor told"

    tally(range(number // len(FAULTS)), survives)


@pytest.mark.parametrize("label_column", ["label", None])
def test_a_text_that_swallows_rows_between_two_wrong_quotes_is_told(
    label_column: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture, tally: Tally
) -> None:
    """To the csv grammar it is one record, so that it is read, but never without a word."""
    path = tmp_path / "a.csv"
    options = ReadOptions(label_column=label_column)

    def survives(seed: int) -> None:
        rng = random.Random(seed)
        rows = [(" ".join(rng.choices(["film", "plot", "so", "good"], k=5)), rng.choice(LABELS)) for _ in range(12)]
        raw = [as_csv(row) for row in rows]
        first = rng.randrange(9)
        last = rng.randrange(first + 1, 11)
        raw[first] = f'"{raw[first]}'
        raw[last] = raw[last].replace(",", '",', 1)
        ends = [("the end", label) for label in LABELS]
        rows += ends
        make_file(path, "csv", [*raw, *map(as_csv, ends)])
        caplog.clear()
        found = list(read(path, options=options))
        assert len(found) == len(rows) - (last - first)
        assert f"{path}:{first + 2}: " in caplog.text
        assert "is a quote missing" in caplog.text

    tally(range(100), survives)
