import contextlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bilstm_cls.config import Config
from bilstm_cls.config_file import config_schema, dump_config, dump_yaml, load_config, parse_yaml
from bilstm_cls.errors import ConfigError

SHIPPED = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))

SAMPLE = """\
name: sample
seed: 3
data:
  train: reviews.csv
  test: test.csv
  text_columns: [title, body]
text: {tokenizer: bpe, max_vocab_size: 1000}
embedding:
  init: vectors/glove.txt
  dim: 50
model:
  pooling: [mean, max]
  num_layers: 2
train:
  learning_rate: 1e-3
  class_weights: {pos: 1, neg: 2.5}
  max_grad_norm: null
"""


Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a text as `config.yaml`."""

    def load(text: str, *overrides: str) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(text, "utf-8")
        return load_config(path, overrides)

    return load


def problems(action: Callable[[], object], folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action()
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_a_file_goes_over_the_defaults_and_overrides_over_the_file(load: Load) -> None:
    config = load(SAMPLE, "seed=4", "train.learning_rate=2e-3", "train.learning_rate=3e-3", "model.pooling=[last]")
    assert (config.seed, config.train.learning_rate, config.model.pooling) == (4, 0.003, ["last"])
    assert (config.embedding.dim, config.train.batch_size) == (50, 64)
    assert load("data: {train: a.csv}\ntrain: {epochs: x}\n", "train.epochs=2").train.epochs == 2


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.ema_decay=null", "train.ema_decay", None),
        ("train.ema_decay=", "train.ema_decay", None),
        ("train.ema_decay = 0.5", "train.ema_decay", 0.5),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("data.train=a=b.csv", "data.train", "a=b.csv"),
        ("data.text_columns=body", "data.text_columns", ["body"]),
        ("data.csv.delimiter=;", "data.csv.delimiter", ";"),
    ],
)
def test_overrides_are_yaml(load: Load, override: str, key: str, value: object) -> None:
    found: Any = load(SAMPLE, override)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("stem", "name"), [("my run.v2", "my-run.v2"), (".hidden", "hidden"), ("情" * 90, "情" * 80)])
def test_the_name_defaults_to_the_file_name(tmp_path: Path, stem: str, name: str) -> None:
    path = tmp_path / f"{stem[:80]}.yaml"
    path.write_text("\ufeffdata: {train: a.csv}\ntrain:\n  # epochs: 3\n", "utf-8")  # an empty section is no problem
    assert load_config(path).name == name


def test_a_config_is_frozen_and_replace_returns_a_checked_copy(load: Load) -> None:
    config = load(SAMPLE)
    with pytest.raises(ValidationError):
        config.seed = 3  # type: ignore[misc]
    changed = config.replace(**{"train.epochs": 3, "seed": 9, "train.patience": None, "data.csv.delimiter": ";"})
    assert changed == load(SAMPLE, "train.epochs=3", "seed=9", "train.patience=null", "data.csv.delimiter=;")
    assert config == load(SAMPLE)
    assert load_config(None).replace(seed=2).seed == 2  # whose data are not checked, as they are not there


def test_replace_names_all_wrong_keys_and_values(load: Load) -> None:
    values: dict[str, Any] = {"train.epochs": 0, "model.hiden_size": 3, "seed": "x"}
    with pytest.raises(ConfigError) as caught:
        load(SAMPLE).replace(**values)
    assert all(key in str(caught.value) for key in values)


WRONG = [
    ("seed: -1", "seed: greater 0, -1"),
    ("sed: 1", "'sed' 'seed'"),
    ("train: {lr: 3}", "'lr' learning_rate"),
    ("train: {lr: 1}", "unknown key 'lr' in train; did you mean 'train.learning_rate'?"),
    ("epochs: 3", "unknown key 'epochs' in the top level; did you mean 'train.epochs'?"),
    ("pretrain: {enabled: true}\nmodel: {init_from: a/b}", "pretrain.enabled: false model.init_from 'a/b'"),
    ("train: {hiden_size: 3}", "'hiden_size' train model.hidden_size"),
    ("model: {cell: lstn}", "model.cell: 'lstn' 'gru' mean 'lstm'?"),
    ("model: {pooling: [mean, men]}", "model.pooling[1]: 'men' mean 'mean'?"),
    ("model: {pooling: [mean, mean]}", "model.pooling: duplicates"),
    ("model: {dropout: 1}", "model.dropout: less than 1, not 1"),
    ("embedding: {init: ranodm}", "embedding.init: 'ranodm' mean 'random'?"),
    ("train: {learning_rate: .inf}", "train.learning_rate: finite inf"),
    ("train: {class_weights: {a b: x}}", "train.class_weights.'a b': number 'x'"),
    ("train: {epochs: 1, epochs: 2}", "'train.epochs' duplicate line 3"),
]


def check(found: list[str], place: str, words: str) -> None:
    """Asserts that there is one problem, at its place, that names all that a user needs."""
    assert len(found) == 1
    assert found[0].startswith(f"{place}: ")
    assert [word for word in words.split() if word not in found[0]] == [], found


@pytest.mark.parametrize(("line", "words"), WRONG)
def test_a_wrong_line_is_named_with_its_number_and_a_fix(load: Load, tmp_path: Path, line: str, words: str) -> None:
    check(problems(lambda: load(f"data:\n  train: a.csv\n{line}\n"), tmp_path), "config.yaml:3", words)


WRONG_DATA = [
    ("source: imdb\n  train: a.csv", "data.train: 'a.csv' 'imdb'", 3),
    ("source: imdb\n  valid: a.csv", "data.valid: fraction 'a.csv'", 3),
    ("train: a.csv\n  labels: multi\ntrain:\n  epochs: 2\n  reject: 0.9", "train.reject: null data.labels 0.9", 6),
    ("train: a.csv\n  valid: null\nmodel:\n  ngrams: nbsvm", "model.ngrams: null data.valid 'nbsvm'", 5),
    ("source: imbd", "data.source: 'imbd' 'files' mean 'imdb'?", 2),
    ("train: a.csv\n  valid: 0.5\n  test: 0.5", "data.test: less than 0.5", 4),
    ("train: a.csv\n  text_columns:\n  - a\n  - 3", "data.text_columns[1]: string 3", 5),
]


@pytest.mark.parametrize(("lines", "words", "line"), WRONG_DATA)
def test_what_data_must_have_or_not_is_named(load: Load, tmp_path: Path, lines: str, words: str, line: int) -> None:
    check(problems(lambda: load(f"data:\n  {lines}\n"), tmp_path), f"config.yaml:{line}", words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoks=1", "'epoks' 'epochs'"),
        ("seed.a=1", "key.path=value"),
        ("seed", "key.path=value"),
        ("train..epochs=1", "key.path=value"),
        ("data.train=*.csv", "quotes"),
    ],
)
def test_a_wrong_override_is_named(load: Load, tmp_path: Path, override: str, words: str) -> None:
    check(problems(lambda: load(SAMPLE, override), tmp_path), f"--set {override}", words)


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(load: Load, tmp_path: Path) -> None:
    text = "data:\n  train: 3\nseed: .inf\ntrain:\n  epochs: 0\n  warmup: 1\nmodle: {}\n"
    header, *found = problems(lambda: load(text, "model.dropout=2", "x=1"), tmp_path)
    assert header == "config.yaml: 7 problems:"
    places = [f"config.yaml:{line}" for line in (2, 3, 5, 6, 7)] + ["--set model.dropout=2", "--set x=1"]
    assert [line.startswith(f"{place}: ") for line, place in zip(found, places, strict=True)] == [True] * 7


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        (b"", "config.yaml:1", "mapping init"),
        (b"- a\n", "config.yaml:1", "mapping ['a']"),
        (b"seed: 1\n", "config.yaml", "data.train"),
        (b"seed: 1\nname: \xe9\n", "config.yaml:2", "0xe9 UTF-8"),
        (b"#" * 1_000_001, "config.yaml", "1,000,000"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, place: str, words: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    check(problems(lambda: load_config(tmp_path / "config.yaml"), tmp_path), place, words)


@pytest.mark.parametrize("name", ["imbd.yaml", "sub", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    check(problems(lambda: load_config(tmp_path / name), tmp_path), name, "cannot be read")


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
LOOKALIKES = st.sampled_from(["1e-3", "null", "no", "012", "12:30", ".inf", "~", "<<", "0.1", "- a", "a: b", "#", "*"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
KEYS_AND_VALUES = st.recursive(
    SCALARS | WORDS | LOOKALIKES,
    lambda inner: st.lists(inner) | st.dictionaries(WORDS | LOOKALIKES, inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(WORDS | LOOKALIKES, KEYS_AND_VALUES, min_size=1))
def test_what_is_written_as_yaml_is_read_back_as_it_was(values: Any) -> None:
    written = dump_yaml(values)
    assert parse_yaml(written)[0] == values
    assert yaml.safe_load(written) == values  # for readers of YAML 1.1 too


def test_the_schema_explains_every_key() -> None:
    schema = json.loads(json.dumps(config_schema()))
    objects = [schema, *(part for part in schema["$defs"].values() if part["type"] == "object")]
    assert all("description" in key for part in objects for key in part["properties"].values())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001), ("-1.E+2", -100.0), (".5", 0.5), ("5.", 5.0), ("12", 12), ("-7", -7), ("012", 12),
        ("1_000", "1_000"), ("no", "no"), ("On", "On"), ("True", True), ("false", False), ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"), ("~", None), ("", None), ("'1'", "1"), ('"null"', "null"),
        ("[a, 1, {b: c}]", ["a", 1, {"b": "c"}]), ("{1: 2, no: 3}", {"1": 2, "no": 3}),
        ("|\n  one\n  two\n", "one\ntwo\n"),
    ],
)  # fmt: skip
def test_a_value_is_what_it_looks_like(written: str, meant: object) -> None:
    found, _ = parse_yaml(f"key: {written}")
    assert found == {"key": meant}
    assert type(found["key"]) is type(meant)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: &x 2\n", 2, "'x'"),
        ("a: 1\nb: *x\n", 2, "'x'"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "python/object:os.system"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' line 1"),
        ("s:\n  a: 1\n  'a': 2\n", 3, "'s.a' line 2"),
        (f"a: 1\nb: {'9' * 5000}\n", 2, "5000"),
        ('a: 1\nb: "\\ud800"\n', 2, "surrogate"),
        ("a: 1\n---\nb: 2\n", 2, "document"),
        ("a: 1\nb:\n\tc: 2\n", 3, "indentation"),
        ("a: 1\nb: [1, 2\n", 3, "YAML"),
        ("a: 1\nb: \x07\n", 2, "x0007"),
    ],
)
def test_what_could_surprise_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    check(problems(lambda: parse_yaml(text), Path()), str(line), words)


@settings(max_examples=40, deadline=None)
@given(st.text() | st.text(st.sampled_from("ab1:-?[]{},&*!|>'\"%@`#~.\\ \t\n<"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_yaml(text)


VALUES = [
    b"null", b"-1", b"1e400", b".nan", b"9" * 5000, b"[]", b"{}", b"[[1]]", b"{a: {b: 1}}", b"''", b"*x", b"&x 1",
    b"!!timestamp x", b"12:30", b'"\\ud800"', b"\t", b"|", b"[" * 5000, b"{a: " * 5000, b"0x10", b"\xff", b"%TAG",
    b"? a", b"-", b"<<: *x", b"a" * 20_000, b"\xe2\x80\xa8",
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
    if change < 2:
        return whole.decode(errors="replace").encode("utf-16" if change else "utf-8-sig")
    return whole[: rng.randrange(len(whole) + 1)] if change == 2 else whole


def check_message(path: Path) -> None:
    """Asserts that a config is read, or that every problem has its line."""
    try:
        load_config(path)
    except ConfigError as error:
        lines = str(error).splitlines()
        for line in lines[1:] if " problems:" in lines[0] else lines:
            is_placed = re.match(rf"{re.escape(str(path))}:\d+: \S", line)
            assert is_placed or "data.train: must be the file" in line, line
            assert "pydantic" not in line


@pytest.mark.parametrize("seed", range(2))
def test_a_broken_config_is_read_or_refused_with_its_line(seed: int, tmp_path: Path) -> None:
    every_key = dump_config(load_config(None, ["data.train=a.csv"])).encode()
    bases = [*(path.read_bytes() for path in SHIPPED), SAMPLE.encode(), every_key]
    rng = random.Random(seed)
    for _ in range(40):
        (tmp_path / "config.yaml").write_bytes(mutant(rng.choice(bases), rng))
        check_message(tmp_path / "config.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_says_what_it_is_how_to_run_it_and_what_to_expect(path: Path) -> None:
    assert load_config(path).name == path.stem
    what, how, expected = path.read_text("utf-8").splitlines()[:3]
    assert re.fullmatch(r"# \S.*\.", what)
    assert how.startswith("# Run: ")
    assert f"bilstm-cls train --config configs/{path.name}" in how
    measured = r"# Expect: accuracy 0\.\d+ .*(minute|seconds).*GB\."
    assert re.fullmatch(rf"{measured}|# Expect: not measured .*\.", expected)


def test_a_config_that_once_broke_the_reader_is_refused() -> None:
    for path in (Path(__file__).parent / "faults/corpus/configs").iterdir():
        check_message(path)
