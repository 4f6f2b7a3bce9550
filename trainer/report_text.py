"""A run's page in words: where it stands, its numbers, its verdicts, recipes and events, as rows for the template.

In:  `History`.
Out: small records of text, ready to be escaped and shown.
Pure: no files, no pictures.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.bad_count import replaced_text
from pipeline.going_on import resume_command
from trainer.health.detectors import DETECTORS
from trainer.report_history import SEVERITIES, History, worst_first

MAX_CARDS = 40
"""Verdicts that have a card each; the worst ones first."""
MAX_LAYERS = 12
"""Layers that a card names."""
MAX_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a run ended, or where it stands."""

    text: str
    tone: str
    """A class of the page: fine, WARN, INFO."""
    to_go_on: str = ""
    """A command; "" for a run at its end, or going on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One number of the page's top."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One bad step of a verdict, and how to see its samples."""

    text: str
    worst: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictCard:
    """A verdict as people read it."""

    anchor: str
    severity: str
    title: str
    says: str
    life: str
    is_open: bool
    steps: str
    layers: str
    evidence: tuple[tuple[str, str], ...]
    thresholds: tuple[tuple[str, str], ...]
    fix: str
    confidence: str
    traces: tuple[Trace, ...]


def standing(history: History) -> Standing:
    """What the journal's last word on the run's life and its lock come to."""
    life, done = history.events.life, history.num_steps_done
    planned = history.state.get("num_steps")
    of = f" of {planned:,}" if isinstance(planned, int) and planned >= done else ""
    action = life.get("action")
    if action == "training_ended":
        num = num_open(history, "CRITICAL")
        if num:
            text = f"finished: {done:,} steps, {num} CRITICAL verdict{'s' * (num > 1)} open"
            return Standing(text=text, tone="CRITICAL")
        return Standing(text=f"finished: {done:,} steps", tone="fine")
    at = f"{done:,}{of} steps done" if done else "no step done"
    if action == "stopped":
        why = f" by {life['why']}" if life.get("why") else ""
        return Standing(text=f"stopped{why}: {at}", tone="INFO", to_go_on=resume_command(history.folder))
    if action == "failed":
        text = f"failed: {at}; {life.get('reason', '')}"
        return Standing(text=text, tone="CRITICAL", to_go_on=resume_command(history.folder))
    if history.is_live:
        return Standing(text=f"going on: {at} when this page was made", tone="INFO")
    if not life:
        return Standing(text=f"not begun: {at}", tone="WARN", to_go_on=resume_command(history.folder))
    return Standing(text=f"cut off: {at}, no word of its end", tone="WARN", to_go_on=resume_command(history.folder))


def facts(history: History) -> list[Fact]:
    """The handful of numbers that matter most; what was not measured says so."""
    series, events = history.series, history.events
    found = [Fact(title="steps", value=f"{history.num_steps_done:,}", note=_attempts_note(history))]
    if series is not None:
        loss = "none" if math.isnan(series.final_loss) else short(series.final_loss)
        noted = f"mean of the last {len(series.last_losses)} steps taken" if series.last_losses else "no step taken"
        found += [
            Fact(title="samples", value=f"{series.num_samples:,}", note=f"epoch {series.last_line.get('epoch', '?')}"),
            Fact(title="training loss", value=loss, note=noted),
        ]
    if events.evaluated:
        newest, best = events.evaluated[max(events.evaluated)], max(_accuracies(history))
        found.append(
            Fact(
                title="held-out accuracy",
                value=percent(newest.accuracy),
                note=f"loss {short(newest.loss)}; best {percent(best)}",
            )
        )
    else:
        found.append(Fact(title="held-out accuracy", value="none", note="not evaluated"))
    if series is not None:
        found.append(Fact(title="steps skipped", value=f"{series.num_skipped:,}", note="loss or gradient not finite"))
        if not math.isnan(series.clipped_share):
            note = "of the gradient was clipped" if series.clipped_share else "nothing was clipped"
            found.append(Fact(title="steps clipped", value=percent(series.clipped_share), note=note))
    found.append(_cost(history))
    return found


def verdict_cards(history: History) -> list[VerdictCard]:
    """Open ones first, then the worst, then the earliest; at most MAX_CARDS."""
    return [_card(verdict, history) for verdict in worst_first(history.verdicts)[:MAX_CARDS]]


