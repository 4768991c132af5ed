"""Downloads of files whose size and SHA-256 are known beforehand.

What arrives is believed only when the whole of it has the wanted digest. A cut line, a stalled server, a login page in
place of the data: everything ends in the right file, or in an error and no file.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import queue
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from bilstm_cls.data.hub import OFFLINE_VARIABLE, DownloadError, UnreachableError
from bilstm_cls.files import naming_disk_faults, replacing, sha256_of

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
MIN_RATE = 1024  # bytes a second; a server that drips more slowly counts as stalled
_CHUNK = 1 << 16
_HEAD = 512
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)


class _CutError(Exception):
    """The transfer broke off, so that another try may go on from where it stopped."""


class _WrongDataError(Exception):
    """What arrived is not the wanted file, so that another try must begin at the first byte."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what.

    Attributes:
        connect: seconds for name, connection and encryption together.
        stall: seconds without an answer, or without `MIN_RATE` in it.
        waits: seconds before each further try; there is one try more than waits.
    """

    connect: float = 5.0
    stall: float = 30.0
    waits: tuple[float, ...] = (1.0, 4.0)


@dataclass
class _Job:
    url: str
    target: Path
    sha256: str
    size: int
    patience: Patience
    context: ssl.SSLContext | None
    on_progress: Callable[[int, int], None] | None
    etag: str | None = None  # of the version that this process has a part of

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")


_DEFAULT_PATIENCE = Patience()


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str,
    size: int,
    patience: Patience = _DEFAULT_PATIENCE,
    context: ssl.SSLContext | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Returns `target`, which then holds exactly the wanted bytes.

    A `target` that already does is left alone; one that holds anything else is removed. What a broken transfer left
    in a neighbour ending in `.part` is taken up again. Processes that want the same file wait for the first of them,
    at a neighbour ending in `.lock` that may stay. For a moment the disk holds the file twice.

    Args:
        url: https; http only where the host is this machine.
        target: where the file belongs; its folder is made where it is missing.
        sha256: the wanted digest in hexadecimal.
        size: the wanted size in bytes.
        patience: timeouts and tries.
        context: certificates to trust in place of the system's.
        on_progress: called with the bytes that are there and `size`.

    Raises:
        UnreachableError: no server answered, or `BILSTM_CLS_OFFLINE=1` forbids asking one.
        DownloadError: a server answered, but not with the wanted file.
        ResourceError: the disk is full; what has arrived is kept for the next time.
        ConfigError: the folder cannot be written.
    """
    job = _Job(url, target, sha256.lower(), size, patience, context, on_progress)
    if _trust_in(url) is None:
        raise DownloadError(f"{url}: is not an https address; name one that is")
    if _is_complete(job):
        return target
    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise UnreachableError(f"{url}: not asked for, as {OFFLINE_VARIABLE} is set; unset it or put it at {target}")
    with naming_disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(job):
        if not _is_complete(job):
            _download(job)
    return target


def _is_complete(job: _Job) -> bool:
    with naming_disk_faults(job.target):
        try:
            if job.target.stat().st_size == job.size and sha256_of(job.target) == job.sha256:
                return True
        except FileNotFoundError:
            return False
        logger.warning(f"{job.target}: is not the file that {job.url} stands for; removed")
        job.target.unlink(missing_ok=True)
    return False


