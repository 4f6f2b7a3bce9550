"""Probes: who tries a recipe, and what is concluded from deaths."""

from pipeline.probes import MAX_DEATHS, Probes

STREAM = ("run/train", 1)
PROBE = (STREAM, "abc")


def test_a_sample_that_killed_a_worker_is_left_out_of_the_next_try():
    """One deadly sample is for the bad-sample policy to judge; the chain may be sound."""
    probes = Probes()
    probes.ask(PROBE)
    probes.assign(PROBE, "w1")
    assert probes.worker_gone("w1", "SIGSEGV", blame=True, at=(STREAM, 17)) == []
    assert probes.waiting() == [PROBE]
    assert probes.skip(PROBE) == (17,)


def test_a_death_in_another_stream_leaves_no_sample_out():
    """Position 17 of another stream is another sample."""
    probes = Probes()
    probes.ask(PROBE)
    probes.assign(PROBE, "w1")
    probes.worker_gone("w1", "SIGSEGV", blame=True, at=(("run/eval", 2), 17))
    assert probes.skip(PROBE) == ()


def test_a_recipe_that_too_many_workers_died_of_is_refused_with_the_last_cause():
    """Else a chain that always crashes would be probed for ever."""
    probes = Probes()
    probes.ask(PROBE)
    for number in range(MAX_DEATHS):
        assert probes.waiting() == [PROBE]
        probes.assign(PROBE, f"w{number}")
        refused = probes.worker_gone(f"w{number}", f"cause {number}", blame=True, at=(STREAM, number))
    assert refused == [(PROBE, f"cause {MAX_DEATHS - 1}")]
    assert probes.waiting() == []


def test_only_the_asked_worker_answers():
    """A worker that was condemned may still send its answer: the probe is with another by then."""
    probes = Probes()
    probes.ask(PROBE)
    probes.assign(PROBE, "w1")
    probes.worker_gone("w1", "silent", blame=True, at=None)
    probes.assign(PROBE, "w2")
    assert not probes.answered(PROBE, "w1")
    assert probes.answered(PROBE, "w2")
    assert not probes.answered(PROBE, "w2")
