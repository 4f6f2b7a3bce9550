"""Does a checkpoint fit the model that is to go on from it? A user's factory may make another one by now.

In:  what a checkpoint's files hold; a model and an optimizer.
Out: nothing, or a ConfigError that names the factory, with both sides.
Changes neither, reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.errors import ConfigError, Problem

_NUM_NAMED = 3
_WAY_OUT = "put the factory's source back as it was then; another model needs a new run (--run-dir)"


def require_fitting_weights(file: Path, weights: Mapping[str, Any], model: nn.Module, made_by: str) -> None:
    """ConfigError unless the model has the tensors of `file`, by name and shape."""
    saved, present = _shapes(weights), _shapes(model.state_dict())
    names = [name for name in dict.fromkeys((*saved, *present)) if saved.get(name) != present.get(name)]
    if names:
        expected, got = (
            _listed([f"{name} {side.get(name, '(absent)')}" for name in names]) for side in (saved, present)
        )
        raise _refusal(made_by, f"{expected}, as in {file}", got)


def require_fitting_optimizer(
    file: Path,
    gathered: Mapping[str, Any],
    weights: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    made_by: str,
) -> None:
    """ConfigError unless each parameter of the optimizer is the one that `file` has gathered something for.

    Only places tell which is whose: so the model's tensors must be in the order of the checkpoint's `weights`, and as
    many be trained as were then.
    """
    moved = [pair for pair in zip(weights, model.state_dict(), strict=True) if pair[0] != pair[1]]
    if moved:
        expected, got = (_listed(names) for names in zip(*moved, strict=True))
        raise _refusal(made_by, f"{expected} in this order, as in {file.with_name('model.pt')}", got)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    num_saved = sum(len(group["params"]) for group in gathered["param_groups"])
    if len(trained) != num_saved:
        raise _refusal(made_by, f"{num_saved} trainable parameters, as in {file}", str(len(trained)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for place, parameter in enumerate(trained):
        for kept in gathered["state"].get(place, {}).values():
            if isinstance(kept, torch.Tensor) and kept.ndim and kept.shape != parameter.shape:
                name = names[id(parameter)]
                expected = f"a parameter of shape {tuple(kept.shape)} at place {place} of those trained, as in {file}"
                raise _refusal(made_by, expected, f"{name} {tuple(parameter.shape)}")


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(tensor, "shape", ())) for name, tensor in tensors.items()}


def _listed(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - _NUM_NAMED} more" if len(parts) > _NUM_NAMED else ""
    return ", ".join(parts[:_NUM_NAMED]) + more


def _refusal(made_by: str, expected: str, got: str) -> ConfigError:
    return ConfigError(
        Problem(file=made_by or "the job", line=0, path="model", expected=expected, got=got, way_out=_WAY_OUT)
    )
