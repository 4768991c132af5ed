import asyncio
import gc
import json
import re
import signal
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from bilstm_cls.classifier import Classifier
from bilstm_cls.commands import use as command
from bilstm_cls.serve import api, batching, metrics, protocol
from bilstm_cls.serve.api import MAX_BYTES, MAX_CHARACTERS, MAX_EXPLAINED, MAX_TEXTS
from bilstm_cls.serve.server import DRAIN, listen, serve
from tests.command_line import run_cli
from tests.conftest import reviews
from tests.serve.served import Address, load, read_reply, serving, spawned
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


def test_answers_are_those_of_the_command_predict(server: Address, trained_run: Path) -> None:
    printed = run_cli("predict", "--run", trained_run, "--json", "--", *TEXTS).stdout.splitlines()
    answers = server.predict(texts=TEXTS).json["predictions"]
    assert answers == [near(json.loads(line)) for line in printed]
    assert [list(answer) for answer in answers] == [list(json.loads(line)) for line in printed]


def test_one_text_is_answered_as_among_others(server: Address) -> None:
    together = server.predict(texts=TEXTS).json["predictions"]
    assert [server.predict(text=text).json["predictions"] for text in TEXTS] == [[near(answer)] for answer in together]


def test_explanations_are_those_of_the_command_predict(server: Address, trained_run: Path) -> None:
    printed = run_cli("predict", "--run", trained_run, "--json", "--explain", "--", *TEXTS).stdout.splitlines()
    answers = server.predict(texts=TEXTS, explain=True).json["predictions"]
    assert [answer["explanation"] for answer in answers] == [json.loads(line)["explanation"] for line in printed]


def test_top_k_keeps_the_likeliest_labels_likeliest_first(server: Address) -> None:
    (whole,) = server.predict(text="bad").json["predictions"]
    assert list(whole["probabilities"]) == ["neg", "pos"]
    for number, labels in ((1, ["neg"]), (2, ["neg", "pos"]), (3, ["neg", "pos"])):
        (answer,) = server.predict(text="bad", top_k=number).json["predictions"]
        assert list(answer["probabilities"].items()) == [(label, whole["probabilities"][label]) for label in labels]


def test_no_texts_have_no_predictions(server: Address) -> None:
    assert server.predict(texts=[]).json == {"predictions": []}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "the body is not JSON: EOF while parsing a value at line 1 column 0"),
        (b"{", 400, "the body is not JSON: EOF while parsing an object at line 1 column 1"),
        (b'{"text": "\xff"}', 400, "the body is not JSON: invalid unicode code point at line 1 column 11"),
        (b'{"text": "\\ud800"}', 400, "the body is not JSON: unexpected end of hex escape at line 1 column 17"),
        (b"[" * 100_000, 400, "the body is not JSON: recursion limit exceeded at line 1 column 202"),
        (b"null", 422, "the body: must be an object, not null"),
        (b"{}", 422, "give either text or texts"),
        (b'{"text": "a", "texts": []}', 422, "give either text or texts"),
        (b'{"text": 5}', 422, "text: must be a valid string, not 5"),
        (b'{"texts": "a"}', 422, "texts: must be a valid array, not 'a'"),
        (b'{"texts": ["a", null]}', 422, "texts[1]: must be a valid string, not null"),
        (b'{"txt": "a"}', 422, "txt: unknown key; known are text, texts, top_k, explain"),
        (b'{"text": "a", "top_k": 0}', 422, "top_k: must be greater than or equal to 1, not 0"),
        (b'{"text": "a", "explain": 1}', 422, "explain: must be a valid boolean, not 1"),
        (
            json.dumps({"text": "a" * (MAX_CHARACTERS + 1)}).encode(),
            422,
            "text: 100,001 characters; at most 100,000 are read",
        ),
        (
            json.dumps({"texts": [""] * (MAX_TEXTS + 1)}).encode(),
            422,
            "texts: 65 texts; send at most 64 at a time",
        ),
        (
            json.dumps({"texts": [""] * (MAX_EXPLAINED + 1), "explain": True}).encode(),
            422,
            "explain: 17 texts; at most 16 are explained at a time",
        ),
    ],
)
def test_a_wrong_question_is_answered_by_one_line(server: Address, body: bytes, status: int, error: str) -> None:
    reply = server.ask("/predict", body)
    assert (reply.status, reply.error) == (status, error)


