"""Calibration: the suite's healthy and faulty trainings, part by part.

In:  a job file, for its train stream; a part of the suite, a seed.
Out: a `Record` of each training.
The stream's batches are a function of their coordinates, so one seed's are received once and every model of that seed
is trained on them. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from trainer.health.suite import Case, Material, Outcome

Part = Literal["healthy digits", "faulty digits", "stream"]
PARTS: tuple[Part, ...] = ("stream", "healthy digits", "faulty digits")
"""Trainings that one process does one after another; the longest first."""


class CureRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A faulty training, again, with the printed fix applied."""

    name: str
    is_clear: bool
    others: tuple[str, ...]
    """Alarms of other detectors, still open at the end."""
    has_learned: bool

    @property
    def wrongs(self) -> tuple[str, ...]:
        """What keeps it from being a cure, empty if nothing does. A fix may also silence a fault by ruin.

        Every mended training must learn: where labels or samples are at fault, which none can, no cure is claimed.
        """
        return (
            *(() if self.is_clear else ("did not clear it",)),
            *(f"left {other} open" for other in self.others),
            *(() if self.has_learned else ("left it unable to learn",)),
        )


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One training with one seed."""

    name: str
    data: str
    seed: int
    num_steps: int
    expected: tuple[str, ...]
    """Empty: it is healthy."""
    within: int
    alarms: tuple[str, ...]
    """Of a healthy one: every WARN and CRITICAL, as DETECTOR/kind."""
    news: tuple[str, ...]
    """INFO, likewise."""
    has_learned: bool
    named_by: str = ""
    """The expected detector that spoke first, with its kind; empty: none did."""
    delay: int | None = None
    fix: str = ""
    cures: tuple[CureRecord, ...] = ()
    no_cure: str = ""
    """Why the fix text claims none."""


def run_part(job_file: Path, part: Part, seed: int, is_quick: bool) -> list[Record]:
    """One part with one seed, in this process and one thread."""
    from trainer.health.suite import digits, one_thread

    with one_thread():
        material = stream_material(job_file, seed) if part == "stream" else digits()
        return list(_records(part, seed, material, is_quick))


def stream_material(job_file: Path, seed: int) -> Material:
    """The first batches of the job's train stream under this seed, through its own workers."""
    from headrace.embedded import open_streams
    from pipeline.config import load_job
    from pipeline.job import initial_workers
    from trainer.health.suite import gathered
    from trainer.health.suite_healthy import STREAM_STEPS

    job = load_job(job_file, [f"seed={seed}"])
    with open_streams(job, initial_workers(job.config)[0]) as streams:
        return gathered(
            iter(streams.train),
            STREAM_STEPS,
            len(streams.train.classes),
            tuple(node.name for node in job.train.chain.nodes),
        )


def _records(part: Part, seed: int, material: Material, is_quick: bool) -> Iterator[Record]:
    from trainer.health.suite import watch
    from trainer.health.suite_cures import cured, cures_of, why_none
    from trainer.health.suite_faulty import QUICK_CURES, faulty
    from trainer.health.suite_healthy import QUICK, healthy

    data = "stream" if part == "stream" else "digits"
    cases = [*(healthy() if part != "faulty digits" else ()), *(faulty() if part != "healthy digits" else ())]
    for case in cases:
        if case.data != data or (is_quick and not case.expected and case.name not in QUICK):
            continue
        outcome = watch(case, seed, material, stops=bool(case.expected))
        verdict = outcome.detection
        if verdict is None:
            yield _record(case, seed, outcome)
            continue
        cures = cures_of(case, verdict)
        tried = () if is_quick and case.name not in QUICK_CURES else cures
        yield msgspec.structs.replace(
            _record(case, seed, outcome),
            named_by=f"{verdict.id}/{verdict.kind}".rstrip("/"),
            delay=outcome.delay,
            fix=verdict.fix,
            cures=tuple(
                CureRecord(name=one.cure, is_clear=one.is_clear, others=one.others, has_learned=one.has_learned)
                for one in (cured(case, verdict, cure, seed, material) for cure in tried)
            ),
            no_cure="" if cures else why_none(verdict),
        )


def _record(case: Case, seed: int, outcome: Outcome) -> Record:
    from trainer.health.records import Severity

    def named(*, is_alarm: bool) -> tuple[str, ...]:
        return tuple(
            f"{one.id}/{one.kind}".rstrip("/")
            for one in outcome.verdicts
            if (one.severity >= Severity.WARN) is is_alarm
        )

    return Record(
        name=case.name,
        data=case.data,
        seed=seed,
        num_steps=len(outcome.losses),
        expected=case.expected,
        within=case.within,
        alarms=named(is_alarm=True),
        news=named(is_alarm=False),
        has_learned=outcome.has_learned,
    )
