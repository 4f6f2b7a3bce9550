"""Work of a stream that was never opened here: the worker asks for the stream, and makes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from pipeline.messages import Lease, OpenStream, Probe
from tests.unit.test_worker import BATCH_SPEC, RECIPE, SPEC
from workers.progress import ProgressSlot
from workers.streams import OpenStreams
from workers.worker import _handle


class Talk:
    """The side of a worker that talks with the dispatcher: keeps what it was to say."""

    def __init__(self, holding: set[int]) -> None:
        self.holding = holding
        self.said: list[tuple[str, int, int]] = []

    def holds(self, lease: Lease) -> bool:
        return lease.number in self.holding

    def let_go(self, lease: Lease) -> None:
        self.holding.discard(lease.number)

    def ask_stream(self, stream: str, incarnation: int, lease: int = 0) -> None:
        self.said.append((stream, incarnation, lease))


LEASE = Lease(number=7, stream="s", incarnation=1, start=0, stop=4, recipe="r")
PROBE = Probe(stream="s", incarnation=1, recipe="r")


@pytest.mark.parametrize(
    ("work", "holding", "expected"),
    [(LEASE, {7}, [("s", 1, 7)]), (LEASE, set(), []), (PROBE, set(), [("s", 1, 0)])],
    ids=["lease", "void lease", "probe"],
)
def test_a_worker_asks_for_a_stream_it_never_heard_of_unless_the_lease_is_void(
    work: Lease | Probe, holding: set[int], expected: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    """The OpenStream was lost: skipping its leases in silence would be for ever."""
    talk, slot = Talk(set(holding)), ProgressSlot(tmp_path / "progress")
    _handle(work, cast(Any, talk), OpenStreams({}, (), tmp_path, "w1"), cast(Any, None), {}, slot)
    slot.close()
    assert expected == talk.said
    assert set() == talk.holding


def test_a_worker_that_missed_a_streams_newest_recipe_asks_for_the_stream_again(tmp_path: Path) -> None:
    """The OpenStream after a swap was lost, the first was not: work that it can't know must not break the stream."""
    talk, slot = Talk({1}), ProgressSlot(tmp_path / "progress")
    streams = OpenStreams({}, (), tmp_path, "w1")
    streams.open(OpenStream(stream="s", incarnation=1, spec=SPEC, batch_specs={RECIPE.digest: BATCH_SPEC}))
    for work in (msgspec.structs.replace(LEASE, number=1), PROBE):
        _handle(work, cast(Any, talk), streams, cast(Any, None), {}, slot)
    slot.close()
    assert [("s", 1, 1), ("s", 1, 0)] == talk.said
    assert streams.is_open(("s", 1), RECIPE.digest)
