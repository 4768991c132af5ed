"""The server under load, with many wrong questions, more than its queue holds, and a signal while it works."""

import asyncio
import itertools
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def show(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n  {line}")


def test_64_clients_get_2000_right_answers(
    server: Address, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = asyncio.run(load(server, some_requests(300), expected, clients=1))
    asyncio.run(load(server, some_requests(500), expected, clients=CLIENTS))  # whatever grows once has grown
    before = server.metric("process_resident_memory_bytes")
    started = time.perf_counter()
    found = asyncio.run(load(server, some_requests(2000), expected, clients=CLIENTS))
    seconds = time.perf_counter() - started
    growth = (server.metric("process_resident_memory_bytes") - before) / MIB
    batches = server.metric("bilstm_cls_batch_texts_count")
    median, p99, one = (1000 * seconds for seconds in (found.quantile(0.5), found.quantile(0.99), alone.quantile(0.5)))
    pace = 2000 / seconds
    show(
        capsys,
        f"{CLIENTS} clients, 2,000 requests: {pace:,.0f} a second, median {median:.1f} ms, p99 {p99:.1f} ms;\n"
        f"  one client alone: median {one:.1f} ms, p99 is {p99 / one:.0f} times that; at that pace {CLIENTS} clients "
        f"wait {1000 * CLIENTS / pace:.0f} ms in the mean;\n"
        f"  {2800 / batches:.1f} texts a batch; memory grew by {growth:.1f} MiB; "
        f"largest difference of a probability {found.difference:.1e}",
    )
    assert found.wrong == []
    assert found.statuses == {200: 2000}
    assert p99 <= 2 * CLIENTS * one  # nobody waits much longer than for all others one after another
    assert growth <= 20


def test_what_is_above_the_limit_is_refused_and_the_rest_is_right(
    server: Address, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = asyncio.run(load(server, some_requests(600, size=64), expected, clients=CLIENTS))
    show(capsys, f"{CLIENTS} clients with 64 texts each time: {found.statuses}")
    assert set(found.statuses) == {200, 503}
    assert found.wrong == []
    assert server.metric("bilstm_cls_queued_texts") == 0


def test_sigterm_under_load_lets_no_accepted_request_down(
    process: Process, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async def stop() -> tuple[Any, float]:
        endless = ([TEXTS[i % len(TEXTS)]] for i in itertools.count())
        running = asyncio.ensure_future(load(process.address, endless, expected, clients=CLIENTS))
        # Another client that has its answers shows that the others are at work.
        await load(process.address, some_requests(50), expected, clients=1)
        started = time.perf_counter()
        process.process.send_signal(signal.SIGTERM)
        code, errors = await asyncio.to_thread(process.ended)
        assert (code, errors) == (143, "error: stopped by SIGTERM\n")
        seconds = time.perf_counter() - started
        return await running, seconds

    found, seconds = asyncio.run(stop())
    show(
        capsys,
        f"SIGTERM under load: {sum(found.statuses.values()):,} requests answered, {found.unanswered} connections "
        f"closed before, over in {seconds:.1f} s",
    )
    assert found.wrong == []
    assert set(found.statuses) == {200}
    assert seconds <= 5
