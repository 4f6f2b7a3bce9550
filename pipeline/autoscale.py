"""Autoscale: how many workers a pool should have.

In:  how many run and idle, how much they delivered, how much of its time the trainer waited.
Out: another size, now and then.
Pure: `look(load, size, now_s)`; tests simulate trainers and machines with it.

The rules, and where they come from (shared notes on pipelines, technique 4):
- *Start* with FastFlow's formula: ceil(demand / what a worker makes - 0.1). While all workers are busy the trainer
  computes for the share 1 - waited of the time, so the demand is that of workers / (1 - waited) of them.
- *Settle* with Cachew's: keep a growth only if it gained 7 %; keep a reduction only if it lost less than 3 %. What
  failed is not tried again before the time per slice has grown by half.
- Growing is judged every 3 s and shrinking ten times as slowly, as in cedar.
Hysteresis: it grows where the trainer waits more than 5 % of its time and no worker idles, and shrinks where the
remaining workers would be busy for at most 85 % of theirs. Growing to ceil(d - 0.1) leaves one worker fewer busy for
more than that, so a growth never calls for a reduction, nor the other way round.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

LOOK_EVERY_S = 3.0
WINDOW_S = 10.0
"""What rates and idleness are averaged over: as trainers' reports."""
SETTLE_S = WINDOW_S + 2.0
"""After a change nothing is judged before the averages are about the new size, its workers warm."""
SHRINK_AFTER_S = 10 * LOOK_EVERY_S
WAITS = 0.05
"""Share of its time that a trainer may wait before the pool grows: ends a run of 20 minutes one minute earlier."""
MAX_IDLE = 0.1
"""While more of the workers' time than this is idle, something else is short: the window, or the source."""
MAX_BUSY = 0.85
"""How busy the remaining workers may be after a reduction."""
MIN_GAIN, MAX_LOSS = 0.07, 0.03
RETRIGGER = 1.5
"""A failed change is tried again once the time per slice has grown by this factor ..."""
RETRY_S = 600.0
"""... or after so long: what else ran on the machine may have ended. Chosen, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a pool and its trainers do, now."""

    num_workers: int
    """Joined and not leaving."""
    num_idle: int
    num_delivered: int
    """Slices that arrived from these workers so far."""
    waited_fraction: float
    """Of the trainer that waits most; 0 without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    size: int
    """The size before the change."""
    rate: float
    """Slices a second before it."""
    at_s: float


class Autoscale:
    """Settles where the trainer does not wait and workers do not idle, or where more of them would not help."""

    def __init__(self) -> None:
        self._size = -1
        """The size that is measured."""
        self._judge_from_s = 0.0
        self._looks: deque[tuple[float, Load]] = deque()
        """Of the last WINDOW_S, at this size."""
        self._quiet_since_s: float | None = None
        """Since when fewer would do."""
        self._trial: _Tried | None = None
        """The last change, until it is judged."""
        self._ceiling: _Tried | None = None
        """A size above which more did not help, and the rate then."""
        self._floor: _Tried | None = None
        """A size below which fewer were missed, and the rate then."""

    def look(self, load: Load, size: int, lowest: int, highest: int, now_s: float) -> int | None:
        """Another size than `size` if there should be one, within lowest..highest; call a few times a second."""
        if not lowest <= size <= highest:
            return self._change(min(max(size, lowest), highest))
        is_steady = size == self._size and load.num_workers == size
        if not is_steady or load.num_delivered < self._looks[-1][1].num_delivered:
            # Workers are starting, leaving or being replaced: what was measured is about nothing.
            self._size, self._quiet_since_s, self._judge_from_s = size, None, now_s + SETTLE_S
            self._looks = deque([(now_s, load)])
            return None
        self._looks.append((now_s, load))
        while self._looks[0][0] < now_s - WINDOW_S:
            self._looks.popleft()
        if now_s < self._judge_from_s:
            return None
        self._judge_from_s = now_s + LOOK_EVERY_S
        first_s, first = self._looks[0]
        rate = (load.num_delivered - first.num_delivered) / (now_s - first_s)
        idle = sum(seen.num_idle for _, seen in self._looks) / len(self._looks) / max(1, size)
        wanted = self._judged(load.waited_fraction, rate, now_s)
        if wanted is None:
            wanted = self._grown(load.waited_fraction, rate, idle, highest, now_s)
        if wanted is None:
            wanted = self._shrunk(load.waited_fraction, rate, idle, lowest, now_s)
        return None if wanted is None else self._change(wanted)

    def _judged(self, waited: float, rate: float, now_s: float) -> int | None:
        """Back to the size before the last change, if that was better."""
        trial, self._trial = self._trial, None
        if trial is None or trial.rate <= 0.0:
            return None
        gain = rate / trial.rate - 1.0
        if trial.size < self._size:
            expected = self._size / trial.size - 1.0
            if waited > WAITS and gain < min(MIN_GAIN, expected / 2):
                self._ceiling = _Tried(size=trial.size, rate=rate, at_s=now_s)
                return trial.size
        elif waited > WAITS and gain < -MAX_LOSS:
            self._floor = _Tried(size=trial.size, rate=trial.rate, at_s=now_s)
            return trial.size
        return None

    def _grown(self, waited: float, rate: float, idle: float, highest: int, now_s: float) -> int | None:
        if waited <= WAITS or idle > MAX_IDLE or self._size >= highest:
            return None
        if (ceiling := self._ceiling) is not None and self._size >= ceiling.size:
            if rate * RETRIGGER > ceiling.rate and now_s - ceiling.at_s < RETRY_S:
                return None
            self._ceiling = None
        needed = math.ceil(self._size / max(1.0 - waited, 0.01) - 0.1)
        self._trial = _Tried(size=self._size, rate=rate, at_s=now_s)
        # At most twice as many: a share waited of 0.95 or 0.97 is the same measurement, and 20 or 33 times the size.
        return min(max(needed, self._size + 1), 2 * self._size, highest)

    def _shrunk(self, waited: float, rate: float, idle: float, lowest: int, now_s: float) -> int | None:
        fewer = self._size - max(1, self._size // 10)
        if fewer < lowest or waited > WAITS or (1.0 - idle) * self._size > MAX_BUSY * fewer:
            self._quiet_since_s = None
            return None
        if (floor := self._floor) is not None and fewer < floor.size:
            if rate * RETRIGGER > floor.rate and now_s - floor.at_s < RETRY_S:
                return None
            self._floor = None
        if self._quiet_since_s is None:
            self._quiet_since_s = now_s
        if now_s - self._quiet_since_s < SHRINK_AFTER_S:
            return None
        self._trial = _Tried(size=self._size, rate=rate, at_s=now_s)
        return fewer

    def _change(self, size: int) -> int:
        self._size, self._quiet_since_s = -1, None  # measured anew once the pool has the new size
        return size
