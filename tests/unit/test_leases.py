"""Leases: each slice is placed exactly once, whatever the link and the workers do."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.lateness import Lateness
from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Condemn,
    Dismiss,
    Grant,
    ReportLost,
    Retire,
    SliceGivenBack,
    StreamBeaten,
    StreamLeft,
    StreamRegistered,
    Ticked,
    WorkerBeaten,
    WorkerGone,
    WorkerJoined,
    WorkerLeaving,
)
from pipeline.lease_stream import Copy, StreamSlices
from pipeline.lease_workers import LEASES_IN_HAND
from pipeline.leases import Leases
from pipeline.messages import Lost
from pipeline.timeline import LastBatch, Timeline, TimelineEntry
from tests.laws import Faults, LossySystem
from tests.sizes import cases


def timeline(num_samples: int = 64, batch_size: int = 8, epochs: int = 1, last_batch: LastBatch = "drop") -> Timeline:
    entry = TimelineEntry(start=0, step=0, recipe="r", batch_size=batch_size)
    return Timeline([entry], num_samples=num_samples, last_batch=last_batch, end_position=epochs * num_samples)


def registered(name: str = "s", *, window: int = 2, slice_size: int = 4, **changes: int) -> StreamRegistered:
    return StreamRegistered(
        stream=(name, changes.get("incarnation", 1)),
        source="photos",
        timeline=timeline(),
        slice_size=slice_size,
        head_step=changes.get("head_step", 0),
        arrived=changes.get("arrived", 0),
        window=window,
        quarantined={},
    )


def beaten(
    number: int, *, head_step: int = 0, arrived: int = 0, window: int = 2, quarantined: dict[int, int] | None = None
) -> StreamBeaten:
    return StreamBeaten(
        stream=("s", 1),
        number=number,
        head_step=head_step,
        arrived=arrived,
        window=window,
        quarantined=quarantined or {},
    )


def joined(worker: str) -> WorkerJoined:
    return WorkerJoined(worker=worker, sources=frozenset({"photos"}))


def ranges(actions: list[Action]) -> list[tuple[str, int, int]]:
    return [(a.worker, a.lease.start, a.lease.stop) for a in actions if isinstance(a, Grant)]


LINKS = {
    "seed": st.integers(0, 2**32),
    "num_samples": st.integers(1, 50),
    "batch_size": st.integers(1, 12),
    "slice_size": st.integers(1, 16),
    "window": st.integers(1, 4),
    "num_workers": st.integers(1, 4),
    "last_batch": st.sampled_from(["keep", "wrap"]),
}


@settings(max_examples=cases(50))
@given(
    **LINKS,
    drop=st.sampled_from([0.0, 0.05, 0.3]),
    kill=st.sampled_from([0.0, 0.02]),
    leave=st.sampled_from([0.0, 0.02]),
    silence=st.sampled_from([0.0, 0.005]),
    restart=st.sampled_from([0.0, 0.01]),
    flaky=st.sampled_from([0.0, 0.1]),
    narrow=st.sampled_from([0.0, 0.05]),
    bad=st.integers(0, 3),
)
# A part of a leased slice arrives, cut by an earlier dispatcher: hedged, the whole was leased for ever.
@example(
    seed=1198990, num_samples=45, batch_size=11, slice_size=10, window=1, num_workers=2, last_batch="wrap",
    drop=0.3, kill=0.0, leave=0.0, silence=0.0, restart=0.01, flaky=0.0, narrow=0.0, bad=2,
)  # fmt: skip
def test_each_position_is_placed_once_over_a_link_that_loses_repeats_and_reorders(
    seed: int,
    num_samples: int,
    batch_size: int,
    slice_size: int,
    window: int,
    num_workers: int,
    last_batch: LastBatch,
    bad: int,
    **likely: float,
) -> None:
    """Exactly once, in order, inside the window, and always to the end while one worker lives, whatever else happens:
    workers condemned and back again, workers that leave, dispatchers that start anew, reads that fail for a time or for
    ever. What was quarantined is what was used: a replay substitutes the same samples."""
    plan, coin = timeline(num_samples, batch_size, epochs=2, last_batch=last_batch), random.Random(seed)
    unreadable = frozenset(coin.sample(range(2 * num_samples), min(bad, num_samples)))
    system = LossySystem(plan, window, slice_size, coin, Faults(unreadable=unreadable, **likely))
    system.run(num_workers, max_s=3000.0)
    assert list(range(2 * num_samples)) == sorted(system.trainer.placed)
    assert list(range(plan.num_steps)) == [batch.step for batch in system.delivered]
    used = {position: attempt for position, attempt in system.trainer.placed_attempt.items() if attempt}
    assert used == system.disk.quarantined
    assert unreadable <= set(used)


@settings(max_examples=cases(80))
@given(
    **LINKS,
    drop=st.sampled_from([0.0, 0.05, 0.3]),
    kill=st.sampled_from([0.0, 0.02]),
    leave=st.sampled_from([0.0, 0.01]),
    silence=st.sampled_from([0.0, 0.005]),
    restart=st.sampled_from([0.0, 0.01, 0.03]),
    resume=st.sampled_from([0.0, 0.01]),
    swap=st.sampled_from([0.02, 0.1, 1.0]),
    crash_in_swap=st.sampled_from([0.0, 0.2]),
    other_batch_size=st.sampled_from([0.0, 0.5]),
    narrow=st.sampled_from([0.0, 0.05]),
)
def test_no_batch_mixes_recipes_and_no_boundary_moves_whoever_is_restarted(
    seed: int,
    num_samples: int,
    batch_size: int,
    slice_size: int,
    window: int,
    num_workers: int,
    last_batch: LastBatch,
    **likely: float,
) -> None:
    """The dispatcher's and the receiver's cores, joined: chains are swapped, the trainer is killed and resumes from
    earlier steps, its frames of earlier lives still arrive, the dispatcher forgets everything. What the timeline on
    disk says in the end is what every life of the trainer delivered, each batch once and in order."""
    plan, coin = timeline(num_samples, batch_size, epochs=3, last_batch=last_batch), random.Random(seed)
    system = LossySystem(plan, window, slice_size, coin, Faults(**likely))
    system.run(num_workers, max_s=3000.0)
    final = system.disk.timeline
    for trainer in (*system.past, system.trainer):
        steps = [batch.step for batch in trainer.taken]
        assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else True
        assert len(trainer.placed) == len(set(trainer.placed))
    for batch in system.delivered:
        assert batch == final.batch(batch.step)
    assert {batch.step for batch in system.delivered} == set(range(final.num_steps))
    covered = sorted(place for batch in set(system.delivered) for place in range(batch.start, batch.stop))
    assert covered == list(range(3 * num_samples))


def test_work_is_shared_and_bounded_by_the_window() -> None:
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(joined("b"), 0.0)
    granted = ranges(leases.step(registered(window=2), 0.0))
    assert [("a", 0, 4), ("b", 4, 8), ("a", 8, 12), ("b", 12, 16)] == granted
    more = leases.step(WorkerBeaten(worker="a", number=1, received=2, holding=()), 0.1)
    assert [] == ranges(more), "the window is used up, not the worker"
    assert [("a", 16, 20), ("b", 20, 24)] == ranges(leases.step(beaten(1, head_step=1, arrived=0xFF), 0.2))


def test_a_window_that_shrinks_holds_back_what_was_cut_for_the_wider_one_until_it_is_reached() -> None:
    """Batches of larger images come: what is leased may still arrive, what waits would fill more than the memory."""
    leases = Leases()
    leases.step(registered(window=4), 0.0)
    leases.step(beaten(1, window=1), 0.1)
    assert leases.streams["s", 1].num_waiting == 2
    assert [("a", 0, 4), ("a", 4, 8)] == ranges(leases.step(joined("a"), 0.2))
    assert [] == ranges(leases.step(joined("b"), 0.3)), "beyond the window"
    assert [("b", 8, 12), ("b", 12, 16)] == ranges(leases.step(beaten(2, window=2), 0.4))
    assert [] == ranges(leases.step(WorkerGone(worker="b", cause="SIGKILL", blame=False), 0.5))
    leases.step(beaten(3, window=1), 0.6)
    assert [] == ranges(leases.step(joined("c"), 0.7)), "given back, and beyond the window by now"
    assert [8, 12] == [start for _, start, _ in ranges(leases.step(beaten(4, head_step=1, window=1), 0.8))]


def test_a_changed_timeline_brings_its_window_and_an_older_beat_does_not_undo_it() -> None:
    """The trainer's registration says both at once; the beat before it may have been overtaken."""
    leases = Leases()
    leases.step(registered(window=1), 0.0)
    swap = replace(registered(window=3), timeline=swapped(3), revision=1)
    leases.step(swap, 0.1)
    assert leases.streams["s", 1].window == 3
    leases.step(beaten(7, window=1), 0.2)
    assert leases.streams["s", 1].window == 3
    leases.step(replace(beaten(8, window=2), revision=1), 0.3)
    assert leases.streams["s", 1].window == 2


