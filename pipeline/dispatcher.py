"""The dispatcher: matches slices to workers. Decodes, steps the pure cores, sends; holds soft state only.

In:  control messages of trainers, workers and pools, as frames; the time in seconds.
Out: leases, probes and notices to them, through `send`.
No sockets, no clock (`pipeline/serve.py` has them). Never sees a pixel, never decides: `pipeline/leases.py` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline.admission import accepted_timeline, check_progress, worker_refusal
from pipeline.errors import RemoteProtocolError
from pipeline.known_stream import KnownStream
from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Condemn,
    Event,
    Grant,
    LeaseRefused,
    ReportLost,
    Retire,
    SliceGivenBack,
    StreamBeaten,
    StreamId,
    StreamLeft,
    StreamRegistered,
    Ticked,
    WorkerBeaten,
    WorkerGone,
    WorkerJoined,
)
from pipeline.leases import Leases
from pipeline.messages import (
    AnyMessage,
    AskProbe,
    AskStream,
    CloseStream,
    Granted,
    Join,
    JoinAgain,
    Location,
    Probe,
    ProbeAnswer,
    Probed,
    ProbeFailed,
    Refused,
    Register,
    RegisterAgain,
    Registered,
    SamplesLost,
    ServiceState,
    SliceFailed,
    StreamBeat,
    StreamBroken,
    StreamFailed,
    StreamGoodbye,
    WorkerBeat,
    WorkerDied,
)
from pipeline.probes import ProbeId, Probes
from pipeline.wire import decode_message

STATE_EVERY_S = 1.0
"""How often trainers are told what the service looks like."""

log = logging.getLogger("headrace.dispatcher")


class Dispatcher:
    """Message in, messages out; `send` carries them."""

    def __init__(self, send: Callable[[bytes, AnyMessage], None], leases: Leases) -> None:
        self._send = send
        self._leases = leases
        self._probes = Probes()
        self._streams: dict[StreamId, KnownStream] = {}
        self._fingerprint = ""
        """Of the workers admitted last; binding while one of them lives, or a stream that was begun with them."""
        self._refused: set[str] = set()
        """Workers that were refused and have not ended yet."""
        self._note = ""
        self._last_state_s = 0.0
        self.num_refused_messages = 0

    def receive(self, identity: bytes, frame: bytes, now_s: float) -> None:
        """One message of a peer; what the protocol does not allow is dropped, counted and logged."""
        try:
            self._handle(identity, decode_message(frame), now_s)
        except RemoteProtocolError as error:
            self.num_refused_messages += 1
            log.warning("action=refuse_message peer=%r error=%s", identity, error)

    def tick(self, now_s: float) -> None:
        """Time passed, and every waiting message was received."""
        self._step(Ticked(), now_s)
        for probe, worker in self._probes.overdue(now_s):
            self._send_probe(probe, worker, now_s)
        self._assign_probes(now_s)
        if now_s - self._last_state_s >= STATE_EVERY_S:
            self._last_state_s = now_s
            for stream_id in self._streams:
                self._tell_state(stream_id)

    def _handle(self, identity: bytes, message: AnyMessage, now_s: float) -> None:
        match message:
            case Register():
                self._register(identity, message, now_s)
            case StreamBeat():
                self._stream_beaten(identity, message, now_s)
            case AskProbe():
                self._probe_asked(message, now_s)
            case StreamGoodbye():
                self._forget_stream((message.stream, message.incarnation), now_s)
            case StreamBroken():
                self._tell(
                    (message.stream, message.incarnation),
                    StreamFailed(stream=message.stream, incarnation=message.incarnation, cause=message.cause),
                )
            case Join() | WorkerBeat() | SliceFailed() | AskStream() | ProbeAnswer() | ProbeFailed() | WorkerDied():
                self._handle_worker(identity, message, now_s)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a dispatcher")

    def _handle_worker(
        self,
        identity: bytes,
        message: Join | WorkerBeat | SliceFailed | AskStream | ProbeAnswer | ProbeFailed | WorkerDied,
        now_s: float,
    ) -> None:
        if not isinstance(message, WorkerDied) and message.worker.encode() != identity:
            raise RemoteProtocolError(f"a peer speaks for worker {message.worker!r}")
        match message:
            case Join():
                self._join(message, now_s)
            case WorkerBeat():
                self._step(
                    WorkerBeaten(
                        worker=message.worker, number=message.number, received=message.received, holding=message.holding
                    ),
                    now_s,
                )
            case SliceFailed():
                log.warning(
                    "action=read_failed worker=%s position=%d cause=%s", message.worker, message.position, message.cause
                )
                self._note = f"worker {message.worker} could not read position {message.position}: {message.cause}"
                self._step(
                    SliceGivenBack(
                        worker=message.worker, lease=message.lease, position=message.position, cause=message.cause
                    ),
                    now_s,
                )
            case AskStream():
                self._open_again(message, now_s)
            case ProbeAnswer():
                self._probe_answered(message)
            case ProbeFailed():
                self._probe_failed(message)
            case WorkerDied():
                at = ((message.stream, message.incarnation), message.position)
                self._worker_gone(
                    WorkerGone(
                        worker=message.worker,
                        cause=message.cause,
                        blame=not message.in_peace,
                        by_itself=message.by_itself,
                        at=at if message.position >= 0 else None,
                    ),
                    now_s,
                )

    def _register(self, identity: bytes, message: Register, now_s: float) -> None:
        stream_id, spec = (message.stream, message.incarnation), message.spec
        try:
            timeline = accepted_timeline(message)
            if any(name == message.stream and number > message.incarnation for name, number in self._streams):
                raise RemoteProtocolError(f"stream {message.stream}: a trainer that started later serves it now")
        except RemoteProtocolError as error:
            self._refuse_stream(identity, stream_id, error)
            raise
        for known in [known for known in self._streams if known[0] == message.stream and known != stream_id]:
            self._forget_stream(known, now_s)
        if stream_id not in self._streams:
            log.info("action=register stream=%s incarnation=%d", *stream_id)
            self._streams[stream_id] = KnownStream(stream_id, identity, spec, dict(message.batch_specs))
        self._tell(stream_id, Registered(stream=message.stream, incarnation=message.incarnation))
        self._step(
            StreamRegistered(
                stream=stream_id,
                source=spec.source,
                timeline=timeline,
                slice_size=spec.slice_size,
                head_step=message.head_step,
                arrived=int.from_bytes(message.arrived, "little"),
                window=message.window,
                quarantined=message.quarantined,
            ),
            now_s,
        )

    def _stream_beaten(self, identity: bytes, message: StreamBeat, now_s: float) -> None:
        stream_id = (message.stream, message.incarnation)
        if known := self._leases.streams.get(stream_id):
            try:
                check_progress(message, known.timeline)
            except RemoteProtocolError as error:
                self._refuse_stream(identity, stream_id, error)
                raise
        event = StreamBeaten(
            stream=stream_id,
            number=message.number,
            head_step=message.head_step,
            arrived=int.from_bytes(message.arrived, "little"),
            window=message.window,
            quarantined=message.quarantined,
        )
        self._step(event, now_s, identity)

    def _refuse_stream(self, identity: bytes, stream_id: StreamId, error: RemoteProtocolError) -> None:
        """Tell who sent it, who may not be the stream's trainer: it would wait for ever."""
        cause = f"the dispatcher refused the stream: {error}"
        self._send(identity, StreamFailed(stream=stream_id[0], incarnation=stream_id[1], cause=cause))

    def _forget_stream(self, stream_id: StreamId, now_s: float) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            log.info("action=forget stream=%s incarnation=%d", *stream_id)
            self._probes.forget(stream_id)
            for worker in stream.opened:
                self._send(worker.encode(), CloseStream(stream=stream_id[0], incarnation=stream_id[1]))
            self._step(StreamLeft(stream=stream_id), now_s)

    def _join(self, message: Join, now_s: float) -> None:
        is_bound = bool(self._leases.workers) or any(stream.is_begun for stream in self._streams.values())
        if cause := worker_refusal(message, self._fingerprint if is_bound else None):
            log.error("action=refuse_worker worker=%s cause=%s", message.worker, cause)
            self._note = f"worker {message.worker} on {message.host} was refused: {cause}"
            self._refused.add(message.worker)
            self._send(message.worker.encode(), Refused(worker=message.worker, cause=cause))
            return
        log.info("action=join worker=%s host=%s pid=%d", message.worker, message.host, message.pid)
        self._fingerprint = message.fingerprint
        self._streams_forget(message.worker)
        self._step(WorkerJoined(worker=message.worker, sources=frozenset(message.sources)), now_s)
        self._assign_probes(now_s)

    def _worker_gone(self, event: WorkerGone, now_s: float) -> None:
        if event.blame:
            log.warning("action=worker_gone worker=%s cause=%s", event.worker, event.cause)
            if event.worker not in self._refused:  # why it was refused says more than how it ended
                self._note = f"worker {event.worker}: {event.cause}"
        self._refused.discard(event.worker)
        self._streams_forget(event.worker)
        self._step(event, now_s)
        self._probe_loses_worker(event, now_s)

    def _streams_forget(self, worker: str) -> None:
        for stream in self._streams.values():
            stream.forget_worker(worker)

    def _open_again(self, message: AskStream, now_s: float) -> None:
        stream_id = (message.stream, message.incarnation)
        if stream_id not in self._streams:
            return
        log.warning("action=open_again worker=%s stream=%s incarnation=%d", message.worker, *stream_id)
        self._streams[stream_id].forget_worker(message.worker)
        self._step(LeaseRefused(worker=message.worker, lease=message.lease), now_s)
        for probe in self._probes.of_worker(message.worker, stream_id):
            self._send_probe(probe, message.worker, now_s)

    def _probe_loses_worker(self, event: WorkerGone, now_s: float) -> None:
        refused = self._probes.worker_gone(
            event.worker, event.cause, blame=event.blame, by_itself=event.by_itself, at=event.at
        )
        for (stream_id, recipe), why in refused:
            expected, got = "a chain that workers survive", f"they died of it: {why}"
            self._refuse_probe((stream_id, recipe), event.worker, expected, got)
        self._assign_probes(now_s)

    def _probe_failed(self, message: ProbeFailed) -> None:
        """Another worker, or the same, is asked at the next tick: what failed may have passed by then."""
        probe = (message.stream, message.incarnation), message.recipe
        log.warning("action=probe_failed worker=%s cause=%s", message.worker, message.cause)
        if self._probes.failed(probe, message.worker):
            expected = "a worker that can read the source and has memory for a sample"
            self._refuse_probe(probe, message.worker, expected, f"worker {message.worker}: {message.cause}")

    def _refuse_probe(self, probe: ProbeId, worker: str, expected: str, got: str) -> None:
        (stream, incarnation), recipe = probe
        problem = Location(file="chain", line=0, path="", expected=expected, got=got)
        refusal = Probed(stream=stream, incarnation=incarnation, recipe=recipe, worker=worker, problems=(problem,))
        self._tell((stream, incarnation), refusal)

    def _probe_asked(self, message: AskProbe, now_s: float) -> None:
        stream_id = (message.stream, message.incarnation)
        if stream_id not in self._streams:
            return
        spec = self._streams[stream_id].batch_specs.get(message.recipe)
        if spec is None:
            self._probes.ask((stream_id, message.recipe))
            self._assign_probes(now_s)
            return
        # Asked again: the answer was lost on its way.
        known = Probed(
            stream=message.stream, incarnation=message.incarnation, recipe=message.recipe, worker="", spec=spec
        )
        self._tell(stream_id, known)

    def _probe_answered(self, message: ProbeAnswer) -> None:
        stream_id = (message.stream, message.incarnation)
        if not self._probes.answered((stream_id, message.recipe), message.worker):
            return
        if message.spec is not None:
            self._streams[stream_id].batch_specs[message.recipe] = message.spec
        self._tell(
            stream_id,
            Probed(
                stream=message.stream,
                incarnation=message.incarnation,
                recipe=message.recipe,
                worker=message.worker,
                spec=message.spec,
                problems=message.problems,
            ),
        )

    def _assign_probes(self, now_s: float) -> None:
        for probe in self._probes.waiting():
            source = self._streams[probe[0]].spec.source
            able = [name for name, worker in self._leases.workers.items() if source in worker.sources]
            if able:
                self._send_probe(probe, self._probes.choose(probe, able), now_s)

    def _send_probe(self, probe: ProbeId, worker: str, now_s: float) -> None:
        (stream, incarnation), recipe = probe
        self._probes.assign(probe, worker, now_s)
        self._open((stream, incarnation), worker)
        asking = Probe(stream=stream, incarnation=incarnation, recipe=recipe, skip=self._probes.skip(probe))
        self._send(worker.encode(), asking)

    def _step(self, event: Event, now_s: float, identity: bytes = b"") -> None:
        for action in self._leases.step(event, now_s):
            self._carry_out(action, now_s, identity)

    def _carry_out(self, action: Action, now_s: float, identity: bytes) -> None:
        match action:
            case Grant():
                self._open((action.lease.stream, action.lease.incarnation), action.worker)
                self._send(action.worker.encode(), Granted(lease=action.lease))
            case ReportLost():
                stream, incarnation = action.stream
                self._tell(action.stream, SamplesLost(stream=stream, incarnation=incarnation, lost=action.lost))
            case Condemn():
                log.warning("action=condemn worker=%s", action.worker)
                self._note = (
                    f"worker {action.worker} has been silent for {self._leases.worker_ttl_s:g} s and counts as dead"
                )
                self._streams_forget(action.worker)
                self._probe_loses_worker(WorkerGone(worker=action.worker, cause="silent", blame=True), now_s)
            case Retire():
                self._forget_stream(action.stream, now_s)
            case AskToJoin():
                self._send(action.worker.encode(), JoinAgain(worker=action.worker))
            case AskToRegister():
                self._send(identity, RegisterAgain(stream=action.stream[0], incarnation=action.stream[1]))

    def _open(self, stream_id: StreamId, worker: str) -> None:
        """Tell a worker what leases of this stream refer to, once for each thing there is to know."""
        if (opening := self._streams[stream_id].opening_for(worker)) is not None:
            self._send(worker.encode(), opening)

    def _tell(self, stream_id: StreamId, message: AnyMessage) -> None:
        if stream_id in self._streams:
            self._send(self._streams[stream_id].identity, message)

    def _tell_state(self, stream_id: StreamId) -> None:
        slices = self._leases.streams[stream_id]
        self._tell(
            stream_id,
            ServiceState(
                stream=stream_id[0],
                incarnation=stream_id[1],
                workers=len(self._leases.workers),
                idle_workers=self._leases.num_idle_workers(),
                waiting_slices=slices.num_waiting,
                leased_slices=len(slices.leased),
                note=self._note,
            ),
        )
