"""Texts of many requests classified together: what arrives while the model is busy makes the next batch.

Nothing is delayed to fill a batch. An idle model answers at once; a busy one takes next all that is queued.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Request:
    texts: Sequence[str]
    answers: "asyncio.Future[list[Answer]]"


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
        self._predictions: deque[_Request] = deque()
        self._explanations: deque[_Request] = deque()
        self._has_arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def answer(self, texts: Sequence[str], *, explains: bool = False) -> list[Answer]:
        """Returns one answer per text, in order, or raises `FullError` or what the model raised for these texts."""
        cost = len(texts) * (EXPLANATION_COST if explains else 1)
        if self.queued + cost > MAX_QUEUED:
            raise FullError
        self.queued += cost
        try:
            answers = await self._ask(self._predictions, texts)
            if explains:
                for answer in answers:
                    (answer["explanation"],) = await self._ask(self._explanations, [answer["text"]])
            return answers
        finally:
            self.queued -= cost

    async def run(self) -> None:
        """Answers until it is cancelled. Explanations take turns with batches, so that none waits for many of them."""
        try:
            while True:
                await self._has_arrived.wait()
                self._has_arrived.clear()
                while self._predictions or self._explanations:
                    await self._answer_batch()
                    if self._explanations:
                        await self._settle(self._explanations.popleft(), self._explain_all)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, queue: "deque[_Request]", texts: Sequence[str]) -> list[Answer]:
        request = _Request(texts, asyncio.get_running_loop().create_future())
        queue.append(request)
        self._has_arrived.set()
        return await request.answers

    async def _answer_batch(self) -> None:
        requests: list[_Request] = []
        number = 0
        while self._predictions and (not requests or number + len(self._predictions[0].texts) <= MAX_BATCH):
            requests.append(self._predictions.popleft())
            number += len(requests[-1].texts)
        if not requests:
            return
        self._on_batch(number)
        try:
            answers = iter(await self._call(self._predict, [text for request in requests for text in request.texts]))
        except Exception:
            for request in requests:  # whoever is at fault fails alone
                await self._settle(request, self._predict)
            return
        for request in requests:
            _resolve(request.answers, [next(answers) for _ in request.texts])

    async def _settle(self, request: _Request, model: Callable[[Sequence[str]], list[Answer]]) -> None:
        try:
            answers = await self._call(model, request.texts)
        except Exception as error:
            if not request.answers.done():
                request.answers.set_exception(error)
        else:
            _resolve(request.answers, answers)

    def _explain_all(self, texts: Sequence[str]) -> list[Answer]:
        return [self._explain(text) for text in texts]

    async def _call(self, model: Callable[[Sequence[str]], list[Answer]], texts: Sequence[str]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, model, texts)


def _resolve(future: "asyncio.Future[list[Answer]]", answers: list[Answer]) -> None:
    if not future.done():  # whoever asked may be gone
        future.set_result(answers)
