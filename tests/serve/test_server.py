import dataclasses
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from bilstm_cls.classifier import Classifier, Task
from bilstm_cls.errors import UserError
from bilstm_cls.serve import api
from bilstm_cls.serve.api import DRAIN, MAX_BYTES, MAX_CHARACTERS, MAX_CONNECTIONS, MAX_EXPLAINED, MAX_TEXTS
from tests import command_line
from tests.command_line import run_cli
from tests.conftest import reviews
from tests.serve.served import Address, read_reply, serving, wait_until
from tests.serve.untrained import untrained

TEXTS = ["a good film", "", "two\nlines, <b>", 'she said "bad"', "good 😀 中文", " ", "the plot was dull " * 20, "\x00"]
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def classifier(trained_run: Path) -> Classifier:
    return Classifier.load(trained_run, device="cpu")


@pytest.fixture(scope="module")
def server(classifier: Classifier) -> Iterator[Address]:
    with serving(classifier) as address:
        yield address


def near(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer whose numbers may differ in the last digits."""
    numbers = {name: pytest.approx(answer[name], abs=1e-6) for name in ("probability", "probabilities")}
    return {**answer, **numbers}


@pytest.mark.parametrize("explains", [False, True])
def test_answers_are_those_of_the_command_predict(server: Address, trained_run: Path, explains: bool) -> None:
    options = ["--json", *["--explain"] * explains]
    printed = list(
        map(json.loads, run_cli("predict", "--run", trained_run, *options, "--", *TEXTS).stdout.splitlines())
    )
    answers = server.predict(texts=TEXTS, explain=explains).json["predictions"]
    assert answers == [near(line) for line in printed]
    assert [list(answer) for answer in answers] == [list(line) for line in printed]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 422, "object"),
        (b"{", 422, "^the body is not JSON: .* at character 1$"),
        (b'{"text": "\\ud800"}', 422, "^text: "),
        (b"[" * 100_000, 400, "error parsing the body"),
        (b"null", 422, "object"),
        (b"{}", 422, "give either text or texts"),
        (b'{"text": "a", "texts": []}', 422, "give either text or texts"),
        (b'{"text": 5}', 422, "^text: "),
        (b'{"texts": ["a", null]}', 422, r"^texts\[1\]: "),
        (b'{"txt": "a"}', 422, "^txt: "),
        (json.dumps({"t" * 9000: "a"}).encode(), 422, r"^t{77}\.\.\.: "),
        (b'{"text": "a", "top_k": 0}', 422, "^top_k: "),
        (json.dumps({"text": "a" * (MAX_CHARACTERS + 1)}).encode(), 422, f"^text: .*{MAX_CHARACTERS}"),
        (json.dumps({"texts": [""] * (MAX_TEXTS + 1)}).encode(), 422, f"^texts: .*{MAX_TEXTS}"),
        (json.dumps({"texts": [""] * (MAX_EXPLAINED + 1), "explain": True}).encode(), 422, f"{MAX_EXPLAINED}"),
    ],
)
def test_a_wrong_question_is_answered_by_one_line(server: Address, body: bytes, status: int, error: str) -> None:
    reply = server.ask("/predict", body)
    assert reply.status == status
    assert re.search(error, reply.error)
    assert "\n" not in reply.error


def test_only_json_is_read(server: Address) -> None:
    assert server.ask("/predict", b'{"text": "a"}', {"Content-Type": "text/plain"}).status == 422
    assert server.ask("/predict", b'{"text": "a"}', {}).status == 422
    assert (server.ask("/docs").status, server.ask("/predict").status) == (404, 405)


@pytest.mark.parametrize(
    "rest",
    [
        f"Content-Length: {MAX_BYTES + 1}\r\n\r\n".encode(),
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"186a0\r\n" + b" " * 100_000 + b"\r\n") * 10 + b"1\r\n \r\n",
    ],
)
def test_a_body_is_refused_as_soon_as_it_is_known_to_be_too_large(server: Address, rest: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(POST + rest)
        reply = read_reply(connection)
    assert (reply.status, reply.error) == (413, "the body has more than 1,000,000 bytes")


def test_metrics_count_answers_and_batches(classifier: Classifier) -> None:
    with serving(classifier) as server:
        server.predict(texts=["a", "b"])
        server.predict(text="c")
        server.predict()
        server.ask("/one"), server.ask("/other")
        assert server.metric('bilstm_cls_requests_total{path="/predict",status="200"}') == 2
        assert server.metric('bilstm_cls_requests_total{path="/predict",status="422"}') == 1
        assert server.metric('bilstm_cls_requests_total{path="other",status="404"}') == 2
        assert server.metric('bilstm_cls_request_seconds_count{path="/predict"}') == 3
        assert server.metric("bilstm_cls_batch_texts_sum") == 3
        assert server.metric("bilstm_cls_queued_texts") == 0
        assert server.metric("bilstm_cls_requests_in_progress") == 1  # this one
        assert server.metric("process_resident_memory_bytes") > 0


def test_the_description_of_the_server_is_whole(server: Address) -> None:
    described = server.ask("/openapi.json").json
    assert set(described["paths"]) == {"/predict", "/health"}
    assert server.ask("/health").json == {"status": "ok", "version": "0.1.0", "run": "tiny", "labels": ["neg", "pos"]}
    schema = described["components"]["schemas"]["Question"]
    assert {"200", "413", "422", "503"} <= set(described["paths"]["/predict"]["post"]["responses"])
    assert server.predict(**schema["examples"][0]).status == 200


@pytest.mark.parametrize(
    ("task", "without"),
    [(Task(), {"labels"}), (Task(None, 1.0), {"labels"}), (Task(np.array([0.2, 0.3])), {"label", "probability"})],
    ids=["one label", "rejected", "several labels"],
)
def test_every_answer_is_as_described(task: Task, without: set[str]) -> None:
    with serving(Classifier(dataclasses.replace(untrained(), task=task), "cpu")) as server:
        described = server.ask("/openapi.json").json["components"]["schemas"]["Answer"]
        (answer,) = server.predict(text="a", explain=True).json["predictions"]
    assert described["properties"].keys() - answer.keys() == without
    assert set(described["required"]) <= answer.keys()
    nullable = {name for name, key in described["properties"].items() if {"type": "null"} in key.get("anyOf", [])}
    assert {name for name, value in answer.items() if value is None} <= nullable == {"label", "probability"}
    assert (answer.get("label", "") is None) == (task.min_probability == 1)


def test_the_page_of_the_docs_is_true(server: Address) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)\n```", page, re.M | re.S)
    exec(compile(block, "docs/serve.md", "exec"), {"url": server.url})
    bounds = [MAX_TEXTS, MAX_CHARACTERS, MAX_EXPLAINED, MAX_BYTES, DRAIN, MAX_CONNECTIONS]
    bounds += [api.MAX_QUEUED, api.MAX_BATCH, api.EXPLANATION_COST]
    assert [bound for bound in bounds if not re.search(rf"\b{bound:,}\b", page)] == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(UserError("no such place"), 422, "no such place"), (KeyError("/secret"), 500, "bug in bilstm-cls.*KeyError")],
)
def test_an_error_of_the_model_is_one_line_and_a_bug_shows_its_kind_alone(
    error: Exception, status: int, message: str, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "predict", mock.Mock(side_effect=error))
    with serving(classifier) as server:
        reply = server.predict(text="a")
        assert server.metric(f'bilstm_cls_requests_total{{path="/predict",status="{status}"}}') == 1
    assert reply.status == status
    assert re.search(message, reply.error)
    assert "secret" not in reply.error


def test_what_would_wait_too_long_is_refused_for_now(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_QUEUED", 1)
    with serving(classifier) as server:
        reply = server.predict(texts=["a", "b"])
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert "try again" in reply.error
        assert server.predict(text="a").status == 200


def test_requests_in_flight_are_answered_after_sigterm_and_logged_without_texts(
    trained_run: Path, classifier: Classifier
) -> None:
    texts = [text for text, _ in reviews(8, seed=6)]
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    with command_line.serving(["--run", trained_run, "--verbose", "--host", "0.0.0.0"]) as (url, process):
        server = Address("127.0.0.1", int(url.rpartition(":")[2]))
        connections = [server.connect() for _ in bodies]
        for connection, body in zip(connections, bodies, strict=True):
            connection.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        wait_until(lambda: server.metric("bilstm_cls_requests_in_progress") == 1 + len(bodies))
        process.send_signal(signal.SIGTERM)
        wait_until(server.is_closed)
        for connection, body in zip(connections, bodies, strict=True):
            connection.sendall(body[5:])
        replies = [read_reply(connection) for connection in connections]
        errors = process.communicate(timeout=60)[1]
        for connection in connections:
            connection.close()
    assert [reply.status for reply in replies] == [200] * len(texts)
    answers = [reply.json["predictions"][0] for reply in replies]
    assert answers == [near(answer.as_dict()) for answer in classifier.predict(texts)]
    assert process.returncode == 143
    lines = errors.splitlines()
    assert lines[-1] == "error: stopped by SIGTERM"
    assert sum(re.fullmatch(r"POST /predict 200 \d+\.\d ms", line) is not None for line in lines) == len(texts)
    assert [text for text in texts if text in errors] == []  # what people write is theirs
    assert "warning: --host 0.0.0.0" in errors
    assert "Traceback" not in errors


def test_ctrl_c_ends_an_idle_server_with_130(trained_run: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job would ignore, and its children
    with command_line.serving(["--run", trained_run]) as (_, process):
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.splitlines()[-1]) == (130, "error: stopped")


def test_a_taken_port_and_a_foreign_address_are_one_line(trained_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run_cli("serve", "--run", trained_run, "--port", port)
        assert (outcome.code, len(outcome.errors), f"--port {port}" in outcome.stderr) == (2, 1, True)
    outcome = run_cli("serve", "--run", trained_run, "--host", "192.0.2.1")
    assert (outcome.code, len(outcome.errors)) == (2, 1)
