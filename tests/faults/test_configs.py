"""F6, F7: a config that is broken in any way is read or told with its line, and a typo is known for one."""

import itertools
import random
import re
import resource
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.config import config_keys
from bilstm_cls.config_file import dump_config, load_config
from bilstm_cls.errors import ConfigError
from tests.faults.children import run
from tests.faults.conftest import Tally
from tests.faults.sizes import cases
from tests.test_config import SAMPLE

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CORPUS = sorted((Path(__file__).parent / "corpus/configs").iterdir())
MAX_SECONDS = 0.5
MAX_MEGABYTES = 50
KEYS = config_keys()
WITHOUT_LINE = ("UTF-16", "data.train: must be the file")
"""What is said of a file that is no text, and of a key that is not there."""

VALUES = [
    b"null", b"true", b"-1", b"1e400", b".nan", b"-.inf", b"9" * 5000, b"[]", b"{}", b"[[1]]", b"{a: {b: 1}}", b"''",
    b"*x", b"&x 1", b"!!timestamp x", b"!!python/object:os.system x", b"12:30", b'"\\ud800"', b'"\\U00110000"', b"\t",
    b"|", b"[" * 5000, b"{a: " * 5000, b"012", b"0x10", b"no", b"1_000", b"\xff", b"\xe2\x80\xa8", b"%TAG", b"? a",
    b"-", b"<<: *x", b"a" * 20_000, b"1e-400", b"!<tag:yaml.org,2002:binary> x",
]  # fmt: skip


def mutant(content: bytes, rng: random.Random) -> bytes:
    """Breaks a config in one to three ways, and now and then as a whole."""
    lines = content.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        key, colon, _ = lines[at].partition(b":")
        place = rng.randrange(len(lines[at]) + 1)
        lines[at : at + 1] = rng.choice([
            [], [lines[at]] * 2, [lines[at], rng.choice(lines)], [key + colon + b" " + rng.choice(VALUES)],
            [lines[at][:place] + bytes([rng.randrange(256)]) + lines[at][place + 1 :]],
            [lines[at][:place] + rng.choice(VALUES) + lines[at][place:]], [b"\t" + lines[at]], [b"  " + lines[at]],
            [lines[at].strip()], [b"<<: {a: 1}", lines[at]], [b"---", lines[at]], [key[:-1] + colon, lines[at]],
        ])  # fmt: skip
        lines = lines or [b""]
    whole = b"\n".join(lines)
    change = rng.randrange(40)
    if change == 0:
        return b"\xef\xbb\xbf" + whole
    if change == 1:
        return whole.decode(errors="replace").encode("utf-16")
    return whole[: rng.randrange(len(whole) + 1)] if change == 2 else whole


def told(path: Path, content: bytes) -> str:
    """Returns what is said of a config; nothing where it is read. Told soon, and in our own words."""
    path.write_bytes(content)
    started = time.process_time()
    said = ""
    try:
        load_config(path)
    except ConfigError as error:
        said = str(error)
    assert time.process_time() - started <= MAX_SECONDS
    assert "pydantic" not in said
    lines = said.splitlines()
    assert len(lines) <= 201
    for line in lines[1:] if len(lines) > 1 and " problems:" in lines[0] else lines:
        assert re.match(rf"{re.escape(str(path))}:\d+: \S", line) or any(words in line for words in WITHOUT_LINE), line
    return said


@pytest.fixture(scope="module")
def bases() -> list[bytes]:
    """The shipped configs, one with every kind of value, and one with every key."""
    every_key = dump_config(load_config(None, ["data.train=a.csv"]))
    return [*(path.read_bytes() for path in SHIPPED), SAMPLE.encode(), every_key.encode()]


@cases(few=500, many=5000)
def test_a_mutated_config_is_read_or_told(number: int, bases: list[bytes], tmp_path: Path, tally: Tally) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def survives(seed: int) -> None:
        rng = random.Random(seed)
        told(tmp_path / "config.yaml", mutant(rng.choice(bases), rng))

    tally(range(number), survives)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= MAX_MEGABYTES * 1024


WRONG = ["{a: {b: {c: 1}}}", "!!int x", "&a x", '"\\ud800"', ".nan"]


