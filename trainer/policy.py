"""What is done about bad samples: the job's policy, with every one of them named and counted.

In:  bad-sample notes of arriving slices; positions that can't be read or that kill workers.
Out: quarantine entries (on disk before they count); RunFailed where the policy says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pipeline.errors import RunFailed
from pipeline.messages import Lost
from pipeline.slice_header import QUARANTINED, BadSample

MIN_BAD_BEFORE_FATAL = 10

Record = Callable[[dict[str, Any]], None]
Identify = Callable[[int, int], tuple[int, str]]
"""Position and attempt -> index in the source and name of the sample that stands there."""


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
    ) -> None:
        """`quarantined`: what was decided before, by an earlier attempt at the run or in an earlier pass."""
        self._on_bad_sample = on_bad_sample
        self._max_bad_fraction = max_bad_fraction
        self._identify = identify
        self._quarantine = quarantine
        self._journal = journal
        self._lock = threading.Lock()
        self.num_delivered = 0
        self.num_bad = 0
        self.bad_names: dict[str, str] = {}
        """Name -> cause, of the first hundred."""
        self.quarantined: dict[int, int] = dict(quarantined or {})
        """Position -> attempt to begin with."""

    def delivered(self, num_samples: int, bad: Iterable[BadSample]) -> None:
        """A slice was placed; RunFailed if it brought one bad sample too many."""
        with self._lock:
            self.num_delivered += num_samples
            last_position = -1
            for sample in bad:
                # A position whose substitute is bad too is still one bad sample among those delivered.
                is_counted = sample.position == last_position
                last_position = sample.position
                if sample.cause == QUARANTINED:
                    continue  # counted when it was lost
                self.num_bad += not is_counted
                self._tell(
                    sample.name,
                    sample.cause,
                    index=sample.index,
                    position=sample.position,
                    substitute=sample.substitute,
                )

    def quarantined_from(self, start: int) -> dict[int, int]:
        """What is quarantined from position `start` on; what lies before is over and is forgotten."""
        with self._lock:
            for position in [position for position in self.quarantined if position < start]:
                del self.quarantined[position]
            return dict(self.quarantined)

    def quarantined_in(self, start: int, stop: int) -> dict[int, int]:
        """What is quarantined in a range of positions."""
        with self._lock:
            return {position: self.quarantined[position] for position in self.quarantined if start <= position < stop}

    def lost(self, losses: Iterable[Lost]) -> None:
        """Positions that no worker can make as they stand: quarantined (on disk first), or fatal."""
        with self._lock:
            for lost in losses:
                if self.quarantined.get(lost.position, 0) > lost.attempt:
                    continue
                index, name = self._identify(lost.position, lost.attempt)
                if self._on_bad_sample == "substitute":
                    # Not `attempt`: that is the run's own, on every line of its files.
                    place = {"position": lost.position, "lost_attempt": lost.attempt}
                    self._quarantine({**place, "index": index, "name": name, "cause": lost.cause})
                    self.quarantined[lost.position] = lost.attempt + 1
                self.num_bad += lost.attempt == 0
                self._tell(name, lost.cause, index=index, position=lost.position, substitute=None)

    def _tell(self, name: str, cause: str, *, index: int, position: int, substitute: int | None) -> None:
        """Name the sample in the journal; RunFailed if the policy does not bear it."""
        if len(self.bad_names) < 100:
            self.bad_names[name] = cause
        self._journal({"name": name, "index": index, "cause": cause, "position": position, "substitute": substitute})
        if self._on_bad_sample == "fail":
            raise RunFailed(
                f"bad sample {name} (position {position}): {cause}\n"
                f"  policy:   on_bad_sample: fail\n"
                f"  to go on: mend or remove it, or set on_bad_sample: substitute"
            )
        limit = max(MIN_BAD_BEFORE_FATAL, self._max_bad_fraction * self.num_delivered)
        if self.num_bad > limit:
            listed = "\n".join(f"    {bad}: {why}" for bad, why in list(self.bad_names.items())[:MIN_BAD_BEFORE_FATAL])
            raise RunFailed(
                f"{self.num_bad} bad samples among {self.num_delivered} delivered, more than the {limit:.0f} allowed\n"
                f"  the first ones:\n{listed}\n"
                f"  to go on: mend or remove them, or raise max_bad_fraction"
            )
