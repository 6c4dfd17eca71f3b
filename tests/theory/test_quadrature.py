"""Quadrature against mpmath, closed forms and the degree up to which Gauss's rules are exact."""

from math import pi, sqrt

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from gradcourse.theory.quadrature import gaussian_mean, gaussian_rule, panel_rule


def reference(function, q, kinks=()):
    """The Gaussian mean, by mpmath with thirty digits; at large variances the bend at 0 needs panels of its own."""
    with mpmath.workdps(30):
        deviation = mpmath.sqrt(q)
        near = [side * size / deviation for size in (1, 4, 20) for side in (-1, 1)]
        cuts = sorted({mpmath.mpf(0), *(cut for cut in near if abs(cut) < 14), *(kink / deviation for kink in kinks)})
        edges = [mpmath.mpf(-16), *(cut for cut in cuts if abs(cut) < 16), mpmath.mpf(16)]
        return float(mpmath.quad(lambda z: function(deviation * z) * mpmath.npdf(z), edges))


FUNCTIONS = {  # for jax, for mpmath, and the kinks
    "absolute value": (jnp.abs, abs, (0.0,)),
    "step": (lambda s: jnp.where(s > 0.5, 1.0, 0.0), lambda s: mpmath.mpf(s > 0.5), (0.5,)),
    "hat": (lambda s: jnp.maximum(1 - jnp.abs(s), 0), lambda s: max(1 - abs(s), mpmath.mpf(0)), (-1.0, 0.0, 1.0)),
    "tanh squared": (lambda s: jnp.tanh(s) ** 2, lambda s: mpmath.tanh(s) ** 2, ()),
    "logistic slope squared": (
        lambda s: (jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)) ** 2,
        lambda s: (mpmath.sech(s / 2) / 2) ** 4,
        (),
    ),
}


@pytest.mark.parametrize("q", [1e-12, 0.3, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gaussian_means_are_mpmaths(name, q):
    function, exact, kinks = FUNCTIONS[name]
    assert gaussian_mean(function, q, kinks=kinks) == pytest.approx(reference(exact, q, kinks), rel=1e-9)


def test_gaussian_means_have_their_closed_forms():
    assert gaussian_mean(lambda s: s**4, 0.7) == pytest.approx(3 * 0.7**2, rel=1e-12)
    assert gaussian_mean(jnp.abs, 2.0, kinks=(0.0,)) == pytest.approx(sqrt(2 * 2.0 / pi), rel=1e-12)
    with pytest.raises(ValueError, match=r"q=0.0 .*above zero"):
        gaussian_mean(jnp.abs, 0.0)


def test_each_deviation_has_nodes_of_its_own():
    with jax.enable_x64(True):
        deviation = jnp.array([[1e-3, 1.0], [7.0, 400.0]])
        s, weights = gaussian_rule(deviation, (0.5,))
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-13)
        np.testing.assert_allclose((weights * s**2).sum(axis=-1), deviation**2, rtol=1e-12)
        alone = gaussian_rule(deviation[1, 0], (0.5,))
    np.testing.assert_array_equal(alone[0], s[1, 0])


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_panels_are_exact_for_piecewise_polynomials(nodes):
    edges = np.array([[-1.0, 0.0, 3.0], [0.0, 1.0, 1.5]])
    x, weights = panel_rule(edges, nodes)
    assert x.shape == weights.shape == (2, 2 * nodes)
    for degree in range(2 * nodes):
        found = (weights * np.abs(x) ** degree).sum(axis=-1)
        exact = (np.abs(edges) ** (degree + 1) * np.sign(edges) / (degree + 1))[:, [0, -1]] @ [-1, 1]
        np.testing.assert_allclose(found, exact, rtol=1e-13)
