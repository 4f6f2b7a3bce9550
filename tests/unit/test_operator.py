"""An operator's questions: asked until answered, given up in time, and told apart; time is an argument."""

from __future__ import annotations

import pytest

from pipeline.errors import PeerUnreachable
from pipeline.message import Location
from pipeline.operator import ASK_EVERY_S, Asking, OperationRefused, new_operation
from pipeline.pools import POOL_SILENT_S
from pipeline.service_messages import Answer, AskScale, AskStatus, AskSwap, OperatorMessage, Status
from tests.unit.test_status_screen import make_pool, make_status

SWAP = AskSwap(operation="swap-1")
OTHER = Answer(operation="another", done=True, text="")


def make_asking(question: OperatorMessage = SWAP, *, is_run: bool = False) -> Asking:
    return Asking(question, "ipc:///d", 0.0, silence_s=5.0, decision_s=60.0, is_run=is_run)


def sign_of_life(asking: Asking, now_s: float) -> None:
    """As a dispatcher answers the AskStatus that goes with a question."""
    status = Status(operation="its own", pid=1, up_s=0.0, num_refused_messages=0, note="")
    assert asking.hear(status, now_s) is None


def times_asked(asking: Asking, until_s: float) -> list[float]:
    """The moments at which the question is sent, looked at every 0.1 s, while a dispatcher answers something."""
    asked = []
    for tenth in range(round(until_s * 10)):
        now_s = tenth / 10
        sign_of_life(asking, now_s)
        if SWAP in asking.due(now_s):
            asked.append(now_s)
    return asked


def test_a_question_is_asked_again_every_half_a_second_with_the_same_operation() -> None:
    assert times_asked(make_asking(), until_s=2.0) == [0.0, 0.5, 1.0, 1.5]


def test_it_waits_no_longer_than_until_the_question_is_due_again() -> None:
    asking = make_asking()
    assert asking.wait_s(0.0) == 0.0
    asking.due(0.0)
    assert asking.wait_s(0.2) == pytest.approx(ASK_EVERY_S - 0.2)
    assert asking.wait_s(9.0) == 0.0


def test_only_the_answer_to_this_question_is_taken() -> None:
    asking = make_asking()
    answer = Answer(operation="swap-1", done=True, text="from step 4 on")
    assert asking.hear(OTHER, 0.1) is None
    assert asking.hear(AskStatus(operation="swap-1"), 0.1) is None
    assert asking.hear(answer, 0.2) is answer


def test_a_dispatcher_that_says_nothing_is_not_there() -> None:
    asking = make_asking()
    asking.due(4.9)
    with pytest.raises(PeerUnreachable, match="no dispatcher answers at ipc:///d"):
        asking.due(5.0)


def test_a_decision_may_take_as_long_as_the_dispatcher_lives_but_not_for_ever() -> None:
    """The trainer has a chain tried out meanwhile; whether the dispatcher lives, the status shows that goes with it."""
    asking = make_asking()
    assert [type(message) for message in asking.due(0.0)] == [AskStatus, AskSwap]
    for now_s in range(1, 60):
        sign_of_life(asking, now_s)
        asking.due(now_s)
    sign_of_life(asking, 60.0)
    with pytest.raises(PeerUnreachable, match="nobody decided"):
        asking.due(60.0)


NO_STREAM = Answer(operation="swap-1", done=False, text="no train stream is registered here")
NO_POOL = Answer(operation="scale-1", done=False, text="no pool is connected here")


def test_a_refusal_of_a_runs_new_dispatcher_counts_once_it_knows_the_run() -> None:
    """A dispatcher that was just started again refuses what is about to register with it."""
    asking = make_asking(is_run=True)
    assert asking.hear(make_status(streams=()), 0.1) is None
    assert asking.hear(NO_STREAM, 0.1) is None
    assert asking.hear(make_status(), 0.6) is None, "it has registered since: the refusal was of the time before"
    asking.due(0.6)
    assert asking.hear(NO_STREAM, 0.7) is None, "of a dispatcher that has not shown yet what it knows"
    assert asking.hear(make_status(), 1.1) is None
    assert asking.hear(NO_STREAM, 1.1) is NO_STREAM


def test_a_refusal_of_scale_counts_once_the_pool_is_back() -> None:
    """Back is what the dispatcher takes for back: else one that beats late would be asked of for a minute."""
    asking = make_asking(AskScale(operation="scale-1"), is_run=True)
    back = make_status(pools=(make_pool(silent_s=POOL_SILENT_S - 0.1),))
    for pools in ((), (make_pool(silent_s=POOL_SILENT_S),)):
        assert asking.hear(make_status(pools=pools), 0.1) is None
        assert asking.hear(NO_POOL, 0.1) is None
    assert asking.hear(back, 0.2) is None, "the refusal was of the time before"
    assert asking.hear(NO_POOL, 0.3) is NO_POOL


def test_a_refusal_that_stays_is_told_in_the_end() -> None:
    asking = make_asking(is_run=True)
    for now_s in range(60):
        asking.hear(make_status(streams=()), now_s)
        asking.hear(NO_STREAM, now_s)
        asking.due(now_s)
    asking.hear(NO_STREAM, 60.0)
    with pytest.raises(OperationRefused, match="no train stream"):
        asking.due(60.0)


def test_a_standing_service_and_a_refused_chain_are_believed_at_once() -> None:
    place = Location(file="f", line=1, path="p", expected="a", got="b")
    refused_chain = Answer(operation="swap-1", done=False, text="", problems=(place,))
    assert make_asking().hear(NO_STREAM, 0.1) is NO_STREAM
    assert make_asking(is_run=True).hear(refused_chain, 0.1) is refused_chain


def test_a_status_question_is_its_own_sign_of_life() -> None:
    assert len(make_asking(AskStatus(operation="s")).due(0.0)) == 1


def test_that_it_takes_long_is_told_once() -> None:
    asking = make_asking(AskScale(operation="scale-1"))
    assert [asking.is_time_to_tell(now_s) for now_s in (0.0, 1.0, 3.0, 4.0)] == [False, False, True, False]


def test_every_operation_has_an_id_of_its_own() -> None:
    assert new_operation() != new_operation()
