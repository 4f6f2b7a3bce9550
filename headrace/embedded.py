"""The embedded mode: a job's streams, with private services that start and end with them, or beside standing ones.

In:  a checked job, how many workers, maybe a run folder that keeps the records and where an earlier attempt left off.
Out: `Streams`: the train stream, evaluation passes, looks at the first batches.
With 0 workers everything happens in this process and thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from headrace.bad_samples import BadSamples, StreamName
from headrace.chain_edits import ChainEdits
from headrace.receivers import Receivers
from headrace.run_timeline import RunTimeline, begin_timeline
from headrace.services import Services
from headrace.standing import StandingServices
from pipeline.bad_count import BadCount
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.extras import WORKERS, require_extras
from pipeline.messages import StreamSpec
from pipeline.plan import (
    first_entries,
    job_recipes,
    open_job_source,
    plan_stream,
    require_equal_classes,
    section_of,
    window_for,
)
from pipeline.recipe import BatchSpec
from pipeline.run_folder import RunFolder
from pipeline.sources.protocol import Source
from pipeline.stream_start import StreamStart
from pipeline.timeline import Timeline
from trainer.batch import Batch
from trainer.course import Course
from trainer.device import choose_device
from trainer.inline import InlineReceiver
from trainer.likeness import likeness_of, model_likeness
from trainer.notes import Notes
from trainer.receiver import Receiver
from trainer.stream import BatchStream

Tell = Callable[[str], None]

_FROM_THE_FIRST_BATCH = StreamStart()


def _tell_nobody(text: str) -> None: ...


class Streams:
    """The streams of one job; `train` starts at once, `evaluate` and `look` on request."""

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
        tell: Tell = _tell_nobody,
    ) -> None:
        """connect: a standing dispatcher to use instead of own services; automatic: the number of workers follows
        the need; on_stop: called for an operator's `headrace stop`, says what becomes of it; tell: what an operator
        has changed, for the terminal, from any thread; a run folder: its job's model is trained on the batches.
        ConfigError if a chain of the job is refused by the workers, or can't go with the others."""
        if connect is None:
            require_extras("the job's workers", WORKERS)
        self._job = job
        self._folder = folder
        self._terminal = tell
        self._device = choose_device(job.config.device)
        self._sources: dict[str, Source] = {}
        self._bad_samples = BadSamples(job, folder, start)
        self._notes = Notes(folder.append_event if folder is not None else None)
        self._begun_with = start.fingerprint
        self._is_standing = connect is not None
        self._batch_specs: dict[StreamName, dict[str, BatchSpec]] = {"eval": {}}
        """Stream -> recipe -> what it delivers, so that the next pass need not wait for a probe."""
        self._services: Services | StandingServices | None = None
        self._edits: ChainEdits | None = None
        self._opened: set[BatchStream] = set()
        require_equal_classes(job.config, str(job.path), self._source)
        self._source(job.config.train.source)  # what is wrong with it is said before anything is started
        if connect is not None:
            self._services = StandingServices(connect, self._note_trouble)
        elif num_workers:
            self._services = Services(
                job, num_workers, automatic=automatic, on_trouble=self._note_trouble, on_scaled=self._note_scaled
            )
        self._receivers = Receivers(
            job,
            folder,
            self._services,
            bad_samples=self._bad_samples,
            notes=self._notes,
            on_stop=on_stop,
            is_pinned=self._device.type == "cuda",
            tell=self._tell,
        )
        try:
            if folder is not None and self._services is not None:
                folder.publish(self._services.dispatcher, self._receivers.name("train"))
            self._open_train(start, start_position)
        except BaseException:
            self.close()
            raise

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every source that was opened, by name."""
        return {name: source.fingerprint for name, source in self._sources.items()}

    @property
    def bad_samples(self) -> BadCount:
        """Bad samples met so far, in all attempts, in `train` and `evaluate`; each was named when it was met."""
        return self._bad_samples.count

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

    def evaluate(self, step: int = 0) -> Iterator[Batch]:
        """One pass over the held-out source, in its order; `train` keeps its window meanwhile.

        `step`: the training's next one; a resumed run makes the passes that its first attempt made, by their steps.
        """
        assert self._job.eval is not None, "the job has no eval section"
        stream, course = self._open_eval(step)
        try:
            _ = stream.spec
            self._batch_specs["eval"] = dict(course.batch_specs)
            yield from stream
        finally:
            self._end(stream)

    def look(self, num_batches: int) -> Iterator[Batch]:
        """The run's first `num_batches` batches, as the job's first recipe makes them; `train` gives them all the same.

        A stream of its own, which ends with the iterator. Fewer batches if the job has fewer.
        """
        timeline = first_batches(self.timeline, num_batches)
        if timeline.num_steps == timeline.entries[0].step:
            return
        stream = self._open_look(timeline)
        try:
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
        begun = begin_timeline(job, len(source), start, start_position, folder)
        try:
            receiver = self._begin_train(source, start, begun)
        except ConfigError:
            # A run that was killed at its very start may have been begun with what it can't use, and been mended since.
            if not begun.edits:
                raise
            while self._opened:
                self._opened.pop().close()
            begun = begin_timeline(job, len(source), start, start_position, folder, with_edits=True)
            receiver = self._begin_train(source, start, begun)
        if folder is None:
            return
        if begun.is_given:
            self._notes.tell("edits_not_followed", "the run keeps to its given timeline; edits of chain files wait")
        else:
            self._edits = ChainEdits(job, receiver.wish, self._notes)
            self._edits.catch_up(begun.edits)
            receiver.wait_for_wishes()
            self._edits.start()
        receiver.release()

    def _begin_train(self, source: Source, start: StreamStart, begun: RunTimeline) -> Receiver | InlineReceiver:
        """The train stream, whose chains were tried and whose timeline is on disk; ConfigError, and it is not."""
        job, folder = self._job, self._folder
        endpoint = self._receivers.endpoint("train")
        spec, timeline = plan_stream(job, "train", source, endpoint, begun.entries)
        self._train_course = Course(
            timeline,
            begun.recipes,
            window=self._window,
            likeness=likeness_of(job, is_trained=folder is not None),
            free_from_step=start.free_from_step,
            last_change_step=begun.changes[-1].from_step if begun.changes else 0,
            record=begun.record,
            is_held=not begun.is_settled,
            is_written=begun.is_written,
        )
        self.train, receiver = self._open("train", source, spec, self._train_course, start.head_step)
        if folder is None:
            _ = self.train.spec  # every recipe ahead is probed before the first step
        else:
            self._try_chains()
        begun.write()
        self._train_course.is_written = True
        return receiver

    def _try_chains(self) -> None:
        """Every chain that the run will use is probed before its first step; ConfigError for one that can't work."""
        if self._job.eval is None:
            _ = self.train.spec
            return
        # Both at once; nothing is made for the evaluation, whose turn comes after an epoch.
        trial, course = self._open_eval(0, is_held=True)
        trained, shown, recipe = self.train.spec, trial.spec, self._job.eval
        self._batch_specs["eval"] = dict(course.batch_specs)
        self._end(trial)
        if problems := model_likeness(self._job).problems(recipe, shown, trained):
            raise ConfigError(problems)

    def _open_eval(self, step: int, *, is_held: bool = False) -> tuple[BatchStream, Course]:
        job = self._job
        source, recipes = self._source(section_of(job.config, "eval").source), job_recipes(job, "eval")
        entries = first_entries(job, "eval", len(source))
        spec, timeline = plan_stream(job, "eval", source, self._receivers.endpoint("eval"), entries)
        course = Course(timeline, recipes, window=self._window, batch_specs=self._batch_specs["eval"], is_held=is_held)
        stream, _ = self._open("eval", source, spec, course, 0, training_step=step)
        return stream, course

    def _open_look(self, timeline: Timeline) -> BatchStream:
        job, recipes = self._job, self._train_course.recipes
        source = self._source(job.config.train.source)
        spec, _ = plan_stream(job, "train", source, self._receivers.endpoint("look"), timeline.entries)
        spec = msgspec.structs.replace(spec, end_position=timeline.end_position)
        # What the train stream's probes answered need not be asked again.
        known = dict(self._train_course.batch_specs)
        named = {entry.recipe: recipes[entry.recipe] for entry in timeline.entries}
        course = Course(timeline, named, window=self._window, batch_specs=known)
        stream, _ = self._open("look", source, spec, course, timeline.entries[0].step)
        return stream

    def _open(
        self, name: StreamName, source: Source, spec: StreamSpec, course: Course, head_step: int, training_step: int = 0
    ) -> tuple[BatchStream, Receiver | InlineReceiver]:
        """The stream, of which nothing is made before every recipe ahead was probed; it is closed with the others."""
        fingerprint = self._begun_with if name == "train" else self.worker_fingerprint
        policy = self._bad_samples.policy(name, spec, source, course.timeline, training_step)
        receiver = self._receivers.open(name, spec, course, head_step, fingerprint, policy)
        stream = BatchStream(receiver, num_samples=len(source), classes=source.classes, device=self._device)
        self._opened.add(stream)
        return stream, receiver

    def _end(self, stream: BatchStream) -> None:
        stream.close()
        self._opened.discard(stream)

    def _window(self, batch_size: int, batch_spec: BatchSpec) -> int:
        return window_for(self._job.config, batch_size, batch_spec)

    def _note_trouble(self, note: str) -> None:
        # Others' services may never have been started; a job's own come back by themselves.
        self._notes.tell("service_trouble", note, on_terminal=True if self._is_standing else None)

    def _note_scaled(self, text: str) -> None:
        self._notes.tell("scaled", text, on_terminal=False)
        self._tell(text)

    def _tell(self, text: str) -> None:
        with suppress(OSError, SystemExit):  # a terminal that is gone must not end the thread that watches or receives
            self._terminal(text)

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            job = self._job
            line = job.source_lines.get(name, 0)
            self._sources[name] = open_job_source(job.config, str(job.path), line, name)
        return self._sources[name]


def first_batches(timeline: Timeline, num_batches: int) -> Timeline:
    """The first `num_batches` batches of a timeline, all of them under its first recipe; fewer if it has fewer."""
    first = timeline.entries[0]

    def until(end_position: int) -> Timeline:
        return Timeline(
            [first], num_samples=timeline.num_samples, last_batch=timeline.last_batch, end_position=end_position
        )

    whole = until(timeline.end_position)
    num_steps = min(whole.num_steps, first.step + num_batches)
    return until(whole.batch(num_steps - 1).stop if num_steps > first.step else first.start)


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
    tell: Tell = _tell_nobody,
) -> Iterator[Streams]:
    """The job's streams; services and sockets are gone when the block ends."""
    streams = Streams(
        job,
        num_workers,
        folder,
        start_position,
        connect=connect,
        start=start,
        automatic=automatic,
        on_stop=on_stop,
        tell=tell,
    )
    try:
        yield streams
    finally:
        streams.close()