def test_a_worker_never_has_more_than_its_leases_in_hand() -> None:
    leases = Leases()
    leases.step(joined("a"), 0.0)
    assert LEASES_IN_HAND == len(ranges(leases.step(registered(window=8), 0.0)))


def test_a_dead_workers_slices_go_to_another() -> None:
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(), 0.0)
    leases.step(WorkerGone(worker="a", cause="SIGKILL", blame=True), 0.1)
    assert [("b", 0, 4), ("b", 4, 8)] == ranges(leases.step(joined("b"), 0.2))


def test_silence_condemns_a_worker_and_a_stream() -> None:
    leases = Leases(worker_ttl_s=10, stream_ttl_s=60)
    leases.step(joined("a"), 0.0)
    leases.step(registered(), 0.0)
    assert [Condemn(worker="a")] == leases.step(Ticked(), 10.1)
    assert [AskToJoin(worker="a")] == leases.step(WorkerBeaten(worker="a", number=1, received=0, holding=()), 10.2)
    assert [Retire(stream=("s", 1))] == leases.step(Ticked(), 60.1)
    assert [AskToRegister(stream=("s", 1))] == leases.step(beaten(1), 60.2)


def test_a_slice_that_outlives_five_workers_is_leased_a_sample_at_a_time_and_the_killer_is_named() -> None:
    """Nobody tells which sample it was (the pool died too): halving down to single samples finds it."""
    leases = Leases()
    leases.step(registered(window=1, slice_size=8), 0.0)
    lost: list[ReportLost] = []
    arrived = 0
    for number in range(40):
        name, now_s = f"w{number}", float(number)
        actions = leases.step(joined(name), now_s)
        lost += [action for action in actions if isinstance(action, ReportLost)]
        in_hand = ranges(actions)
        while in_hand and 3 not in range(*in_hand[0][1:]):
            arrived |= sum(1 << place for place in range(*in_hand[0][1:]))
            in_hand = in_hand[1:] + ranges(
                leases.step(beaten(number * 10 + bin(arrived).count("1"), arrived=arrived, window=1), now_s)
            )
            received = leases.workers[name].last_lease
            holding = tuple(range(received - len(in_hand) + 1, received + 1))
            in_hand += ranges(
                leases.step(WorkerBeaten(worker=name, number=arrived, received=received, holding=holding), now_s)
            )
        actions = leases.step(WorkerGone(worker=name, cause="SIGSEGV", blame=True), now_s)
        lost += [action for action in actions if isinstance(action, ReportLost)]
        if lost:
            break
    assert (3, "SIGSEGV") == (lost[0].lost[0].position, lost[0].lost[0].cause)
    assert 0b11110111 & arrived == arrived


