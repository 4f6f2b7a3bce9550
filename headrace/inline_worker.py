"""A worker without a process: makes slices in the caller's thread, for a debugger.

In:  streams, probes, leases.
Out: what `workers/worker.py` would send.
"""

from __future__ import annotations

from headrace._house import own_house
from headrace.worker_conditions import take_kernels_of_workers
from pipeline.config_job import Job
from pipeline.errors import Problem
from pipeline.messages import Lease, Lost, OpenStream
from pipeline.recipe import BatchSpec
from trainer.inline import Made

with own_house():
    take_kernels_of_workers()  # before what makes samples is imported
    from workers.fingerprint import fingerprint
    from workers.produce import ReadFailed
    from workers.streams import OpenStreams


class InlineWorker:
    """Makes slices of one stream."""

    def __init__(self, job: Job) -> None:
        base = job.path.absolute().parent
        self.fingerprint = fingerprint()
        self._streams = OpenStreams(job.config.sources, job.config.plugins, base, worker="inline")

    def open(self, message: OpenStream) -> None:
        """What probes and leases refer to from now on."""
        self._streams.open(message)

    def probe(self, stream: tuple[str, int], digest: str) -> BatchSpec | tuple[Problem, ...]:
        """What a recipe delivers, or why it is refused."""
        outcome = self._streams.probe(stream, digest)
        return outcome if isinstance(outcome, BatchSpec) else tuple(place.problem() for place in outcome)

    def make(self, lease: Lease) -> Made | Lost:
        """The slice, or the sample that could not be read and why."""
        try:
            return self._streams.make(lease)
        except ReadFailed as error:
            return Lost(position=error.position, attempt=error.attempt, cause=str(error), bad_before=error.bad_before)
