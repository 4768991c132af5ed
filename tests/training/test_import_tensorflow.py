"""A run made of TensorFlow's variables: the same answers as there, from texts."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.evaluation.explain import explain
from bilstm_cls.model.tensorflow import find_model, read_variables
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.import_tensorflow import import_tensorflow
from tests.command_line import contents, run_cli

FIXTURES = Path(__file__).parents[1] / "model" / "fixtures"
VARIABLES = FIXTURES / "tf_classifier_variables.npz"
EXPECTED = read_variables(FIXTURES / "tf_classifier_expected.npz")
LABELS = ["zeta", "alpha", "中文"]
WORDS = [f"w{i}" for i in range(23)]
"""The token of each of TensorFlow's ids; 0 is the padding there."""

VOCABULARIES = {
    "padding first": ["<pad>", *WORDS[1:]],
    "special tokens in our places": ["<PAD>", "<UNK>", *WORDS[2:]],
    "special tokens elsewhere": ["[PAD]", *WORDS[1:9], "_UNK_", *WORDS[10:]],
    "no special tokens": WORDS,
}


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Imports the fixture, or other variables, with these options."""

    def make(vocab: Sequence[str] | Path = VOCABULARIES["padding first"], **options: Any) -> RunDirectory:
        files = {
            "vocab": vocab if isinstance(vocab, Path) else write_lines(tmp_path / "vocab.txt", vocab),
            "labels": write_lines(tmp_path / "labels.txt", options.pop("labels", LABELS)),
        }
        variables = options.pop("variables", VARIABLES)
        return import_tensorflow(variables, tmp_path / "imported", **files, **{"max_length": 11, **options})

    return make


def texts_of(vocab: Sequence[str]) -> list[str]:
    """The fixture's texts, of which TensorFlow read the ids."""
    rows = zip(EXPECTED["token_ids"], EXPECTED["lengths"], strict=True)
    return [" ".join(vocab[i] if i < len(vocab) else "" for i in row[:length]) for row, length in rows]


@pytest.mark.parametrize("vocab", VOCABULARIES.values(), ids=VOCABULARIES.keys())
def test_texts_have_the_answers_that_tensorflow_gave(vocab: list[str], run_of: Callable[..., RunDirectory]) -> None:
    classifier = Classifier.load(run_of(vocab).path, device="cpu")
    predictions = classifier.predict(texts_of(vocab))
    found = np.array([[prediction.probabilities[label] for label in LABELS] for prediction in predictions])
    np.testing.assert_allclose(found, EXPECTED["probabilities"], atol=1e-5)
    assert [LABELS.index(prediction.label) for prediction in predictions] == EXPECTED["probabilities"].argmax(
        1
    ).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("padding first", [0, None, *range(1, 23)]),
        ("special tokens in our places", list(range(23))),
        ("special tokens elsewhere", [0, 9, *range(1, 9), *range(10, 23)]),
        ("no special tokens", [None, None, *range(23)]),
    ],
)
def test_every_row_of_the_embedding_keeps_its_token(
    name: str, expected: list[int | None], run_of: Callable[..., RunDirectory]
) -> None:
    loaded = run_of(VOCABULARIES[name]).load_model()
    rows = np.concatenate([find_model(read_variables(VARIABLES)).embedding, np.zeros((1, 7))])
    rows = rows[[-1 if place is None else place for place in expected]]
    rows[0] = 0  # the padding's, whatever it was
    np.testing.assert_array_equal(loaded.model.embedding.weight.detach().numpy(), rows.astype(np.float32))
    assert loaded.tokenizer.tokens[:2] == ["<pad>", "<unk>"]
    assert loaded.tokenizer.tokens[2:] == [VOCABULARIES[name][place] for place in expected[2:] if place is not None]


def test_ids_of_a_tokenizer_file_are_those_of_the_rows(run_of: Callable[..., RunDirectory], tmp_path: Path) -> None:
    tokenizer = Tokenizer.train([" ".join(WORDS[2:])], kind="words", lowercase=False)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    run = run_of(tmp_path / "tokenizer.json")
    config = run.load_config()
    assert (config.text.tokenizer, config.text.lowercase) == ("words", False)
    found = Classifier.load(run.path, device="cpu").predict_proba(texts_of(["", "", *tokenizer.tokens[2:]]))
    is_known = (EXPECTED["token_ids"] != 1).all(1)
    assert is_known.sum() > 3
    np.testing.assert_allclose(found[is_known], EXPECTED["probabilities"][is_known], atol=1e-5)


@pytest.mark.parametrize(("pooling", "max_length", "divisor"), [("reduce_mean", 11, 11), ("mean", None, 4)])
def test_the_pooling_divides_as_it_did_there(
    pooling: str, max_length: int | None, divisor: int, run_of: Callable[..., RunDirectory]
) -> None:
    text, label = "w3 w4 w5 w6", LABELS[0]
    found = explain(
        Classifier.load(run_of(pooling=pooling, max_length=max_length).path, device="cpu").loaded, text, label=label
    )
    run = run_of(max_length=22, overwrite=True)
    by_22 = explain(Classifier.load(run.path, device="cpu").loaded, text, label=label)
    sums = [sum(term.value for term in explanation.terms) for explanation in (found, by_22)]
    assert sums[0] * divisor == pytest.approx(sums[1] * 22, rel=1e-4)


def sigmoid_variables(path: Path) -> Path:
    variables = read_variables(VARIABLES)
    variables["output/W"], variables["output/b"] = variables["output/W"][:, :1], variables["output/b"][:1]
    np.savez(path, **{name: array for name, array in variables.items() if "/Adam" not in name})
    return path


