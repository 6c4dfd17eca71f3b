"""The spread of squared singular values against its closed forms."""

from math import erf, pi, sqrt

import jax
import numpy as np
import pytest

from gradcourse.theory.isometry import gain_variance, product_quantiles


def test_gain_variances_are_the_closed_forms():
    q = 0.5

    def both(activation):
        return [gain_variance(activation, q=q, depth=3, ensemble=name) for name in ("gaussian", "orthogonal")]

    assert both("identity") == pytest.approx([3, 0], abs=1e-9)
    assert both("relu") == pytest.approx([6, 3], rel=1e-9)
    on = erf(1 / sqrt(2 * q))
    assert both("hard_tanh") == pytest.approx([3 / on, 3 * (1 / on - 1)], rel=1e-6)
    ratio = (1 + pi * q) / sqrt(1 + 2 * pi * q)
    assert both(lambda s: jax.scipy.special.erf(sqrt(pi) / 2 * s)) == pytest.approx([3 * ratio, 3 * (ratio - 1)])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_spectrum_of_products_has_its_moments_and_its_edge(depth: int) -> None:
    shares = (np.arange(200_000) + 0.5) / 200_000
    squares = product_quantiles(depth, shares)
    assert squares.mean() == pytest.approx(1, abs=2e-3)
    assert squares.var() == pytest.approx(depth, rel=0.02)
    edge = product_quantiles(depth, np.array([1.0]))[0]
    assert edge == pytest.approx((depth + 1) ** (depth + 1) / depth**depth, rel=1e-4)


def test_one_layers_spectrum_is_the_quarter_circle() -> None:
    radius = np.linspace(0.1, 1.9, 10)
    share = (radius * np.sqrt(4 - radius**2) / 2 + 2 * np.arcsin(radius / 2)) / np.pi
    np.testing.assert_allclose(product_quantiles(1, share), radius**2, rtol=1e-3)
    with pytest.raises(ValueError, match="accepted from 0 to 1"):
        product_quantiles(1, np.array([1.5]))