def verdict_words(history: History) -> str:
    """One sentence above the cards, or in their place."""
    if not history.health and not history.verdicts:
        return "The gradients of this run were not watched (no health.json): nothing is known of them but their norm."
    if not history.verdicts:
        step = history.health.get("step", history.num_steps_done)
        return f"No verdicts: in {step:,} steps no detector found anything to say."
    counts = [
        f"{num} {name}"
        for name in SEVERITIES
        if (num := sum(verdict.get("severity") == name for verdict in history.verdicts))
    ]
    unannounced = history.health.get("num_unannounced") or 0
    over = f" {unannounced} were over the budget of alarms and were not announced." if unannounced else ""
    more = len(history.verdicts) - MAX_CARDS
    cut = f" The {MAX_CARDS} worst are shown; health.json or journal.jsonl has {more} more." if more > 0 else ""
    return f"{', '.join(counts)}; {num_open(history)} of {len(history.verdicts)} open.{over}{cut}"


def num_open(history: History, severity: str = "") -> int:
    """Verdicts that are not resolved; of one severity, if it is named."""
    return sum(
        verdict.get("resolved_at") is None and severity in ("", verdict.get("severity")) for verdict in history.verdicts
    )


def recipe_rows(history: History) -> list[dict[str, str]]:
    """A row an entry of the timeline; of very many the newest."""
    return [
        {
            "step": f"{use.entry.step:,}",
            "num_steps": f"{use.num_steps:,}" if use.num_steps else "not reached",
            "position": f"{use.entry.start:,}",
            "batch_size": str(use.entry.batch_size),
            "recipe": use.entry.recipe,
            "chain": use.entry.file or "inside the job file",
            "why": use.why,
        }
        for use in history.recipes[-MAX_ROWS:]
    ]


def event_rows(history: History) -> list[dict[str, str]]:
    """What happened to the run, with the time; at most MAX_EVENTS."""
    rows = []
    for line in history.events.listed:
        hidden = {"action", "time_s", "attempt", "crc", "step"}
        details = {name: value for name, value in line.items() if name not in hidden}
        told = ", ".join(f"{name} {value}" for name, value in details.items() if isinstance(value, str | int | float))
        step = line.get("step")
        rows.append(
            {
                "time": moment(line.get("time_s")),
                "attempt": str(line.get("attempt", "")),
                "step": f"{step:,}" if isinstance(step, int) else "",
                "what": str(line.get("action", "")).replace("_", " "),
                "details": told[:300],
            }
        )
    return rows


def environment_rows(history: History) -> list[tuple[str, str]]:
    """What equal results depend on besides the job, as far as the run has written it down."""
    state, started = history.state, history.events.started
    environment = state.get("environment")
    rows = [("device", started.get("device")), ("a step", started.get("step_settings"))]
    rows += list(environment.items()) if isinstance(environment, dict) else []
    rows += [("torch threads", state.get("torch_threads")), ("workers make", state.get("worker_fingerprint"))]
    sources = state.get("source_fingerprints") or started.get("source_fingerprints")
    if isinstance(sources, dict):
        rows += [(f"source {name}", f"fingerprint {value}") for name, value in sources.items()]
    rows += [("weights", f"sha256 {state['weights_sha256']}" if state.get("weights_sha256") else None)]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def counted_rows(history: History) -> list[tuple[str, str]]:
    """What the journal has too often to list."""
    words = (
        ("checkpointed", "checkpoints written"),
        ("quarantined", "samples in quarantine"),
    )
    rows = [(text, f"{num:,}") for action, text in words if (num := history.events.num_of[action])]
    bad = history.events.bad
    return [*rows, *([("bad samples", replaced_text(bad.num, bad.num_met))] if bad.num else [])]