def test_two_crashes_at_a_known_sample_suffice_and_its_neighbours_go_on() -> None:
    leases = Leases()
    leases.step(registered(window=1), 0.0)
    leases.step(joined("a"), 0.0)
    gone = {"cause": "SIGSEGV", "blame": True, "by_itself": True, "at": (("s", 1), 2), "attempt": 3}
    assert [] == leases.step(WorkerGone(worker="a", **gone), 0.1)  # type: ignore[arg-type]
    leases.step(joined("b"), 0.2)
    (report,) = leases.step(WorkerGone(worker="b", **gone), 0.3)  # type: ignore[arg-type]
    assert isinstance(report, ReportLost)
    assert [(2, 3)] == [(lost.position, lost.attempt) for lost in report.lost]
    assert [("c", 0, 2), ("c", 3, 4)] == ranges(leases.step(joined("c"), 0.4))
    (again,) = [a for a in leases.step(Ticked(), 1.0) if isinstance(a, ReportLost)]
    assert report == again, "repeated until the trainer has decided"
    leases.step(WorkerBeaten(worker="c", number=1, received=2, holding=()), 1.1)
    (grant, *_) = [a for a in leases.step(beaten(1, quarantined={2: 4}, window=1), 1.2) if isinstance(a, Grant)]
    assert ((2, 3), {2: 4}) == ((grant.lease.start, grant.lease.stop), grant.lease.quarantined)


