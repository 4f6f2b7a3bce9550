"""An operator's side of the control socket: ask until there is an answer.

In:  a question (status, scale, swap, stop) and a dispatcher's address.
Out: its answer; PeerUnreachable when nobody answers; ChainRefused with the located problems of a chain.
`Asking` is pure: time and messages are arguments. `Operator` is the socket around it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from types import TracebackType

from pipeline.errors import EXIT_USER_INPUT, ConfigError, HeadraceError, PeerUnreachable, Problem, RemoteProtocolError
from pipeline.pools import POOL_SILENT_S
from pipeline.probes import PROBE_S
from pipeline.service_messages import Answer, AskScale, AskStatus, OperatorMessage, Status
from pipeline.transport import Context, Poller
from pipeline.wire import decode_message, encode_message

ASK_EVERY_S = 0.5
"""A lost question costs this long."""
SILENCE_S = 5.0
"""A dispatcher that says nothing for so long is not there."""
RESTART_SILENCE_S = 15.0
"""The same for a dispatcher that a living trainer restarts once it has hung for 5 s."""
DECISION_S = 2 * PROBE_S
"""How long an operation may wait for a trainer while the dispatcher answers: a chain that hangs while it is tried is
refused after about PROBE_S."""
_TELL_AFTER_S = 2.0


def new_operation() -> str:
    """An id of its own for each operation: asked twice, it is done once."""
    return uuid.uuid4().hex


class OperationRefused(HeadraceError):
    """What was asked for was understood, and can't be done as it was asked; the text says why."""

    exit_code = EXIT_USER_INPUT


class ChainRefused(ConfigError):
    """A chain can't be used; its located problems, and what happens instead."""

    def __init__(self, text: str, problems: Iterable[Problem]) -> None:
        super().__init__(problems)
        self.text = text


class Asking:
    """One question until its answer: when to send it again, when to say that it takes long, when to give up.

    Every other question is asked together with AskStatus. Its answer shows that the dispatcher lives: silence of both
    is another fault, and shows sooner, than a trainer that does not decide. With `is_run` it also shows whether a
    refusal counts: a dispatcher that was just started again has not heard yet of the run's stream or pool.
    """

    def __init__(
        self,
        question: OperatorMessage,
        endpoint: str,
        now_s: float,
        *,
        silence_s: float,
        decision_s: float,
        is_run: bool = False,
    ) -> None:
        self._question = question
        self._endpoint = endpoint
        self._began_s = now_s
        self._heard_s = now_s
        self._asked_s: float | None = None
        self._silence_s = silence_s
        self._decision_s = decision_s
        self._sign_of_life = AskStatus(operation=new_operation())
        self._has_told = False
        self._is_run = is_run
        self._knows = False
        """The dispatcher has shown, before it was asked this time, that it knows what the question is about."""
        self._last_refusal: Answer | None = None

    def due(self, now_s: float) -> list[OperatorMessage]:
        """What is to be sent now; PeerUnreachable once there is no point in it any more."""
        if now_s - self._heard_s >= self._silence_s:
            raise nobody_answers(self._endpoint, self._silence_s)
        if now_s - self._began_s >= self._decision_s:
            if self._last_refusal is not None:
                raise OperationRefused(self._last_refusal.text)
            raise PeerUnreachable(
                f"the dispatcher at {self._endpoint} answers, but for {self._decision_s:g} s nobody decided on this\n"
                "  to go on: `headrace status` shows whether the trainer and its workers live; the operation may still "
                "be carried out, and asking for it again is harmless"
            )
        if self._asked_s is not None and now_s - self._asked_s < ASK_EVERY_S:
            return []
        self._asked_s = now_s
        self._knows = False
        # The status first: between the two the trainer may register with a dispatcher that was just started again.
        return [self._question] if isinstance(self._question, AskStatus) else [self._sign_of_life, self._question]

    def wait_s(self, now_s: float) -> float:
        """How long nothing is due, if nothing is heard."""
        return max(0.0, ASK_EVERY_S - (now_s - (self._asked_s if self._asked_s is not None else -ASK_EVERY_S)))

    def hear(self, message: object, now_s: float) -> Answer | Status | None:
        """The answer, once it comes; any other message only shows that somebody is there."""
        self._heard_s = now_s
        if isinstance(message, Answer | Status) and message.operation == self._question.operation:
            is_final = not self._is_run or isinstance(message, Status) or message.done or message.problems
            if is_final:
                return message
            assert isinstance(message, Answer)
            self._last_refusal = message
            return message if self._knows else None
        if isinstance(message, Status):
            self._knows = _is_settled(self._question, message)
        return None

    def is_time_to_tell(self, now_s: float) -> bool:
        """True once, when the answer takes longer than a person waits without a word."""
        if self._has_told or now_s - self._began_s < _TELL_AFTER_S:
            return False
        self._has_told = True
        return True


