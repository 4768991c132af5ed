"""F16: every text has one answer, a finite one, the same alone and in company, in memory that does not grow."""

import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bilstm_cls.classifier import Classifier, Prediction
from tests.command_line import Outcome, run_cli
from tests.faults.children import run
from tests.faults.conftest import Tally
from tests.faults.odd_texts import LONG_TEXTS, ODD_TEXTS
from tests.faults.sizes import cases

COMPANY = 64


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run, device="cpu")


@pytest.fixture(scope="module")
def in_company(classifier: Classifier) -> dict[str, Prediction]:
    """The answer for every text among 63 others, in a random order."""
    texts = random.Random(0).sample(ODD_TEXTS, len(ODD_TEXTS))
    answers = {}
    for start in range(0, len(texts), COMPANY):
        some = texts[start : start + COMPANY]
        answers |= dict(zip(some, classifier.predict(some), strict=True))
    return answers


def is_sound(prediction: Prediction) -> None:
    values = prediction.probabilities.values()
    assert all(0 <= value <= 1 for value in values)
    assert sum(values) == pytest.approx(1, abs=1e-6)
    assert prediction.probability == max(values) == prediction.probabilities[prediction.label]


def test_a_text_has_the_same_answer_alone_and_in_company(
    classifier: Classifier, in_company: dict[str, Prediction], tally: Tally
) -> None:
    def survives(text: str) -> None:
        (alone,) = classifier.predict([text])
        is_sound(alone)
        other = in_company[text]
        assert (alone.text, alone.tokens, alone.label) == (text, other.tokens, other.label)
        assert alone.probabilities == pytest.approx(other.probabilities, abs=1e-6)

    assert len(ODD_TEXTS) >= 400
    tally(ODD_TEXTS, survives)


def test_a_long_text_has_its_answer_soon(classifier: Classifier, tally: Tally) -> None:
    def survives(text: str) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        (prediction,) = classifier.predict([text])
        assert time.process_time() - started <= 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 200 * 1024
        is_sound(prediction)
        assert prediction.text == text
        assert prediction.truncated == (prediction.tokens > 20)

    tally(LONG_TEXTS, survives)


def answers(outcome: Outcome) -> list[str]:
    assert outcome.code == 0, outcome.stderr
    found = [json.loads(line) for line in outcome.stdout.split("\n")[:-1]]
    for answer in found:
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    return [answer["text"] for answer in found]


def as_json_has_it(text: str) -> str:
    """Two halves of a character side by side are a character to JSON."""
    return str(json.loads(json.dumps(text)))


def whole(text: str) -> bool:
    """Whether UTF-8 has bytes for it."""
    return text.encode(errors="ignore").decode() == text


def test_every_way_into_the_command_gives_one_answer_a_text(trained_run: Path, tmp_path: Path, tally: Tally) -> None:
    options = ("--run", trained_run, "--device", "cpu", "--json")
    lines = [text for text in ODD_TEXTS if whole(text) and not {"\n", "\r"} & set(text)]

    def survives(way: str) -> int:
        if way == "arguments":
            texts = [text for text in ODD_TEXTS if "\0" not in text and text not in ("", "-") and text[0] != "-"]
            assert answers(run_cli("predict", *texts, *options)) == [as_json_has_it(text) for text in texts]
        elif way == "stdin":
            texts = lines
            content = "".join(f"{text}\n" for text in texts).encode()
            assert answers(run_cli("predict", "-", *options, stdin=content)) == texts
        elif way == "wrong bytes on stdin":
            texts = ["\ufffd good", "a\ufffd\ufffd", "x"]
            assert answers(run_cli("predict", "-", *options, stdin=b"\xff good\na\xc3\xff\nx")) == texts
        elif way == "txt":
            texts = lines
            (tmp_path / "in.txt").write_bytes("".join(f"{text}\n" for text in texts).encode())
            assert answers(run_cli("predict", "--input", tmp_path / "in.txt", *options)) == texts
        else:
            texts = [text for text in ODD_TEXTS if whole(text)]
            (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            assert answers(run_cli("predict", "--input", tmp_path / "in.jsonl", *options)) == texts
        return len(texts)

    tally(["arguments", "stdin", "wrong bytes on stdin", "txt", "jsonl"], survives)


TEN_MEGABYTES = {"words": "good bad " * 1_100_000, "one word": "a" * 10_000_000, "marks": "!?" * 5_000_000}


@cases(few=1, many=len(TEN_MEGABYTES))
def test_a_text_of_10_megabytes_is_answered_in_bounded_memory(
    number: int, trained_run: Path, tmp_path: Path, tally: Tally
) -> None:
    def survives(kind: str) -> None:
        (tmp_path / "in.txt").write_text(TEN_MEGABYTES[kind])
        outcome = run("predict", "--input", tmp_path / "in.txt", "--run", trained_run, "--device", "cpu", "--json",
                      environment={"CHILD_MEMORY_MB": "800"})  # fmt: skip
        assert answers(outcome) == [TEN_MEGABYTES[kind]]

    tally(list(TEN_MEGABYTES)[-number:], survives)


@cases(few=20_000, many=100_000)
def test_memory_stays_flat_over_a_long_stream(number: int, classifier: Classifier, tally: Tally) -> None:
    """Of whatever comes after the first tenth, nothing is kept."""
    chooser = random.Random(0)
    words = [f"word{i}" for i in range(5000)]

    def texts() -> Iterator[str]:
        for i in range(number):
            if i == number // 10:
                levels.append(resident())
            yield f"{i} {' '.join(chooser.choices(words, k=20))}"

    levels: list[int] = []

    def survives(_: str) -> int:
        count = sum(1 for _ in classifier.stream(texts()))
        assert count == number
        assert resident() - levels[0] <= 20 * 2**20
        return count

    tally(["stream"], survives)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
