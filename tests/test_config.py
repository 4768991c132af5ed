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

from bilstm_cls.config import METRICS, Config, config_keys
from bilstm_cls.config_file import (
    MAX_DEPTH,
    SYNONYMS,
    config_schema,
    dump_config,
    dump_yaml,
    load_config,
    parse_yaml,
    unknown_key,
)
from bilstm_cls.errors import ConfigError

KEYS = config_keys()
SECTIONS = [name for name in KEYS if name]
DOTTED = [f"{section}.{key}" if section else key for section, keys in KEYS.items() for key in keys]
SHIPPED = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))

SAMPLE = """\
# A sample.
name: sample
seed: 3
data:
  train: reviews.csv
  valid: 0.1
  test: test.csv
  text_columns: [title, body]
text: {tokenizer: bpe, max_vocab_size: 1000}
embedding:
  init: vectors/glove.txt
  dim: 50
model:
  pooling: [mean, max]
  num_layers: 2
  layer_dropout: 0.1
train:
  learning_rate: 1e-3
  class_weights: {pos: 1, neg: 2.5}
  evaluate_every: 100
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


def test_defaults_need_no_file() -> None:
    config = load_config(None)
    assert (config.name, config.train.epochs, config.data.train) == ("run", 5, None)


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


@pytest.mark.parametrize(
    ("stem", "name"),
    [("imdb", "imdb"), ("my run.v2", "my-run.v2"), (".hidden", "hidden"), ("情感", "情感"), ("a" * 90, "a" * 80)],
)
def test_the_name_defaults_to_the_file_name(tmp_path: Path, stem: str, name: str) -> None:
    path = tmp_path / f"{stem}.yaml"
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
    found = sorted(problems(lambda: load(SAMPLE).replace(**values), Path()))
    assert sorted(line.split(":")[0] for line in found) == ["model.hiden_size", "seed", "train.epochs"]


WRONG = [
    ("seed: -1", "seed: must be at least 0, not -1"),
    ("seed: true", "seed: must be an integer, not true"),
    ("name: .x", "name: must be a plain folder name, not '.x'; it may hold"),
    ("name: a/b", "name: must be a plain folder name, not 'a/b'"),
    ("name: ''", "name: must be text that is not empty, not ''"),
    ("model: 3", "model: must be a section with keys, not 3"),
    ("sed: 1", "unknown key 'sed'; did you mean 'seed'?"),
    ("hidden_size: 3", "unknown key 'hidden_size'; did you mean model.hidden_size?"),
    ("lr: 3", "unknown key 'lr'; did you mean train.learning_rate?"),
    ("zzz: 3", "unknown key 'zzz'; known are name, seed"),
    ("model: {wide: nbsvm}", "unknown key 'wide' in model; did you mean 'ngrams'?"),
    ("train: {layer_decay: 2.6}", "unknown key 'layer_decay' in train; did you mean 'layer_lr_decay'?"),
    ("train: {perturbation: 0.1}", "unknown key 'perturbation' in train; did you mean 'adversarial_epsilon'?"),
    ("train: {ema: 0.9}", "unknown key 'ema' in train; did you mean 'ema_decay'?"),
    ("train: {objective: plain}", "not 'plain'; did you mean 'cross_entropy'?"),
    ("train: {layer_lr_decay: 2.6}", "train.layer_lr_decay: must be at most 1, not 2.6"),
    ("embedding: {init: corpus}", "not 'corpus'; did you mean 'ppmi'?"),
    (
        "pretrain: {enabled: true}\nmodel: {init_from: a/b}",
        "pretrain: must be {enabled: false} with model.init_from 'a/b'",
    ),
    ("Train: {epochs: 3}", "unknown key 'Train'; did you mean 'train'?"),
    ("model: {hiden_size: 3}", "unknown key 'hiden_size' in model; did you mean 'hidden_size'?"),
    ("train: {hiden_size: 3}", "unknown key 'hiden_size' in train; did you mean model.hidden_size?"),
    ("train: {seed: 3}", "unknown key 'seed' in train; did you mean seed at the top level?"),
    ("train: {output: x}", "unknown key 'output' in train; did you mean output_dir at the top level?"),
    ("model: {qqq: 3}", "unknown key 'qqq' in model; known are cell, bidirectional"),
    ("model: {cell: lstn}", "model.cell: must be 'lstm', 'gru' or 'rnn', not 'lstn'; did you mean 'lstm'?"),
    ("model: {cell: LSTM}", "not 'LSTM'; did you mean 'lstm'?"),
    ("model: {pooling: men}", "model.pooling: must be 'mean', "),
    ("model: {pooling: [mean, men]}", "model.pooling[1]: must be 'mean', "),
    ("model: {pooling: [mean, mean]}", "model.pooling: must be a list without duplicates"),
    ("model: {pooling: []}", "model.pooling: must be at least 1 long, not []"),
    ("model: {num_layers: 1, layer_dropout: 0.1}", "model.layer_dropout: must be 0 with num_layers 1, not 0.1"),
    ("model: {dropout: 1}", "model.dropout: must be less than 1, not 1"),
    ("model: {bigrams: 1}", "model.bigrams: must be at least 2, not 1"),
    ("model: {bidirectional: yes}", "model.bidirectional: must be true or false, not 'yes'"),
    ("model: {num_layers: '2'}", "model.num_layers: must be an integer, not '2'"),
    ("model: {num_layers: 2.0}", "model.num_layers: must be an integer, not 2.0"),
    ("model: {num_layers: 17}", "model.num_layers: must be at most 16, not 17"),
    ("text: {tokenizer: bpe, max_vocab_size: 256}", "text.max_vocab_size: must be at least 300 with tokenizer 'bpe'"),
    ("text: {tokenizer: basic_english, lowercase: false}", "text.lowercase: must be true with tokenizer"),
    ("text: {max_vocab_size: 2}", "text.max_vocab_size: must be at least 3, not 2"),
    ("embedding: {init: ranodm}", "not 'ranodm'; did you mean 'random'?"),
    ("embedding: {init: glove-6b-50d, dim: 100}", "embedding.dim: must be 50 with init 'glove-6b-50d', or null"),
    ("embedding: {init: [en-300, glove-6b-50d], dim: 300}", "embedding.dim: must be 350 with init"),
    ("embedding: {init: [en-300, ranodm]}", "embedding.init: must be 'random', 'ppmi', 'en-300'"),
    ("embedding: {freeze: true}", "embedding.freeze: must be false with init 'random', not true"),
    ("train: {learning_rate: -1}", "train.learning_rate: must be greater than 0, not -1"),
    ("train: {learning_rate: 1_0}", "train.learning_rate: must be a number, not '1_0'"),
    ("train: {learning_rate: .inf}", "train.learning_rate: must be finite, not inf"),
    ("train: {learning_rate: null}", "train.learning_rate: must be a number, not null"),
    ("train: {class_weights: balenced}", "not 'balenced'; did you mean 'balanced'?"),
    ("train: {class_weights: {a: 0}}", "train.class_weights.a: must be greater than 0, not 0"),
    ("train: {class_weights: {a b: x}}", "train.class_weights.'a b': must be a number, not 'x'"),
    ("train: {class_weights: {}}", "train.class_weights: must be at least 1 long, not {}"),
    ("train: {class_weights: {1: 2}}", 'key 1 is not text; put it in quotes: "1"'),
    ("train: {evaluate_every: epok}", "must be 'epoch' or an integer, not 'epok'; did you mean 'epoch'?"),
    ("train: {evaluate_every: 0}", "train.evaluate_every: must be at least 1, not 0"),
    ("train: {device: mps}", "train.device: must be 'auto', 'cpu', 'cuda' or 'cuda:N', not 'mps'"),
    ("train: {select_by: valid/acuracy}", "not 'valid/acuracy'; did you mean 'valid/accuracy'?"),
    ("train: {select_by: test/accuracy}", "train.select_by: must be 'valid/accuracy', "),
    ("train: {epochs: 1, epochs: 2}", "duplicate key 'train.epochs', first on line 3"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), WRONG)
def test_a_wrong_line_is_named_with_its_number_and_a_fix(load: Load, tmp_path: Path, line: str, words: str) -> None:
    (found,) = problems(lambda: load(f"data:\n  train: a.csv\n{line}\n"), tmp_path)
    assert found.startswith("config.yaml:3: ")
    assert words in found


WRONG_DATA = [
    ("valid: 0.1", "data.train: must be the file of labelled texts when source is 'files', not null", 1),
    ("source: imdb\n  train: a.csv", "data.train: must be left out, not 'a.csv'; source 'imdb'", 3),
    ("source: imdb\n  valid: a.csv", "data.valid: must be a fraction, not 'a.csv'", 3),
    ("source: bbc_news\n  test: a.csv", "data.test: must be a fraction, not 'a.csv'", 3),
    ("source: bbc_news\n  path: a", "data.path: must be left out, not 'a'", 3),
    ("source: bbc_news\n  label_names: a", "data.label_names: must be left out, not 'a'", 3),
    ("source: imbd", "data.source: must be 'files', 'imdb'", 2),
    ("train: a.csv\n  valid: null", "data.valid: must be text or a number, not null", 3),
    ("train: a.csv\n  valid: 0", "data.valid: must be greater than 0, not 0", 3),
    ("train: a.csv\n  valid: 1.5", "data.valid: must be less than 1, not 1.5", 3),
    ("train: a.csv\n  valid: 0.5\n  test: 0.5", "data.test: must be less than 0.5, not 0.5", 4),
    ("train: a.csv\n  encoding: utf-88", "data.encoding: must be a text codec", 3),
    ("train: a.csv\n  encoding: base64", "data.encoding: must be a text codec", 3),
    ("train: a.csv\n  text_columns: []", "data.text_columns: must be at least 1 long", 3),
    ("train: a.csv\n  text_columns: [a, a]", "data.text_columns: must be a list without duplicates", 3),
    ("train: a.csv\n  text_columns:\n  - a\n  - 3", "data.text_columns[1]: must be text, not 3", 5),
    ("train: a.csv\n  dev: 0.1", "unknown key 'dev' in data; did you mean 'valid'?", 3),
    ("train: a.csv\n  label: y", "unknown key 'label' in data; did you mean 'label_column'?", 3),
    ("train: a.csv\n  text: y", "unknown key 'text' in data; did you mean 'text_columns'?", 3),
]


@pytest.mark.parametrize(("lines", "words", "line"), WRONG_DATA)
def test_what_data_must_have_or_not_is_named(load: Load, tmp_path: Path, lines: str, words: str, line: int) -> None:
    (found,) = problems(lambda: load(f"data:\n  {lines}\n"), tmp_path)
    assert found.startswith(f"config.yaml:{line}: {words}")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs=0", "must be at least 1, not 0"),
        ("train.epoks=1", "unknown key 'epoks' in train; did you mean 'epochs'?"),
        ("foo.bar=1", "unknown key 'foo'; known are"),
        ("train=1", "must be a section with keys, not 1"),
        ("train.class_weights.a=1", "'train.class_weights' has no keys"),
        ("seed.a=1", "'seed' has no keys"),
        ("seed", "must look like key.path=value"),
        ("train..epochs=1", "must look like key.path=value"),
        ("data.train=*.csv", "not valid YAML"),
        ("model.pooling=[mean, men]", "model.pooling[1]: must be 'mean', "),
    ],
)
def test_a_wrong_override_is_named(load: Load, tmp_path: Path, override: str, words: str) -> None:
    (found,) = problems(lambda: load(SAMPLE, override), tmp_path)
    assert found.startswith(f"--set {override}: {words}")


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(load: Load, tmp_path: Path) -> None:
    text = "data:\n  train: 3\nseed: .inf\ntrain:\n  epochs: 0\n  epochs: 1\nmodle: {}\n"
    header, *found = problems(lambda: load(text, "model.dropout=2", "x"), tmp_path)
    assert header == "config.yaml: 7 problems:"
    places = [f"config.yaml:{line}" for line in (2, 3, 5, 6, 7)] + ["--set model.dropout=2", "--set x"]
    assert [line.startswith(f"{place}: ") for line, place in zip(found, places, strict=True)] == [True] * 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ":1: is empty; `bilstm-cls init"),
        (b"- a\n", ":1: must be a mapping of keys, not ['a']"),
        (b"seed: 1\n", ": data.train: must be the file of labelled texts"),
        (b"seed: 1\nname: \xe9\n", ":2: byte 0xe9 is not UTF-8"),
        ("seed: 1\n".encode("utf-16"), ":1: byte 0xff is not UTF-8"),
        (b"#" * 1_000_001, ": is larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    (found,) = problems(lambda: load_config(tmp_path / "config.yaml"), tmp_path)
    assert found.startswith(f"config.yaml{words}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imbd.yaml", "there is no such file; in its folder there is imdb.yaml"),
        ("nowhere/imdb.yaml", "there is no such file"),
        ("sub", "is a folder; give a config file, such as {folder}/sub/config.yaml"),
        ("a\0b", "cannot be read"),
        ("a" * 500, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "imdb.yaml").touch()
    (tmp_path / "sub").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {words.format(folder=tmp_path)}")


# Likely keys


@pytest.mark.parametrize(("name", "meant"), sorted(SYNONYMS.items()))
def test_another_tools_name_leads_to_a_key_of_ours(name: str, meant: str) -> None:
    section, _, key = name.rpartition(".")
    assert meant in DOTTED
    assert key not in KEYS[section]
    assert meant.rpartition(".")[2] in unknown_key(section, key)


# What is written


def fractions(minimum: float = 0.0) -> st.SearchStrategy[float]:
    return st.floats(minimum, 0.99, exclude_min=minimum > 0)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
LOOKALIKES = st.sampled_from(["1e-3", "null", "no", "012", "12:30", ".inf", "~", "<<", "0.1", "- a", "a: b", "#", "*"])
TEXTS = NAMES | LOOKALIKES
POOLINGS = ["mean", "reduce_mean", "max", "last", "attention"]
CONFIGS = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"train": TEXTS},
            optional={
                "valid": TEXTS | st.floats(0.01, 0.4), "test": st.none() | TEXTS | st.floats(0.01, 0.5),
                "text_columns": TEXTS | st.lists(TEXTS, min_size=1, unique=True), "label_column": TEXTS,
                "label_names": st.none() | TEXTS,
                "encoding": st.sampled_from(["utf-8", "auto", "gb18030"]), "split_seed": st.integers(0, 2**63 - 1),
            },
        )
    },
    optional={
        "name": st.from_regex(r"[\w-][\w.-]{,20}", fullmatch=True), "output_dir": TEXTS,
        "seed": st.integers(0, 2**63 - 1),
        "text": st.fixed_dictionaries({}, optional={"max_vocab_size": st.none() | st.integers(300, 10**9)}),
        "embedding": st.fixed_dictionaries({"init": TEXTS.map("./{}".format), "freeze": st.booleans()}),
        "model": st.fixed_dictionaries(
            {
                "pooling": st.sampled_from([*POOLINGS, "concat"])
                | st.lists(st.sampled_from(POOLINGS), min_size=1, unique=True)
            }
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(0, 1e9, exclude_min=True), "ema_decay": st.none() | fractions(),
                "class_weights": st.sampled_from([None, "balanced"])
                | st.dictionaries(TEXTS, st.floats(1e-9, 1e9), min_size=1),
                "evaluate_every": st.just("epoch") | st.integers(1, 10**9),
                "select_by": st.sampled_from([f"valid/{name}" for name in METRICS]),
            },
        ),
    },
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(CONFIGS)
def test_a_dumped_config_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    config = Config.model_validate(values)
    path = tmp_path_factory.getbasetemp() / "other.yaml"
    path.write_text(dump_config(config), "utf-8")
    assert load_config(path) == config


def test_the_dump_shows_every_key_in_the_order_of_the_schema(load: Load) -> None:
    written = [line.split(":")[0].strip() for line in dump_config(load(SAMPLE)).splitlines()]
    order = [key for name in KEYS[""] for key in (name, *KEYS.get(name, ()))]
    place = order.index("csv") + 1
    order[place:place] = KEYS["data.csv"]
    assert [key for key in written if key not in ("pos", "neg")] == order


def test_the_schema_explains_every_key_and_forbids_all_others() -> None:
    schema = json.loads(json.dumps(config_schema()))
    objects = [schema, *(part for part in schema["$defs"].values() if part["type"] == "object")]
    assert len(objects) == 1 + len(SECTIONS)
    assert all(part["additionalProperties"] is False for part in objects)
    assert all("description" in key for part in objects for key in part["properties"].values())


# YAML


YAML_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | YAML_TEXTS
DOCUMENTS = st.recursive(
    SCALARS | LOOKALIKES,
    lambda inner: st.lists(inner) | st.dictionaries(YAML_TEXTS | LOOKALIKES, inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001), ("-1.E+2", -100.0), (".5", 0.5), ("5.", 5.0), ("12", 12), ("-7", -7), ("012", 12),
        ("1_000", "1_000"), ("no", "no"), ("On", "On"), ("True", True), ("false", False), ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"), ("~", None), ("", None), ("'1'", "1"), ('"null"', "null"),
        ("[a, 1, {b: c}]", ["a", 1, {"b": "c"}]), ("|\n  one\n  two\n", "one\ntwo\n"),
    ],
)  # fmt: skip
def test_a_value_is_what_it_looks_like(written: str, meant: object) -> None:
    document = parse_yaml(f"key: {written}")
    assert (document.problems, document.value) == ([], {"key": meant})
    assert type(document.value["key"]) is type(meant)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: &x 2\n", 2, "anchor &x"),
        ("a: 1\nb: *x\n", 2, "alias *x"),
        ("a: 1\n<<: {b: 2}\n", 2, "merge key"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "tag !!python/object:os.system"),
        ("a: 1\nb: ! 2\n", 2, "tag !"),
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first on line 1"),
        ("s:\n  a: 1\n  'a': 2\n", 3, "duplicate key 's.a', first on line 2"),
        ("a: 1\n1: 2\n", 2, 'put it in quotes: "1"'),
        ("a: 1\n[b]: 2\n", 2, "a key must be text"),
        (f"a: 1\nb: {'9' * 5000}\n", 2, "5000 digits"),
        ('a: 1\nb: "\\ud800"\n', 2, "lone surrogate"),
        ('a: 1\nb: "\\0"\n', 2, "NUL"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: 1\nb:\n\tc: 2\n", 3, "not tabs"),
        ("a: 1\nb: c: d\n", 2, "in quotes"),
        ("a: 1\nb: *.csv\n", 2, "in quotes"),
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: |\n  b\n c\n", 3, "check the indentation"),
        ("a: 1\nb: \x07\n", 2, "is not allowed in YAML"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "not valid YAML"),
        (f"%YAML 1.{'1' * 5000}\n---\na: 1\n", 1, "not valid YAML"),
        ("a: 1\nb: " + "[" * 5000, 2, f"more than {MAX_DEPTH} levels"),
    ],
)
def test_what_could_surprise_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    (problem,) = parse_yaml(text).problems
    assert problem[0] == line
    assert words in problem[1]


@given(DOCUMENTS)
def test_what_is_dumped_is_read_back_by_us_and_by_a_yaml_1_1_reader(value: object) -> None:
    document = parse_yaml(dump_yaml(value))
    assert (document.problems, document.value) == ([], value)
    assert yaml.safe_load(dump_yaml(value)) == value


@given(st.text() | st.text(st.sampled_from("ab1:-?[]{},&*!|>'\"%@`#~.\\ \t\n<"), max_size=60))
def test_no_text_raises(text: str) -> None:
    parse_yaml(text)


# Broken in any way


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


@pytest.mark.parametrize("seed", range(20))
def test_a_broken_config_is_read_or_refused_with_its_line(seed: int, tmp_path: Path) -> None:
    every_key = dump_config(load_config(None, ["data.train=a.csv"])).encode()
    bases = [*(path.read_bytes() for path in SHIPPED), SAMPLE.encode(), every_key]
    rng = random.Random(seed)
    for _ in range(25):
        (tmp_path / "config.yaml").write_bytes(mutant(rng.choice(bases), rng))
        check_message(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "faults/corpus/configs").iterdir()), ids=lambda p: p.name
)
def test_a_config_that_once_broke_the_reader_is_refused(path: Path) -> None:
    check_message(path)
