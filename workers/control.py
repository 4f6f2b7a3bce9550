"""A worker's talk with the dispatcher: joins, beats, takes work, leaves.

In:  control messages; what the worker's main thread has to say; SIGTERM, the wish that it leaves.
Out: work, through `inbox`; None there is the end.
A thread of its own: neither a slow transform nor a full disk delays a beat.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import time

from pipeline.errors import ConfigError, RemoteProtocolError
from pipeline.message import Location
from pipeline.messages import (
    AnyMessage,
    AskStream,
    CloseStream,
    Dismissed,
    Granted,
    Join,
    JoinAgain,
    Lease,
    Leaving,
    OpenStream,
    Probe,
    Refused,
    StreamDeclined,
    WorkerBeat,
)
from pipeline.transport import Context, Poller, Waker
from pipeline.wire import decode_message, encode_message
from workers.talker import Talker
from workers.worker_config import WorkerConfig

BEAT_S = 1.0
DRAIN_S = 10.0
"""A leaving worker waits no longer than this for the dispatcher to confirm that its last slice arrived."""
STALE_S = 60.0
"""After a restart of the dispatcher, a stream that it has not spoken of for this long has ended meanwhile."""
EXIT_REFUSED = 3

Work = OpenStream | CloseStream | Lease | Probe
StreamId = tuple[str, int]

log = logging.getLogger("headrace.worker")


class Control(Talker):
    """Hands work to the main thread through `inbox`, and says what that thread has done."""

    def __init__(self, config: WorkerConfig, context: Context, fingerprint: str) -> None:
        super().__init__("control")
        self.worker = config.name
        self.inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._pool = config.pool
        self._sources = tuple(config.sources)
        self._fingerprint = fingerprint
        self._dealer = context.dealer(config.connect, config.name)
        self._waker = Waker()
        self._outbox: queue.SimpleQueue[AnyMessage] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._holding: list[Lease] = []
        """Compared by identity: after JoinAgain a void lease in the inbox may have the number of a new one."""
        self._received = 0
        self._number = 0
        self._has_beaten = True
        """Since its last Join: a JoinAgain before that answers a beat from before it, and says nothing new."""
        self._leave_by_s: float | None = None
        self._dismissed = False
        self._open: set[StreamId] = set()
        self._stale: dict[StreamId, float] = {}
        """Streams opened by a dispatcher that has restarted since -> when to close them."""

    def leave_on_sigterm(self) -> None:
        """From now on SIGTERM means: finish what is in hand, then end. Call it in the main thread."""
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        self._waker.wake_on_signals()

    def say(self, message: AnyMessage) -> None:
        """Send a message to the dispatcher (from the main thread)."""
        self._outbox.put(message)
        self._waker.wake()

    def ask_stream(self, stream: str, incarnation: int, lease: int = 0) -> None:
        """The stream of a lease or probe was never opened here: have it opened, and give the lease back."""
        self.say(AskStream(worker=self.worker, stream=stream, incarnation=incarnation, lease=lease))

    def decline(self, work: Lease | Probe, error: ConfigError) -> None:
        """This worker can't serve the stream, as its own command line and host are: have others do it."""
        declined = StreamDeclined(
            worker=self.worker,
            stream=work.stream,
            incarnation=work.incarnation,
            problems=tuple(Location.of(problem) for problem in error.problems),
        )
        self.say(declined)

    def let_go(self, lease: Lease) -> None:
        """The lease is done with, and the dispatcher is told; harmless if it was void already."""
        with self._lock:
            self._holding = [held for held in self._holding if held is not lease]
        self._waker.wake()

    def holds(self, lease: Lease) -> bool:
        """False once the lease is void."""
        with self._lock:
            return any(held is lease for held in self._holding)

    def talk(self) -> None:
        poller = Poller()
        poller.add(self._dealer)
        poller.add(self._waker.read_fd)
        self._join()
        next_beat_s = time.monotonic() + BEAT_S
        while not self._dismissed:
            ready = poller.wait(next_beat_s - time.monotonic())
            if signal.SIGTERM in self._waker.clear():
                self._leave(time.monotonic())
            while not self._outbox.empty():
                self._send(self._outbox.get())
            while (frame := self._dealer.receive()) is not None:
                self._handle(frame)
            now_s = time.monotonic()
            if self._waker.read_fd in ready or now_s >= next_beat_s:
                self._beat(now_s)
                next_beat_s = now_s + BEAT_S
        self.inbox.put(None)

    def _send(self, message: AnyMessage) -> None:
        self._dealer.send(encode_message(message))

    def _join(self) -> None:
        self._has_beaten = False
        self._send(
            Join(
                worker=self.worker,
                host=socket.gethostname(),
                pid=os.getpid(),
                fingerprint=self._fingerprint,
                sources=self._sources,
                pool=self._pool,
            )
        )

    def _leave(self, now_s: float) -> None:
        """Want no further lease; said again with each beat until Dismissed comes, or DRAIN_S have passed."""
        if self._leave_by_s is None:
            self._leave_by_s = now_s + DRAIN_S
            log.info("action=leave worker=%s", self.worker)
        self._send(Leaving(worker=self.worker))

    def _beat(self, now_s: float) -> None:
        with self._lock:
            holding = tuple(lease.number for lease in self._holding)
        self._number += 1
        self._has_beaten = True
        self._send(WorkerBeat(worker=self.worker, number=self._number, received=self._received, holding=holding))
        if self._leave_by_s is not None:
            if now_s >= self._leave_by_s:
                # The main thread may be in a transform that does not end: it is not asked.
                log.warning("action=leave_undismissed worker=%s waited_s=%g", self.worker, DRAIN_S)
                os._exit(0)
            self._send(Leaving(worker=self.worker))
        for stream in [stream for stream, due_s in self._stale.items() if now_s >= due_s]:
            self._close(CloseStream(stream=stream[0], incarnation=stream[1]))

    def _handle(self, frame: bytes) -> None:
        try:
            message = decode_message(frame)
        except RemoteProtocolError as error:
            log.warning("action=refuse_message error=%s", error)
            return
        match message:
            case Granted(lease=lease):
                with self._lock:
                    self._holding.append(lease)
                self._received = max(self._received, lease.number)
                self.inbox.put(lease)
            case OpenStream():
                self._open.add((message.stream, message.incarnation))
                self._stale.pop((message.stream, message.incarnation), None)
                self.inbox.put(message)
            case CloseStream():
                self._close(message)
            case Probe():
                self.inbox.put(message)
            case JoinAgain():
                self._join_again(time.monotonic())
            case Dismissed():
                # Not asked for, it is of an earlier life of this name.
                self._dismissed = self._leave_by_s is not None
            case Refused():
                log.error("action=refused cause=%s", message.cause)
                os._exit(EXIT_REFUSED)
            case _:
                log.warning("action=refuse_message error=%s is not for a worker", type(message).__name__)

    def _join_again(self, now_s: float) -> None:
        # After a silence of the dispatcher every beat that waited for it is answered; one Join is enough, and each
        # further one would take back what was leased since.
        if not self._has_beaten:
            return
        with self._lock:
            self._holding.clear()
        self._received = 0
        self._number = 0
        self._stale |= dict.fromkeys(self._open - self._stale.keys(), now_s + STALE_S)
        self._join()
        if self._leave_by_s is not None:
            self._send(Leaving(worker=self.worker))

    def _close(self, message: CloseStream) -> None:
        self._open.discard((message.stream, message.incarnation))
        self._stale.pop((message.stream, message.incarnation), None)
        self.inbox.put(message)
