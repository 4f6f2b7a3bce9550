"""A worker: asks for leases, makes slices, sends them to their trainers. Owns nothing.

In:  control messages from the dispatcher.
Out: slices to trainers; beats, failures and probe answers to the dispatcher.
Two threads: the main one makes and sends slices, the other talks with the dispatcher, so that a slow transform never
delays a beat. Never imports torch.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback

from pipeline.errors import HeadraceError, RemoteProtocolError
from pipeline.messages import (
    AnyMessage,
    AskStream,
    CloseStream,
    Granted,
    Join,
    JoinAgain,
    Lease,
    OpenStream,
    Probe,
    ProbeAnswer,
    ProbeFailed,
    Refused,
    SliceFailed,
    StreamBroken,
    WorkerBeat,
)
from pipeline.recipe import BatchSpec
from pipeline.transport import Context, Poller, Push, Waker
from pipeline.wire import decode_message, encode_message, encode_slice
from workers.environment import die_with_parent, tune_malloc
from workers.fingerprint import fingerprint
from workers.produce import ReadFailed
from workers.progress import ProgressSlot
from workers.streams import OpenStreams
from workers.worker_config import WorkerConfig

BEAT_S = 1.0
EXIT_BROKEN = 1
EXIT_REFUSED = 3

log = logging.getLogger("headrace.worker")


class Control(threading.Thread):
    """Talks with the dispatcher: joins, beats, hands work to the main thread through `inbox`."""

    def __init__(self, config: WorkerConfig, context: Context, fingerprint: str) -> None:
        super().__init__(name="control", daemon=True)
        self.worker = config.name
        self.inbox: queue.SimpleQueue[OpenStream | CloseStream | Lease | Probe] = queue.SimpleQueue()
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

    def say(self, message: AnyMessage) -> None:
        """Send a message to the dispatcher (from the main thread)."""
        self._outbox.put(message)
        self._waker.wake()

    def ask_stream(self, stream: str, incarnation: int, lease: int = 0) -> None:
        """The stream of a lease or probe was never opened here: have it opened, and give the lease back."""
        self.say(AskStream(worker=self.worker, stream=stream, incarnation=incarnation, lease=lease))

    def let_go(self, lease: Lease) -> None:
        """The lease is done with, and the dispatcher is told; harmless if it was void already."""
        with self._lock:
            self._holding = [held for held in self._holding if held is not lease]
        self._waker.wake()

    def holds(self, lease: Lease) -> bool:
        """False once the lease is void."""
        with self._lock:
            return any(held is lease for held in self._holding)

    def run(self) -> None:
        try:
            self._talk()
        except BaseException:
            # Without this thread the worker would be deaf and dumb for ever; its pool reports the exit and replaces it.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(EXIT_BROKEN)

    def _talk(self) -> None:
        poller = Poller()
        poller.add(self._dealer)
        poller.add(self._waker.read_fd)
        self._join()
        next_beat_s = time.monotonic() + BEAT_S
        while True:
            ready = poller.wait(next_beat_s - time.monotonic())
            self._waker.clear()
            while not self._outbox.empty():
                self._dealer.send(encode_message(self._outbox.get()))
            while (frame := self._dealer.receive()) is not None:
                self._handle(frame)
            if self._waker.read_fd in ready or time.monotonic() >= next_beat_s:
                self._beat()
                next_beat_s = time.monotonic() + BEAT_S

    def _join(self) -> None:
        self._dealer.send(
            encode_message(
                Join(
                    worker=self.worker,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    fingerprint=self._fingerprint,
                    sources=self._sources,
                )
            )
        )

    def _beat(self) -> None:
        with self._lock:
            holding = tuple(lease.number for lease in self._holding)
        self._number += 1
        self._dealer.send(
            encode_message(
                WorkerBeat(worker=self.worker, number=self._number, received=self._received, holding=holding)
            )
        )

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
            case OpenStream() | CloseStream() | Probe():
                self.inbox.put(message)
            case JoinAgain():
                with self._lock:
                    self._holding.clear()
                self._received = 0
                self._number = 0
                self._join()
            case Refused():
                log.error("action=refused cause=%s", message.cause)
                os._exit(EXIT_REFUSED)
            case _:
                log.warning("action=refuse_message error=%s is not for a worker", type(message).__name__)


def run(config: WorkerConfig) -> None:
    """A worker process, until its pool ends it."""
    die_with_parent()
    tune_malloc()
    # Ctrl-C reaches the whole terminal group; the pool decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    trace = open(config.trace_path, "w")  # noqa: SIM115 (open as long as the process)
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR1, trace)
    progress = ProgressSlot(config.progress_path)
    streams = OpenStreams(config.sources, config.plugins, config.base, config.name, progress)
    context = Context()
    control = Control(config, context, fingerprint())
    control.start()
    gc.freeze()  # what was imported lives as long as the process
    sockets: dict[str, Push] = {}
    while True:
        _handle(control.inbox.get(), control, streams, context, sockets, progress)


def _handle(
    item: OpenStream | CloseStream | Lease | Probe,
    control: Control,
    streams: OpenStreams,
    context: Context,
    sockets: dict[str, Push],
    progress: ProgressSlot,
) -> None:
    match item:
        case OpenStream():
            streams.open(item)
        case CloseStream():
            streams.close((item.stream, item.incarnation))
            for endpoint in set(sockets) - streams.endpoints():
                sockets.pop(endpoint).close()
        case Probe() if not streams.is_open((item.stream, item.incarnation)):
            control.ask_stream(item.stream, item.incarnation)
        case Probe():
            answer = _guarded_probe(item, streams, control)
            progress.end_slice(delivered=False)
            if answer is not None:
                control.say(answer)
        case Lease():
            delivered = False
            data_endpoint = streams.endpoint(item)
            if data_endpoint is None:
                if control.holds(item):
                    control.ask_stream(item.stream, item.incarnation, item.number)
            elif control.holds(item):
                if data_endpoint not in sockets:
                    sockets[data_endpoint] = context.push(data_endpoint)
                delivered = _make_and_send(item, control, streams, sockets[data_endpoint])
            progress.end_slice(delivered=delivered)
            control.let_go(item)


def _make_and_send(lease: Lease, control: Control, streams: OpenStreams, push: Push) -> bool:
    try:
        header, arrays = streams.make(lease)
    except ReadFailed as error:
        control.say(SliceFailed(worker=control.worker, lease=lease.number, position=error.position, cause=str(error)))
    except Exception as error:
        cause = str(error) if isinstance(error, HeadraceError) else "".join(traceback.format_exception(error))
        control.say(StreamBroken(stream=lease.stream, incarnation=lease.incarnation, cause=cause))
    else:
        return push.send(encode_slice(header, arrays))
    return False


def _guarded_probe(probe: Probe, streams: OpenStreams, control: Control) -> ProbeAnswer | ProbeFailed | None:
    try:
        outcome = streams.probe((probe.stream, probe.incarnation), probe.recipe, probe.skip)
    except (OSError, MemoryError) as error:
        return ProbeFailed(
            worker=control.worker,
            stream=probe.stream,
            incarnation=probe.incarnation,
            recipe=probe.recipe,
            cause=str(error) or type(error).__name__,
        )
    except Exception as error:
        cause = str(error) if isinstance(error, HeadraceError) else "".join(traceback.format_exception(error))
        control.say(StreamBroken(stream=probe.stream, incarnation=probe.incarnation, cause=cause))
        return None
    return ProbeAnswer(
        worker=control.worker,
        stream=probe.stream,
        incarnation=probe.incarnation,
        recipe=probe.recipe,
        spec=outcome if isinstance(outcome, BatchSpec) else None,
        problems=() if isinstance(outcome, BatchSpec) else outcome,
    )
