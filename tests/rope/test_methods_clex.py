"""CLEX's equation against a closed form, a fine Euler integration and a stepwise rk4, all written apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ctxforge.errors import UsageError
from ctxforge.rope.clex_ode import clex_frequencies


def projections(pairs: int, width: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(7)
    return draw.normal(0, 0.2, (pairs, width)), draw.normal(0, strength, (width, pairs))


def test_an_untrained_model_is_ntk_by_2t_minus_1() -> None:
    """The published down projection starts at zero: then z(t) = ln f - 2i/(d-2) ln(2t - 1)."""
    pairs, base = 32, 5e5
    up, down = projections(pairs, 64, 0.0)
    for t in (1.0, 2.0, 3.5, 16.0):
        i = np.arange(pairs)
        expected = base ** (-i / pairs) * (2 * t - 1) ** (-i / (pairs - 1))
        np.testing.assert_allclose(clex_frequencies(up, down, base, t), expected, rtol=1e-8)


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_a_fine_euler_integration_agrees(activation: str) -> None:
    pairs, base, t = 8, 1e4, 4.0
    up, down = projections(pairs, 16, 0.02)
    frequency = np.array([base ** (-i / pairs) for i in range(pairs)])
    count = 100_000
    dt = (t - 1) / count
    for step in range(count):
        now = 1 + step * dt
        alpha = 2 * now - 1
        ntk = (1e4 * alpha ** (2 * pairs / (2 * pairs - 2))) ** (-np.arange(pairs) / pairs)
        x = (np.log(frequency) + np.log(ntk)) @ up
        hidden = np.tanh(x) if activation == "tanh" else x * 0.5 * (1 + np.tanh(x / 2))
        drift = hidden @ down - 4 * np.arange(pairs) / (2 * pairs - 2) / alpha
        frequency = frequency * (1 + dt * drift)
    ours = clex_frequencies(up, down, base, t, activation=activation)
    np.testing.assert_allclose(ours, frequency, rtol=2e-4)
    plain = clex_frequencies(up, 0 * down, base, t, activation=activation)
    assert np.abs(np.log(plain) - np.log(frequency)).max() > 0.05


def test_fourth_order() -> None:
    up, down = projections(6, 12, 0.05)
    fine = np.array(clex_frequencies(up, down, 1e4, 3.0, step=0.001))
    errors = [np.abs(np.log(clex_frequencies(up, down, 1e4, 3.0, step=h)) - np.log(fine)).max() for h in (0.2, 0.1)]
    assert errors[0] / errors[1] > 8


def test_a_scale_between_steps_is_reached() -> None:
    up, down = projections(6, 12, 0.05)
    coarse = clex_frequencies(up, down, 1e4, 2.0005, step=0.01)
    np.testing.assert_allclose(coarse, clex_frequencies(up, down, 1e4, 2.0005, step=0.0005), rtol=1e-6)
    assert clex_frequencies(up, down, 1e4, 1.0) == pytest.approx([1e4 ** (-i / 6) for i in range(6)], rel=1e-12)


def test_wrong_arguments_are_refused() -> None:
    up, down = projections(6, 12, 0.05)
    with pytest.raises(UsageError, match="shapes"):
        clex_frequencies(up, up, 1e4, 2.0)
    with pytest.raises(UsageError, match="not usable"):
        clex_frequencies(up, down, 1e4, 0.5)
    with pytest.raises(UsageError, match="not usable"):
        clex_frequencies(up, down, 1e4, math.nan)
    with pytest.raises(UsageError, match="activation"):
        clex_frequencies(up, down, 1e4, 2.0, activation="relu")
