"""A run that answers over HTTP, and a page to type into; and the process that does so until a signal comes.

Requests are bounded: bytes, texts, characters, and how many are queued. What is above a bound is refused in words, and
what was accepted is answered, also after the signal to stop. Nothing is delayed to fill a batch: an idle model answers
at once, and what arrives while it is busy makes the next batch.
"""

import asyncio
import base64
import contextlib
import gc
import hashlib
import ipaddress
import logging
import signal
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as figures
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bilstm_cls.classifier import Classifier
from bilstm_cls.errors import ConfigError, UserError, cut, dotted, stop
from bilstm_cls.evaluation.explain import explain_prediction, explanation_object
from bilstm_cls.evaluation.report import TEMPLATES
from bilstm_cls.runtime import most_probable

logger = logging.getLogger(__name__)

MAX_BYTES = 1_000_000  # of a request's body
MAX_TEXTS = 64
MAX_EXPLAINED = 16
MAX_CHARACTERS = 100_000  # of one text

MAX_BATCH = 256  # texts that are classified together; what arrives then waits for no more than these
MAX_QUEUED = 1024  # accepted texts without an answer; above it all is refused, so that no wait can grow
EXPLANATION_COST = 16  # texts that one explanation counts as: it may need many passes of the model
DRAIN = 20  # seconds that accepted requests get after the signal to stop
MAX_CONNECTIONS = 512
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
        return [self.text] if self.text is not None else self.texts or []


class Answer(BaseModel):
    """The prediction for one text, with the keys of `bilstm-cls predict --json`."""

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


Fields = dict[str, Any]  # of a prediction as JSON


