"""A wish to stop: seen after the step, or at once where the run waits."""

import contextlib
import os
import signal
import sys
import threading

import pytest

from headrace.signals import OPERATOR, stopping_on_signals
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
    with stopping_on_signals(stop, grace_s=1000.0) as signals:
        signals.listen()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert stop.why == "SIGTERM"


def test_a_signal_during_an_import_ends_the_process_without_an_exception(monkeypatch):
    """C++ libraries abort where one comes through what they do while they are imported."""
    stop, left = StopRequest(), []

    def leave():
        left.append(stop.why)
        return 7

    monkeypatch.setattr(os, "_exit", sys.exit)  # which says that it was called, and with what
    with (
        stopping_on_signals(stop, grace_s=1000.0) as signals,
        signals.leaving_at_once(leave),
        pytest.raises(SystemExit, match="7"),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert left == ["SIGTERM"]


def test_a_signal_after_the_runs_end_cuts_short_what_still_runs_and_is_no_stop():
    """The page that is drawn then may take minutes; the run is finished, and its journal says so."""
    stop = StopRequest()
    with stopping_on_signals(stop, grace_s=1000.0) as signals:
        list(stop.while_waiting([1]))
        signals.is_done()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signals.is_over
    assert not stop.is_requested


def start_and_wait(thread: threading.Thread) -> None:
    thread.start()
    threading.Event().wait()


def test_a_signal_while_the_run_folder_is_made_waits_until_it_can_be_cleaned_up():
    """Else a Ctrl-C in those milliseconds would leave a folder that the same command refuses."""
    stop = StopRequest()
    with stopping_on_signals(stop, grace_s=1000.0) as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signals.listen()
    assert stop.why == "SIGINT"


def test_a_second_signal_ends_also_what_can_not_be_cleaned_up():
    """A folder on a disk that hangs must not hold a terminal."""
    with stopping_on_signals(StopRequest(), grace_s=1000.0):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_operators_wish_ends_the_wait_like_the_first_signal():
    """It comes from the thread that hears the dispatcher, more than once if its answer was lost."""
    stop, never, told = StopRequest(), threading.Event(), []

    def items():
        yield 1
        threading.Thread(target=lambda: told.extend([signals.ask(), signals.ask()])).start()
        never.wait()

    with stopping_on_signals(stop, grace_s=1000.0) as signals:
        with pytest.raises(StopNow):
            list(stop.while_waiting(items()))
        while len(told) < 2:
            pass
    assert stop.why == OPERATOR
    assert told == ["the run finishes its step, writes a checkpoint and stops"] * 2


def test_an_operators_wish_before_the_run_has_begun_promises_no_checkpoint():
    stop = StopRequest()
    told = []
    with stopping_on_signals(stop, grace_s=1000.0) as signals:
        signals.listen()
        thread = threading.Thread(target=lambda: told.append(signals.ask()))
        with pytest.raises(KeyboardInterrupt):
            start_and_wait(thread)
    thread.join()
    assert "before its next step" in told[0]
    assert stop.why == OPERATOR


def test_an_operators_wish_to_a_run_in_another_thread_is_seen_after_the_step_and_ends_no_process():
    """Only the main thread can have handlers: a SIGTERM would end the user's program without a checkpoint."""
    stop, seen = StopRequest(), []

    def run():
        with stopping_on_signals(stop, grace_s=1000.0) as signals:
            with contextlib.suppress(StopNow):
                for item in stop.while_waiting([1, 2, 3]):
                    seen.append(item)
                    signals.ask()
            seen.append(stop.why)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [1, OPERATOR]


def test_a_wish_that_comes_after_the_end_does_nothing():
    """The handlers may be gone by then."""
    stop = StopRequest()
    with stopping_on_signals(stop, grace_s=1000.0) as signals:
        signals.is_done()
        assert signals.ask() == "the run has ended"
    assert not stop.is_requested
