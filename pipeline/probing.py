"""Probing: from a trainer's AskProbe to a worker, and back to the trainer.

In:  AskProbe, ProbeAnswer, ProbeFailed; workers that died; time.
Out: Probe to workers, Probed to trainers.
Who is asked, and what deaths mean, is for `pipeline/probes.py` (pure) to say; this finds the workers and words answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pipeline.known_stream import KnownStream
from pipeline.lease_events import StreamId, WorkerGone
from pipeline.leases import Leases
from pipeline.message import Location
from pipeline.messages import AnyMessage, AskProbe, Probe, ProbeAnswer, Probed, ProbeFailed
from pipeline.probes import DEFAULT_HANG_S, PROBE_S, ProbeId, Probes
from pipeline.recipe import BatchSpec

_MEND = (
    f"mend the transform that stands there, or leave it out; if it is only slow, set hang_s above {DEFAULT_HANG_S:g}"
)

log = logging.getLogger("headrace.dispatcher")


class Probing:
    """Whoever asks for a probe has an answer in the end, or the stream is gone."""

    def __init__(
        self,
        streams: Mapping[StreamId, KnownStream],
        leases: Leases,
        send_work: Callable[[StreamId, str, AnyMessage], None],
        tell: Callable[[StreamId, AnyMessage], None],
    ) -> None:
        """`send_work`: to a worker, after what it must know of the stream; `tell`: to a stream's trainer."""
        self._streams, self._leases, self._send_work, self._tell = streams, leases, send_work, tell
        self._probes = Probes()

    def asked(self, message: AskProbe, now_s: float) -> None:
        """A trainer wants a recipe tried."""
        stream_id = (message.stream, message.incarnation)
        if (stream := self._streams.get(stream_id)) is None:
            return
        digest = message.recipe.digest
        if (spec := stream.batch_specs.get(digest)) is not None:
            self._answer((stream_id, digest), "", spec)  # asked again: the answer was lost on its way
            return
        if stream.ask(message.recipe) is not None:
            self._probes.ask((stream_id, digest))
            self.assign(now_s)

    def answered(self, message: ProbeAnswer) -> None:
        """A worker has tried it."""
        probe = (message.stream, message.incarnation), message.recipe
        if self._probes.answered(probe, message.worker):
            self._conclude(probe, message.worker, message.spec, message.problems)

    def failed(self, message: ProbeFailed) -> None:
        """Another worker, or the same, is asked at the next tick: what failed may have passed by then."""
        probe = (message.stream, message.incarnation), message.recipe
        log.warning("action=probe_failed worker=%s cause=%s", message.worker, message.cause)
        if self._probes.failed(probe, message.worker):
            expected = "a worker that can read the source and has memory for a sample"
            self._refuse(probe, message.worker, expected, f"worker {message.worker}: {message.cause}")

    def declined(self, worker: str, stream_id: StreamId, now_s: float) -> None:
        """Another worker, now or later, has to try what this one can't, as it was started."""
        self._probes.declined(worker, stream_id)
        self.assign(now_s)

    def worker_gone(self, event: WorkerGone, now_s: float) -> None:
        """A worker that may have been probing is gone."""
        refused = self._probes.worker_gone(
            event.worker,
            event.cause,
            blame=event.blame,
            by_itself=event.by_itself,
            at=event.at,
            building=event.building,
        )
        for probe, why in refused:
            if probe == event.building:
                expected = (
                    f"a chain that can be built, within {PROBE_S:g} s (or hang_s, if less or above {DEFAULT_HANG_S:g})"
                )
                self._refuse(probe, event.worker, expected, f"worker {event.worker}: {why}", _MEND)
            else:
                self._refuse(probe, event.worker, "a chain that workers survive", f"they died of it: {why}", _MEND)
        self.assign(now_s)

    def send_again(self, worker: str, stream_id: StreamId, now_s: float) -> None:
        """The worker could make nothing of what it was asked about this stream."""
        for probe in self._probes.of_worker(worker, stream_id):
            self._send(probe, worker, now_s)

    def forget(self, stream_id: StreamId) -> None:
        """The stream is gone."""
        self._probes.forget(stream_id)

    def tick(self, now_s: float) -> None:
        """Repeat what was not answered, give out what waits."""
        for probe, worker in self._probes.overdue(now_s):
            self._send(probe, worker, now_s)
        self.assign(now_s)

    def assign(self, now_s: float) -> None:
        """Give waiting probes to workers that can open their source."""
        for probe in self._probes.waiting():
            workers = self._leases.able_workers(probe[0], self._streams[probe[0]].spec.source)
            if able := [name for name in workers if not self._leases.workers[name].is_leaving]:
                self._send(probe, self._probes.choose(probe, able), now_s)

    def _send(self, probe: ProbeId, worker: str, now_s: float) -> None:
        (stream, incarnation), recipe = probe
        self._probes.assign(probe, worker, now_s)
        asking = Probe(stream=stream, incarnation=incarnation, recipe=recipe, skip=self._probes.skip(probe))
        self._send_work(probe[0], worker, asking)

    def _refuse(self, probe: ProbeId, worker: str, expected: str, got: str, way_out: str = "") -> None:
        chain = self._streams[probe[0]].asked(probe[1]).chain
        place = Location(file=chain.file, line=chain.line, path=chain.path, expected=expected, got=got, way_out=way_out)
        self._conclude(probe, worker, None, (place,))

    def _conclude(
        self, probe: ProbeId, worker: str, spec: BatchSpec | None, problems: tuple[Location, ...] = ()
    ) -> None:
        self._streams[probe[0]].probed(probe[1], spec)
        self._answer(probe, worker, spec, problems)

    def _answer(self, probe: ProbeId, worker: str, spec: BatchSpec | None, problems: tuple[Location, ...] = ()) -> None:
        stream_id, recipe = probe
        answer = Probed(
            stream=stream_id[0],
            incarnation=stream_id[1],
            recipe=recipe,
            worker=worker,
            spec=spec,
            problems=problems,
            unleased_step=self._leases.streams[stream_id].unleased_step,
        )
        self._tell(stream_id, answer)
