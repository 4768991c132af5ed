"""`predict -` between other programs: a line in, a line out, in real pipes."""

import json
import os
import selectors
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from bilstm_cls.commands import use

PREDICT = [sys.executable, "-m", "bilstm_cls", "predict", "-", "--json", "--device", "cpu", "--run"]
# As in a user's shell: what is printed into a pipe waits in Python until it is flushed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
    "OMP_NUM_THREADS": "1"
}


@pytest.fixture
def filtering(trained_run: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*PREDICT, trained_run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=ENVIRONMENT
    ) as process:
        yield process
        process.kill()


def next_line(stream: IO[bytes] | None) -> bytes:
    """Returns the next line, or fails after a minute: nothing else would end the wait."""
    assert stream is not None
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        assert selector.select(timeout=60), "no line came"
    return stream.readline()


def test_each_line_is_answered_before_the_next_one_comes(filtering: subprocess.Popen[bytes]) -> None:
    assert filtering.stdin is not None
    for text in ("a good film", "", "ein schlechter Film – wirklich"):
        filtering.stdin.write(f"{text}\n".encode())
        filtering.stdin.flush()
        assert json.loads(next_line(filtering.stdout))["text"] == text
    filtering.stdin.write(b"no end of line")
    filtering.stdin.close()
    assert json.loads(next_line(filtering.stdout))["text"] == "no end of line"
    assert filtering.wait(timeout=60) == 0


def test_a_line_that_comes_in_parts_is_one_text(filtering: subprocess.Popen[bytes]) -> None:
    assert filtering.stdin is not None
    for part in (b"first\nsecond of ", "Grü".encode()[:-1], "Grü".encode()[-1:] + b"n\n"):
        filtering.stdin.write(part)
        filtering.stdin.flush()
    texts = [json.loads(next_line(filtering.stdout))["text"] for _ in range(2)]
    assert texts == ["first", "second of Grün"]


def piped(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=ENVIRONMENT,
        timeout=120,
    )


def test_a_file_goes_through_a_pipe_in_order(trained_run: Path, tmp_path: Path) -> None:
    lines = [f"film {i}" * (i % 7 + 1) for i in range(5000)]
    (tmp_path / "reviews.txt").write_text("\n".join(lines), "utf-8")
    done = piped(f"cat reviews.txt | {shlex.join([*PREDICT, str(trained_run)])} | cat", tmp_path)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == lines
    assert done.returncode == 0


def test_a_reader_that_has_seen_enough_ends_it_quietly(trained_run: Path, tmp_path: Path) -> None:
    done = piped(f"yes good | head -n 100000 | {shlex.join([*PREDICT, str(trained_run)])} | head -n 2", tmp_path)
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr


def test_lines_that_are_there_are_answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\xef\xbb\xbfa\r\nb\n\nc")
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert [chunk for chunk in use.given_chunks(["x", "-", "y"]) if chunk] == [
            ["x"],
            ["a", "b", "", "c"],
            ["y"],
        ]


def test_no_more_lines_are_held_than_are_answered_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"a\n" * 40)
    monkeypatch.setattr(use, "READ_BYTES", 8)
    monkeypatch.setattr(use, "MAX_LINES", 10)
    with (tmp_path / "lines").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        sizes = [len(chunk) for chunk in use.given_chunks(["-"]) if chunk]
    assert sum(sizes) == 40
    assert max(sizes) <= 13


def test_a_text_is_read_as_utf_8_where_the_locale_is_not(trained_run: Path) -> None:
    command = [*PREDICT, str(trained_run), "ein schlechter Film – wirklich".encode(), b"half of \xc3"]
    environment = ENVIRONMENT | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    answered = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=True)
    texts = [json.loads(line)["text"] for line in answered.stdout.splitlines()]
    assert texts == ["ein schlechter Film – wirklich", "half of \N{REPLACEMENT CHARACTER}"]
