"""Vitals: whether a service that we started lives, is to be killed, or is to be started again, and when.

In:  what was seen of it, and the time in seconds.
Out: judgements.
Pure; `headrace/services.py` carries them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SILENT_S = 5.0
"""Without a sign of life, or stopped, before a service is killed and started again. Five of its beats; chosen."""
START_S = 60.0
"""The same for one that has not given its first sign: on a busy machine imports alone may take many seconds."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
MAX_FAILURES = 10
"""Ends in a row without a single sign of life: a further start would end alike."""


@dataclass(slots=True)
class Vitals:
    """One service over all its lives."""

    is_healthy: bool = False
    """It has given a sign since it was started."""
    num_failures: int = 0
    """Ends in a row before the first sign."""
    start_at_s: float = -math.inf
    """Not to be started before."""
    _last_sign_s: float = math.inf
    """Or since when its silence counts."""
    _stopped_since_s: float = math.inf
    _backoff_s: float = 0.0

    def started(self, now_s: float) -> None:
        """A new life begins."""
        self.is_healthy = False
        self._last_sign_s, self._stopped_since_s = now_s, math.inf

    def seen(self, now_s: float) -> None:
        """It gave a sign of life."""
        self.is_healthy = True
        self.num_failures, self._backoff_s = 0, 0.0
        self._last_sign_s = now_s

    def excused(self, now_s: float) -> None:
        """It could not be heard, for a reason that is not its own: its silence counts from now on."""
        self._last_sign_s = now_s

    def resumed(self, now_s: float) -> None:
        """This process was stopped itself, and maybe all others with it: every clock begins anew."""
        self._last_sign_s, self._stopped_since_s = now_s, math.inf

    def looked(self, now_s: float, *, is_stopped: bool) -> str:
        """Why it must be killed, "" if it need not be."""
        self._stopped_since_s = min(self._stopped_since_s, now_s) if is_stopped else math.inf
        if now_s - self._stopped_since_s > SILENT_S:
            return f"has been stopped (SIGSTOP) for {SILENT_S:g} s"
        allowed_s = SILENT_S if self.is_healthy else START_S
        if now_s - self._last_sign_s > allowed_s:
            return f"has given no sign of life for {allowed_s:g} s"
        return ""

    def ended(self, now_s: float, *, by_itself: bool) -> None:
        """Its process is gone; `start_at_s` says when to start it again.

        `by_itself`: it was not killed from outside, which says nothing about what a further start would come to.
        """
        if by_itself and not self.is_healthy:
            self.num_failures += 1
        self._backoff_s = min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * self._backoff_s))
        self.start_at_s = now_s + self._backoff_s

    @property
    def is_hopeless(self) -> bool:
        """It never lives long enough to give a sign."""
        return self.num_failures >= MAX_FAILURES
