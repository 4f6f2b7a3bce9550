"""What calibration found, as tables: faults, healthy trainings, detectors.

In:  `Record`s.
Out: tables as text or Markdown; what fell short.
Pure: numbers are those of the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from headrace.calibration import CureRecord, Record

CONFIDENCE_STEPS = 3.0
"""Rule of three: nothing seen in n steps, so with 95 % confidence fewer than 3 in n."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Cells are text; numbers are right-aligned from the second column on where `is_number` says so."""

    title: str
    header: tuple[str, ...]
    is_number: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def as_markdown(self) -> str:
        rule = ("---:" if one else "---" for one in self.is_number)
        lines = [self.header, tuple(rule), *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"**{self.title}**", body, *self.notes])

    def as_text(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        body = [
            "  ".join(
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(line, widths, self.is_number, strict=True)
            ).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, "", body[0], rule, *body[1:], "", *self.notes])


def tables(records: Sequence[Record]) -> list[Table]:
    """Faults, healthy trainings, detectors."""
    return [faults_table(records), healthy_table(records), detectors_table(records)]


def shortfalls(records: Sequence[Record]) -> list[str]:
    """Each false alarm, missed or late fault, and fix that didn't clear it or left a run that is no good; empty: all
    holds."""
    found = []
    for one in records:
        where = f"{one.name} ({one.data}, seed {one.seed})"
        if not one.expected:
            found += [f"{where}: healthy, but {alarm}" for alarm in one.alarms]
            found += [] if one.has_learned else [f"{where}: did not learn, so its silence says nothing"]
            continue
        if one.delay is None:
            found.append(f"{where}: none of {', '.join(one.expected)} spoke in {one.num_steps} steps")
        elif one.delay > one.within:
            found.append(f"{where}: {one.named_by} after {one.delay} steps, allowed {one.within}")
        for cure in one.cures:
            found += [f"{where}: {one.named_by}: `{cure.name}` {wrong}: {one.fix}" for wrong in cure.wrongs]
    return found


def faults_table(records: Sequence[Record]) -> Table:
    rows = []
    reasons: dict[str, str] = {}
    for name, ones in _by_name(one for one in records if one.expected).items():
        delays = [one.delay for one in ones if one.delay is not None]
        named = [one.named_by for one, count in _counted(ones) for _ in range(count)]
        in_time = sum(one.delay is not None and one.delay <= one.within for one in ones)
        for one in ones:
            if one.no_cure:
                reasons[one.named_by] = one.no_cure
        rows.append(
            (
                name,
                ", ".join(dict.fromkeys(named)) or "missed",
                f"{in_time}/{len(ones)}",
                f"{median(delays):g} / {max(delays)}" if delays else "",
                str(ones[0].within),
                _cures(ones),
            )
        )
    return Table(
        title="Seeded faults: who names them, in time, after how many steps, and whether the printed fix mends them",
        header=("fault", "named by", "in time", "delay med / worst", "allowed", "printed fix mends it"),
        is_number=(False, False, True, True, True, False),
        rows=tuple(rows),
        notes=tuple(f"{name}: no cure claimed, it {why}" for name, why in reasons.items()),
    )


def _counted(ones: Sequence[Record]) -> list[tuple[Record, int]]:
    counts = Counter(one.named_by for one in ones if one.named_by)
    first = {one.named_by: one for one in reversed(ones)}
    return [(first[name], count) for name, count in counts.most_common()]


def _cures(ones: Sequence[Record]) -> str:
    by_name: dict[str, list[CureRecord]] = {}
    for one in ones:
        for cure in one.cures:
            by_name.setdefault(cure.name, []).append(cure)
    told = [
        f"{name} {sum(not cure.wrongs for cure in cures)}/{len(cures)}{_wrongs(cures)}"
        for name, cures in by_name.items()
    ]
    return ", ".join(told) or ("none claimed" if any(one.no_cure for one in ones) else "not tried")


def _wrongs(cures: Sequence[CureRecord]) -> str:
    """In brackets, what is wrong with those that are no cures, and how often."""
    counts = Counter(wrong for cure in cures for wrong in cure.wrongs)
    return f" ({'; '.join(f'{wrong} x{count}' for wrong, count in counts.items())})" if counts else ""


def healthy_table(records: Sequence[Record]) -> Table:
    rows = []
    for name, ones in _by_name(one for one in records if not one.expected).items():
        alarms = Counter(alarm for one in ones for alarm in one.alarms)
        news = sorted({new for one in ones for new in one.news})
        rows.append(
            (
                name,
                ones[0].data,
                str(sum(one.num_steps for one in ones)),
                ", ".join(f"{alarm} x{count}" for alarm, count in alarms.items()) or "0",
                ", ".join(news) or "-",
            )
        )
    return Table(
        title="Healthy trainings: alarms (WARN, CRITICAL) and what is told as news (INFO)",
        header=("training", "data", "steps", "alarms", "news"),
        is_number=(False, False, True, True, False),
        rows=tuple(rows),
        notes=(false_alarms_line(records),),
    )


def false_alarms_line(records: Sequence[Record]) -> str:
    """One sentence; where nothing was seen, it says how little that could be."""
    healthy = [one for one in records if not one.expected]
    num_steps, num_alarms = sum(one.num_steps for one in healthy), sum(len(one.alarms) for one in healthy)
    rate = f"{1000 * num_alarms / num_steps:.2g}" if num_steps else "-"
    bound = f" (95 % confidence: fewer than {1000 * CONFIDENCE_STEPS / num_steps:.2g})" if num_steps else ""
    return (
        f"{len(_by_name(healthy))} healthy trainings x {len({one.seed for one in healthy})} seeds, "
        f"{num_steps:,} steps: {num_alarms} false alarms, {rate} per 1,000 steps{'' if num_alarms else bound}."
    )


def detectors_table(records: Sequence[Record]) -> Table:
    """A detector's faults are those that name it among the expected; one spoke first, and that one gets the delay."""
    healthy_steps = sum(one.num_steps for one in records if not one.expected)
    named: dict[str, list[int]] = {}
    for one in records:
        if one.delay is not None:
            named.setdefault(one.named_by.partition("/")[0], []).append(one.delay)
    alarms = Counter(alarm.partition("/")[0] for one in records if not one.expected for alarm in one.alarms)
    rows = []
    for detector in dict.fromkeys([*(name for one in records for name in one.expected), *alarms]):
        alone = [one for one in records if one.expected == (detector,)]
        hits = sum(one.delay is not None and one.delay <= one.within for one in alone)
        delays = named.get(detector, [])
        rate = 1000 * alarms[detector] / healthy_steps if healthy_steps else 0.0
        rows.append(
            (
                detector,
                f"{hits}/{len(alone)} ({hits / len(alone):.0%})" if alone else "-",
                str(len(delays)),
                f"{median(delays):g} / {max(delays)}" if delays else "-",
                f"{rate:.2g}",
            )
        )
    return Table(
        title="Detectors: faults that only this one may name, all it named first, delay in steps, false alarms",
        header=("detector", "its own found", "named first", "delay med / worst", "false alarms / 1,000 steps"),
        is_number=(False, True, True, True, True),
        rows=tuple(rows),
    )


def _by_name(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(one.name, []).append(one)
    return groups
