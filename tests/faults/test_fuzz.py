"""F6, F7, F8: configs and tables that are broken at random are read, or refused with file and line."""

import csv
import io
import json
import random
import re
import string
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import config_keys
from bilstm_cls.config_file import dump_config, load_config
from bilstm_cls.data.readers import read
from bilstm_cls.data.types import BadRow
from bilstm_cls.errors import ConfigError
from tests.faults.conftest import Tally, cases

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TRAPS = sorted((Path(__file__).parent / "corpus/configs").iterdir())
MAX_SECONDS = 0.5
WITHOUT_LINE = ("UTF-16", "data.train: must be the file")
"""What is said of a file that is no text, and of a key that is missing."""

VALUES = [
    b"null", b"true", b"-1", b"1e400", b".nan", b"-.inf", b"9" * 5000, b"[]", b"{}", b"[[1]]", b"{a: {b: 1}}", b"''",
    b"*x", b"&x 1", b"!!timestamp x", b"!!python/object:os.system x", b"12:30", b'"\\ud800"', b'"\\U00110000"', b"\t",
    b"|", b"[" * 5000, b"{a: " * 5000, b"012", b"0x10", b"no", b"1_000", b"\xff", b"\xe2\x80\xa8", b"%TAG", b"? a",
    b"-", b"<<: *x", b"a" * 20_000, b"1e-400", b"!<tag:yaml.org,2002:binary> x",
]  # fmt: skip


def mutant(content: bytes, rng: random.Random) -> bytes:
    """Breaks a config in one to three ways, and sometimes as a whole."""
    lines = content.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        key, colon, _ = lines[at].partition(b":")
        place = rng.randrange(len(lines[at]) + 1)
        lines[at : at + 1] = rng.choice([
            [], [lines[at]] * 2, [lines[at], rng.choice(lines)], [key + colon + b" " + rng.choice(VALUES)],
            [lines[at][:place] + bytes([rng.randrange(256)]) + lines[at][place + 1 :]],
            [lines[at][:place] + rng.choice(VALUES) + lines[at][place:]], [b"\t" + lines[at]], [b"  " + lines[at]],
            [b"---", lines[at]], [key[:-1] + colon, lines[at]],
        ])  # fmt: skip
        lines = lines or [b""]
    whole = b"\n".join(lines)
    changed = {
        0: b"\xef\xbb\xbf" + whole,
        1: whole.decode(errors="replace").encode("utf-16"),
        2: whole[: len(whole) // 2],
    }
    return changed.get(rng.randrange(40), whole)


def problems(path: Path, content: bytes) -> str:
    """Returns what is said of a config; nothing where it is read. It is said soon, with lines, in our words."""
    path.write_bytes(content)
    started = time.process_time()
    said = ""
    try:
        load_config(path)
    except ConfigError as error:
        said = str(error)
    assert time.process_time() - started <= MAX_SECONDS
    lines = said.splitlines()
    assert len(lines) <= 201
    for line in lines[1:] if len(lines) > 1 and " problems:" in lines[0] else lines:
        assert re.match(rf"{re.escape(str(path))}:\d+: \S", line) or any(words in line for words in WITHOUT_LINE), line
    return said


@cases(few=300, many=5000)
def test_a_mutated_config_is_read_or_refused_with_its_line(number: int, tmp_path: Path, tally: Tally) -> None:
    every_key = dump_config(load_config(None, ["data.train=a.csv"])).encode()
    bases = [*(path.read_bytes() for path in CONFIGS), every_key]

    def survives(seed: int) -> None:
        rng = random.Random(seed)
        problems(tmp_path / "config.yaml", mutant(rng.choice(bases), rng))

    tally(range(number), survives)


@pytest.mark.parametrize("path", TRAPS, ids=lambda path: path.name)
def test_a_config_that_once_was_a_trap_is_refused(path: Path, tmp_path: Path) -> None:
    assert problems(tmp_path / "config.yaml", path.read_bytes())


def typos_of(key: str, rng: random.Random) -> set[str]:
    letters, places = string.ascii_lowercase + "_", range(len(key))
    typos = {key[:i] + key[i + 1 :] for i in places} | {
        key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in places[:-1]
    }
    typos |= {key[:i] + rng.choice(letters) + key[i + 1 :] for i in places}
    return (typos | {key[:i] + rng.choice(letters) + key[i:] for i in places}) - {key}


@cases(few=2, many=1000)
def test_of_a_typo_the_right_key_is_suggested(
    number: int, tmp_path: Path, tally: Tally, record_property: Callable[[str, Any], None]
) -> None:
    """So many typos for every key. For one in twenty the suggestion may be another key than was meant."""
    suggested: list[bool] = []

    def is_refused(case: tuple[str, str, str]) -> None:
        section, key, typo = case
        config: dict[str, Any] = {"data": {"train": "a.csv"}}
        at = config
        for part in filter(None, section.split(".")):
            at = at.setdefault(part, {})
        at[typo] = 1
        said = problems(tmp_path / "config.yaml", json.dumps(config, indent=1).encode())
        assert f"unknown key '{typo}'" in said
        suggested.append(f"did you mean '{key}'?" in said or f"did you mean {section}.{key}" in said)

    rng, every = random.Random(0), []
    for section, keys in config_keys().items():
        for key in keys:
            typos = sorted(typos_of(key, rng) - set(keys))
            every += [(section, key, typo) for typo in rng.sample(typos, min(number, len(typos)))]
    tally(every, is_refused)
    record_property("suggested", f"{sum(suggested)}/{len(suggested)}")
    assert sum(suggested) / len(suggested) >= 0.95


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
