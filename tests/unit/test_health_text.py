"""What `headrace health` prints: it says what there is, and names no place that there isn't."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.health_text import Health, health_lines, read_health
from pipeline.checkpoint_folder import checkpoint_name
from pipeline.errors import ConfigError, RunFailed
from pipeline.run_end import note_failure, note_stop
from pipeline.run_folder import RunFolder
from tests.unit.test_exporters import a_verdict
from trainer.health.records import Life, Severity, Verdict


def a_health(*verdicts: Verdict, **changes: Any) -> Health:
    plain = Health(
        step=40,
        time_s=0.0,
        verdicts=verdicts,
        num_unannounced=0,
        num_dropped=0,
        summary="gradient health costs nothing",
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("trace", "told"),
    [
        ({"step": 3, "batch": None}, "trace: step 3: its batch was not noted"),
        ({"step": 3, "batch": {"seen": 7}}, "trace: step 3: {'seen': 7}"),
        (
            {"step": 3, "batch": {"start": 96, "stop": 128, "epoch": 0, "recipe": "r"}, "worst_samples": []},
            "trace: step 3: positions 96 to 127 of epoch 0, recipe r",
        ),
    ],
)
def test_a_trace_says_of_its_batch_what_is_known(tmp_path: Path, trace: dict[str, Any], told: str) -> None:
    """Not "positions None to None"."""
    lines = health_lines(tmp_path, a_health(replace(a_verdict(1), traces=(trace,))), everything=False)

    assert told in [line.strip() for line in lines]


def test_the_command_that_shows_a_trace_is_on_one_line(tmp_path: Path) -> None:
    """To be copied, also where the verdict's fix is about something else."""
    run = tmp_path / "a run of which the folder's name is rather longer than a line of the terminal is wide"
    trace = {"step": 3, "batch": None, "worst_samples": []}
    lines = health_lines(run, a_health(replace(a_verdict(1), traces=(trace,))), everything=False)

    command = f"headrace replay {shlex.quote(str(run))} --step 3 --out step-3.png"
    assert f"    to see its samples: {command}" in lines


def test_how_the_run_ended_is_said_unless_it_goes_on(tmp_path: Path) -> None:
    """Healthy gradients are no comfort where the run has failed of something else."""

    def printed() -> list[str]:
        return health_lines(tmp_path, a_health(), everything=False)[1:3]

    with RunFolder.create(tmp_path, "name: small") as folder:
        assert printed() == ["", "no verdict is open: nothing found that needs you"]
        note_failure(folder, RunFailed("12 bad samples\n  to go on: mend them"), 40)
    assert printed() == ["it failed at step 40: 12 bad samples", ""]
    with pytest.raises(ConfigError, match="nothing was watched: it failed at step 40: 12 bad samples"):
        read_health(tmp_path)
    with RunFolder.resume(tmp_path) as folder:
        note_stop(folder, "headrace stop", 257)
    assert printed() == ["it was stopped by headrace stop at step 257", ""]
    (tmp_path / "journal.jsonl").unlink()
    assert printed() == ["it ended without a word (killed?)", ""]


def test_what_is_not_kept_is_said_with_its_place(tmp_path: Path) -> None:
    lines = health_lines(tmp_path, a_health(num_dropped=12), everything=False)

    assert f"12 more were resolved longer ago: {tmp_path / 'journal.jsonl'} has them" in lines


def test_the_way_back_is_to_the_newest_healthy_checkpoint_that_is_there(tmp_path: Path) -> None:
    """Not to one that was thinned out, says that it is not healthy, or is half written."""
    open_one = a_health(a_verdict(1, severity=Severity.CRITICAL))

    def printed() -> list[str]:
        return [line for line in health_lines(tmp_path, open_one, everything=False) if "healthy checkpoint" in line]

    assert printed() == ["there is no healthy checkpoint of this run: begin again, with the fix"]
    for step, text in ((10, '{"healthy": true}'), (20, '{"healthy": true}'), (30, '{"healthy": false}'), (40, "{")):
        folder = tmp_path / "checkpoints" / checkpoint_name(step)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(text)
    assert printed() == ["newest healthy checkpoint: step 20"]
    (tmp_path / "checkpoints" / checkpoint_name(20)).rename(tmp_path / "moved")
    assert printed() == ["newest healthy checkpoint: step 10"]


def test_what_came_before_the_open_verdicts_is_read_before_them(tmp_path: Path) -> None:
    """A net that died of its rate moves no more, so the verdict that named the rate was lowered, and is resolved."""
    critical = Severity.CRITICAL
    cause = replace(a_verdict(1, Life.RESOLVED), id="UPDATE_RATIO", kind="large", fix="lr 3 -> 0.00271")
    slight = replace(a_verdict(2, Life.RESOLVED, Severity.INFO), id="INPUT")
    symptom = a_verdict(3, severity=critical)
    later = replace(a_verdict(4, Life.RESOLVED, critical), id="EXPLODE")
    lines = health_lines(tmp_path, a_health(cause, slight, symptom, later), everything=False)

    headline = lines.index("WARN UPDATE_RATIO/large (resolved, step 3..5) in 0")
    assert "  fix: lr 3 -> 0.00271" == lines[headline + 1]
    assert headline < lines.index("Open now:") < lines.index("CRITICAL DEAD (open, step 3..5) in 0")
    assert "not shown: 2 resolved, 0 of severity INFO (--all shows them)" in lines
    assert not any("EXPLODE" in line or "INPUT" in line for line in lines)


def test_of_many_that_came_before_the_critical_ones_are_shown(tmp_path: Path) -> None:
    warned = [a_verdict(number, Life.RESOLVED) for number in range(1, 9)]
    critical = replace(a_verdict(9, Life.RESOLVED, Severity.CRITICAL), id="EXPLODE")
    lines = health_lines(tmp_path, a_health(*warned, critical, a_verdict(10)), everything=False)

    assert "CRITICAL EXPLODE (resolved, step 3..5) in 0" in lines
    assert 4 == lines.count("WARN DEAD (resolved, step 3..5) in 0")


def test_what_is_over_is_not_called_a_cause_where_nothing_followed(tmp_path: Path) -> None:
    over, news = a_verdict(1, Life.RESOLVED, Severity.CRITICAL), a_verdict(2, severity=Severity.INFO)
    lines = health_lines(tmp_path, a_health(over, news), everything=False)

    assert "no verdict is open: nothing found that needs you" in lines
    assert not any("came before" in line for line in lines)
