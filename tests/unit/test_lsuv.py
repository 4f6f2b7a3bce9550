"""LSUV: what it reaches, and what it leaves as it was."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.job_model import ModelSection
from trainer.activations import ACTIVATIONS
from trainer.lsuv import lsuv, scale_to_unit
from trainer.models import build_model


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: more threads only get in each other's way."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def outputs_of_layers(model, images_NCHW):
    """Each linear and convolution layer's output, norms on the batch's statistics."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: found.setdefault(name, output.detach()))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    model.train()(images_NCHW)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_layer_has_unit_deviation_whatever_the_activation(kind, activation):
    """No gain table is used: that is what it is for."""
    torch.manual_seed(0)
    depth = 12 if kind == "mlp" else 2
    model = build_model(
        ModelSection(kind=kind, width=16, depth=depth, activation=activation, init="lsuv"), (3, 12, 12), 5
    )
    images_NCHW = 3.0 + 40.0 * torch.randn(16, 3, 12, 12)
    report = scale_to_unit(model, images_NCHW, tolerance=0.02)
    assert all(abs(layer.std_after - 1.0) <= 0.02 for layer in report)
    outputs = outputs_of_layers(model, images_NCHW)
    assert [layer.name for layer in report] == list(outputs)  # in the order of calls
    for output in outputs.values():
        assert output.std(correction=0).item() == pytest.approx(1.0, abs=0.03)


def test_it_leaves_modes_buffers_and_random_numbers_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    model[2].eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    numbers = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    lsuv(model, torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert [module.training for module in model] == [True, True, False, True, True]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert numbers[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert not any(module._forward_hooks for module in model)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_modes_and_hooks_are_put_back_also_when_the_model_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))
    with pytest.raises(RuntimeError):
        scale_to_unit(model, torch.randn(2, 3, 8, 8))
    assert model.training
    assert not model[0]._forward_hooks


def test_tied_frozen_and_zero_layers_are_scaled_once_or_not_at_all():
    shared, frozen, zero = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
    frozen.requires_grad_(False)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    before = frozen.weight.clone()
    model = nn.Sequential(shared, shared, frozen, zero)
    report = scale_to_unit(model, torch.randn(64, 6))
    assert [(layer.name, layer.num_tries > 0) for layer in report] == [("0", True), ("3", False)]
    assert torch.equal(before, frozen.weight)
    assert not zero.weight.any()


def test_a_bias_of_the_users_own_takes_more_tries_but_comes_to_the_same():
    layer = nn.Linear(30, 30)
    nn.init.uniform_(layer.bias, -0.9, 0.9)
    (report,) = scale_to_unit(nn.Sequential(layer), 100.0 * torch.randn(256, 30), tolerance=0.01)
    assert report.std_after == pytest.approx(1.0, abs=0.01)
    assert report.num_tries > 1


@pytest.mark.parametrize("images_NCHW", [torch.ones(1, 3), torch.tensor([[1.0], [float("nan")]])])
def test_a_batch_that_has_no_deviation_is_refused(images_NCHW):
    with pytest.raises(ConfigError, match="at least two images of finite values"):
        scale_to_unit(nn.Sequential(nn.Linear(3, 3)), images_NCHW)
