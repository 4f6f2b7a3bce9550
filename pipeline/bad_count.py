"""Bad samples, counted: how many there are, and how often they were met.

In:  the index of a bad sample and the source it is of, each time that it is met; or the records of a run.
Out: both numbers. A sample that is bad is met again in each epoch, and is one bad sample all the same.
Memory grows with the bad samples, never with how often they are met.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.json_lines import iter_lines


class BadCount:
    """`num` rises with each (source, index) that was not there before, `num_met` with each meeting."""

    def __init__(self) -> None:
        self.num = 0
        self.num_met = 0
        self._indices: dict[str, set[int]] = {}

    def meet(self, index: int, source: str = "") -> None:
        """A bad sample stood at a position and was replaced."""
        self.num_met += 1
        indices = self._indices.setdefault(source, set())
        self.num += index not in indices
        indices.add(index)

    def know(self, index: int, source: str = "") -> None:
        """It was met, as somebody else has noted."""
        if index not in self._indices.get(source, ()):
            self.meet(index, source)

    def meet_event(self, event: Mapping[str, Any]) -> None:
        """A line of journal.jsonl, whichever it is."""
        if event.get("action") == "bad_sample":
            self.meet(event.get("index", -1), event.get("source", event.get("stream", "")))

    def copy(self) -> BadCount:
        """It counts on by itself."""
        copied = BadCount()
        copied.num, copied.num_met = self.num, self.num_met
        copied._indices = {source: set(indices) for source, indices in self._indices.items()}
        return copied


def read_bad_counts(folder: Path, position: int) -> tuple[BadCount, BadCount]:
    """Those that stood in the train stream before `position`, and those of the whole run, from its records.

    Not from a checkpoint: each would hold every bad index once more. The journal is synced before one is written.
    """
    before, told = BadCount(), BadCount()
    for event in iter_lines(folder / "journal.jsonl"):
        told.meet_event(event)
        if event.get("action") == "bad_sample" and _stood_before(position, event) and not event.get("was_substitute"):
            before.meet(event["index"])
    for entry in iter_lines(folder / "quarantine.jsonl", is_synced=True):
        if _stood_before(position, entry) and not entry["lost_attempt"]:
            before.know(entry["index"])  # going back may have cut its event, and kept it
    return before, told


def replaced_text(num: int, num_met: int) -> str:
    """Such as `2 replaced by others (38 times)`; how often is left out where each was met once."""
    return f"{num} replaced by others" + (f" ({num_met} times)" if num_met > num else "")


def _stood_before(position: int, record: Mapping[str, Any]) -> bool:
    return bool(record["stream"] == "train" and record["position"] < position)
