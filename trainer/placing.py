"""Placing: arriving slices go where they belong in their batch, or are dropped and counted.

In:  slice frames, read from the trainer's data socket straight into a batch's memory.
Out: complete batches in order.
Never waits, never sends. What two threads touch (the reassembly and the batches) is touched under `lock` only.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import torch

from pipeline.digests import sample_digest
from pipeline.errors import RemoteProtocolError, RunFailed
from pipeline.reassembly import Dropped, Placement, Reassembly
from pipeline.slice_header import SliceHeader
from pipeline.transport import Pull
from pipeline.wire import decode_header
from trainer.buffers import BufferPool
from trainer.course import Course
from trainer.notes import Notes
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import RawBatch, ReceiverState, empty_batch, split_digests

MAX_WRONG_DIGESTS = 20
AMONG_SLICES = 1_000
"""So many slices damaged on their way, of so many that came last, before the run ends: one a day is a cosmic ray, one
in fifty a broken machine. Chosen."""
NOTE_DROPPED_FROM = 100
"""Dropped slices of one reason, and then ten times as many, of which the user is told."""
USUAL = ("twin", "wrong_recipe", "outside_window", "wrong_incarnation", "made before a sample of it was quarantined")
"""Reasons that hedging, swaps and restarts bring about by themselves."""


class Placing:
    """Each position is placed once, with the bytes that its worker sent."""

    def __init__(
        self,
        *,
        course: Course,
        reassembly: Reassembly,
        policy: BadSamplePolicy,
        pool: BufferPool,
        state: ReceiverState,
        notes: Notes,
        lock: threading.Condition,
    ) -> None:
        self._course = course
        self._reassembly = reassembly
        self._policy = policy
        self._pool = pool
        self._state = state
        self._notes = notes
        self._lock = lock
        self._batches: dict[int, RawBatch] = {}
        self._num_checked = 0
        self._damaged: deque[int] = deque(maxlen=MAX_WRONG_DIGESTS + 1)
        """Which of the checked slices had other bytes than they were sent with."""

    def maybe_take(self) -> RawBatch | None:
        """The head batch, if it is complete; the caller holds the lock."""
        if self._reassembly.ended or not self._reassembly.is_complete(self._reassembly.head_step):
            return None
        batch = self._batches.pop(self._reassembly.take_head().step)
        self._state.num_taken += len(batch.digests)
        return batch

    def receive(self, pull: Pull) -> bool:
        """Place every slice that waits; True if there was one."""
        received = False
        while (frame := pull.receive_header()) is not None:
            received = True
            try:
                header = decode_header(frame)
            except RemoteProtocolError:
                pull.skip_rest()
                self.drop("malformed")
                continue
            placement = self._placement(header)
            if isinstance(placement, Dropped):
                pull.skip_rest()
                self.drop(placement.reason)
            else:
                self._place(header, placement, pull)
        return received

    def drop(self, reason: str) -> None:
        """Something that arrived is not used, and why."""
        self._state.dropped[reason] += 1
        count = self._state.dropped[reason]
        if reason not in USUAL and count >= NOTE_DROPPED_FROM and _is_power_of_ten(count):
            self._notes.tell("slices_dropped", f"{count} slices were dropped: {reason}")

    def _placement(self, header: SliceHeader) -> Placement | Dropped:
        if header.quarantined != self._policy.quarantined_in(header.start, header.stop):
            return Dropped("made before a sample of it was quarantined")
        with self._lock:
            return self._reassembly.place(header)

    def _place(self, header: SliceHeader, placement: Placement, pull: Pull) -> None:
        spec = self._course.batch_specs.get(header.recipe)
        if spec is None or header.fields != spec.fields:
            pull.skip_rest()
            self.drop("wrong_fields")
            return
        batch = self._batches.get(placement.step)
        if batch is None:
            batch = empty_batch(self._course.timeline.batch(placement.step), spec, self._pool)
        rows = slice(placement.first_row, placement.first_row + header.stop - header.start)
        tensors = (batch.images_NHWC[rows], batch.labels_N[rows])
        for tensor in tensors:
            memory = tensor.numpy().data.cast("B")
            if not pull.has_more() or pull.receive_into(memory) != memory.nbytes:
                pull.skip_rest()
                self.drop("wrong_size")
                return
        pull.skip_rest()
        digests = split_digests(header)
        self._num_checked += 1
        images_NHWC, labels_N = tensors
        if [*map(sample_digest, images_NHWC.numpy(), labels_N.tolist())] != digests:
            self._tell_of_damage(header.worker)
            return
        self._accept(header, placement, batch, digests, rows)

    def _tell_of_damage(self, worker: str) -> None:
        self.drop(f"wrong digest from {worker}")
        text = f"a slice of worker {worker} arrived with other bytes than it was sent with"
        self._notes.tell("slice_damaged", text)
        self._damaged.append(self._num_checked)
        if len(self._damaged) > MAX_WRONG_DIGESTS and self._num_checked - self._damaged[0] < AMONG_SLICES:
            dropped = self._state.dropped_text()
            text = f"more than {MAX_WRONG_DIGESTS} of the last {AMONG_SLICES} slices arrived damaged"
            raise RunFailed(f"{text}\n  dropped: {dropped}")

    def _accept(
        self, header: SliceHeader, placement: Placement, batch: RawBatch, digests: list[bytes], rows: slice
    ) -> None:
        batch.digests[rows] = digests
        batch.sample_ids_N[rows] = torch.tensor(header.sample_ids, dtype=torch.int64)
        self._state.num_samples += len(digests)
        self._state.read_s += header.read_s
        self._state.make_s += header.make_s
        self._policy.delivered(len(digests), header.bad)
        with self._lock:
            self._batches[placement.step] = batch
            self._state.last_arrival_s = time.monotonic()
            if self._reassembly.mark(header, placement):
                self._lock.notify_all()


def _is_power_of_ten(count: int) -> bool:
    return str(count).strip("0") == "1"
