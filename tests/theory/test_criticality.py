"""Fixed points, the critical line and the depth scales, against published tables and other derivations."""

from math import asin, log, pi, sqrt

import numpy as np
import pytest

from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.theory.criticality import (
    chi_1,
    critical_point,
    critical_weight_variance,
    depth_scale,
    depth_scales,
    fixed_point,
    mean_square_slope,
    variance_map,
)
from gradcourse.theory.quadrature import gaussian_mean

TANH = [  # sigma_w^2, q*, chi_1, xi at sigma_b^2 = 0.05; Schoenholz et al.'s setting
    (0.5, 0.0876, 0.4320, 1.191),
    (1.0, 0.1936, 0.7590, 3.627),
    (1.3, 0.3153, 0.8802, 7.834),
    (1.5, 0.4180, 0.9386, 15.791),
    (1.7, 0.5331, 0.9867, 74.918),
    (2.0, 0.7218, 1.0477, None),
    (2.5, 1.0640, 1.1335, None),
    (3.0, 1.4280, 1.2089, None),
    (4.0, 2.1955, 1.3424, None),
]


@pytest.mark.parametrize(("sigma_w2", "q_star", "chi", "xi"), TANH)
def test_tanh_has_the_tabulated_fixed_points(sigma_w2, q_star, chi, xi):
    variances = {"sigma_w2": sigma_w2, "sigma_b2": 0.05}
    q = fixed_point("tanh", **variances)
    assert q == pytest.approx(q_star, abs=6e-5)
    assert variance_map("tanh", q, **variances) == pytest.approx(q, rel=1e-12)
    assert chi_1("tanh", **variances) == pytest.approx(chi, abs=6e-5)
    depth = depth_scale("tanh", **variances)
    assert depth == pytest.approx(-1 / log(chi_1("tanh", **variances)))
    if xi:  # the table's xi_c, which is the gradient's in the ordered phase
        assert depth == pytest.approx(xi, abs=6e-4)
    else:
        assert depth < 0


@pytest.mark.parametrize(
    ("sigma_b2", "critical"),
    [(0.0, 1.0), (0.001, 1.18919), (0.01, 1.42421), (0.05, 1.76095), (0.1, 1.98607), (0.3, 2.50513)],
)
def test_tanhs_critical_line_is_the_tabulated_one(sigma_b2, critical):
    assert critical_weight_variance("tanh", sigma_b2=sigma_b2) == pytest.approx(critical, abs=6e-6)


@pytest.mark.parametrize("name", ["tanh", "erf", "hard_tanh", "softsign", "sigmoid", "elu", "selu"])
def test_chi_is_one_on_the_critical_line(name):
    critical = critical_weight_variance(name, sigma_b2=0.2)
    assert chi_1(name, sigma_w2=critical, sigma_b2=0.2) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "critical"),
    [
        ("relu", 2),
        ("leaky_relu", 2 / 1.0001),
        ("identity", 1),
        ("tanh", 1),
        ("softsign", 1),
        ("elu", 1),
        ("erf", pi / 4),
        ("selu", 2 / (1.0507009873554805**2 * (1 + 1.6732632423543772**2))),
    ],
)
def test_without_biases_the_slope_at_zero_decides(name, critical):
    assert critical_weight_variance(name) == pytest.approx(critical, abs=1e-10)


def test_a_sigmoid_is_critical_only_at_a_hundredfold_weight_variance():
    critical = critical_weight_variance("sigmoid")
    assert 100 < critical < 110
    assert chi_1("sigmoid", sigma_w2=critical) == pytest.approx(1, abs=1e-9)


