"""Ctrl-C and SIGTERM while a job trains: the first one asks it to stop, a second one ends it.

In:  SIGINT, SIGTERM; an operator's `headrace stop`.
Out: a `StopRequest` that the training loop sees; the end of the process where it takes too long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import EXIT_INTERRUPTED
from trainer.stopping import StopRequest

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_END_WITHIN_S = 10.0
"""After the second signal: closing services takes up to three seconds, and a hung disk for ever. Chosen."""
_LOOK_EVERY_S = 0.2


class StopOnSignals:
    """Use `stopping_on_signals`."""

    def __init__(self, stop: StopRequest, grace_s: float) -> None:
        self._stop = stop
        self._grace_s = grace_s
        self._num_signals = 0
        self._timers: list[threading.Timer] = []
        self._why = ""
        self._is_over = threading.Event()

    def watch(self, stop_requested: threading.Event) -> None:
        """From now on that event, an operator's wish, is as the first signal."""
        threading.Thread(target=self._watch, args=(stop_requested,), name="wishes to stop", daemon=True).start()

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
        self._num_signals += 1
        if self._num_signals == 1 and self._stop.has_begun:
            text = f"not stopped within checkpoint.grace_s ({self._grace_s:g} s): ended without a last checkpoint"
            self._end_after(self._grace_s, text)
            self._stop.request(self._why or signal.Signals(number).name)
            return
        self._stop.why = self._stop.why or self._why or signal.Signals(number).name
        self._end_after(_END_WITHIN_S, "ended at once")
        raise KeyboardInterrupt

    def _end_after(self, delay_s: float, text: str) -> None:
        timer = threading.Timer(delay_s, _end, (text,))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _watch(self, stop_requested: threading.Event) -> None:
        while not self._is_over.is_set():
            if stop_requested.wait(_LOOK_EVERY_S):
                if not self._stop.is_requested:
                    self._why = "headrace stop"
                    os.kill(os.getpid(), signal.SIGTERM)  # it must also end the main thread's wait for a batch
                return


@contextmanager
def stopping_on_signals(stop: StopRequest, grace_s: float) -> Iterator[StopOnSignals]:
    """Inside, the first Ctrl-C or SIGTERM is a request, once `stop` says that the run has begun.

    Before that, and for a second one, it is a KeyboardInterrupt. A stop that takes longer than `grace_s` ends the
    process with EXIT_INTERRUPTED, without a last checkpoint; its services end by themselves.
    """
    handlers = StopOnSignals(stop, grace_s)
    if threading.current_thread() is not threading.main_thread():
        yield handlers  # only the main thread may set handlers
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
