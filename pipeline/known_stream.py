"""What a dispatcher remembers of a stream beside its slices: who its trainer is, which workers were told of it.

In:  the stream's spec and what probes answered; names of workers.
Out: the OpenStream that a worker lacks.
Pure. Soft state: a trainer that registers again brings all of it back.
"""

from __future__ import annotations

from pipeline.lease_events import StreamId
from pipeline.messages import OpenStream, StreamSpec
from pipeline.recipe import BatchSpec


class KnownStream:
    """Each living worker is told once of each thing there is to know."""

    def __init__(
        self, stream_id: StreamId, identity: bytes, spec: StreamSpec, batch_specs: dict[str, BatchSpec]
    ) -> None:
        self.identity = identity
        self.spec = spec
        self.batch_specs = batch_specs
        self.is_begun = False
        """True once a worker was given work of it: later ones must make the same bytes."""
        self.opened: dict[str, int] = {}
        """Living worker -> how many batch specs it was told of."""
        self._id = stream_id

    def opening_for(self, worker: str) -> OpenStream | None:
        """What to tell the worker before its next work, which it is about to be given; None if it knows everything."""
        self.is_begun = True
        if self.opened.get(worker) == len(self.batch_specs):
            return None
        self.opened[worker] = len(self.batch_specs)
        name, incarnation = self._id
        return OpenStream(stream=name, incarnation=incarnation, spec=self.spec, batch_specs=self.batch_specs)

    def forget_worker(self, worker: str) -> None:
        """The worker is gone, or knows nothing any more."""
        self.opened.pop(worker, None)
