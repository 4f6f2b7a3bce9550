"""The receiver: a thread that owns a stream's sockets, between its workers, its dispatcher and the training loop.

In:  slice frames from workers (`trainer/placing.py`), notices from the dispatcher (`trainer/conversation.py`).
Out: complete batches in order, still as they came (unfinished); beats that say what has arrived.
The training loop talks to it through `next_batch` and the like only; nothing here decides anything.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from pipeline.messages import StreamGoodbye, StreamSpec
from pipeline.reassembly import Reassembly
from pipeline.recipe import BatchSpec, Chain, Recipe
from pipeline.service_messages import StreamReport
from pipeline.timeline import Timeline
from pipeline.transport import REPEATED_HWM, Context, Poller, Waker, remove_socket_file
from pipeline.wire import encode_message
from trainer.buffers import BufferPool
from trainer.conversation import Conversation
from trainer.course import Course
from trainer.notes import Notes
from trainer.placing import Placing
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import RawBatch, ReceiverState
from trainer.report_rates import Rates, Totals
from trainer.stall import StallPolicy, StallWatch, Told
from trainer.swapping import Outcome, Swapping, Wish

BEAT_S = 1.0
NEWS_EVERY_S = 0.2
"""Seconds between beats while slices arrive: a beat is cumulative, and workers are given work without it."""
URGENT_NEWS_EVERY_S = 0.02
"""... where somebody waits for an answer, or for room in the window."""
REGISTER_EVERY_S = 0.5
"""How often an unanswered registration is sent again."""
REPORT_EVERY_S = 1.0
LOOK_EVERY_S = 0.5
"""How often a waiting loop looks whether there is anything to wait for."""

Describe = Callable[[Rates, ReceiverState, int], StreamReport]
"""Rates, what happened, the head step -> what people are told."""


class Receiver(threading.Thread):
    """Fills batches of one stream incarnation; `next_batch` gives them in order."""

    def __init__(
        self,
        *,
        stream: str,
        incarnation: int,
        spec: StreamSpec,
        course: Course,
        head_step: int,
        dispatcher: str,
        policy: BadSamplePolicy,
        pool: BufferPool,
        notes: Notes,
        stall: StallPolicy,
        check_services: Callable[[], None] = lambda: None,
        on_outcome: Callable[[Wish, Outcome], None] = lambda wish, outcome: None,
        on_stop: Callable[[], str] | None = None,
        recipe_of: Callable[[Chain], Recipe] | None = None,
        describe: Describe | None = None,
        fingerprint: str = "",
    ) -> None:
        """`on_outcome`, `on_stop`: called in this thread; `describe`: for reports, None for a stream without.

        Long because it is the one place where a stream's parts are given each other, each by name and a line each.
        """
        super().__init__(name=f"receiver {stream}", daemon=True)
        self.state = ReceiverState()
        self._changed = threading.Condition()
        self._goodbye = StreamGoodbye(stream=stream, incarnation=incarnation)
        self._endpoint = spec.endpoint
        self._course = course
        self._notes = notes
        self._check_services = check_services
        self._on_outcome = on_outcome
        self._describe = describe
        self._rates = Rates()
        self._stall_watch = StallWatch(stall)
        self._reassembly = Reassembly(
            course.timeline,
            stream=stream,
            incarnation=incarnation,
            window=course.window(head_step),
            head_step=head_step,
        )
        self._placing = Placing(
            course=course,
            reassembly=self._reassembly,
            policy=policy,
            pool=pool,
            state=self.state,
            notes=notes,
            lock=self._changed,
        )
        self._conversation = Conversation(
            stream=stream,
            incarnation=incarnation,
            spec=spec,
            course=course,
            swapping=Swapping(course, self._tell_outcome),
            reassembly=self._reassembly,
            policy=policy,
            state=self.state,
            notes=notes,
            lock=self._changed,
            fingerprint=fingerprint,
            recipe_of=recipe_of,
            on_stop=on_stop,
            samples_per_s=lambda: self._rates.samples_per_s,
        )
        self._wishes: deque[Wish] = deque()
        self._error: Exception | None = None
        self._ending = False
        self._reported_s = 0.0
        self._context = Context()
        try:
            self._pull = self._context.pull(spec.endpoint)
            self._dealer = self._context.dealer(dispatcher, f"{stream}#{incarnation}", max_unsent=REPEATED_HWM)
        except BaseException:
            self._context.close()
            raise
        self._waker = Waker()

    @property
    def timeline(self) -> Timeline:
        """As it is now."""
        return self._course.timeline

    @property
    def fingerprint(self) -> str:
        """Of the workers that the slices come from, "" before it is known."""
        return self._conversation.fingerprint

    # the training loop's side

    def next_batch(self) -> RawBatch | None:
        """The head batch once it is complete; None at the end of the stream. Raises what ended the stream."""
        with self._waiting():
            while True:
                self._raise_error()
                if self._reassembly.ended:
                    return None
                if (batch := self._placing.maybe_take()) is not None:
                    self._waker.wake()
                    return batch
                self._wait()

    def wait_for_spec(self) -> BatchSpec:
        """What the next batch delivers, as soon as workers have probed every recipe ahead."""
        with self._waiting():
            while self._course.unprobed(self._reassembly.head_step):
                self._raise_error()
                self._wait()
            return self._course.spec_at(self._reassembly.head_step)

    def wish(self, wish: Wish) -> None:
        """Somebody in this process wants another chain; from any thread."""
        self._wishes.append(wish)
        self._waker.wake()

    def wait_for_wishes(self) -> None:
        """Until every wish has its outcome."""
        with self._waiting():
            while self._wishes or not self._conversation.is_settled:
                self._raise_error()
                self._wait()

    def release(self) -> None:
        """Batches are made from now on."""
        self._course.is_held = False
        self._waker.wake()

    def end(self) -> None:
        """Say goodbye and close the sockets."""
        self._ending = True
        self._waker.wake()
        if self.is_alive():
            self.join(timeout=5.0)

    def _waiting(self) -> _Waiting:
        return _Waiting(self._changed, self.state, self._rest)

    def _rest(self) -> None:
        """The loop has what it waited for."""
        self._tell(self._stall_watch.rest(self.state.last_arrival_s))

    def _tell(self, told: Told | None) -> None:
        if told is not None:
            self._notes.tell("stall", told.text, on_terminal=told.is_urgent)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _wait(self) -> None:
        """Until something has changed, or it is time to look; RunFailed if waiting is in vain."""
        if self._changed.wait(timeout=LOOK_EVERY_S):
            return
        self._check_services()
        state = self.state
        told = self._stall_watch.look(
            time.monotonic(),
            waiting_since_s=state.waiting_since_s or 0.0,
            last_arrival_s=state.last_arrival_s,
            last_heard_s=state.last_heard_s,
            service=state.service,
            dropped=state.dropped_text(),
        )
        self._tell(told)

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
            remove_socket_file(self._endpoint)
            self._waker.close()

    def _loop(self) -> None:
        poller = Poller()
        for source in (self._dealer, self._pull, self._waker.read_fd):
            poller.add(source)
        next_beat_s = spoke_s = 0.0
        while not self._ending:
            if time.monotonic() >= next_beat_s:
                self._conversation.speak(self._maybe_report())
                spoke_s = time.monotonic()
                next_beat_s = spoke_s + (BEAT_S if self._conversation.is_registered else REGISTER_EVERY_S)
            self._send()
            ready = poller.wait(next_beat_s - time.monotonic())
            self._waker.clear()
            # All slices before the beat: it must not deny what has arrived.
            has_news = self._placing.receive(self._pull) or self._waker.read_fd in ready
            is_urgent = False
            while self._wishes:
                self._conversation.wish(self._wishes[0])
                self._wishes.popleft()  # last: it has to be among the wishes here or there
            while (frame := self._dealer.receive()) is not None:
                self.state.last_heard_s = time.monotonic()
                is_urgent = self._conversation.hear(frame) or is_urgent
            # Unanswered registrations are not hurried by what arrives: nobody may be there to hear them.
            if is_urgent or (has_news and self._conversation.is_registered):
                is_urgent = is_urgent or self._conversation.is_window_behind
                next_beat_s = min(next_beat_s, spoke_s + (URGENT_NEWS_EVERY_S if is_urgent else NEWS_EVERY_S))
        self._send()  # an operator may have been promised what ends the stream
        self._dealer.send(encode_message(self._goodbye))
        time.sleep(0.02)  # LINGER is 0: let the goodbye out; if it is lost, the dispatcher's ttl ends the stream

    def _send(self) -> None:
        for message in self._conversation.outbox:
            self._dealer.send(encode_message(message))
        self._conversation.outbox.clear()

    def _tell_outcome(self, wish: Wish, outcome: Outcome) -> None:
        self._conversation.outcome(wish, outcome)
        self._on_outcome(wish, outcome)
        with self._changed:
            self._changed.notify_all()

    def _maybe_report(self) -> StreamReport | None:
        now_s, state = time.monotonic(), self.state
        if self._describe is None or now_s - self._reported_s < REPORT_EVERY_S:
            return None
        self._reported_s = now_s
        self._rates.see(Totals(now_s, state.num_taken, state.total_waited_s(now_s), state.read_s, state.make_s))
        return self._describe(self._rates, state, self._reassembly.head_step)


class _Waiting:
    """While the training loop waits: holds the lock, and keeps the time."""

    def __init__(self, lock: threading.Condition, state: ReceiverState, rest: Callable[[], None]) -> None:
        self._lock = lock
        self._state = state
        self._rest = rest

    def __enter__(self) -> None:
        self._state.waiting_since_s = time.monotonic()
        self._lock.acquire()  # last: a Ctrl-C after it would leave it held

    def __exit__(self, *_: object) -> None:
        now_s = time.monotonic()
        self._state.waited_s = self._state.total_waited_s(now_s)
        self._state.waiting_since_s = None
        try:
            self._rest()
        finally:
            self._lock.release()
