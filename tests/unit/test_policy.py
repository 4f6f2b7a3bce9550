"""What is done about bad samples, without streams."""

import pytest

from pipeline.errors import RunFailed
from pipeline.messages import Lost
from pipeline.slice_header import BadSample
from trainer.policy import MIN_BAD_BEFORE_FATAL, BadSamplePolicy


def policy(on_bad_sample="substitute", max_bad_fraction=0.0):
    """A policy over samples named after position and attempt, and the lists it writes to, in the order of writing."""
    written = []
    made = BadSamplePolicy(
        on_bad_sample,
        max_bad_fraction,
        identify=lambda position, attempt: (100 * position + attempt, f"{position}-{attempt}.jpg"),
        quarantine=lambda entry: written.append(("quarantine", entry)),
        journal=lambda entry: written.append(("journal", entry)),
    )
    return made, written


def bad(position):
    return BadSample(position=position, index=position, name=f"{position}.jpg", cause="torn", substitute=99)


def test_a_lost_position_is_written_down_by_its_samples_name_before_it_counts():
    """The entry must be on disk before the substitute is leased, and name what a user can look up."""
    made, written = policy()
    made.lost([Lost(position=7, attempt=0, cause="SIGSEGV")])
    (first, entry), (second, event) = written
    assert (first, second) == ("quarantine", "journal")
    assert (entry["position"], entry["index"], entry["name"], entry["lost_attempt"]) == (7, 700, "7-0.jpg", 0)
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


def test_a_position_whose_substitute_is_bad_too_counts_once_and_both_are_named():
    """The limit is a share of the samples delivered, and one sample is missing, not two."""
    made, written = policy()
    substitute = BadSample(position=3, index=8, name="8.jpg", cause="empty", substitute=99)
    made.delivered(16, [bad(3), substitute, bad(4)])
    assert made.num_bad == 2
    assert [entry["name"] for _, entry in written] == ["3.jpg", "8.jpg", "4.jpg"]


def test_what_an_earlier_attempt_decided_holds_and_is_not_decided_again():
    """The samples of a resumed run are those of the run, whatever can be read by now."""
    made = BadSamplePolicy("fail", 0.0, identify=lambda position, attempt: (0, "x"), quarantined={7: 1, 2: 1})
    assert made.quarantined_in(0, 8) == {7: 1, 2: 1}
    made.lost([Lost(position=7, attempt=0, cause="SIGSEGV")])
    assert made.quarantined_from(5) == {7: 1}
    assert made.num_bad == 0
