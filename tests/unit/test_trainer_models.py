"""Built-in and users' models, activations, initial weights."""

import math
import re

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.job import ModelSection
from pipeline.user_code import load_attribute
from trainer.activations import ACTIVATIONS
from trainer.checkpoint import weights_sha256
from trainer.initialization import INIT_LAWS, initialize
from trainer.models import build_model, check_output

BUILT_IN = ("mlp", "cnn", "resnet")


@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("input_shape_CHW", [(1, 8, 8), (3, 13, 30)])
def test_a_built_in_model_maps_any_image_to_a_logit_per_class(kind, depth, input_shape_CHW):
    model = build_model(ModelSection(kind=kind, depth=depth, width=4), input_shape_CHW, 7)
    assert model(torch.zeros(2, *input_shape_CHW)).shape == (2, 7)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_parameter_of_a_built_in_model_gets_a_gradient(kind):
    torch.manual_seed(0)
    model = build_model(ModelSection(kind=kind, width=8), (3, 16, 16), 5)
    nn.functional.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.arange(16) % 5).backward()
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


@pytest.mark.parametrize("kind", BUILT_IN)
def test_equal_seeds_give_equal_weights(kind):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model(ModelSection(kind=kind), (3, 8, 8), 5).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_activation_of_a_job_can_be_built_and_trained(kind):
    for name in ModelSection.model_fields["activation"].annotation.__args__:
        model = build_model(ModelSection(kind=kind, width=4, activation=name), (1, 8, 8), 3)
        model(torch.randn(4, 1, 8, 8)).sum().backward()


def test_every_law_of_a_job_has_its_entry():
    assert {"default", *INIT_LAWS} == set(ModelSection.model_fields["init"].annotation.__args__)


def test_a_gain_keeps_the_mean_square_of_a_normal_signal():
    """gain^2 * E[f(z)^2] = 1 for z ~ N(0, 1)."""
    z = torch.linspace(-12.0, 12.0, 480_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
    for name, activation in ACTIVATIONS.items():
        mean_square = torch.trapezoid(activation.make()(z.clone()) ** 2 * density, z).item()
        assert activation.gain**2 * mean_square == pytest.approx(1.0, abs=1e-5), name


LAYERS = {
    "wide linear": (lambda: nn.Linear(700, 300), 700, 300),
    "tall linear": (lambda: nn.Linear(200, 900), 200, 900),
    "convolution": (lambda: nn.Conv2d(40, 64, 3), 40 * 9, 64 * 9),
}


@pytest.mark.parametrize("law", INIT_LAWS)
@pytest.mark.parametrize("layer", LAYERS)
def test_weights_have_the_standard_deviation_of_their_law(law, layer):
    """Written out here from the papers, not taken from the table under test."""
    make, fan_in, fan_out = LAYERS[layer]
    torch.manual_seed(0)
    module = make()
    initialize(module, law, "relu")
    num_rows = module.weight.shape[0]
    expected = {
        "zeros": 0.0,
        "normal": 0.01,
        "xavier": math.sqrt(2.0 / (fan_in + fan_out)),
        "kaiming": math.sqrt(2.0 / fan_in),
        "orthogonal": math.sqrt(2.0 / max(fan_in, num_rows)),
    }[law.split("_")[0]]
    # 23,040 weights and more: the sample deviation is within 2 % (4 sigma of its own spread).
    assert module.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert not module.bias.any()


@pytest.mark.parametrize("layer", LAYERS)
def test_xavier_and_kaiming_uniform_fill_their_interval_and_no_more(layer):
    make, fan_in, fan_out = LAYERS[layer]
    bounds = {"xavier_uniform": math.sqrt(6.0 / (fan_in + fan_out)), "kaiming_uniform": math.sqrt(6.0 / fan_in)}
    for law, bound in bounds.items():
        module = make()
        initialize(module, law, "relu")
        assert 0.999 * bound < module.weight.abs().max().item() <= bound * (1 + 1e-6)


def test_orthogonal_weights_are_orthogonal():
    module = nn.Linear(50, 30)
    initialize(module, "orthogonal", "relu")
    torch.testing.assert_close(module.weight @ module.weight.T, 2.0 * torch.eye(30), atol=1e-5, rtol=0.0)


def test_default_leaves_weights_and_norm_layers_are_never_touched():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = [parameter.clone() for parameter in model.parameters()]
    initialize(model, "default", "relu")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    initialize(model, "zeros", "relu")
    assert torch.equal(torch.ones(4), model[1].weight)


def test_kaiming_keeps_the_signal_through_a_deep_relu_net(tmp_path):
    """The reason for the law: torch's own weights shrink it by 0.39 decades a layer."""
    torch.manual_seed(0)
    model = build_model(
        ModelSection(kind="mlp", depth=20, width=512, init="kaiming_normal"), (1, 16, 16), 512, tmp_path
    )
    assert 0.3 < model(torch.randn(64, 1, 16, 16)).pow(2).mean().sqrt().item() < 5.0


FACTORY = """
import torch

def make(input_shape, num_classes, hidden=3):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(hidden), torch.nn.Linear(hidden, num_classes))
    model(torch.zeros(1, *input_shape))
    torch.nn.init.constant_(model[2].weight, 0.25)
    return model

def make_text(input_shape, num_classes):
    return "a model"

def make_frozen(input_shape, num_classes):
    return torch.nn.Flatten()
"""


def test_a_users_factory_is_called_with_shape_classes_and_options_and_keeps_its_weights(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    section = ModelSection(kind="factory", factory="mine.py:make", options={"hidden": 6}, init="zeros")
    model = build_model(section, (3, 4, 4), 5, load_attribute(section.factory, tmp_path))
    assert model(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    assert torch.equal(torch.full((5, 6), 0.25), model[2].weight)


@pytest.mark.parametrize(("name", "got"), [("make_text", "'a model'"), ("make_frozen", "a module with none (Flatten)")])
def test_a_factory_that_gives_nothing_to_train_is_refused(name, got, tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    section = ModelSection(kind="factory", factory=f"mine.py:{name}")
    with pytest.raises(ConfigError, match=re.escape(got)):
        build_model(section, (3, 4, 4), 5, load_attribute(section.factory, tmp_path))


def test_an_option_that_the_factory_does_not_take_is_the_users_error(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    section = ModelSection(kind="factory", factory="mine.py:make", options={"hiden": 6})
    with pytest.raises(ConfigError, match="unexpected keyword argument 'hiden'"):
        build_model(section, (3, 4, 4), 5, load_attribute(section.factory, tmp_path))


def test_a_model_of_another_shape_is_refused_and_a_right_one_is_left_as_it_was():
    section = ModelSection(kind="factory", factory="mine.py:make")
    with pytest.raises(ConfigError, match=r"shape \(2, 4\)"):
        check_output(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), section, (3, 4, 4), 5)
    with pytest.raises(ConfigError, match="cannot be multiplied"):
        check_output(nn.Sequential(nn.Flatten(), nn.Linear(47, 5)), section, (3, 4, 4), 5)
    good = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(48, 5))
    weights, numbers = weights_sha256(good), torch.random.get_rng_state()
    check_output(good, section, (3, 4, 4), 5)
    assert weights == weights_sha256(good)
    assert torch.equal(numbers, torch.random.get_rng_state())
    assert good.training