def test_only_json_is_read(server: Address) -> None:
    reply = server.ask("/predict", b'{"text": "a"}', {"Content-Type": "text/plain"})
    assert (reply.status, reply.error) == (415, "send JSON, with the header Content-Type: application/json")
    assert server.ask("/predict", b'{"text": "a"}', {"Content-Type": "Application/JSON; charset=utf-8"}).status == 200


def test_what_is_not_there_is_an_error_like_the_others(server: Address) -> None:
    assert (server.ask("/docs").status, server.ask("/docs").error) == (404, "Not Found")
    assert (server.ask("/predict").status, server.ask("/predict").error) == (405, "Method Not Allowed")


def test_what_is_not_http_is_an_error_like_the_others(server: Address) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01\r\n\r\n")
        reply = read_reply(connection)
    assert (reply.status, reply.error) == (400, "this is not an HTTP request")


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server: Address) -> None:
    with server.connect() as connection:
        connection.sendall(POST + f"Content-Length: {MAX_BYTES + 1}\r\n\r\n".encode())
        reply = read_reply(connection)
    assert (reply.status, reply.error) == (413, "the body has more than 1,000,000 bytes; send fewer texts at a time")


def test_a_body_of_unknown_size_is_refused_as_soon_as_it_is_too_large(server: Address) -> None:
    with server.connect() as connection:
        chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 10 + b"1\r\n \r\n")
        assert read_reply(connection).status == 413


def test_a_body_of_the_largest_size_is_read(server: Address) -> None:
    body = b'{"text": "a"}'
    assert server.ask("/predict", body + b" " * (MAX_BYTES - len(body))).status == 200


def test_the_connection_serves_again_after_an_error(server: Address) -> None:
    with server.connect() as connection:
        for body, status in ((b"{", 400), (b'{"text": "a"}', 200)):
            connection.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert read_reply(connection).status == status


def test_health_tells_what_answers(server: Address) -> None:
    assert server.ask("/health").json == {"status": "ok", "version": "0.1.0", "run": "tiny", "labels": ["neg", "pos"]}


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
        assert server.metric("bilstm_cls_waiting_texts") == 0
        assert server.metric("bilstm_cls_requests_in_progress") == 1  # this one


def test_the_description_of_the_server_is_whole(server: Address) -> None:
    described = server.ask("/openapi.json").json
    assert set(described["paths"]) == {"/predict", "/health", "/metrics"}
    post = described["paths"]["/predict"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"text", "texts", "top_k", "explain"}
    assert {"200", "400", "413", "422", "503"} <= set(post["responses"])
    assert server.predict(**schema["examples"][0]).status == 200
    keys = described["components"]["schemas"]["PredictionObject"]["properties"]
    assert set(keys) == set(server.predict(text="a", explain=True).json["predictions"][0])


def test_the_page_of_the_docs_is_true(server: Address) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)\n```", page, re.M | re.S)
    exec(compile(block, "docs/serve.md", "exec"), {"url": server.url})
    bounds = [MAX_TEXTS, MAX_CHARACTERS, MAX_EXPLAINED, MAX_BYTES, DRAIN]
    bounds += [batching.MAX_WAITING, batching.MAX_BATCH, batching.EXPLANATION_COST]
    bounds += [protocol.MAX_CONNECTIONS, int(protocol.DEADLINE)]
    assert [bound for bound in bounds if not re.search(rf"\b{bound:,}\b", page)] == []
    assert {path for path in metrics.PATHS if f" {path}`" not in page} == set()


