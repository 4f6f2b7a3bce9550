"""Simulated workers: several to a process, sleeping instead of computing; for measuring what serves them.

In:  a dispatcher's endpoint, how many, how long a slice takes (`python -m tests.simulated_workers E NUM SLEEP_S NAME`).
Out: slices of zeros, labelled 0, with their digests, to whoever the leases say.
One thread: each worker is a control socket, what it holds, and when its slice in work is done.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from pipeline.digests import sample_digest
from pipeline.messages import Granted, Join, JoinAgain, Lease, OpenStream, WorkerBeat
from pipeline.recipe import BatchSpec, FieldSpec
from pipeline.slice_header import SliceHeader
from pipeline.transport import Context, Dealer, Poller, Push
from pipeline.wire import decode_message, encode_message, encode_slice

BEAT_S = 1.0
IMAGE = FieldSpec(name="image", dtype="uint8", shape=(2, 2, 3))
LABEL = FieldSpec(name="label", dtype="int64", shape=())
BATCH_SPEC = BatchSpec(fields=(IMAGE, LABEL))
DIGEST = sample_digest(np.zeros(IMAGE.shape, np.uint8), 0)


@dataclass
class SimulatedWorker:
    """Makes one slice after the other, each in exactly `sleep_s` from when it could begin."""

    name: str
    dealer: Dealer
    sleep_s: float
    holding: deque[Lease] = field(default_factory=deque)
    done_s: float = 0.0
    """When the slice in work is done, or the last one was."""
    next_beat_s: float = 0.0
    received: int = 0
    beat_number: int = 0

    def join(self) -> None:
        self.holding.clear()
        self.received = self.beat_number = 0
        message = Join(worker=self.name, host="here", pid=1, fingerprint="simulated", sources=("zeros",))
        self.dealer.send(encode_message(message))

    def take(self, lease: Lease, now_s: float) -> None:
        if not self.holding:
            self.done_s = now_s + self.sleep_s
        self.holding.append(lease)
        self.received = lease.number

    def beat(self, now_s: float) -> None:
        self.next_beat_s = now_s + BEAT_S
        self.beat_number += 1
        holding = tuple(lease.number for lease in self.holding)
        beat = WorkerBeat(worker=self.name, number=self.beat_number, received=self.received, holding=holding)
        self.dealer.send(encode_message(beat))

    def finish(self) -> Lease:
        """The slice in work is done; the next one began at that moment, however late this process looks."""
        lease = self.holding.popleft()
        self.done_s += self.sleep_s
        return lease


class Process:
    """Simulated workers of one process, and the data sockets that they share."""

    def __init__(self, connect: str, num_workers: int, sleep_s: float, name: str) -> None:
        self._context = Context()
        self._poller = Poller()
        self._push: dict[str, Push] = {}
        self._endpoints: dict[tuple[str, int], str] = {}
        self._workers: list[SimulatedWorker] = []
        for number in range(num_workers):
            worker = SimulatedWorker(f"{name}-{number}", self._context.dealer(connect, f"{name}-{number}"), sleep_s)
            self._poller.add(worker.dealer)
            self._workers.append(worker)
            worker.join()

    def run(self) -> None:
        while True:
            now_s = time.monotonic()
            due = [min(w.next_beat_s, w.done_s) if w.holding else w.next_beat_s for w in self._workers]
            ready = self._poller.wait(min(due) - now_s)
            now_s = time.monotonic()
            for worker in self._workers:
                if worker.dealer.raw in ready:
                    self._hear(worker, now_s)
                while worker.holding and worker.done_s <= now_s:
                    self._send(worker.name, worker.finish())
                    worker.next_beat_s = now_s
                if worker.next_beat_s <= now_s:
                    worker.beat(now_s)

    def _hear(self, worker: SimulatedWorker, now_s: float) -> None:
        while (frame := worker.dealer.receive()) is not None:
            match decode_message(frame):
                case Granted(lease=lease):
                    worker.take(lease, now_s)
                case OpenStream() as opened:
                    endpoint = opened.spec.endpoint
                    self._endpoints[opened.stream, opened.incarnation] = endpoint
                    if endpoint not in self._push:
                        self._push[endpoint] = self._context.push(endpoint)
                case JoinAgain():
                    worker.join()

    def _send(self, worker: str, lease: Lease) -> None:
        num_samples = lease.stop - lease.start
        header = SliceHeader(
            stream=lease.stream,
            incarnation=lease.incarnation,
            worker=worker,
            start=lease.start,
            stop=lease.stop,
            recipe=lease.recipe,
            fields=BATCH_SPEC.fields,
            sample_ids=tuple(range(lease.start, lease.stop)),
            digests=DIGEST * num_samples,
        )
        arrays = [np.zeros((num_samples, *IMAGE.shape), np.uint8), np.zeros(num_samples, np.int64)]
        self._push[self._endpoints[lease.stream, lease.incarnation]].send(encode_slice(header, arrays))


if __name__ == "__main__":
    Process(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]).run()
