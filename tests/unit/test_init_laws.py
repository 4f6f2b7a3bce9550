"""The laws: measured standard deviations and bounds against the papers; the tables against the config and the page."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.job_model import ACTIVATION_PARAMETERS, LAW_PARAMETERS, ActivationName, InitSection, LawName
from trainer import init_page
from trainer.activations import ACTIVATIONS
from trainer.gains import FORMULAS, gains
from trainer.init_laws import AUTO_LAWS, INIT_LAWS, TRUNCATED_STD
from trainer.initialization import initialize

PAGE = Path(init_page.__file__).resolve().parents[1] / "docs" / "initialization.md"


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: more threads only get in each other's way."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_the_page_is_up_to_date():
    """If this fails: python -m trainer.init_page > docs/initialization.md"""
    assert PAGE.read_text() == init_page.page()


def test_jobs_name_the_laws_and_activations_there_are():
    assert set(LawName.__args__) == set(LAW_PARAMETERS) == {"default", "auto", *INIT_LAWS}
    assert set(ActivationName.__args__) == set(ACTIVATION_PARAMETERS) == {"default", *ACTIVATIONS}
    assert set(FORMULAS) == set(AUTO_LAWS) == {"identity", *ACTIVATIONS}


SHAPES = {
    # make, fan_in, fan_out of one group (written out from the definition), rows and columns of its matrix
    "wide linear": (lambda: nn.Linear(700, 300), 700, 300, 300, 700),
    "tall linear": (lambda: nn.Linear(200, 900), 200, 900, 900, 200),
    "convolution": (lambda: nn.Conv2d(40, 64, 3), 40 * 9, 64 * 9, 64, 40 * 9),
    "dilated": (lambda: nn.Conv2d(40, 64, 3, dilation=3, stride=2), 40 * 9, 64 * 9, 64, 40 * 9),
    "grouped": (lambda: nn.Conv2d(120, 160, 3, groups=4), 30 * 9, 40 * 9, 40, 30 * 9),
    "depthwise": (lambda: nn.Conv1d(2000, 2000, 15, groups=2000), 15, 15, 1, 15),
    "one dimension": (lambda: nn.Conv1d(60, 80, 5), 60 * 5, 80 * 5, 80, 60 * 5),
    "three dimensions": (lambda: nn.Conv3d(20, 40, 3), 20 * 27, 40 * 27, 40, 20 * 27),
    "transposed": (lambda: nn.ConvTranspose2d(48, 40, 3), 48 * 9, 40 * 9, 40, 48 * 9),
    "transposed, stride 2": (lambda: nn.ConvTranspose2d(48, 40, 4, stride=2), 48 * 4, 40 * 16, 40, 48 * 16),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(96, 80, 3, groups=2), 48 * 9, 40 * 9, 40, 48 * 9),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("law", INIT_LAWS)
def test_weights_have_the_standard_deviation_of_their_law(law, shape):
    """Written out here from the papers, not taken from the table under test."""
    make, fan_in, fan_out, num_rows, num_columns = SHAPES[shape]
    module = make()
    (record,) = initialize(module, law, "relu", generator=torch.Generator().manual_seed(3))
    num_taps = math.prod(module.weight.shape[2:])
    expected = {
        "zeros": 0.0,
        "constant": 0.0,
        "normal": 0.01,
        "uniform": 0.05 / math.sqrt(3.0),
        "truncated": 0.02,
        "xavier": math.sqrt(2.0 / (fan_in + fan_out)),
        "kaiming": math.sqrt(2.0 / fan_in),
        "lecun": math.sqrt(1.0 / fan_in),
        "orthogonal": math.sqrt(2.0 / max(num_rows, num_columns)),
        "delta": math.sqrt(2.0 / (max(num_rows, num_columns // num_taps) * num_taps)),
        "sparse": math.sqrt(2.0 / fan_in),
        "lsuv": math.sqrt(1.0 / max(num_rows, num_columns)),
    }[law.split("_")[0]]
    # 20,000 weights and more: the sample's deviation is within 2 % (4 sigma of its own spread); a tenth of them for
    # sparse, where it spreads more, and for a convolution's centre.
    assert module.weight.double().std().item() == pytest.approx(expected, rel=0.06 if law == "sparse" else 0.02)
    assert record.std == pytest.approx(expected, rel=1e-6)
    assert not module.bias.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("law", [name for name in INIT_LAWS if name.endswith("uniform")] + ["truncated_normal"])
def test_bounded_laws_fill_their_interval_and_no_more(law, shape):
    make, fan_in, fan_out, _, _ = SHAPES[shape]
    module = make()
    initialize(module, law, "relu", generator=torch.Generator().manual_seed(0))
    bound = {
        "uniform": 0.05,
        "xavier_uniform": math.sqrt(6.0 / (fan_in + fan_out)),
        "kaiming_uniform": math.sqrt(6.0 / fan_in),
        "lecun_uniform": math.sqrt(3.0 / fan_in),
        "truncated_normal": 2.0 * 0.02 / TRUNCATED_STD,
    }[law]
    assert 0.99 * bound < module.weight.abs().max().item() <= bound * (1 + 1e-6)


def test_the_cut_normals_deviation_is_that_of_the_formula():
    density, mass = math.exp(-2.0) / math.sqrt(2.0 * math.pi), math.erf(2.0 / math.sqrt(2.0))
    assert TRUNCATED_STD == pytest.approx(math.sqrt(1.0 - 4.0 * density / mass), rel=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kaiming_takes_the_gain_of_the_direction_it_keeps(activation):
    found = gains(activation)
    forward = initialize(nn.Linear(30, 50), InitSection(law="kaiming_normal"), activation)[0]
    backward = initialize(nn.Linear(30, 50), InitSection(law="kaiming_normal", mode="fan_out"), activation)[0]
    assert forward.std == pytest.approx(found.forward / math.sqrt(30))
    assert backward.std == pytest.approx(found.backward / math.sqrt(50))


@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 50), lambda: nn.Conv2d(8, 20, 3), lambda: nn.Linear(50, 30)])
def test_orthogonal_rows_or_columns_are_orthonormal_times_the_gain(make):
    module = make()
    initialize(module, InitSection(law="orthogonal", gain=1.5), "relu")
    matrix = module.weight.detach().flatten(1).double()
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    torch.testing.assert_close(matrix @ matrix.T, 2.25 * torch.eye(len(matrix)).double(), atol=1e-5, rtol=0.0)


def test_orthogonal_holds_in_each_group():
    """torch's own takes the groups for one matrix, of which a group is no orthogonal part."""
    module = nn.Conv2d(8, 12, 3, groups=2)
    initialize(module, InitSection(law="orthogonal", gain=1.0))
    for group in module.weight.detach().flatten(1).double().chunk(2):
        torch.testing.assert_close(group @ group.T, torch.eye(6).double(), atol=1e-5, rtol=0.0)


def test_delta_orthogonal_keeps_the_norm_of_every_image():
    """Why it is there: thousands of plain convolutions in a row neither shrink nor grow anything."""
    module = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
    initialize(module, InitSection(law="delta_orthogonal", gain=1.0))
    images_NCHW = torch.randn(3, 6, 9, 7)
    torch.testing.assert_close(module(images_NCHW).flatten(1).norm(dim=1), images_NCHW.flatten(1).norm(dim=1))


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.999])
def test_sparse_units_all_have_the_same_number_of_inputs(sparsity):
    module = nn.Conv2d(20, 30, 3)
    initialize(module, InitSection(law="sparse", sparsity=sparsity))
    num_inputs = (module.weight != 0).flatten(1).sum(dim=1)
    assert num_inputs.unique().tolist() == [max(1, round((1 - sparsity) * 180))]


@pytest.mark.parametrize("law", [name for name in LAW_PARAMETERS if name not in ("default", "zeros", "constant")])
def test_equal_generators_give_equal_weights_whatever_the_global_one_is_at(law):
    def weights(seed):
        torch.manual_seed(torch.seed() % 1000)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
        model = model.to(memory_format=torch.channels_last).double()
        initialize(model, law, generator=torch.Generator().manual_seed(seed))
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
