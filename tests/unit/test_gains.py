"""Gains: computed ones against known ones, other integrals, and torch's own modules."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.job_model import ACTIVATION_PARAMETERS, ActivationSection
from tests.sizes import cases
from trainer.activations import ACTIVATIONS, make_activation
from trainer.gains import FORMULAS, gains, gains_of

KNOWN = {
    # (forward, backward): from the papers' closed forms
    "identity": (1.0, 1.0),
    "relu": (math.sqrt(2.0), math.sqrt(2.0)),
    "leaky_relu": (math.sqrt(2.0 / (1.0 + 0.01**2)), math.sqrt(2.0 / (1.0 + 0.01**2))),
    "prelu": (math.sqrt(2.0 / (1.0 + 0.25**2)), math.sqrt(2.0 / (1.0 + 0.25**2))),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_gain_with_a_closed_form_has_its_value(name):
    assert (gains(name).forward, gains(name).backward) == pytest.approx(KNOWN[name], rel=1e-12)


def test_selu_needs_no_gain_and_no_offset():
    """Its two constants were chosen for that (Klambauer et al. 2017, theorem 1)."""
    assert gains("selu").forward == pytest.approx(1.0, abs=1e-9)
    assert gains("selu").mean == pytest.approx(0.0, abs=1e-9)


def test_tanh_has_its_own_gain_and_not_torchs_convention():
    assert gains("tanh").forward == pytest.approx(1.5925374, abs=1e-7)
    assert torch.nn.init.calculate_gain("tanh") == pytest.approx(5 / 3)


def test_no_scale_of_sigmoid_keeps_both_directions():
    found = gains("sigmoid")
    assert found.backward / found.forward > 2.5
    assert found.shared == pytest.approx(0.25 * found.forward**2)  # mean 1/2


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "softplus", "mish"])
def test_smooth_activations_agree_with_gauss_hermite(name):
    z, weight = np.polynomial.hermite_e.hermegauss(100)
    weight = weight / weight.sum()
    formula = FORMULAS[name]
    assert gains(name).forward == pytest.approx((weight @ formula.value(z) ** 2) ** -0.5, rel=1e-6)
    assert gains(name).backward == pytest.approx((weight @ formula.slope(z) ** 2) ** -0.5, rel=1e-6)


PARAMETERS = {
    "leaky_relu": ("negative_slope", st.floats(0.0, 1.0)),
    "prelu": ("initial_slope", st.floats(0.0, 1.0)),
    "elu": ("alpha", st.floats(0.1, 3.0)),
    "softplus": ("beta", st.floats(0.2, 5.0)),
    "gelu": ("approximate", st.sampled_from(["none", "tanh"])),
}


def test_the_parameters_under_test_are_those_of_a_job():
    assert {name: (key,) for name, (key, _) in PARAMETERS.items()} == {
        name: keys for name, keys in ACTIVATION_PARAMETERS.items() if keys
    }


@given(st.data())
@settings(max_examples=cases(60))
def test_formulas_and_slopes_are_those_of_torchs_modules(data):
    """The table's f and f' against torch's forward and autograd, at any point and for any parameter."""
    name = data.draw(st.sampled_from(list(ACTIVATIONS)))
    given_parameters = {PARAMETERS[name][0]: data.draw(PARAMETERS[name][1])} if name in PARAMETERS else {}
    module = make_activation(ActivationSection(name=name, **given_parameters)).double()
    z = torch.tensor(data.draw(st.lists(st.floats(-8.0, 8.0), min_size=1, max_size=20)), dtype=torch.float64)
    z = torch.where((z - z.round()).abs() < 1e-6, z + 0.01, z).requires_grad_()  # not on a kink
    value = module(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    formula = FORMULAS[name]
    points = z.detach().numpy()
    np.testing.assert_allclose(formula.value(points, **given_parameters), value.detach().numpy(), atol=2e-7)
    np.testing.assert_allclose(formula.slope(points, **given_parameters), slope.numpy(), atol=2e-7)


def test_what_passes_nothing_has_an_infinite_gain():
    nothing = gains_of(np.zeros_like, np.zeros_like)
    assert (nothing.forward, nothing.backward, nothing.mean) == (math.inf, math.inf, 0.0)
