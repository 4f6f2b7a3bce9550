"""What is done about bad samples: the job's policy, with every one of them named and counted.

In:  bad-sample notes of arriving slices; positions that can't be read or that kill workers.
Out: quarantine entries (on disk before they count); RunFailed where the policy says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

from pipeline.bad_count import BadCount
from pipeline.errors import RunFailed
from pipeline.messages import Lost
from pipeline.sample_causes import way_out
from pipeline.slice_header import QUARANTINED, BadSample

MIN_BAD_BEFORE_FATAL = 10

NOT_KNOWN = "could not be decoded or transformed; how, only the worker knew that its substitute killed"

Record = Callable[[dict[str, Any]], None]
Identify = Callable[[int, int], tuple[int, str]]
"""Position and attempt -> index in the source and name of the sample that stands there."""
TrainedAt = Callable[[int], int | None]
"""Position -> the step that an earlier attempt trained with it; None where there was none."""


class BadSamplePolicy:
    """Under `substitute`, fatal above max(10, max_bad_fraction x min(delivered, num_samples)) different bad samples;
    under `fail`, at the first. One that is bad is so in each epoch, and counts once: the share is of the source."""

    def __init__(
        self,
        on_bad_sample: Literal["substitute", "fail"],
        max_bad_fraction: float,
        num_samples: int,
        *,
        identify: Identify,
        quarantine: Record = lambda entry: None,
        journal: Record = lambda entry: None,
        quarantined: Mapping[int, int] | None = None,
        counted_elsewhere: Collection[int] = (),
        trained_at: TrainedAt = lambda position: None,
        num_delivered: int = 0,
        bad: BadCount | None = None,
    ) -> None:
        """`num_samples`: of the source; `quarantined`: what was decided before, by an earlier attempt at the run or in
        an earlier pass; `counted_elsewhere`: which of these positions are no bad samples of this pass;
        `num_delivered`, `bad`: of the run before the first position that this policy sees."""
        self._on_bad_sample = on_bad_sample
        self._max_bad_fraction = max_bad_fraction
        self._num_samples = num_samples
        self._identify = identify
        self._trained_at = trained_at
        self._quarantine = quarantine
        self._journal = journal
        self._lock = threading.Lock()
        self.num_delivered = num_delivered
        self._counted_elsewhere = frozenset(counted_elsewhere)
        self._bad = bad.copy() if bad is not None else BadCount()
        self._is_resumed = self._bad.num > 0
        self.bad_names: dict[str, str] = {}
        """Name -> cause, of the first hundred."""
        self.quarantined: dict[int, int] = dict(quarantined or {})
        """Position -> attempt to begin with."""

    @property
    def num_bad(self) -> int:
        """Different samples so far that were bad where they stood themselves; as substitutes, who are drawn beside the
        order, they would count sooner than the samples delivered do."""
        return self._bad.num

    def delivered(self, num_samples: int, bad: Iterable[BadSample]) -> None:
        """A slice was placed; RunFailed if it brought one bad sample too many."""
        with self._lock:
            self.num_delivered += num_samples
            is_news, last = False, -1
            for sample in bad:
                is_own, last = sample.position != last, sample.position  # the substitutes tried come after it
                if sample.cause == QUARANTINED:  # told of, and judged, when it was lost; perhaps by an earlier attempt
                    if sample.position not in self._counted_elsewhere:
                        self._bad.know(sample.index)
                    self._name(sample.name, sample.cause)
                    continue
                is_news = True
                if is_own:
                    self._bad.meet(sample.index)
                name, cause, index, substitute = sample.name, sample.cause, sample.index, sample.substitute
                self._tell(name, cause, index, position=sample.position, is_own=is_own, substitute=substitute)
            if is_news:  # after all of the slice were counted: those quarantined may stand behind
                self._judge()

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
        """Positions that no worker can make as they stand: quarantined (on disk first), or fatal.

        Always fatal where the run has trained on the sample: another in its place would make it another run, for good.
        """
        with self._lock:
            for lost in losses:
                first = self.quarantined.get(lost.position, 0)
                if first > lost.attempt:
                    continue
                index, name = self._identify(lost.position, lost.attempt)
                if (step := self._trained_at(lost.position)) is not None:
                    raise _not_again(step, lost, name)
                if not first:
                    self._bad.meet(self._identify(lost.position, 0)[0])
                # One too many is not quarantined: a run that is resumed reads it again, and may live.
                if self._on_bad_sample == "substitute" and self.num_bad <= self._limit:
                    # Not `attempt`: that is the run's own, on every line of its files.
                    place = {"position": lost.position, "lost_attempt": lost.attempt}
                    self._quarantine({**place, "index": index, "name": name, "cause": lost.cause})
                    self.quarantined[lost.position] = lost.attempt + 1
                # No slice will bring the notes of those before it: what takes its place is made without them.
                for attempt, cause in _causes(lost, first):
                    index, name = self._identify(lost.position, attempt)
                    self._tell(name, cause, index, position=lost.position, is_own=not attempt, substitute=None)
                self._judge()

    @property
    def _limit(self) -> float:
        return max(MIN_BAD_BEFORE_FATAL, self._max_bad_fraction * min(self.num_delivered, self._num_samples))

    def _name(self, name: str, cause: str) -> None:
        if len(self.bad_names) < 100:
            self.bad_names.setdefault(name, cause)

    def _tell(self, name: str, cause: str, index: int, *, position: int, is_own: bool, substitute: int | None) -> None:
        """Name the sample in the journal; RunFailed if the policy bears none."""
        self._name(name, cause)
        place = {"position": position, "was_substitute": not is_own, "substitute": substitute}
        self._journal({"name": name, "index": index, "cause": cause, **place})
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
            often = f", met {self._bad.num_met} times," if self._bad.num_met > self.num_bad else ""
            raise RunFailed(
                f"{self.num_bad} bad samples{often} among {self.num_delivered} delivered, "
                f"more than the {self._limit:.0f} allowed\n"
                f"  the first {which}:\n{listed}\n"
                f"  to go on: {way_out(self.bad_names.values())}, or raise max_bad_fraction"
            )


def _causes(lost: Lost, first: int) -> list[tuple[int, str]]:
    """Each attempt from the first to the lost one, with what was wrong with it."""
    num_told = len(lost.bad_before)
    untold = max(lost.attempt - first - num_told, 0)
    causes = [NOT_KNOWN] * untold + [*lost.bad_before, lost.cause]
    return list(zip(range(first, lost.attempt + 1), causes[-(lost.attempt + 1 - first) :], strict=True))


def _not_again(step: int, lost: Lost, name: str) -> RunFailed:
    return RunFailed(
        f"step {step} can't be done again: a sample that it was trained on can't be had now\n"
        f"  sample:   {name} (position {lost.position})\n"
        f"  cause:    {lost.cause}\n"
        "  to go on: --resume once it can be read, nothing was put in its place;\n"
        "            or leave what came later behind, with --from STEP --branch"
    )
