"""Stalls: what to tell, and when to give up, while the training loop waits and nothing arrives.

In:  the time, when something was last heard and last arrived, what the dispatcher said of its workers.
Out: texts for the user; RunFailed, or PeerUnreachable, where the job's `on_stall` says so.
Pure; time is an argument.
"""

from __future__ import annotations

from textwrap import indent
from typing import Literal, NamedTuple

from pipeline.errors import HeadraceError, PeerUnreachable, RunFailed
from pipeline.messages import ServiceState

TOLD_AFTER_S = 5.0
"""Without any worker, or any word from the dispatcher. A start takes about two; chosen."""
LOOK_GAP_S = 5.0
"""Between two looks at most: after a longer gap this process itself was stopped, and nobody else is to blame."""


class StallPolicy(NamedTuple):
    """What a stream's stalls mean to its job."""

    timeout_s: float
    on_stall: Literal["fail", "wait"]
    source: str
    """What the stream's workers must have."""
    standing: str = ""
    """The address of services that are others' affair, so that who waits for them is told at once; "" for a job's own,
    which take a while to start."""


class Told(NamedTuple):
    """What the user should know."""

    text: str
    is_urgent: bool
    """To be said on the terminal, too: a stall, and its end; but a start on a busy machine is not worth a warning."""


class StallWatch:
    """The user is told what is missing, once and then every `timeout_s`; nobody is judged by our own stop."""

    def __init__(self, policy: StallPolicy) -> None:
        self._policy = policy
        self._looked_s: float | None = None
        self._blameless_until_s = 0.0
        self._told_s: float | None = None
        """When the user was told last in this stall."""
        self._knew_nothing = False
        """The dispatcher had not said yet what it has when the user was told: what it says then is news."""
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
        """What the user is to be told now; after `stall_timeout_s` under `fail` PeerUnreachable if a standing
        dispatcher is silent, RunFailed else."""
        if self._looked_s is not None and now_s - self._looked_s > LOOK_GAP_S:
            self._blameless_until_s = now_s
        self._looked_s = now_s
        stalled_since_s = max(waiting_since_s, last_arrival_s, self._blameless_until_s)
        silent_s = now_s - max(last_heard_s, self._blameless_until_s)
        stalled_s = now_s - stalled_since_s
        if (over := self._maybe_over(last_arrival_s)) is not None:
            return over
        missing = _missing(service, self._policy.source, silent_s, dropped)
        if stalled_s >= self._policy.timeout_s:
            if self._policy.on_stall == "fail":
                raise self._end(missing, is_silent=silent_s >= TOLD_AFTER_S)
            if self._told_s is None or now_s - self._told_s >= self._policy.timeout_s:
                text = f"no slice has arrived for {stalled_s:.0f} s: {missing}"
                return self._tell(now_s, stalled_since_s, text, is_urgent=True)
        is_silent = silent_s >= TOLD_AFTER_S
        # Of a silent dispatcher that is standing its own watch tells (`headrace/standing.py`).
        is_deserted = not self._policy.standing if is_silent else service is None or service.able_workers == 0
        is_news = self._told_s is None or (self._knew_nothing and service is not None)
        if is_deserted and stalled_s >= TOLD_AFTER_S and is_news:
            self._knew_nothing = service is None
            has_unable = service is not None and service.workers > service.able_workers
            is_urgent = bool(self._policy.standing) or has_unable
            return self._tell(now_s, stalled_since_s, f"waiting: {missing}", is_urgent=is_urgent)
        return None

    def rest(self, last_arrival_s: float) -> Told | None:
        """The loop does not wait any more: the end of a stall is told at once, and the next look is not after a gap."""
        self._looked_s = None
        return self._maybe_over(last_arrival_s)

    def _maybe_over(self, last_arrival_s: float) -> Told | None:
        if self._told_s is None or last_arrival_s <= self._told_s:
            return None
        self._told_s = None
        return Told(f"slices arrive again, after {last_arrival_s - self._began_s:.0f} s", self._is_urgent)

    def _end(self, missing: str, *, is_silent: bool) -> HeadraceError:
        text, endpoint = f"no slice has arrived for {self._policy.timeout_s:g} s\n  {missing}", self._policy.standing
        if not endpoint or not is_silent:
            return RunFailed(text)
        return PeerUnreachable(
            f"no dispatcher answers at {endpoint}: {text}\n"
            f"  to go on: start one with `headrace pipeline --listen {endpoint}` and workers with `headrace workers "
            f"--connect {endpoint} --source {self._policy.source}=DIR`, or correct --connect; then train again"
        )

    def _tell(self, now_s: float, stalled_since_s: float, text: str, *, is_urgent: bool) -> Told:
        if self._told_s is None:
            self._began_s = stalled_since_s
        self._told_s, self._is_urgent = now_s, is_urgent
        return Told(text, is_urgent)


def _missing(service: ServiceState | None, source: str, silent_s: float, dropped: str) -> str:
    if silent_s >= TOLD_AFTER_S:
        text = f"the dispatcher has been silent for {silent_s:.0f} s"
        return text + (f" (then: {_seen(service)})" if service else "")
    if service is None:
        return "the dispatcher has not said anything about workers"
    declined = f"\n{indent(service.declined, '  ')}" if service.declined and service.able_workers == 0 else ""
    note = f"\n  last trouble: {service.note}" if service.note and service.note != service.declined else ""
    trouble = declined + note + (f"\n  dropped: {dropped}" if dropped else "")
    return f"{_hint(service, source)} ({_seen(service)}){trouble}"


def _hint(service: ServiceState, source: str) -> str:
    if service.workers == 0:
        return "no worker is connected"
    if service.able_workers == 0 and service.declined:
        return f"no worker can serve source {source!r} and the job's plug-ins as it was started"
    if service.able_workers == 0:
        others = ", ".join(service.sources) or "none"
        return f"no worker has source {source!r}, they have: {others}; start some with --source {source}=DIR"
    return "workers are connected but deliver nothing"


def _seen(service: ServiceState) -> str:
    slices = f"slices leased {service.leased_slices}, waiting {service.waiting_slices}"
    return f"workers {service.workers}, idle {service.idle_workers}, {slices}"
