"""The embedded mode: a job's streams, with private services that start and end with them.

In:  a checked job, how many workers, maybe a run folder that keeps the records.
Out: `Streams`: the train stream, evaluation passes.
With 0 workers everything happens in this process and thread.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headrace._house import own_house
from headrace.services import Services
from pipeline.config_job import Job
from pipeline.messages import OpenStream, StreamSpec
from pipeline.order import Order
from pipeline.plan import Role, open_job_source, plan_stream, require_equal_classes, section_of, window_for
from pipeline.recipe import BatchSpec, Recipe
from pipeline.run_folder import RunFolder
from pipeline.sources.protocol import Source
from pipeline.timeline import Timeline
from trainer.batch import Batch
from trainer.buffers import BufferPool
from trainer.device import choose_device
from trainer.inline import InlineReceiver
from trainer.policy import BadSamplePolicy
from trainer.receiver import Receiver
from trainer.stream import BatchStream, RawBatches

log = logging.getLogger("headrace.stream")


class Streams:
    """The streams of one job; `train` starts at once, `evaluate` on request."""

    def __init__(self, job: Job, num_workers: int, folder: RunFolder | None, start_position: int = 0) -> None:
        self._job = job
        self._folder = folder
        self._run = uuid.uuid4().hex[:12]
        self._device = choose_device(job.config.device)
        self._sources: dict[str, Source] = {}
        self.num_bad_samples = 0
        """Bad samples met so far, in all streams; each was named when it was met."""
        self._batch_specs: dict[Role, BatchSpec] = {}
        self._services: Services | None = None
        self._pools: dict[Role, BufferPool] = {role: self._new_pool() for role in ("train", "eval")}
        self._opened: set[BatchStream] = set()
        self._last_incarnation = 0
        require_equal_classes(job.config, str(job.path), self._source)
        if num_workers:
            self._services = Services(job, num_workers)
        try:
            self.train = self._open("train", job.train, start_position)
        except BaseException:
            self.close()
            raise

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every source that was opened, by name."""
        return {name: source.fingerprint for name, source in self._sources.items()}

    def epoch(self, position: int) -> int:
        """The epoch of a position of the train stream."""
        return position // len(self._source(self._job.config.train.source))

    def evaluate(self) -> Iterator[Batch]:
        """One pass over the held-out source, in its order; `train` keeps its window meanwhile."""
        assert self._job.eval is not None, "the job has no eval section"
        stream = self._open("eval", self._job.eval)
        try:
            yield from stream
        finally:
            stream.close()
            self._opened.discard(stream)

    def close(self) -> None:
        """End the streams and the services."""
        while self._opened:
            self._opened.pop().close()
        if self._services is not None:
            self._services.end()
            self._services = None

    def _open(self, role: Role, recipe: Recipe, start_position: int = 0) -> BatchStream:
        config = self._job.config
        section = section_of(config, role)
        source = self._source(section.source)
        incarnation = self._last_incarnation = max(self._last_incarnation + 1, time.time_ns())  # rises for ever
        name = f"{self._run}/{role}"
        endpoint = "inproc://unused"
        if self._services:
            endpoint = self._services.directory.endpoint(f"{role}-{incarnation:x}")
        spec, timeline = plan_stream(config, str(self._job.path), role, source, recipe, endpoint, start_position)
        if role == "train" and self._folder is not None:
            self._folder.append_timeline(spec.timeline[0])  # on disk before the first batch is made
        receiver: RawBatches
        if self._services:
            receiver = self._receiver(role, name, incarnation, spec, timeline, section.batch_size)
        else:
            receiver = self._inline_receiver(role, name, incarnation, spec, timeline, recipe)
        stream = BatchStream(
            receiver,
            num_samples=len(source),
            classes=source.classes,
            device=self._device,
            stall_timeout_s=config.stall_timeout_s,
        )
        self._opened.add(stream)
        self._batch_specs[role] = stream.spec
        return stream

    def _new_pool(self) -> BufferPool:
        return BufferPool(max_free=self._job.config.window_batches + 2, pinned=self._device.type == "cuda")

    def _note_trouble(self, note: str) -> None:
        if self._folder is not None:
            self._folder.append_event("service_trouble", note=note)
        else:
            log.warning("action=service_trouble note=%s", note)

    def _receiver(
        self, role: Role, name: str, incarnation: int, spec: StreamSpec, timeline: Timeline, batch_size: int
    ) -> Receiver:
        services = self._services
        assert services is not None
        receiver = Receiver(
            stream=name,
            incarnation=incarnation,
            spec=spec,
            timeline=timeline,
            dispatcher=services.dispatcher,
            window=lambda batch_spec: window_for(self._job.config, batch_size, batch_spec),
            policy=self._policy(role, spec),
            pool=self._pools[role],
            batch_spec=self._batch_specs.get(role),
            is_service_alive=services.check,
            on_trouble=self._note_trouble,
        )
        receiver.start()
        return receiver

    def _inline_receiver(
        self, role: Role, name: str, incarnation: int, spec: StreamSpec, timeline: Timeline, recipe: Recipe
    ) -> InlineReceiver:
        with own_house():
            from headrace.inline_worker import InlineWorker
        worker = InlineWorker(self._job)
        batch_spec = worker.open(OpenStream(stream=name, incarnation=incarnation, spec=spec), recipe)
        return InlineReceiver(
            stream=name,
            incarnation=incarnation,
            spec=spec,
            timeline=timeline,
            batch_spec=batch_spec,
            make=worker.make,
            policy=self._policy(role, spec),
            pool=self._pools[role],
        )

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            job = self._job
            line = job.source_lines.get(name, 0)
            self._sources[name] = open_job_source(job.config, str(job.path), line, name)
        return self._sources[name]

    def _policy(self, role: Role, spec: StreamSpec) -> BadSamplePolicy:
        config, folder, source = self._job.config, self._folder, self._source(spec.source)
        order = Order(spec.num_samples, seed=spec.seed, shuffle=spec.shuffle)

        def identify(position: int, attempt: int) -> tuple[int, str]:
            (key,) = order.keys(position, position + 1)
            index = order.substitute(key, attempt).sample_index if attempt else key.sample_index
            return index, source.describe(index)

        def quarantine(entry: dict[str, Any]) -> None:
            if folder is not None:
                folder.append_quarantine({"stream": role, **entry})

        def journal(entry: dict[str, Any]) -> None:
            self.num_bad_samples += 1
            if folder is not None:
                folder.append_event("bad_sample", stream=role, **entry)
            else:  # without a run folder stderr is the only place to name it
                log.warning("action=bad_sample stream=%s %s", role, " ".join(f"{k}={v}" for k, v in entry.items()))

        return BadSamplePolicy(
            config.on_bad_sample, config.max_bad_fraction, identify=identify, quarantine=quarantine, journal=journal
        )


@contextmanager
def open_streams(
    job: Job, num_workers: int, folder: RunFolder | None = None, start_position: int = 0
) -> Iterator[Streams]:
    """The job's streams; services and sockets are gone when the block ends."""
    streams = Streams(job, num_workers, folder, start_position)
    try:
        yield streams
    finally:
        streams.close()