def test_a_failed_read_is_tried_on_another_worker_then_reported() -> None:
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=1, slice_size=8), 0.0)
    leases.step(joined("b"), 0.0)
    failed = Lost(position=5, attempt=1, cause="I/O error", bad_before=("torn",))
    assert [] == leases.step(SliceGivenBack(worker="a", lease=1, failed=failed), 0.1)
    leases.step(WorkerBeaten(worker="a", number=1, received=1, holding=()), 0.1)
    assert [("b", 0, 8)] == ranges(leases.step(Ticked(), 0.7))
    leases.step(SliceGivenBack(worker="b", lease=1, failed=failed), 0.8)
    leases.step(WorkerBeaten(worker="b", number=1, received=1, holding=()), 0.8)
    assert [("a", 0, 8)] == ranges(leases.step(Ticked(), 1.9))
    (report, *_) = leases.step(SliceGivenBack(worker="a", lease=2, failed=failed), 2.0)
    assert isinstance(report, ReportLost)
    assert (failed,) == report.lost


def test_a_sample_and_its_substitute_have_three_reads_each() -> None:
    """They are two files: that the one was out of reach for a moment says nothing of the other."""
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=1, slice_size=8), 0.0)
    for number, attempt in enumerate((0, 0, 1, 1)):
        failed = Lost(position=5, attempt=attempt, cause="I/O error")
        assert [] == leases.step(SliceGivenBack(worker="a", lease=number + 1, failed=failed), 10.0 * number)
        leases.step(WorkerBeaten(worker="a", number=number + 1, received=number + 1, holding=()), 10.0 * number)
        assert [("a", 0, 8)] == ranges(leases.step(beaten(number + 1, window=1), 10.0 * number + 5.0))


def test_a_lease_whose_slice_never_arrives_is_leased_again() -> None:
    leases = Leases(resend_s=2.0)
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=1, slice_size=8), 0.0)
    leases.step(WorkerBeaten(worker="a", number=1, received=1, holding=()), 1.0)
    assert [] == ranges(leases.step(Ticked(), 2.5))
    assert [] == ranges(leases.step(Ticked(), 3.5)), "the trainer is silent: perhaps it has the slice"
    assert [("a", 0, 8)] == ranges(leases.step(beaten(1, window=1), 3.6) + leases.step(Ticked(), 3.7))


def test_a_worker_that_forgot_its_leases_does_not_keep_them() -> None:
    """It was asked to join again and began anew, and its Join was lost: nobody else would make those slices."""
    leases = Leases(resend_s=2.0)
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=1, slice_size=8), 0.0)
    leases.step(WorkerBeaten(worker="a", number=1, received=1, holding=(1,)), 0.1)
    leases.step(WorkerBeaten(worker="a", number=2, received=0, holding=()), 0.2)
    assert [("a", 0, 8)] == ranges(leases.step(beaten(1, window=1), 2.5) + leases.step(Ticked(), 2.6))


