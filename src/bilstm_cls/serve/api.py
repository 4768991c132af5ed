"""A run that answers over HTTP, and a page to type into; and the process that does so until a signal comes.

Requests are bounded: bytes, texts, characters, and how many are queued. What is above a bound is refused in words, and
what was accepted is answered, also after the signal to stop.
"""

import base64
import contextlib
import hashlib
import ipaddress
import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, make_asgi_app
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bilstm_cls.classifier import Classifier
from bilstm_cls.errors import ConfigError, StoppedError, UserError, dotted
from bilstm_cls.evaluation.explain import explain_prediction, explanation_object
from bilstm_cls.evaluation.pages import TEMPLATES
from bilstm_cls.runtime import most_probable
from bilstm_cls.serve.batching import MAX_QUEUED, Batcher, FullError

logger = logging.getLogger(__name__)

MAX_BYTES = 1_000_000
"""Of a request's body."""

MAX_TEXTS = 64
MAX_EXPLAINED = 16
MAX_CHARACTERS = 100_000
"""Of one text."""

PATHS = ("/", "/predict", "/health", "/metrics", "/openapi.json")
"""Each has its figures; all others are counted as one, or anybody could fill the memory."""

DRAIN = 20
"""Seconds that accepted requests get after the signal to stop."""

MAX_CONNECTIONS, BACKLOG = 512, 2048
MAX_HEAD_BYTES = 2**16
"""Of a request before its body."""

_Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
_WEB = Path(__file__).with_name("web")


class Question(BaseModel):
    """The body of `/predict`: one text, or several."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"text": "A fine film."}]})

    text: _Text | None = Field(None, description="One text.")
    texts: list[_Text] | None = Field(None, max_length=MAX_TEXTS, description="Several texts, instead of `text`.")
    top_k: int | None = Field(None, ge=1, description="Keep so many labels, the most probable first; all if left out.")
    explain: bool = Field(False, description=f"What each word changes; for at most {MAX_EXPLAINED} texts.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "Question":
        if (self.text is None) == (self.texts is None):
            raise ValueError("give either text or texts")
        if self.explain and len(self.all_texts) > MAX_EXPLAINED:
            raise ValueError(f"explain: {len(self.all_texts)} texts; at most {MAX_EXPLAINED} are explained at a time")
        return self

    @property
    def all_texts(self) -> list[str]:
        """The texts, in order."""
        return [self.text] if self.text is not None else self.texts or []


class Answer(BaseModel):
    """The prediction for one text, with the keys of `bilstm-cls predict --json`."""

    model_config = ConfigDict(extra="forbid")

    text: str
    label: str | None = Field(None, description="Null below the run's least probability; none with several labels.")
    labels: list[str] = Field([], description="Of a run with several labels a text, instead of `label`.")
    probability: float | None = Field(None, description="Of `label`; none with several labels.")
    probabilities: dict[str, float]
    tokens: int = Field(description="Of the text before it was cut.")
    truncated: bool
    unknown_tokens: int
    explanation: dict[str, Any] | list[dict[str, Any]] = Field({}, description="With `explain`; one for each label.")


class Answers(BaseModel):
    """One prediction per text, in order."""

    predictions: list[Answer]


class Error(BaseModel):
    """What went wrong, in one line."""

    error: str


def build_app(classifier: Classifier) -> ASGIApp:
    """Returns the application; its lifespan runs the model's thread."""
    registry = CollectorRegistry()
    queued = Gauge("bilstm_cls_queued_texts", f"Accepted texts; at most {MAX_QUEUED:,}.", registry=registry)
    sizes = [2**power for power in range(9)]

    def explained(text: str) -> Any:
        (prediction,) = classifier.predict([text])
        return explanation_object(prediction, explain_prediction(classifier.loaded, prediction))

    batch = Histogram("bilstm_cls_batch_texts", "Texts classified together.", buckets=sizes, registry=registry)

    batcher = Batcher(
        lambda texts: [p.as_dict(min_probability=classifier.task.min_probability) for p in classifier.predict(texts)],
        explained,
        on_batch=batch.observe,
    )
    queued.set_function(lambda: batcher.queued)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    known = (ValidationError, UserError, FullError, ClientDisconnect, StarletteHTTPException, Exception)
    app = FastAPI(
        title="bilstm-cls",
        description=f"The text classifier {classifier.config.name!r}.",
        version=version("bilstm-cls"),
        docs_url=None,  # their scripts would come from another server
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys(known, _on_error),
    )
    _add_routes(app, classifier, batcher)
    return Metered(app, registry)


