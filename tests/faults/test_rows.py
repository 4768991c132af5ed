"""F8: tables that are broken at random give their other rows, or are refused with file and line."""

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from bilstm_cls.data.readers import read
from bilstm_cls.data.types import BadRow
from tests.faults.conftest import Tally, cases

WORDS = [
    "film", "the plot", "naïve", "“so”", "中文", "it's", 'a "great"', "(sic)", "x\u2028y", "end.", "\x0b", "\x85",
    "\u00a0", "👩‍👩‍👧", "\u202ertl", "\\n", "'", "%s", "{}", "#1", "=1+1", "0", "NaN", "null",
]  # fmt: skip
LABELS = ["pos", "neg", "none of both"]
BYTES = [
    b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\t", b"\0", b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"{", b"}",
    b"\\", b"[", b" ", b";", b":", b"'", b"\x1a", b"\\u0000", b"\\ud800", b"1e999", b"\xed\xa0\x80",
]  # fmt: skip


def as_csv(row: Sequence[str]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerow(row)
    return file.getvalue().removesuffix("\n")


def as_json(row: Sequence[str]) -> str:
    return json.dumps({"text": row[0], "label": row[1]}, ensure_ascii=False)


WRITERS = {"csv": (["text,label"], as_csv), "tsv": (["text\tlabel"], "\t".join), "jsonl": ([], as_json)}


@cases(few=100, many=1500)
@pytest.mark.parametrize("format", WRITERS)
def test_a_changed_row_costs_no_other_row_or_is_named(number: int, format: str, tmp_path: Path, tally: Tally) -> None:
    """Bytes are put in, taken out or changed in one row, which may be read or be bad.

    In a csv file whose records have several lines, a stray quote ends the file.
    """
    path = tmp_path / f"a.{format}"
    header, write = WRITERS[format]

    def text_of(rng: random.Random) -> str:
        num_lines = rng.choice([1, 1, 1, 2, 4]) if format == "csv" else 1
        return "\n".join(" ".join(rng.choices(WORDS, k=rng.randint(2, 8))) for _ in range(num_lines))

    def survives(seed: int) -> None:
        rng = random.Random(f"any {format} {seed}")
        rows = [(text_of(rng), rng.choice(LABELS)) for _ in range(8)]
        raw = [write(row).encode() for row in rows]
        place = rng.randrange(2, 6)
        line = 1 + len(header) + sum(record.count(b"\n") + 1 for record in raw[:place])
        old, at = raw[place], rng.randrange(len(raw[place]))
        inserted, other = rng.choice(BYTES), bytes([rng.randrange(256)])
        raw[place] = rng.choice(
            [old[:at] + inserted + old[at:], old[:at] + old[at + 1 :], old[:at] + other + old[at + 1 :], old[:at]]
        )
        path.write_bytes(b"\n".join([*(text.encode() for text in header), *raw, b""]))
        bad: list[BadRow] = []
        found = [(row.text, row.label or "") for row in read(path, bad_rows="skip", on_bad_row=bad.append)]
        assert all(line <= row.line <= line + raw[place].count(b"\n") for row in bad), bad
        assert found[:place] == rows[:place]
        if any("the rest of the file" in row.reason for row in bad):
            assert len(found) <= place + 1
            return
        assert found[len(found) - 2 :] == rows[6:], "the rows at the end"
        changed = found[place : len(found) - len(rows) + place + 1]
        assert found[place + len(changed) :] == rows[place + 1 :], "the rows after it"
        assert bad or changed, "neither read nor named"

    tally(range(number), survives)
