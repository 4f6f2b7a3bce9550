"""Clipping: which parameters are bounded together, by which rule.

In:  a model, the job's `clip` section; after each backward the gradients and norms_P.
Out: the gradients clipped in place, a `Clipped`; what the rules remember, for the checkpoint.
Never clips in a step that is skipped, and remembers nothing of it.

Under `agc` the head stays as it is, as in timm and in the paper (section 4.1), where clipping it did harm. The head is
the last linear or convolution layer in the order of definition: weight and bias. (timm takes the last two parameters,
which is the same, unless the head has no bias.) A group of the section's `groups` is taken at its word, head or not.

P parameters that have a gradient in this step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError, Problem
from pipeline.job_clip import ClipRule, ClipSection
from trainer.clip_rules import Bounded, Member, Rule, make_rule
from trainer.norms import global_norm

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupClip:
    """One group in one step."""

    name: str
    """`all`; or a group's patterns, `head` under `agc`, and `rest`."""
    kind: str
    norm: float
    """2-norm of its gradients before clipping."""
    bounded: Bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """All groups in one step; each parameter with a gradient is in one."""

    norm: float
    """Global 2-norm afterwards."""
    was_clipped: bool
    groups: tuple[GroupClip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    name: str
    rule_section: ClipRule
    rule: Rule
    members: dict[str, Member]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Present:
    """What of a group has a gradient in this step."""

    group: _Group
    members: list[Member]
    maybe_places: torch.Tensor | None
    """Of the members in norms_P, on its device; None: they are all there are."""


class Clipper:
    """Once a step: `prepare`; the step's numbers travel to the host, the clipper's with them; `clip`."""

    def __init__(self, section: ClipSection, model: nn.Module) -> None:
        """ConfigError if a group's pattern names no parameter of the model."""
        self._groups = list(_groups(section, model))
        self._names_P: tuple[str, ...] = ()
        self._present: list[_Present] = []
        self._num_numbers: list[int] = []

    def prepare(self, names_P: tuple[str, ...], norms_P: torch.Tensor, norm: torch.Tensor) -> list[torch.Tensor]:
        """float64 scalars on the device; `norms_P` are those of the named parameters' gradients, `norm` is theirs."""
        if names_P != self._names_P:
            self._present = [present for group in self._groups if (present := _present(group, names_P, norms_P))]
            self._names_P = names_P
        numbers: list[torch.Tensor] = []
        self._num_numbers = []
        for present in self._present:
            ours = [norm if present.maybe_places is None else global_norm(norms_P[present.maybe_places])]
            ours += present.group.rule.prepare(present.members, norms_P.dtype)
            numbers += ours
            self._num_numbers.append(len(ours))
        return numbers

    def clip(self, norm: float, numbers: Sequence[float]) -> Clipped:
        """`norm`: over all parameters, finite; `numbers`: what `prepare` returned, on the host."""
        groups = []
        begin = 0
        for present, num_numbers in zip(self._present, self._num_numbers, strict=True):
            group_norm, *ours = numbers[begin : begin + num_numbers]
            begin += num_numbers
            bounded = present.group.rule.clip(present.members, group_norm, ours)
            kind = present.group.rule_section.kind
            groups.append(GroupClip(name=present.group.name, kind=kind, norm=group_norm, bounded=bounded))
        was_clipped = any(group.bounded.was_clipped for group in groups)
        clipped_norm = math.hypot(*(group.bounded.clipped_norm for group in groups)) if was_clipped else norm
        return Clipped(norm=clipped_norm, was_clipped=was_clipped, groups=tuple(groups))

    def describe(self) -> str:
        """One line: what really holds, defaults and the head's exception included."""
        return "; ".join(_describe(group) for group in self._groups)

    def state_dict(self) -> dict[str, Any]:
        """Plain values; `load_state_dict` of them goes on clipping as this one would have."""
        return {
            "groups": [
                {"name": group.name, "kind": group.rule_section.kind, "state": group.rule.state_dict()}
                for group in self._groups
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A group that the state does not know, or knows with another rule, begins anew: the job was changed."""
        known = {(group["name"], group["kind"]): group["state"] for group in state["groups"]}
        for group in self._groups:
            ours = known.get((group.name, group.rule_section.kind))
            if ours is not None:
                group.rule.load_state_dict(ours)


def head_of(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of the last linear or convolution layer, in the order of definition."""
    layers = [name for name, module in model.named_modules() if isinstance(module, _LAYERS + _TRANSPOSED)]
    if not layers:
        return frozenset()
    last = dict(model.named_modules())[layers[-1]]
    ours = {id(parameter) for parameter in last.parameters(recurse=False)}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in ours)


def _groups(section: ClipSection, model: nn.Module) -> Iterator[_Group]:
    unit_dims = _unit_dims(model)
    left = {
        name: Member(name=name, parameter=parameter, unit_dim=unit_dims.get(id(parameter), 0))
        for name, parameter in model.named_parameters()
    }
    names = list(left)
    for place, rule in enumerate(section.groups):
        _require_matches(place, rule.parameters, names)
        named = [name for name in left if any(fnmatchcase(name, pattern) for pattern in rule.parameters)]
        members = {name: left.pop(name) for name in named}
        yield _Group(name=" ".join(rule.parameters), rule_section=rule, rule=make_rule(rule), members=members)
    if section.kind == "agc":
        spared = {name: left.pop(name) for name in list(left) if name in head_of(model)}
        yield _Group(name="head", rule_section=ClipRule(), rule=make_rule(ClipRule()), members=spared)
    name = "all" if len(left) == len(names) else "rest"
    yield _Group(name=name, rule_section=section, rule=make_rule(section), members=left)


def _unit_dims(model: nn.Module) -> dict[int, int]:
    """Parameter's id -> dimension of its output units, where it is not the first: transposed convolutions."""
    return {id(module.weight): 1 for module in model.modules() if isinstance(module, _TRANSPOSED)}


def _require_matches(place: int, patterns: Sequence[str], names: Sequence[str]) -> None:
    for number, pattern in enumerate(patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise ConfigError(
                Problem(
                    file="job",
                    line=0,
                    path=f"clip.groups[{place}].parameters[{number}]",
                    expected="a pattern that fits at least one of the model's parameters",
                    got=repr(pattern),
                    way_out=f"did you mean {near[0]!r}? the model has {len(names)}, from {names[0]!r} to {names[-1]!r}",
                )
            )


def _present(group: _Group, names_P: tuple[str, ...], norms_P: torch.Tensor) -> _Present | None:
    places = [place for place, name in enumerate(names_P) if name in group.members]
    if not places:
        return None
    members = [group.members[names_P[place]] for place in places]
    is_all = len(places) == len(names_P)
    return _Present(
        group=group, members=members, maybe_places=None if is_all else torch.tensor(places).to(norms_P.device)
    )


def _describe(group: _Group) -> str:
    rule = group.rule_section
    what = {
        "none": "not clipped",
        "value": f"each element to ±{rule.threshold:g}",
        "norm": f"norm to {rule.threshold:g}",
        "agc": f"each unit's norm to {rule.ratio:g} of its weights' (at least {rule.min_weight_norm:g})",
        "auto": (
            f"norm to p{rule.percentile:g} of the last {rule.window} (from {rule.warmup_steps} on, at least "
            f"{rule.floor:g}, {f'at most {rule.cap:g}' if rule.cap else 'no cap'})"
        ),
    }[rule.kind]
    return f"{group.name}: {what}, {len(group.members)} parameters"
