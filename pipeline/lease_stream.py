"""One stream's slices, as the dispatcher sees them: waiting, leased, arrived, lost.

In:  what the trainer said has arrived; its timeline; slices given out and given back.
Out: the next slice to lease; those that are late.
Pure. Driven by `pipeline/leases.py` only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from msgspec.structs import replace

from pipeline.lateness import Lateness
from pipeline.lease_events import StreamBeaten, StreamId, StreamRegistered
from pipeline.messages import Lost
from pipeline.timeline import Timeline, slices_of

Range = tuple[int, int]
"""start and stop positions."""


class Copy(NamedTuple):
    """One lease of a range; a range that is hedged has two."""

    worker: str
    number: int
    granted_s: float


MAX_DEATHS = 5.0
"""Deaths that a slice or sample may outlive before it is taken for the cause."""
WEIGHT_BY_ITSELF = 2.5
"""A crash or hang counts for more than a kill from outside, which says little about the sample: two suffice."""
MAX_READS = 3
"""Failed reads of a sample before the trainer must decide; with 0.5 and 1 s between them."""
READ_RETRY_S = 0.5
AVOID_S = 5.0
"""Seconds for which another worker is preferred after a failed read; then any may try."""
HEARD_WITHIN_S = 2.5
"""Only a trainer that has spoken since then (it beats each second) can say that a slice has not arrived."""


def death_weight(*, by_itself: bool) -> float:
    """What a worker's death counts for."""
    return WEIGHT_BY_ITSELF if by_itself else 1.0


