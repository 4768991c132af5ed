"""Ctrl-C, SIGTERM and SIGHUP: the loop finishes its step and saves; anywhere else the run stops at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from bilstm_cls.errors import StoppedError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopSignals:
    """Which signal has asked to stop, and whether it may interrupt right now.

    Use as a context manager around a whole run. Outside of `deferred` a signal raises `StoppedError` where it finds
    the program; inside, the first one is only noted in `received` and the second one raises. A signal that the program
    was started to ignore, as `nohup` does with SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            heeded = [n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets the block reach a place where it can save; it has to look at `received`.

        Raises:
            StoppedError: a signal came after the block had looked for the last time.
        """
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.received is not None:
            raise self.error()

    def error(self) -> StoppedError:
        """Returns the error that ends the program with the received signal's exit code.

        Where another process of the run received it, that is taken for a SIGTERM.
        """
        received = self.received or signal.SIGTERM
        return StoppedError(f"stopped by {received.name}", signal_number=int(received))

    def _handle(self, number: int, _: FrameType | None) -> None:
        is_first = self.received is None
        self.received = signal.Signals(number)
        if not (self._is_deferred and is_first):
            raise self.error()
