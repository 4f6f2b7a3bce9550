"""A worker without a process: makes slices in the caller's thread, for a debugger.

In:  leases.
Out: what `workers/worker.py` would send.
"""

from __future__ import annotations

import os

from headrace._house import own_house
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.messages import Lease, OpenStream
from pipeline.recipe import BatchSpec, Recipe
from trainer.inline import Made

with own_house():
    from workers.environment import kernel_environment

    # Before cv2 is imported; where it was already, bytes may differ from those of worker processes.
    os.environ.update(kernel_environment())
    from workers.produce import ReadFailed
    from workers.streams import OpenStreams


class InlineWorker:
    """Makes slices of one stream."""

    def __init__(self, job: Job) -> None:
        base = job.path.absolute().parent
        self._streams = OpenStreams(job.config.sources, job.config.plugins, base, worker="inline")

    def open(self, message: OpenStream, recipe: Recipe) -> BatchSpec:
        """Open a stream and probe its recipe; ConfigError if it is refused."""
        self._streams.open(message)
        outcome = self._streams.probe((message.stream, message.incarnation), recipe.digest)
        if not isinstance(outcome, BatchSpec):
            raise ConfigError(place.problem() for place in outcome)
        self._streams.open(
            OpenStream(
                stream=message.stream,
                incarnation=message.incarnation,
                spec=message.spec,
                batch_specs={recipe.digest: outcome},
            )
        )
        return outcome

    def make(self, lease: Lease) -> Made | tuple[int, str]:
        """The slice, or the position that could not be read and why."""
        try:
            return self._streams.make(lease)
        except ReadFailed as error:
            return error.position, str(error)
