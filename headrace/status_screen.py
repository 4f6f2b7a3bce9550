"""What `headrace status` shows of running services: one screen of 80 columns and about 30 lines.

In:  a `Status` and maybe the name of the stream that is meant; verdicts of the run, if there are any.
Out: lines of text, their labels bold. Many workers, pools and jobs are summarised; paths are shortened at their front.
Pure: asks nobody, reads no clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.text import Text

from pipeline.bad_count import replaced_text
from pipeline.service_messages import PoolStatus, Status, StreamReport, StreamStatus, WorkerStatus
from pipeline.timeline import TimelineEntry

WIDTH = 80
_LABEL_WIDTH = 14
_BRIEF = 120
_LAST_NOTE = 400
"""Room for a refused chain's place, both sides and the way out, with long paths."""
_MAX_LINES = 36
"""Of the whole screen: workers get what pools, long notes and trouble leave of it, and are summarised sooner."""
_MAX_WORKERS = 8
_MAX_POOLS = 4
_MAX_JOBS = 8
_MAX_NOTES = 3
_PASSING = ("/eval", "/look")
"""Roles of the streams that a job has for a moment, beside its `train` stream."""
LIMITS = {
    "workers": "the workers: more of them would help (headrace scale)",
    "window": "the window: a larger one may help, more workers would not",
    "trainer": "the trainer: batches wait for it",
    "source": "reading samples: more workers may help, faster storage would",
}


def screen(status: Status, stream: str = "", verdicts: Sequence[str] = ()) -> list[Text]:
    """The whole screen; `stream` "": the only job in detail, or a line for each of several."""
    jobs = [job for job in status.streams if not job.stream.endswith(_PASSING)]
    meant = [job for job in jobs if is_meant(job, stream)]
    lines = [*_job(meant[0]), Text()] if len(meant) == 1 else [*_jobs(jobs, stream), Text()]
    others = [job for job in jobs if len(meant) == 1 and job is not meant[0]]
    if others:
        lines += [*_jobs(others, ""), Text()]
    lines += [*_pools(status), Text()]
    last = [("last trouble", brief(status.note))] if status.note else []
    if status.num_refused_messages:
        last.append(("refused", f"{status.num_refused_messages} messages that were not of this protocol"))
    last += [("verdict", brief(verdict)) for verdict in verdicts[-_MAX_NOTES:]]
    end = [*([Text()] if last else []), *rows(last)]
    room = _MAX_LINES - len(lines) - len(end) - 2  # without a table's head, and what tells of more
    return [*lines, *_workers(status.workers, max(1, min(_MAX_WORKERS, room))), *end]


def is_meant(job: StreamStatus, stream: str) -> bool:
    """As the dispatcher understands a stream's name: whole, or without its role."""
    return stream in ("", job.stream, job.stream.removesuffix("/train"))


def rows(pairs: Iterable[tuple[str, str]]) -> list[Text]:
    """`name  value` lines with values in one column, wrapped below themselves; an equal name is written once."""
    lines = []
    last = ""
    for name, value in pairs:
        label = name if name != last else ""
        last = name
        for part in _wrapped(value, WIDTH - _LABEL_WIDTH):
            lines.append(Text.assemble((f"{label:<{_LABEL_WIDTH}}", "bold"), part))
            label = ""
    return lines


def timeline_rows(entries: Sequence[TimelineEntry], head_step: int, num_entries: int = 0) -> list[tuple[str, str]]:
    """The entry before the present one, the present one, and the two that come next; `num_entries`: of the whole
    timeline, if that is more."""
    place = max([0, *(number for number, entry in enumerate(entries) if entry.step <= head_step)])
    made = []
    for entry in entries[max(0, place - 1) : place + 3]:
        when = "now" if entry is entries[place] else "before" if entry.step <= head_step else "next"
        file = shortened(entry.file, 20) if entry.file else "(inside the job)"
        text = f"{when:<6} from step {entry.step:<7} {entry.recipe[:8]}  batch {entry.batch_size:<4} {file}"
        made.append(("timeline", text))
    left_out = max(len(entries), num_entries) - len(made)
    return [*made, *([("timeline", f"and {left_out} more in timeline.jsonl")] if left_out > 0 else [])]


def shortened(path: str, width: int) -> str:
    """The end of a path, which says more than its front; without `..`."""
    text = os.path.normpath(path) if path else ""
    return text if len(text) <= width else f"…{text[len(text) - width + 1 :]}"


def brief(text: str, length: int = _BRIEF) -> str:
    """The beginning of a text, as one paragraph; by default in two lines of the screen."""
    words = " ".join(text.split())
    return words if len(words) <= length else f"{words[: length - 1]}…"


