"""Models: three built-in ones, and the user's own.

In:  the job's `model` section, the shape of one image, the number of classes.
Out: a module from images NCHW to logits NK, in channels_last memory, on the CPU, with its initial weights.
Never loads weights, never looks at data.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import ConfigError, HeadraceError, Problem
from pipeline.job import ModelSection
from pipeline.job_model import ActivationSection
from pipeline.user_code import own_place
from trainer.activations import make_activation, swap_activations
from trainer.initialization import initialize

log = logging.getLogger("headrace.train")

Factory = Callable[..., nn.Module]
"""`factory(input_shape=(C, H, W), num_classes=K, **options)` returns a module."""

_RESNET_STAGES = 3


def build_model(
    section: ModelSection, input_shape_CHW: tuple[int, int, int], num_classes: int, factory: Factory | None = None
) -> nn.Module:
    """Maps float images (N, *input_shape_CHW) to logits (N, num_classes); equal torch seeds give equal weights.

    `factory` is what `section.factory` names, for kind `factory`. A user's model keeps the weights and activations
    its factory gave it, unless the section names others. Law `lsuv` still needs `trainer.lsuv.scale_to_unit` and a
    batch; a model whose weights are loaded next needs neither.
    """
    said = None if section.activation.name == "default" else section.activation
    if section.kind == "factory":
        assert factory is not None
        model = _call_factory(factory, section, input_shape_CHW, num_classes)
        if said is not None:
            swap_activations(model, said)
    else:
        model = _BUILT_IN[section.kind](section, input_shape_CHW, num_classes)
    example = torch.zeros((2, *input_shape_CHW), device=next(model.parameters()).device)
    initialize(model, section.init, said, example=example)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def build_mlp(section: ModelSection, input_shape_CHW: tuple[int, int, int], num_classes: int) -> nn.Module:
    """`depth` hidden layers of `width` units."""
    layers: list[nn.Module] = [nn.Flatten()]
    num_inputs = math.prod(input_shape_CHW)
    for _ in range(section.depth):
        layers += [nn.Linear(num_inputs, section.width), _activation(section)]
        num_inputs = section.width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_classes))


def build_cnn(section: ModelSection, input_shape_CHW: tuple[int, int, int], num_classes: int) -> nn.Module:
    """`depth` stages of convolution, norm, activation and halving; channels double from stage to stage."""
    layers: list[nn.Module] = []
    num_inputs = input_shape_CHW[0]
    for stage in range(section.depth):
        num_channels = section.width << stage
        layers += [
            nn.Conv2d(num_inputs, num_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_channels),
            _activation(section),
            # ceil_mode: a map of one pixel stays one, so any depth goes with any image.
            nn.MaxPool2d(2, ceil_mode=True),
        ]
        num_inputs = num_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_inputs, num_classes))


def build_resnet(section: ModelSection, input_shape_CHW: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Three stages of `depth` basic blocks each; from the second on, channels double and the image halves."""
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape_CHW[0], section.width, 3, padding=1, bias=False),
        nn.BatchNorm2d(section.width),
        _activation(section),
    ]
    num_inputs = section.width
    for stage in range(_RESNET_STAGES):
        num_channels = section.width << stage
        for block in range(section.depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(num_inputs, num_channels, stride, _activation_section(section)))
            num_inputs = num_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_inputs, num_classes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016): the shortcut is the input itself where shapes agree."""

    def __init__(self, num_inputs: int, num_channels: int, stride: int, activation: ActivationSection) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_channels)
        self.activation1 = make_activation(activation)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_channels)
        self.activation2 = make_activation(activation)
        self.stride = stride
        self.num_new_channels = num_channels - num_inputs

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        branch_NCHW = self.activation1(self.norm1(self.conv1(x_NCHW)))
        branch_NCHW = self.norm2(self.conv2(branch_NCHW))
        shortcut_NCHW = x_NCHW
        if self.num_new_channels:
            # Option A of the paper: every second pixel, zeros for the new channels; no parameters.
            every_second_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
            shortcut_NCHW = functional.pad(every_second_NCHW, (0, 0, 0, 0, 0, self.num_new_channels))
        output_NCHW: torch.Tensor = self.activation2(branch_NCHW + shortcut_NCHW)
        return output_NCHW


def _activation_section(section: ModelSection) -> ActivationSection:
    return ActivationSection(name="relu") if section.activation.name == "default" else section.activation


def _activation(section: ModelSection) -> nn.Module:
    return make_activation(_activation_section(section))


_BUILT_IN = {"mlp": build_mlp, "cnn": build_cnn, "resnet": build_resnet}


def _call_factory(
    factory: Factory, section: ModelSection, input_shape_CHW: tuple[int, int, int], num_classes: int
) -> nn.Module:
    try:
        model = factory(input_shape=input_shape_CHW, num_classes=num_classes, **section.options)
    except (HeadraceError, MemoryError):
        raise
    except Exception as error:  # the user's own code
        log.info("action=factory_failed factory=%s", section.factory, exc_info=error)
        arguments = {"input_shape": input_shape_CHW, "num_classes": num_classes, **section.options}
        called = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        file, line = _place_in(factory, error)
        raise ConfigError(
            Problem(
                file=file or section.factory,
                line=line,
                path="model.factory",
                expected=f"your factory {section.factory} to make a model when called with {called}",
                got=_text(error),
                way_out="mend the factory there, or model.options; HEADRACE_LOG=INFO shows the whole traceback",
            )
        ) from error
    if not isinstance(model, nn.Module) or not any(parameter.requires_grad for parameter in model.parameters()):
        what = f"a module with none ({type(model).__name__})" if isinstance(model, nn.Module) else f"{model!r:.80}"
        raise _refusal(section, "a torch.nn.Module with at least one trainable parameter", what)
    return model


def _place_in(factory: Factory, error: Exception) -> tuple[str, int]:
    """Where the user's own code raised it; its factory's first line if it could not even be called."""
    code = getattr(inspect.unwrap(factory), "__code__", None)
    try:
        file = Path(inspect.getfile(inspect.unwrap(factory))).resolve()
    except TypeError:  # a callable object of its own
        file = Path(inspect.getfile(type(factory))).resolve()
    return own_place(error, file.parent, file) or (str(file), code.co_firstlineno if code is not None else 0)


def _place_below(model: nn.Module, error: Exception) -> tuple[str, int] | None:
    """Where the user's own code raised it: that of the model, or of a module in it (a Sequential's is torch's)."""
    modules = dict.fromkeys(type(module).__module__ for module in model.modules())
    theirs = [name for name in modules if not name.startswith(("torch.", "trainer."))]
    files = [Path(file) for name in theirs if (file := getattr(sys.modules.get(name), "__file__", None))]
    return next(filter(None, (own_place(error, file.parent, file) for file in files)), None)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def check_output(
    model: nn.Module, section: ModelSection, input_shape_CHW: tuple[int, int, int], num_classes: int
) -> None:
    """ConfigError unless two images give (2, num_classes) logits; changes neither weights nor random states."""
    was_training, file, line = model.training, section.factory or "the job", 0
    way_out = "num_classes and input_shape are arguments of the factory"
    images = torch.zeros((2, *input_shape_CHW), device=next(model.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            logits = model.eval()(images)
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        if not isinstance(logits, torch.Tensor):
            way_out = "return the logits, a tensor of shape (batch, num_classes)"
    except Exception as error:  # the user's own code
        log.info("action=model_failed factory=%s", section.factory, exc_info=error)
        got = _text(error)
        file, line = _place_below(model, error) or (file, line)
    finally:
        model.train(was_training)
    if got != f"shape {(2, num_classes)}":
        expected = f"logits of shape {(2, num_classes)} for images of shape {(2, *input_shape_CHW)}"
        raise ConfigError(Problem(file=file, line=line, path="model", expected=expected, got=got, way_out=way_out))


def _refusal(section: ModelSection, expected: str, got: str, way_out: str = "") -> ConfigError:
    file = section.factory or "the job"
    return ConfigError(Problem(file=file, line=0, path="model", expected=expected, got=got, way_out=way_out))
