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
_Request = tuple[Sequence[str], "Future[list[Answer]]"]


class FullError(Exception):
    """There is no room for another request now."""


class Batcher:
    """Calls the model for many requests, in one thread; `on_batch` gets the number of texts of each batch."""

    def __init__(
        self,
        predict: Callable[[Sequence[str]], list[Answer]],
        explain: Callable[[str], Answer],
        *,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.queued = 0
        """Texts that were accepted and have no answer yet."""
        self._predict = predict
        self._explain = explain
        self._on_batch = on_batch
        self._waiting: deque[_Request] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def answer(self, texts: Sequence[str], *, explains: bool = False) -> list[Answer]:
        """Returns one answer per text, in order, or raises `FullError` or what the model raised for these texts.

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
        requests: list[_Request] = []
        number = 0
        while self._waiting and (not requests or number + len(self._waiting[0][0]) <= MAX_BATCH):
            texts, answers = self._waiting.popleft()
            if answers.set_running_or_notify_cancel():  # whoever asked may be gone
                requests.append((texts, answers))
                number += len(texts)
        if requests:
            self._on_batch(number)
            self._answer(requests)

    def _answer(self, requests: Sequence[_Request]) -> None:
        try:
            found = iter(self._predict([text for texts, _ in requests for text in texts]))
        except Exception as error:
            for request in requests:  # whoever is at fault fails alone
                if len(requests) > 1:
                    self._answer([request])
                else:
                    request[1].set_exception(error)
            return
        for texts, answers in requests:
            answers.set_result([next(found) for _ in texts])
