"""Silence is judged only by a dispatcher that was awake to hear."""

from __future__ import annotations

from pipeline.ticks import CALM_S, MAX_GAP_S, TICK_S, Ticks


def test_a_dispatcher_that_was_stopped_judges_nobody_until_its_peers_could_be_heard() -> None:
    """After SIGCONT its clock says that all have been silent, and what they sent has yet to reach the socket."""
    ticks = Ticks(100.0)
    assert ticks.tick(100.1, drained=True)
    woken_s = ticks.next_s + MAX_GAP_S + 0.01
    assert not ticks.tick(woken_s, drained=True)
    assert not ticks.tick(woken_s + CALM_S - 0.01, drained=True), "also where the calm itself was one long tick"
    ticks = Ticks(100.0)
    ticks.tick(woken_s, drained=True)
    judged = []
    while ticks.next_s < woken_s + 2 * CALM_S:
        judged.append((ticks.next_s, ticks.tick(ticks.next_s, drained=True)))
    assert [at_s >= woken_s + CALM_S for at_s, _ in judged] == [may_judge for _, may_judge in judged]


def test_a_dispatcher_that_is_only_busy_judges_as_soon_as_it_has_heard_all() -> None:
    """A second of load is no stop; but what waits in the socket may be the beats of whom it would condemn."""
    ticks = Ticks(0.0)
    assert not ticks.is_due(TICK_S / 2)
    assert ticks.is_due(TICK_S)
    busy_s = TICK_S + MAX_GAP_S
    assert not ticks.tick(busy_s, drained=False)
    assert not ticks.is_due(busy_s + TICK_S / 2)
    assert ticks.tick(busy_s + TICK_S, drained=True)
