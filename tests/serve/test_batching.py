import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from bilstm_cls.serve.api import Batcher


class Model:
    """Answers a text with itself, once the test lets it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.started = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        self.calls.append(list(texts))
        self.started.release()
        assert self.permits.acquire(timeout=60)
        if "bad" in texts:
            raise ValueError("bad")
        return [{"text": text} for text in texts]

    def explain(self, text: str) -> dict[str, Any]:
        self.predict([text])
        return {"of": text}

    def let(self, calls: int) -> None:
        """Lets the model answer so many calls."""
        self.permits.release(calls)

    async def is_busy(self) -> None:
        """Returns once the model has begun with one more call."""
        await asyncio.to_thread(self.started.acquire)


def run(test: Callable[[Model, Batcher], Awaitable[None]]) -> Model:
    """Runs a test next to a batcher, and checks that nothing is left in it."""
    model = Model()

    async def both() -> None:
        batcher = Batcher(model.predict, model.explain)
        try:
            await test(model, batcher)
        finally:
            model.let(1000)
            batcher.close()
        assert batcher.queued == 0

    asyncio.run(both())
    return model


def asked(batcher: Batcher, *texts: str, explains: bool = False) -> "asyncio.Task[list[dict[str, Any]]]":
    return asyncio.create_task(batcher.answer(texts, explains=explains))


def test_what_arrives_while_the_model_is_busy_is_answered_together_and_each_gets_its_own() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        first = asked(batcher, "a")
        await model.is_busy()
        gone = asked(batcher, "gone")
        others = [asked(batcher, "b", "c"), asked(batcher, "d")]
        await asyncio.sleep(0)  # lets them queue up
        gone.cancel()
        await asyncio.wait([gone])
        model.let(1000)
        assert await first == [{"text": "a"}]
        assert await asyncio.gather(*others) == [[{"text": "b"}, {"text": "c"}], [{"text": "d"}]]

    assert run(test).calls == [["a"], ["b", "c", "d"]]


def test_predictions_and_explanations_take_turns() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        explained = asked(batcher, "a", "b", explains=True)
        await model.is_busy()
        model.let(1)
        await model.is_busy()  # with the explanation of a
        other = asked(batcher, "c")
        await asyncio.sleep(0)
        model.let(1000)
        await asyncio.gather(explained, other)

    assert run(test).calls == [["a", "b"], ["a"], ["c"], ["b"]]


def test_what_the_model_raises_goes_to_the_requests_of_its_batch_alone() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        asks = [asked(batcher, "first")]
        await model.is_busy()
        asks.append(asked(batcher, "bad"))
        await asyncio.sleep(0)
        model.let(1)
        await model.is_busy()  # with the bad one
        asks.append(asked(batcher, "b"))
        await asyncio.sleep(0)
        model.let(1000)
        first, bad, last = await asyncio.gather(*asks, return_exceptions=True)
        assert (first, last) == ([{"text": "first"}], [{"text": "b"}])
        assert isinstance(bad, ValueError)

    assert run(test).calls == [["first"], ["bad"], ["b"]]
