"""The lint's theory: what is known in closed form, and what numbers drawn at random say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.lint_theory import NORMALIZED, Signal, activated, mapped, slope_square


def test_relu_halves_the_mean_square_and_its_covariance_is_the_arc_cosine_kernel() -> None:
    """Cho & Saul 2009: E[relu(u) relu(v)] = (sqrt(1 - c^2) + (pi - arccos c) c) / (2 pi) for unit variances."""
    for correlation in (0.0, 0.3, 0.9, 0.999):
        signal = activated(Signal(shared=correlation, apart=1.0 - correlation), "relu", {})
        angle = math.acos(correlation)
        expected = (math.sin(angle) + (math.pi - angle) * correlation) / (2 * math.pi)
        assert signal.shared == pytest.approx(expected, rel=0.02)
        assert signal.shared + signal.apart == pytest.approx(0.5, rel=5e-3)
        assert slope_square(Signal(shared=correlation, apart=1.0 - correlation), "relu", {}) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "softplus", "elu"])
def test_the_two_parts_of_a_signal_are_what_a_million_samples_have(name: str) -> None:
    """Two samples with a part in common go through the function; their covariance is the shared part."""
    parameters = {"gelu": {"approximate": "none"}, "softplus": {"beta": 1.0}, "elu": {"alpha": 1.0}}.get(name, {})
    functions = {
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
        "tanh": np.tanh,
        "gelu": lambda z: 0.5 * z * (1 + np.tanh(0.7978845608 * (z + 0.044715 * z**3))),  # within 5e-4 of the exact one
        "softplus": lambda z: np.logaddexp(0, z),
        "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    }
    random = np.random.default_rng(0)
    common, one, other = random.standard_normal((3, 1_000_000))
    shared, apart = 1.2, 0.5
    f_one, f_other = (functions[name](math.sqrt(shared) * common + math.sqrt(apart) * own) for own in (one, other))
    found = activated(Signal(shared=shared, apart=apart), name, parameters)
    assert found.shared == pytest.approx(float(np.mean(f_one * f_other)), rel=0.01)
    assert found.shared + found.apart == pytest.approx(float(np.mean(f_one**2)), rel=0.01)


def test_a_signal_that_leaves_float32_is_called_infinite() -> None:
    """And says nothing of what comes after."""
    signal = NORMALIZED
    for _ in range(30):
        signal = mapped(signal, 1e3)
    assert not signal.is_finite
    assert NORMALIZED.is_finite
