"""Receivers: what takes a job's batches in, over sockets from its services, or made in this thread.

In:  a job, the services it uses (or none), where to write and whom to ask; a stream's spec and course.
Out: a started `Receiver`, or an `InlineReceiver` where there are no services.
Opens no source and plans no stream: `headrace/embedded.py` does.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from headrace._house import own_house
from headrace.bad_samples import BadSamples, StreamName
from headrace.services import Services
from headrace.standing import StandingServices
from headrace.stream_report import describe_stream
from headrace.worker_conditions import differs_from_workers, fingerprint_of_workers, way_out
from pipeline.config_job import Job
from pipeline.errors import ConfigError, Problem
from pipeline.extras import WORKERS, importing_extras
from pipeline.messages import StreamSpec
from pipeline.run_folder import RunFolder
from pipeline.service_messages import StreamReport
from trainer.buffers import BufferPool
from trainer.course import Course
from trainer.inline import InlineReceiver
from trainer.notes import Notes
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import ReceiverState
from trainer.receiver import Receiver
from trainer.report_rates import Rates
from trainer.stall import StallPolicy
from trainer.swapping import Outcome, Wish


class Receivers:
    """Every receiver of one job's streams; incarnations rise for ever."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder | None,
        services: Services | StandingServices | None,
        *,
        bad_samples: BadSamples,
        notes: Notes,
        on_stop: Callable[[], str] | None = None,
        is_pinned: bool = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`on_stop`: called for an operator's `headrace stop`; `is_pinned`: batches go to a GPU; `tell`: which chain
        takes over, for the terminal."""
        self._job, self._folder, self._services = job, folder, services
        self._bad_samples, self._notes = bad_samples, notes
        self._on_stop = on_stop
        self._is_pinned = is_pinned
        self._tell = tell
        self._is_stop_told = False
        self._run = uuid.uuid4().hex[:12]
        self._last_incarnation = 0
        self._pools = {role: self._new_pool() for role in ("train", "eval")}

    def name(self, stream: StreamName) -> str:
        """As the dispatcher knows it."""
        return f"{self._run}/{stream}"

    def endpoint(self, stream: StreamName) -> str:
        """Where the next incarnation's slices go."""
        self._last_incarnation = max(self._last_incarnation + 1, time.time_ns())  # rises for ever
        if self._services is None:
            return "inproc://unused"
        return self._services.directory.endpoint(f"{stream}-{self._last_incarnation:x}")

    def open(
        self,
        stream: StreamName,
        spec: StreamSpec,
        course: Course,
        head_step: int,
        fingerprint: str,
        policy: BadSamplePolicy,
    ) -> Receiver | InlineReceiver:
        """The receiver of the incarnation whose endpoint was asked for last.

        `fingerprint`: of the workers that the run's earlier slices came from, "" before the first.
        """
        if self._services is None:
            return self._inline(stream, spec, course, head_step, fingerprint, policy)
        config, is_train = self._job.config, stream == "train"

        def describe(rates: Rates, state: ReceiverState, step: int) -> StreamReport:
            return describe_stream(
                self._job,
                str(self._folder.path) if self._folder is not None else "",
                course.timeline,
                step,
                rates=rates,
                service=state.service,
                bad=self._bad_samples.count,
                notes=self._notes.latest(),
            )

        standing = self._services.dispatcher if isinstance(self._services, StandingServices) else ""
        receiver = Receiver(
            stream=self.name(stream),
            incarnation=self._last_incarnation,
            spec=spec,
            course=course,
            head_step=head_step,
            dispatcher=self._services.dispatcher,
            policy=policy,
            pool=self._pool(stream),
            notes=self._notes,
            stall=StallPolicy(config.stall_timeout_s, config.on_stall, spec.source, standing),
            check_services=self._services.check,
            on_outcome=self._swap_ended,
            on_stop=self._stop_asked if self._on_stop is not None else None,
            recipe_of=self._job.recipe_of if is_train else None,
            describe=describe if is_train else None,
            fingerprint=fingerprint,
        )
        receiver.start()
        return receiver

    def _inline(
        self,
        stream: StreamName,
        spec: StreamSpec,
        course: Course,
        head_step: int,
        fingerprint: str,
        policy: BadSamplePolicy,
    ) -> InlineReceiver:
        with own_house(), importing_extras("0 workers", WORKERS):
            from headrace.inline_worker import InlineWorker
        worker = InlineWorker(self._job)
        if fingerprint not in ("", worker.fingerprint):
            raise _other_libraries(fingerprint, worker.fingerprint)
        if stream == "train" and differs_from_workers(worker.fingerprint):
            text = (
                "some transforms make other bytes in this process than in workers\n"
                f"  here:      {worker.fingerprint}\n"
                f"  workers:   {fingerprint_of_workers()}\n"
                f"  to go on: {way_out()}"
            )
            self._notes.tell("other_kernels", text, on_terminal=True)
        return InlineReceiver(
            stream=self.name(stream),
            incarnation=self._last_incarnation,
            spec=spec,
            course=course,
            head_step=head_step,
            maker=worker,
            policy=policy,
            pool=self._pool(stream),
            on_outcome=self._swap_ended,
        )

    def _pool(self, stream: StreamName) -> BufferPool:
        return self._pools[stream] if stream != "look" else self._new_pool()  # one look in a run, if any: not kept

    def _new_pool(self) -> BufferPool:
        return BufferPool(max_free=self._job.config.window_batches + 2, pinned=self._is_pinned)

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
            self._tell(f"chain: {outcome.text}")
        elif outcome.is_surprise:
            self._notes.tell("swap_without_effect", outcome.text, on_terminal=True, **fields)
        elif outcome.done:
            self._notes.record("swap_without_effect", note=outcome.text, **fields)
        else:
            self._notes.tell("swap_refused", f"{wish.why}: {outcome}", on_terminal=True, **fields)


def _other_libraries(expected: str, got: str) -> ConfigError:
    """Of a run that was begun with others than this process has."""
    is_mendable = differs_from_workers(got) and expected == fingerprint_of_workers()
    versions = "install the versions that the run was begun with: others make other bytes"
    problem = Problem(
        file="this process",
        line=0,
        path="libraries",
        expected=expected,
        got=got,
        way_out=way_out() if is_mendable else versions,
    )
    return ConfigError(problem)
