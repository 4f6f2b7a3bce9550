"""Stalls: what to tell, and when to give up, while the training loop waits and nothing arrives.

In:  the time, when something was last heard and last arrived, what the dispatcher said of its workers.
Out: texts for the user; RunFailed where the job's `on_stall` says so.
Pure; time is an argument.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pipeline.errors import RunFailed
from pipeline.messages import ServiceState

TOLD_AFTER_S = 5.0
"""Without any worker, or any word from the dispatcher. A start takes about two; chosen."""
LOOK_GAP_S = 5.0
"""Between two looks at most: after a longer gap this process itself was stopped, and nobody else is to blame."""


class Told(NamedTuple):
    """What the user should know."""

    text: str
    is_urgent: bool
    """True for a stall of `stall_timeout_s`, and its end; a start on a busy machine is not worth a warning."""


class StallWatch:
    """The user is told what is missing, once and then every `stall_timeout_s`; nobody is judged by our own stop."""

    def __init__(self, stall_timeout_s: float, on_stall: Literal["fail", "wait"]) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._on_stall = on_stall
        self._looked_s: float | None = None
        self._blameless_until_s = 0.0
        self._told_s: float | None = None
        """When the user was told last in this stall."""
        self._began_s = 0.0
        self._is_urgent = False

    def look(
        self,
        now_s: float,
        *,
        waiting_since_s: float,
        last_arrival_s: float,
        last_heard_s: float,
        service: ServiceState | None,
        dropped: str = "",
    ) -> Told | None:
        """What the user is to be told now; RunFailed after `stall_timeout_s` under `fail`."""
        if self._looked_s is not None and now_s - self._looked_s > LOOK_GAP_S:
            self._blameless_until_s = now_s
        self._looked_s = now_s
        stalled_since_s = max(waiting_since_s, last_arrival_s, self._blameless_until_s)
        silent_s = now_s - max(last_heard_s, self._blameless_until_s)
        stalled_s = now_s - stalled_since_s
        if self._told_s is not None and last_arrival_s > self._told_s:
            self._told_s = None
            return Told(f"slices arrive again, after {last_arrival_s - self._began_s:.0f} s", self._is_urgent)
        missing = _missing(service, silent_s, dropped)
        if stalled_s >= self._stall_timeout_s:
            if self._on_stall == "fail":
                raise RunFailed(f"no slice has arrived for {self._stall_timeout_s:g} s\n  {missing}")
            if self._told_s is None or now_s - self._told_s >= self._stall_timeout_s:
                text = f"no slice has arrived for {stalled_s:.0f} s: {missing}"
                return self._tell(now_s, stalled_since_s, text, is_urgent=True)
        is_deserted = silent_s >= TOLD_AFTER_S or service is None or service.workers == 0
        if is_deserted and stalled_s >= TOLD_AFTER_S and self._told_s is None:
            return self._tell(now_s, stalled_since_s, f"waiting: {missing}", is_urgent=False)
        return None

    def rest(self) -> None:
        """The loop does not wait any more; the next look is not after a gap."""
        self._looked_s = None

    def _tell(self, now_s: float, stalled_since_s: float, text: str, *, is_urgent: bool) -> Told:
        if self._told_s is None:
            self._began_s = stalled_since_s
        self._told_s, self._is_urgent = now_s, is_urgent
        return Told(text, is_urgent)


def _missing(service: ServiceState | None, silent_s: float, dropped: str) -> str:
    if silent_s >= TOLD_AFTER_S:
        text = f"the dispatcher has been silent for {silent_s:.0f} s"
        return text + (f" (then: {_seen(service)})" if service else "")
    if service is None:
        return "the dispatcher has not said anything about workers"
    hint = "no worker is connected" if service.workers == 0 else "workers are connected but deliver nothing"
    note = f"\n  last trouble: {service.note}" if service.note else ""
    return f"{hint} ({_seen(service)})" + note + (f"\n  dropped: {dropped}" if dropped else "")


def _seen(service: ServiceState) -> str:
    slices = f"slices leased {service.leased_slices}, waiting {service.waiting_slices}"
    return f"workers {service.workers}, idle {service.idle_workers}, {slices}"
