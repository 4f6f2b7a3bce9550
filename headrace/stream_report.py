"""The report of a train stream, for `headrace status`.

In:  the job, the timeline and the head step, rates, notes.
Out: `StreamReport`.
Pure.
"""

from __future__ import annotations

from pipeline.bad_count import BadCount
from pipeline.config_job import Job
from pipeline.messages import ServiceState
from pipeline.service_messages import StreamReport
from pipeline.timeline import Timeline
from trainer.report_rates import Rates

MAX_ENTRIES = 8
"""Of a timeline, told each second: the entry before the present one, and more of those to come than anyone is shown."""


def describe_stream(
    job: Job,
    run_folder: str,
    timeline: Timeline,
    step: int,
    *,
    rates: Rates,
    service: ServiceState | None,
    bad: BadCount,
    notes: tuple[str, ...],
) -> StreamReport:
    """What people are told of a stream whose next batch is that of `step`."""
    position, entry = timeline.start_of(step), timeline.entry_at(step)
    past = sum(each.step < entry.step for each in timeline.entries)
    return StreamReport(
        job=job.config.name,
        run_folder=run_folder,
        num_steps=timeline.num_steps,
        epoch=position // timeline.num_samples,
        position=position,
        samples_per_s=round(rates.samples_per_s, 1),
        waited_fraction=round(rates.waited_fraction, 4),
        limit=rates.limit(service),
        recipe=entry.recipe,
        chain=entry.file or str(job.path),
        timeline=timeline.entries[max(0, past - 1) :][:MAX_ENTRIES],
        num_entries=len(timeline.entries),
        num_bad_samples=bad.num,
        num_bad_met=bad.num_met,
        notes=notes,
    )
