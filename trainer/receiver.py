"""The receiver: a thread that takes slices off the wire and puts them where they belong.

In:  slice frames from workers, notices from the dispatcher.
Out: complete batches in order, still as they came (unfinished); beats that say what has arrived.
The thread owns its sockets; the training loop talks to it through `next_batch` only.

Shapes: N batch, H height, W width, C channels.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pipeline.digests import SAMPLE_DIGEST_NBYTES, batch_digest, sample_digest
from pipeline.errors import ConfigError, PeerUnreachable, RemoteProtocolError, RunFailed
from pipeline.messages import (
    AskProbe,
    Probed,
    Register,
    RegisterAgain,
    Registered,
    SamplesLost,
    ServiceState,
    SliceHeader,
    StreamBeat,
    StreamFailed,
    StreamGoodbye,
    StreamSpec,
)
from pipeline.reassembly import Dropped, Placement, Reassembly
from pipeline.recipe import BatchSpec
from pipeline.timeline import BatchRange, Timeline
from pipeline.transport import Context, Poller, Pull, Waker, remove_socket_file
from pipeline.wire import decode_header, decode_message, encode_message, field_nbytes
from trainer.buffers import BufferPool
from trainer.policy import BadSamplePolicy

BEAT_S = 1.0
NEWS_EVERY_S = 0.02
"""Seconds between beats at least, however much arrives: a beat is cumulative, and the window is far longer."""
REGISTER_EVERY_S = 0.5
"""How often an unanswered registration is sent again."""
MAX_WRONG_DIGESTS = 20
"""Slices damaged on their way before the run ends: one is a cosmic ray, twenty are a broken machine."""
DISPATCHER_TTL_S = 30.0
"""Seconds without a word from the dispatcher before the user is told that it is gone."""


@dataclass(slots=True, kw_only=True)
class RawBatch:
    """A batch as it came over the wire; complete before anyone else sees it."""

    range: BatchRange
    images_NHWC: torch.Tensor
    labels_N: torch.Tensor
    sample_ids_N: torch.Tensor
    digests: list[bytes]

    @property
    def digest(self) -> str:
        """The batch's digest."""
        return batch_digest(self.digests, self.labels_N.numpy(), self.sample_ids_N.numpy())


def empty_batch(batch: BatchRange, spec: BatchSpec, pool: BufferPool) -> RawBatch:
    """Room for a batch of this spec."""
    num_samples, image = batch.stop - batch.start, spec.fields[0]
    return RawBatch(
        range=batch,
        images_NHWC=pool.take((num_samples, *image.shape), getattr(torch, image.dtype)),
        labels_N=torch.empty(num_samples, dtype=torch.int64),
        sample_ids_N=torch.empty(num_samples, dtype=torch.int64),
        digests=[b""] * num_samples,
    )


@dataclass(slots=True)
class ReceiverState:
    """What happened, for messages and summaries."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Slices not used, by reason: twins, old incarnations, wrong digests."""
    num_samples: int = 0
    read_s: float = 0.0
    make_s: float = 0.0
    """Seconds that workers spent reading, and decoding and transforming."""
    service: ServiceState | None = None
    last_arrival_s: float = field(default_factory=time.monotonic)
    last_heard_s: float = field(default_factory=time.monotonic)


