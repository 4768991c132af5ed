"""Servers on this machine's loopback, in a thread or as processes, and clients for them."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from bilstm_cls.classifier import Classifier
from bilstm_cls.serve.api import build_config, listen

JSON = {"Content-Type": "application/json"}
SECONDS = 60
"""After which a test gives up on a server."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @classmethod
    def of(cls, response: http.client.HTTPResponse) -> "Reply":
        return cls(response.status, response.headers, response.read())

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one key of an answer that is an error."""
        ((name, message),) = self.json.items()
        assert (name, self.headers["Content-Type"]) == ("error", "application/json")
        return str(message)


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        """Sends one request over a new connection: GET, or POST where there is a body."""
        with contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)) as connection:
            connection.request("GET" if body is None else "POST", path, body, JSON if headers is None else headers)
            return Reply.of(connection.getresponse())

    def predict(self, **question: Any) -> Reply:
        return self.ask("/predict", json.dumps(question).encode())

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=SECONDS)

    def metric(self, name: str) -> float:
        """Returns one figure of `/metrics`, by its name with its labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return float(next(line.removeprefix(name) for line in lines if line.startswith(f"{name} ")))

    def is_closed(self) -> bool:
        """Whether no connection is taken any more."""
        try:
            self.connect().close()
        except ConnectionError:
            return True
        return False


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end


def read_reply(connection: socket.socket) -> Reply:
    """Reads an answer to what was sent over a bare connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Reply.of(response)


@contextlib.contextmanager
def serving(classifier: Classifier) -> Iterator[Address]:
    """Serves from a thread of this process, so that a test can change what the server's modules hold."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(build_config(classifier))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Address(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()