def _add_routes(app: FastAPI, classifier: Classifier, batcher: Batcher) -> None:
    page, policy = _build_page(classifier)
    schema = Question.model_json_schema()

    @app.post(
        "/predict",
        response_model=Answers,
        responses={status: {"model": Error} for status in (400, 413, 415, 422, 503)},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        summary="Classify one text or several",
    )
    async def predict(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
        question = Question.model_validate_json(await _read_body(request))
        answers = await batcher.answer(question.all_texts, explains=question.explain)
        if question.top_k is not None:
            for answer in answers:
                answer["probabilities"] = most_probable(answer["probabilities"], question.top_k)
        return _json({"predictions": answers})

    @app.get("/health", summary="Whether the server answers, and with which run")
    async def health() -> dict[str, Any]:
        facts = {"status": "ok", "version": version("bilstm-cls")}
        return {**facts, "run": classifier.config.name, "labels": classifier.labels}

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(page, media_type="text/html", headers=headers)


class Metered:
    """Counts and times the requests to an application, logs each with --verbose without its text, adds `/metrics`."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        self._app = app
        self._metrics = make_asgi_app(registry)
        self._requests = Counter("bilstm_cls_requests", "Responses.", ["path", "status"], registry=registry)
        self._seconds = Histogram("bilstm_cls_request_seconds", "From head to response.", ["path"], registry=registry)
        self._in_progress = Gauge("bilstm_cls_requests_in_progress", "Requests without a response.", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        started = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - started
                self._requests.labels(path, str(message["status"])).inc()
                self._seconds.labels(path).observe(seconds)
                logger.debug(f"{scope['method']} {path} {message['status']} {1000 * seconds:.1f} ms")
            await send(message)

        with self._in_progress.track_inprogress():
            await (self._metrics if path == "/metrics" else self._app)(scope, receive, counted)


async def _read_body(request: Request) -> bytes:
    """Returns the body, of which never more is held than is allowed."""
    too_large = HTTPException(413, f"the body has more than {MAX_BYTES:,} bytes; send fewer texts at a time")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise too_large
    return bytes(body)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Prints as `predict --json` does; a surrogate in a label becomes its escape."""
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(body, status, headers, media_type="application/json")


async def _on_error(_: Request, error: Exception) -> Response:
    headers: Mapping[str, str] | None = None
    match error:
        case ValidationError():
            status, message = _wrong_question(error)
        case UserError():
            status, message = 422, str(error)
        case FullError():
            status, message, headers = 503, f"{MAX_QUEUED:,} texts are queued; try again", {"Retry-After": "1"}
        case ClientDisconnect():
            status, message = 499, "the client is gone"  # which nobody reads but /metrics
        case StarletteHTTPException():
            status, message, headers = error.status_code, error.detail, error.headers
        case _:
            kind = type(error).__name__
            status, message = 500, f"internal error: this is a bug in bilstm-cls, please report it ({kind})"
    return _json({"error": message}, status, headers)


def _wrong_question(error: ValidationError) -> tuple[int, str]:
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return 400, f"the body is not JSON: {problems[0]['msg'].removeprefix('Invalid JSON: ')}"
    words = (f"{dotted(p['loc'])}: {p['msg'].removeprefix('Value error, ')}".removeprefix(": ") for p in problems[:5])
    return 422, "; ".join(words)


def _build_page(classifier: Classifier) -> tuple[bytes, str]:
    """Returns the page and the policy that lets it run its script, ask this server, and nothing else."""
    script = (_WEB / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = Template((_WEB / "page.html").read_text("utf-8")).substitute(
        name=escape(classifier.config.name),
        style="".join((folder / "page.css").read_text("utf-8") for folder in (TEMPLATES, _WEB)),
        script=script,
        labels=len(classifier.labels),
        max_characters=MAX_CHARACTERS,
    )
    policy = (
        f"default-src 'none';script-src 'sha256-{digest}';style-src 'unsafe-inline';img-src data:;connect-src 'self';"
        "base-uri 'none';form-action 'none';frame-ancestors 'none'"
    )
    return page.encode("utf-8", "replace"), policy


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
