import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bilstm_cls.config_file import MAX_DEPTH, dump_yaml, parse_yaml

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
lookalikes = st.sampled_from(
    ["1e-3", "1_000", "012", "no", "~", "null", ".inf", "12:30", "2024-01-01", "<<", "=", "*a", "0x1F"]
)
documents = st.recursive(
    scalars | lookalikes, lambda inner: st.lists(inner) | st.dictionaries(texts | lookalikes, inner), max_leaves=20
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001),
        ("-1.E+2", -100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-7", -7),
        ("012", 12),
        ("1_000", "1_000"),
        ("no", "no"),
        ("On", "On"),
        ("True", True),
        ("false", False),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"null"', "null"),
        ("[a, 1, {b: c}]", ["a", 1, {"b": "c"}]),
        ("|\n  one\n  two\n", "one\ntwo\n"),
    ],
)
def test_a_value_is_what_it_looks_like(written: str, meant: object) -> None:
    document = parse_yaml(f"key: {written}")
    assert document.problems == []
    assert document.value == {"key": meant}
    assert type(document.value["key"]) is type(meant)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: &x 2\n", 2, "anchor &x"),
        ("a: 1\nb: *x\n", 2, "alias *x"),
        ("a: 1\n<<: {b: 2}\n", 2, "merge key"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "tag !!python/object:os.system"),
        ("a: 1\n!!timestamp x: 2\n", 2, "tag !!timestamp"),
        ("a: 1\nb: ! 2\n", 2, "tag !"),
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first on line 1"),
        ("s:\n  a: 1\n  'a': 2\n", 3, "duplicate key 's.a', first on line 2"),
        ("a: 1\n1: 2\n", 2, 'put it in quotes: "1"'),
        ("a: 1\nnull: 2\n", 2, "key null is not text"),
        ("a: 1\n[b]: 2\n", 2, "a key must be text"),
        (f"a: 1\nb: {'9' * 5000}\n", 2, "5000 digits"),
        ('a: 1\nb: "\\ud800"\n', 2, "lone surrogate"),
        ('a: 1\nb: "\\0"\n', 2, "NUL"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: 1\nb:\n\tc: 2\n", 3, "not tabs"),
        ("a: 1\nb: c: d\n", 2, "in quotes"),
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: 1\nb: *.csv\n", 2, "in quotes"),
        ("a: 1\nb: @x\n", 2, "in quotes"),
        ("a: |\n  b\n c\n", 3, "check the indentation"),
        ("a: 1\nb: \x07\n", 2, "is not allowed in YAML"),
        ("a: 1\nb: \ud800\n", 2, "is not allowed in YAML"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "not valid YAML"),
        (f"%YAML 1.{'1' * 5000}\n---\na: 1\n", 1, "not valid YAML"),
        ("a: 1\nb: " + "[" * 5000, 2, f"more than {MAX_DEPTH} levels"),
    ],
)
def test_what_could_surprise_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    problems = parse_yaml(text).problems
    assert [at for at, _ in problems] == [line]
    assert words in problems[0][1]


def test_the_first_of_two_duplicates_counts() -> None:
    document = parse_yaml("a: 1\na: 2\n")
    assert document.value == {"a": 1}
    assert document.lines["a",] == 1


def test_every_value_knows_its_line() -> None:
    document = parse_yaml("# comment\na: 1\n\nsection:\n  b:\n    2\n  c:\n    - x\n    - y\n")
    assert document.lines == {
        (): 2, ("a",): 2, ("section",): 4, ("section", "b"): 6, ("section", "c"): 7, ("section", "c", 0): 8,
        ("section", "c", 1): 9,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~"])
def test_an_empty_document_is_none(text: str) -> None:
    document = parse_yaml(text)
    assert document.value is None
    assert document.problems == []


def test_nesting_up_to_the_limit_is_read() -> None:
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH).problems == []


@given(documents)
def test_what_is_dumped_is_read_back(value: object) -> None:
    document = parse_yaml(dump_yaml(value))
    assert document.problems == []
    assert document.value == value


@given(documents)
def test_a_yaml_1_1_reader_reads_the_dump_too(value: object) -> None:
    assert yaml.safe_load(dump_yaml(value)) == value


@given(st.text())
def test_no_text_raises(text: str) -> None:
    parse_yaml(text)


@given(st.text(st.sampled_from("ab1:-?[]{},&*!|>'\"%@`#~.\\ \t\n<"), max_size=60))
def test_no_text_of_yaml_signs_raises(text: str) -> None:
    parse_yaml(text)
