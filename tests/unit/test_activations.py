"""Activations by name, and swapped into models."""

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.job import OptimizerSection
from pipeline.job_model import ACTIVATION_PARAMETERS, ActivationSection, ModelSection
from trainer.activations import ACTIVATIONS, activation_of, make_activation, swap_activations
from trainer.models import build_model
from trainer.optimizers import build_optimizer


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: more threads only get in each other's way."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


SECTIONS = [
    *(ActivationSection(name=name) for name in ACTIVATIONS),
    ActivationSection(name="leaky_relu", negative_slope=0.2),
    ActivationSection(name="prelu", initial_slope=0.5),
    ActivationSection(name="elu", alpha=0.5),
    ActivationSection(name="softplus", beta=2.0),
    ActivationSection(name="gelu", approximate="tanh"),
]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_a_module_knows_the_section_it_was_made_from(section):
    assert activation_of(make_activation(section)) == section


def test_leaky_relu_leaks_a_hundredth_unless_told_otherwise():
    assert make_activation("leaky_relu")(torch.tensor(-1.0)).item() == pytest.approx(-0.01)
    assert ACTIVATION_PARAMETERS["leaky_relu"] == ("negative_slope",)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_swap_replaces_every_activation_and_nothing_else(name):
    model = build_model(ModelSection(kind="resnet", width=4, depth=1), (1, 8, 8), 3)
    others = [id(module) for module in model.modules() if not isinstance(module, nn.ReLU)]
    paths = swap_activations(model, name)
    assert len(paths) == 7  # the stem's and two in each of three blocks
    assert {activation_of(model.get_submodule(path)).name for path in paths} == {name}
    assert others == [id(module) for module in model.modules() if activation_of(module) is None]
    model(torch.randn(2, 1, 8, 8)).sum().backward()


def test_a_shared_module_stays_one_module_and_two_stay_two():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()), nn.Linear(2, 2))
    assert swap_activations(model, "prelu") == ("0", "1.0", "1.1")
    assert model[0] is model[1][0]
    assert model[0] is not model[1][1]


def test_only_the_named_are_replaced_and_gates_stay():
    model = nn.Sequential(nn.ReLU(), nn.Sigmoid(), nn.SiLU())
    assert swap_activations(model, "gelu", replace=("relu",)) == ("0",)
    assert swap_activations(model, ActivationSection(name="mish", replace=("silu",))) == ("2",)
    assert [activation_of(module).name for module in model] == ["gelu", "sigmoid", "mish"]


def test_a_subclass_of_an_activation_is_the_users_own():
    class Mine(nn.ReLU):
        pass

    model = nn.Sequential(Mine(), nn.ReLU())
    assert swap_activations(model, "tanh") == ("1",)
    assert isinstance(model[0], Mine)


def test_a_swapped_in_parameter_reaches_the_optimizer_in_the_models_dtype():
    model = nn.Sequential(nn.Linear(2, 2).double(), nn.ReLU())
    swap_activations(model.eval(), "prelu")
    assert (model[1].weight.dtype, model[1].training) == (torch.float64, False)
    section = ModelSection(kind="mlp", width=4, depth=2, activation="prelu")
    built = build_model(section, (1, 4, 4), 3)
    trained = {
        id(each) for group in build_optimizer(OptimizerSection(), built).param_groups for each in group["params"]
    }
    assert {id(parameter) for parameter in built.parameters()} == trained
    assert sum(isinstance(module, nn.PReLU) for module in built.modules()) == 2


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "a Sequential with no activation module"),
        (nn.Sequential(nn.Tanh()), "tanh"),
        (nn.ReLU(), "relu"),  # has no parent to hold another one
    ],
)
def test_a_swap_that_would_do_nothing_is_refused(model, got):
    with pytest.raises(ConfigError) as caught:
        swap_activations(model, "gelu", replace=("relu",))
    assert f"got:      {got}" in str(caught.value)


def test_an_unknown_activation_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"did you mean hardswish\?"):
        swap_activations(nn.Sequential(nn.ReLU()), "hard_swish")