def short(value: float) -> str:
    """Three or four digits, as people write them."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1e4 and abs(value) < 1e7 else f"{value:.4g}"


def percent(share: float) -> str:
    """`0 %` and `100 %` only if it is exactly that."""
    digits = 0 if share in (0.0, 1.0) else 1
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Two units at most, as in `1 h 12 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(time_s: object) -> str:
    """UTC, so that equal runs give equal pages wherever they are read."""
    if not isinstance(time_s, int | float):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_s))


def span_text(history: History) -> str:
    """When the run was, as its journal has it."""
    events = history.events
    if events.first_s is None or events.last_s is None:
        return "no time was written down"
    return f"{moment(events.first_s)} to {moment(events.last_s)} UTC, {duration(events.took_s)} of work"


def _attempts_note(history: History) -> str:
    num = len(history.series.extent.attempts) if history.series else 0
    return f"in {num} attempts" if num > 1 else "in one attempt"


def _accuracies(history: History) -> Iterable[float]:
    return (0.0 if math.isnan(each.accuracy) else each.accuracy for each in history.events.evaluated.values())


def _cost(history: History) -> Fact:
    overhead = history.health.get("overhead")
    if not isinstance(overhead, dict) or "light_share" not in overhead:
        return Fact(title="cost of watching", value="none", note="nothing was watched")
    so_far = _sum_of(overhead, "measured_light_share", "measured_deep_share", "measured_told_share")
    later = _sum_of(overhead, "light_share", "deep_share")
    # Without the time of a plain step nothing can be foretold, and its share reads as nothing.
    note = "of the time so far" + (f"; {percent(later)} in the long run" if later else "")
    return Fact(title="cost of watching", value=percent(so_far), note=note)


def _sum_of(values: Mapping[str, Any], *names: str) -> float:
    return sum(float(values[name]) for name in names if isinstance(values.get(name), int | float))


def _card(verdict: Mapping[str, Any], history: History) -> VerdictCard:
    name, kind = str(verdict["id"]), str(verdict.get("kind", ""))
    detector = DETECTORS.get(name)
    layers = [str(layer) for layer in verdict.get("layers", ())]
    resolved_at = verdict.get("resolved_at")
    units = {key: threshold.unit for key, threshold in detector.thresholds.items()} if detector else {}
    confidence = verdict.get("confidence")
    hits = verdict.get("num_hits", 0)
    return VerdictCard(
        anchor=f"verdict-{verdict.get('number', 0)}",
        severity=str(verdict.get("severity", "INFO")),
        title=f"{name} / {kind}" if kind else name,
        says=detector.says if detector else "",
        life=str(verdict.get("life", "open")) + (f" at step {resolved_at:,}" if resolved_at is not None else ""),
        is_open=resolved_at is None,
        steps=f"{_range(verdict.get('first_step'), verdict.get('last_step'))}, seen {hits} time{'s' * (hits != 1)}",
        layers=", ".join(layers[:MAX_LAYERS])
        + (f" and {len(layers) - MAX_LAYERS} more" if len(layers) > MAX_LAYERS else ""),
        evidence=tuple((str(key), _spelled(value)) for key, value in dict(verdict.get("evidence", {})).items()),
        thresholds=tuple(
            (str(key), f"{_spelled(value)} {units.get(key, '')}".strip())
            for key, value in dict(verdict.get("thresholds", {})).items()
        ),
        fix=str(verdict.get("fix", "")),
        confidence=percent(confidence) if isinstance(confidence, int | float) else "",
        traces=tuple(_trace(trace, history) for trace in verdict.get("traces", ()) if isinstance(trace, dict)),
    )


def _trace(trace: Mapping[str, Any], history: History) -> Trace:
    step, batch = trace.get("step"), trace.get("batch")
    parts = [f"step {step}"]
    for key, words in (("loss", "loss"), ("grad_norm", "gradient norm")):
        if key in trace:  # what layers have shown is no matter of them
            parts.append(f"{words} {_spelled(trace[key])}")
    if isinstance(batch, dict) and "start" in batch:
        parts.append(f"epoch {batch.get('epoch')}, positions {batch['start']} to {batch.get('stop', 0) - 1}")
        parts.append(f"recipe {batch.get('recipe')}")
    worst = [
        f"{each.get('id') or '#' + str(each.get('index'))} ({_spelled(each.get('loss'))})"
        for each in trace.get("worst_samples", ())
        if isinstance(each, dict)
    ]
    command = ["headrace", "replay", str(history.folder), "--step", str(step), "--out", f"step-{step}.png"]
    return Trace(text=", ".join(parts), worst=", ".join(worst), command=shlex.join(command))


def _range(first: object, last: object) -> str:
    if not isinstance(first, int) or not isinstance(last, int):
        return "steps unknown"
    return f"steps {first:,} to {last:,}" if last > first else f"step {first:,}"


def _spelled(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
