"""The embedded mode: a job's streams, with private services that start and end with them, or beside standing ones.

In:  a checked job, how many workers, maybe a run folder that keeps the records and where an earlier attempt left off.
Out: `Streams`: the train stream, evaluation passes.
With 0 workers everything happens in this process and thread.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
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
from pipeline.following import is_given
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
from pipeline.run_history import read_changes
from pipeline.service_messages import StreamReport
from pipeline.sources.protocol import Source
from pipeline.stream_start import StreamStart
from pipeline.timeline import Timeline, TimelineChange
from trainer.batch import Batch
from trainer.buffers import BufferPool
from trainer.course import Course
from trainer.device import choose_device
from trainer.inline import InlineReceiver
from trainer.likeness import likeness_of, model_likeness
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
        on_stop: Callable[[], str] | None = None,
    ) -> None:
        """connect: a standing dispatcher to use instead of own services; automatic: the number of workers follows
        the need; on_stop: called for an operator's `headrace stop`, says what becomes of it; a run folder: its job's
        model is trained on the batches. ConfigError if a chain of the job is refused by the workers, or can't go with
        the others."""
        self._job = job
        self._folder = folder
        self._run = uuid.uuid4().hex[:12]
        self._device = choose_device(job.config.device)
        self._sources: dict[str, Source] = {}
        self.num_bad_samples = 0
        """Bad samples met so far, in all streams; each was named when it was met."""
        self.quarantined = {role: dict(start.quarantined.get(role, {})) for role in ("train", "eval")}
        """Stream role -> position -> attempt to begin with; all of it is on disk, if there is a run folder."""
        self._on_stop = on_stop
        self._is_stop_told = False
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
            if folder is not None and self._services is not None:
                folder.publish(self._services.dispatcher, self._name("train"))
            self._open_train(start, start_position)
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
        stream, course = self._open_eval(self._window)
        try:
            _ = stream.spec
            self._batch_specs["eval"] = dict(course.batch_specs)  # so that the next pass need not wait for a probe
            yield from stream
        finally:
            self._end(stream)

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

    def _open_train(self, start: StreamStart, start_position: int) -> None:
        job, folder = self._job, self._folder
        source = self._source(job.config.train.source)
        entries, recipes = begin_timeline(job, len(source), start, start_position, folder)
        spec, timeline = plan_stream(job, "train", source, self._endpoint("train"), entries, recipes)

        def record(recipe: Recipe, change: TimelineChange) -> None:
            if folder is not None:
                record_change(folder, recipe, change)

        changes = read_changes(folder.path) if folder is not None else ()
        course = Course(
            timeline,
            recipes,
            window=self._window,
            likeness=likeness_of(job, is_trained=folder is not None),
            free_from_step=start.free_from_step,
            last_change_step=changes[-1].from_step if changes else 0,
            record=record,
        )
        self.train, receiver = self._open("train", source, spec, course, start.head_step)
        if folder is None:
            _ = self.train.spec  # every recipe ahead is probed before the first step
            return
        self._try_chains()
        if is_given(changes):
            self._notes.tell("edits_not_followed", "the run keeps to its given timeline; edits of chain files wait")
            return
        self._edits = ChainEdits(job, receiver.wish, self._notes)
        self._edits.start()

    def _try_chains(self) -> None:
        """Every chain that the run will use is probed before its first step; ConfigError for one that can't work."""
        if self._job.eval is None:
            _ = self.train.spec
            return
        # Both at once; nothing is made for the evaluation, whose turn comes after an epoch.
        trial, course = self._open_eval(lambda batch_size, spec: 0 * self._window(batch_size, spec))
        trained, shown, recipe = self.train.spec, trial.spec, self._job.eval
        self._batch_specs["eval"] = dict(course.batch_specs)
        self._end(trial)
        if problems := model_likeness(self._job).problems(recipe, shown, trained):
            raise ConfigError(problems)

    def _open_eval(self, window: Callable[[int, BatchSpec], int]) -> tuple[BatchStream, Course]:
        job = self._job
        source, recipes = self._source(section_of(job.config, "eval").source), job_recipes(job, "eval")
        entries = first_entries(job, "eval", len(source))
        spec, timeline = plan_stream(job, "eval", source, self._endpoint("eval"), entries, recipes)
        course = Course(timeline, recipes, window=window, batch_specs=self._batch_specs["eval"])
        stream, _ = self._open("eval", source, spec, course, 0)
        return stream, course

    def _open(
        self, role: Role, source: Source, spec: StreamSpec, course: Course, head_step: int
    ) -> tuple[BatchStream, Receiver | InlineReceiver]:
        """The stream, of which nothing is made before every recipe ahead was probed; it is closed with the others."""
        receiver: Receiver | InlineReceiver
        if self._services is not None:
            receiver = self._receiver(role, spec, course, head_step)
        else:
            receiver = self._inline_receiver(role, spec, course, head_step)
        stream = BatchStream(receiver, num_samples=len(source), classes=source.classes, device=self._device)
        self._opened.add(stream)
        return stream, receiver

    def _end(self, stream: BatchStream) -> None:
        stream.close()
        self._opened.discard(stream)

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
            on_stop=self._stop_asked if self._on_stop is not None else None,
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
        # Others' services may never have been started; a job's own come back by themselves.
        self._notes.tell("service_trouble", note, on_terminal=True if self._is_standing else None)

    def _stop_asked(self) -> str:
        assert self._on_stop is not None
        if not self._is_stop_told:
            self._is_stop_told = True
            self._notes.tell("stop_asked", "`headrace stop` asked the run to stop")
        return self._on_stop()

    def _swap_ended(self, wish: Wish, outcome: Outcome) -> None:
        fields: dict[str, Any] = {"operation": wish.operation, "why": wish.why}
        if outcome.step is not None:
            self._notes.tell("swap", outcome.text, step=outcome.step, **fields)
        elif outcome.is_surprise:
            self._notes.tell("swap_without_effect", outcome.text, on_terminal=True, **fields)
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
    on_stop: Callable[[], str] | None = None,
) -> Iterator[Streams]:
    """The job's streams; services and sockets are gone when the block ends."""
    streams = Streams(
        job, num_workers, folder, start_position, connect=connect, start=start, automatic=automatic, on_stop=on_stop
    )
    try:
        yield streams
    finally:
        streams.close()
