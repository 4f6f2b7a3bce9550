"""What follows each weighted layer, and where residual branches end, read from the graph of one forward pass.

In:  a model, an example input.
Out: `Trace`: for each weight the activation and norm that follow, whether it is a head, and the ends of branches.
Leaves the model, its buffers and modes, and all random generators as they were.

Autograd's graph, not module hooks: it also shows functional calls (F.relu), what runs in parallel, and which sums are
shortcuts; hooks see modules in the order of their calls and nothing else. It does not show what runs under no_grad,
inside custom autograd functions, or on weights that are frozen.

Words: a graph's node is an operation; its inputs are nearer to the images, its consumers nearer to the logits.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.job_model import ActivationSection
from trainer.init_layers import WeightedLayer, norm_layers
from trainer.random_state import random_state_kept

_RELU6 = (0.0, 6.0)
_SELU_SCALE_FROM = 1.01


def _elu(node: Any) -> ActivationSection:
    is_selu = node._saved_scale > _SELU_SCALE_FROM
    return ActivationSection(name="selu") if is_selu else ActivationSection(name="elu", alpha=node._saved_alpha)


def _hardtanh(node: Any) -> ActivationSection:
    # Other limits are a hard tanh, which has no name here; tanh is what it approximates.
    is_relu6 = (node._saved_min_val, node._saved_max_val) == _RELU6
    return ActivationSection(name="relu6" if is_relu6 else "tanh")


_ACTIVATIONS: dict[str, Callable[[Any], ActivationSection]] = {
    "SigmoidBackward0": lambda node: ActivationSection(name="sigmoid"),
    "HardsigmoidBackward0": lambda node: ActivationSection(name="sigmoid"),
    "TanhBackward0": lambda node: ActivationSection(name="tanh"),
    "ReluBackward0": lambda node: ActivationSection(name="relu"),
    "LeakyReluBackward0": lambda node: ActivationSection(
        name="leaky_relu", negative_slope=max(0.0, node._saved_negative_slope)
    ),
    "PreluKernelBackward0": lambda node: ActivationSection(name="prelu"),
    "EluBackward0": _elu,
    "CeluBackward0": lambda node: ActivationSection(name="elu", alpha=node._saved_alpha),
    "GeluBackward0": lambda node: ActivationSection(name="gelu", approximate=node._saved_approximate),
    "SiluBackward0": lambda node: ActivationSection(name="silu"),
    "MishBackward0": lambda node: ActivationSection(name="mish"),
    "HardswishBackward0": lambda node: ActivationSection(name="hardswish"),
    "SoftplusBackward0": lambda node: ActivationSection(name="softplus", beta=node._saved_beta),
    "HardtanhBackward0": _hardtanh,
}
_NORMS = ("BatchNormBackward", "LayerNormBackward", "GroupNormBackward", "RmsNormBackward")
_LAYERS = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "BmmBackward", "LinearBackward", "DotProduct")
"""Parts of the names of operations that end what one layer's gain is about."""
_VIEWS = (
    "TBackward",
    "Transpose",
    "Permute",
    "View",
    "Reshape",
    "Split",
    "Slice",
    "Chunk",
    "ToCopy",
    "Repeat",
    "Expand",
)
"""What may lie between a parameter and its operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """What comes after one weight's layer."""

    activation: ActivationSection | None
    """None: no activation before the next layer."""
    is_normed: bool
    """A norm layer comes before any activation and any sum, so the weight's scale cancels."""
    is_first: bool
    """No other layer comes before it: it takes in the images."""
    is_head: bool
    """No other layer comes after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one forward pass showed. Weights are known by `id`."""

    followers: dict[int, Followers] = field(default_factory=dict)
    branch_ends: tuple[tuple[nn.Parameter, bool], ...] = ()
    """The last norm's weight (True), else the last layer's (False), of each residual branch that ends in either."""
    num_branches: int = 0


