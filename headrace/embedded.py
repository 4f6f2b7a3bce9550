"""The embedded mode: a job's streams, with private services that start and end with them, or beside standing ones.

In:  a checked job, how many workers, maybe a run folder that keeps the records and where an earlier attempt left off.
Out: `Streams`: the train stream, evaluation passes.
With 0 workers everything happens in this process and thread.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headrace._house import own_house
from headrace.chain_edits import ChainEdits
from headrace.run_timeline import begin_timeline, record_change
from headrace.services import Services
from headrace.standing import StandingServices
from headrace.stream_report import describe_stream
from pipeline.config_job import Job
from pipeline.errors import ConfigError, Problem
from pipeline.messages import StreamSpec
from pipeline.order import Order
from pipeline.plan import (
    Role,
    first_entries,
    job_recipes,
    open_job_source,
    plan_stream,
    require_equal_classes,
    section_of,
    window_for,
)
from pipeline.recipe import BatchSpec, Recipe
from pipeline.run_folder import RunFolder
from pipeline.service_messages import StreamReport
from pipeline.sources.protocol import Source
from pipeline.stream_start import StreamStart
from pipeline.timeline import Timeline, TimelineChange
from trainer.batch import Batch
from trainer.buffers import BufferPool
from trainer.course import Course
from trainer.device import choose_device
from trainer.inline import InlineReceiver
from trainer.notes import Notes
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import ReceiverState
from trainer.receiver import Receiver
from trainer.report_rates import Rates
from trainer.stall import StallPolicy
from trainer.stream import BatchStream
from trainer.swapping import Outcome, Wish

log = logging.getLogger("headrace.stream")

_FROM_THE_FIRST_BATCH = StreamStart()


class Streams:
    """The streams of one job; `train` starts at once, `evaluate` on request."""

    def __init__(
        self,
        job: Job,
        num_workers: int,
        folder: RunFolder | None,
        start_position: int = 0,
        *,
        connect: str | None = None,
        start: StreamStart = _FROM_THE_FIRST_BATCH,
        automatic: bool = False,
    ) -> None:
        """connect: a standing dispatcher to use instead of own services; automatic: the number of workers follows
        the need. ConfigError if a chain of the job is refused by the workers, or can't go with the others."""
        self._job = job
        self._folder = folder
        self._run = uuid.uuid4().hex[:12]
        self._device = choose_device(job.config.device)
        self._sources: dict[str, Source] = {}
        self.num_bad_samples = 0
        """Bad samples met so far, in all streams; each was named when it was met."""
        self.quarantined = {role: dict(start.quarantined.get(role, {})) for role in ("train", "eval")}
        """Stream role -> position -> attempt to begin with; all of it is on disk, if there is a run folder."""
        self.stop_requested = threading.Event()
        """Set by an operator's `headrace stop`."""
        self._notes = Notes(folder.append_event if folder is not None else None)
        self._begun_with = start.fingerprint
        self._is_standing = connect is not None
        self._batch_specs: dict[Role, dict[str, BatchSpec]] = {"train": {}, "eval": {}}
        self._services: Services | StandingServices | None = None
        self._edits: ChainEdits | None = None
        self._pools: dict[Role, BufferPool] = {role: self._new_pool() for role in ("train", "eval")}
        self._opened: set[BatchStream] = set()
        self._last_incarnation = 0
        require_equal_classes(job.config, str(job.path), self._source)
        self._source(job.config.train.source)  # what is wrong with it is said before anything is started
        if connect is not None:
            self._services = StandingServices(connect, self._note_trouble)
        elif num_workers:
            self._services = Services(job, num_workers, automatic=automatic, on_trouble=self._note_trouble)
        try:
            self.train = self._open_train(start, start_position)
        except BaseException:
            self.close()
            raise

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every source that was opened, by name."""
        return {name: source.fingerprint for name, source in self._sources.items()}

    @property
    def worker_fingerprint(self) -> str:
        """Of the workers that the run's slices come from: others would make other bytes. "" before it is known."""
        return self.train.fingerprint

    @property
    def timeline(self) -> Timeline:
        """The train stream's, as it is now."""
        return self.train.timeline

    def epoch(self, position: int) -> int:
        """The epoch of a position of the train stream."""
        return position // len(self._source(self._job.config.train.source))

    def evaluate(self) -> Iterator[Batch]:
        """One pass over the held-out source, in its order; `train` keeps its window meanwhile."""
        assert self._job.eval is not None, "the job has no eval section"
        stream = self._open_eval()
        try:
            yield from stream
        finally:
            stream.close()
            self._opened.discard(stream)

    def close(self) -> None:
        """End the streams and the services."""
        if self._edits is not None:
            self._edits.stop()
            self._edits = None
        while self._opened:
            self._opened.pop().close()
        if self._services is not None:
            self._services.end()
            self._services = None

    def _open_train(self, start: StreamStart, start_position: int) -> BatchStream:
        job, folder = self._job, self._folder
        source = self._source(job.config.train.source)
        entries, recipes = begin_timeline(job, len(source), start, start_position, folder)
        spec, timeline = plan_stream(job, "train", source, self._endpoint("train"), entries, recipes)

        def record(recipe: Recipe, change: TimelineChange) -> None:
            if folder is not None:
                record_change(folder, recipe, change)

        course = Course(
            timeline,
            recipes,
            window=self._window,
            is_shape_free=job.config.shape == "free",
            free_from_step=start.free_from_step,
            record=record,
        )
        stream, receiver = self._open("train", source, spec, course, start.head_step)
        if folder is not None:
            if self._services is not None:
                folder.publish(self._services.dispatcher, self._name("train"))
            self._edits = ChainEdits(job, receiver.wish, self._notes)
            self._edits.start()
        return stream

    def _open_eval(self) -> BatchStream:
        job = self._job
        source, recipes = self._source(section_of(job.config, "eval").source), job_recipes(job, "eval")
        entries = first_entries(job, "eval", len(source))
        spec, timeline = plan_stream(job, "eval", source, self._endpoint("eval"), entries, recipes)
        course = Course(timeline, recipes, window=self._window, batch_specs=self._batch_specs["eval"])
        stream, _ = self._open("eval", source, spec, course, 0)
        self._batch_specs["eval"] = dict(course.batch_specs)  # so that the next pass need not wait for a probe
        return stream

    def _open(
        self, role: Role, source: Source, spec: StreamSpec, course: Course, head_step: int
    ) -> tuple[BatchStream, Receiver | InlineReceiver]:
        """The stream, once its first batches may be made; it is closed with the others."""
        receiver: Receiver | InlineReceiver
        if self._services is not None:
            receiver = self._receiver(role, spec, course, head_step)
        else:
            receiver = self._inline_receiver(role, spec, course, head_step)
        stream = BatchStream(receiver, num_samples=len(source), classes=source.classes, device=self._device)
        self._opened.add(stream)
        try:
            _ = stream.spec  # every recipe ahead is probed before the first step
        except BaseException:
            stream.close()
            self._opened.discard(stream)
            raise
        return stream, receiver

    def _receiver(self, role: Role, spec: StreamSpec, course: Course, head_step: int) -> Receiver:
        services, config, is_train = self._services, self._job.config, role == "train"
        assert services is not None

        def describe(rates: Rates, state: ReceiverState, step: int) -> StreamReport:
            return describe_stream(
                self._job,
                str(self._folder.path) if self._folder is not None else "",
                course.timeline,
                step,
                rates=rates,
                service=state.service,
                num_bad_samples=self.num_bad_samples,
                notes=self._notes.latest(),
            )

        receiver = Receiver(
            stream=self._name(role),
            incarnation=self._last_incarnation,
            spec=spec,
            course=course,
            head_step=head_step,
            dispatcher=services.dispatcher,
            policy=self._policy(role, spec),
            pool=self._pools[role],
            notes=self._notes,
            stall=StallPolicy(config.stall_timeout_s, config.on_stall, spec.source, self._is_standing),
            check_services=services.check,
            on_outcome=self._swap_ended,
            on_stop=self._stop_asked,
            recipe_of=self._job.recipe_of if is_train else None,
            describe=describe if is_train else None,
            fingerprint=self._begun_with if is_train else self.worker_fingerprint,
        )
        receiver.start()
        return receiver

    def _inline_receiver(self, role: Role, spec: StreamSpec, course: Course, head_step: int) -> InlineReceiver:
        with own_house():
            from headrace.inline_worker import InlineWorker
        worker = InlineWorker(self._job)
        if self._begun_with not in ("", worker.fingerprint):
            raise ConfigError(
                Problem(
                    file="this process",
                    line=0,
                    path="libraries",
                    expected=self._begun_with,
                    got=worker.fingerprint,
                    way_out="install the versions that the run was begun with: others make other bytes",
                )
            )
        return InlineReceiver(
            stream=self._name(role),
            incarnation=self._last_incarnation,
            spec=spec,
            course=course,
            head_step=head_step,
            maker=worker,
            policy=self._policy(role, spec),
            pool=self._pools[role],
            on_outcome=self._swap_ended,
        )

    def _name(self, role: Role) -> str:
        return f"{self._run}/{role}"

    def _endpoint(self, role: Role) -> str:
        """Where the next incarnation's slices go."""
        self._last_incarnation = max(self._last_incarnation + 1, time.time_ns())  # rises for ever
        if self._services is None:
            return "inproc://unused"
        return self._services.directory.endpoint(f"{role}-{self._last_incarnation:x}")

    def _window(self, batch_size: int, batch_spec: BatchSpec) -> int:
        return window_for(self._job.config, batch_size, batch_spec)

    def _new_pool(self) -> BufferPool:
        return BufferPool(max_free=self._job.config.window_batches + 2, pinned=self._device.type == "cuda")

    def _note_trouble(self, note: str) -> None:
        self._notes.tell("service_trouble", note)

    def _stop_asked(self) -> None:
        if not self.stop_requested.is_set():
            self.stop_requested.set()
            self._notes.tell("stop_asked", "`headrace stop` asked the run to stop")

    def _swap_ended(self, wish: Wish, outcome: Outcome) -> None:
        fields: dict[str, Any] = {"operation": wish.operation, "why": wish.why}
        if outcome.step is not None:
            self._notes.tell("swap", outcome.text, step=outcome.step, **fields)
        elif outcome.done:
            self._notes.record("swap_without_effect", note=outcome.text, **fields)
        else:
            self._notes.tell("swap_refused", f"{wish.why}: {outcome}", on_terminal=True, **fields)

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
            self.quarantined[role][entry["position"]] = entry["lost_attempt"] + 1

        def journal(entry: dict[str, Any]) -> None:
            self.num_bad_samples += 1
            if folder is not None:
                folder.append_event("bad_sample", stream=role, **entry)
            else:  # without a run folder stderr is the only place to name it
                log.warning("action=bad_sample stream=%s %s", role, " ".join(f"{k}={v}" for k, v in entry.items()))

        return BadSamplePolicy(
            config.on_bad_sample,
            config.max_bad_fraction,
            identify=identify,
            quarantine=quarantine,
            journal=journal,
            quarantined=self.quarantined[role],
        )


@contextmanager
def open_streams(
    job: Job,
    num_workers: int,
    folder: RunFolder | None = None,
    start_position: int = 0,
    *,
    connect: str | None = None,
    start: StreamStart = _FROM_THE_FIRST_BATCH,
    automatic: bool = False,
) -> Iterator[Streams]:
    """The job's streams; services and sockets are gone when the block ends."""
    streams = Streams(job, num_workers, folder, start_position, connect=connect, start=start, automatic=automatic)
    try:
        yield streams
    finally:
        streams.close()
