"""The dispatcher: matches slices to workers. Decodes, steps the pure cores, sends; holds soft state only.

In:  control messages of trainers, workers and pools, on one ROUTER socket.
Out: leases, probes and notices to them.
Never sees a pixel, never decides: `pipeline/leases.py` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pipeline.admission import accepted_timeline, check_progress
from pipeline.errors import RemoteProtocolError
from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Condemn,
    Event,
    Grant,
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
    PROTOCOL_VERSION,
    AnyMessage,
    AskProbe,
    CloseStream,
    Granted,
    Join,
    JoinAgain,
    Leave,
    Location,
    OpenStream,
    Probe,
    ProbeAnswer,
    Probed,
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
    StreamSpec,
    WorkerBeat,
    WorkerDied,
)
from pipeline.probes import Probes
from pipeline.recipe import BatchSpec
from pipeline.transport import Context, Poller
from pipeline.wire import decode_message, encode_message

TICK_S = 0.25
STATE_EVERY_S = 1.0
"""How often trainers are told what the service looks like."""

log = logging.getLogger("headrace.dispatcher")


class _Stream:
    """What the dispatcher remembers of a stream beside its slices."""

    def __init__(self, identity: bytes, spec: StreamSpec, batch_specs: dict[str, BatchSpec]) -> None:
        self.identity = identity
        self.spec = spec
        self.batch_specs = batch_specs
        self.opened: dict[str, int] = {}
        """Worker -> how many batch specs it was told of."""


class Dispatcher:
    """Message in, messages out; `send` carries them."""

    def __init__(self, send: Callable[[bytes, AnyMessage], None], leases: Leases) -> None:
        self._send = send
        self._leases = leases
        self._probes = Probes()
        self._streams: dict[StreamId, _Stream] = {}
        self._fingerprint = ""
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
        if now_s - self._last_state_s >= STATE_EVERY_S:
            self._last_state_s = now_s
            for stream_id in self._streams:
                self._tell_state(stream_id)

    def _handle(self, identity: bytes, message: AnyMessage, now_s: float) -> None:
        match message:
            case Register():
                self._register(identity, message, now_s)
            case StreamBeat():
                if known := self._leases.streams.get((message.stream, message.incarnation)):
                    check_progress(message, known.timeline)
                self._step(
                    StreamBeaten(
                        stream=(message.stream, message.incarnation),
                        number=message.number,
                        head_step=message.head_step,
                        arrived=int.from_bytes(message.arrived, "little"),
                        window=message.window,
                        quarantined=message.quarantined,
                    ),
                    now_s,
                    identity,
                )
            case AskProbe():
                if (message.stream, message.incarnation) in self._streams:
                    self._probes.ask(((message.stream, message.incarnation), message.recipe))
                    self._assign_probes()
            case StreamGoodbye():
                self._forget_stream((message.stream, message.incarnation), now_s)
            case StreamBroken():
                self._tell(
                    (message.stream, message.incarnation),
                    StreamFailed(stream=message.stream, incarnation=message.incarnation, cause=message.cause),
                )
            case Join() | WorkerBeat() | SliceFailed() | ProbeAnswer() | Leave() | WorkerDied():
                self._handle_worker(identity, message, now_s)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a dispatcher")

    def _handle_worker(
        self, identity: bytes, message: Join | WorkerBeat | SliceFailed | ProbeAnswer | Leave | WorkerDied, now_s: float
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
            case ProbeAnswer():
                self._probe_answered(message)
            case Leave():
                self._worker_gone(WorkerGone(worker=message.worker, cause="left", blame=False), now_s)
            case WorkerDied():
                at = ((message.stream, message.incarnation), message.position)
                self._worker_gone(
                    WorkerGone(
                        worker=message.worker,
                        cause=message.cause,
                        blame=True,
                        by_itself=message.by_itself,
                        at=at if message.position >= 0 else None,
                    ),
                    now_s,
                )

    def _register(self, identity: bytes, message: Register, now_s: float) -> None:
        stream_id, spec = (message.stream, message.incarnation), message.spec
        timeline = accepted_timeline(message)
        for known in [known for known in self._streams if known[0] == message.stream and known != stream_id]:
            self._forget_stream(known, now_s)
        if stream_id not in self._streams:
            log.info("action=register stream=%s incarnation=%d", *stream_id)
            self._streams[stream_id] = _Stream(identity, spec, dict(message.batch_specs))
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

    def _forget_stream(self, stream_id: StreamId, now_s: float) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            log.info("action=forget stream=%s incarnation=%d", *stream_id)
            self._probes.forget(stream_id)
            for worker in stream.opened:
                self._send(worker.encode(), CloseStream(stream=stream_id[0], incarnation=stream_id[1]))
            self._step(StreamLeft(stream=stream_id), now_s)

    def _join(self, message: Join, now_s: float) -> None:
        cause = ""
        if message.protocol_version != PROTOCOL_VERSION:
            cause = f"protocol version: the dispatcher speaks {PROTOCOL_VERSION}, the worker {message.protocol_version}"
        elif self._leases.workers and message.fingerprint != self._fingerprint:
            cause = (
                f"its bytes would differ\n  admitted here: {self._fingerprint}\n  this worker:   {message.fingerprint}"
            )
        if cause:
            log.error("action=refuse_worker worker=%s cause=%s", message.worker, cause)
            self._note = f"worker {message.worker} on {message.host} was refused: {cause}"
            self._send(message.worker.encode(), Refused(worker=message.worker, cause=cause))
            return
        log.info("action=join worker=%s host=%s pid=%d", message.worker, message.host, message.pid)
        self._fingerprint = message.fingerprint
        for stream in self._streams.values():
            stream.opened.pop(message.worker, None)
        self._step(WorkerJoined(worker=message.worker, sources=frozenset(message.sources)), now_s)
        self._assign_probes()

    def _worker_gone(self, event: WorkerGone, now_s: float) -> None:
        if event.blame:
            log.warning("action=worker_gone worker=%s cause=%s", event.worker, event.cause)
            self._note = f"worker {event.worker}: {event.cause}"
        self._step(event, now_s)
        self._probe_loses_worker(event)

    def _probe_loses_worker(self, event: WorkerGone) -> None:
        refused = self._probes.worker_gone(event.worker, event.cause, blame=event.blame, at=event.at)
        for (stream_id, recipe), why in refused:
            problem = Location(
                file="chain",
                line=0,
                path="",
                expected="a chain that workers survive",
                got=f"they died of it: {why}",
                way_out="",
            )
            self._tell(
                stream_id,
                Probed(
                    stream=stream_id[0],
                    incarnation=stream_id[1],
                    recipe=recipe,
                    worker=event.worker,
                    problems=(problem,),
                ),
            )
        self._assign_probes()

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

    def _assign_probes(self) -> None:
        for probe in self._probes.waiting():
            stream_id, recipe = probe
            source = self._streams[stream_id].spec.source
            able = [name for name, worker in self._leases.workers.items() if source in worker.sources]
            if able:
                self._probes.assign(probe, able[0])
                self._open(stream_id, able[0])
                skip = self._probes.skip(probe)
                asking = Probe(stream=stream_id[0], incarnation=stream_id[1], recipe=recipe, skip=skip)
                self._send(able[0].encode(), asking)

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
                self._probe_loses_worker(WorkerGone(worker=action.worker, cause="silent", blame=True))
            case Retire():
                self._forget_stream(action.stream, now_s)
            case AskToJoin():
                self._send(action.worker.encode(), JoinAgain(worker=action.worker))
            case AskToRegister():
                self._send(identity, RegisterAgain(stream=action.stream[0], incarnation=action.stream[1]))

    def _open(self, stream_id: StreamId, worker: str) -> None:
        """Tell a worker what leases of this stream refer to, once for each thing there is to know."""
        stream = self._streams[stream_id]
        if stream.opened.get(worker) != len(stream.batch_specs):
            stream.opened[worker] = len(stream.batch_specs)
            opening = OpenStream(
                stream=stream_id[0], incarnation=stream_id[1], spec=stream.spec, batch_specs=stream.batch_specs
            )
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


def serve(endpoint: str, *, lifeline_fd: int | None = None, on_ready: Callable[[], None] = lambda: None) -> None:
    """Dispatch until the lifeline's other end is closed, or for ever without one."""
    context = Context()
    try:
        router = context.router(endpoint)
        dispatcher = Dispatcher(lambda identity, message: router.send(identity, encode_message(message)), Leases())
        poller = Poller()
        poller.add(router)
        if lifeline_fd is not None:
            poller.add(lifeline_fd)
        on_ready()
        next_tick_s = time.monotonic() + TICK_S
        while True:
            ready = poller.wait(next_tick_s - time.monotonic())
            if lifeline_fd in ready:
                return
            while (received := router.receive()) is not None:
                dispatcher.receive(*received, time.monotonic())
            if time.monotonic() >= next_tick_s:
                dispatcher.tick(time.monotonic())
                next_tick_s = time.monotonic() + TICK_S
    finally:
        context.close()
