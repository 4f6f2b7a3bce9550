"""The dispatcher: matches slices to workers. Decodes, steps the pure cores, sends; holds soft state only.

In:  control messages of trainers, workers, pools and operators, as frames; the time in seconds.
Out: leases, probes, orders, notices and answers to them, through `send`.
No sockets, no clock (`pipeline/serve.py` has them). Never sees a pixel, never decides: `pipeline/leases.py` does, and
for pools and operators `pipeline/pools.py`, `pipeline/scaling.py` and `pipeline/operators.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline.admission import accepted_timeline, check_progress, other_fingerprint, worker_refusal
from pipeline.errors import RemoteProtocolError
from pipeline.known_stream import KnownStream, trainer_identity
from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Condemn,
    Dismiss,
    Event,
    Grant,
    LeaseRefused,
    ReportLost,
    Retire,
    SliceGivenBack,
    StreamId,
    StreamLeft,
    Ticked,
    WorkerBeaten,
    WorkerDeclined,
    WorkerGone,
    WorkerJoined,
    WorkerLeaving,
)
from pipeline.lease_workers import death
from pipeline.leases import Leases
from pipeline.messages import (
    AnyMessage,
    AskProbe,
    AskStream,
    CloseStream,
    Dismissed,
    Granted,
    Join,
    JoinAgain,
    Leaving,
    Lost,
    OperationAnswer,
    ProbeAnswer,
    ProbeFailed,
    Refused,
    Register,
    RegisterAgain,
    Registered,
    SamplesLost,
    SliceFailed,
    StreamBeat,
    StreamBroken,
    StreamDeclined,
    StreamFailed,
    StreamGoodbye,
    TrainerMessage,
    WorkerBeat,
    WorkerMessage,
)
from pipeline.operators import Operators
from pipeline.pools import Pools
from pipeline.probing import Probing
from pipeline.scaling import Scaling
from pipeline.service_messages import AskScale, AskStatus, AskStop, AskSwap, PoolBeat, WorkerDied
from pipeline.service_status import Rates, service_state, status
from pipeline.trainer_events import progress, registration
from pipeline.wire import decode_message

STATE_EVERY_S = 1.0
"""How often trainers are told what the service looks like."""
MAX_PROBLEMS = 3
"""Told of a worker that declined a stream: the first ones say enough."""

log = logging.getLogger("headrace.dispatcher")


class Dispatcher:
    """Message in, messages out; `send` carries them."""

    def __init__(self, send: Callable[[bytes, AnyMessage], None], leases: Leases, started_s: float = 0.0) -> None:
        self._send = send
        self._leases = leases
        self._started_s = started_s
        self._streams: dict[StreamId, KnownStream] = {}
        self._probing = Probing(self._streams, leases, self._send_work, self._tell)
        self._pools = Pools()
        self._scaling = Scaling(self._pools, leases, self._streams)
        self._operators = Operators(self._streams, self._pools, send)
        self._rates = Rates()
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
            if self.num_refused_messages <= 20 or self.num_refused_messages % 1000 == 0:  # a flood must not fill a disk
                log.warning("action=refuse_message peer=%r error=%s", identity, error)

    def tick(self, now_s: float, *, drained: bool = True) -> None:
        """Time passed; `drained`: every message that had arrived was received, so silence can be judged."""
        self._step(Ticked(drained=drained), now_s)
        self._probing.tick(now_s)
        for order in self._scaling.tick(now_s):
            self._send(*order)
        if now_s - self._last_state_s >= STATE_EVERY_S:
            self._last_state_s = now_s
            self._pools.tick(now_s)
            self._rates.look({name: worker.num_delivered for name, worker in self._leases.workers.items()}, now_s)
            fingerprint = self._binding_fingerprint() or ""
            for stream_id, stream in self._streams.items():
                source = stream.spec.source
                self._tell(stream_id, service_state(stream_id, source, self._leases, self._note, fingerprint))

    def _handle(self, identity: bytes, message: AnyMessage, now_s: float) -> None:
        match message:
            case (
                WorkerBeat() | Join() | Leaving() | SliceFailed() | AskStream() | StreamDeclined()
                | ProbeAnswer() | ProbeFailed()
            ):  # fmt: skip
                if message.worker.encode() != identity:
                    raise RemoteProtocolError(f"a peer speaks for worker {message.worker!r}")
                self._handle_worker(message, now_s)
            case StreamBroken():
                self._broken(identity, message)
            case WorkerDied():
                self._worker_died(identity, message, now_s)
            case Register() | StreamBeat() | AskProbe() | OperationAnswer() | StreamGoodbye():
                if identity != trainer_identity(message.stream, message.incarnation):
                    raise RemoteProtocolError(f"a peer speaks for the trainer of stream {message.stream!r}")
                self._handle_trainer(identity, message, now_s)
            case PoolBeat():
                if message.pool.encode() != identity:
                    raise RemoteProtocolError(f"a peer speaks for pool {message.pool!r}")
                self._pool_beaten(identity, message, now_s)
            case AskSwap() | AskStop():
                self._operators.ask_trainer(identity, message)
            case AskScale():
                self._operators.ask_scale(identity, message, now_s)
            case AskStatus():
                self._send(identity, self._status(message.operation, now_s))
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a dispatcher")

    # trainers

    def _handle_trainer(self, identity: bytes, message: TrainerMessage, now_s: float) -> None:
        match message:
            case StreamBeat():
                self._stream_beaten(identity, message, now_s)
            case Register():
                self._register(identity, message, now_s)
            case AskProbe():
                self._probing.asked(message, now_s)
            case OperationAnswer():
                self._operators.trainer_answered(message)
            case StreamGoodbye():
                self._forget_stream((message.stream, message.incarnation), now_s)

    def _register(self, identity: bytes, message: Register, now_s: float) -> None:
        stream_id = (message.stream, message.incarnation)
        try:
            timeline = accepted_timeline(message)
            if any(name == message.stream and number > message.incarnation for name, number in self._streams):
                raise RemoteProtocolError(f"stream {message.stream}: a trainer that started later serves it now")
            if difference := other_fingerprint(message.fingerprint, self._binding_fingerprint()):
                raise RemoteProtocolError(f"stream {message.stream}: {difference}")
        except RemoteProtocolError as error:
            self._refuse_stream(identity, stream_id, error)
            raise
        for known in [known for known in self._streams if known[0] == message.stream and known != stream_id]:
            self._forget_stream(known, now_s)
        if (stream := self._streams.get(stream_id)) is None:
            log.info("action=register stream=%s incarnation=%d revision=%d", *stream_id, message.revision)
            stream = self._streams[stream_id] = KnownStream(stream_id, message)
        elif message.revision > stream.revision:
            log.info("action=change stream=%s incarnation=%d revision=%d", *stream_id, message.revision)
            stream.register(message)
        registered = Registered(stream=message.stream, incarnation=message.incarnation, revision=stream.revision)
        self._tell(stream_id, registered)
        self._step(registration(message, timeline), now_s)

    def _stream_beaten(self, identity: bytes, message: StreamBeat, now_s: float) -> None:
        stream_id = (message.stream, message.incarnation)
        stream = self._streams.get(stream_id)
        if stream is not None and stream.revision >= message.revision:
            try:
                check_progress(message, self._leases.streams[stream_id].timeline)
            except RemoteProtocolError as error:
                self._refuse_stream(identity, stream_id, error)
                raise
            stream.report = message.report or stream.report
        self._step(progress(message), now_s, identity)

    def _refuse_stream(self, identity: bytes, stream_id: StreamId, error: RemoteProtocolError) -> None:
        """Tell who sent it, who may not be the stream's trainer: it would wait for ever."""
        cause = f"the dispatcher refused the stream: {error}"
        self._send(identity, StreamFailed(stream=stream_id[0], incarnation=stream_id[1], cause=cause))

    def _forget_stream(self, stream_id: StreamId, now_s: float) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            log.info("action=forget stream=%s incarnation=%d", *stream_id)
            self._probing.forget(stream_id)
            for worker in stream.opened:
                self._send(worker.encode(), CloseStream(stream=stream_id[0], incarnation=stream_id[1]))
            self._step(StreamLeft(stream=stream_id), now_s)

    # workers

    def _handle_worker(self, message: WorkerMessage, now_s: float) -> None:
        match message:
            case WorkerBeat():
                self._step(
                    WorkerBeaten(
                        worker=message.worker, number=message.number, received=message.received, holding=message.holding
                    ),
                    now_s,
                )
            case Join():
                self._join(message, now_s)
            case Leaving():
                self._step(WorkerLeaving(worker=message.worker), now_s)
            case SliceFailed(worker=worker, lease=lease, position=position, cause=cause):
                log.warning("action=read_failed worker=%s position=%d cause=%s", worker, position, cause)
                self._note = f"worker {worker} could not read position {position}: {cause}"
                failed = Lost(position=position, attempt=message.attempt, cause=cause, bad_before=message.bad_before)
                self._step(SliceGivenBack(worker=worker, lease=lease, failed=failed), now_s)
            case AskStream():
                self._open_again(message, now_s)
            case StreamDeclined():
                self._declined(message, now_s)
            case ProbeAnswer():
                self._probing.answered(message)
            case ProbeFailed():
                self._probing.failed(message)

    def _join(self, message: Join, now_s: float) -> None:
        if cause := worker_refusal(message, self._binding_fingerprint()):
            log.error("action=refuse_worker worker=%s cause=%s", message.worker, cause)
            self._note = f"worker {message.worker} on {message.host} was refused: {cause}"
            self._refused.add(message.worker)
            self._send(message.worker.encode(), Refused(worker=message.worker, cause=cause))
            return
        log.info(
            "action=join worker=%s host=%s pid=%d pool=%s", message.worker, message.host, message.pid, message.pool
        )
        self._fingerprint = message.fingerprint
        self._streams_forget(message.worker)
        self._pools.joined(message)
        self._step(WorkerJoined(worker=message.worker, sources=frozenset(message.sources)), now_s)
        self._probing.assign(now_s)

    def _binding_fingerprint(self) -> str | None:
        """What every worker here must have, None while anyone may come."""
        promised = next((stream.fingerprint for stream in self._streams.values() if stream.fingerprint), "")
        is_bound = bool(self._leases.workers) or any(stream.is_begun for stream in self._streams.values())
        return promised or (self._fingerprint if is_bound else None)

    def _worker_died(self, identity: bytes, message: WorkerDied, now_s: float) -> None:
        member = self._pools.member(message.worker)
        if member is not None and member.pool and member.pool.encode() != identity:
            raise RemoteProtocolError(f"a peer speaks for the pool of worker {message.worker!r}")
        self._worker_gone(death(message), now_s)

    def _worker_gone(self, event: WorkerGone, now_s: float) -> None:
        if event.blame:
            log.warning("action=worker_gone worker=%s cause=%s", event.worker, event.cause)
            if event.worker not in self._refused:  # why it was refused says more than how it ended
                self._note = f"worker {event.worker}: {event.cause}"
        self._refused.discard(event.worker)
        self._pools.gone(event.worker)
        self._streams_forget(event.worker)
        self._step(event, now_s)
        self._probing.worker_gone(event, now_s)

    def _condemn(self, action: Condemn, now_s: float) -> None:
        if not action.in_peace:
            log.warning("action=condemn worker=%s", action.worker)
            silence = f"has been silent for {self._leases.worker_ttl_s:g} s and counts as dead"
            self._note = f"worker {action.worker} {silence}"
        if (order := self._pools.condemn(action.worker)) is not None:
            self._send(*order)
        self._streams_forget(action.worker)
        gone = WorkerGone(worker=action.worker, cause="silent", blame=not action.in_peace)
        self._probing.worker_gone(gone, now_s)

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
        self._probing.send_again(message.worker, stream_id, now_s)

    def _declined(self, message: StreamDeclined, now_s: float) -> None:
        stream_id = (message.stream, message.incarnation)
        worker, member = self._leases.workers.get(message.worker), self._pools.member(message.worker)
        if worker is None or member is None or stream_id in worker.declined or stream_id not in self._streams:
            return
        problems = "\n".join(str(problem.problem()) for problem in message.problems[:MAX_PROBLEMS])
        who = f"worker {message.worker} of pool {member.pool or '(none)'} on {member.host}"
        cause = f"{who} declined stream {message.stream}\n{problems}"
        log.warning("action=decline worker=%s stream=%s incarnation=%d cause=%s", message.worker, *stream_id, cause)
        self._note = cause
        self._step(WorkerDeclined(worker=message.worker, stream=stream_id, cause=cause), now_s)
        self._probing.declined(message.worker, stream_id, now_s)

    def _broken(self, identity: bytes, message: StreamBroken) -> None:
        if identity.decode(errors="replace") not in self._leases.workers:
            raise RemoteProtocolError(f"a peer that is no worker says that stream {message.stream!r} is broken")
        failed = StreamFailed(stream=message.stream, incarnation=message.incarnation, cause=message.cause)
        self._tell((message.stream, message.incarnation), failed)

    # pools and operators

    def _pool_beaten(self, identity: bytes, beat: PoolBeat, now_s: float) -> None:
        for worker in self._pools.beaten(identity, beat, now_s):
            log.warning("action=worker_gone worker=%s cause=its pool does not know it", worker)
            self._worker_gone(WorkerGone(worker=worker, cause="its pool does not know it", blame=False), now_s)
        for order in self._pools.orders(beat.pool):
            self._send(identity, order)
        self._operators.pool_beaten(beat.pool)

    def _status(self, operation: str, now_s: float) -> AnyMessage:
        return status(
            operation=operation,
            up_s=now_s - self._started_s,
            num_refused_messages=self.num_refused_messages,
            note=self._note,
            streams=self._streams,
            leases=self._leases,
            pools=self._pools,
            rates=self._rates,
            now_s=now_s,
        )

    # what leases ask for

    def _step(self, event: Event, now_s: float, identity: bytes = b"") -> None:
        for action in self._leases.step(event, now_s):
            self._carry_out(action, now_s, identity)

    def _carry_out(self, action: Action, now_s: float, identity: bytes) -> None:
        match action:
            case Grant(worker=worker, lease=lease):
                self._send_work((lease.stream, lease.incarnation), worker, Granted(lease=lease))
            case ReportLost():
                stream, incarnation = action.stream
                self._tell(action.stream, SamplesLost(stream=stream, incarnation=incarnation, lost=action.lost))
            case Condemn():
                self._condemn(action, now_s)
            case Dismiss(worker=worker):
                self._send(worker.encode(), Dismissed(worker=worker))
            case Retire():
                self._forget_stream(action.stream, now_s)
            case AskToJoin():
                self._send(action.worker.encode(), JoinAgain(worker=action.worker))
            case AskToRegister():
                self._send(identity, RegisterAgain(stream=action.stream[0], incarnation=action.stream[1]))

    def _send_work(self, stream_id: StreamId, worker: str, work: AnyMessage) -> None:
        """Send a lease or probe, after what it refers to: a worker is told once of each thing there is to know."""
        head_step = self._leases.streams[stream_id].head_step
        if (opening := self._streams[stream_id].opening_for(worker, head_step)) is not None:
            self._send(worker.encode(), opening)
        self._send(worker.encode(), work)

    def _tell(self, stream_id: StreamId, message: AnyMessage) -> None:
        if stream_id in self._streams:
            self._send(self._streams[stream_id].identity, message)
