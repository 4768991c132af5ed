import hashlib
import http.server
import logging
import random
import resource
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.data import download
from bilstm_cls.data.download import Patience, fetch
from bilstm_cls.data.hub import DownloadError, UnreachableError
from bilstm_cls.errors import ConfigError, ResourceError

DATA = random.Random(1).randbytes(200_000)
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
WRONG = bytes([DATA[0] ^ 1]) + DATA[1:]
PAGE = b"<!DOCTYPE html>\n<html><body>Log in to the hotel</body></html>"
QUICK = Patience(connect=10, stall=10, waits=(0, 0))

Answer = Callable[["Handler"], None]


@dataclass
class Served:
    """What a server was asked for, and how much of it went out."""

    answers: list[Answer]
    closing: threading.Event = field(default_factory=threading.Event)
    requests: list[Any] = field(default_factory=list)
    num_bytes: int = 0
    url: str = ""

    @property
    def ranges(self) -> list[str | None]:
        return [headers["Range"] for headers in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        served = self.served
        served.requests.append(self.headers)
        served.answers[min(len(served.requests), len(served.answers)) - 1](self)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def start(self, status: int = 200, **headers: object) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def put(self, content: bytes) -> None:
        self.served.num_bytes += len(content)  # before whoever reads the last of it looks
        self.wfile.write(content)

    def start_of_range(self) -> int:
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests are about."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (download.OFFLINE_VARIABLE, "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve(online: None) -> Iterator[Callable[..., Served]]:
    running: list[tuple[Server, Served, threading.Thread]] = []

    def start(*answers: Answer, context: ssl.SSLContext | None = None) -> Served:
        served = Served(list(answers))
        server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        served.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}/data"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.002})
        thread.start()
        running.append((server, served, thread))
        return served

    yield start
    for server, served, thread in running:
        served.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def whole(handler: Handler) -> None:
    """As a good server answers, with ranges."""
    start = handler.start_of_range()
    if start:
        span = f"bytes {start}-{SIZE - 1}/{SIZE}"
        handler.start(206, Content_Length=SIZE - start, Content_Range=span, ETag='"1"')
    else:
        handler.start(Content_Length=SIZE, ETag='"1"', Accept_Ranges="bytes")
    handler.put(DATA[start:])


def sending(content: bytes, status: int = 200, **headers: object) -> Answer:
    """Sends this, with its length unless told another; None means none."""

    def answer(handler: Handler) -> None:
        given = {"Content_Length": len(content), **headers}
        handler.start(status, **{name: value for name, value in given.items() if value is not None})
        handler.put(content)

    return answer


def cut_after(num_bytes: int, etag: str = '"1"') -> Answer:
    """Breaks off after so many bytes of the rest that was asked for."""

    def answer(handler: Handler) -> None:
        start = handler.start_of_range()
        span = {"Content_Range": f"bytes {start}-{SIZE - 1}/{SIZE}"} if start else {}
        handler.start(206 if start else 200, Content_Length=SIZE - start, ETag=etag, **span)
        handler.put(DATA[start : start + num_bytes])

    return answer


def status(code: int, **headers: object) -> Answer:
    return sending(PAGE, code, **headers)


def raw(content: bytes, times: int = 1) -> Answer:
    def answer(handler: Handler) -> None:
        for _ in range(times):
            handler.put(content)

    return answer


def stalling(num_bytes: int) -> Answer:
    def answer(handler: Handler) -> None:
        cut_after(num_bytes)(handler)
        handler.served.closing.wait(10)

    return answer


def silent(handler: Handler) -> None:
    handler.served.closing.wait(10)


def dripping(start: bytes, drop: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.put(start)
        while not handler.served.closing.wait(0.02):
            handler.put(drop)

    return answer


def hopping(num_hops: int, last: Answer = whole) -> Answer:
    def answer(handler: Handler) -> None:
        hop = int(handler.path.removeprefix("/data") or 0)
        if hop == num_hops:
            last(handler)
        else:
            status(302, Location=f"/data{hop + 1}")(handler)

    return answer


def moved_to(location: str) -> Answer:
    return status(302, Location=location)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> Answer:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)


def get(served: Served, folder: Path, **options: Any) -> Path:
    return fetch(served.url, folder / "data.gz", **{"sha256": SHA256, "size": SIZE, "patience": QUICK, **options})


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"data.gz.lock"}


