"""Notes: what a user should know of a running job, in its journal and in `headrace status`.

In:  what happened, from any thread.
Out: a line of the journal each; the last few as text.
Never raises: a full disk must not turn a refused swap into a failed run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pipeline.errors import RunFailed

NUM_KEPT = 8
"""Shown by `headrace status`: a screenful with what else is on it."""

log = logging.getLogger("headrace.stream")


class Notes:
    """The last things told, newest last; the same thing told twice in a row stands there once."""

    def __init__(
        self,
        journal: Callable[..., None] | None = None,
        clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        """`journal(action, **fields)` writes a line down; without one the log has it."""
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._last = ""
        self._kept: deque[str] = deque(maxlen=NUM_KEPT)

    def tell(self, action: str, text: str, *, on_terminal: bool | None = None, **fields: Any) -> None:
        """Something happened that a user should see; `on_terminal`: also there, now. None: only without a journal."""
        with self._lock:
            if text != self._last:
                self._last = text
                self._kept.append(f"{self._clock()} {text}")
        if on_terminal and self._journal is not None:
            log.warning("action=%s %s", action, text)
        if on_terminal is not False or self._journal is not None:
            self.record(action, note=text, **fields)

    def record(self, action: str, **fields: Any) -> None:
        """Something happened that is of interest afterwards."""
        try:
            if self._journal is not None:
                self._journal(action, **fields)
                return
        except RunFailed as error:
            log.warning("action=journal_failed error=%s", error)
        log.warning("action=%s %s", action, " ".join(f"{name}={value}" for name, value in fields.items()))

    def latest(self) -> tuple[str, ...]:
        """The last things told, each with the time of day."""
        with self._lock:
            return tuple(self._kept)
