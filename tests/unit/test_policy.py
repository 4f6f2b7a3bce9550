"""What is done about bad samples, without streams."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.bad_count import BadCount
from pipeline.errors import RunFailed
from pipeline.messages import Lost
from pipeline.slice_header import QUARANTINED, BadSample
from trainer.policy import MIN_BAD_BEFORE_FATAL, NOT_KNOWN, BadSamplePolicy


def policy(on_bad_sample="substitute", max_bad_fraction=0.0, num_samples=1_000_000, **earlier):
    """A policy over samples named after position and attempt, and the lists it writes to, in the order of writing."""
    written = []
    made = BadSamplePolicy(
        on_bad_sample,
        max_bad_fraction,
        num_samples,
        identify=lambda position, attempt: (position + 1000 * attempt, f"{position}-{attempt}.jpg"),
        quarantine=lambda entry: written.append(("quarantine", entry)),
        journal=lambda entry: written.append(("journal", entry)),
        **earlier,
    )
    return made, written


def bad(position, cause="torn"):
    return BadSample(position=position, index=position, name=f"{position}.jpg", cause=cause, substitute=99)


def count(indices):
    """Bad samples that were met once each."""
    made = BadCount()
    for index in indices:
        made.meet(index)
    return made


def passes(made, positions, torn=(), lost=(), *, is_ahead=False):
    """A worker delivers these positions in slices of 16; the first that the policy doesn't bear, or None."""
    try:
        for start in positions[::16]:
            stop = min(start + 16, positions.stop)
            for position in range(start, stop):
                if position in lost and position not in made.quarantined:
                    made.lost([Lost(position=position, attempt=0, cause="I/O error")])
            causes = dict.fromkeys(torn, "torn") | dict.fromkeys(made.quarantined, QUARANTINED)
            made.delivered(stop - start, [bad(place, causes[place]) for place in range(start, stop) if place in causes])
            if not is_ahead:  # of the loop, which has not come so far
                made.quarantined_from(stop)
    except RunFailed:
        return start
    return None


def test_a_lost_position_is_written_down_by_its_samples_name_before_it_counts():
    """The entry must be on disk before the substitute is leased, and name what a user can look up."""
    made, written = policy()
    made.lost([Lost(position=7, attempt=0, cause="SIGSEGV")])
    (first, entry), (second, event) = written
    assert (first, second) == ("quarantine", "journal")
    assert (entry["position"], entry["index"], entry["name"], entry["lost_attempt"]) == (7, 7, "7-0.jpg", 0)
    assert (event["name"], event["cause"]) == ("7-0.jpg", "SIGSEGV")
    assert made.quarantined == {7: 1}


def test_a_loss_that_was_decided_already_is_not_written_again():
    """The dispatcher repeats what it lost until it has heard the decision."""
    made, written = policy()
    lost = Lost(position=7, attempt=0, cause="SIGSEGV")
    made.lost([lost, lost])
    made.lost([lost])
    assert len(written) == 2
    assert made.num_bad == 1


def test_the_substitute_of_a_lost_sample_may_be_lost_too():
    """Then it is the substitute that is named."""
    made, written = policy()
    made.lost([Lost(position=7, attempt=0, cause="SIGSEGV")])
    made.lost([Lost(position=7, attempt=1, cause="hung")])
    assert [entry["name"] for kind, entry in written if kind == "quarantine"] == ["7-0.jpg", "7-1.jpg"]
    assert made.quarantined == {7: 2}


def test_a_substitute_that_is_lost_is_named_itself_and_so_is_the_bad_sample_it_stood_for():
    """Once the loss of the substitute was laid to the bad sample, whose own cause was never told."""
    made, written = policy()
    made.lost([Lost(position=7, attempt=2, cause="I/O error", bad_before=("torn", "empty"))])
    (_, entry), *events = written
    assert (entry["name"], entry["cause"], entry["lost_attempt"]) == ("7-2.jpg", "I/O error", 2)
    told = [(event["name"], event["cause"], event["was_substitute"]) for _, event in events]
    assert told == [("7-0.jpg", "torn", False), ("7-1.jpg", "empty", True), ("7-2.jpg", "I/O error", True)]
    assert (made.quarantined, made.num_bad) == ({7: 3}, 1)