def test_one_column_is_a_sigmoid(run_of: Callable[..., RunDirectory], tmp_path: Path) -> None:
    run = run_of(labels=["no", "yes"], variables=sigmoid_variables(tmp_path / "sigmoid.npz"))
    found = Classifier.load(run.path, device="cpu").predict_proba(texts_of(VOCABULARIES["padding first"]))
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-EXPECTED["logits"][:, 0])), atol=1e-5)


@pytest.mark.parametrize(
    ("vocab", "options", "expected"),
    [
        (["<PAD>", *WORDS[1:]], {}, True),
        (["<pad>", "W1", *WORDS[2:]], {}, False),
        (["<pad>", "W1", *WORDS[2:]], {"lowercase": True}, True),
        (["<pad>", *WORDS[1:]], {"lowercase": False}, False),
        (["<pad>", "W1", *WORDS[2:]], {"tokenizer": "basic_english"}, True),
    ],
)
def test_texts_are_lower_cased_where_the_vocabulary_is(
    vocab: list[str], options: dict[str, Any], expected: bool, run_of: Callable[..., RunDirectory]
) -> None:
    loaded = run_of(vocab, **options).load_model()
    assert loaded.config.text.lowercase is expected
    assert loaded.tokenizer.encode_batch(["W2"])[0] == [3 if expected else 1]


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        (["<pad>", "a", "a"], r"vocab.txt:3: 'a' is in line 2 already"),
        (["<pad>", "a\t3"], r"vocab.txt:2: 'a\\t3' holds a tab"),
        (["<pad>", "a", "[PAD]"], r"vocab.txt:3: '\[PAD\]' means the same as '<pad>' in line 1"),
        (WORDS[1:], "vocab.txt: has 22 tokens, but the embedding has 23 rows"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named(
    lines: list[str], where: str, run_of: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=where):
        run_of(lines)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("labels", "where"),
    [
        (["a", "b"], r"labels.txt: has 2 labels, but the model's projection has 3 column"),
        (["a", "", "b"], "labels.txt:2: is empty"),
        (["a", "b", "a"], "labels.txt:3: 'a' is in line 1 already"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels: list[str], where: str, run_of: Callable[..., RunDirectory]) -> None:
    with pytest.raises(DataError, match=where):
        run_of(labels=labels)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"max_length": None}, "--max-length: reduce_mean divides by"),
        ({"pooling": "max"}, "--pooling: 'max' cannot be taken over; choose one of reduce_mean, mean, last"),
        ({"tokenizer": "bpe"}, "--tokenizer: 'bpe' is none that takes a vocabulary of lines"),
        ({"tokenizer": "jieba"}, "--tokenizer: 'jieba' is none"),
        ({"forget_bias": float("nan")}, "--forget-bias: must be a finite number, not nan"),
        ({"truncate": "middle"}, "must be 'head', 'tail' or 'both', not 'middle'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    options: dict[str, Any], where: str, run_of: Callable[..., RunDirectory]
) -> None:
    with pytest.raises(ConfigError, match=where):
        run_of(**options)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"scope": "other"}, "variables.npz: no variables like bidirectional_rnn/fw/lstm_cell/kernel"),
        ({"names": {"embedding": "nowhere"}}, "variables.npz: name all of embedding, project_kernel, project_bias"),
        ({"variables": Path(__file__)}, "test_import_tensorflow.py: not an .npz"),
        ({"variables": Path("nowhere.npz")}, "nowhere.npz: cannot be read"),
    ],
)
def test_variables_that_are_no_such_model_are_named(
    options: dict[str, Any], where: str, run_of: Callable[..., RunDirectory]
) -> None:
    with pytest.raises(CheckpointError, match=where):
        run_of(**options)


def test_a_run_that_is_there_is_replaced_only_on_demand(run_of: Callable[..., RunDirectory]) -> None:
    run = run_of()
    before = contents(run.path)
    with pytest.raises(ConfigError, match="already holds a run; add --overwrite"):
        run_of(pooling="mean")
    assert contents(run.path) == before
    assert run_of(pooling="mean", overwrite=True).load_config().model.pooling == "mean"


def test_the_command_makes_a_run_that_predict_and_eval_accept(tmp_path: Path) -> None:
    vocab = write_lines(tmp_path / "vocab.txt", VOCABULARIES["padding first"])
    labels, run = write_lines(tmp_path / "labels.txt", LABELS), tmp_path / "runs" / "imported"
    shutil.copy(VARIABLES, tmp_path / "v.npz")
    made = run_cli(
        "import-tensorflow", tmp_path / "v.npz", "--vocab", vocab, "--labels", labels, "-o", run, "--max-length", 11,
        "--name", "embedding=embedding", "--name", "project_kernel=output/W", "--name", "project_bias=output/b",
    )  # fmt: skip
    assert made.code == 0, made.stderr
    texts = texts_of(VOCABULARIES["padding first"])
    answers = [LABELS[i] for i in EXPECTED["probabilities"].argmax(1)]
    predicted = run_cli("predict", "--run", run, "--json", "--explain", *texts)
    assert [json.loads(line)["label"] for line in predicted.stdout.splitlines()] == answers
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in zip(texts, answers, strict=True)))
    judged = run_cli("eval", "--run", run, "--data", data, "--json")
    assert judged.code == 0, judged.stderr
    assert judged.json["accuracy"] == 1


def test_the_command_wants_a_role_for_every_name(tmp_path: Path) -> None:
    done = run_cli("import-tensorflow", "v.npz", "--vocab", "v", "--labels", "l", "-o", tmp_path, "--name", "output/W")
    assert done.code == 2
    assert done.errors == ["error: --name: 'output/W' must look like embedding=model/embedding"]
