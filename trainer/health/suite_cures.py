"""The printed fixes, carried out: what a reader of a verdict would do, with the sentence's own numbers.

In:  a faulty `Case`, the `Verdict` that named its fault.
Out: the case with the fix applied; whether that cleared the fault.
Numbers and names are read from the sentence, never typed here: what is tested is what is printed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.job_model import InitSection
from trainer.activations import swap_activations
from trainer.health import suite_spoils as spoils
from trainer.health.records import Verdict
from trainer.health.suite import Case, Material, Outcome, Run, new_optimizer, watch
from trainer.health.suite_models import Detached, Shape
from trainer.initialization import initialize
from trainer.lsuv import lsuv

NUMBER = r"([-+]?\d[\d.]*(?:e[-+]?\d+)?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cure:
    """One thing that a fix text tells to do; where it names alternatives, each is a cure."""

    name: str
    apply: Callable[[Case, Verdict], Case]
    is_within: bool = False
    """Applied while the run goes on: the verdict comes, and must be resolved before the end. Else it must not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cured:
    """What came of a case with its fix applied."""

    cure: str
    is_clear: bool
    others: tuple[str, ...]
    """Alarms of other detectors, still open at the end."""
    has_learned: bool


def cures_of(case: Case, verdict: Verdict) -> tuple[Cure, ...]:
    """Empty: the fix text claims no cure, and `why_none` says why."""
    if case.name in OWN_CURES:
        return OWN_CURES[case.name]
    return CURES.get(f"{verdict.id}/{verdict.kind}", ())


def why_none(verdict: Verdict) -> str:
    return NO_CURE[f"{verdict.id}/{verdict.kind}"]


def cured(case: Case, verdict: Verdict, cure: Cure, seed: int, material: Material) -> Cured:
    """Trains the case again, from its beginning, with the fix."""
    outcome = watch(cure.apply(case, verdict), seed, material)
    return Cured(
        cure=cure.name,
        is_clear=_is_clear(outcome, verdict.id, is_within=cure.is_within),
        others=tuple(
            f"{one.id}/{one.kind}".rstrip("/")
            for one in outcome.alarms
            if one.id != verdict.id and one.resolved_at is None
        ),
        has_learned=outcome.has_learned,
    )


def _is_clear(outcome: Outcome, detector: str, *, is_within: bool) -> bool:
    ours = [one for one in outcome.alarms if one.id == detector or one.id in outcome.case.expected]
    if is_within:
        return bool(ours) and all(one.resolved_at is not None for one in ours)
    return not ours


def number_after(words: str, text: str) -> float:
    """The number that follows these words; AssertionError if the sentence doesn't say it."""
    found = re.search(re.escape(words) + " ?" + NUMBER, text)
    assert found, f"no number after {words!r} in {text!r}"
    return float(found.group(1))


def _then(case: Case, change: Callable[[Run], None]) -> Case:
    """The case whose run is changed after its own preparation."""
    before = case.prepare

    def prepare(run: Run) -> None:
        if before is not None:
            before(run)
        change(run)

    return replace(case, prepare=prepare)


def _layers(run: Run, verdict: Verdict) -> list[nn.Module]:
    return [run.model.get_submodule(name.removesuffix(".weight").removesuffix(".bias")) for name in verdict.layers]


def _by_law(case: Case, verdict: Verdict) -> Case:
    """`replace A by B`, and the named law with its gain in the named layers, zero biases."""
    law = re.search(r"(\w+_normal) with gain " + NUMBER, verdict.fix)
    assert law, verdict.fix
    swap = re.search(r"replace (\w+) by (\w+)(?:\((\S+)\))?", verdict.fix)

    def change(run: Run) -> None:
        if swap:
            swap_activations(run.model, _snake(swap.group(2)))
        for layer in _layers(run, verdict):
            initialize(layer, InitSection.model_validate({"law": law.group(1), "gain": float(law.group(2))}))

    return _then(case, change)


def _snake(name: str) -> str:
    return {"ReLU": "relu", "GELU": "gelu", "LeakyReLU": "leaky_relu"}[name]


def _by_factor(words: str) -> Callable[[Case, Verdict], Case]:
    def apply(case: Case, verdict: Verdict) -> Case:
        factor = number_after(words, verdict.fix)

        @torch.no_grad()
        def change(run: Run) -> None:
            for layer in _layers(run, verdict):
                assert isinstance(layer.weight, nn.Parameter)
                layer.weight.mul_(factor)

        return _then(case, change)

    return apply


def _by_remedy(case: Case, verdict: Verdict) -> Case:
    """Saturated from the start: smaller initial weights; since then: a lower rate."""
    if "multiply the learning rate" in verdict.fix:
        return _by_rate(case, verdict)
    return _by_factor("initial weights by")(case, verdict)


