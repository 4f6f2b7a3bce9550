"""Vitals: which service is killed or started again, and when."""

from __future__ import annotations

import pytest

from headrace.vitals import MAX_BACKOFF_S, MAX_FAILURES, SILENT_S, START_S, Vitals


@pytest.fixture(name="vitals")
def _vitals() -> Vitals:
    vitals = Vitals()
    vitals.started(0.0)
    return vitals


def test_a_service_that_falls_silent_is_killed_after_silent_s(vitals: Vitals) -> None:
    """It may be stopped, or its loop may be."""
    vitals.seen(10.0)
    assert vitals.looked(10.0 + SILENT_S, is_stopped=False) == ""
    assert "no sign of life" in vitals.looked(10.1 + SILENT_S, is_stopped=False)


def test_a_service_that_has_just_been_started_has_longer_to_give_a_sign(vitals: Vitals) -> None:
    """Imports from a slow disk are no fault."""
    assert vitals.looked(START_S, is_stopped=False) == ""
    assert vitals.looked(START_S + 0.1, is_stopped=False) != ""


def test_a_stopped_process_is_killed_after_silent_s_even_before_its_first_sign(vitals: Vitals) -> None:
    """The kernel says so: there is nothing to guess."""
    assert vitals.looked(1.0, is_stopped=True) == ""
    assert vitals.looked(1.0 + SILENT_S, is_stopped=True) == ""
    assert "SIGSTOP" in vitals.looked(1.1 + SILENT_S, is_stopped=True)


def test_a_process_that_goes_on_in_time_is_left_alone(vitals: Vitals) -> None:
    """Each stop has its own clock."""
    for second in range(100):
        assert vitals.looked(float(second), is_stopped=second % 4 != 0) == ""
        vitals.seen(float(second))


def test_a_service_that_could_not_be_heard_is_not_silent(vitals: Vitals) -> None:
    """A pool is heard through the dispatcher only, and nobody is heard while this process is stopped."""
    vitals.seen(0.0)
    vitals.excused(100.0)
    assert vitals.looked(100.0 + SILENT_S, is_stopped=False) == ""
    vitals.looked(105.0, is_stopped=True)
    vitals.resumed(1000.0)
    assert vitals.looked(1000.0 + SILENT_S, is_stopped=True) == ""


def test_a_service_that_lived_is_started_again_at_once_and_one_that_did_not_ever_later(vitals: Vitals) -> None:
    """Each death after a sign of life is news; one before it will repeat itself."""
    now_s, delays_s = 0.0, []
    for _ in range(MAX_FAILURES):
        assert not vitals.is_hopeless
        vitals.ended(now_s, by_itself=True)
        delays_s.append(vitals.start_at_s - now_s)
        now_s = vitals.start_at_s
        vitals.started(now_s)
    assert delays_s == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[MAX_BACKOFF_S] * 4])
    assert vitals.is_hopeless
    vitals.seen(now_s)
    assert not vitals.is_hopeless
    vitals.ended(now_s, by_itself=True)
    assert vitals.start_at_s - now_s == pytest.approx(0.1)


def test_being_killed_from_outside_is_no_sign_that_a_service_can_not_live(vitals: Vitals) -> None:
    """It is started ever later, and again."""
    for _ in range(3 * MAX_FAILURES):
        vitals.ended(0.0, by_itself=False)
    assert not vitals.is_hopeless
    assert vitals.start_at_s == pytest.approx(MAX_BACKOFF_S)
