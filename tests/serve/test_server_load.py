"""The server under load, with more than its queue holds, and a signal while it works."""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from bilstm_cls.classifier import Classifier
from tests.conftest import reviews
from tests.serve.served import JSON, SECONDS, Address, Reply

pytestmark = pytest.mark.nightly

TEXTS = [text for text, _ in reviews(500, seed=7)]
CLIENTS = 64
MIB = 2**20


@dataclass(frozen=True)
class Process:
    """`bilstm-cls serve` as a user starts it."""

    process: "subprocess.Popen[str]"
    address: Address

    def ended(self) -> tuple[int, str]:
        """Waits for the end and returns the exit code and stderr."""
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, errors


@contextlib.contextmanager
def spawned(run: Path, *options: str) -> Iterator[Process]:
    """Starts a server at a free port and waits for its address on stdout."""
    command = [sys.executable, "-m", "bilstm_cls", "serve", "--run", str(run), "--port", "0", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as process:
        try:
            url = urlsplit(process.stdout.readline().strip())  # type: ignore[union-attr]
            assert url.hostname, process.communicate()[1]
            yield Process(process, Address(url.hostname, url.port or 0))
        finally:
            process.kill()


@dataclass
class Load:
    """What many clients saw: how often each status, texts with a wrong prediction, and the seconds of each request."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def note(self, reply: Reply, asked: Sequence[str], expected: dict[str, dict[str, Any]]) -> None:
        self.statuses[reply.status] += 1
        answers = reply.json["predictions"] if reply.status == 200 else []
        for text, answer in zip(asked, answers, strict=False):
            right = expected[text]
            difference = max(abs(answer["probabilities"][k] - p) for k, p in right["probabilities"].items())
            numbers = {"probability": right["probability"], "probabilities": right["probabilities"]}
            if difference > 1e-6 or {**answer, **numbers} != right:
                self.wrong.append(text)


def load(address: Address, requests: Iterable[Sequence[str]], expected: dict[str, Any], *, clients: int) -> Load:
    """Lets clients send all requests, each the next one as soon as it has its answer, over connections they keep.

    A client ends early where its connection is closed, as HTTP allows between two requests.
    """
    found, lock, remaining = Load(), threading.Lock(), iter(requests)

    def client(_: int) -> None:
        with contextlib.closing(http.client.HTTPConnection(address.host, address.port, timeout=SECONDS)) as connection:
            while True:
                with lock:
                    texts = next(remaining, None)
                if texts is None:
                    return
                started = time.monotonic()
                try:
                    connection.request("POST", "/predict", json.dumps({"texts": texts}), JSON)
                    reply = Reply.of(connection.getresponse())
                except ConnectionError:
                    return
                with lock:
                    found.seconds.append(time.monotonic() - started)
                    found.note(reply, texts, expected)
                if reply.headers["Connection"] == "close":
                    return

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return found


@pytest.fixture(scope="module")
def expected(trained_run: Path) -> dict[str, dict[str, Any]]:
    answers = Classifier.load(trained_run, device="cpu").predict(TEXTS)
    return {answer.text: answer.as_dict() for answer in answers}


@pytest.fixture
def process(trained_run: Path) -> Iterator[Process]:
    with spawned(trained_run, "--quiet") as started:
        yield started


@pytest.fixture
def server(process: Process) -> Address:
    return process.address


def some_requests(number: int, *, size: int = 1) -> list[list[str]]:
    chooser = random.Random(number)
    return [chooser.choices(TEXTS, k=size) for _ in range(number)]


def test_64_clients_get_2000_right_answers(
    server: Address, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    load(server, some_requests(500), expected, clients=CLIENTS)  # whatever grows once has grown
    lone = float(np.median(load(server, some_requests(200), expected, clients=1).seconds))
    before = server.metric("process_resident_memory_bytes")
    started = time.monotonic()
    found = load(server, some_requests(2000), expected, clients=CLIENTS)
    pace = 2000 / (time.monotonic() - started)
    growth = (server.metric("process_resident_memory_bytes") - before) / MIB
    with capsys.disabled():
        print(
            f"\n  {CLIENTS} clients: {pace:,.0f} requests a second, 99 of 100 within "
            f"{np.quantile(found.seconds, 0.99) / lone:.0f} times a lone answer's {1000 * lone:.1f} ms, "
            f"memory grew by {growth:.1f} MiB"
        )
    assert (found.wrong, found.statuses) == ([], {200: 2000})
    assert growth <= 20


def test_what_is_above_the_limit_is_refused_and_the_rest_is_right(server: Address, expected: dict[str, Any]) -> None:
    found = load(server, some_requests(600, size=64), expected, clients=CLIENTS)
    assert (set(found.statuses), found.wrong) == ({200, 503}, [])
    assert server.metric("bilstm_cls_queued_texts") == 0


def test_sigterm_under_load_lets_no_accepted_request_down(process: Process, expected: dict[str, Any]) -> None:
    endless = ([TEXTS[i % len(TEXTS)]] for i in itertools.count())
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(load, process.address, endless, expected, clients=CLIENTS)
        load(process.address, some_requests(50), expected, clients=1)  # its answers show that the others are at work
        process.process.send_signal(signal.SIGTERM)
        assert process.ended() == (143, "error: stopped by SIGTERM\n")
        found = running.result()
    assert (set(found.statuses), found.wrong) == ({200}, [])
