"""Probes: who tries a recipe, and what is concluded from deaths."""

from pipeline.probes import REPEAT_S, Probes

STREAM = ("run/train", 1)
PROBE = (STREAM, "abc")


def test_a_sample_that_killed_a_worker_is_left_out_of_the_next_try():
    """One deadly sample is for the bad-sample policy to judge; the chain may be sound."""
    probes = Probes()
    probes.ask(PROBE)
    probes.assign(PROBE, "w1", 0.0)
    assert probes.worker_gone("w1", "SIGSEGV", blame=True, by_itself=True, at=(STREAM, 17)) == []
    assert probes.waiting() == [PROBE]
    assert probes.skip(PROBE) == (17,)


def test_a_death_in_another_stream_leaves_no_sample_out():
    """Position 17 of another stream is another sample."""
    probes = Probes()
    probes.ask(PROBE)
    probes.assign(PROBE, "w1", 0.0)
    probes.worker_gone("w1", "SIGSEGV", blame=True, by_itself=True, at=(("run/eval", 2), 17))
    assert probes.skip(PROBE) == ()


def num_deaths_until_refused(*, by_itself):
    """Checks that the refusal tells the last cause."""
    probes = Probes()
    probes.ask(PROBE)
    for number in range(1, 10):
        assert probes.waiting() == [PROBE]
        probes.assign(PROBE, f"w{number}", 0.0)
        cause = f"cause {number}"
        refused = probes.worker_gone(f"w{number}", cause, blame=True, by_itself=by_itself, at=(STREAM, number))
        if refused:
            assert refused == [(PROBE, cause)]
            assert probes.waiting() == []
            return number
    raise AssertionError("never refused")


def test_a_recipe_that_too_many_workers_died_of_is_refused_with_the_last_cause():
    """Else a chain that always crashes would be probed for ever; kills from outside count less, as for slices."""
    assert num_deaths_until_refused(by_itself=True) == 2
    assert num_deaths_until_refused(by_itself=False) == 5


def test_a_probe_is_overdue_only_while_its_answer_is_awaited():
    """What was answered, or waits for a worker, must not be sent to one that knows nothing of it."""
    probes = Probes()
    probes.ask(PROBE)
    assert probes.overdue(100.0) == []
    probes.assign(PROBE, "w1", 100.0)
    assert probes.overdue(100.0 + REPEAT_S / 2) == []
    assert probes.overdue(100.0 + REPEAT_S) == [(PROBE, "w1")]
    assert probes.answered(PROBE, "w1")
    assert probes.overdue(200.0) == []


def test_only_the_asked_worker_answers():
    """A worker that was condemned may still send its answer: the probe is with another by then."""
    probes = Probes()
    probes.ask(PROBE)
    probes.assign(PROBE, "w1", 0.0)
    probes.worker_gone("w1", "silent", blame=True, by_itself=True, at=None)
    probes.assign(PROBE, "w2", 0.0)
    assert not probes.answered(PROBE, "w1")
    assert probes.answered(PROBE, "w2")
    assert not probes.answered(PROBE, "w2")


def test_a_chain_that_can_not_be_built_is_refused_at_once_and_no_other_with_it():
    """No sample has a part in it, so it would happen again; a kill from outside says as little as ever."""
    probes, other = Probes(), (STREAM, "def")
    for probe in (PROBE, other):
        probes.ask(probe)
        probes.assign(probe, "w1", 0.0)
    gone = {"blame": True, "at": None, "building": PROBE}
    assert probes.worker_gone("w1", "killed by SIGKILL", by_itself=False, **gone) == []
    for probe in (PROBE, other):
        probes.assign(probe, "w2", 0.0)
    assert probes.worker_gone("w2", "hung", by_itself=True, **gone) == [(PROBE, "hung")]
    assert probes.waiting() == [other]
