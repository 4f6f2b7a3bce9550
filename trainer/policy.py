"""What is done about bad samples: the job's policy, with every one of them named and counted.

In:  bad-sample notes of arriving slices; positions that can't be read or that kill workers.
Out: quarantine entries (on disk before they count); RunFailed where the policy says so; how many there were before a
position, for a checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

from pipeline.errors import RunFailed
from pipeline.messages import Lost
from pipeline.slice_header import QUARANTINED, BadSample

MIN_BAD_BEFORE_FATAL = 10

Record = Callable[[dict[str, Any]], None]
Identify = Callable[[int, int], tuple[int, str]]
"""Position and attempt -> index in the source and name of the sample that stands there."""
TrainedAt = Callable[[int], int | None]
"""Position -> the step that an earlier attempt trained with it; None where there was none."""


class BadSamplePolicy:
    """Under `substitute`, bad samples are fatal above max(10, max_bad_fraction x delivered); under `fail`, at once."""

    def __init__(
        self,
        on_bad_sample: Literal["substitute", "fail"],
        max_bad_fraction: float,
        *,
        identify: Identify,
        quarantine: Record = lambda entry: None,
        journal: Record = lambda entry: None,
        quarantined: Mapping[int, int] | None = None,
        counted_elsewhere: Collection[int] = (),
        trained_at: TrainedAt = lambda position: None,
        num_delivered: int = 0,
        num_bad: int = 0,
    ) -> None:
        """`quarantined`: what was decided before, by an earlier attempt at the run or in an earlier pass;
        `counted_elsewhere`: which of these positions are no bad samples of this pass; `num_delivered`, `num_bad`: of
        the run before the first position that this policy sees."""
        self._on_bad_sample = on_bad_sample
        self._max_bad_fraction = max_bad_fraction
        self._identify = identify
        self._trained_at = trained_at
        self._quarantine = quarantine
        self._journal = journal
        self._lock = threading.Lock()
        self.num_delivered = num_delivered
        self._counted_elsewhere = frozenset(counted_elsewhere)
        self._is_resumed = num_bad > 0
        self._num_bad_passed = num_bad
        self._bad_ahead: set[int] = set()
        """Positions of the bad samples that a checkpoint may still have to leave out."""
        self._last_start = 0
        self.bad_names: dict[str, str] = {}
        """Name -> cause, of the first hundred."""
        self.quarantined: dict[int, int] = dict(quarantined or {})
        """Position -> attempt to begin with."""

    @property
    def num_bad(self) -> int:
        """Positions of the run whose own sample was not delivered: one, too, if its substitute was bad as well."""
        return self._num_bad_passed + len(self._bad_ahead)

    def num_bad_before(self, position: int) -> int:
        """How many there were before `position`, where a training loop stands; what arrived ahead of it is left out."""
        with self._lock:
            return self._num_bad_passed + sum(bad < position for bad in self._bad_ahead)

    def delivered(self, num_samples: int, bad: Iterable[BadSample]) -> None:
        """A slice was placed; RunFailed if it brought one bad sample too many."""
        with self._lock:
            self.num_delivered += num_samples
            is_news = False
            for sample in bad:
                self._count(sample.position)
                if sample.cause == QUARANTINED:
                    self._name(sample.name, sample.cause)
                    continue  # told of, and judged, when it was lost; perhaps by an earlier attempt
                is_news = True
                self._tell(
                    sample.name,
                    sample.cause,
                    index=sample.index,
                    position=sample.position,
                    substitute=sample.substitute,
                )
            if is_news:  # after all of the slice were counted: those quarantined may stand behind
                self._judge()

    def quarantined_from(self, start: int) -> dict[int, int]:
        """What is quarantined from position `start` on; what lies before is over and is forgotten."""
        with self._lock:
            for position in [position for position in self.quarantined if position < start]:
                del self.quarantined[position]
            if start > self._last_start:
                # Not up to `start`: the loop may still hold the batch before it, and write a checkpoint first.
                passed = {position for position in self._bad_ahead if position < self._last_start}
                self._num_bad_passed += len(passed)
                self._bad_ahead -= passed
                self._last_start = start
            return dict(self.quarantined)

    def quarantined_in(self, start: int, stop: int) -> dict[int, int]:
        """What is quarantined in a range of positions."""
        with self._lock:
            return {position: self.quarantined[position] for position in self.quarantined if start <= position < stop}

    def lost(self, losses: Iterable[Lost]) -> None:
        """Positions that no worker can make as they stand: quarantined (on disk first), or fatal.

        Always fatal where the run has trained on the sample: another in its place would make it another run, for good.
        """
        with self._lock:
            for lost in losses:
                if self.quarantined.get(lost.position, 0) > lost.attempt:
                    continue
                index, name = self._identify(lost.position, lost.attempt)
                if (step := self._trained_at(lost.position)) is not None:
                    raise _not_again(step, lost, name)
                self._count(lost.position)
                # One too many is not quarantined: a run that is resumed reads it again, and may live.
                if self._on_bad_sample == "substitute" and self.num_bad <= self._limit:
                    # Not `attempt`: that is the run's own, on every line of its files.
                    place = {"position": lost.position, "lost_attempt": lost.attempt}
                    self._quarantine({**place, "index": index, "name": name, "cause": lost.cause})
                    self.quarantined[lost.position] = lost.attempt + 1
                self._tell(name, lost.cause, index=index, position=lost.position, substitute=None)
                self._judge()

    @property
    def _limit(self) -> float:
        return max(MIN_BAD_BEFORE_FATAL, self._max_bad_fraction * self.num_delivered)

    def _count(self, position: int) -> None:
        if position not in self._counted_elsewhere:
            self._bad_ahead.add(position)

    def _name(self, name: str, cause: str) -> None:
        if len(self.bad_names) < 100:
            self.bad_names.setdefault(name, cause)

    def _tell(self, name: str, cause: str, *, index: int, position: int, substitute: int | None) -> None:
        """Name the sample in the journal; RunFailed if the policy bears none."""
        self._name(name, cause)
        self._journal({"name": name, "index": index, "cause": cause, "position": position, "substitute": substitute})
        if self._on_bad_sample == "fail":
            raise RunFailed(
                f"bad sample {name} (position {position}): {cause}\n"
                f"  policy:   on_bad_sample: fail\n"
                f"  to go on: mend or remove it, or set on_bad_sample: substitute"
            )

    def _judge(self) -> None:
        """RunFailed if there are more than the policy bears."""
        if self.num_bad > self._limit:
            which = "of this attempt (journal.jsonl names all)" if self._is_resumed else "ones"
            listed = "\n".join(f"    {bad}: {why}" for bad, why in list(self.bad_names.items())[:MIN_BAD_BEFORE_FATAL])
            raise RunFailed(
                f"{self.num_bad} bad samples among {self.num_delivered} delivered, "
                f"more than the {self._limit:.0f} allowed\n"
                f"  the first {which}:\n{listed}\n"
                f"  to go on: mend or remove them, or raise max_bad_fraction"
            )


def _not_again(step: int, lost: Lost, name: str) -> RunFailed:
    return RunFailed(
        f"step {step} can't be done again: a sample that it was trained on can't be had now\n"
        f"  sample:   {name} (position {lost.position})\n"
        f"  cause:    {lost.cause}\n"
        "  to go on: --resume once it can be read, nothing was put in its place;\n"
        "            or leave what came later behind, with --from STEP --branch"
    )
