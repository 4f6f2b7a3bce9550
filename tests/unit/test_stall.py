"""Who waits in vain is told what is missing, in time and not too often."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.errors import PeerUnreachable, RunFailed
from pipeline.messages import ServiceState
from trainer.stall import StallPolicy, StallWatch

POLICY = StallPolicy(30.0, "fail", "photos")


def service(workers: int = 2, note: str = "", source: str = "photos") -> ServiceState:
    return ServiceState(
        stream="s",
        incarnation=1,
        workers=workers,
        able_workers=workers if source == "photos" else 0,
        sources=(source,) if workers else (),
        idle_workers=0,
        waiting_slices=3,
        leased_slices=4,
        note=note,
    )


def at(now_s: float, **state: Any) -> dict[str, Any]:
    """A look at a wait that began at 0, while the dispatcher speaks all the time."""
    return {"waiting_since_s": 0.0, "last_arrival_s": 0.0, "last_heard_s": now_s, "service": service(), **state}


def looks(watch: StallWatch, *times_s: float, **state: Any) -> list[tuple[float, str]]:
    """What is told at which time; the wait began at 0, the dispatcher speaks all the time."""
    told = []
    for now_s in times_s:
        if (news := watch.look(now_s, **at(now_s, **state))) is not None:
            told.append((now_s, news.text))
            assert news.is_urgent == ("arrived for" in news.text), "a slow start is no reason for a warning"
    return told


def every(step_s: float, until_s: float, since_s: float = 0.0) -> list[float]:
    return [since_s + number * step_s for number in range(1, int((until_s - since_s) / step_s) + 1)]


def test_a_stall_under_fail_ends_the_run_with_what_is_missing() -> None:
    """Neither before its time nor without a reason."""
    watch = StallWatch(POLICY)
    assert looks(watch, *every(0.5, 29.5)) == []
    with pytest.raises(RunFailed, match=r"no slice has arrived for 30 s\n  workers are connected but deliver nothing"):
        looks(watch, 30.0, service=service(note="worker w was killed"))


def test_a_stall_under_wait_is_told_again_once_every_timeout() -> None:
    """A log of a weekend stays readable."""
    told = looks(StallWatch(POLICY._replace(on_stall="wait")), *every(0.5, 100.0))
    assert [at_s for at_s, _ in told] == [30.0, 60.0, 90.0]


def test_that_there_is_no_worker_is_told_after_five_seconds_and_once() -> None:
    """Long before a timeout of minutes; a user may have forgotten to start them."""
    told = looks(
        StallWatch(POLICY._replace(timeout_s=300.0, on_stall="wait")), *every(0.5, 100.0), service=service(workers=0)
    )
    assert [at_s for at_s, _ in told] == [5.0]
    assert "no worker is connected" in told[0][1]


def test_workers_without_the_source_are_told_with_what_to_type() -> None:
    """A typing error in `--source`, found in seconds, where the user looks."""
    watch = StallWatch(POLICY._replace(timeout_s=300.0))
    seen = [watch.look(now_s, **at(now_s, service=service(source="photo"))) for now_s in every(0.5, 10.0)]
    (told,) = [each for each in seen if each is not None]
    assert told.is_urgent
    assert "no worker has source 'photos', they have: photo; start some with --source photos=DIR" in told.text


def test_workers_that_declined_are_told_with_their_reason() -> None:
    """They have a source of that name: `start some with --source` would send the user astray."""
    watch = StallWatch(POLICY._replace(timeout_s=300.0))
    cause = "worker w of pool p on h declined stream s\n--source: photos\n  expected: 9 samples\n  got:      8 samples"
    declined = msgspec.structs.replace(service(note=cause), able_workers=0, declined=cause)
    seen = [watch.look(now_s, **at(now_s, service=declined)) for now_s in every(0.5, 10.0)]
    (told,) = [each for each in seen if each is not None]
    assert told.is_urgent
    assert told.text.count("  worker w of pool p on h declined stream s\n  --source: photos\n    expected: 9") == 1
    assert "DIR" not in told.text
    assert "last trouble" not in told.text, "the same again"
    others = watch.look(20.0, **at(20.0, service=msgspec.structs.replace(declined, able_workers=1)))
    assert others is None, "somebody else can"


def test_who_waits_for_services_of_others_is_told_on_the_terminal() -> None:
    """They may never have been started."""
    watch = StallWatch(POLICY._replace(standing="ipc:///d"))
    seen = [watch.look(now_s, **at(now_s, service=None)) for now_s in every(0.5, 10.0)]
    (told,) = [each for each in seen if each is not None]
    assert told.is_urgent


def test_of_a_standing_dispatcher_that_is_away_its_own_watch_tells_and_not_this_one_too() -> None:
    """Once it is back, what is still missing is told."""
    watch = StallWatch(POLICY._replace(standing="ipc:///d"))
    assert [watch.look(now_s, **at(now_s, last_heard_s=0.0, service=None)) for now_s in every(0.5, 20.0)] == [None] * 40
    told = watch.look(20.5, **at(20.5, service=service(workers=0)))
    assert told is not None
    assert "no worker is connected" in told.text


def test_what_a_dispatcher_says_after_the_first_note_is_news() -> None:
    """Its first word of workers may come after the first note; then once and no more."""
    watch = StallWatch(POLICY._replace(standing="ipc:///d", timeout_s=300.0))
    assert watch.look(5.0, **at(5.0, service=None)) is not None
    told = watch.look(5.5, **at(5.5, service=service(workers=0)))
    assert told is not None
    assert "no worker is connected" in told.text
    assert watch.look(6.0, **at(6.0, service=service(workers=0))) is None


def test_a_silent_dispatcher_is_told_and_not_fatal_before_the_timeout() -> None:
    """It may be starting again."""
    watch = StallWatch(POLICY._replace(timeout_s=60.0))
    ((at_s, text),) = looks(watch, *every(0.5, 59.5), last_heard_s=0.0)
    assert at_s == 5.0
    assert "the dispatcher has been silent for 5 s" in text
    with pytest.raises(RunFailed, match="the dispatcher has been silent for 60 s"):
        looks(watch, 60.0, last_heard_s=0.0)


@pytest.mark.parametrize("seen", [None, service()], ids=["never heard", "silent now"])
def test_a_standing_dispatcher_that_is_silent_ends_the_run_with_its_address_and_the_way_out(
    seen: ServiceState | None,
) -> None:
    """Exit code 3: not the run but what it connects to is to be mended. One that answers is reachable."""
    watch = StallWatch(POLICY._replace(standing="ipc:///d"))
    text = r"(?s)at ipc:///d: .*30 s.*to go on: .*pipeline --listen ipc:///d"
    with pytest.raises(PeerUnreachable, match=text) as told:
        looks(watch, *every(0.5, 30.0), last_heard_s=0.0, service=seen)
    assert "headrace workers --connect ipc:///d --source photos=DIR" in str(told.value)
    with pytest.raises(RunFailed, match="no worker is connected"):
        StallWatch(POLICY._replace(standing="ipc:///d")).look(30.0, **at(30.0, service=service(workers=0)))


def test_the_end_of_a_stall_is_told() -> None:
    """So that the last note does not say the opposite of what is so."""
    watch = StallWatch(POLICY._replace(timeout_s=300.0, on_stall="wait"))
    looks(watch, *every(0.5, 20.0), service=service(workers=0))
    told = looks(watch, 20.5, 21.0, last_arrival_s=20.2)
    assert told == [(20.5, "slices arrive again, after 20 s")]
    assert looks(watch, *every(0.5, 30.0, since_s=21.0), last_arrival_s=20.2, service=service(workers=0)) != []


def test_the_end_of_a_stall_is_told_when_the_wait_ends() -> None:
    """Not at the next wait, which may be an hour away, and with that hour in it."""
    watch = StallWatch(POLICY._replace(timeout_s=300.0, on_stall="wait"))
    looks(watch, *every(0.5, 20.0), service=service(workers=0))
    told = watch.rest(last_arrival_s=20.2)
    assert told is not None
    assert told.text == "slices arrive again, after 20 s"
    assert watch.rest(last_arrival_s=20.4) is None


def test_who_was_stopped_himself_blames_nobody() -> None:
    """SIGSTOP of the trainer for an hour: all clocks have run on, nobody was late."""
    watch = StallWatch(POLICY)
    looks(watch, *every(0.5, 10.0))
    assert looks(watch, *every(0.5, 3629.5, since_s=3600.0), last_heard_s=10.0)[0][0] == 3605.5
    with pytest.raises(RunFailed):
        looks(watch, 3630.5, last_heard_s=10.0)


def test_a_loop_that_was_away_has_not_waited() -> None:
    """An evaluation of minutes between two batches is no stall."""
    watch = StallWatch(POLICY)
    looks(watch, 0.5, 1.0)
    assert watch.rest(last_arrival_s=1.0) is None
    assert looks(watch, 600.5, 601.0, waiting_since_s=600.0) == []