def _by_head(case: Case, verdict: Verdict) -> Case:
    factor = number_after("the last layer by", verdict.fix)

    @torch.no_grad()
    def change(run: Run) -> None:
        head = spoils.layers_of(run)[-1]
        assert isinstance(head.weight, nn.Parameter)
        assert isinstance(head.bias, nn.Parameter)
        head.weight.mul_(factor)
        head.bias.zero_()

    return _then(case, change)


def _by_lsuv(case: Case, verdict: Verdict) -> Case:
    assert "LSUV" in verdict.fix
    return _then(case, lambda run: _none(lsuv(run.model, run.images_NCHW[:256])))


def _none(value: object) -> None:
    """Done for its effect."""


def _by_norms(case: Case, verdict: Verdict) -> Case:
    """A BatchNorm between each hidden linear layer and its activation."""
    assert "norm layer" in verdict.fix

    def change(run: Run) -> None:
        assert isinstance(run.model, nn.Sequential)
        children = list(run.model)
        parts: list[nn.Module] = []
        for place, child in enumerate(children):
            parts.append(child)
            if isinstance(child, nn.Linear) and place < len(children) - 1:
                parts.append(nn.BatchNorm1d(child.out_features))
        run.model = nn.Sequential(*parts)
        run.optimizer = new_optimizer(run.case, run.model)

    return _then(case, change)


def _by_norms_and_head(case: Case, verdict: Verdict) -> Case:
    """Norm layers alone leave a last layer whose logits are as loud as before."""
    assert "zero weights in the last layer" in verdict.fix

    @torch.no_grad()
    def change(run: Run) -> None:
        head = spoils.layers_of(run)[-1]
        assert isinstance(head.weight, nn.Parameter)
        head.weight.zero_()

    return _then(_by_norms(case, verdict), change)


def _by_rate(case: Case, verdict: Verdict) -> Case:
    return replace(case, lr=number_after("->", verdict.fix))


def _by_rate_again(case: Case, verdict: Verdict) -> Case:
    """As often as it says so: at each deep step with the verdict still there, in a run long enough for all of them."""
    assert "again if this comes back" in verdict.fix
    tried: list[int] = []

    def spoil(run: Run, step: int) -> None:
        for one in run.health.verdicts:
            if one.id == verdict.id and one.resolved_at is None and one.last_step not in tried:
                tried.append(one.last_step)
                for group in run.optimizer.param_groups:
                    group["lr"] = number_after("->", one.fix)

    return replace(case, spoil=spoil, num_steps=3 * case.num_steps)


def _by_rate_and_clip(case: Case, verdict: Verdict) -> Case:
    clip = {"kind": "norm", "threshold": number_after("clip the global norm at", verdict.fix)}
    return replace(_by_rate(case, verdict), clip=clip, spoil=None)


def _by_threshold(case: Case, verdict: Verdict) -> Case:
    return replace(case, clip={"kind": "norm", "threshold": number_after("set the clip threshold to", verdict.fix)})


def _by_eps(case: Case, verdict: Verdict) -> Case:
    eps = number_after("set Adam's eps to", verdict.fix)

    def change(run: Run) -> None:
        for group in run.optimizer.param_groups:
            group["eps"] = eps

    return _then(case, change)


def _by_optimizer(case: Case, verdict: Verdict) -> Case:
    assert f"give {verdict.layers[0]} to the optimizer" in verdict.fix

    def change(run: Run) -> None:
        named = dict(run.model.named_parameters())
        run.optimizer.add_param_group({"params": [named[name] for name in verdict.layers]})

    return _then(case, change)


def _by_normalize(case: Case, verdict: Verdict) -> Case:
    """Normalize at the chain's end; or, where one is, with its numbers corrected."""
    if "is in the chain" in verdict.fix:
        shift, factor = _listed("add ", verdict.fix), _listed("its std by ", verdict.fix)

        def correct(run: Run) -> None:
            # (x - (mean + shift std)) / (factor std), where the image is (x - mean) / std now.
            run.images_NCHW = (run.images_NCHW - shift.view(1, -1, 1, 1)) / factor.view(1, -1, 1, 1)

        return _then(case, correct)
    mean, std = _listed("mean=", verdict.fix), _listed("std=", verdict.fix)
    largest = number_after("max_pixel_value=", verdict.fix) if "max_pixel_value" in verdict.fix else 1.0

    def change(run: Run) -> None:
        shape = (1, -1, 1, 1)
        run.images_NCHW = (run.images_NCHW / largest - mean.view(shape)) / std.view(shape)

    return _then(case, change)