class Batcher:
    """Calls the model for many requests, in one thread."""

    def __init__(self, predict: Callable[[Sequence[str]], list[Fields]], explain: Callable[[str], Fields]) -> None:
        self.queued = 0  # texts that were accepted and have no answer yet
        self._predict, self._explain = predict, explain
        self._waiting: deque[tuple[Sequence[str], Future[list[Fields]]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def answer(self, texts: Sequence[str], *, explains: bool = False) -> list[Fields]:
        """Returns one answer per text, in order, or raises status 503 or what the model raised.

        Explanations queue up one by one behind what has arrived, so that nobody waits for many of them.
        """
        cost = len(texts) * (EXPLANATION_COST if explains else 1)
        if self.queued + cost > MAX_QUEUED:
            raise HTTPException(503, f"{MAX_QUEUED:,} texts are queued; try again", {"Retry-After": "1"})
        self.queued += cost
        try:
            request: Future[list[Fields]] = Future()
            self._waiting.append((texts, request))
            self._thread.submit(self._answer_waiting)
            answers = await asyncio.wrap_future(request)
            for answer in answers if explains else ():
                answer["explanation"] = await asyncio.wrap_future(self._thread.submit(self._explain, answer["text"]))
            return answers
        finally:
            self.queued -= cost

    def close(self) -> None:
        """Ends the thread once the model has finished its present call."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _answer_waiting(self) -> None:
        """Answers one batch of what waits: nothing, where an earlier batch took it along."""
        texts: list[str] = []
        requests: list[tuple[int, Future[list[Fields]]]] = []
        while self._waiting and (not requests or len(texts) + len(self._waiting[0][0]) <= MAX_BATCH):
            given, request = self._waiting.popleft()
            if request.set_running_or_notify_cancel():  # whoever asked may be gone
                requests.append((len(given), request))
                texts += given
        if not requests:
            return
        try:
            found = iter(self._predict(texts))
            for number, request in requests:
                request.set_result([next(found) for _ in range(number)])
        except Exception as error:
            for _, request in requests:
                request.set_exception(error)


def build_app(classifier: Classifier) -> FastAPI:
    """Returns the application; its lifespan runs the model's thread."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    queued = Gauge("bilstm_cls_queued_texts", f"Accepted texts; at most {MAX_QUEUED:,}.", registry=registry)
    sizes = [2**power for power in range(9)]
    batch = Histogram("bilstm_cls_batch_texts", "Texts classified together.", buckets=sizes, registry=registry)

    def predict(texts: Sequence[str]) -> list[dict[str, Any]]:
        batch.observe(len(texts))
        return [found.as_dict(min_probability=classifier.task.min_probability) for found in classifier.predict(texts)]

    def explain(text: str) -> Any:
        (prediction,) = classifier.predict([text])
        return explanation_object(prediction, explain_prediction(classifier.loaded, prediction))

    batcher = Batcher(predict, explain)
    queued.set_function(lambda: batcher.queued)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(
        title="bilstm-cls",
        description=f"The text classifier {classifier.config.name!r}.",
        version=version("bilstm-cls"),
        docs_url=None,  # their scripts would come from another server
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((RequestValidationError, HTTPException, UserError), _on_error),
    )
    _count_requests(app, registry)
    _add_routes(app, classifier, batcher)
    return app


def _count_requests(app: FastAPI, registry: CollectorRegistry) -> None:
    """Counts and times the requests, logs each with --verbose without its text, and adds `/metrics`."""
    count = Counter("bilstm_cls_requests", "Responses.", ["path", "status"], registry=registry)
    duration = Histogram("bilstm_cls_request_seconds", "From head to response.", ["path"], registry=registry)
    in_progress = Gauge("bilstm_cls_requests_in_progress", "Requests without a response.", registry=registry)
    too_large = JSONResponse({"error": f"the body has more than {MAX_BYTES:,} bytes"}, 413)

    def counted(inner: ASGIApp) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            started, status = time.perf_counter(), 0

            async def answer(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                if status != 413:  # which starlette writes in plain text
                    await send(message)

            with in_progress.track_inprogress():
                try:
                    await inner(scope, receive, answer)
                except Exception as error:
                    await (await _on_error(Request(scope), error))(scope, receive, answer)
                if status == 413:
                    await too_large(scope, receive, send)
            seconds = time.perf_counter() - started
            path = getattr(scope.get("route"), "path", "other")  # of any path, or anybody could fill the memory
            count.labels(path, str(status)).inc()
            duration.labels(path).observe(seconds)
            logger.debug(f"{scope['method']} {path} {status} {1000 * seconds:.1f} ms")

        return lambda scope, *channels: (call if scope["type"] == "http" else inner)(scope, *channels)

    app.add_middleware(counted)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(figures(registry), media_type=CONTENT_TYPE_LATEST)


def _add_routes(app: FastAPI, classifier: Classifier, batcher: Batcher) -> None:
    page, policy = _build_page(classifier)

    @app.post(
        "/predict",
        response_model=Answers,
        responses={status: {"model": Error} for status in (400, 413, 422, 503)},
        summary="Classify one text or several",
        max_body_size=MAX_BYTES,
    )
    async def predict(question: Question) -> Response:
        answers = await batcher.answer(question.all_texts, explains=question.explain)
        if question.top_k is not None:
            for answer in answers:
                answer["probabilities"] = most_probable(answer["probabilities"], question.top_k)
        return JSONResponse({"predictions": answers})  # which spares FastAPI checking it

    @app.get("/health", summary="Whether the server answers, and with which run")
    async def health() -> dict[str, Any]:
        facts = {"status": "ok", "version": version("bilstm-cls")}
        return {**facts, "run": classifier.config.name, "labels": classifier.labels}

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(page, media_type="text/html", headers=headers)


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    status, headers = 422, None
    match error:
        case RequestValidationError():
            message = "; ".join(map(_described, error.errors()[:5]))
        case UserError():
            message = str(error)
        case HTTPException():
            status, message, headers = error.status_code, error.detail, error.headers
        case _:
            kind = type(error).__name__
            status, message = 500, f"internal error: this is a bug in bilstm-cls, please report it ({kind})"
    return JSONResponse({"error": message}, status, headers)


def _described(problem: dict[str, Any]) -> str:
    """Returns what pydantic found wrong with a body: the key, and why."""
    _, *path = problem["loc"]
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']} at character {path[0]}"
    if not path and problem["type"] != "value_error":
        return "the body must be a JSON object, sent with Content-Type: application/json"
    return ": ".join(filter(None, (cut(dotted(tuple(path))), problem["msg"].removeprefix("Value error, "))))


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
    """Answers requests until a signal comes, and then raises StoppedError once everything accepted is answered.

    Prints the address on stdout as soon as requests are taken. Port 0 is any that is free. Raises ConfigError where the
    address cannot be used, CheckpointError where the run is missing or damaged.
    """
    with contextlib.closing(listen(host, port)) as listener:
        signal.signal(signal.SIGTERM, stop)  # uvicorn catches the signal, drains, and then raises it again
        classifier = Classifier.load(run, device=device, precision=precision)
        logger.info(f"serving {run}, {len(classifier.labels)} labels, on {classifier.device}; Ctrl-C stops it")
        address, port = listener.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback:
            logger.warning(f"--host {host}: whoever reaches this address can use it; there are no passwords")
        server = uvicorn.Server(build_config(classifier))
        gc.freeze()  # or every collection would look through all of PyTorch's objects, while all requests wait
        print(f"http://{f'[{address}]' if ':' in address else address}:{port}", flush=True)
        server.run(sockets=[listener])


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
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN,
    )


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that takes connections, or raises `ConfigError` where the address is not ours, or taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror}; give an address of this machine; port 0 is any free one"
        ) from error
    # With its protocol named, or asyncio would leave Nagle's algorithm on, which holds answers back for 40 ms.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, listener.detach())