def test_a_slice_of_which_a_part_has_arrived_is_leased_without_it() -> None:
    """The dispatcher before had cut it smaller; a slice that holds what the trainer has would be dropped for ever."""
    leases = Leases(resend_s=2.0)
    leases.step(joined("a"), 0.0)
    granted = ranges(leases.step(registered(window=1, slice_size=8, arrived=0b00011100), 0.0))
    assert [("a", 0, 2), ("a", 5, 8)] == granted
    leases.step(WorkerBeaten(worker="a", number=1, received=2, holding=()), 0.1)
    again = leases.step(beaten(1, arrived=0b10011101, window=1), 2.5) + leases.step(Ticked(), 2.6)
    assert [("a", 1, 2), ("a", 5, 7)] == ranges(again), "also when the part arrives while it is leased"


def test_a_slice_that_can_not_arrive_as_a_whole_is_not_hedged_for_ever() -> None:
    """With a second worker another copy always lived, so what was missing was never leased by itself."""
    leases = Leases(resend_s=2.0)
    leases.step(joined("a"), 0.0)
    leases.step(joined("b"), 0.0)
    assert [("a", 0, 8)] == ranges(leases.step(registered(window=1, slice_size=8), 0.0))
    assert [("b", 0, 8)] == ranges(leases.step(beaten(1, window=1), 1.1) + leases.step(Ticked(), 1.2))
    for worker in "ab":
        leases.step(WorkerBeaten(worker=worker, number=1, received=1, holding=()), 1.3)
    (granted,) = ranges(leases.step(beaten(2, arrived=0b111, window=1), 1.4))
    assert (3, 8) == granted[1:], "an earlier dispatcher had cut (0, 3)"
    assert 0 == sum(worker.num_delivered for worker in leases.workers.values()), "neither of them sent it"


def swapped(step: int, recipe: str = "new", batch_size: int = 8) -> Timeline:
    change = TimelineEntry(start=8 * step, step=step, recipe=recipe, batch_size=batch_size)
    return Timeline([*timeline().entries, change], num_samples=64, last_batch="drop", end_position=64)


def grants(actions: list[Action]) -> list[tuple[str, int, str]]:
    return [(a.worker, a.lease.start, a.lease.recipe) for a in actions if isinstance(a, Grant)]


def test_a_changed_timeline_ends_leases_of_the_old_recipe_and_no_others() -> None:
    """What is made of them is dropped by the trainer; what lies before the boundary goes on."""
    leases = Leases()
    for name in "abc":
        leases.step(joined(name), 0.0)
    leases.step(registered(window=4), 0.0)
    stream = leases.streams["s", 1]
    assert 3 == stream.unleased_step
    registration = registered(window=4)
    changed = replace(registration, timeline=swapped(2), revision=1)
    for name in "abc":
        leases.step(WorkerBeaten(worker=name, number=1, received=2, holding=(1, 2)), 0.1)
    assert [] == grants(leases.step(changed, 0.1)), "all have two leases in hand, void or not"
    assert [(0, 4), (4, 8), (8, 12), (12, 16)] == sorted(stream.leased)
    again = leases.step(WorkerBeaten(worker="a", number=2, received=2, holding=()), 0.2)
    assert [("a", 16, "new"), ("a", 20, "new")] == grants(again)
    leases.step(registration, 0.3)
    assert 1 == stream.revision, "an older registration that was late on its way changes nothing"


def test_a_dispatcher_with_an_older_timeline_asks_for_the_newer_one() -> None:
    """A registration may be lost where the link loses messages: beats would be about a timeline nobody knows here."""
    leases = Leases()
    leases.step(registered(), 0.0)
    assert [AskToRegister(stream=("s", 1))] == leases.step(replace(beaten(1), revision=1), 0.1)


