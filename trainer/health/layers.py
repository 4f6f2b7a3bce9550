"""Which modules count, and what one forward pass says about their order.

In:  a model.
Out: hooks on its layers, norms and activations; a `Layer` for each layer that was called, in the order of the calls.
A functional activation can't be seen by hooks: such a layer has none, and nothing is said about its units.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
RELUS = (nn.ReLU, nn.ReLU6)
"""Zero on one whole side: a unit that never leaves it has no gradient."""
SATURATION: dict[type[nn.Module], float] = {nn.Tanh: 1.82, nn.Sigmoid: 3.64}
"""Beyond it (either side) the derivative is below a tenth of its largest."""
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *RELUS,
    *SATURATION,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Softplus,
    nn.Softsign,
)
NOT_LAYERS = (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention, *NORMS)
"""Their outputs are no pre-activations. (The linear maps inside an attention block of one's own do count.)"""


@dataclass(slots=True, kw_only=True)
class Layer:
    """One layer in one forward pass."""

    name: str
    module: nn.Module
    stretch: int
    activation: str = ""
    is_normalized: bool = False
    is_output: bool = True
    """No later layer has taken in what came of its output, yet."""


def layer_weight(module: nn.Module) -> nn.Parameter | None:
    """The matrix or kernel of a layer; None for modules that are none."""
    if isinstance(module, NOT_LAYERS):
        return None
    weight = module._parameters.get("weight")
    return weight if weight is not None and weight.ndim >= 2 else None


def is_layer(module: nn.Module) -> bool:
    # A parametrised weight (weight_norm) is no parameter of its own, but the module is a layer all the same.
    return layer_weight(module) is not None or isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


LayerCall = Callable[[Layer, torch.Tensor], None]
ActivationCall = Callable[[Layer, nn.Module, torch.Tensor], None]


class _Hook:
    """A hook that stays behind when its module is copied or pickled: the copy has one that does nothing.

    Hooks are on between two steps, when a model is saved whole, or copied for an average of its weights.
    """

    __slots__ = ("_see",)

    def __init__(self, see: Callable[..., None]) -> None:
        self._see = see

    def __call__(self, *call: Any) -> None:
        self._see(*call)

    def __reduce__(self) -> tuple[Any, ...]:
        # Takes anything and returns None; the standard library's, so that the file loads where headrace is not.
        return getattr, (nullcontext(), "__exit__")


class CallOrder:
    """Hooks for the forward passes of one step; only a layer's first call counts."""

    def __init__(self, model: nn.Module, on_layer: LayerCall, on_activation: ActivationCall) -> None:
        self._model, self._on_layer, self._on_activation = model, on_layer, on_activation
        self.layers: list[Layer] = []
        """Also those that were called without gradients only."""
        self.called: set[int] = set()
        """Identities of modules with parameters that were called."""
        self._makers: dict[int, tuple[weakref.ref[torch.Tensor], Layer]] = {}
        self._by_name: dict[str, Layer] = {}
        self._nodes: dict[int, Layer | None] = {}
        """Nodes of the graph by their numbers, which no other node gets: the layer whose output it made, None: walked
        over, or a call that doesn't count. Holding on to nodes would keep a whole graph's memory."""
        self._seen: set[int] = set()
        self._num_norms = 0
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            if isinstance(module, NORMS):
                self._handles.append(module.register_forward_hook(_Hook(self._after_norm)))
            elif isinstance(module, ACTIVATIONS):
                self._handles.append(module.register_forward_pre_hook(_Hook(self._before_activation)))
            elif is_layer(module):
                self._handles.append(module.register_forward_hook(_Hook(self._layer_hook(name))))
            elif module._parameters:
                self._handles.append(module.register_forward_pre_hook(_Hook(self._note)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._makers = {}

    def _note(self, module: nn.Module, args: Any) -> None:
        self.called.add(id(module))
        if torch.is_grad_enabled():
            self._takes_in(args)

    def _takes_in(self, args: Any) -> None:
        """Layers whose outputs have led here are none of the model's outputs; each node is walked over once."""
        nodes = [value.grad_fn for value in args if isinstance(value, torch.Tensor)]
        while nodes:
            node = nodes.pop()
            if node is None:
                continue
            number = node._sequence_nr()
            if number in self._nodes:
                layer = self._nodes[number]
                if layer is not None:
                    layer.is_output = False
                continue
            self._nodes[number] = None
            nodes += [before for before, _ in node.next_functions]

    def _layer_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._tells_order or not isinstance(output, torch.Tensor):
                return
            has_gradients = torch.is_grad_enabled()
            if has_gradients:
                self._takes_in(args)
            if id(module) in self._seen:
                self._made(output, None)
                return
            layer = self._by_name.get(name)
            if layer is None:
                layer = self._by_name[name] = Layer(name=name, module=module, stretch=self._num_norms)
                self.layers.append(layer)
            self._makers[id(output)] = (weakref.ref(output), layer)
            if has_gradients:
                self._seen.add(id(module))
                self.called.add(id(module))
                # What reads a layer of a reentrant checkpoint may be in another graph than its second pass.
                layer.is_output = torch._C._current_graph_task_id() == -1
                self._made(output, layer)
                self._on_layer(layer, output)

        return hook

    @property
    def _tells_order(self) -> bool:
        """Without gradients it is an evaluation between two steps; or, of a model that trains, the first pass of a
        reentrant checkpoint: that is in order, the second one, in the backward pass, begins with the last layers."""
        return torch.is_grad_enabled() or self._model.training

    def _made(self, output: torch.Tensor, layer: Layer | None) -> None:
        if output.grad_fn is not None:
            self._nodes[output.grad_fn._sequence_nr()] = layer

    def _maker(self, value: Any) -> Layer | None:
        reference, layer = self._makers.get(id(value), (None, None))
        # An identity may be used again by another tensor; the weak reference tells.
        return layer if reference is not None and reference() is value else None

    def _after_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._tells_order:
            return
        if torch.is_grad_enabled():
            self.called.add(id(module))
        self._num_norms += 1
        layer = self._maker(args[0]) if args else None
        if layer is not None and isinstance(output, torch.Tensor):
            layer.is_normalized = True
            self._makers[id(output)] = (weakref.ref(output), layer)

    def _before_activation(self, module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled() or not args:
            return
        self.called.add(id(module))
        layer = self._maker(args[0])
        if layer is not None and not layer.activation:
            layer.activation = type(module).__name__
            self._on_activation(layer, module, args[0])
