"""A wish to stop: seen after the step, or at once where the run waits."""

import signal
import threading

import pytest

from headrace.signals import stopping_on_signals
from trainer.stopping import StopNow, StopRequest


def test_a_wish_while_the_run_waits_ends_the_wait():
    stop = StopRequest()

    def items():
        yield 1
        stop.request("test")  # as a signal handler does, inside the wait for the second one
        yield 2

    seen = []
    with pytest.raises(StopNow):
        seen.extend(stop.while_waiting(items()))
    assert (seen, stop.why) == ([1], "test")


def test_a_wish_during_a_step_waits_for_its_end_and_comes_before_the_next_one():
    stop, seen = StopRequest(), []

    def step(item):
        seen.append(item)
        if item == 2:
            stop.request("test")
            seen.append("the step goes on")

    with pytest.raises(StopNow):
        list(map(step, stop.while_waiting([1, 2, 3])))
    assert seen == [1, 2, "the step goes on"]


def test_items_that_end_are_no_stop():
    stop = StopRequest()
    assert list(stop.while_waiting([1, 2])) == [1, 2]
    assert not stop.is_requested


def test_the_first_reason_stays():
    stop = StopRequest()
    stop.request("SIGTERM")
    stop.request("SIGINT")
    assert stop.why == "SIGTERM"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish_once_the_run_has_begun_and_the_second_one_an_interrupt(number):
    stop = StopRequest()
    before = signal.getsignal(number)
    with stopping_on_signals(stop, grace_s=1000.0):
        for item in stop.while_waiting([1, 2]):
            if item == 1:
                signal.raise_signal(number)
                assert stop.why == number.name
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(number)
                break
    assert signal.getsignal(number) is before


def test_a_signal_before_the_run_has_begun_is_an_interrupt():
    """There is nothing that a checkpoint would have to keep."""
    stop = StopRequest()
    with stopping_on_signals(stop, grace_s=1000.0), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert stop.why == "SIGTERM"


def test_an_operators_wish_ends_the_wait_like_the_first_signal():
    stop, wish, never = StopRequest(), threading.Event(), threading.Event()

    def items():
        yield 1
        wish.set()
        never.wait()

    with stopping_on_signals(stop, grace_s=1000.0) as signals:
        signals.watch(wish)
        with pytest.raises(StopNow):
            list(stop.while_waiting(items()))
    assert stop.why == "headrace stop"