def test_a_late_lease_of_the_head_batch_goes_to_an_idle_worker_once() -> None:
    """A worker that is stopped for ten seconds must not hold the training loop for as long."""
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=2, slice_size=8), 0.0)
    leases.step(joined("b"), 0.0)
    leases.step(WorkerBeaten(worker="b", number=1, received=0, holding=()), 0.5)
    assert [] == ranges(leases.step(Ticked(), 0.9)), "before eight arrivals late means a second"
    leases.step(beaten(1), 1.0)
    assert [("b", 0, 8)] == ranges(leases.step(Ticked(), 1.1))
    assert [] == ranges(leases.step(Ticked(), 1.2)), "two copies at most; the second batch is not waited for yet"
    assert 1 == leases.streams["s", 1].num_hedged
    leases.step(WorkerBeaten(worker="b", number=2, received=1, holding=()), 1.3)
    leases.step(beaten(2, head_step=1), 1.4)
    assert (0, 1) == (leases.workers["a"].num_delivered, leases.workers["b"].num_delivered), "who sent it is known"
    assert {(8, 16), (16, 24)} == set(leases.streams["s", 1].leased)


def test_a_stopped_worker_makes_nothing_later_than_its_first_lease() -> None:
    """What was late and came by its second copy says nothing of how long a slice takes: else each waited for longer."""
    stream = StreamSlices(replace(registered(window=1, slice_size=8), timeline=timeline(epochs=9)), 0.0)
    now_s, waited_s = 0.0, []
    for step in range(30):
        held = stream.offer("stopped", now_s)
        assert held is not None
        stream.take(held, Copy("stopped", step, now_s))
        granted_s = now_s
        while not stream.late(now_s):
            now_s += 0.01
            stream.beaten(beaten(1000 * step + round(100 * (now_s - granted_s)), head_step=step, window=1), now_s)
        waited_s.append(now_s - granted_s)
        stream.take(held, Copy("idle", step, now_s))
        now_s += 0.02
        stream.beaten(beaten(1000 * step + 999, head_step=step + 1, window=1), now_s)
    assert max(waited_s[:8]) == pytest.approx(1.0, abs=0.02), "before eight arrivals late means a second"
    assert max(waited_s[8:]) == pytest.approx(0.1, abs=0.02)


def test_the_end_of_one_copy_of_a_hedged_lease_changes_nothing_while_the_other_lives() -> None:
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=1, slice_size=8), 0.0)
    leases.step(joined("b"), 0.0)
    leases.step(beaten(1, window=1), 1.0)
    assert [("b", 0, 8)] == ranges(leases.step(Ticked(), 1.1))
    assert [] == leases.step(WorkerGone(worker="a", cause="SIGKILL", blame=True), 1.2)
    assert ["b"] == [copy.worker for copy in leases.streams["s", 1].leased[0, 8]]
    assert [("c", 0, 8)] == ranges(
        [*leases.step(WorkerGone(worker="b", cause="SIGKILL", blame=True), 1.3), *leases.step(joined("c"), 1.4)]
    )


def test_nothing_is_hedged_while_its_trainer_is_silent() -> None:
    """A trainer that is stopped can't say that the slice has arrived."""
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=1, slice_size=8), 0.0)
    leases.step(WorkerBeaten(worker="a", number=1, received=1, holding=(1,)), 0.1)
    leases.step(joined("b"), 0.1)
    assert [] == ranges(leases.step(Ticked(), 4.0))
    leases.step(beaten(1, window=1), 4.1)
    assert [("b", 0, 8)] == ranges(leases.step(Ticked(), 4.2))


def test_what_is_late_follows_from_what_came_before() -> None:
    """Three times the 95th percentile, and not less than the grain of beats."""
    lateness = Lateness()
    for _ in range(7):
        lateness.arrived("r", 0.2)
    assert 1.0 == lateness.late_s("r")
    lateness.arrived("r", 0.2)
    assert 0.6 == pytest.approx(lateness.late_s("r"))
    for _ in range(64):
        lateness.arrived("r", 0.001)
    assert 0.1 == lateness.late_s("r")
    lateness.keep({"other"})
    assert 1.0 == lateness.late_s("r")


