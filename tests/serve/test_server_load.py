"""The server under load, with more than its queue holds, and a signal while it works."""

import itertools
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bilstm_cls.classifier import Classifier
from tests.conftest import reviews
from tests.serve.served import Address, Process, load, spawned

pytestmark = pytest.mark.nightly

TEXTS = [text for text, _ in reviews(500, seed=7)]
CLIENTS = 64
MIB = 2**20


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
