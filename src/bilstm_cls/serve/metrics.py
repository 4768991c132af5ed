"""Figures of a server for Prometheus, and who takes them down."""

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bilstm_cls.serve.batching import MAX_WAITING

logger = logging.getLogger(__name__)

PATHS = ("/", "/predict", "/health", "/metrics", "/openapi.json")
"""Each has figures of its own; all others are counted as one, or anybody could fill the memory."""

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What `/metrics` shows, in a registry of its own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter("bilstm_cls_requests", "Answers.", ["path", "status"], registry=own)
        self.seconds = Histogram("bilstm_cls_request_seconds", "From head to answer.", ["path"], registry=own)
        self.in_progress = Gauge("bilstm_cls_requests_in_progress", "Requests without an answer yet.", registry=own)
        self.batch = Histogram("bilstm_cls_batch_texts", "Texts read together.", buckets=_SIZES, registry=own)
        self.waiting = Gauge("bilstm_cls_waiting_texts", f"Texts let in; at most {MAX_WAITING:,}.", registry=own)

    def refused(self, status: int) -> None:
        """Notes an answer that was given before there was a path."""
        self.requests.labels("", str(status)).inc()

    def as_text(self) -> bytes:
        """Returns all figures in Prometheus's format."""
        return generate_latest(self.registry)


class Counted:
    """Counts and times the requests to an application, and with --verbose tells of each, without its text."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        started = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - started
                self.metrics.requests.labels(path, str(message["status"])).inc()
                self.metrics.seconds.labels(path).observe(seconds)
                logger.debug(f"{scope['method']} {path} {message['status']} {1000 * seconds:.1f} ms")
            await send(message)

        with self.metrics.in_progress.track_inprogress():
            await self.app(scope, receive, counted)
