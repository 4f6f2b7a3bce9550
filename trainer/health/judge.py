"""The judge: measured values in, verdicts with a life out.

In:  `StepStats` and `DeepStats`, in the order of steps.
Out: events: a verdict opened, was confirmed, rose, fell, or is resolved.
No torch, no clock: the same inputs give the same events, also when its state was saved and restored in between.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.health.detectors import DETECTORS, Detector, HealthConfig
from trainer.health.fixes import fix_text
from trainer.health.records import (
    Change,
    DeepStats,
    Finding,
    Life,
    Severity,
    StepNumbers,
    StepStats,
    Verdict,
    VerdictEvent,
    open_verdicts,
)
from trainer.health.robust import from_state, to_state
from trainer.health.rules_clip import Clip
from trainer.health.rules_depth import Depth
from trainer.health.rules_input import Input
from trainer.health.rules_layer import AdamFloor, Dead, Fp16Range, Frozen, Saturated, Symmetry, UpdateRatio
from trainer.health.rules_nonfinite import NonFinite
from trainer.health.rules_step import Explode, FirstLoss, Progress, Resume

MAX_RESOLVED = 100
"""Verdicts that are kept when they are over, the newest: a run of weeks may have thousands, and each checkpoint has all
that is kept. The journal has every one."""
NUM_TRACES = 5
"""Bad steps whose batches a verdict keeps; a run gone wrong has thousands, and the first ones tell."""
SURE_AT_ONCE = ("NONFINITE", "SYMMETRY", "FROZEN")
"""Facts, not estimates: confidence 1."""
SLOW = 3
"""Samples that open, and resolve, a verdict of a slow kind."""
STEP_TRACKS = frozenset(
    (
        "NONFINITE/",
        "NONFINITE/amp",
        "EXPLODE/spike",
        "EXPLODE/growth",
        "RESUME/optimizer state",
        "RESUME/jump",
        "LOSS0/",
    )
)
"""What each step speaks for or against; CLIP speaks by itself, and seldom."""
STATE_VERSION = 1


@dataclass(slots=True)
class Rules:
    """Every rule with what it remembers."""

    progress: Progress = field(default_factory=Progress)
    nonfinite: NonFinite = field(default_factory=NonFinite)
    explode: Explode = field(default_factory=Explode)
    clip: Clip = field(default_factory=Clip)
    resume: Resume = field(default_factory=Resume)
    first_loss: FirstLoss = field(default_factory=FirstLoss)
    frozen: Frozen = field(default_factory=Frozen)
    depth: Depth = field(default_factory=Depth)
    update_ratio: UpdateRatio = field(default_factory=UpdateRatio)
    adam_floor: AdamFloor = field(default_factory=AdamFloor)
    dead: Dead = field(default_factory=Dead)
    saturated: Saturated = field(default_factory=Saturated)
    symmetry: Symmetry = field(default_factory=Symmetry)
    fp16_range: Fp16Range = field(default_factory=Fp16Range)
    input: Input = field(default_factory=Input)

    def see_step(self, stats: StepStats, config: HealthConfig) -> Iterator[Finding]:
        self.progress.remember(stats)
        yield from self.nonfinite.see_step(stats, self.progress, config)
        yield from self.explode.see_step(stats, self.progress, config)
        yield from self.clip.see_step(stats, self.progress, config)
        yield from self.resume.see_step(stats, self.progress, config)
        yield from self.first_loss.see_step(stats, self.progress, config)
        yield from self.frozen.see_step(stats, self.progress, config)

    def is_unremarkable(self, stats: StepNumbers, config: HealthConfig) -> bool:
        """Nothing but CLIP would have anything to say of this step, which is not suspicious."""
        if stats.was_skipped or not (math.isfinite(stats.loss) and math.isfinite(stats.grad_norm)):
            return False
        return self.resume.steps_since is None and (self.first_loss.is_done or config.num_classes < 2)

    def note(self, stats: StepNumbers, config: HealthConfig) -> Iterator[Finding]:
        """An unremarkable step: leaves all rules as `see_step` would."""
        self.progress.remember(stats)
        self.nonfinite.remember(stats)
        self.explode.remember(stats, config)
        yield from self.clip.see_step(stats, self.progress, config)
        self.resume.remember(stats)

    def see_deep(self, stats: DeepStats, config: HealthConfig) -> Iterator[Finding]:
        yield from self.nonfinite.see_deep(stats, self.progress, config)
        yield from self.depth.see_deep(stats, self.progress, config)
        yield from self.update_ratio.see_deep(stats, self.progress, config)
        yield from self.adam_floor.see_deep(stats, self.progress, config)
        yield from self.dead.see_deep(stats, self.progress, config)
        yield from self.saturated.see_deep(stats, self.progress, config)
        yield from self.symmetry.see_deep(stats, self.progress, config)
        yield from self.frozen.see_deep(stats, self.progress, config)
        yield from self.fp16_range.see_deep(stats, self.progress, config)
        yield from self.input.see_deep(stats, self.progress, config)


@dataclass(slots=True)
class Track:
    """The last samples of one detector and kind, and its open verdict."""

    severities: list[int] = field(default_factory=list)
    """0: looked, and fine."""
    steps: list[int] = field(default_factory=list)
    """Of these samples."""
    num_clear: int = 0
    number: int = 0
    """Of the open verdict; 0: none is open."""


class Judge:
    """Sees what was measured; `verdicts` is what it found, newest last: all open ones, and the last resolved ones."""

    def __init__(self, config: HealthConfig | None = None) -> None:
        self.config = config or HealthConfig()
        self._rules = Rules()
        self._tracks: dict[str, Track] = {}
        self._verdicts: dict[int, Verdict] = {}
        """By number, rising."""
        self._num_verdicts = 0
        """Ever opened."""
        self._alarm_steps: list[int] = []
        self.num_unannounced = 0

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(self._verdicts.values())

    @property
    def num_dropped(self) -> int:
        """Resolved verdicts that are not kept any more."""
        return self._num_verdicts - len(self._verdicts)

    @property
    def progress(self) -> Progress:
        return self._rules.progress

    def is_suspicious(self, grad_norm: float) -> bool:
        """This finite norm would open or prolong an EXPLODE verdict; remembers nothing."""
        return bool(self._rules.explode.suspects(grad_norm, self.config))

    def wants_trace(self, grad_norm: float) -> bool:
        """... and such a verdict has room for this step's batch. A run that has exploded has thousands of them."""
        kinds = self._rules.explode.suspects(grad_norm, self.config)
        return any(len(self._traces(f"EXPLODE/{kind}")) < NUM_TRACES for kind in kinds)

    def _traces(self, key: str) -> tuple[Mapping[str, Any], ...]:
        """Of the open verdict."""
        track = self._tracks.get(key)
        return self._verdicts[track.number].traces if track is not None and track.number else ()

    @property
    def is_nonfinite_pending(self) -> bool:
        """A step that was not finite, or was skipped, is not left behind yet; also where NONFINITE is off."""
        return self._rules.nonfinite.is_pending(DETECTORS["NONFINITE"].clear_after)

    @property
    def is_critical(self) -> bool:
        """A critical verdict is open; or the last sample was critical, of one that more samples may open."""
        is_open = any(one.severity is Severity.CRITICAL for one in open_verdicts(self._verdicts.values()))
        waiting = (track.severities for track in self._tracks.values() if not track.number and track.severities)
        return is_open or any(severities[-1] == Severity.CRITICAL for severities in waiting)

    @property
    def is_after_resume(self) -> bool:
        """RESUME looks at each of the next steps."""
        return self._rules.resume.steps_since is not None

    def see(self, stats: StepStats | DeepStats) -> list[VerdictEvent]:
        """What this sample changes."""
        rules = self._rules
        if isinstance(stats, StepStats):
            return self._followed(rules.see_step(stats, self.config), stats.step)
        return self._followed(rules.see_deep(stats, self.config), stats.step)

    def note(self, stats: StepNumbers) -> list[VerdictEvent] | None:
        """As `see`, but cheap, for a step without measured parameters that is not suspicious.

        None, and nothing is remembered: there may be something to say of it all the same, so it has to be seen.
        """
        is_in_question = not self._tracks.keys().isdisjoint(STEP_TRACKS)
        if is_in_question or not self._rules.is_unremarkable(stats, self.config):
            return None
        return self._followed(self._rules.note(stats, self.config), stats.step)

    def resumed(self) -> None:
        """The next steps follow a resume that nobody vouches for: RESUME looks at them."""
        self._rules.resume.resumed()

    def load_nonfinite(self, state: Mapping[str, Any]) -> None:
        self._rules.nonfinite = from_state(NonFinite, state)

    def _followed(self, findings: Iterable[Finding], step: int) -> list[VerdictEvent]:
        events: list[VerdictEvent] = []
        for finding in findings:
            if finding.id not in self.config.off:
                events += self._follow(finding, step)
        return events

    def _follow(self, finding: Finding, step: int) -> list[VerdictEvent]:
        key = f"{finding.id}/{finding.kind}"
        track = self._tracks.get(key)
        if track is None:
            if finding.severity is None:
                return []  # nothing to clear: a window of clean samples only matters once something was found
            track = self._tracks[key] = Track()
        detector = DETECTORS[finding.id]
        if finding.severity is None and not track.number and not any(track.severities):
            del self._tracks[key]
            return []
        track.severities.append(int(finding.severity or 0))
        track.steps.append(step)
        is_slow = finding.kind in detector.slow_kinds
        num_old = max(0, len(track.steps) - detector.window)
        if detector.counts_steps and not is_slow:
            num_old = bisect_right(track.steps, step - detector.window)
        del track.severities[:num_old], track.steps[:num_old]
        if finding.severity is None:
            track.num_clear += 1
            return self._resolve(track, finding, step) if track.number else []
        track.num_clear = 0
        return self._hit(track, detector, finding, step)

    def _hit(self, track: Track, detector: Detector, finding: Finding, step: int) -> list[VerdictEvent]:
        hits = sorted(severity for severity in track.severities if severity)
        # What one sample can open, its worst sample rates; else the severity that at least half of the hits reach.
        open_hits = SLOW if finding.kind in detector.slow_kinds else detector.open_hits
        is_single = open_hits == 1
        severity = Severity(hits[-1] if is_single else hits[(len(hits) - 1) // 2])
        confidence = 1.0 if finding.id in SURE_AT_ONCE else (len(hits) + 1) / (len(track.severities) + 2)
        if not track.number:
            first = next(at for at, one in zip(track.steps, track.severities, strict=True) if one)
            is_sparse = not is_single and 2 * len(hits) < len(track.severities)
            if (
                len(hits) < open_hits
                or is_sparse
                or (severity < Severity.CRITICAL and step - first < detector.min_span)
            ):
                return []
            return [self._open(track, finding, severity, confidence, step)]
        old = self._verdicts[track.number]
        life = Life.CONFIRMED if old.num_hits + 1 >= detector.confirm_hits else old.life
        traces, trace = old.traces, finding.trace
        # A step has one: what its loss says comes before what its layers say, and tells more.
        if trace is not None and len(traces) < NUM_TRACES and all(one["step"] != trace["step"] for one in traces):
            traces = (*traces, trace)
        new = dataclasses.replace(
            old,
            severity=severity,
            life=life,
            layers=finding.layers,
            last_step=step,
            num_hits=old.num_hits + 1,
            evidence=finding.evidence,
            fix=fix_text(finding, self._open_ids()),
            confidence=confidence,
            traces=traces,
            is_announced=self._is_still_announced(old, severity, step),
        )
        self._verdicts[track.number] = new
        events = []
        if life is not old.life:
            events.append(VerdictEvent(step=step, change=Change.CONFIRMED, verdict=new))
        if severity is not old.severity:
            change = Change.RAISED if severity > old.severity else Change.LOWERED
            events.append(VerdictEvent(step=step, change=change, verdict=new))
        return events

    def _open(self, track: Track, finding: Finding, severity: Severity, confidence: float, step: int) -> VerdictEvent:
        limits = DETECTORS[finding.id].thresholds
        hits = [severity for severity in track.severities if severity]
        self._num_verdicts += 1
        verdict = Verdict(
            number=self._num_verdicts,
            id=finding.id,
            kind=finding.kind,
            severity=severity,
            life=Life.OPEN,
            layers=finding.layers,
            first_step=step,
            last_step=step,
            resolved_at=None,
            num_hits=len(hits),
            evidence=finding.evidence,
            thresholds={name: self.config.limit(finding.id, name) for name in limits},
            fix=fix_text(finding, self._open_ids()),
            confidence=confidence,
            traces=() if finding.trace is None else (finding.trace,),
            is_announced=self._may_announce(severity, step),
        )
        self._verdicts[verdict.number] = verdict
        track.number = verdict.number
        return VerdictEvent(step=step, change=Change.OPENED, verdict=verdict)

    def _resolve(self, track: Track, finding: Finding, step: int) -> list[VerdictEvent]:
        detector, old = DETECTORS[finding.id], self._verdicts[track.number]
        is_slow = finding.kind in detector.slow_kinds
        num_clear = step - old.last_step if detector.counts_steps and not is_slow else track.num_clear
        if num_clear < (SLOW if is_slow else detector.clear_after):
            return []
        traces = tuple(_without_ids(trace) for trace in old.traces)
        new = dataclasses.replace(old, life=Life.RESOLVED, resolved_at=step, traces=traces)
        self._verdicts[track.number] = new
        track.number = 0
        track.severities, track.steps = [], []
        resolved = [number for number, one in self._verdicts.items() if one.resolved_at is not None]
        for number in resolved[:-MAX_RESOLVED]:
            del self._verdicts[number]
        return [VerdictEvent(step=step, change=Change.RESOLVED, verdict=new)]

    def _open_ids(self) -> set[str]:
        return {one.id for one in open_verdicts(self._verdicts.values())}

    def _is_still_announced(self, old: Verdict, severity: Severity, step: int) -> bool:
        """What becomes an alarm needs a place in the budget, as one that opens does; one held back that gets worse is
        asked for again."""
        if severity <= old.severity or (old.is_announced and old.severity >= Severity.WARN):
            return old.is_announced
        self.num_unannounced -= not old.is_announced
        return self._may_announce(severity, step)

    def _may_announce(self, severity: Severity, step: int) -> bool:
        """A quarter of the budget is CRITICAL's alone; INFO is no alarm."""
        if severity < Severity.WARN:
            return True
        self._alarm_steps = [alarm for alarm in self._alarm_steps if alarm > step - 1000]
        budget = self.config.num_alarms_per_1000_steps
        allowed = budget if severity is Severity.CRITICAL else budget - budget // 4
        if len(self._alarm_steps) >= allowed:
            self.num_unannounced += 1
            return False
        self._alarm_steps.append(step)
        return True

    def to_dict(self) -> dict[str, Any]:
        """Everything: JSON of finite numbers, exact."""
        return {
            "version": STATE_VERSION,
            "rules": to_state(self._rules),
            "tracks": {key: to_state(track) for key, track in self._tracks.items()},
            "verdicts": [verdict.to_dict() for verdict in self._verdicts.values()],
            "num_verdicts": self._num_verdicts,
            "alarm_steps": list(self._alarm_steps),
            "num_unannounced": self.num_unannounced,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], config: HealthConfig | None = None) -> Judge:
        """Goes on exactly where `to_dict` was called; ValueError for a state of another version."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"gradient health's saved state: expected version {STATE_VERSION}, got {state.get('version')!r}; "
                "start with a fresh judge, or with the headrace that wrote it"
            )
        judge = cls(config)
        judge._rules = from_state(Rules, state["rules"])
        judge._tracks = {key: from_state(Track, track) for key, track in state["tracks"].items()}
        verdicts = [Verdict.from_dict(verdict) for verdict in state["verdicts"]]
        judge._verdicts = {verdict.number: verdict for verdict in verdicts}
        judge._num_verdicts = state.get("num_verdicts", len(verdicts))
        judge._alarm_steps = list(state["alarm_steps"])
        judge.num_unannounced = state["num_unannounced"]
        return judge


def _without_ids(trace: Mapping[str, Any]) -> Mapping[str, Any]:
    """A trace whose matter is over: where the batch stood, and its worst samples by name; not a thousand others."""
    batch = trace["batch"]
    if not isinstance(batch, Mapping):
        return trace
    return {**trace, "batch": {name: value for name, value in batch.items() if name != "sample_ids"}}
