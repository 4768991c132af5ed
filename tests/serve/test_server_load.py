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
from tests.serve.served import Address, Process, connected, exchange, load, spawned

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


def malformed(number: int) -> Iterator[bytes]:
    """Yields questions with bytes changed, left out, doubled or put in, and some of no sense at all."""
    chooser = random.Random(0)
    whole = [
        b'{"texts": ["a good film", "bad"], "top_k": 1, "explain": true}',
        '{"text": "a \\u00e9 \U0001f600 film", "explain": false}'.encode(),
        b"[[[[" * 5000,
        b'{"texts": [' + b'"a",' * 3000 + b'"a"]}',
        b'{"text": NaN, "top_k": 1e400}',
        bytes(range(256)),
    ]
    for i in range(number):
        body = bytearray(whole[i % len(whole)])
        for _ in range(chooser.randint(1, 4)):
            at = chooser.randrange(len(body))
            put_in = bytes(chooser.choices(b'{}[]",:\\0u\x00\xff', k=chooser.randint(0, 3)))
            body[at : at + chooser.randint(0, 2)] = put_in
        yield bytes(body)


def test_500_malformed_bodies_are_refused_in_words(
    server: Address, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask() -> dict[int, int]:
        statuses: dict[int, int] = {}
        async with connected(server) as (reader, writer):
            for body in malformed(500):
                status, content, is_last = await exchange(reader, writer, body)
                statuses[status] = statuses.get(status, 0) + 1
                assert list(content) == ["predictions" if status == 200 else "error"]
                assert not is_last
        return statuses

    statuses = asyncio.run(ask())
    show(capsys, f"500 malformed bodies: {statuses}")
    assert set(statuses) <= {200, 400, 422}
    assert statuses[400] + statuses[422] > 350
    found = asyncio.run(load(server, some_requests(100), expected, clients=4))
    assert (found.wrong, found.statuses) == ([], {200: 100})


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
