"""Ctrl-C and SIGTERM while a job trains: the first one asks it to stop, a second one ends it.

In:  SIGINT, SIGTERM; an operator's `headrace stop`.
Out: a `StopRequest` that the training loop sees; the end of the process where it takes too long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pipeline.errors import EXIT_INTERRUPTED
from trainer.stopping import StopRequest

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_END_WITHIN_S = 10.0
"""After the second signal: closing services takes up to three seconds, and a hung disk for ever. Chosen."""
OPERATOR = "headrace stop"


class StopOnSignals:
    """Use `stopping_on_signals`."""

    def __init__(self, stop: StopRequest, grace_s: float, *, has_handlers: bool) -> None:
        self._stop = stop
        self._has_handlers = has_handlers
        self._grace_s = grace_s
        self._num_signals = 0
        self._timers: list[threading.Timer] = []
        self._why = ""
        self._is_over = threading.Event()
        self._is_held = True
        self._held_number: int | None = None
        self._clean_up: Callable[[], int] | None = None

    def listen(self) -> None:
        """KeyboardInterrupt if a signal has come already; the caller can clean up by now what it had begun."""
        self._is_held = False
        if self._held_number is not None:
            self._interrupt(self._held_number)

    @contextmanager
    def leaving_at_once(self, clean_up: Callable[[], int]) -> Iterator[None]:
        """Inside, a signal calls `clean_up` and ends the process with the exit code that this gives.

        For imports: libraries in C++ that are being imported abort where an exception comes through them.
        """
        self._clean_up = clean_up
        try:
            self.listen()
            yield
        finally:
            self._clean_up = None

    def ask(self) -> str:
        """An operator's wish, from any thread, as the first signal; says what will come of it."""
        if self._is_over.is_set():
            return "the run has ended"
        text = "the run finishes its step, writes a checkpoint and stops"
        if not self._stop.has_begun:
            text = "the run stops before its next step; `headrace train --resume` begins with that step"
        if not self._why and not self._stop.is_requested:
            self._why = OPERATOR
            if self._has_handlers:
                os.kill(os.getpid(), signal.SIGTERM)  # it must also end the main thread's wait for a batch
            else:
                self._stop.leave(OPERATOR)
        return text

    @property
    def is_over(self) -> bool:
        """True once all that a run must write is written."""
        return self._is_over.is_set()

    def is_done(self) -> None:
        """The checkpoint is written: no limit runs any more."""
        self._is_over.set()
        for timer in self._timers:
            timer.cancel()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What a signal does, in the main thread, wherever that is."""
        if number == signal.SIGALRM:  # an exception of ours was lost in a finalizer, and comes again
            if self._num_signals > 1 or not self._stop.has_begun:
                raise KeyboardInterrupt
            self._stop.request(self._stop.why)
            return
        if self.is_over:  # what still closes, or draws a page, is cut short; the run's end stands as it was written
            self._end_after(_END_WITHIN_S, "ended at once")
            raise KeyboardInterrupt
        if self._clean_up is not None:
            self._stop.why = self._stop.why or signal.Signals(number).name
            code = EXIT_INTERRUPTED
            try:
                code = self._clean_up()
            finally:
                os._exit(code)
        self._num_signals += 1
        if self._num_signals == 1 and self._is_held and not self._stop.has_begun:
            self._held_number = number
            return
        if self._num_signals == 1 and self._stop.has_begun:
            text = f"not stopped within checkpoint.grace_s ({self._grace_s:g} s): ended without a last checkpoint"
            self._end_after(self._grace_s, text)
            self._stop.request(self._why or signal.Signals(number).name)
            return
        self._interrupt(number)

    def _interrupt(self, number: int) -> NoReturn:
        self._stop.why = self._stop.why or self._why or signal.Signals(number).name
        self._end_after(_END_WITHIN_S, "ended at once")
        raise KeyboardInterrupt

    def _end_after(self, delay_s: float, text: str) -> None:
        timer = threading.Timer(delay_s, _end, (text,))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


@contextmanager
def stopping_on_signals(stop: StopRequest, grace_s: float) -> Iterator[StopOnSignals]:
    """Inside, the first Ctrl-C or SIGTERM is a request, once `stop` says that the run has begun.

    Before that it is a KeyboardInterrupt, from the caller's `listen` on; so is a second one at any time. A stop that
    takes longer than `grace_s` ends the process with EXIT_INTERRUPTED, without a last checkpoint; its services end by
    themselves.
    """
    is_main = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers
    handlers = StopOnSignals(stop, grace_s, has_handlers=is_main)
    if not is_main:
        yield handlers
        return
    before = {number: signal.signal(number, handlers.handle) for number in _NUMBERS}
    try:
        yield handlers
    finally:
        handlers.is_done()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(text: str) -> None:
    os.write(sys.stderr.fileno(), f"headrace: {text}; `--resume` goes on from the newest checkpoint\n".encode())
    os._exit(EXIT_INTERRUPTED)
