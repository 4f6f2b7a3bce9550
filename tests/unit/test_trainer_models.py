"""Built-in and users' models, activations, initial weights."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.job import ModelSection
from pipeline.job_model import ACTIVATION_PARAMETERS
from pipeline.user_code import load_attribute, own_place
from trainer.checkpoint import weights_sha256
from trainer.gains import gains
from trainer.models import build_model, check_output

BUILT_IN = ("mlp", "cnn", "resnet")


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: more threads only get in each other's way."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


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
    for name in ACTIVATION_PARAMETERS:
        model = build_model(ModelSection(kind=kind, width=4, depth=1, activation=name), (1, 8, 8), 3)
        model(torch.randn(4, 1, 8, 8)).sum().backward()


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

def make_deep(input_shape, num_classes):
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, num_classes)
    )

def make_text(input_shape, num_classes):
    return "a model"

def make_frozen(input_shape, num_classes):
    return torch.nn.Flatten()
"""


@pytest.mark.parametrize("init", [{}, {"init": "default"}])
def test_a_users_factory_is_called_with_shape_classes_and_options_and_keeps_its_weights(init, tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    section = ModelSection(kind="factory", factory="mine.py:make", options={"hidden": 6}, **init)
    model = build_model(section, (3, 4, 4), 5, load_attribute(section.factory, tmp_path))
    assert model(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    assert torch.equal(torch.full((5, 6), 0.25), model[2].weight)


def test_a_users_model_gets_the_law_and_the_activation_that_the_job_names(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    section = ModelSection(kind="factory", factory="mine.py:make_deep", init="auto", activation="tanh")
    model = build_model(section, (3, 4, 4), 5, load_attribute(section.factory, tmp_path))
    assert isinstance(model[2], torch.nn.Tanh)
    assert model[1].weight.std().item() == pytest.approx(gains("tanh").forward * (2 / (48 + 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("name", "got"), [("make_text", "'a model'"), ("make_frozen", "a module with none (Flatten)")])
def test_a_factory_that_gives_nothing_to_train_is_refused(name, got, tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    section = ModelSection(kind="factory", factory=f"mine.py:{name}")
    with pytest.raises(ConfigError, match=re.escape(got)):
        build_model(section, (3, 4, 4), 5, load_attribute(section.factory, tmp_path))


ROOT = Path(__file__).resolve().parents[2]

FAILING = """
import torch

def of_table(table, key):
    return table[key]

def make_keyless(input_shape, num_classes, hidden=3):
    return of_table({}, "depth")

def make_deep(input_shape, num_classes):
    return torch.nn.Linear("three", 4)

class Net(torch.nn.Linear):
    def forward(self, images):
        return super().forward(images)

def make_misfit(input_shape, num_classes):
    return Net(7, num_classes)

def make_misfit_inside(input_shape, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), Net(7, num_classes))

class Bare(torch.nn.Sequential):
    pass

def make_bare(input_shape, num_classes):
    return Bare(torch.nn.Linear(7, num_classes))

class Pair(torch.nn.Linear):
    def forward(self, images):
        return super().forward(images.flatten(1)), 0.5

def make_pair(input_shape, num_classes):
    return Pair(48, num_classes)
"""


@pytest.mark.parametrize(
    ("name", "line", "got"),
    [
        ("make_keyless", 5, "KeyError: 'depth'"),
        ("make_deep", 11, "TypeError: "),
        ("make_misfit", 15, "RuntimeError: "),
        ("make_misfit_inside", 15, "RuntimeError: "),
    ],
)
def test_what_fails_in_the_users_code_is_told_with_their_own_line(name, line, got, tmp_path):
    """Not the line inside torch where it came out, and no traceback of ours."""
    (tmp_path / "failing.py").write_text(FAILING)
    section = ModelSection(kind="factory", factory=f"failing.py:{name}")

    def use() -> None:
        model = build_model(section, (3, 4, 4), 5, load_attribute(section.factory, tmp_path))
        check_output(model, section, (3, 4, 4), 5)

    with pytest.raises(ConfigError) as caught:
        use()
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(tmp_path / "failing.py"), line)
    assert problem.got.startswith(got)


def refusal_of_output(name, folder):
    (folder / "failing.py").write_text(FAILING)
    section = ModelSection(kind="factory", factory=f"failing.py:{name}")
    model = build_model(section, (3, 4, 4), 5, load_attribute(section.factory, folder))
    with pytest.raises(ConfigError) as caught:
        check_output(model, section, (3, 4, 4), 5)
    (problem,) = caught.value.problems
    return problem


def test_a_line_of_torch_installed_below_the_users_folder_or_of_ours_is_not_theirs(tmp_path, monkeypatch):
    """A project has its .venv beside its model, and may itself be our checkout."""
    assert refusal_of_output("make_bare", tmp_path).file == "failing.py:make_bare"
    above = Path(torch.__file__).parents[2]
    monkeypatch.setattr("trainer.models.own_place", lambda error, base, file: own_place(error, above, file))
    assert refusal_of_output("make_bare", tmp_path).file == "failing.py:make_bare"
    monkeypatch.setattr("trainer.models.own_place", lambda error, base, file: own_place(error, ROOT, file))
    assert refusal_of_output("make_bare", tmp_path).file == "failing.py:make_bare"


def test_who_returns_no_tensor_is_told_what_to_return(tmp_path):
    problem = refusal_of_output("make_pair", tmp_path)
    assert (problem.got, problem.way_out) == ("tuple", "return the logits, a tensor of shape (batch, num_classes)")


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
