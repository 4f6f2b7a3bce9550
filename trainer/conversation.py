"""The conversation of a stream with its dispatcher: what is said when, and what an answer means.

In:  notices of the dispatcher, as frames; the state of the reassembly.
Out: registrations, beats, questions and answers, to be sent by whoever owns the socket.
No sockets, no clock. What two threads touch is touched under `lock` only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from pipeline.errors import ConfigError, RemoteProtocolError, RunFailed
from pipeline.message import Location
from pipeline.messages import (
    AnyMessage,
    AskProbe,
    OperationAnswer,
    Probed,
    Register,
    RegisterAgain,
    Registered,
    SamplesLost,
    ServiceState,
    StopAsked,
    StreamBeat,
    StreamFailed,
    StreamSpec,
    SwapAsked,
)
from pipeline.plan import named_recipes
from pipeline.reassembly import Reassembly
from pipeline.recipe import Chain, Recipe
from pipeline.service_messages import StreamReport
from pipeline.wire import MAX_MESSAGE_NBYTES, decode_message, encode_message
from trainer.course import Course, require_sound
from trainer.notes import Notes
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import ReceiverState
from trainer.swapping import Outcome, Swapping, Wish

MAX_OPERATIONS = 256
"""Operations of operators whose asker may still need an answer."""

SETTLE_S = 0.03
"""From a probe's answer until the dispatcher knows the new timeline: three writes to a disk and two messages."""


