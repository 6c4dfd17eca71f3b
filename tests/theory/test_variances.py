"""Mean squares of activations and the variance map, against tables, closed forms and other quadratures."""

from itertools import pairwise
from math import e, erf, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.theory.criticality import fixed_point, mean_square, mean_square_slope, variance_map


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "softplus", "erf", "identity"])
def test_smooth_activations_agree_with_gauss_hermite(name, q):
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    with jax.enable_x64(True):
        s = jnp.asarray(np.sqrt(q) * nodes)
        squares = [np.square(function(s)) for function in (ACTIVATIONS[name], ACTIVATIONS[name].slope)]
    expected = [float(weights @ square / sqrt(2 * pi)) for square in squares]
    measured = [mean_square(name, q), mean_square_slope(name, q)]
    np.testing.assert_allclose(measured, expected, rtol=1e-8)


@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_agrees_with_adaptive_quadrature(name, q):
    activation, deviation = ACTIVATIONS[name], sqrt(q)
    cuts = sorted({-12.0, 0.0, 12.0, *(c / deviation for c in (-20, -4, -1, 1, 4, 20) if abs(c) < 12 * deviation)})
    with jax.enable_x64(True):

        def mean(function):
            def integrand(z):
                return np.asarray(function(jnp.asarray(deviation * z))) ** 2 * np.exp(-(z**2) / 2) / sqrt(2 * pi)

            return sum(integrate.fixed_quad(integrand, low, high, n=80)[0] for low, high in pairwise(cuts))

        expected = mean(activation), mean(activation.slope)
    measured = mean_square(name, q), mean_square_slope(name, q)
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sigmoid", [0.059621, 0.051363, 0.044836, 0.037027]),
        ("tanh", [0.849207, 0.592426, 0.464403, 0.349508]),
        ("erf", [1.076084, 0.735105, 0.569410, 0.424413]),
    ],
)
def test_mean_squared_slopes_are_the_tabulated_ones(name, values):
    measured = [mean_square_slope(name, q) for q in (0.1, 0.5, 1.0, 2.0)]
    np.testing.assert_allclose(measured, values, rtol=0, atol=6e-7)


@pytest.mark.parametrize("q", [1e-3, 0.4, 1.0, 50.0])
@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("identity", lambda q: (q, 1.0)),
        ("relu", lambda q: (q / 2, 0.5)),
        ("leaky_relu", lambda q: (q * (1 + 0.01**2) / 2, (1 + 0.01**2) / 2)),
        ("erf", lambda q: (2 / pi * np.arcsin(2 * q / (1 + 2 * q)), 4 / pi / sqrt(1 + 4 * q))),
        ("hard_tanh", lambda q: (None, erf(1 / sqrt(2 * q)))),
    ],
)
def test_closed_forms(name, closed_form, q):
    square, slope = closed_form(q)
    if square is not None:
        assert mean_square(name, q) == pytest.approx(square, rel=1e-10)
    assert mean_square_slope(name, q) == pytest.approx(slope, rel=1e-10)


def test_selu_has_its_published_fixed_point():
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    assert mean_square("selu", 1.0) == pytest.approx(1, abs=1e-9)
    expected = scale**2 * (0.5 + alpha**2 * e**2 * (1 - erf(sqrt(2))) / 2)
    assert mean_square_slope("selu", 1.0) == pytest.approx(expected, rel=1e-10)
    assert expected == pytest.approx(1.071575, abs=5e-7)


def test_any_functions_mean_square():
    assert mean_square(jnp.cos, 0.5) == pytest.approx((1 + np.exp(-1.0)) / 2, rel=1e-12)


def test_what_rests_is_mapped_to_itself():
    for start in (0.1, 1.0, 30.0):
        q = fixed_point("tanh", sigma_w2=2.0, sigma_b2=0.05, start=start)
        assert q == pytest.approx(fixed_point("tanh", sigma_w2=2.0, sigma_b2=0.05), rel=1e-11)
        assert variance_map("tanh", q, sigma_w2=2.0, sigma_b2=0.05) == pytest.approx(q, rel=1e-12)
    assert fixed_point("tanh", sigma_w2=0.5) < 1e-300


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: fixed_point("relu", sigma_w2=2.5), r"sigma_w2=2.5.* give relu no fixed point .*finite depth"),
        (lambda: fixed_point("tanh", sigma_w2=-1.0), "sigma_w2=-1.0 .*above zero"),
        (lambda: fixed_point("tnah", sigma_w2=1.0), "activation='tnah'.*did you mean 'tanh'"),
        (lambda: mean_square("tanh", -1.0), "q=-1.0 .*zero or more"),
    ],
)
def test_bad_questions_are_refused(ask, words):
    with pytest.raises(ValueError, match=words):
        ask()
