"""Servers on this machine's loopback, in a thread or as processes, and clients for them."""

import asyncio
import contextlib
import functools
import gc
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from bilstm_cls.classifier import Classifier
from bilstm_cls.serve.server import build_config, listen

JSON = {"Content-Type": "application/json"}
SECONDS = 60
"""After which a test gives up on a server."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one key of an answer that is an error."""
        ((name, message),) = self.json.items()
        assert name == "error"
        assert self.headers["Content-Type"] == "application/json"
        return str(message)


@dataclass(frozen=True)
class Address:
    """Where a server listens, and how one of this process is stopped."""

    host: str
    port: int
    stop: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        """Sends one request over a new connection: GET, or POST where there is a body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body, JSON if headers is None else headers)
            return reply_of(connection.getresponse())

    def predict(self, **question: Any) -> Reply:
        return self.ask("/predict", json.dumps(question).encode())

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=SECONDS)

    def metric(self, name: str) -> float:
        """Returns one figure of `/metrics`, by its name with its labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return float(next(line.removeprefix(name) for line in lines if line.startswith(f"{name} ")))

    def wait_for(self, name: str, value: float) -> None:
        """Returns once a figure has a value."""
        end = time.monotonic() + SECONDS
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"

    def wait_until_closed(self) -> None:
        """Returns once no connection is taken any more."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                self.connect().close()
            except ConnectionError:
                return
        raise AssertionError("the server still takes connections")


def reply_of(response: http.client.HTTPResponse) -> Reply:
    return Reply(response.status, response.headers, response.read())


def read_reply(connection: socket.socket) -> Reply:
    """Reads an answer to what was sent over a bare connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return reply_of(response)


@contextlib.contextmanager
def serving(classifier: Classifier) -> Iterator[Address]:
    """Serves from a thread of this process, so that a test can change what the server's modules hold."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(build_config(classifier))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Address(*listener.getsockname(), stop=functools.partial(setattr, server, "should_exit", True))
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


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
            url = urlsplit(process.stdout.readline().strip()) if process.stdout else urlsplit("")
            assert url.hostname, process.communicate()[1]
            assert url.port
            yield Process(process, Address(url.hostname, url.port))
        finally:
            process.kill()


@dataclass
class Load:
    """What many clients saw.

    Attributes:
        seconds: of each request, from sending to the last byte of the answer.
        statuses: how often each came.
        wrong: texts whose answer was not the expected one.
        difference: the largest of a probability.
        unanswered: requests over a kept connection that the server closed when it stopped, as HTTP allows.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    difference: float = 0.0
    unanswered: int = 0

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    def note(self, status: int, content: Any, asked: Sequence[str], expected: dict[str, dict[str, Any]]) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status != 200:
            return
        for text, answer in zip(asked, content["predictions"], strict=True):
            right = expected[text]
            difference = max(abs(answer["probabilities"][k] - p) for k, p in right["probabilities"].items())
            self.difference = max(self.difference, difference)
            numbers = {"probability": right["probability"], "probabilities": right["probabilities"]}
            if difference > 1e-6 or {**answer, **numbers} != right:
                self.wrong.append(text)


@contextlib.asynccontextmanager
async def connected(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def load(address: Address, requests: Iterable[Sequence[str]], expected: dict[str, Any], *, clients: int) -> Load:
    """Lets clients send all requests, each the next one as soon as it has its answer, over connections they keep.

    A client ends early where an answer says that it is the connection's last.
    """
    found, waiting = Load(), iter(requests)

    async def client() -> None:
        async with connected(address) as (reader, writer):
            for texts in waiting:
                started = time.perf_counter()
                try:
                    status, content, is_last = await exchange(reader, writer, json.dumps({"texts": texts}).encode())
                except (asyncio.IncompleteReadError, ConnectionError):
                    found.unanswered += 1
                    break
                found.seconds.append(time.perf_counter() - started)
                found.note(status, content, texts, expected)
                if is_last:
                    break

    gc.disable()  # or the clients' own collector would hold all of them up
    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        gc.enable()
    return found


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, Any, bool]:
    """Sends a question over an open connection; returns status and content of the answer, and whether it is the last.

    Raises:
        asyncio.IncompleteReadError: the connection ended without an answer.
    """
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    content = json.loads(await reader.readexactly(int(headers["content-length"])))
    return int(status.split()[1]), content, headers.get("connection") == "close"
