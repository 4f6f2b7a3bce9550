"""What a sampled step measures, on the device.

In:  a model and its optimizer, hooks during one step, gradients before clipping, weights before and after the step.
Out: small tensors for one transfer, and how to read them as `DeepStats`.
Never waits for the device, changes nothing, draws no random number. Reductions are in float32.

A layer's statistics come from the first `MAX_VALUES` values of its output (whole samples), in the step's first
forward pass: enough for a standard deviation to 0.2 %, and the cost doesn't grow with the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.health.layers import RELUS, SATURATION, CallOrder, Layer, layer_weight
from trainer.health.measure_weights import adam_roots, row_spreads
from trainer.health.records import DeepStats, InputStats, LayerStats, ParameterStats
from trainer.norms import gradient_norms

MAX_VALUES = 2**18
MAX_ACTIVITY_VALUES = 2**20


@dataclass(slots=True)
class Activity:
    """Which units of a ReLU layer have fired in the current window."""

    has_fired: torch.Tensor
    num_observations: int = 0


@dataclass(slots=True)
class _Seen:
    """One layer's tensors, before they travel."""

    layer: Layer
    num_units: int
    mean: torch.Tensor
    std: torch.Tensor
    sample_std: torch.Tensor
    delta_norm: torch.Tensor | None = None
    num_delta: int = 1
    saturated: torch.Tensor | None = None
    never_active: torch.Tensor | None = None
    num_observations: int = 0


@dataclass(slots=True)
class Parcel:
    """Scalars to send, each with the name under which it is read again."""

    names: list[str] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)

    def add(self, name: str, value: torch.Tensor) -> None:
        self.names.append(name)
        self.tensors.append(value)

    def add_all(self, prefix: str, names: Sequence[str], values: torch.Tensor) -> None:
        self.names += [prefix + name for name in names]
        self.tensors.append(values)

    @property
    def size(self) -> int:
        return len(self.names)

    def read(self, numbers: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.names, numbers, strict=True))