class Receiver(threading.Thread):
    """Fills batches of one stream incarnation; `next_batch` gives them in order."""

    def __init__(
        self,
        *,
        stream: str,
        incarnation: int,
        spec: StreamSpec,
        timeline: Timeline,
        dispatcher: str,
        window: Callable[[BatchSpec], int],
        policy: BadSamplePolicy,
        pool: BufferPool,
        batch_spec: BatchSpec | None = None,
        is_service_alive: Callable[[], None] = lambda: None,
        on_trouble: Callable[[str], None] = lambda note: None,
    ) -> None:
        """`window`: batches in flight for a spec; `on_trouble`: told, in this thread, what went wrong out there."""
        super().__init__(name=f"receiver {stream}", daemon=True)
        self.state = ReceiverState()
        self.timeline = timeline
        self.batch_spec = batch_spec
        self._stream, self._incarnation, self._spec = stream, incarnation, spec
        self._id = (stream, incarnation)
        self._recipe = spec.timeline[-1].recipe
        self._window = window
        self._policy = policy
        self._pool = pool
        self._is_service_alive = is_service_alive
        self._on_trouble = on_trouble
        self._context = Context()
        self._pull = self._context.pull(spec.endpoint)
        self._dealer = self._context.dealer(dispatcher, f"{stream}#{incarnation}")
        self._waker = Waker()
        self._reassembly = Reassembly(timeline, stream=stream, incarnation=incarnation, window=0, head_step=0)
        self._batches: dict[int, RawBatch] = {}
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._ending = False
        self._registered = False
        self._num_wrong_digests = 0
        self._beat_number = 0
        self._last_beat_s = 0.0
        if batch_spec is not None:
            self._reassembly.window = window(batch_spec)

    # the training loop's side

    def next_batch(self, stall_timeout_s: float) -> RawBatch | None:
        """The head batch once it is complete; None at the end of the stream. Raises what ended the stream."""
        with self._changed:
            self.state.last_arrival_s = time.monotonic()  # the loop may have been away for long
            while True:
                self._raise_error()
                if self._reassembly.ended:
                    return None
                if self.batch_spec and self._reassembly.is_complete(self._reassembly.head_step):
                    batch = self._batches.pop(self._reassembly.take_head().step)
                    self._waker.wake()
                    return batch
                self._changed.wait(timeout=0.5)
                self._check_progress(stall_timeout_s)

    def wait_for_spec(self, timeout_s: float) -> BatchSpec:
        """What the stream delivers, as soon as a worker has probed it."""
        with self._changed:
            self.state.last_arrival_s = time.monotonic()
            while self.batch_spec is None:
                self._raise_error()
                self._changed.wait(timeout=0.5)
                self._check_progress(timeout_s)
            return self.batch_spec

    def end(self) -> None:
        """Say goodbye and close the sockets."""
        self._ending = True
        self._waker.wake()
        if self.is_alive():
            self.join(timeout=5.0)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _check_progress(self, stall_timeout_s: float) -> None:
        self._is_service_alive()
        now_s = time.monotonic()
        if now_s - self.state.last_heard_s > DISPATCHER_TTL_S:
            raise PeerUnreachable(f"the dispatcher has been silent for {DISPATCHER_TTL_S:g} s")
        if now_s - self.state.last_arrival_s > stall_timeout_s:
            raise RunFailed(f"no slice has arrived for {stall_timeout_s:g} s\n  {self._missing()}")

    def _missing(self) -> str:
        state = self.state.service
        if state is None:
            return "the dispatcher has not said anything about workers"
        slices = f"slices leased {state.leased_slices}, waiting {state.waiting_slices}"
        seen = f"workers {state.workers}, idle {state.idle_workers}, {slices}"
        hint = "no worker is connected" if state.workers == 0 else "workers are connected but deliver nothing"
        dropped = f"\n  dropped: {self._dropped()}" if self.state.dropped else ""
        return f"{hint} ({seen})" + (f"\n  last trouble: {state.note}" if state.note else "") + dropped

    def _dropped(self) -> str:
        return ", ".join(f"{count} slices ({reason})" for reason, count in self.state.dropped.most_common(5))

    # the thread's side

    def run(self) -> None:
        try:
            self._loop()
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._context.close()
            remove_socket_file(self._spec.endpoint)
            self._waker.close()

    def _loop(self) -> None:
        poller = Poller()
        for source in (self._dealer, self._pull, self._waker.read_fd):
            poller.add(source)
        next_beat_s = 0.0
        while not self._ending:
            if time.monotonic() >= next_beat_s:
                self._beat()
                self._last_beat_s = time.monotonic()
                next_beat_s = time.monotonic() + (BEAT_S if self._registered else REGISTER_EVERY_S)
            ready = poller.wait(next_beat_s - time.monotonic())
            self._waker.clear()
            # All slices before the beat: it must not deny what has arrived.
            has_news = self._receive_slices() or self._waker.read_fd in ready
            while (frame := self._dealer.receive()) is not None:
                self.state.last_heard_s = time.monotonic()
                has_news = self._handle(frame) or has_news
            if has_news:
                next_beat_s = min(next_beat_s, self._last_beat_s + NEWS_EVERY_S)
        self._dealer.send(encode_message(StreamGoodbye(stream=self._stream, incarnation=self._incarnation)))
        time.sleep(0.02)  # LINGER is 0: let the goodbye out; if it is lost, the dispatcher's ttl ends the stream

    def _beat(self) -> None:
        self._beat_number += 1
        with self._changed:
            head_step, arrived, window = self._reassembly.head_step, self._reassembly.arrived(), self._reassembly.window
        quarantined = self._policy.quarantined_from(self.timeline.start_of(head_step))
        if self._registered:
            beat = StreamBeat(
                stream=self._stream,
                incarnation=self._incarnation,
                number=self._beat_number,
                head_step=head_step,
                arrived=arrived,
                window=window,
                quarantined=quarantined,
            )
            self._dealer.send(encode_message(beat))
            if self.batch_spec is None:  # with each beat, until it is answered
                probe = AskProbe(stream=self._stream, incarnation=self._incarnation, recipe=self._recipe)
                self._dealer.send(encode_message(probe))
            return
        registration = Register(
            stream=self._stream,
            incarnation=self._incarnation,
            spec=self._spec,
            head_step=head_step,
            arrived=arrived,
            window=window,
            quarantined=quarantined,
            batch_specs={self._recipe: self.batch_spec} if self.batch_spec else {},
        )
        self._dealer.send(encode_message(registration))

    def _handle(self, frame: bytes) -> bool:
        """Take a notice; True if the dispatcher should hear from us at once."""
        try:
            message = decode_message(frame)
        except RemoteProtocolError:
            self._drop("malformed notice")
            return False
        if (getattr(message, "stream", None), getattr(message, "incarnation", None)) != self._id:
            self._drop("notice for another stream")
            return False
        match message:
            case Registered():
                is_new = not self._registered
                self._registered = True
                return is_new
            case RegisterAgain():
                self._registered = False
                return True
            case Probed(recipe=self._recipe):
                self._probed(message)
                return True
            case SamplesLost(lost=lost):
                with self._changed:
                    awaited = [loss for loss in lost if self._reassembly.awaits(loss.position)]
                self._policy.lost(awaited)  # what has arrived after all was used as it is
                return True
            case StreamFailed(cause=cause):
                raise RunFailed(cause)
            case ServiceState(note=note):
                if note and (self.state.service is None or self.state.service.note != note):
                    self._on_trouble(note)
                self.state.service = message
                return False
            case _:
                self._drop("notice not for a trainer")
                return False

    def _probed(self, probed: Probed) -> None:
        if probed.spec is None:
            raise ConfigError(problem.problem() for problem in probed.problems)
        for spec in probed.spec.fields:
            field_nbytes(spec, 1)
        with self._changed:
            if self.batch_spec is None:
                self.batch_spec = probed.spec
                self._reassembly.window = self._window(probed.spec)
                self._changed.notify_all()

    def _receive_slices(self) -> bool:
        """Place every slice that waits; True if there was one."""
        received = False
        while (frame := self._pull.receive_header()) is not None:
            received = True
            try:
                header = decode_header(frame)
            except RemoteProtocolError:
                self._pull.skip_rest()
                self._drop("malformed")
                continue
            placement = self._placement(header)
            if isinstance(placement, Dropped):
                self._pull.skip_rest()
                self._drop(placement.reason)
            else:
                self._place(header, placement, self._pull)
        return received

    def _placement(self, header: SliceHeader) -> Placement | Dropped:
        if header.quarantined != self._policy.quarantined_in(header.start, header.stop):
            return Dropped("made before a sample of it was quarantined")
        with self._changed:
            return self._reassembly.place(header)

    def _place(self, header: SliceHeader, placement: Placement, pull: Pull) -> None:
        assert self.batch_spec is not None
        if header.fields != self.batch_spec.fields:
            pull.skip_rest()
            self._drop("wrong_fields")
            return
        batch = self._batches.get(placement.step)
        if batch is None:
            batch = empty_batch(self.timeline.batch(placement.step), self.batch_spec, self._pool)
        rows = slice(placement.first_row, placement.first_row + header.stop - header.start)
        tensors = (batch.images_NHWC[rows], batch.labels_N[rows])
        for tensor in tensors:
            memory = tensor.numpy().data.cast("B")
            if not pull.has_more() or pull.receive_into(memory) != memory.nbytes:
                pull.skip_rest()
                self._drop("wrong_size")
                return
        pull.skip_rest()
        digests = split_digests(header)
        if [sample_digest(image) for image in tensors[0].numpy()] != digests:
            self._drop(f"wrong digest from {header.worker}")
            self._on_trouble(f"a slice of worker {header.worker} arrived with other bytes than it was sent with")
            self._num_wrong_digests += 1
            if self._num_wrong_digests > MAX_WRONG_DIGESTS:
                raise RunFailed(f"more than {MAX_WRONG_DIGESTS} slices arrived damaged\n  dropped: {self._dropped()}")
            return
        self._accept(header, placement, batch, digests, rows)

    def _accept(
        self, header: SliceHeader, placement: Placement, batch: RawBatch, digests: list[bytes], rows: slice
    ) -> None:
        batch.digests[rows] = digests
        batch.sample_ids_N[rows] = torch.tensor(header.sample_ids, dtype=torch.int64)
        self.state.num_samples += len(digests)
        self.state.read_s += header.read_s
        self.state.make_s += header.make_s
        self._policy.delivered(len(digests), header.bad)
        with self._changed:
            self._batches[placement.step] = batch
            self.state.last_arrival_s = time.monotonic()
            if self._reassembly.mark(header, placement):
                self._changed.notify_all()

    def _drop(self, reason: str) -> None:
        self.state.dropped[reason] += 1


def split_digests(header: SliceHeader) -> list[bytes]:
    """The header's digests, one a sample."""
    size = SAMPLE_DIGEST_NBYTES
    return [header.digests[start : start + size] for start in range(0, len(header.digests), size)]
