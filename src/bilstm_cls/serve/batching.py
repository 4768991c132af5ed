"""Texts of many requests classified together: what arrives while the model is busy makes the next batch.

Nothing is delayed to fill a batch. An idle model answers at once; a busy one takes next all that is queued.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

MAX_BATCH = 256
"""Texts of one batch: what arrives while it is classified waits for no more than these."""

MAX_QUEUED = 1024
"""Queued texts; what would go above it is refused, so that neither memory nor the wait can grow."""

EXPLANATION_COST = 16
"""Texts that one explanation counts as: it is computed alone, and may need many passes of the model."""

Answer = dict[str, Any]


class FullError(Exception):
    """There is no room for another request now."""


class Batcher:
    """Calls the model for many requests, in one thread."""

    def __init__(self, predict: Callable[[Sequence[str]], list[Answer]], explain: Callable[[str], Answer]) -> None:
        self.queued = 0
        """Texts that were accepted and have no answer yet."""
        self._predict, self._explain = predict, explain
        self._waiting: deque[tuple[Sequence[str], Future[list[Answer]]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def answer(self, texts: Sequence[str], *, explains: bool = False) -> list[Answer]:
        """Returns one answer per text, in order, or raises `FullError` or what the model raised.

        Explanations queue up one by one behind what has arrived, so that nobody waits for many of them.
        """
        cost = len(texts) * (EXPLANATION_COST if explains else 1)
        if self.queued + cost > MAX_QUEUED:
            raise FullError
        self.queued += cost
        try:
            request: Future[list[Answer]] = Future()
            self._waiting.append((texts, request))
            self._thread.submit(self._answer_waiting)
            answers = await asyncio.wrap_future(request)
            for answer in answers if explains else ():
                explanation = self._thread.submit(self._explain, answer["text"])
                answer["explanation"] = await asyncio.wrap_future(explanation)
            return answers
        finally:
            self.queued -= cost

    def close(self) -> None:
        """Ends the thread once the model has finished what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _answer_waiting(self) -> None:
        """Answers one batch of what waits: nothing, where an earlier batch took it along."""
        texts: list[str] = []
        requests: list[tuple[int, Future[list[Answer]]]] = []
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