def test_each_bad_sample_is_told_of_once_whatever_was_known_when_its_substitute_was_lost():
    """A dispatcher may have leased before it heard of the last decision; a dead worker takes its causes with it."""
    made, written = policy(quarantined={7: 1, 8: 2})
    made.lost([Lost(position=7, attempt=2, cause="I/O error", bad_before=("torn", "empty"))])
    made.lost([Lost(position=8, attempt=2, cause="I/O error"), Lost(position=9, attempt=1, cause="SIGSEGV")])
    told = [(entry["name"], entry["cause"]) for kind, entry in written if kind == "journal"]
    assert told[:3] == [("7-1.jpg", "empty"), ("7-2.jpg", "I/O error"), ("8-2.jpg", "I/O error")]
    assert told[3:] == [("9-0.jpg", NOT_KNOWN), ("9-1.jpg", "SIGSEGV")]
    assert made.num_bad == 1


def test_under_fail_a_lost_sample_is_fatal_and_nothing_is_quarantined():
    """A quarantine entry would substitute it on resume, against the policy."""
    made, written = policy("fail")
    with pytest.raises(RunFailed, match=r"7-0\.jpg \(position 7\): SIGSEGV"):
        made.lost([Lost(position=7, attempt=0, cause="SIGSEGV")])
    assert [kind for kind, _ in written] == ["journal"]


@pytest.mark.parametrize(
    ("max_bad_fraction", "num_delivered", "limit"), [(0.0, 100, 10), (0.25, 100, 25), (0.25, 8, 10)]
)
def test_one_bad_sample_too_many_is_fatal(max_bad_fraction, num_delivered, limit):
    """More than max(10, the fraction of those delivered): the data set is broken, not a file of it."""
    made, _ = policy(max_bad_fraction=max_bad_fraction)
    made.delivered(num_delivered, [bad(position) for position in range(limit)])
    with pytest.raises(RunFailed) as failure:
        made.delivered(0, [bad(limit)])
    assert f"{limit + 1} bad samples among {num_delivered}" in str(failure.value)
    assert str(failure.value).count(".jpg: torn") == MIN_BAD_BEFORE_FATAL


def test_a_sample_that_is_bad_in_each_epoch_counts_once_however_long_the_run():
    """Two torn files of 216 once ended a run in its fourth epoch, as 38 bad samples."""
    made, written = policy(num_samples=216)
    for epoch in range(100):
        made.delivered(216, [replace(bad(216 * epoch + place), index=index) for place, index in ((3, 0), (70, 1))])
    assert (made.num_bad, len(written)) == (2, 200)


def test_storage_that_dies_in_a_later_epoch_ends_the_run_and_both_numbers_are_told():
    """A sample that can't be read counts by its index too, and eleven of them are more than any small source bears."""
    made, _ = policy(num_samples=216)
    for epoch in range(9):
        made.delivered(216, [replace(bad(216 * epoch), index=500)])
    losses = [Lost(position=2000 + number, attempt=0, cause="I/O error") for number in range(10)]
    with pytest.raises(RunFailed, match="11 bad samples, met 19 times, among 1944 delivered, more than the 10 allowed"):
        made.lost(losses)


def test_the_share_is_of_the_source_once_more_than_that_was_delivered():
    """A hundred epochs don't make a broken data set a sound one."""
    made, _ = policy(max_bad_fraction=0.25, num_samples=80)
    made.delivered(8_000, [bad(position) for position in range(20)])
    with pytest.raises(RunFailed, match="21 bad samples among 8000 delivered, more than the 20 allowed"):
        made.delivered(0, [bad(20)])


def test_a_position_whose_substitute_is_bad_too_counts_once_and_both_are_named():
    """The limit is a share of the samples delivered, and one sample is missing, not two."""
    made, written = policy()
    substitute = BadSample(position=3, index=8, name="8.jpg", cause="empty", substitute=99)
    made.delivered(16, [bad(3), substitute, bad(4)])
    assert made.num_bad == 2
    assert [entry["name"] for _, entry in written] == ["3.jpg", "8.jpg", "4.jpg"]
    assert [entry["was_substitute"] for _, entry in written] == [False, True, False]


def test_what_an_earlier_attempt_decided_holds_and_is_not_decided_again():
    """The samples of a resumed run are those of the run, whatever can be read by now."""
    made = BadSamplePolicy("fail", 0.0, 99, identify=lambda position, attempt: (0, "x"), quarantined={7: 1, 2: 1})
    assert made.quarantined_in(0, 8) == {7: 1, 2: 1}
    made.lost([Lost(position=7, attempt=0, cause="SIGSEGV")])
    assert made.quarantined_from(5) == {7: 1}
    assert made.num_bad == 0


def test_a_resumed_run_has_the_allowance_of_the_run_and_not_of_one_that_just_began():
    """Thirty torn files late in a run that bears five hundred: it lived, and lives when it is stopped before them."""
    torn = range(50_000, 50_030)
    undisturbed, _ = policy(max_bad_fraction=0.01)
    assert passes(undisturbed, range(60_000), torn) is None
    resumed, _ = policy(max_bad_fraction=0.01, num_delivered=49_600)
    assert passes(resumed, range(49_600, 60_000), torn) is None
    assert (resumed.num_delivered, resumed.num_bad) == (undisturbed.num_delivered, undisturbed.num_bad) == (60_000, 30)


