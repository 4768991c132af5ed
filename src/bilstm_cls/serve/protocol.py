"""HTTP connections that end: uvicorn sets no limit to how slowly a request may arrive or an answer be taken."""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

DEADLINE = 15.0
"""Seconds in which a request has to be here, from the connection or the last answer on, and an answer to be taken."""

LINGER = 1.0
"""Seconds for which a connection without a request stays open after the order to stop: one may be on its way."""

MAX_CONNECTIONS = 512
"""Connections at one time; 1,024 files are what a process may open by default."""


def error_body(message: str) -> bytes:
    """Returns the JSON of every answer that is an error."""
    return json.dumps({"error": message}, ensure_ascii=False).encode()


class Connection(H11Protocol):
    """uvicorn's connection, with deadlines, a limit to their number, and errors in the form of all others.

    The application's state holds a function under `on_refused`, which is told the status of what is answered here.
    """

    _late_request: asyncio.TimerHandle | None = None
    _late_answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or refuses it where there are too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that writing pauses until everything is taken
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again", b"Retry-After: 1\r\n")
        else:
            self._late_request = self.loop.call_later(DEADLINE, self._request_is_late)

    def handle_events(self) -> None:
        """Reads on; a request that is here in full has met its deadline."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
            _cancel(self._late_request)

    def on_response_complete(self) -> None:
        """Waits for the next request as long as for the first."""
        _cancel(self._late_request)
        self._late_request = self.loop.call_later(DEADLINE, self._request_is_late)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Gives the client its time to take an answer."""
        super().pause_writing()
        self._late_answer = self.loop.call_later(DEADLINE, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on once the answer is taken."""
        _cancel(self._late_answer)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        _cancel(self._late_request)
        _cancel(self._late_answer)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Ends after the request that is here or on its way; its answer says so."""
        headers = [header for header in self.server_state.default_headers if header != CLOSE_HEADER]
        self.server_state.default_headers = [*headers, CLOSE_HEADER]
        if self._is_idle():
            self.loop.call_later(LINGER, self._end_if_idle)
        else:
            self.cycle.default_headers = self.server_state.default_headers
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, "this is not an HTTP request")

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _request_is_late(self) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            seconds = f"{DEADLINE:.0f} seconds"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request was not here in full after {seconds}")
        else:
            self.transport.abort()  # it was answered before its end, and the end does not come

    def _refuse(self, status: HTTPStatus, message: str, more: bytes = b"") -> None:
        """Writes an answer past the application, which learns that its client is gone, and ends the connection."""
        count: Callable[[int], object] = self.app_state["on_refused"]
        count(status)
        body = error_body(message)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.transport.write(head.encode() + more + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
        if not self._is_idle():
            self.cycle.disconnected = True
            self.cycle.message_event.set()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