@cases(few=1, many=len(WRONG))
def test_a_value_of_the_wrong_kind_is_told_with_its_line(
    number: int, bases: list[bytes], tmp_path: Path, tally: Tally
) -> None:
    """Of every value of every config, in place of which stands one that nothing can be."""

    def survives(case: tuple[bytes, str]) -> int:
        base, value = case
        lines = base.decode().splitlines()
        places = [at for at, line in enumerate(lines) if re.match(r" *\w+: +[^#|{\[]", line)]
        for at in places:
            changed = [*lines]
            changed[at] = f"{lines[at].partition(':')[0]}: {value}"
            said = told(tmp_path / "config.yaml", "\n".join(changed).encode())
            assert f"config.yaml:{at + 1}: " in said, (changed[at], said)
        return len(places)

    tally(itertools.product(bases, WRONG[:number]), survives)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_a_config_that_once_was_a_trap_is_told(path: Path, tmp_path: Path) -> None:
    assert told(tmp_path / "config.yaml", path.read_bytes())


@cases(few=5, many=50)
def test_the_command_ends_with_0_or_2_whatever_the_config(
    number: int, bases: list[bytes], tmp_path: Path, tally: Tally
) -> None:
    def survives(seed: int) -> None:
        rng = random.Random(f"command {seed}")
        (tmp_path / "config.yaml").write_bytes(mutant(rng.choice(bases), rng))
        outcome = run("config", "check", "-c", tmp_path / "config.yaml")
        assert outcome.code in (0, 2), outcome
        assert "Traceback" not in outcome.stderr
        assert len(outcome.errors) == (outcome.code == 2)

    tally(range(number), survives)


def one_edit_typos(key: str, rng: random.Random) -> set[str]:
    letters = string.ascii_lowercase + "_"
    places = range(len(key))
    typos = {key[:i] + key[i + 1 :] for i in places}
    typos |= {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in places[:-1]}
    typos |= {key[:i] + rng.choice(letters) + key[i + 1 :] for i in places for _ in range(3)}
    typos |= {key[:i] + rng.choice(letters) + key[i:] for i in places for _ in range(3)}
    return typos - {key}


def config_with(section: str, key: str) -> str:
    line = f"{section}: {{'{key}': 1}}" if section else f"'{key}': 1"
    return f"data: {{train: a.csv}}\n{line}\n" if section != "data" else f"data: {{train: a.csv, '{key}': 1}}\n\n"


@cases(few=3, many=1000)
@pytest.mark.parametrize("section", KEYS, ids=lambda section: section or "top level")
def test_a_typo_is_refused_and_the_right_key_suggested(
    number: int, section: str, tmp_path: Path, tally: Tally, record_property: Callable[[str, Any], None]
) -> None:
    """So many for every key, or all; of one in twenty the right key may be another one than was meant."""
    suggested: list[bool] = []

    def is_refused(case: tuple[str, str]) -> None:
        key, typo = case
        said = told(tmp_path / "config.yaml", config_with(section, typo).encode())
        assert f"unknown key '{typo}'" in said
        dotted = f"{section}.{key}" if section else key
        suggested.append(f"did you mean '{key}'?" in said or f"did you mean {dotted}" in said)

    rng = random.Random(section)
    typos = {key: sorted(one_edit_typos(key, rng) - set(KEYS[section])) for key in KEYS[section]}
    tally([(key, t) for key in typos for t in rng.sample(typos[key], min(number, len(typos[key])))], is_refused)
    assert min(map(len, typos.values())) >= 3
    share = sum(suggested) / len(suggested)
    record_property("suggested", f"{sum(suggested)}/{len(suggested)}")
    assert share >= 0.95


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(tmp_path: Path, tally: Tally) -> None:
    homes = {key: {home for home, keys in KEYS.items() if key in keys} for keys in KEYS.values() for key in keys}
    strays = [(section, key) for section in KEYS for key in homes if key not in KEYS[section]]

    def is_told(case: tuple[str, str]) -> None:
        section, key = case
        said = told(tmp_path / "config.yaml", config_with(section, key).encode())
        assert f"unknown key '{key}'" in said
        dotted = {f"{home}.{key}" if home else key for home in homes[key]}
        assert any(name in said for name in dotted) or "did you mean" in said, said

    tally(strays, is_told)
