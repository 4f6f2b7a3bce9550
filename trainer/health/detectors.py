"""The one table of detectors: thresholds with units and reasons, sources, fix texts, what clears them.

In:  nothing.
Out: `DETECTORS`, `HealthConfig`.
No rule has a number of its own: what decides is here, where documentation prints it and a user can change it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """One number that decides."""

    value: float
    unit: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """One thing that can be wrong, and how sure one must be before saying so."""

    says: str
    source: str
    thresholds: Mapping[str, Threshold]
    clears: str
    """What must be seen before the verdict is resolved, in words; `clear_after` is the number."""
    counts_steps: bool = False
    """`window` and `clear_after` are steps, not samples: what is said of steps must not depend on how many of them
    were measured."""
    window: int = 20
    """Samples looked back on."""
    open_hits: int = 3
    """Hits in the window that open a verdict, and at least half of the samples seen."""
    confirm_hits: int = 6
    clear_after: int = 3
    """Samples without a hit, one after another, that resolve it; of steps: since the last hit."""
    min_span: int = 0
    """Steps from the first hit in the window to the one that opens: early deep samples follow each other closely.
    CRITICAL doesn't wait."""
    slow_kinds: tuple[str, ...] = ()
    """Kinds that only deep samples tell of: 3 hits open, 3 clean samples resolve, whatever holds for the others."""


def _at(value: float, unit: str, reason: str) -> Threshold:
    return Threshold(value=value, unit=unit, reason=reason)


_DEPTH_REASON = "notes/gradient-health 1c; right pairs of init and activation stay within 0.06 (12x128 MLP)"
_DROP_REASON = (
    "a shallow net survives a steep slope: seven torch-default layers lose 2.3 decades and learn; eight lose 2.7, and "
    "with SGD at 0.01 hardly learn in 600 steps (digits)"
)

