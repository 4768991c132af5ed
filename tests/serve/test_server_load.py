"""The server under load, with more than its queue holds, and a signal while it works."""

import contextlib
import http.client
import itertools
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from bilstm_cls.classifier import Classifier
from tests import command_line
from tests.conftest import reviews
from tests.serve.served import JSON, SECONDS, Address, Reply
from tests.serve.test_server import near

pytestmark = pytest.mark.nightly

TEXTS = [text for text, _ in reviews(500, seed=7)]
CLIENTS = 64
MIB = 2**20
Process = tuple[Address, "subprocess.Popen[str]"]


class Answer(NamedTuple):
    """What a client asked and got, and after how many seconds."""

    texts: Sequence[str]
    reply: Reply
    seconds: float


def load(address: Address, requests: Iterable[Sequence[str]], *, clients: int) -> list[Answer]:
    """Lets clients send all requests, each the next one as soon as it has its answer, over connections they keep.

    A client ends early where its connection is closed, as HTTP allows between two requests.
    """
    found: list[Answer] = []
    remaining = iter(requests)

    def client(_: int) -> None:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=SECONDS)
        with contextlib.closing(connection), contextlib.suppress(ConnectionError):
            for texts in remaining:
                started = time.monotonic()
                connection.request("POST", "/predict", json.dumps({"texts": texts}), JSON)
                reply = Reply.of(connection.getresponse())
                found.append(Answer(texts, reply, time.monotonic() - started))
                if reply.headers["Connection"] == "close":
                    return

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return found


@pytest.fixture(scope="module")
def expected(trained_run: Path) -> dict[str, dict[str, Any]]:
    answers = Classifier.load(trained_run, device="cpu").predict(TEXTS)
    return {answer.text: near(answer.as_dict()) for answer in answers}


def check(found: Sequence[Answer], expected: dict[str, dict[str, Any]], statuses: set[int]) -> None:
    """Asserts that there are answers of these statuses, and that every prediction is right."""
    assert {answer.reply.status for answer in found} == statuses
    right = (answer for answer in found if answer.reply.status == 200)
    wrong = [a.texts for a in right if a.reply.json["predictions"] != [expected[text] for text in a.texts]]
    assert wrong == []


@pytest.fixture
def process(trained_run: Path) -> Iterator[Process]:
    with command_line.serving(["--run", trained_run, "--quiet"]) as (url, started):
        yield Address("127.0.0.1", int(url.rpartition(":")[2])), started


def some_requests(number: int, *, size: int = 1) -> list[list[str]]:
    chooser = random.Random(number)
    return [chooser.choices(TEXTS, k=size) for _ in range(number)]


def test_64_clients_get_2000_right_answers(
    process: Process, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server, _ = process
    load(server, some_requests(500), clients=CLIENTS)  # whatever grows once has grown
    lone = float(np.median([answer.seconds for answer in load(server, some_requests(200), clients=1)]))
    before = server.metric("process_resident_memory_bytes")
    started = time.monotonic()
    found = load(server, some_requests(2000), clients=CLIENTS)
    pace = 2000 / (time.monotonic() - started)
    growth = (server.metric("process_resident_memory_bytes") - before) / MIB
    with capsys.disabled():
        print(
            f"\n  {CLIENTS} clients: {pace:,.0f} requests a second, 99 of 100 within "
            f"{np.quantile([answer.seconds for answer in found], 0.99) / lone:.0f} times a lone answer's "
            f"{1000 * lone:.1f} ms, memory grew by {growth:.1f} MiB"
        )
    check(found, expected, {200})
    assert len(found) == 2000
    assert growth <= 20


def test_what_is_above_the_limit_is_refused_and_the_rest_is_right(process: Process, expected: dict[str, Any]) -> None:
    server, _ = process
    check(load(server, some_requests(600, size=64), clients=CLIENTS), expected, {200, 503})
    assert server.metric("bilstm_cls_queued_texts") == 0


def test_sigterm_under_load_lets_no_accepted_request_down(process: Process, expected: dict[str, Any]) -> None:
    server, running = process
    endless = zip(itertools.cycle(TEXTS))
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(load, server, endless, clients=CLIENTS)
        load(server, some_requests(50), clients=1)  # its answers show that the others are at work
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=SECONDS)
    assert (running.returncode, errors) == (143, "error: stopped by SIGTERM\n")
    check(found.result(), expected, {200})