def test_a_text_with_tokens_that_cannot_be_explained_is_the_users_error(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise api.UserError("no such place")

    monkeypatch.setattr(Classifier, "explain", refuse)
    with serving(classifier) as server:
        reply = server.predict(text="a", explain=True)
    assert (reply.status, reply.error) == (422, "no such place")


def test_a_mistake_of_ours_tells_no_more_than_its_kind(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr(Classifier, "predict", fail)
    with serving(classifier) as server:
        reply = server.predict(text="a")
        assert server.ask("/health").status == 200
    assert (reply.status, reply.error) == (500, "this is a mistake in bilstm-cls, please report it (KeyError)")


def test_what_would_wait_too_long_is_refused_and_told_when_to_come_again(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING", 1)
    with serving(classifier) as server:
        reply = server.predict(texts=["a", "b"])
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert "try again" in reply.error
        assert server.predict(text="a").status == 200


def test_connections_above_the_limit_are_refused(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 1)
    with serving(classifier) as server, server.connect() as first:
        first.sendall(POST)
        with server.connect() as second:
            reply = read_reply(second)
        assert (reply.status, reply.error) == (503, "too many connections; try again")
        assert reply.headers["Retry-After"] == "1"
        first.sendall(b'Content-Length: 13\r\n\r\n{"text": "a"}')
        assert read_reply(first).status == 200


@pytest.mark.parametrize("begin", [b"", b"POST /pre", POST, POST + b'Content-Length: 13\r\n\r\n{"te'])
def test_a_request_that_does_not_arrive_is_cut_off(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(protocol, "DEADLINE", 0.3)
    with serving(classifier) as server, server.connect() as connection:
        connection.sendall(begin)
        reply = read_reply(connection)
        assert (reply.status, reply.headers["Connection"]) == (408, "close")
        assert reply.error.startswith("the request was not here in full")
        assert connection.recv(1) == b""
        monkeypatch.undo()
        assert server.metric('bilstm_cls_requests_total{path="",status="408"}') == 1
        server.wait_for("bilstm_cls_requests_in_progress", 1)


def test_a_later_request_of_a_connection_has_the_same_deadline(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(classifier) as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_reply(connection).status == 200
        monkeypatch.setattr(protocol, "DEADLINE", 0.3)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert read_reply(connection).status == 200
        assert read_reply(connection).status == 408


def test_an_answer_that_is_not_taken_is_cut_off(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "DEADLINE", 0.3)
    body = json.dumps({"texts": ["a" * 90_000] * 10}).encode()
    with serving(classifier) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect((server.host, server.port))
        request = POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        with pytest.raises(ConnectionError):  # and not the timeout
            connection.sendall(request * 50)


def test_a_slow_model_is_no_slow_request(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "DEADLINE", 0.5)
    answer = Classifier.predict

    def late(own: Classifier, texts: list[str]) -> Any:
        asyncio.run(asyncio.sleep(0.8))  # longer than the deadline, in the model's own thread
        return answer(own, texts)

    monkeypatch.setattr(Classifier, "predict", late)
    with serving(classifier) as server:
        assert server.predict(text="a").status == 200


def test_many_clients_each_get_their_own_right_answers(server: Address, classifier: Classifier) -> None:
    texts = [text for text, _ in reviews(300, seed=5)]
    expected = {answer.text: answer.as_dict() for answer in classifier.predict(texts)}
    requests = [texts[i : i + 1 + i % 3] for i in range(297)]
    found = asyncio.run(load(server, requests, expected, clients=16))
    assert found.statuses == {200: 297}
    assert found.wrong == []


def test_requests_in_flight_are_answered_after_sigterm_and_logged_without_texts(
    trained_run: Path, classifier: Classifier
) -> None:
    texts = [text for text, _ in reviews(8, seed=6)]
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    with spawned(trained_run, "--verbose") as server:
        assert server.address.host == "127.0.0.1"
        connections = [server.address.connect() for _ in bodies]
        for connection, body in zip(connections, bodies, strict=True):
            connection.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        server.address.wait_for("bilstm_cls_requests_in_progress", 1 + len(bodies))
        server.process.send_signal(signal.SIGTERM)
        server.address.wait_until_closed()
        for connection, body in zip(connections, bodies, strict=True):
            connection.sendall(body[5:])
        replies = [read_reply(connection) for connection in connections]
        code, errors = server.ended()
        for connection in connections:
            connection.close()
    assert [reply.status for reply in replies] == [200] * len(texts)
    assert [reply.headers["Connection"] for reply in replies] == ["close"] * len(texts)
    answers = [reply.json["predictions"][0] for reply in replies]
    assert answers == [near(answer.as_dict()) for answer in classifier.predict(texts)]
    assert code == 143
    told = errors.splitlines()
    assert told[-1] == "error: stopped by SIGTERM"
    assert sum(re.fullmatch(r"POST /predict 200 \d+\.\d ms", line) is not None for line in told) == len(texts)
    assert [text for text in texts if text in errors] == []  # what people write is theirs
    assert "warning" not in errors
    assert "Traceback" not in errors


def test_a_request_on_its_way_is_answered_while_the_server_stops(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER", 30)
    with serving(classifier) as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_reply(connection).headers["Connection"] is None
        server.stop()
        server.wait_until_closed()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = read_reply(connection)
        assert (reply.status, reply.headers["Connection"]) == (200, "close")
        assert connection.recv(1) == b""


def test_ctrl_c_stops_the_server_and_an_address_that_others_reach_is_warned_of(trained_run: Path) -> None:
    with spawned(trained_run, "--host", "0.0.0.0") as server:
        server.process.send_signal(signal.SIGINT)
        code, errors = server.ended()
    assert code == 130
    assert errors.splitlines()[1:] == [
        "warning: --host 0.0.0.0: whoever reaches this address can ask; there are no passwords",
        "error: stopped",
    ]


def test_a_taken_port_and_a_foreign_address_are_one_line(trained_run: Path) -> None:
    advice = "give an address of this machine, and a port that is free (0 takes any)"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run_cli("serve", "--run", trained_run, "--port", port)
    assert outcome.code == 2
    assert outcome.errors == [f"error: --host 127.0.0.1 --port {port}: Address already in use; {advice}"]
    outcome = run_cli("serve", "--run", trained_run, "--host", "192.0.2.1")
    assert outcome.code == 2
    assert outcome.errors == [f"error: --host 192.0.2.1 --port 8000: Cannot assign requested address; {advice}"]
    outcome = run_cli("serve", "--run", trained_run, "--host", "no.such.host.invalid")
    assert outcome.code == 2
    assert re.fullmatch("error: --host no.such.host.invalid: .+; give an address of this machine", *outcome.errors)


def test_answers_are_not_held_back_until_more_can_be_sent_with_them() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_what_is_loaded_is_not_collected_again(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda _, sockets: frozen.append(gc.get_freeze_count()))
    serve(trained_run, host="127.0.0.1", port=0, device="cpu")
    assert frozen[0] > 10_000
    assert gc.get_freeze_count() == 0


def test_a_damaged_run_is_not_served(tmp_path: Path) -> None:
    outcome = run_cli("serve", "--run", tmp_path, "--port", 0)
    assert (outcome.code, outcome.stdout) == (4, "")
    assert len(outcome.errors) == 1


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch, trained_run: Path) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    outcome = run_cli("serve", "--run", trained_run)
    assert outcome.code == 2
    assert outcome.errors == ["error: serve needs uvicorn; run: pip install 'bilstm-cls[serve]'"]


def test_many_labels_are_served_like_two() -> None:
    labels = [f"label {i}" for i in range(40)]
    classifier = Classifier(untrained(labels=labels, texts=["one two three"]), device="cpu")
    with serving(classifier) as server:
        answers = server.predict(texts=["one", "two three"]).json["predictions"]
        top = server.predict(text="one", top_k=3).json["predictions"][0]["probabilities"]
    assert answers == [near(answer.as_dict()) for answer in classifier.predict(["one", "two three"])]
    assert list(top.values()) == pytest.approx(sorted(answers[0]["probabilities"].values(), reverse=True)[:3])