class Conversation:
    """The dispatcher is told the whole truth once it has to know it, and from then on what has changed."""

    def __init__(
        self,
        *,
        stream: str,
        incarnation: int,
        spec: StreamSpec,
        course: Course,
        swapping: Swapping,
        reassembly: Reassembly,
        policy: BadSamplePolicy,
        state: ReceiverState,
        notes: Notes,
        lock: threading.Condition,
        fingerprint: str = "",
        recipe_of: Callable[[Chain], Recipe] | None = None,
        on_stop: Callable[[], str] | None = None,
        samples_per_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`recipe_of`: what an operator's chain is in this job; None for a stream that can't be swapped.

        `on_stop`: begins to stop the run, and says what that means; None where only the user's own program can.
        """
        self.fingerprint = fingerprint
        self.is_registered = False
        self.outbox: list[AnyMessage] = []
        """To be sent, in order; the sender empties it."""
        self._stream, self._incarnation = stream, incarnation
        self._spec = spec
        self._course = course
        self._swapping = swapping
        self._reassembly = reassembly
        self._policy = policy
        self._state = state
        self._notes = notes
        self._lock = lock
        self._recipe_of = recipe_of
        self._on_stop = on_stop
        self._samples_per_s = samples_per_s
        self._beat_number = 0
        self._told_head_step = 0
        self._asked: dict[str, None] = {}
        """Operations of operators, which are answered; edits of files are not."""

    def speak(self, report: StreamReport | None = None) -> None:
        """Say what has arrived and ask what has to be known; everything, to a dispatcher that knows nothing of it."""
        self._beat_number += 1
        with self._lock:
            head_step = self._told_head_step = self._reassembly.head_step
            self._reassembly.window = self._course.window(head_step)
            arrived, window = self._reassembly.arrived(), self._reassembly.window
        quarantined = self._policy.quarantined_from(self._course.timeline.start_of(head_step))
        if not self.is_registered:
            self._register(head_step, arrived, window, quarantined)
            return
        beat = StreamBeat(
            stream=self._stream,
            incarnation=self._incarnation,
            number=self._beat_number,
            head_step=head_step,
            arrived=arrived,
            window=window,
            quarantined=quarantined,
            revision=self._course.revision,
            report=report,
        )
        self.outbox.append(beat)
        # With each beat, until it is answered; a swap waits for the recipes that the stream begins with.
        unprobed = self._course.unprobed(head_step)
        wished = self._swapping.probing if self._course.is_written else None
        asked = unprobed or ((wished,) if wished else ())
        self.outbox += [AskProbe(stream=self._stream, incarnation=self._incarnation, recipe=recipe) for recipe in asked]

    @property
    def is_settled(self) -> bool:
        """True if every wish for another chain has its outcome."""
        return self._swapping.is_settled

    @property
    def is_window_behind(self) -> bool:
        """True if a quarter of the window is free without the dispatcher's knowledge."""
        return 4 * (self._reassembly.head_step - self._told_head_step) >= self._reassembly.window

    def hear(self, frame: bytes) -> bool:
        """Take a notice; True if the dispatcher should hear from us at once. Raises what ends the stream."""
        try:
            message = decode_message(frame)
            address = getattr(message, "stream", None), getattr(message, "incarnation", None)
            if address != (self._stream, self._incarnation):
                raise RemoteProtocolError("a notice for another stream")
            return self._handle(message)
        except RemoteProtocolError:
            self._state.dropped["a notice that is not for us"] += 1
            return False

    def wish(self, wish: Wish) -> None:
        """Somebody on this side of the socket wants another chain."""
        self._swapping.ask(wish, self._first_untouched_step())

    def outcome(self, wish: Wish, outcome: Outcome) -> None:
        """An operator who asked is told; nothing is done for others."""
        if wish.operation in self._asked:
            self._answer(wish.operation, outcome)

    def _handle(self, message: AnyMessage) -> bool:
        match message:
            case Registered(revision=revision):
                is_news = not self.is_registered and revision == self._course.revision
                self.is_registered = self.is_registered or is_news
                return is_news
            case RegisterAgain():
                self.is_registered = False
                return True
            case Probed():
                return self._probed(message)
            case SwapAsked() | StopAsked():
                return self._operation_asked(message)
            case SamplesLost(lost=lost):
                with self._lock:
                    awaited = [loss for loss in lost if self._reassembly.awaits(loss.position)]
                self._policy.lost(awaited)  # what has arrived after all was used as it is
                return True
            case StreamFailed(cause=cause):
                raise RunFailed(cause)
            case ServiceState():
                if message.note and (self._state.service is None or self._state.service.note != message.note):
                    self._notes.tell("service_trouble", message.note)
                self.fingerprint = self.fingerprint or message.fingerprint
                self._state.service = message
                return False
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a trainer")

    def _register(self, head_step: int, arrived: bytes, window: int, quarantined: dict[int, int]) -> None:
        course = self._course
        recipes = named_recipes(course.ahead(head_step), course.recipes)
        spec = msgspec.structs.replace(self._spec, timeline=course.timeline.entries, recipes=recipes)
        known = {recipe.digest for recipe in recipes}
        registration = Register(
            stream=self._stream,
            incarnation=self._incarnation,
            spec=spec,
            head_step=head_step,
            arrived=arrived,
            window=window,
            quarantined=quarantined,
            batch_specs={digest: spec for digest, spec in course.batch_specs.items() if digest in known},
            revision=course.revision,
            fingerprint=self.fingerprint,
        )
        if (nbytes := len(encode_message(registration))) > MAX_MESSAGE_NBYTES:
            raise RunFailed(
                f"stream {self._stream}: its registration has {nbytes} bytes, at most {MAX_MESSAGE_NBYTES} are heard\n"
                f"  it holds:  {len(recipes)} chains from step {head_step} on, {len(spec.timeline)} timeline entries\n"
                "  to go on: plan fewer chains ahead, or smaller ones"
            )
        self.outbox.append(registration)

    def _probed(self, probed: Probed) -> bool:
        problems = tuple(problem.problem() for problem in probed.problems)
        if probed.spec is not None:
            require_sound(probed.spec)
        head_step = self._reassembly.head_step
        if unprobed := {recipe.digest for recipe in self._course.unprobed(head_step)}:
            if probed.recipe not in unprobed:
                return False  # a swap is decided on once it is known what it would replace
            if probed.spec is None:
                raise ConfigError(problems)
            with self._lock:
                self._course.learn(probed.recipe, probed.spec, head_step)
                self._reassembly.window = self._course.window(head_step)
                self._lock.notify_all()
            return True
        if not self._course.is_written:
            return False  # ... and once that is on disk: until then it may be refused, and must leave no trace
        first_step = self._first_untouched_step()
        hint = probed.unleased_step + self._num_leased_meanwhile(head_step)
        if self._swapping.probed(probed.recipe, probed.spec, problems, first_step, hint):
            with self._lock:
                self._reassembly.change(self._course.timeline)
                self._reassembly.window = self._course.window(self._reassembly.head_step)
            self.is_registered = False  # the dispatcher has to know before it hears of what arrives
            return True
        return self._swapping.probing is not None

    def _num_leased_meanwhile(self, step: int) -> int:
        """Batches that a fast job begins while a swap is written down: work on them would be for nothing."""
        return int(self._samples_per_s() * SETTLE_S / self._course.timeline.entry_at(step).batch_size)

    def _operation_asked(self, message: SwapAsked | StopAsked) -> bool:
        operation = message.operation
        self._asked[operation] = None
        while len(self._asked) > MAX_OPERATIONS:
            del self._asked[next(iter(self._asked))]
        if isinstance(message, StopAsked):
            self._answer(operation, self._stop())
        elif (outcome := self._swapping.outcome(operation)) is not None:
            self._answer(operation, outcome)
        elif self._recipe_of is None:
            self._answer(operation, Outcome(done=False, text="an evaluation's chain can't be swapped"))
        else:
            recipe = self._recipe_of(message.chain) if message.chain is not None else None
            self.wish(Wish(operation=operation, recipe=recipe, at_step=message.at_step))
        return True

    def _stop(self) -> Outcome:
        if self._on_stop is None:
            return Outcome(done=False, text="this stream belongs to a program of the user's own: stop that one")
        return Outcome(done=True, text=self._on_stop())

    def _answer(self, operation: str, outcome: Outcome) -> None:
        locations = tuple(Location.of(problem) for problem in outcome.problems)
        answer = OperationAnswer(
            stream=self._stream,
            incarnation=self._incarnation,
            operation=operation,
            done=outcome.done,
            text=outcome.text,
            problems=locations,
        )
        self.outbox.append(answer)

    def _first_untouched_step(self) -> int:
        with self._lock:
            return self._reassembly.first_untouched_step()