class StreamSlices:
    """A position is waiting, leased, lost or arrived; a slice is leased only inside the window."""

    def __init__(self, event: StreamRegistered, now_s: float) -> None:
        self.id: StreamId = event.stream
        self.source = event.source
        self.timeline = event.timeline
        self.revision = event.revision
        self.slice_size = event.slice_size
        self.beat_number = -1
        self.last_beat_s = now_s
        self.quarantined = event.quarantined
        self.window = event.window
        self.head_step = event.head_step
        self.num_hedged = 0
        self._arrived = event.arrived
        self._head_start = self._start_of(event.head_step)
        self._next_step = event.head_step
        """The first batch not yet cut into slices."""
        self._waiting: list[Range] = []
        """Sorted: what the training loop needs first stands first. Cut for a wider window, a slice waits beyond its end
        until the window has reached it again: taken back, it would be cut anew beside copies that are still leased."""
        self._window_stop = 0
        """Nothing is leased from this position on."""
        self._not_before_s: dict[Range, float] = {}
        self._avoid: dict[Range, tuple[str, float]] = {}
        """Range -> the worker that failed to read it, and until when another is preferred."""
        self.leased: dict[Range, list[Copy]] = {}
        """Range -> its living copies: one, or two once it is hedged."""
        self.lost: dict[int, Lost] = {}
        """By position, until the trainer quarantines that attempt."""
        self._deaths: dict[Range, float] = {}
        self._failed_reads: dict[tuple[int, int], int] = {}
        """By position and attempt: a substitute is another sample."""
        self._lateness = Lateness()
        self._refill()

    def beaten(self, event: StreamBeaten, now_s: float) -> tuple[list[list[Copy]], list[list[Copy]]]:
        """Take over what the trainer said, unless it is older than what is known; the copies of what has arrived, and
        of what can't arrive any more."""
        was_silent = now_s - self.last_beat_s > HEARD_WITHIN_S
        self.last_beat_s = now_s
        if event.number <= self.beat_number or event.head_step < self.head_step:
            return [], []
        self.beat_number = event.number
        if event.revision == self.revision:  # an older beat that comes late knows the window of an older timeline
            self.window = event.window
        has_news = event.arrived != self._arrived or event.head_step > self.head_step
        if event.head_step > self.head_step:
            self._move_head(event.head_step)
        self._arrived = event.arrived
        self.quarantined = event.quarantined
        self._take_over_decisions()
        if has_news:
            self._drop_arrived()
        self._refill()
        if not has_news:
            return [], []
        return self._end_arrived(now_s, count=not was_silent), self._end_partly_present()

    def change(self, timeline: Timeline, revision: int, window: int) -> list[list[Copy]]:
        """Another timeline, of the same source and beginning; the copies of leases that it voids."""
        old, self.timeline, self.revision, self.window = self.timeline, timeline, revision, window
        self._head_start = self._start_of(self.head_step)
        first = timeline.entry_at(self.head_step).step
        self._lateness.keep({entry.recipe for entry in timeline.entries if entry.step >= first})
        voided: list[list[Copy]] = []
        for step in range(self.head_step, self._next_step):
            before, after = old.batch(step), timeline.batch(step) if step < timeline.num_steps else None
            if before == after:
                continue
            # What workers died of under the old recipe says nothing about the new one.
            self._deaths = {held: score for held, score in self._deaths.items() if held[0] < before.start}
            if after is None or (before.start, before.stop) != (after.start, after.stop):
                voided += self._void_from(before.start)
                self._next_step = step
                break
            for held in [held for held in self.leased if before.start <= held[0] < before.stop]:
                voided.append(self.leased.pop(held))
                self._wait(held)
        self._refill()
        return voided

    def has_arrived(self, held: Range) -> bool:
        """True if every position of the range is with the trainer."""
        return self._present(held) == (1 << (held[1] - held[0])) - 1

    @property
    def num_waiting(self) -> int:
        """Slices that could be leased now or soon."""
        return bisect_left(self._waiting, (self._window_stop, 0))

    @property
    def unleased_step(self) -> int:
        """The first batch from which on no slice is leased."""
        if not self.leased:
            return self.head_step
        last = max(self.leased)[0]
        steps = range(self.head_step, self._next_step)
        return self.head_step + bisect_left(steps, last + 1, key=lambda step: self.timeline.batch(step).start)

    def is_ready(self, now_s: float) -> bool:
        """True if some worker may be offered a slice now."""
        delays = self._not_before_s
        if not delays:
            return bool(self._waiting) and self._waiting[0][0] < self._window_stop
        return any(delays.get(waiting, 0.0) <= now_s for waiting in self._in_window())

    def offer(self, worker: str, now_s: float) -> Range | None:
        """The lowest waiting slice that this worker may make now."""
        return next((waiting for waiting in self._in_window() if self._may_make(worker, waiting, now_s)), None)

    def take(self, offered: Range, copy: Copy) -> None:
        """The slice is leased, for the first time or once more."""
        if offered in self.leased:
            self.num_hedged += 1
            self.leased[offered].append(copy)
        else:
            self._remove(offered)
            self.leased[offered] = [copy]

    def late(self, now_s: float) -> list[tuple[Range, Copy]]:
        """What the training loop waits for longer than it should, with the only copy of each, lowest first."""
        if now_s - self.last_beat_s > HEARD_WITHIN_S or not self.leased:
            return []
        head_stop = self._start_of(self.head_step + 1)
        granted_before_s = now_s - self._lateness.late_s(self.timeline.recipe_at(self._head_start))
        return sorted(
            (held, copies[0])
            for held, copies in self.leased.items()
            if held[0] < head_stop and len(copies) == 1 and copies[0].granted_s < granted_before_s
        )

    def give_back(self, held: Range, worker: str) -> list[Range]:
        """A worker's lease ended without arrival: what has not arrived after all, and has no other copy, waits again,
        and is returned."""
        copies = self.leased.get(held, [])
        others = [copy for copy in copies if copy.worker != worker]
        if len(others) == len(copies):
            return []
        if others:
            self.leased[held] = others
            return []
        del self.leased[held]
        return self._wait(held)

    def blame(
        self, held: Range, worker: str, *, cause: str, by_itself: bool, position: int | None, attempt: int
    ) -> None:
        """The worker that worked on `held`, maybe on `attempt` of `position`, died; what has outlived too many is
        split, then lost."""
        suspect = held if position is None else (position, position + 1)
        is_leased = held in self.leased
        waiting = [part for part in self.give_back(held, worker) if part[0] < suspect[1] and suspect[0] < part[1]]
        # While another copy lives nothing waits, but the death counts: a deadly sample is made twice at a time.
        if not is_leased or self.has_arrived(suspect):
            return
        score = self._deaths[suspect] = self._deaths.get(suspect, 0.0) + death_weight(by_itself=by_itself)
        if score < MAX_DEATHS or not waiting:
            return
        del self._deaths[suspect]
        for part in waiting:
            if suspect[1] - suspect[0] == 1:
                self._lose(part, Lost(position=suspect[0], attempt=attempt, cause=cause))
            else:
                self._replace(part, [(place, place + 1) for place in range(*part)])

    def read_failed(self, held: Range, failed: Lost, worker: str, *, avoid: bool, now_s: float) -> None:
        """A read failed: try again a little later, up to MAX_READS times; `avoid`: not on that worker for a while."""
        waiting = next((part for part in self.give_back(held, worker) if failed.position in range(*part)), None)
        if waiting is None:
            return
        sample = failed.position, failed.attempt
        failures = self._failed_reads[sample] = self._failed_reads.get(sample, 0) + 1
        if failures >= MAX_READS:
            del self._failed_reads[sample]
            self._lose(waiting, failed)
        else:
            self._not_before_s[waiting] = now_s + READ_RETRY_S * failures
            self._avoid[waiting] = (worker if avoid else "", now_s + AVOID_S)

    def _take_over_decisions(self) -> None:
        for lost in [*self.lost.values()]:
            if self.quarantined.get(lost.position, 0) > lost.attempt:
                del self.lost[lost.position]
                self._wait((lost.position, lost.position + 1))
        # A copy made before the position was given up may have arrived after all.
        self.lost = {place: lost for place, lost in self.lost.items() if not self.has_arrived((place, place + 1))}

    def _end_arrived(self, now_s: float, *, count: bool) -> list[list[Copy]]:
        """`count`: how long they took says something; not so where the trainer itself was stopped."""
        ended = []
        for held in [held for held in self.leased if self.has_arrived(held)]:
            copies = self.leased.pop(held)
            ended.append(copies)
            if count:
                # Of a hedged one the newest copy's time: else what was late would make what comes after it later still.
                self._lateness.arrived(self.timeline.recipe_at(held[0]), now_s - copies[-1].granted_s)
        return ended

    def _end_partly_present(self) -> list[list[Copy]]:
        """A part came that an earlier dispatcher had cut otherwise: as a whole the range would be dropped, and leased
        again, for ever."""
        ended = []
        for held in [held for held in self.leased if self._present(held)]:
            ended.append(self.leased.pop(held))
            self._wait(held)
        return ended

    def _void_from(self, start: int) -> list[list[Copy]]:
        """Nothing from `start` on is cut any more."""
        for waiting in [waiting for waiting in self._waiting if waiting[0] >= start]:
            self._remove(waiting)
        self.lost = {place: lost for place, lost in self.lost.items() if place < start}
        return [self.leased.pop(held) for held in list(self.leased) if held[0] >= start]

    def _lose(self, held: Range, lost: Lost) -> None:
        (start, stop), position = held, lost.position
        self._replace(held, [part for part in ((start, position), (position + 1, stop)) if part[0] < part[1]])
        # Of a worker that died alone with a sample, nobody may know that it had begun with a substitute.
        attempt = max(lost.attempt, self.quarantined.get(position, 0))
        self.lost[position] = replace(lost, attempt=attempt)

    def _replace(self, held: Range, parts: list[Range]) -> None:
        self._remove(held)
        for part in parts:
            insort(self._waiting, part)

    def _wait(self, given: Range) -> list[Range]:
        """Queue what is missing of the range, in contiguous parts.

        A part of it may be with the trainer: made for a dispatcher that had cut the batch otherwise. The trainer drops
        a slice that holds anything it has, so the range as a whole would be sent for ever.
        """
        present = self._present(given)
        if not present:
            parts = [given]
        else:
            missing = [place for place in range(*given) if not present >> (place - given[0]) & 1]
            starts = [place for place in missing if place - 1 not in missing]
            stops = [place + 1 for place in missing if place + 1 not in missing]
            parts = list(zip(starts, stops, strict=True))
        for part in parts:
            insort(self._waiting, part)
        return parts

    def _remove(self, waiting: Range) -> None:
        self._waiting.remove(waiting)
        self._not_before_s.pop(waiting, None)
        self._avoid.pop(waiting, None)

    def _may_make(self, worker: str, waiting: Range, now_s: float) -> bool:
        avoided, until_s = self._avoid.get(waiting, ("", 0.0))
        return self._not_before_s.get(waiting, 0.0) <= now_s and (worker != avoided or until_s <= now_s)

    def _in_window(self) -> Iterator[Range]:
        return takewhile(lambda waiting: waiting[0] < self._window_stop, self._waiting)

    def _refill(self) -> None:
        """Cut the batches that the window has reached."""
        window_step = min(self.head_step + self.window, self.timeline.num_steps)
        self._window_stop = self._start_of(window_step)
        while self._next_step < window_step:
            for part in slices_of(self.timeline.batch(self._next_step), self.slice_size):
                self._wait(part)
            self._next_step += 1

    def _present(self, held: Range) -> int:
        """Bitmap of the range's positions that are with the trainer; what lies before the head is."""
        start, stop = held
        mask = (1 << (stop - start)) - 1
        if stop <= self._head_start:
            return mask
        behind = self._head_start - start
        if behind <= 0:
            return self._arrived >> -behind & mask
        return (self._arrived << behind | (1 << behind) - 1) & mask

    def _drop_arrived(self) -> None:
        for waiting in [waiting for waiting in self._waiting if self._present(waiting)]:
            self._remove(waiting)
            self._wait(waiting)

    def _move_head(self, head_step: int) -> None:
        self.head_step, self._head_start = head_step, self._start_of(head_step)
        self._next_step = max(self._next_step, head_step)
        self._deaths = {held: score for held, score in self._deaths.items() if held[1] > self._head_start}
        self._failed_reads = {
            sample: count for sample, count in self._failed_reads.items() if sample[0] >= self._head_start
        }

    def _start_of(self, step: int) -> int:
        return self.timeline.batch(step).start if step < self.timeline.num_steps else self.timeline.end_position