def duration(seconds: float) -> str:
    """Such as 4 s, 12 min, 3 h 5 min, 2 d 4 h."""
    whole = int(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60 % 60, whole // 3600 % 24, whole // 86400
    if whole < 3600:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if not days else f"{days} d {hours} h"


def _job(job: StreamStatus) -> list[Text]:
    report = job.report
    flight = f"slices: {job.num_leased} with workers, {job.num_waiting} waiting, {job.num_hedged} hedged so far"
    window = f"{job.window} batches; {flight}" if job.window else "closed: the chain is being tried on a worker"
    silent = [("trainer", f"silent for {duration(job.silent_s)}")] if job.silent_s > 3.0 else []
    if report is None:
        at = [("stream", f"{job.stream}, step {job.head_step}, its trainer has not reported yet")]
        return rows([*at, ("window", window), *silent])
    bad = replaced_text(report.num_bad_samples, report.num_bad_met)
    return rows(
        [
            ("job", f"{report.job[:24]}   {shortened(report.run_folder, 39)}"),
            ("progress", _progress(job.head_step, report)),
            ("rate", f"{report.samples_per_s:.0f} samples/s   waited for data {100 * report.waited_fraction:.0f} %"),
            *([("limited by", LIMITS.get(report.limit, report.limit))] if report.limit else []),
            ("chain", f"{shortened(report.chain, 44) or '(inside the job)'}   {report.recipe}"),
            *timeline_rows(report.timeline, job.head_step, report.num_entries),
            ("window", window),
            *([("bad samples", bad)] if report.num_bad_samples else []),
            *silent,
            *(("note", brief(note)) for note in report.notes[-_MAX_NOTES:-1]),
            *(("last note", brief(note, _LAST_NOTE)) for note in report.notes[-1:]),
        ]
    )


def _progress(head_step: int, report: StreamReport) -> str:
    share = f" ({100 * head_step / report.num_steps:.0f} %)" if report.num_steps else ""
    return f"step {head_step} of {report.num_steps}{share}   epoch {report.epoch}   position {report.position}"


def _jobs(jobs: Sequence[StreamStatus], stream: str) -> list[Text]:
    if stream and not any(is_meant(job, stream) for job in jobs):
        return [Text(f"no job here has a stream called {stream}"), *_jobs(jobs, "")]
    if not jobs:
        return [Text("no training job is connected")]
    table = [("job", "stream", "step", "samples/s", "waited")]
    for job in jobs[:_MAX_JOBS]:
        report = job.report
        name, step = (report.job, f"{job.head_step}/{report.num_steps}") if report else ("?", str(job.head_step))
        rate = f"{report.samples_per_s:.0f}" if report else "?"
        waited = f"{100 * report.waited_fraction:.0f} %" if report else "?"
        table.append((name, job.stream, step, rate, waited))
    waiting = [job for job in jobs if _is_waiting(job)][:_MAX_NOTES]
    notes = [(shortened(job.report.job, 12), brief(job.report.notes[-1])) for job in waiting if job.report]
    return [*columns(table, "<<>>>"), *_more(len(jobs) - _MAX_JOBS, "jobs"), *rows(notes)]


def _is_waiting(job: StreamStatus) -> bool:
    """Nothing arrives, and its trainer has said something of it."""
    return job.report is not None and bool(job.report.notes) and not (job.window and job.report.samples_per_s)


def _pools(status: Status) -> list[Text]:
    if not status.pools:
        return [Text("no pool of workers is connected")]
    table = [("pool", "host", "size", "running", "restarts", "silent")]
    for pool in status.pools[:_MAX_POOLS]:
        silent = f"{pool.silent_s:.1f} s"
        table.append((pool.pool, pool.host, _size(pool), str(pool.num_running), str(pool.num_restarts), silent))
    return [*columns(table, "<<>>>>"), *_more(len(status.pools) - _MAX_POOLS, "pools")]


def _size(pool: PoolStatus) -> str:
    bounds = f"{pool.min_workers} to {pool.max_workers}"
    return f"{pool.size} ({'auto, ' if pool.automatic else ''}{bounds})"


def _workers(workers: Sequence[WorkerStatus], num_rows: int) -> list[Text]:
    if not workers:
        return [Text("no worker is connected")]
    if len(workers) > num_rows:
        return _hosts(workers, num_rows)
    table = [("worker", "host", "pid", "in hand", "slices/s", "delivered", "silent")]
    for worker in workers:
        name = worker.worker + (" (leaving)" if worker.is_leaving else "")
        numbers = (str(worker.num_in_hand), f"{worker.slices_per_s:.1f}", str(worker.num_delivered))
        table.append((name, worker.host, str(worker.pid), *numbers, f"{worker.silent_s:.1f} s"))
    return columns(table, "<<>>>>>")


def _hosts(workers: Sequence[WorkerStatus], num_rows: int) -> list[Text]:
    """A line a host: more workers than fit on a screen."""
    table = [("host", "workers", "in hand", "slices/s", "delivered", "longest silent")]
    by_host = groupby(sorted(workers, key=lambda worker: worker.host), key=lambda worker: worker.host)
    hosts = [(host, list(group)) for host, group in by_host]
    for host, group in hosts[:num_rows]:
        in_hand, delivered = sum(one.num_in_hand for one in group), sum(one.num_delivered for one in group)
        rate, silent = sum(one.slices_per_s for one in group), max(one.silent_s for one in group)
        numbers = (str(len(group)), str(in_hand), f"{rate:.1f}", str(delivered), f"{silent:.1f} s")
        table.append((host, *numbers))
    return [*columns(table, "<>>>>>"), *_more(len(hosts) - num_rows, "hosts")]


def _more(count: int, what: str) -> list[Text]:
    return [Text(f"and {count} more {what} (--json has them all)")] if count > 0 else []


def columns(table: Sequence[Sequence[str]], aligned: str) -> list[Text]:
    """Lines of a table, its head first; each column is as wide as its widest cell, names no wider than fits."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:  # at the cost of the longest name
        _, longest = max((widths[place], place) for place, side in enumerate(aligned) if side == "<")
        widths[longest] -= 1
    table = [[shortened(cell, width) for cell, width in zip(row, widths, strict=True)] for row in table]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)).rstrip()
        for row in table
    ]
    return [Text(lines[0], "bold"), *map(Text, lines[1:])]


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width`, broken at spaces where there are any; its own spacing is kept."""
    lines = []
    for line in text.splitlines() or [""]:
        rest = line
        while len(rest) > width:
            cut = rest.rfind(" ", 1, width + 1)
            cut = cut if cut > 0 else width
            lines.append(rest[:cut].rstrip())
            rest = rest[cut:].lstrip()
        lines.append(rest)
    return lines
