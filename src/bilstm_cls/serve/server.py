"""A server process: its address, its signals, and its end."""

import contextlib
import ipaddress
import logging
import signal
import socket
from pathlib import Path
from types import FrameType

import uvicorn

from bilstm_cls.classifier import Classifier
from bilstm_cls.errors import ConfigError, StoppedError
from bilstm_cls.serve.api import build_app

logger = logging.getLogger(__name__)

DRAIN = 20
"""Seconds that accepted requests get after the signal to stop."""

MAX_CONNECTIONS, BACKLOG = 512, 2048
MAX_HEAD_BYTES = 2**16
"""Of a request before its body."""


def serve(run: str | Path, *, host: str, port: int, device: str, precision: str = "fp32") -> None:
    """Answers requests until a signal comes, then those that were accepted.

    Prints the address on stdout as soon as requests are answered. Port 0 is any that is free.

    Raises:
        ConfigError: the address cannot be used.
        CheckpointError: the run is missing or damaged.
        StoppedError: a signal came, and everything accepted has been answered.
    """
    with contextlib.closing(listen(host, port)) as listener:
        signal.signal(signal.SIGTERM, _stop)  # uvicorn catches the signal, drains, and then raises it again
        classifier = Classifier.load(run, device=device, precision=precision)
        logger.info(f"serving {run}, {len(classifier.labels)} labels, on {classifier.device}; Ctrl-C stops it")
        if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            logger.warning(f"--host {host}: whoever reaches this address can use it; there are no passwords")
        server = _AnnouncingServer(build_config(classifier))
        server.run(sockets=[listener])


class _AnnouncingServer(uvicorn.Server):
    """Prints its address once it answers, and not before: from then on it ends as it should at any signal."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            address, port = listener.getsockname()[:2]
            print(f"http://{f'[{address}]' if ':' in address else address}:{port}", flush=True)


def build_config(classifier: Classifier) -> uvicorn.Config:
    """Returns what a server needs. What its clients do wrong is counted, and reported to them alone."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    return uvicorn.Config(
        build_app(classifier),
        http="h11",
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=DRAIN,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that takes connections, or raises `ConfigError` where the address is not ours, or taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror}; give an address of this machine; port 0 is any free one"
        ) from error
    # With its protocol named, or asyncio would leave Nagle's algorithm on, which holds answers back for 40 ms.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, listener.detach())


def _stop(number: int, _: FrameType | None) -> None:
    raise StoppedError("stopped by SIGTERM", signal_number=number)