def _is_settled(question: OperatorMessage, status: Status) -> bool:
    """True if the dispatcher has heard of what the question is about."""
    if isinstance(question, AskScale):
        return bool(status.pools) and all(pool.silent_s < POOL_SILENT_S for pool in status.pools)
    stream = "" if isinstance(question, AskStatus) else question.stream
    return any(stream in ("", each.stream) for each in status.streams)


class Operator:
    """A DEALER socket that asks one question at a time; use as a context manager."""

    def __init__(self, endpoint: str, *, is_run: bool = False) -> None:
        """`is_run`: its dispatcher and pool are those of a run, which starts them again when they die."""
        self._endpoint = endpoint
        self._is_run = is_run
        self._silence_s = RESTART_SILENCE_S if is_run else SILENCE_S
        self._context = Context()
        try:
            self._dealer = self._context.dealer(endpoint, f"operator-{uuid.uuid4().hex}")
        except BaseException:
            self._context.close()
            raise
        self._poller = Poller()
        self._poller.add(self._dealer)

    def status(self) -> Status:
        """What the dispatcher sees now; PeerUnreachable if nobody answers."""
        answer = self._ask(AskStatus(operation=new_operation()), self._silence_s, lambda: None)
        assert isinstance(answer, Status)
        return answer

    def done(self, question: OperatorMessage, on_waiting: Callable[[], None], *, decision_s: float = DECISION_S) -> str:
        """What became of an operation, as text; ChainRefused for a chain that can't be used, OperationRefused for
        whatever else can't be done.

        `on_waiting` is called once if the decision takes longer than a moment.
        """
        answer = self._ask(question, decision_s, on_waiting)
        assert isinstance(answer, Answer)
        if answer.problems:
            raise ChainRefused(answer.text, [location.problem() for location in answer.problems])
        if not answer.done:
            raise OperationRefused(answer.text or "refused, without a reason given")
        return answer.text

    def close(self) -> None:
        """Give the socket up; a question that was not answered is forgotten."""
        self._context.close()

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _ask(self, question: OperatorMessage, decision_s: float, on_waiting: Callable[[], None]) -> Answer | Status:
        now_s = time.monotonic()
        asking = Asking(
            question,
            self._endpoint,
            now_s,
            silence_s=self._silence_s,
            decision_s=max(decision_s, self._silence_s),
            is_run=self._is_run,
        )
        while True:
            for message in asking.due(now_s):
                self._dealer.send(encode_message(message))
            if asking.is_time_to_tell(now_s):
                on_waiting()
            self._poller.wait(asking.wait_s(now_s))
            now_s = time.monotonic()
            while (frame := self._dealer.receive()) is not None:
                try:
                    heard = asking.hear(decode_message(frame), now_s)
                except RemoteProtocolError as error:
                    raise PeerUnreachable(f"the service at {self._endpoint} speaks otherwise: {error}") from error
                if heard is not None:
                    return heard


def nobody_answers(endpoint: str, silence_s: float) -> PeerUnreachable:
    """Nothing at this address, or it hangs."""
    return PeerUnreachable(
        f"no dispatcher answers at {endpoint} (waited {silence_s:g} s)\n"
        "  to go on: start one with `headrace pipeline --listen ADDRESS`, or check the address; "
        "with --run-dir it is found by itself"
    )
