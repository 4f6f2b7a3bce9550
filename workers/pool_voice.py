"""A pool's voice: beats once a second, passes on what the dispatcher wants.

In:  what the pool has to say; the dispatcher's Resize and Condemned.
Out: PoolBeats; wishes, through `inbox`.
A thread of its own: a fork server takes a second or more to start, and the pool itself waits for it.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable

from pipeline.contact import Contact
from pipeline.errors import RemoteProtocolError
from pipeline.messages import AnyMessage
from pipeline.service_messages import Condemned, PoolBeat, Resize
from pipeline.transport import Context, Poller, Waker
from pipeline.wire import decode_message, encode_message
from workers.fork_server import ForkServerWatch
from workers.talker import Talker

BEAT_S = 1.0
GOODBYE_S = 0.2
"""Waited at the end until the dispatcher, if there still is one, was told; sending takes a millisecond."""

log = logging.getLogger("headrace.pool")


class Voice(Talker):
    """Talks with the dispatcher until `end`; `news` wakes the pool when the inbox has something."""

    def __init__(
        self, connect: str, pool: str, beat: Callable[[int], PoolBeat], tell: Callable[[str], None] = lambda text: None
    ) -> None:
        """`beat`: makes the beat of a number; `tell`: for the user's eyes. Both are called in this thread."""
        super().__init__("voice")
        self.inbox: queue.SimpleQueue[Resize | Condemned] = queue.SimpleQueue()
        self.news = Waker()
        self.contact = Contact(connect)
        self._pool = pool
        self._make_beat = beat
        self._tell = tell
        self._context = Context()
        self._dealer = self._context.dealer(connect, pool)
        self._waker = Waker()
        self._outbox: queue.SimpleQueue[AnyMessage] = queue.SimpleQueue()
        self._fork_server = ForkServerWatch()
        self._number = 0
        self._ending = False

    def say(self, message: AnyMessage) -> None:
        """Send a message to the dispatcher."""
        self._outbox.put(message)
        self._waker.wake()

    def beat_now(self) -> None:
        """The pool has changed: the dispatcher hears of it at once."""
        self._waker.wake()

    def end(self) -> None:
        """Send what is left to say, then close; does not wait for a dispatcher that is gone."""
        self._ending = True
        self._waker.wake()
        self.join()

    def talk(self) -> None:
        poller = Poller()
        poller.add(self._dealer)
        poller.add(self._waker.read_fd)
        next_beat_s = 0.0
        while True:
            ready = poller.wait(next_beat_s - time.monotonic())
            self._waker.clear()
            now_s = time.monotonic()
            while (frame := self._dealer.receive()) is not None:
                self._handle(frame, now_s)
            is_ending = self._ending  # before the outbox: what was said before `end` is sent
            while not self._outbox.empty():
                self._send(self._outbox.get())
            if is_ending:
                break
            if self._waker.read_fd in ready or now_s >= next_beat_s:
                self._beat(now_s)
                next_beat_s = now_s + BEAT_S
        self._dealer.close_when_sent(GOODBYE_S)
        self._context.close()

    def _beat(self, now_s: float) -> None:
        self._number += 1
        self._send(self._make_beat(self._number))
        self._say_aloud(self.contact.look(now_s))
        self._say_aloud(self._fork_server.look(now_s))

    def _handle(self, frame: bytes, now_s: float) -> None:
        try:
            message = decode_message(frame)
        except RemoteProtocolError as error:
            log.warning("action=refuse_message error=%s", error)
            return
        self._say_aloud(self.contact.heard(now_s))  # each beat is answered, at least with the size that it told
        match message:
            case Resize(pool=self._pool) | Condemned(pool=self._pool):
                self.inbox.put(message)
                self.news.wake()
            case _:
                log.warning("action=refuse_message error=%s is not for this pool", type(message).__name__)

    def _send(self, message: AnyMessage) -> None:
        self._dealer.send(encode_message(message))

    def _say_aloud(self, text: str) -> None:
        if text:
            self._tell(text)