def test_chi_is_the_slope_of_the_correlation_map_at_one():
    sigma_w2, sigma_b2, step = 1.3, 0.05, 1e-4
    q = fixed_point("tanh", sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    z1, z2 = np.meshgrid(nodes, nodes, indexing="ij")

    def correlation(c):
        product = np.tanh(sqrt(q) * z1) * np.tanh(sqrt(q) * (c * z1 + sqrt(1 - c**2) * z2))
        return (sigma_w2 * (weights @ product @ weights) / (2 * pi) + sigma_b2) / q

    assert correlation(1.0) == pytest.approx(1, abs=1e-12)
    # the second-order difference at the end of the interval
    slope = (3 * correlation(1.0) - 4 * correlation(1 - step) + correlation(1 - 2 * step)) / (2 * step)
    assert slope == pytest.approx(chi_1("tanh", sigma_w2=sigma_w2, sigma_b2=sigma_b2), abs=1e-6)


def test_the_depth_scale_is_infinite_where_nothing_shrinks():
    assert depth_scale("identity", sigma_w2=1.0) == float("inf")


SCHOENHOLZ = [  # at bias variance 0.05: sigma_w^2, q*, c*, chi_1, xi_q, xi_c
    (1.0, 0.1936, 1, 0.7590, 1.748, 3.627),
    (1.7, 0.5331, 1, 0.9867, 1.558, 74.918),
    (2.5, 1.0640, 0.44680, 1.1335, 1.180, 11.796),
    (4.0, 2.1955, 0.16506, 1.3424, 0.873, 6.980),
]


@pytest.mark.parametrize(("sigma_w2", "q", "correlation", "chi", "xi_q", "xi_c"), SCHOENHOLZ)
def test_depth_scales_agree_with_the_table(sigma_w2, q, correlation, chi, xi_q, xi_c):
    found = depth_scales("tanh", sigma_w2=sigma_w2, sigma_b2=0.05)
    assert found[:3] == pytest.approx((q, correlation, chi), abs=6e-5)
    assert found[3:5] == pytest.approx((xi_q, xi_c), abs=6e-4)
    # xi_q by its other formula, -1 / ln(chi + sigma_w^2 E f'' f)
    tanh = ACTIVATIONS["tanh"]
    bend = gaussian_mean(lambda s: -2 * tanh(s) ** 2 * tanh.slope(s), found.q)
    assert found.xi_q == pytest.approx(-1 / np.log(found.chi + sigma_w2 * bend), rel=1e-5)


def test_without_a_signal_there_is_no_correlation():
    with pytest.raises(ValueError, match="let the variance fall to 0"):
        depth_scales("tanh", sigma_w2=0.5)


@pytest.mark.parametrize("sigma_b2", [1e-9, 0.05])
def test_the_variance_at_rest_is_one_and_critical(sigma_b2):
    sigma_w2, q = critical_point("tanh", sigma_b2=sigma_b2)
    assert sigma_w2 * mean_square_slope("tanh", q) == pytest.approx(1, rel=1e-9)
    assert variance_map("tanh", q, sigma_w2=sigma_w2, sigma_b2=sigma_b2) == pytest.approx(q, rel=1e-6)


def test_the_correlation_at_rest_is_that_of_direct_quadrature():
    sigma_w2, sigma_b2 = 4.0, 0.05
    found = depth_scales("tanh", sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    z, weights = 10 * nodes, 10 * weights * np.exp(-((10 * nodes) ** 2) / 2) / sqrt(2 * pi)
    u = sqrt(found.q) * z
    v = found.correlation * u[:, None] + sqrt(1 - found.correlation**2) * u
    mapped = (sigma_w2 * (weights @ (np.tanh(u)[:, None] * np.tanh(v)) @ weights) + sigma_b2) / found.q
    slope = sigma_w2 * (weights @ (np.cosh(u)[:, None] ** -2 * np.cosh(v) ** -2) @ weights)
    assert mapped == pytest.approx(found.correlation, rel=1e-9)
    assert found.xi_c == pytest.approx(-1 / log(slope), rel=1e-9)


def test_the_correlation_at_rest_of_erf_has_a_closed_form():
    sigma_w2, sigma_b2 = 3.0, 0.1
    found = depth_scales("erf", sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    sine = 2 * found.q / (1 + 2 * found.q)
    mapped = (sigma_w2 * 2 / pi * asin(sine * found.correlation) + sigma_b2) / found.q
    slope = sigma_w2 * 2 / pi * sine / sqrt(1 - (sine * found.correlation) ** 2) / found.q
    assert 0 < found.correlation < 1
    assert mapped == pytest.approx(found.correlation, rel=1e-10)
    assert found.xi_c == pytest.approx(-1 / log(slope), rel=1e-9)


def test_without_biases_inputs_of_an_odd_function_end_up_unrelated():
    found = depth_scales("tanh", sigma_w2=2.0)
    assert found.correlation == pytest.approx(0, abs=1e-12)


def test_without_biases_nothing_is_left_on_the_critical_line():
    assert critical_point("tanh") == (1.0, 0.0)
    assert critical_point("leaky_relu")[1] == 0


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: chi_1("relu", sigma_w2=2.5), r"sigma_w2=2.5.* give relu no fixed point .*finite depth"),
        (lambda: critical_weight_variance("softplus"), "sigma_b2=0.0 gives softplus no critical"),
        (lambda: critical_weight_variance("gelu", sigma_b2=0.1), "gelu no .* the variance settles"),
        (lambda: critical_weight_variance("relu", sigma_b2=0.1), "sigma_b2=0.1 gives relu no"),
        (lambda: critical_point("tanh", sigma_b2=-1.0), "sigma_b2=-1.0 .*zero or more"),
    ],
)
def test_bad_questions_are_refused(ask, words):
    with pytest.raises(ValueError, match=words):
        ask()
