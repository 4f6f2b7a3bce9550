"""Contact with a dispatcher: what a waiting user is told, and how often."""

from __future__ import annotations

from pipeline.contact import FIRST_SILENCE_S, Contact

E = "ipc:///somewhere"
SILENCE_S = 5.0


def looks(contact: Contact, start_s: float, stop_s: float) -> list[str]:
    """What is told from one time to another, at a look every half second."""
    times = [start_s + 0.5 * number for number in range(int(2 * (stop_s - start_s)) + 1)]
    return [text for time_s in times if (text := contact.look(time_s))]


def test_a_user_is_told_once_that_the_dispatcher_is_waited_for_and_once_that_it_answers() -> None:
    """Hours of waiting are one line."""
    contact = Contact(E, silence_s=SILENCE_S)
    assert looks(contact, 0.0, FIRST_SILENCE_S) == []
    assert looks(contact, FIRST_SILENCE_S, 1000.0) == [f"waiting for the dispatcher at {E}"]
    assert contact.heard(1000.1) == f"the dispatcher at {E} answers"
    assert contact.heard(1000.2) == ""


def test_a_dispatcher_that_falls_silent_is_told_of_after_silence_s() -> None:
    """And one that answers each time is not."""
    contact = Contact(E, silence_s=SILENCE_S)
    for second in range(100):
        contact.heard(float(second))
        assert looks(contact, float(second), second + 0.5) == []
    (told,) = looks(contact, 100.0, 200.0)
    assert "has not answered for 5 s" in told
    assert contact.is_waiting


def test_an_own_stop_is_not_the_dispatchers_silence() -> None:
    """Its answers may wait in our socket."""
    contact = Contact(E, silence_s=SILENCE_S)
    contact.look(0.0)
    contact.heard(0.5)
    assert looks(contact, 1000.0, 1000.0 + SILENCE_S) == []
    assert len(looks(contact, 1000.0 + SILENCE_S, 1010.0)) == 1


def test_a_dispatcher_is_asked_once_a_second_however_often_one_looks() -> None:
    """A question that is lost costs a second."""
    contact = Contact(E)
    assert sum(contact.should_ask(number / 10) for number in range(100)) == 10
