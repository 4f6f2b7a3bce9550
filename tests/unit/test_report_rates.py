"""What limits the rate, told from totals alone; and the notes beside it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import RunFailed
from pipeline.messages import ServiceState
from trainer.notes import NUM_KEPT, Notes
from trainer.report_rates import Rates, Totals


def rates(
    seconds: int, *, samples_per_s: int = 100, waited: float = 0.5, read: float = 0.1, make: float = 0.8
) -> Rates:
    made = Rates()
    for second in range(seconds + 1):
        made.see(Totals(1000.0 + second, samples_per_s * second, waited * second, read * second, make * second))
    return made


def service(idle: int, waiting: int) -> ServiceState:
    return ServiceState(
        stream="s",
        incarnation=1,
        workers=4,
        able_workers=4,
        sources=("photos",),
        idle_workers=idle,
        waiting_slices=waiting,
        leased_slices=4,
    )


@pytest.mark.parametrize(
    ("state", "made", "limit"),
    [
        (service(0, 9), {}, "workers"),
        (service(2, 9), {}, "workers"),
        (service(2, 0), {}, "window"),
        (None, {}, "workers"),
        (service(2, 0), {"waited": 0.04}, "trainer"),
        (service(0, 9), {"read": 0.9}, "source"),
        (service(0, 9), {"samples_per_s": 0}, ""),
    ],
)
def test_the_limit_is_named_from_who_waits_for_whom(state: Any, made: Any, limit: str) -> None:
    """The trainer first: while it hardly waits, nothing else matters."""
    assert rates(5, **made).limit(state) == limit


def test_nothing_is_said_before_there_is_anything_to_say() -> None:
    """Not a rate of 0, which would look like a stall."""
    assert (Rates().limit(None), Rates().samples_per_s, Rates().waited_fraction) == ("", 0.0, 0.0)
    assert rates(0).limit(None) == ""


def test_only_the_last_ten_seconds_count() -> None:
    """A run that was slow an hour ago is not slow now; and memory stays flat."""
    made = rates(1000)
    last = made._seen[-1]
    for second in range(1, 31):
        made.see(Totals(last.at_s + second, last.num_taken + 7 * second, last.waited_s, last.read_s, last.make_s))
    assert made.samples_per_s == pytest.approx(7.0)
    assert made.waited_fraction == 0.0
    assert len(made._seen) <= 12


def test_notes_keep_the_last_few_and_write_down_each() -> None:
    """The same thing told twice in a row stands there once; the journal has both."""
    journal: list[str] = []
    notes = Notes(lambda action, **fields: journal.append(fields["note"]), clock=lambda: "12:00:00")
    for number in range(NUM_KEPT + 3):
        notes.tell("trouble", f"text {number}")
    notes.tell("trouble", f"text {NUM_KEPT + 2}")
    assert notes.latest() == tuple(f"12:00:00 text {number}" for number in range(3, NUM_KEPT + 3))
    assert len(journal) == NUM_KEPT + 4


def test_a_note_may_stand_on_the_terminal_too_or_in_status_only(caplog: pytest.LogCaptureFixture) -> None:
    """A library's user has no journal; a script that waits a little for its workers says nothing."""
    for journal in (None, lambda action, **fields: None):
        notes = Notes(journal)
        for on_terminal in (None, True, False):
            notes.tell("trouble", f"text {on_terminal}", on_terminal=on_terminal)
        assert [text in caplog.text for text in ("text None", "text True", "text False")] == [not journal, True, False]
        assert len(notes.latest()) == 3
        caplog.clear()


def test_a_journal_that_cant_be_written_does_not_end_what_was_being_told(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk refuses a swap; that it can't be noted either must not end the run."""

    def full(action: str, **fields: Any) -> None:
        raise RunFailed("journal.jsonl: the disk is full")

    notes = Notes(full)
    notes.tell("swap_refused", "no room")
    assert notes.latest()[0].endswith("no room")
    assert "the disk is full" in caplog.text
