"""The finite-width theory of rectifier networks against published values, other derivations and random products."""

from math import comb, log, pi

import numpy as np
import pytest
from scipy.special import digamma, zeta

from gradcourse.theory.finite_width import born_dead, log_gain, typical_square

TABLE = [  # width, drift and variance of a rectifier layer, drift of a linear one
    (8, -0.398777, 1.246989, -0.130177),
    (16, -0.176397, 0.419593, -0.063800),
    (64, -0.040109, 0.082997, -0.015706),
    (512, -0.004898, 0.009837, -0.001954),
]


@pytest.mark.parametrize(("width", "drift", "variance", "linear"), TABLE)
def test_agrees_with_the_table(width, drift, variance, linear):
    assert log_gain(width) == pytest.approx((drift, variance), abs=6e-7)
    assert log_gain(width, activation="identity").mean == pytest.approx(linear, abs=6e-7)


def test_one_unit_is_a_squared_normal():
    # E ln z^2 = -gamma - ln 2 and Var ln z^2 = pi^2 / 2; given that it is on, it is so for either activation
    for activation, sigma_w2 in (("relu", 2.0), ("identity", 1.0)):
        found = log_gain(1, activation=activation)
        assert found.mean == pytest.approx(-np.euler_gamma - log(2) + log(sigma_w2), rel=1e-12)
        assert found.variance == pytest.approx(pi**2 / 2, rel=1e-12)


def test_two_units_by_hand():
    # K is 1 with probability 2/3 and 2 with 1/3; psi(1/2) = -gamma - 2 ln 2, psi(1) = -gamma
    one, two = -np.euler_gamma - 2 * log(2), -np.euler_gamma
    mean = (2 * one + two) / 3
    found = log_gain(2)
    assert found.mean == pytest.approx(mean + log(2), rel=1e-12)
    spread = (2 * (pi**2 / 2) + zeta(2)) / 3 + (2 * (one - mean) ** 2 + (two - mean) ** 2) / 3
    assert found.variance == pytest.approx(spread, rel=1e-12)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_random_layers_agree(activation):
    rng, width, draws = np.random.default_rng(0), 6, 100_000
    h = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])
    s = rng.normal(size=(draws, width, width)) @ h / np.sqrt(width)
    squares = np.square(np.maximum(np.sqrt(2) * s, 0) if activation == "relu" else s).sum(axis=1)
    logs = np.log(squares[squares > 0] / (h @ h))
    found = log_gain(width, activation=activation)
    assert abs(logs.mean() - found.mean) < 4 * np.sqrt(found.variance / draws)
    assert logs.var() == pytest.approx(found.variance, rel=0.03)


def test_a_cotangent_has_the_same_law_as_an_activation():
    rng, width, draws = np.random.default_rng(1), 5, 100_000
    v = rng.normal(size=(draws, width))  # points anywhere
    on = rng.integers(0, 2, size=(draws, width))
    back = np.einsum("dij,dj->di", rng.normal(size=(draws, width, width)), on * v) * np.sqrt(2 / width)
    squares = np.square(back).sum(axis=1) / np.square(v).sum(axis=1)
    logs = np.log(squares[squares > 0])
    found = log_gain(width)
    assert abs(logs.mean() - found.mean) < 4 * np.sqrt(found.variance / draws)
    assert logs.var() == pytest.approx(found.variance, rel=0.03)


def test_wide_layers_follow_the_rule_of_thumb():
    found = log_gain(4096)
    assert found.mean == pytest.approx(-5 / (2 * 4096), rel=2e-3)
    assert found.variance == pytest.approx(5 / 4096, rel=4e-3)
    assert log_gain(4096, activation="identity").mean == pytest.approx(-1 / 4096, rel=1e-3)


def test_the_scale_of_the_weights_moves_the_drift_only():
    assert log_gain(20, sigma_w2=1.0).mean == pytest.approx(log_gain(20).mean - log(2), rel=1e-12)
    assert log_gain(20, sigma_w2=1.0).variance == log_gain(20).variance


def test_the_typical_network_is_the_drift_over_its_layers():
    assert typical_square(16, 50) == pytest.approx(np.exp(50 * log_gain(16).mean), rel=1e-12)
    assert typical_square(16, 100) == pytest.approx(typical_square(16, 50) ** 2, rel=1e-12)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_born_dead_counts_sign_patterns(width):
    # of 2^N patterns of on and off one is dead; alive after H layers is alive in each
    alive = sum(comb(width, on) for on in range(1, width + 1)) / 2**width
    for layers in (1, 3, 9):
        assert born_dead(width, layers) == pytest.approx(1 - alive**layers, rel=1e-12)


def test_born_dead_keeps_its_digits_where_it_is_small():
    assert born_dead(60, 10) == pytest.approx(10 * 2.0**-60, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_gain(0), "width=0"),
        (lambda: log_gain(8, activation="tanh"), "activation='tanh' is not known"),
        (lambda: log_gain(8, sigma_w2=-1.0), "sigma_w2=-1.0"),
        (lambda: born_dead(4, 0), "layers=0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_digamma_is_the_mean_log_of_a_chi_square():
    # the identity all of this rests on, by simulation
    rng = np.random.default_rng(2)
    logs = np.log(rng.chisquare(3, size=200_000))
    assert logs.mean() == pytest.approx(digamma(1.5) + log(2), abs=0.01)