def _listed(words: str, text: str) -> torch.Tensor:
    """One number, or one a channel in brackets."""
    found = re.search(re.escape(words) + r"(?:\[([^\]]*)\]|" + NUMBER + ")", text)
    assert found, f"no numbers after {words!r} in {text!r}"
    return torch.tensor([float(one) for one in (found.group(1) or found.group(2)).split(",")])


def _by_optimizer_state(case: Case, verdict: Verdict) -> Case:
    assert "load optimizer.state_dict()" in verdict.fix

    def spoil(run: Run, step: int) -> None:
        if step == spoils.RESUMED_AT:
            state = copy.deepcopy(run.optimizer.state_dict())
            spoils.resume(run)
            run.optimizer.load_state_dict(state)

    return replace(case, spoil=spoil)


def _by_going_back(case: Case, verdict: Verdict) -> Case:
    """A checkpoint every 20 steps; at the verdict, the newest one from before it."""
    assert "Go back to a checkpoint before this step" in verdict.fix
    saved: list[dict[str, object]] = []

    def spoil(run: Run, step: int) -> None:
        is_bad = any(one.id == "NONFINITE" and one.resolved_at is None for one in run.health.verdicts)
        if is_bad and saved:
            run.model.load_state_dict(saved[-1]["model"])  # type: ignore[arg-type]
            run.optimizer.load_state_dict(saved[-1]["optimizer"])  # type: ignore[arg-type]
            saved.clear()
        elif step % 20 == 0 and step < spoils.INF_AT:
            saved[:] = [copy.deepcopy({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})]
        if case.spoil is not None:
            case.spoil(run, step)

    return replace(case, spoil=spoil)


def _by_bfloat16(case: Case, verdict: Verdict) -> Case:
    assert "rain in bf16" in verdict.fix
    return replace(case, scale=0.0, is_bfloat16=True)


def _by_attaching(case: Case, verdict: Verdict) -> Case:
    assert "look for detach()" in verdict.fix

    def build(shape: Shape, num_classes: int) -> nn.Module:
        return Detached(shape, num_classes, is_mended=True)

    return replace(case, build=build)


_LAW = Cure(name="law", apply=_by_law)
_NORMS = Cure(name="norm layers", apply=_by_norms)
_SCALES = (Cure(name="weights x factor", apply=_by_factor("by")), Cure(name="LSUV", apply=_by_lsuv))
_RATE = Cure(name="learning rate", apply=_by_rate)

CURES: Mapping[str, tuple[Cure, ...]] = {
    "VANISH_BWD/": (_LAW, _NORMS),
    "COLLAPSE_FWD/": (*_SCALES, _NORMS),
    "EXPLODE_FWD/": (*_SCALES, Cure(name="norm layers, head", apply=_by_norms_and_head)),
    "EXPLODE/depth": (_LAW,),
    "EXPLODE/growth": (Cure(name="rate and clip", apply=_by_rate_and_clip),),
    "UPDATE_RATIO/large": (_RATE,),
    "UPDATE_RATIO/small": (Cure(name="learning rate, step by step", apply=_by_rate_again, is_within=True),),
    "ADAM_FLOOR/": (Cure(name="eps", apply=_by_eps),),
    "DEAD/": (Cure(name="LeakyReLU, law", apply=_by_law),),
    "SATURATED/": (Cure(name="weights or rate", apply=_by_remedy), _NORMS),
    "CLIP/aggressive": (Cure(name="threshold", apply=_by_threshold),),
    "FROZEN/not in optimizer": (Cure(name="optimizer", apply=_by_optimizer),),
    "SYMMETRY/": (_LAW,),
    "INPUT/": (Cure(name="Normalize", apply=_by_normalize),),
    "RESUME/optimizer state": (Cure(name="optimizer state", apply=_by_optimizer_state),),
    "LOSS0/": (Cure(name="head x factor", apply=_by_head),),
}
"""Detector and kind -> what its text tells to do."""

OWN_CURES: Mapping[str, tuple[Cure, ...]] = {
    "inf in a weight": (Cure(name="earlier checkpoint", apply=_by_going_back, is_within=True),),
    "fp16 overflow": (Cure(name="bf16", apply=_by_bfloat16),),
    "detached layer": (Cure(name="no detach()", apply=_by_attaching),),
}
"""Case -> what its text tells to do, where that is no matter of detector and kind alone."""

NO_CURE: Mapping[str, str] = {
    "NONFINITE/": "names the batch and its samples; only their owner can mend them",
    "EXPLODE/spike": "says to look at the batch; a clip bounds the step, not the batch's gradient",
    "INPUT/labels": "says where labels get lost; only their owner can mend them",
}
"""Detector and kind -> why its text claims no cure."""