HALF = DATA[: SIZE // 2]
SPAN = f"bytes {SIZE // 2}-{SIZE - 1}/{SIZE}"
CUT = cut_after(SIZE // 2)

MENDED: dict[str, Sequence[Answer]] = {
    "no fault": [whole],
    "no length": [sending(DATA, Content_Length=None)],
    "length that is no number": [sending(DATA, Content_Length="many")],
    "chunks": [chunked(DATA[:70_000], DATA[70_000:])],
    "five redirects": [hopping(5)],
    "identity named as encoding": [sending(DATA, Content_Encoding="identity")],
    **{f"status {code} once": [status(code), whole] for code in (408, 429, 500, 502, 503, 504)},
    "status 503 twice": [status(503), status(503), whole],
    "closed without an answer once": [raw(b""), whole],
    "rubbish in place of an answer once": [raw(b"\0rubbish\n" * 9), whole],
    "cut chunks": [chunked(HALF, end=b"ffff\r\nabc"), whole],
    "chunks of no size": [chunked(HALF, end=b"xyz\r\n"), whole],
    "wrong bytes once": [sending(WRONG), whole],
    "web page once": [sending(PAGE), whole],
    "one byte too many once": [sending(DATA + b"x"), whole],
    "cut where the length is not told": [sending(HALF, Content_Length=None), whole],
    "range ignored": [CUT, sending(DATA)],
    "range answered with another version": [CUT, sending(WRONG), whole],
    "range refused": [CUT, status(416), whole],
    "range from elsewhere": [CUT, sending(HALF, 206, Content_Range=f"bytes 0-{SIZE // 2 - 1}/{SIZE}"), whole],
    "range of another file": [CUT, sending(HALF, 206, Content_Range=f"bytes {SIZE // 2}-{SIZE - 1}/9"), whole],
    "range without its place": [CUT, sending(HALF, 206), whole],
    "range of wrong bytes": [CUT, sending(HALF, 206, Content_Range=SPAN), whole],
    "range of unknown size": [CUT, sending(DATA[SIZE // 2 :], 206, Content_Range=SPAN.replace(f"/{SIZE}", "/*"))],
    "part that was not asked for": [sending(HALF, 206, Content_Range=SPAN), whole],
}  # fmt: skip


@pytest.mark.parametrize("fault", MENDED)
def test_a_fault_that_passes_ends_in_the_right_file(fault: str, serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(*MENDED[fault])
    target = get(served, tmp_path)
    assert target.read_bytes() == DATA
    assert names_in(tmp_path) == {"data.gz"}


LASTING: dict[str, tuple[Answer, str, int]] = {
    "wrong bytes": (sending(WRONG), "SHA-256", 2),
    "wrong last byte": (sending(DATA[:-1] + b"!"), "SHA-256", 2),
    "web page": (sending(PAGE), "HTML page", 2),
    "web page of no length": (sending(PAGE, Content_Length=None), "HTML page", 2),
    "web page of the right length": (sending(PAGE.ljust(SIZE)), "HTML page", 2),
    "web page that is too long": (sending(PAGE.ljust(SIZE * 2), Content_Length=None), "HTML page", 2),
    "no bytes": (sending(b""), "0 bytes instead of 200000", 2),
    "ten times the size": (sending(DATA * 10), "2000000 bytes instead of 200000", 2),
    "other bytes without an end": (raw(b"HTTP/1.1 200 OK\r\n\r\n" + WRONG, times=999), "more than 200000|SHA-256", 2),
    "length that is too large": (sending(DATA, Content_Length=SIZE + 1), "200001 bytes instead of", 2),
    "length that is too small": (sending(DATA, Content_Length=SIZE - 1), "199999 bytes instead of", 2),
    "packed": (sending(DATA, Content_Encoding="gzip"), "packs it as 'gzip'", 1),
    "status 204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "204 without the file", 1),
    **{f"status {code}": (status(code), str(code), 1) for code in (400, 401, 403, 404, 410, 501)},
    **{f"status {code}": (status(code), str(code), 3) for code in (429, 500, 503)},
    "closed without an answer": (raw(b""), "broke before an answer", 3),
    "rubbish": (raw(b"rubbish\r\n" * 9000), "broke before an answer", 3),
    "answers to be continued for ever": (raw(b"HTTP/1.1 100 Continue\r\n\r\n", 10_000), "broke before an answer", 3),
    "headers without an end": (raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 999), "broke before an answer", 3),
    "redirect to itself": (moved_to("/data"), "302 Found and leads nowhere", 2),
    "six redirects": (hopping(6), "302 Found and leads nowhere", 6),
    "redirect without a place": (status(302), "302 Found and leads nowhere", 1),
    "redirect to plain http": (moved_to("http://example.org/data"), "http://example.org/data, which is not https", 1),
    "redirect to a file": (moved_to("file:///etc/passwd"), "leads nowhere", 1),
    "redirect to ftp": (moved_to("ftp://127.0.0.1/data"), "not https", 1),
    "redirect to a very long address": (moved_to("http://example.org/" + "a" * 9000), "not https", 1),
    "range of a very long name": (sending(HALF, 206, Content_Range="a" * 9000), "sends range 'aaa", 2),
    "encoding of a very long name": (sending(HALF, Content_Encoding="a" * 9000), "packs it as 'aaa", 1),
    "redirect to nonsense": (moved_to("http://[::1/data"), "makes no sense", 1),
}  # fmt: skip


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_lasts_ends_in_an_error_and_no_file(
    fault: str, serve: Callable[..., Served], tmp_path: Path
) -> None:
    answer, words, num_requests = LASTING[fault]
    served = serve(answer)
    with pytest.raises(DownloadError, match=words) as error:
        get(served, tmp_path)
    message = str(error.value)
    assert not isinstance(error.value, UnreachableError)
    assert message.startswith(served.url)
    assert f"put the file at {tmp_path / 'data.gz'}" in message
    assert message.isprintable()
    assert len(message) < 500
    assert len(served.requests) == num_requests
    assert names_in(tmp_path) <= {"data.gz.part"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(stalling(99), id="stall"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nA: ", b"a"), id="header drop by drop"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"a"), id="body drop by drop"),
    ],
)
def test_a_server_that_keeps_one_waiting_is_left(answer: Answer, serve: Callable[..., Served], tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        get(serve(answer), tmp_path, patience=Patience(stall=0.15, waits=()))
    assert names_in(tmp_path) <= {"data.gz.part"}


def test_a_stall_in_the_middle_ends_in_the_right_file(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(stalling(SIZE // 2), whole)
    assert get(served, tmp_path, patience=Patience(stall=1, waits=(0,))).read_bytes() == DATA
    assert served.num_bytes == SIZE


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_a_cut_transfer_goes_on_where_it_stopped(percent: int, serve: Callable[..., Served], tmp_path: Path) -> None:
    cut = SIZE * percent // 100
    served = serve(cut_after(cut), whole)
    assert get(served, tmp_path).read_bytes() == DATA
    assert served.num_bytes == SIZE
    assert served.ranges == [None, f"bytes={cut}-" if cut else None]
    assert served.requests[1]["If-Range"] == ('"1"' if cut else None)


def test_a_transfer_that_is_cut_each_time_goes_on_at_the_next_call(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve(cut_after(SIZE // 5))
    with pytest.raises(DownloadError, match="ended after 120000 of 200000 bytes"):
        get(served, tmp_path)
    assert names_in(tmp_path) == {"data.gz.part"}
    assert get(served, tmp_path).read_bytes() == DATA
    assert served.num_bytes == SIZE
    assert names_in(tmp_path) == {"data.gz"}


@pytest.mark.parametrize("etag", ['W/"weak"', "bare", '"quote"inside"'])
def test_only_a_strong_tag_binds_a_range(etag: str, serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(cut_after(100, etag), whole)
    assert get(served, tmp_path).read_bytes() == DATA
    assert served.requests[1]["Range"] == "bytes=100-"
    assert served.requests[1]["If-Range"] is None


@pytest.mark.parametrize(
    ("left", "ranges"),
    [
        pytest.param(DATA[:100], ["bytes=100-"], id="a part"),
        pytest.param(DATA, [], id="all"),
        pytest.param(b"", [None], id="nothing"),
        pytest.param(WRONG, [None], id="all of another"),
        pytest.param(WRONG[:100], ["bytes=100-", None], id="a part of another"),
        pytest.param(DATA + b"x", [None], id="too much"),
    ],
)
def test_what_an_earlier_call_left_never_spoils_the_file(
    left: bytes, ranges: list[str | None], serve: Callable[..., Served], tmp_path: Path
) -> None:
    (tmp_path / "data.gz.part").write_bytes(left)
    served = serve(whole)
    assert get(served, tmp_path).read_bytes() == DATA
    assert served.ranges == ranges
    assert names_in(tmp_path) == {"data.gz"}


@pytest.mark.parametrize("span", [f"bytes 0-{SIZE // 2 - 1}/{SIZE}", f"bytes {SIZE // 2}-{SIZE - 1}/9", "bytes", ""])
def test_a_range_that_was_not_asked_for_is_named(
    span: str, serve: Callable[..., Served], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get(serve(CUT, sending(HALF, 206, Content_Range=span), whole), tmp_path)
    assert f"the server sends range {span!r} instead of 100000 to 199999" in caplog.text


def test_a_complete_file_is_not_asked_for(serve: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "data.gz").write_bytes(DATA)
    served = serve(whole)
    get(served, tmp_path, sha256=SHA256.upper())
    assert served.requests == []
    assert names_in(tmp_path) == {"data.gz"}


@pytest.mark.parametrize("content", [WRONG, b""])
def test_a_wrong_file_is_removed_even_when_no_other_comes(
    content: bytes, serve: Callable[..., Served], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data.gz").write_bytes(content)
    with pytest.raises(DownloadError, match="404"):
        get(serve(status(404)), tmp_path)
    assert names_in(tmp_path) == set()
    assert "is not the file" in caplog.text


def test_a_server_that_sends_too_much_is_stopped_at_once(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(raw(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(SIZE), times=200))
    with pytest.raises(DownloadError):
        get(served, tmp_path)
    assert served.num_bytes < 200 * SIZE / 2


def test_missing_folders_are_made(serve: Callable[..., Served], tmp_path: Path) -> None:
    assert get(serve(whole), tmp_path / "cache" / "imdb").read_bytes() == DATA


def test_progress_grows_to_the_size(serve: Callable[..., Served], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    get(serve(CUT, whole), tmp_path, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (SIZE, SIZE)


def test_nothing_but_plain_bytes_is_asked_for(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(whole)
    get(served, tmp_path)
    assert served.requests[0]["Accept-Encoding"] == "identity"
    assert served.requests[0]["User-Agent"] == "bilstm-cls"


def test_tries_wait_longer_each_time(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    with pytest.raises(DownloadError):
        get(serve(status(503)), tmp_path, patience=Patience())
    assert waited == [0, 1, 4]


@pytest.mark.parametrize(
    "url",
    ["http://example.org/x", "http://127.0.0.1.example.org/x", "http://10.0.0.1/x", "ftp://127.0.0.1/x",
     "file:///etc/passwd", "https:///x", "http:///x", "//example.org/x", "x", "https://[::1/x", "data:,x"],
)  # fmt: skip
def test_an_address_that_is_not_https_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="not an https address"):
        fetch(url, tmp_path / "data.gz", sha256=SHA256, size=SIZE)
    assert names_in(tmp_path) == set()


def test_a_proxy_is_not_asked_for_this_machine(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert get(serve(whole), tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_means_that_nobody_is_asked(
    value: str, serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(whole)
    monkeypatch.setenv("BILSTM_CLS_OFFLINE", value)
    with pytest.raises(UnreachableError, match="BILSTM_CLS_OFFLINE"):
        get(served, tmp_path / "cache")
    assert served.requests == []
    assert names_in(tmp_path) == set()


def test_offline_a_complete_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILSTM_CLS_OFFLINE", "1")
    (tmp_path / "data.gz").write_bytes(DATA)
    assert fetch("https://example.org/x", tmp_path / "data.gz", sha256=SHA256, size=SIZE) == tmp_path / "data.gz"


def fetch_unreachable(url: str, folder: Path, *, connect: float = 10, stall: float = 10) -> str:
    """Returns the message. A second try would outlast every test."""
    patience = Patience(connect, stall, waits=(600, 600))
    with pytest.raises(UnreachableError, match="the network is not reachable") as error:
        fetch(url, folder / "data.gz", sha256=SHA256, size=SIZE, patience=patience)
    assert names_in(folder) == set()
    return str(error.value)


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_never_answers_is_not_reachable(scheme: str, deaf_port: int, tmp_path: Path) -> None:
    fetch_unreachable(f"{scheme}://127.0.0.1:{deaf_port}/x", tmp_path, connect=0.2, stall=0.2)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_takes_no_connection_is_not_reachable(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()

    def black_hole(*args: object) -> None:
        given_up.wait(5)
        raise TimeoutError

    monkeypatch.setattr(socket.socket, "connect", black_hole)
    assert "no connection within 0.1 s" in fetch_unreachable(f"{scheme}://127.0.0.1/x", tmp_path, connect=0.1)
    given_up.set()


@pytest.mark.usefixtures("online")
def test_a_closed_port_is_not_reachable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "refused" in fetch_unreachable(f"http://127.0.0.1:{port}/x", tmp_path)


@pytest.mark.usefixtures("online")
def test_a_name_that_nobody_knows_is_not_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "Temporary failure in name resolution" in fetch_unreachable("https://example.org/x", tmp_path)


@pytest.mark.usefixtures("online")
def test_a_name_service_that_never_answers_is_not_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def lost(*args: object, **options: object) -> None:
        given_up.wait(5)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", lost)
    assert "no connection within 0.1 s" in fetch_unreachable("https://example.org/x", tmp_path, connect=0.1)
    given_up.set()


def test_a_dead_address_leaves_time_for_the_next(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(whole)
    connect = socket.socket.connect

    def connect_unless_dead(sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "127.0.0.2":
            served.closing.wait(sock.gettimeout())
            raise TimeoutError
        connect(sock, address)

    def two_addresses(host: str, port: int, *args: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (place, port)) for place in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket.socket, "connect", connect_unless_dead)
    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    assert get(served, tmp_path, patience=Patience(connect=1)).read_bytes() == DATA


def test_a_network_that_is_lost_half_way_keeps_what_arrived(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(CUT, silent)
    with pytest.raises(UnreachableError, match=r"no answer for 1 s"):
        get(served, tmp_path, patience=Patience(stall=1, waits=(0,)))
    assert (tmp_path / "data.gz.part").read_bytes() == HALF


def test_a_proxy_that_refuses_means_that_the_network_is_not_reachable(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(whole)  # it knows GET alone, and answers CONNECT with 501
    monkeypatch.setenv("https_proxy", proxy.url.removesuffix("/data"))
    assert "Tunnel connection failed: 501" in fetch_unreachable("https://example.org/x", tmp_path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not here to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, chain = folder / "key.pem", folder / "chain.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([program, *words.split(), *options], check=True, capture_output=True)
    return key, chain


@pytest.fixture
def secure(certificate: tuple[Path, Path], serve: Callable[..., Served]) -> Callable[..., Served]:
    key, chain = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return lambda *answers: serve(*answers, context=context)


def test_https_is_trusted_by_the_given_certificates(
    secure: Callable[..., Served], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    served = secure(CUT, whole)
    trusting = ssl.create_default_context(cafile=str(certificate[1]))
    assert get(served, tmp_path, context=trusting).read_bytes() == DATA
    assert served.num_bytes == SIZE


def test_an_untrusted_certificate_is_no_missing_network(secure: Callable[..., Served], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="certificate is not trusted") as error:
        get(secure(whole), tmp_path)
    assert not isinstance(error.value, UnreachableError)


def test_https_never_leads_back_to_http(
    secure: Callable[..., Served],
    certificate: tuple[Path, Path],
    serve: Callable[..., Served],
    tmp_path: Path,
) -> None:
    served = secure(moved_to(serve(whole).url))
    with pytest.raises(DownloadError, match="which is not https"):
        get(served, tmp_path, context=ssl.create_default_context(cafile=str(certificate[1])))


def test_a_full_disk_names_the_file_and_keeps_what_has_arrived(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(whole)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(ResourceError, match=r"data\.gz\.part: no room left"):
            get(served, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == {"data.gz.part"}
    assert get(served, tmp_path).read_bytes() == DATA
    assert served.ranges[1] == f"bytes={SIZE // 2}-"


def test_a_folder_that_is_a_file_is_an_error(serve: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        get(serve(whole), tmp_path / "cache")


class Signal(logging.Handler):
    """Sets an event when a message with certain words is logged."""

    def __init__(self, words: str, event: threading.Event) -> None:
        super().__init__()
        self.words, self.event = words, event

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.event.set()


def test_the_second_of_two_waits_for_the_first(
    serve: Callable[..., Served], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second_waits = threading.Event()

    def slow(handler: Handler) -> None:
        second_waits.wait(10)
        whole(handler)

    served = serve(slow)
    signal = Signal("another process is downloading it", second_waits)
    download.logger.addHandler(signal)
    caplog.set_level(logging.INFO)
    try:
        with ThreadPoolExecutor(2) as pool:
            targets = list(pool.map(lambda _: get(served, tmp_path), range(2)))
    finally:
        download.logger.removeHandler(signal)
    assert second_waits.is_set()
    assert [target.read_bytes() for target in targets] == [DATA, DATA]
    assert len(served.requests) == 1


class NoLock:
    """A file system that has no locks."""

    def __init__(self, path: str) -> None:
        self.path = path

    def acquire(self, timeout: float = -1) -> None:
        raise OSError(38, "Function not implemented")

    def release(self) -> None:
        pass


@pytest.mark.parametrize("attempt", range(3))
def test_eight_at_once_get_the_right_file_even_without_locks(
    attempt: int, serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "FileLock", NoLock)
    served = serve(whole)
    with ThreadPoolExecutor(8) as pool:
        targets = list(pool.map(lambda _: get(served, tmp_path / "cache"), range(8)))
    assert {target.read_bytes() for target in targets} == {DATA}