@given(
    torn=st.sets(st.integers(0, 639), max_size=40),
    lost=st.sets(st.integers(0, 639), max_size=10),
    cut=st.integers(0, 40),
    num_ahead=st.integers(0, 4),
)
@example(torn={0, 1, 3, 4, 5, 6, 7, 8}, lost={2, 224, 225}, cut=11, num_ahead=4)
def test_wherever_a_run_is_cut_it_ends_at_the_same_sample_or_lives(torn, lost, cut, num_ahead):
    """Law 5: what had arrived ahead of the checkpoint is neither forgotten nor counted twice.

    What was quarantined ahead of it is not judged again, so that no run is stranded: such a run may end at a later one.
    """
    undisturbed, _ = policy(max_bad_fraction=0.04)
    verdict = passes(undisturbed, range(640), torn, lost - torn)
    first, written = policy(max_bad_fraction=0.04)
    start = 16 * cut
    if passes(first, range(start), torn, lost - torn) is None:
        passes(first, range(start, min(640, start + 16 * num_ahead)), torn, lost - torn, is_ahead=True)
    else:
        start = verdict
    named = [entry for kind, entry in written if kind == "journal" and entry["position"] < start]
    quarantined = {entry["position"]: 1 for kind, entry in written if kind == "quarantine"}
    kept = {"num_delivered": start, "bad": count(entry["index"] for entry in named), "quarantined": quarantined}
    resumed, _ = policy(max_bad_fraction=0.04, **kept)
    again = passes(resumed, range(start, 640), torn, lost - torn)
    if verdict is None or all(position < start for position in quarantined):
        assert again == verdict
    else:
        assert again is None or again >= verdict
    if verdict is None:
        assert resumed.num_bad == undisturbed.num_bad


def test_a_sample_quarantined_by_an_earlier_attempt_counts_where_it_is_delivered():
    """It was lost ahead of the checkpoint, whose count leaves it out; that it may be borne was decided then."""
    made, written = policy(bad=count(range(100, 110)), quarantined={7: 1, 8: 1})
    made.delivered(16, [bad(7, QUARANTINED)])
    assert (made.num_bad, written) == (11, [])
    with pytest.raises(RunFailed, match=r"12 bad samples among 16 .*\n  the first of this attempt"):
        made.delivered(0, [bad(9)])


def test_the_sample_that_is_one_too_many_is_not_quarantined():
    """Storage that is away for a minute ends the run; resumed, the run reads that sample again."""
    made, written = policy()
    losses = [Lost(position=position, attempt=0, cause="I/O error") for position in range(MIN_BAD_BEFORE_FATAL + 1)]
    with pytest.raises(RunFailed):
        made.lost(losses)
    assert [entry["position"] for kind, entry in written if kind == "quarantine"] == list(range(MIN_BAD_BEFORE_FATAL))
    assert written[-1][1]["name"] == f"{MIN_BAD_BEFORE_FATAL}-0.jpg"


def test_a_position_that_another_pass_has_counted_is_not_counted_again():
    """Each evaluation meets what earlier ones have lost: a hundred of them don't make a bad data set of one sample."""
    made, _ = policy(quarantined={7: 1, 8: 1}, counted_elsewhere={7})
    made.delivered(16, [bad(7, QUARANTINED), bad(8, QUARANTINED)])
    assert made.num_bad == 1


@pytest.mark.parametrize("on_bad_sample", ["substitute", "fail"])
def test_a_sample_that_was_trained_on_is_never_replaced_when_its_step_is_done_again(on_bad_sample):
    """A quarantine line would hold for good, and the step come out as another batch at every resume."""
    made, written = policy(on_bad_sample, trained_at=lambda position: 230 if position < 8 else None)
    with pytest.raises(RunFailed) as failure:
        made.lost([Lost(position=7, attempt=0, cause="the read failed: I/O error")])
    assert (written, made.quarantined, made.num_bad) == ([], {}, 0)
    for part in ("step 230 can't be done again", "7-0.jpg (position 7)", "the read failed: I/O error", "--resume once"):
        assert part in str(failure.value)


def test_beyond_the_steps_that_are_done_again_a_lost_sample_is_replaced_as_ever():
    """Nobody has seen another one there."""
    made, written = policy(trained_at=lambda position: 230 if position < 8 else None)
    made.lost([Lost(position=8, attempt=0, cause="I/O error")])
    assert (written[0][0], made.quarantined) == ("quarantine", {8: 1})