def trace(model: nn.Module, layers: Sequence[WeightedLayer], example: torch.Tensor) -> Trace:
    """The trace of a forward pass in evaluation mode; an empty one if the model can't take the example.

    Whoever runs the model next gets its own error (`check_output`), with more to say about it.
    """
    try:
        outputs = _outputs(model, example)
    except Exception:  # the user's own code
        return Trace()
    graph = _Graph(outputs, {id(layer.weight) for layer in layers}, norm_layers(model))
    ends = list(graph.branch_ends())
    return Trace(
        followers=graph.followers(),
        branch_ends=tuple(end for end in ends if end is not None),
        num_branches=len(ends),
    )


def _outputs(model: nn.Module, example: torch.Tensor) -> list[torch.Tensor]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    example = example.detach().clone()
    example.requires_grad_(example.is_floating_point())  # so that a shortcut from the very input is seen as one
    try:
        with random_state_kept(), torch.enable_grad():
            return list(_tensors(model.eval()(example)))
    finally:
        for module, was_training in modes:
            module.training = was_training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


class _Graph:
    """Autograd's graph with its edges both ways."""

    def __init__(self, outputs: Sequence[torch.Tensor], layers: Collection[int], norms: Sequence[nn.Module]) -> None:
        self._norm_weights = {id(norm.weight): norm.weight for norm in norms if norm.weight is not None}
        self._nodes = _from_inputs_to_outputs([output.grad_fn for output in outputs if output.grad_fn is not None])
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._consumers: dict[Any, list[Any]] = {node: [] for node in self._nodes}
        for node in self._nodes:
            for before in _inputs(node):
                self._consumers[before].append(node)
        self._operations: dict[Any, nn.Parameter] = {}
        """Operation -> the one weight it works with; those with several (recurrent, compiled) show no single layer."""
        self._opaque: set[Any] = set()
        for node in self._nodes:
            if _is_leaf(node) and id(node.variable) in layers:
                for operation in self._behind_views(node):
                    if self._operations.setdefault(operation, node.variable) is not node.variable:
                        self._opaque.add(operation)
        for operation in self._opaque:
            del self._operations[operation]

    def followers(self) -> dict[int, Followers]:
        """Of each weight's first operation."""
        leads_to_layer: dict[Any, bool] = {}
        for node in reversed(self._nodes):
            leads_to_layer[node] = any(self._is_layer(each) or leads_to_layer[each] for each in self._consumers[node])
        comes_from_layer: dict[Any, bool] = {}
        for node in self._nodes:
            comes_from_layer[node] = any(self._is_layer(each) or comes_from_layer[each] for each in _inputs(node))
        found: dict[int, Followers] = {}
        for node, weight in self._operations.items():
            if id(weight) not in found:
                activation, is_normed = self._next(node)
                found[id(weight)] = Followers(
                    activation=activation,
                    is_normed=is_normed,
                    is_first=not comes_from_layer[node],
                    is_head=not leads_to_layer[node],
                )
        return found

    def branch_ends(self) -> Iterator[tuple[nn.Parameter, bool] | None]:
        """One for each sum of a shortcut and a branch; None where a branch ends in neither norm nor layer."""
        for node in self._nodes:
            if _is_sum(node):
                maybe_branch = self._branch(*_inputs(node))
                if maybe_branch is not None:
                    yield self._end(maybe_branch)

    def _next(self, operation: Any) -> tuple[ActivationSection | None, bool]:
        """The nearest activation after an operation, across one sum at most, and whether a norm comes first."""
        is_normed = False
        waiting = deque((after, 0) for after in self._consumers[operation])
        seen = set()
        while waiting:
            node, num_sums = waiting.popleft()
            if node in seen or self._is_layer(node) or "Softmax" in node.name():
                continue
            seen.add(node)
            if node.name() in _ACTIVATIONS:
                return self._activation(node), is_normed
            num_sums += _is_sum(node)
            is_normed = is_normed or (num_sums == 0 and self._is_norm(node))
            if num_sums <= 1:  # further sums are later blocks, which have norms or layers of their own
                waiting.extend((after, num_sums) for after in self._consumers[node])
        return None, is_normed

    def _branch(self, one: Any, other: Any) -> Any:
        """That side of a sum with more layers between it and where the two sides part; None if they never do."""
        sides = {one: 1, other: 2} if one is not other else {one: 3}
        waiting = [-self._place[node] for node in sides]
        heapq.heapify(waiting)
        num_layers = {1: 0, 2: 0}
        while waiting:
            node = self._nodes[-heapq.heappop(waiting)]
            side = sides[node]
            if side == 3:
                break
            num_layers[side] += self._is_layer(node)
            for before in _inputs(node):
                if _is_leaf(before) and isinstance(before.variable, nn.Parameter):
                    continue
                if before not in sides:
                    heapq.heappush(waiting, -self._place[before])
                sides[before] = sides.get(before, 0) | side
        else:
            return None
        if num_layers[1] == num_layers[2]:
            return None
        return one if num_layers[1] > num_layers[2] else other

    def _end(self, node: Any) -> tuple[nn.Parameter, bool] | None:
        while True:
            if self._is_norm(node):
                maybe_weight = next(self._norm_weights_into(node), None)
                return None if maybe_weight is None else (maybe_weight, True)
            if node in self._operations:
                return self._operations[node], False
            before = [each for each in _inputs(node) if not _is_leaf(each)]
            if node.name() in _ACTIVATIONS or self._is_layer(node) or len(before) != 1:
                # An activation of zeros may pass no gradient (ReLU's is 0 at 0), and the branch would never wake up.
                return None
            node = before[0]

    def _is_layer(self, node: Any) -> bool:
        name = node.name()
        # Python's own functions (checkpointed or compiled parts) have no number at their end, and may hold layers.
        return (
            node in self._operations
            or node in self._opaque
            or name.endswith("Backward")
            or any(part in name for part in _LAYERS)
        )

    def _is_norm(self, node: Any) -> bool:
        return any(part in node.name() for part in _NORMS) or any(True for _ in self._norm_weights_into(node))

    def _norm_weights_into(self, node: Any) -> Iterator[nn.Parameter]:
        for before in _inputs(node):
            while not _is_leaf(before) and _is_view(before) and len(_inputs(before)) == 1:
                before = _inputs(before)[0]
            if _is_leaf(before) and id(before.variable) in self._norm_weights:
                yield before.variable

    def _activation(self, node: Any) -> ActivationSection | None:
        """x * sigmoid(x) is SiLU; a sigmoid that multiplies something else is a gate, which is to start half open."""
        products = [after for after in self._consumers[node] if after.name().startswith("MulBackward")]
        if node.name() != "SigmoidBackward0" or not products:
            return _ACTIVATIONS[node.name()](node)
        is_silu = any(each in _inputs(node) for product in products for each in _inputs(product))
        return ActivationSection(name="silu") if is_silu else None

    def _behind_views(self, leaf: Any) -> Iterator[Any]:
        waiting = list(self._consumers[leaf])
        while waiting:
            node = waiting.pop(0)
            if _is_view(node):
                waiting.extend(self._consumers[node])
            else:
                yield node


def _inputs(node: Any) -> list[Any]:
    return [before for before, _ in node.next_functions if before is not None]


def _is_leaf(node: Any) -> bool:
    return hasattr(node, "variable")


def _is_view(node: Any) -> bool:
    return bool(node.name().startswith(_VIEWS))


def _is_sum(node: Any) -> bool:
    inputs = _inputs(node)
    return (
        node.name() == "AddBackward0"
        and len(inputs) == 2
        and not any(_is_leaf(each) and isinstance(each.variable, nn.Parameter) for each in inputs)
    )


def _from_inputs_to_outputs(ends: Sequence[Any]) -> list[Any]:
    """Every node, after all of its inputs; without recursion, since a model may have thousands of layers."""
    ordered: list[Any] = []
    done: set[Any] = set()
    waiting = [(node, False) for node in ends]
    while waiting:
        node, are_inputs_done = waiting.pop()
        if are_inputs_done:
            ordered.append(node)
        elif node not in done:
            done.add(node)
            waiting.append((node, True))
            waiting.extend((before, False) for before in _inputs(node) if before not in done)
    return ordered