@contextlib.contextmanager
def _alone(job: _Job) -> Iterator[None]:
    """Keeps other processes waiting. Only time depends on it: some network disks have no locks, or pretend to."""
    lock = FileLock(f"{job.target}.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(f"{job.target}: another process is downloading it; waiting")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.info(f"{job.target}: cannot be locked ({error}); going on without")
    try:
        yield
    finally:
        lock.release()


def _download(job: _Job) -> None:
    reason, has_started_over = "", False
    for wait in (0.0, *job.patience.waits):
        if reason:
            logger.warning(f"{job.url}: {reason}; trying again in {wait:g} s")
        time.sleep(wait)
        try:
            return _try_once(job)
        except _CutError as error:
            reason = str(error)
        except _WrongDataError as error:
            reason = str(error)
            if has_started_over:
                break
            has_started_over = True
        except UnreachableError as error:
            reason = f"the network is not reachable ({error})"
            raise UnreachableError(f"{job.url}: {reason}; connect it, or put the file at {job.target}") from error
        except DownloadError as error:
            raise DownloadError(f"{job.url}: {error}; put the file at {job.target} by other means") from error
    raise DownloadError(f"{job.url}: {reason}; try again later, or put the file at {job.target} by other means")


def _try_once(job: _Job) -> None:
    with naming_disk_faults(job.part), _opened_part(job) as part:
        start = part.seek(0, os.SEEK_END)
        if start != job.size:
            with _open(job, start if start < job.size else 0) as response:
                _receive(job, response, part, start)
        _install(job, part)


@contextlib.contextmanager
def _opened_part(job: _Job) -> Iterator[IO[bytes]]:
    """Opens what has arrived so far. Afterwards it is there only if another try can go on from it."""
    descriptor = os.open(job.part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    is_of_use = False
    try:
        with os.fdopen(descriptor, "r+b") as part:
            try:
                yield part
            except _WrongDataError:
                raise
            except BaseException:
                is_of_use = os.fstat(descriptor).st_size > 0
                raise
    finally:
        if not is_of_use:
            job.part.unlink(missing_ok=True)


def _receive(job: _Job, response: http.client.HTTPResponse, part: IO[bytes], start: int) -> None:
    position = _agreed_position(job, response, start)
    etag = response.headers.get("ETag", "")
    job.etag = etag if _STRONG_ETAG.fullmatch(etag) else None
    if position < start:
        part.truncate(position)
    part.seek(position)
    for chunk in _chunks(response, job.patience.stall):
        part.write(chunk)
        position += len(chunk)
        if job.on_progress is not None:
            job.on_progress(min(position, job.size), job.size)
        if position >= job.size:
            break
    if position == job.size:
        return
    hint = _hint(part)
    if position > job.size:
        raise _WrongDataError(f"the server sends more than {job.size} bytes{hint}")
    if hint:
        raise _WrongDataError(f"the server sends {position} bytes instead of {job.size}{hint}")
    raise _CutError(f"the connection ended after {position} of {job.size} bytes")


def _install(job: _Job, part: IO[bytes]) -> None:
    """Verifies a private copy, as another process may yet write to the part where locks only pretend to work."""
    digest = hashlib.sha256()
    part.seek(0)
    with replacing(job.target) as file:
        for chunk in iter(partial(part.read, _CHUNK), b""):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != job.sha256:
            found = f"SHA-256 {digest.hexdigest()} instead of {job.sha256}"
            raise _WrongDataError(f"what arrived has {found}{_hint(part)}")


def _hint(part: IO[bytes]) -> str:
    part.seek(0)
    return _hint_of(part.read(_HEAD))


def _hint_of(head: bytes) -> str:
    return " and looks like an HTML page, perhaps a login to the network" if _HTML.match(head) else ""


def _open(job: _Job, start: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "bilstm-cls"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and job.etag is not None:
        headers["If-Range"] = job.etag
    request = urllib.request.Request(job.url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        response: http.client.HTTPResponse = _opener(job).open(request, timeout=job.patience.stall)
    except urllib.error.HTTPError as error:
        error.close()
        raise _fault_of(error.code) from error
    except TimeoutError as error:
        raise UnreachableError(f"no answer for {job.patience.stall:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the connection broke before an answer ({repr(error)[:100]})") from error
    except ValueError as error:
        raise DownloadError(f"the server's answer makes no sense ({str(error)[:100]})") from error
    return response


def _fault_of(status: int) -> Exception:
    answer = f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
    if status in _TRANSIENT:
        return _CutError(answer)
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        return _WrongDataError(answer)
    return DownloadError(f"{answer} and leads nowhere" if 300 <= status < 400 else answer)


def _agreed_position(job: _Job, response: http.client.HTTPResponse, start: int) -> int:
    """Returns the position in the file of the first byte that the server sends."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise DownloadError(f"the server packs it as {encoding[:100]!r}, which was not asked for")
    if response.status == http.client.OK:
        start = 0  # a server that knows no ranges, or has another version by now
    elif response.status == http.client.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(given)
        if match is None or int(match[1]) != start or match[2] not in ("*", str(job.size)):
            raise _WrongDataError(f"the server sends range {given[:100]!r} instead of {start} to {job.size - 1}")
    else:
        raise DownloadError(f"the server answers {response.status} without the file")
    offered = job.size if response.length is None else start + response.length
    if offered != job.size:
        hint = _hint_of(next(_chunks(response, job.patience.stall), b""))
        raise _WrongDataError(f"the server offers {offered} bytes instead of {job.size}{hint}")
    return start


def _chunks(response: http.client.HTTPResponse, stall: float) -> Iterator[bytes]:
    received, deadline = 0, time.monotonic() + stall
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _CutError(f"the connection broke ({repr(error)[:100]})") from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        if time.monotonic() > deadline:
            if received < MIN_RATE * stall:
                raise _CutError(f"the connection is slower than {MIN_RATE} bytes a second")
            received, deadline = 0, time.monotonic() + stall


def _trust_in(url: str) -> Literal["secure", "loopback"] | None:
    """Returns what keeps others from changing the answer to `url` on its way, or None if nothing does."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "https" and parts.hostname:
            return "secure"
        if parts.scheme != "http":
            return None
        return "loopback" if parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback else None
    except ValueError:
        return None


def _opener(job: _Job) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    # A proxy is another machine, which does not see what this one serves to itself.
    opener.add_handler(urllib.request.ProxyHandler({} if _trust_in(job.url) == "loopback" else None))
    opener.add_handler(_Transport(job))
    opener.add_handler(_Redirects())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    opener.add_handler(urllib.request.HTTPDefaultErrorHandler())
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS
    max_repeats = 1

    def http_error_302(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        fp.close()  # unread, as its body may have no end
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if _trust_in(newurl) not in ("secure", _trust_in(req.full_url)):
            raise DownloadError(f"the server sends on to {newurl[:200]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Transport(urllib.request.AbstractHTTPHandler):
    def __init__(self, job: _Job) -> None:
        super().__init__()
        self.job = job

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        return self.do_request_(request)

    https_request = http_request

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Connection, patience=self.job.patience), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        context = self.job.context or ssl.create_default_context()
        return self.do_open(partial(_SecureConnection, patience=self.job.patience, context=context), request)


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, patience: Patience, **options: Any) -> None:
        super().__init__(host, **options)
        self.patience = patience

    def connect(self) -> None:
        """Connects within a deadline, in a thread, because looking up a name has no timeout of its own."""
        outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        is_given_up = threading.Event()
        self.timeout = self.patience.connect / 2  # for each address: a dead IPv6 route must leave time for IPv4
        threading.Thread(target=self._connect, args=(outcome, is_given_up), daemon=True).start()
        try:
            failure = outcome.get(timeout=self.patience.connect)
        except queue.Empty:
            is_given_up.set()
            raise UnreachableError(f"no connection within {self.patience.connect:g} s") from None
        if isinstance(failure, ssl.SSLCertVerificationError):
            raise DownloadError(f"the server's certificate is not trusted ({failure.verify_message})") from failure
        if failure is not None:
            raise UnreachableError(str(failure) or repr(failure)) from failure
        self.sock.settimeout(self.patience.stall)

    def _connect(self, outcome: queue.SimpleQueue[Exception | None], is_given_up: threading.Event) -> None:
        try:
            super().connect()
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.put(error)
        else:
            outcome.put(None)
        if is_given_up.is_set():
            self.close()

    def getresponse(self) -> http.client.HTTPResponse:
        """Cuts the connection when the answer comes drop by drop, as no single read of it would ever be late."""
        timer = threading.Timer(2 * self.patience.stall, _cut, [self.sock])
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()
        finally:
            timer.cancel()


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same around TLS: `_Connection` calls what stands behind it here."""


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which would take the layer away