def test_a_leaving_worker_finishes_what_it_holds_and_is_dismissed_when_it_has_arrived() -> None:
    """It would lose what it has sent if it closed its sockets earlier."""
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(window=2, slice_size=8), 0.0)
    assert [] == leases.step(WorkerLeaving(worker="a"), 0.1)
    leases.step(WorkerBeaten(worker="a", number=1, received=2, holding=()), 0.2)
    assert [] == leases.step(WorkerLeaving(worker="a"), 0.3)
    assert [] == leases.step(beaten(1, head_step=2), 0.4), "no further lease"
    assert [Dismiss(worker="a")] == leases.step(Ticked(), 0.5)
    assert [Dismiss(worker="a")] == leases.step(WorkerLeaving(worker="a"), 0.6), "again, until it has heard it"
    assert [Condemn(worker="a", in_peace=True)] == leases.step(Ticked(), 11.0)
    assert [Dismiss(worker="z")] == leases.step(WorkerLeaving(worker="z"), 12.0), "nobody waits for who is not known"


def test_nobody_is_condemned_before_the_socket_is_drained() -> None:
    """Beats may wait there; but time passes for all else."""
    leases = Leases()
    leases.step(joined("a"), 0.0)
    assert [] == leases.step(Ticked(drained=False), 100.0)
    assert {"a"} == set(leases.workers)


def test_a_lease_that_was_lost_with_its_stream_does_not_occupy_its_worker() -> None:
    """It was granted, lost on the way, and the stream ended before anybody noticed."""
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(), 0.0)
    leases.step(StreamLeft(stream=("s", 1)), 0.1)
    assert [("a", 0, 4), ("a", 4, 8)] == ranges(leases.step(registered(incarnation=2), 0.2))


def test_an_older_incarnation_evicts_nobody() -> None:
    """Its registration was late on the way."""
    leases = Leases()
    leases.step(registered(incarnation=5), 0.0)
    leases.step(registered(incarnation=1), 0.1)
    assert {("s", 5)} == set(leases.streams)


def test_a_lost_position_that_arrives_after_all_is_lost_no_more() -> None:
    """A copy made before may be late; a trainer that has it would not decide, and would be asked for ever."""
    leases = Leases()
    leases.step(registered(window=1, slice_size=1), 0.0)
    for number in range(2):
        leases.step(joined(f"w{number}"), 0.0)
        gone = WorkerGone(worker=f"w{number}", cause="SIGSEGV", blame=True, by_itself=True, at=(("s", 1), 0))
        actions = leases.step(gone, 0.1)
    assert [0] == [lost.position for action in actions if isinstance(action, ReportLost) for lost in action.lost]
    leases.step(beaten(1, arrived=0b1, window=1), 0.2)
    assert [] == leases.step(Ticked(), 0.3)


def test_a_new_incarnation_voids_the_old() -> None:
    leases = Leases()
    leases.step(joined("a"), 0.0)
    leases.step(registered(), 0.0)
    leases.step(registered(incarnation=2), 0.1)
    assert {("s", 2)} == set(leases.streams)
    assert [] == leases.step(StreamLeft(stream=("s", 1)), 0.2)


def test_a_stream_registered_in_the_middle_is_leased_only_what_is_missing() -> None:
    leases = Leases()
    leases.step(joined("a"), 0.0)
    assert [("a", 12, 16), ("a", 16, 20)] == ranges(leases.step(registered(head_step=1, arrived=0b1111), 0.0))


def test_two_streams_share_the_workers() -> None:
    leases = Leases()
    leases.step(registered("fast", window=8), 0.0)
    leases.step(registered("slow", window=8), 0.0)
    grants = [a.lease.stream for name in "abcd" for a in leases.step(joined(name), 0.0) if isinstance(a, Grant)]
    assert {"fast": 4, "slow": 4} == {name: grants.count(name) for name in ("fast", "slow")}


def test_a_worker_without_the_source_gets_nothing() -> None:
    leases = Leases()
    leases.step(registered(), 0.0)
    assert [] == leases.step(WorkerJoined(worker="a", sources=frozenset({"other"})), 0.0)