DETECTORS: Mapping[str, Detector] = {
    "NONFINITE": Detector(
        says="a loss, gradient, input, weight or activation is NaN or infinite",
        source="torchtitan #4226 (guard on the device); AMP: torch.amp.GradScaler halves its scale on overflow",
        thresholds={
            "scaler_skips": _at(3, "steps", "a fresh 2^16 scale needs a few halvings; more is no calibration"),
        },
        counts_steps=True,
        window=20,
        open_hits=1,
        confirm_hits=2,
        clear_after=50,
        clears="50 finite steps",
    ),
    "VANISH_BWD": Detector(
        says="the backward signal shrinks layer by layer towards the input",
        source="Glorot & Bengio 2010; Theil-Sen slope instead of a first/last ratio, which weight gradients hide",
        thresholds={
            "warn_slope": _at(-0.12, "decades/layer", _DEPTH_REASON),
            "critical_slope": _at(-0.25, "decades/layer", _DEPTH_REASON),
            "warn_drop": _at(2.4, "decades", "slope times layers; " + _DROP_REASON),
            "warn_drop_sigmoid": _at(
                1.5, "decades", "where most layers have sigmoids: no init helps; ten under `auto` lose 2.1 (own suite)"
            ),
            "critical_drop": _at(3.0, "decades", "float16 gradients end 4 decades below 1"),
            "min_layers": _at(5, "layers", "a slope through fewer points is noise"),
            "first_share": _at(
                0.5,
                "of the drop",
                "seen in the first quarter of the layers: past a shortcut these lose nothing, whatever a branch does",
            ),
        },
        clears="3 samples with a flatter profile",
    ),
    "COLLAPSE_FWD": Detector(
        says="the forward signal shrinks layer by layer in a stretch without normalisation",
        source="He et al. 2015, section 2.2: each layer multiplies the variance by fan_in var(w) E[phi'^2]",
        thresholds={
            "warn_slope": _at(-0.12, "decades/layer", _DEPTH_REASON),
            "critical_slope": _at(-0.25, "decades/layer", _DEPTH_REASON),
            "warn_drop": _at(2.4, "decades", "slope times layers; " + _DROP_REASON),
            "critical_drop": _at(3.0, "decades", "as for VANISH_BWD"),
            "min_layers": _at(5, "layers", "a slope through fewer points is noise"),
        },
        clears="3 samples with a flatter profile",
    ),
    "EXPLODE_FWD": Detector(
        says="the forward signal grows layer by layer in a stretch without normalisation",
        source="He et al. 2015, section 2.2",
        thresholds={
            "warn_slope": _at(0.12, "decades/layer", _DEPTH_REASON),
            "critical_slope": _at(0.25, "decades/layer", _DEPTH_REASON),
            "warn_rise": _at(1.5, "decades", "slope times layers"),
            "critical_rise": _at(3.0, "decades", "float16 ends at 6.5e4"),
            "min_layers": _at(5, "layers", "a slope through fewer points is noise"),
        },
        clears="3 samples with a flatter profile",
    ),
    "EXPLODE": Detector(
        says="the gradient is far above what this run has shown",
        source="z-score as in llm.c #637 and ZClip, but robust and blind to non-finite values; Megatron: 10x early max",
        thresholds={
            "z": _at(4, "spreads", "llm.c takes 3 of a plain z-score; ours must never fire on a healthy run"),
            "spike_factor": _at(3, "times the level", "a tight level makes a z of 4 out of nothing"),
            "early_factor": _at(
                10,
                "times the largest norm of the first steps",
                "Megatron-LM's own factor; a converged run jumps from 1e-4 to 1e-2 and is well, and where a plateau "
                "ends single batches reach 3 to 5 times the beginning (own suite)",
            ),
            "num_early": _at(50, "steps", "what counts as the run's own beginning"),
            "growth": _at(2, "decades in 200 steps", "notes 1c"),
            "depth_slope": _at(0.25, "decades/layer towards the input", _DEPTH_REASON),
            "depth_rise": _at(3, "decades", "tanh with four times Xavier: +0.19 and rising"),
            "min_layers": _at(5, "layers", "a slope through fewer points is noise"),
            "fp16_max": _at(65504 / 4, "scaled gradient", "two doublings below the largest float16"),
        },
        counts_steps=True,
        open_hits=1,
        slow_kinds=("depth",),
        confirm_hits=3,
        clear_after=20,
        clears="20 steps within bounds; of the profile along depth, 3 samples",
    ),
    "UPDATE_RATIO": Detector(
        says="an optimizer step moves a weight by an unreasonable share of itself",
        source="cs231n / Karpathy: about 1e-3 is right; measured on the update, not the gradient",
        thresholds={
            "warn_large": _at(0.03, "update/weight", "Adam's first steps at lr 1e-3 reach 0.02 in wide layers"),
            "critical_large": _at(0.1, "update/weight", "the weight is replaced in ten steps"),
            "warn_small": _at(1e-5, "update/weight", "1e5 steps to change the weight once"),
            "critical_small": _at(1e-8, "update/weight", "float32 rounds it away"),
            "lr_share": _at(
                0.1, "of the largest lr so far or set", "below it a warm-up or a decay means the step to be small"
            ),
            "loss_share": _at(0.9, "of the first loss", "below it the run has learned: a small step is not the fault"),
            "small_share": _at(0.5, "of the weights", "one slow layer is told by the depth profiles"),
            "small_start": _at(
                0.25,
                "length of a row",
                "torch's default begins at 0.58; what is far below (a policy's head, std 0.02 in a narrow transformer) "
                "is to grow, and the share of it that a step moves says nothing",
            ),
        },
        open_hits=4,
        min_span=19,  # the whole window, where each step is a sample
        clears="3 samples within bounds",
    ),
    "ADAM_FLOOR": Detector(
        says="Adam's eps, not the gradient, decides the step",
        source="Kingma & Ba 2015, algorithm 1: lr m_hat / (sqrt(v_hat) + eps)",
        thresholds={
            "factor": _at(10, "eps", "sqrt(v_hat) at 10 eps: the step loses a tenth"),
            "critical_factor": _at(0.1, "eps", "the step is a tenth of what the rule means"),
            "share": _at(0.25, "of the weights", "a layer behind zero pixels alone is no news"),
            "loss_share": _at(0.9, "of the first loss", "a converged run has small gradients and is well"),
        },
        clears="3 samples above the floor",
    ),
    "DEAD": Detector(
        says="units of a ReLU layer never fire",
        source="Lu et al. 2019 (dying ReLU); unit by unit over many samples, since half of all values are zero anyway",
        thresholds={
            "warn": _at(0.25, "of a layer's units", "notes 1c"),
            "critical": _at(0.5, "of a layer's units", "notes 1c"),
            "above_start": _at(0.10, "of a layer's units", "14 % are silent at depth 11 of a healthy net"),
            "most_at_start": _at(0.15, "of a layer's units", "a net born dead must not be its own excuse"),
            "min_observations": _at(2048, "values a unit", "a unit that fires once in 300 is alive"),
            "early": _at(0.75, "of a layer's units", "with fewer values only this much is beyond chance"),
            "min_early": _at(256, "values a unit", "see `early`"),
        },
        open_hits=2,
        confirm_hits=4,
        clear_after=2,
        clears="2 windows with units that fire",
    ),
    "SATURATED": Detector(
        says="an activation works where its derivative is below a tenth of its largest",
        source="computed: tanh |z| > 1.82, sigmoid |z| > 3.64",
        thresholds={
            "warn": _at(0.5, "of a layer's values", "notes 1c"),
            "critical": _at(0.9, "of a layer's values", "what is left of the signal is a tenth"),
        },
        clears="3 samples below",
    ),
    "CLIP": Detector(
        says="clipping does the learning rate's work, or nothing",
        source="Google tuning playbook: start at the 90th percentile; above half of the steps, lower the rate instead",
        thresholds={
            "warn_rate": _at(0.5, "of the steps", "Google tuning playbook"),
            "warn_overshoot": _at(5, "times the threshold", "median before clipping; 1.0 by habit is 1 to 3 below"),
            "min_steps": _at(300, "steps", "beginnings are steep: the rate of a start is no rate"),
            "window": _at(500, "steps", "notes 1c"),
            "early_rate": _at(0.9, "of the steps", "with fewer steps only this much counts"),
            "early_overshoot": _at(100, "times the threshold", "no healthy beginning is this far above"),
            "loss_share": _at(
                0.9, "of the first loss", "below it the run learns in spite of it: under Adam a constant factor cancels"
            ),
            "min_early": _at(50, "steps", "see `early_rate`"),
            "idle_factor": _at(10, "times the 99th percentile", "a threshold this far above is not one"),
        },
        # Judged every 50th step: three of them.
        counts_steps=True,
        window=150,
        open_hits=1,
        confirm_hits=2,
        clear_after=50,
        clears="50 steps with a rate below",
    ),
    "FROZEN": Detector(
        says="a trainable parameter doesn't move",
        source="pytorch/pytorch: a gradient of None or zero, or a parameter the optimizer doesn't know, is no error",
        thresholds={
            "zero_samples": _at(20, "measured steps", "a zeroed residual branch wakes up after one"),
        },
        open_hits=1,
        confirm_hits=3,
        clear_after=1,
        clears="a sample in which it moves",
    ),
    "SYMMETRY": Detector(
        says="all units of a layer are copies of each other",
        source="Goodfellow et al. 2016, section 8.4: equal units get equal gradients for ever",
        thresholds={
            "row_spread": _at(1e-6, "of the largest weight", "float32 rounding; a random row differs by about 1"),
            "first_step": _at(1, "step", "a zeroed head is symmetric until its first step"),
        },
        open_hits=2,
        confirm_hits=4,
        clear_after=1,
        clears="a sample with rows that differ",
    ),
    "INPUT": Detector(
        says="the model's input is not what an initialization law assumes",
        source="LeCun et al. 1998 (Efficient BackProp): mean 0, variance 1; SageMaker CheckInputImages: |mean| > 0.2",
        thresholds={
            "info_mean": _at(0.2, "of 1", "SageMaker Debugger; harmless alone"),
            "info_std_low": _at(0.5, "of 1", "pixels in [0, 1] have about 0.25 to 0.4 and train"),
            "info_std_high": _at(2.0, "of 1", "notes 1c"),
            "warn_mean": _at(3.0, "of 1", "every unit of the first layer sees the same large offset"),
            "warn_std_low": _at(0.02, "of 1", "the images hardly differ: an augmentation may have blanked them"),
            "warn_std_high": _at(5.0, "of 1", "first-layer gradients grow with it: x12 for 128 +- 64 (notes 8)"),
            "min_samples": _at(256, "samples", "notes say 500; a channel has thousands of values by then"),
            "min_labels": _at(
                2048,
                "labels",
                "of two classes, or of nobody knows how many: where 1 % are positive, 256 labels have none in 8 of 100 "
                "windows, 2,048 in one of a billion",
            ),
        },
        open_hits=1,
        confirm_hits=3,
        clear_after=2,
        clears="2 samples within bounds",
    ),
    "RESUME": Detector(
        says="the run did not go on where it stopped",
        source="DeepSpeech #3620, School-of-AI/LLM #563: weights restored, optimizer or scaler state not",
        thresholds={
            "z": _at(4, "spreads", "notes 1c"),
            "min_hits": _at(5, "steps", "one spike is a spike"),
            "num_steps": _at(20, "steps", "notes 1c"),
        },
        counts_steps=True,
        open_hits=1,
        confirm_hits=2,
        clear_after=100,
        clears="100 steps",
    ),
    "LOSS0": Detector(
        says="the first loss is far above a guess",
        source="cs231n: -ln(1/C) before learning; more means confident and wrong",
        thresholds={
            "info": _at(1.5, "times ln C", "notes 1c; He weights in the head alone give 1.4"),
            "warn": _at(3.0, "times ln C", "logits of standard deviation 3; chosen"),
        },
        open_hits=1,
        confirm_hits=2,
        clear_after=1,
        clears="a loss below the guess",
    ),
}
"""Identifier -> detector. Fix texts are beside, in `fixes.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """What a user may change about judging."""

    thresholds: Mapping[str, float] = field(default_factory=dict)
    """`DETECTOR.threshold` -> value, such as `CLIP.warn_rate`: instead of the table's."""
    off: tuple[str, ...] = ()
    """Detectors that say nothing."""
    num_alarms_per_1000_steps: int = 20
    """WARN and CRITICAL verdicts announced at most; a quarter is kept for CRITICAL. What is beyond is recorded."""
    num_classes: int = 0
    """For LOSS0: classes of a cross-entropy; 0: unknown, no verdict."""
    base_lr: float = 0.0
    """A job's optimizer.lr, which fixes then name; 0: no job, and they go by the optimizer's `initial_lr` or `lr`."""
    run: str = ""
    """The run's folder, for the replay command; empty: none."""
    transforms: tuple[str, ...] = ()
    """Names of the augmentation chain's transforms, in order, for INPUT."""
    _limits: dict[tuple[str, str], float] = field(init=False, repr=False, compare=False, default_factory=dict)
    """Every threshold as it holds: rules ask for some in each step."""

    def __post_init__(self) -> None:
        known = [f"{name}.{threshold}" for name, detector in DETECTORS.items() for threshold in detector.thresholds]
        problems = [_unknown("thresholds", name, known) for name in self.thresholds if name not in known]
        problems += [_unknown("off", name, list(DETECTORS)) for name in self.off if name not in DETECTORS]
        if problems:
            raise ConfigError(problems)
        for detector, row in DETECTORS.items():
            for threshold, default in row.thresholds.items():
                given = self.thresholds.get(f"{detector}.{threshold}", default.value)
                self._limits[detector, threshold] = given

    def limit(self, detector: str, threshold: str) -> float:
        """The user's value, else the table's."""
        return self._limits[detector, threshold]


def _unknown(place: str, name: str, known: list[str]) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    return Problem(
        file="health configuration",
        line=0,
        path=place,
        expected="a name of the detectors' table" + (f", such as {near[0]}" if near else ""),
        got=name,
        way_out="trainer/health/detectors.py lists them",
    )
