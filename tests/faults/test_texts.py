"""F16: every text has one finite answer, the same alone and in a batch, in memory that does not grow."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bilstm_cls.classifier import Classifier, Prediction
from tests.command_line import Outcome, run_cli
from tests.faults.conftest import Tally, cases
from tests.faults.failpoints import resident

PIECES = [
    "", " ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\0", "\x01", "\x1b[31m", "\x7f", "\x85", "\xa0",
    "\xad", "\u1680", "\u2000", "\u200b", "\u200c", "\u200d", "\u200f", "\u2028", "\u2029", "\u202e",
    "\u2066", "\u3000", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\ud800", "\udfff", "\ude00\ud83d",
    "a", "A", "0", ".", "'", '"', "\\", "<br />", "<pad>", "<unk>", "&amp;", "good", "zzyzx", "é",
    "e\u0301", "ß", "İ", "ﬁ", "Σ", "ǅ", "中", "电影", "ひらがな", "한국어", "مرحبا", "שלום", "ไทย", "हिन्दी", "😀",
    "👩‍👩‍👧", "🇩🇪", "👍🏽", "a\u0300\u0316\u0489", "10,000.5", "-1e400", "don't", "l’amour", "x" * 200,
    "ab" * 5000,
]  # fmt: skip
SHAPES = ["{0}", "{0}{0}{0}{0}{0}{0}{0}", "{0} good film", "bad plot {0}", "a {0} b {0} c", "go{0}od"]
ODD_TEXTS = list(dict.fromkeys(shape.format(piece) for piece in PIECES for shape in SHAPES))
LONG_TEXTS = [
    "good " * 10_000, "!" * 10_000, "\u0301" * 10_000, "👩‍👩‍👧" * 2_000, "\n" * 10_000, "a" * 1_000_000, "中" * 300_000,
    "good bad " * 110_000, "\ud83d" * 10_000, "\u202e" * 5_000 + "x", "\0" * 10_000,
]  # fmt: skip
BATCH = 64


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run, device="cpu")


def is_valid(prediction: Prediction) -> None:
    values = prediction.probabilities.values()
    assert sum(values) == pytest.approx(1, abs=1e-6)
    assert prediction.probability == max(values) == prediction.probabilities[prediction.label]


def test_a_text_has_the_same_answer_alone_and_in_a_batch(classifier: Classifier, tally: Tally) -> None:
    texts = random.Random(0).sample([*ODD_TEXTS, *LONG_TEXTS], len(ODD_TEXTS) + len(LONG_TEXTS))
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    in_batch = {text: one for batch in batches for text, one in zip(batch, classifier.predict(batch), strict=True)}

    def survives(text: str) -> None:
        (alone,) = classifier.predict([text])
        is_valid(alone)
        assert alone.truncated == (alone.tokens > 20)
        other = in_batch[text]
        assert (alone.text, alone.tokens, alone.label) == (text, other.tokens, other.label)
        assert alone.probabilities == pytest.approx(other.probabilities, abs=1e-6)

    tally(texts, survives)


def answers(outcome: Outcome) -> list[str]:
    assert outcome.code == 0, outcome.stderr
    return [json.loads(line)["text"] for line in outcome.stdout.split("\n")[:-1]]


def as_json_has_it(text: str) -> str:
    """To JSON, two surrogates next to each other are a character."""
    return str(json.loads(json.dumps(text)))


def test_every_way_into_the_command_gives_one_answer_a_text(trained_run: Path, tmp_path: Path, tally: Tally) -> None:
    options = ("--run", trained_run, "--device", "cpu", "--json")
    whole = [text for text in ODD_TEXTS if text.encode(errors="ignore").decode() == text]
    lines = [text for text in whole if not {"\n", "\r"} & set(text)]
    content = "".join(f"{text}\n" for text in lines).encode()
    args = [text for text in whole if "\0" not in text and text[:1] not in ("", "-")]
    (tmp_path / "in.txt").write_bytes(content)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in whole))
    ways = {
        "arguments": (args, args, b""),
        "stdin": (["-"], lines, content),
        "wrong bytes on stdin": (["-"], ["\ufffd good", "a\ufffd\ufffd", "x"], b"\xff good\na\xc3\xff\nx"),
        "txt": (["--input", tmp_path / "in.txt"], lines, b""),
        "jsonl": (["--input", tmp_path / "in.jsonl"], whole, b""),
    }

    def survives(way: str) -> int:
        words, expected, stdin = ways[way]
        assert answers(run_cli("predict", *words, *options, stdin=stdin)) == [as_json_has_it(text) for text in expected]
        return len(expected)

    tally(ways, survives)


@cases(few=10_000, many=100_000)
def test_memory_stays_flat_over_a_long_stream(number: int, classifier: Classifier, tally: Tally) -> None:
    """After the first tenth."""
    chooser = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    levels: list[int] = []

    def texts() -> Iterator[str]:
        for i in range(number):
            if i == number // 10:
                levels.append(resident())
            yield f"{i} {' '.join(chooser.choices(words, k=20))}"

    def survives(_: str) -> int:
        count = sum(1 for _ in classifier.stream(texts()))
        assert count == number
        assert resident() - levels[0] <= 20 * 2**20
        return count

    tally(["stream"], survives)
