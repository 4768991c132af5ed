"""Signals: one lets the loop come to where it can save, a second one does not wait."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from bilstm_cls.errors import StoppedError
from bilstm_cls.training.distributed import STOP_SIGNALS
from bilstm_cls.training.record import StopSignals


def own_handler(number: int, frame: FrameType | None) -> None:
    raise AssertionError("the handler from before the run was called")


@pytest.fixture(autouse=True)
def before() -> Iterator[dict[int, object]]:
    """Handlers of the surrounding program, put back after the test."""
    handlers = {number: signal.signal(number, own_handler) for number in STOP_SIGNALS}
    yield {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_the_run_at_once_where_nothing_is_to_be_saved(number: signal.Signals) -> None:
    with pytest.raises(StoppedError, match=f"stopped by {number.name}") as caught, StopSignals():
        signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number


def test_the_second_signal_does_not_wait() -> None:
    with pytest.raises(StoppedError, match="SIGTERM"), StopSignals() as signals, signals.deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the second one was only noted")


def test_a_signal_after_the_last_look_stops_the_run_at_the_end_of_the_block_and_later_ones_at_once() -> None:
    with pytest.raises(StoppedError, match="SIGINT"), StopSignals() as signals, signals.deferred():
        signal.raise_signal(signal.SIGINT)
    with StopSignals() as signals:
        with signals.deferred():
            pass
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_from_before_come_back_and_a_stop_is_no_failure_of_what_is_tried(
    before: dict[int, object],
) -> None:
    with pytest.raises(StoppedError), StopSignals(), contextlib.suppress(Exception):
        signal.raise_signal(signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_was_ignored_before_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(number)
        assert signals.received is None
    assert signal.getsignal(number) == signal.SIG_IGN