class DeepProbe:
    """Measures one step deeply: made before its forward pass, then `gradients`, `before_update`, `after_update`."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], activity: dict[str, Activity], window: int
    ) -> None:
        self._model, self._optimizers = model, optimizers
        self._activity, self._window = activity, window
        self.own_s = 0.0
        """Host seconds spent in hooks."""
        start = perf_counter()
        self._seen: dict[str, _Seen] = {}
        self._order = CallOrder(model, self._on_layer, self._on_activation)
        self._parameters = list(model.named_parameters())  # a tied one once
        self._groups: dict[int, dict[str, Any]] = {
            id(one): group for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]
        }
        self._with_gradient: set[str] = set()
        self._before: list[torch.Tensor] = []
        self._moving: list[tuple[str, nn.Parameter]] = []
        self.parcel = Parcel()
        self._inputs: tuple[int, int, int, bool] | None = None
        self._scale = 1.0
        self.own_s += perf_counter() - start

    def detach(self) -> None:
        self._order.detach()

    def _on_layer(self, layer: Layer, output: torch.Tensor) -> None:
        if not output.is_floating_point() or output.numel() == 0:
            return
        start = perf_counter()
        values = _first(output.detach(), MAX_VALUES).float()
        mean, root = values.mean(), math.sqrt(values.numel())
        seen = _Seen(
            layer=layer,
            num_units=output.numel() // len(output) if output.ndim > 1 else 1,
            mean=mean,
            # Norms of differences: on a CPU ten times faster than std and var, which go along strides.
            std=torch.linalg.vector_norm(values - mean) / root,
            sample_std=torch.linalg.vector_norm(values - values.mean(dim=0)) / root,
        )
        self._seen[layer.name] = seen
        if output.requires_grad:

            def on_gradient(delta: torch.Tensor) -> None:
                start = perf_counter()
                part = _first(delta.detach(), MAX_VALUES)
                seen.delta_norm = torch.linalg.vector_norm(part, dtype=torch.float32)
                seen.num_delta = part.numel()
                self.own_s += perf_counter() - start

            output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        self.own_s += perf_counter() - start

    def _on_activation(self, layer: Layer, module: nn.Module, values: torch.Tensor) -> None:
        seen = self._seen.get(layer.name)
        if seen is None or values.ndim < 2:
            return
        start = perf_counter()
        bound = SATURATION.get(type(module))
        if bound is not None:
            seen.saturated = (_first(values.detach(), MAX_VALUES).abs() > bound).float().mean()
        if isinstance(module, RELUS):
            self._activity_of(seen, _first(values.detach(), MAX_ACTIVITY_VALUES))
        self.own_s += perf_counter() - start

    def _activity_of(self, seen: _Seen, values: torch.Tensor) -> None:
        # A unit is a channel of a convolution, else a column.
        unit_dim = 1 if isinstance(seen.layer.module, nn.modules.conv._ConvNd) else values.ndim - 1
        dims = [dim for dim in range(values.ndim) if dim != unit_dim]
        has_fired = values.amax(dim=dims) > 0
        activity = self._activity.get(seen.layer.name)
        if activity is None or activity.has_fired.shape != has_fired.shape:
            activity = self._activity[seen.layer.name] = Activity(has_fired=torch.zeros_like(has_fired))
        activity.has_fired |= has_fired
        activity.num_observations += values.numel() // values.shape[unit_dim]
        seen.never_active = 1.0 - activity.has_fired.float().mean()
        seen.num_observations = activity.num_observations
        if activity.num_observations >= self._window:
            del self._activity[seen.layer.name]

    def gradients(
        self,
        norms: dict[str, torch.Tensor] | None,
        inputs: torch.Tensor | None,
        labels: torch.Tensor | None,
        scale: float | None,
    ) -> None:
        """Between backward and clipping; `scale` is what the loss was multiplied by (hooks saw it, gradients not)."""
        self.detach()
        self._scale = scale or 1.0
        for name, seen in self._seen.items():
            self.parcel.add(f"std:{name}", seen.std)
            self.parcel.add(f"mean:{name}", seen.mean)
            self.parcel.add(f"sample_std:{name}", seen.sample_std)
            for key, value in (
                ("delta", seen.delta_norm),
                ("saturated", seen.saturated),
                ("never", seen.never_active),
            ):
                if value is not None:
                    self.parcel.add(f"{key}:{name}", value)
        with_gradient = [(name, one) for name, one in self._parameters if one.grad is not None]
        self._with_gradient = {name for name, _ in with_gradient}
        if norms is not None:
            for name, _ in with_gradient:
                if name in norms:
                    self.parcel.add(f"grad:{name}", norms[name])
        elif with_gradient:
            values = gradient_norms([one.grad for _, one in with_gradient if one.grad is not None])
            self.parcel.add_all("grad:", [name for name, _ in with_gradient], values)
        if scale is not None and with_gradient:
            gradients = [one.grad for _, one in with_gradient if one.grad is not None]
            self.parcel.add_all("grad_max:", [name for name, _ in with_gradient], gradient_norms(gradients, math.inf))
        if inputs is not None:
            self._add_inputs(inputs.detach(), labels)

    def _add_inputs(self, inputs: torch.Tensor, labels: torch.Tensor | None) -> None:
        if inputs.ndim < 2 or not inputs.is_floating_point() or inputs.numel() == 0:
            return
        has_labels = labels is not None and not labels.is_floating_point() and labels.numel() > 0
        num_channels = inputs.shape[1] if inputs.ndim == 4 else 1
        values = _first(inputs, MAX_ACTIVITY_VALUES).float()
        by_channel = values.transpose(0, 1).reshape(num_channels, -1) if inputs.ndim == 4 else values.reshape(1, -1)
        names = [str(channel) for channel in range(num_channels)]
        self.parcel.add_all("sum:", names, by_channel.sum(dim=1))
        self.parcel.add_all("square:", names, by_channel.square().sum(dim=1))
        self.parcel.add_all("min:", names, by_channel.amin(dim=1))
        self.parcel.add_all("max:", names, by_channel.amax(dim=1))
        if has_labels and labels is not None:
            self.parcel.add("label_min", labels.amin().float())
            self.parcel.add("label_max", labels.amax().float())
        self._inputs = (num_channels, len(inputs), by_channel.shape[1], has_labels)

    def before_update(self) -> None:
        """Right before the optimizer steps: a copy of the weights."""
        self._moving = [(name, one) for name, one in self._parameters if one.requires_grad and id(one) in self._groups]
        self._before = [one.detach().clone() for _, one in self._moving]

    def after_update(self) -> None:
        """Right after: how far they moved, exactly."""
        weights = [one.detach() for _, one in self._parameters]
        names = [name for name, _ in self._parameters]
        self.parcel.add_all("weight:", names, gradient_norms(weights))
        if self._moving:
            moved = torch._foreach_sub([one.detach() for _, one in self._moving], self._before)
            self.parcel.add_all("update:", [name for name, _ in self._moving], gradient_norms(list(moved)))
        self._before = []
        for prefix, measured in (
            ("rows:", row_spreads(self._parameters)),
            ("root_v:", adam_roots(self._parameters, self._optimizers, self._groups)),
        ):
            for names, values in measured:
                self.parcel.add_all(prefix, names, values)

    def reader(self, step: int, scale: float | None, was_skipped: bool) -> Callable[[list[float]], DeepStats]:
        """How to read the parcel; everything it needs besides the numbers is on the host already."""
        layers = [self._seen[layer.name] for layer in self._order.layers if layer.name in self._seen]
        called = set(self._order.called)
        owners = {name: name.rpartition(".")[0] for name, _ in self._parameters}
        modules = dict(self._model.named_modules())
        groups = self._groups
        normalized = {seen.layer.name for seen in layers if seen.layer.is_normalized}
        weights = {seen.layer.name: f"{seen.layer.name}.weight".lstrip(".") for seen in layers}

        def is_container_without(name: str) -> bool:
            """A parameter beside submodules, with no gradient: its module was called, but was it used? Not known."""
            return name not in self._with_gradient and bool(modules[owners[name]]._modules)

        def build(numbers: list[float]) -> DeepStats:
            values = self.parcel.read(numbers)
            parameters = tuple(
                ParameterStats(
                    name=name,
                    num_dims=parameter.ndim,
                    numel=parameter.numel(),
                    num_rows=len(parameter) if parameter.ndim else 1,
                    layer=owners[name],
                    is_trainable=parameter.requires_grad,
                    is_in_optimizer=id(parameter) in groups,
                    is_used=id(modules.get(owners[name])) in called and not is_container_without(name),
                    is_dead_bias=name.endswith("bias") and owners[name] in normalized,
                    is_embedding=isinstance(modules.get(owners[name]), nn.Embedding | nn.EmbeddingBag),
                    weight_norm=values.get(f"weight:{name}", math.nan),
                    grad_norm=values.get(f"grad:{name}"),
                    grad_max=values.get(f"grad_max:{name}", math.nan),
                    update_norm=values.get(f"update:{name}", math.nan),
                    row_spread=values.get(f"rows:{name}", math.nan),
                    adam_root_v=values.get(f"root_v:{name}", math.nan),
                    adam_eps=_eps_of(groups.get(id(parameter), {})),
                )
                for name, parameter in self._parameters
            )
            return DeepStats(
                step=step,
                layers=tuple(self._layer(seen, values, weights, is_last=seen is layers[-1]) for seen in layers),
                parameters=parameters,
                inputs=self._read_inputs(values),
                scaler_scale=scale,
                was_skipped=was_skipped,
            )

        return build

    def _layer(self, seen: _Seen, values: dict[str, float], weights: dict[str, str], *, is_last: bool) -> LayerStats:
        layer = seen.layer
        weight, name = layer_weight(layer.module), weights[layer.name]
        mean = values[f"mean:{layer.name}"]
        weight_norm = values.get(f"weight:{name}", math.nan)
        delta = values.get(f"delta:{layer.name}", math.nan)
        # A frozen layer is in no graph: only of those that learn is it known what takes in their output.
        is_output = is_last or (layer.is_output and seen.delta_norm is not None)
        return LayerStats(
            name=layer.name,
            kind=type(layer.module).__name__,
            activation=layer.activation,
            stretch=layer.stretch,
            is_normalized=layer.is_normalized,
            is_output=is_output,
            fan_in=weight[0].numel() if weight is not None else 0,
            num_units=seen.num_units,
            mean=mean,
            std=values[f"std:{layer.name}"],
            sample_std=values[f"sample_std:{layer.name}"],
            is_finite=math.isfinite(mean),
            delta_rms=delta / math.sqrt(seen.num_delta) / self._scale,
            weight_norm=weight_norm,
            weight_rms=weight_norm / math.sqrt(weight.numel()) if weight is not None else math.nan,
            grad_norm=values.get(f"grad:{name}", math.nan),
            update_norm=values.get(f"update:{name}", math.nan),
            never_active=values.get(f"never:{layer.name}", math.nan),
            num_observations=seen.num_observations,
            # An output's sigmoid is meant to be sure.
            saturated=math.nan if is_output else values.get(f"saturated:{layer.name}", math.nan),
        )

    def _read_inputs(self, values: dict[str, float]) -> InputStats | None:
        if self._inputs is None:
            return None
        num_channels, num_samples, num_values, has_labels = self._inputs
        sums, squares, minima, maxima = (
            tuple(values[f"{key}:{channel}"] for channel in range(num_channels))
            for key in ("sum", "square", "min", "max")
        )
        return InputStats(
            num_samples=num_samples,
            num_values=num_values,
            sums=sums,
            square_sums=squares,
            minima=minima,
            maxima=maxima,
            label_min=values["label_min"] if has_labels else None,
            label_max=values["label_max"] if has_labels else None,
        )


def _eps_of(group: dict[str, Any]) -> float:
    """NaN where an optimizer has none, or several (Adafactor's)."""
    eps = group.get("eps")
    return float(eps) if isinstance(eps, float | int) else math.nan


def _first(values: torch.Tensor, most: int) -> torch.Tensor:
    """Whole samples from the front, `most` values at most but at least one sample."""
    if values.numel() <= most or values.ndim < 2:
        return values
    return values[: max(1, most * len(values) // values.numel())]
