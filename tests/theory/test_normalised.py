"""Growth rates with normalisation and shortcuts, against Yang et al.'s formula, Monte Carlo and measured networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import gradcourse as gc
from gradcourse.course.experiments.normalisation import HalfBatchNorm, normalised_sigmoid, started
from gradcourse.course.experiments.shortcuts import correlation_of_neighbours, slopes_along_a_line
from gradcourse.nn.activations import resolve
from gradcourse.theory.normalised import (
    batch_norm_rate,
    centring_gain,
    layer_norm_rate,
    scaling_rate,
    shortcut_growth,
    shortcut_growth_with_batch_norm,
    variance,
)


def theorem_8(batch):
    """Yang et al.'s formula for rectifiers, with the arc-cosine kernel and its derivative."""
    c = -1 / (batch - 1)
    kernel = (np.sqrt(1 - c * c) + (np.pi - np.arccos(c)) * c) / np.pi
    slope = (np.pi - np.arccos(c)) / np.pi
    return (batch - 1) * (slope + batch - 1) / ((batch - 3) * (batch - 1) * (1 - kernel)) - 1 / (batch - 3)


@pytest.mark.parametrize("batch", [4, 8, 64, 300])
def test_the_rate_for_a_finite_batch_is_that_of_the_closed_forms(batch):
    assert batch_norm_rate("relu", batch) == pytest.approx(theorem_8(batch), rel=1e-10)
    assert batch_norm_rate("identity", batch) == pytest.approx((batch - 2) / (batch - 3), rel=1e-10)


@pytest.mark.parametrize("name", ["sigmoid", "elu", "hard_tanh", "selu"])
def test_the_rate_for_a_finite_batch_agrees_with_monte_carlo(name):
    batch, draws, rng = 8, 200_000, np.random.default_rng(0)

    def centred():
        values = rng.normal(size=(draws, batch))
        return values - values.mean(axis=1, keepdims=True)

    s, v = centred(), centred()
    s *= np.sqrt(batch) / np.linalg.norm(s, axis=1, keepdims=True)
    f = resolve(name)
    h, u = np.asarray(f(s)), np.asarray(f.slope(s)) * v
    h = h.astype(np.float64)
    same, other = np.mean(h**2), np.mean(h.sum(axis=1) ** 2 - (h**2).sum(axis=1)) / (batch * (batch - 1))
    square = np.sum(u**2, axis=1) - u.sum(axis=1) ** 2 / batch - np.sum(u * s, axis=1) ** 2 / batch
    expected = batch / (batch - 3) * square.mean() / (batch - 1) / (same - other)
    assert batch_norm_rate(name, batch) == pytest.approx(expected, rel=0.01)


def test_no_gradient_vanishes_and_a_large_batch_is_an_infinite_one():
    for name in ("sigmoid", "relu", "gelu", "hard_tanh"):
        rate = batch_norm_rate(name)
        assert rate > 1 + 1e-3
        assert batch_norm_rate(name, 5000) == pytest.approx(rate, rel=1e-3)
    assert batch_norm_rate("identity") == pytest.approx(1, abs=1e-12)
    assert batch_norm_rate("relu") == pytest.approx(np.pi / (np.pi - 1), rel=1e-9)
    with pytest.raises(ValueError, match="batch=3 is accepted from 4 on"):
        batch_norm_rate("relu", 3)


def test_layer_norm_differs_by_the_mean_of_the_activation():
    assert layer_norm_rate("relu") == pytest.approx(1, rel=1e-9)  # He's initialisation
    assert layer_norm_rate("tanh") == pytest.approx(batch_norm_rate("tanh"), rel=1e-9)  # an odd function has none
    drawn = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=1_000_000)))
    assert variance("sigmoid") == pytest.approx(drawn.var(), rel=0.01)
    ratio = batch_norm_rate("sigmoid") / layer_norm_rate("sigmoid")
    assert ratio == pytest.approx(np.mean(drawn**2) / drawn.var(), rel=0.01)


def test_standardised_weights_with_that_gain_keep_the_variance():
    network = gc.sequential(
        300, [gc.nn.WeightStandardised(gc.Dense(300, "sigmoid"), gain=centring_gain("sigmoid"))] * 10 + [gc.Dense(2)]
    )
    x = jax.random.normal(jax.random.key(0), (20, 300)) * variance("sigmoid") ** 0.5
    units = gc.measure.unit_statistics(network, network.init(key=jax.random.key(1)), x)
    np.testing.assert_allclose(units.preactivation_rms[:10], 1, atol=0.15)


def test_shortcuts_with_batch_norm_grow_as_measured():
    width, blocks, batch = 64, 30, 32
    body = gc.nn.Residual((gc.nn.BatchNorm("relu"), gc.Dense(width, initializer="he_normal")))
    network = gc.sequential(width, [gc.Dense(width, initializer="lecun_normal"), *[body] * blocks, gc.Dense(10)])
    x = jax.random.normal(jax.random.key(0), (batch, width))
    norms = partial(gc.backward_jacobian_norms, probes=8, key=jax.random.key(3))
    norms = gc.over_seeds(norms, network, x, seeds=4, key=jax.random.key(1)).log10_norm
    factors = shortcut_growth_with_batch_norm("relu", blocks, sigma_w2=2.0, batch=batch)
    assert np.mean(norms[:, 1] - norms[:, -1]) == pytest.approx(np.log10(factors.prod()) / 2, abs=0.05)


@pytest.mark.parametrize("layers", [1, 2])
def test_that_growth_is_a_power_of_the_number_of_blocks(layers):
    far = np.log(shortcut_growth_with_batch_norm("relu", 40_000, sigma_w2=2.0, layers=layers)).cumsum()
    power = batch_norm_rate("relu") ** layers
    assert (far[-1] - far[19_999]) / np.log(2) == pytest.approx(power, rel=1e-3)


def test_scaling_alone_keeps_the_gradient_by_the_units_whose_mean_is_small():
    rate, share = scaling_rate("sigmoid")
    rng, batch, width = np.random.default_rng(0), 400, 1500
    h = rng.normal(size=(batch, width))
    for _ in range(12):
        z = h @ rng.normal(size=(width, width)) / np.sqrt(width)
        rho = np.sqrt(np.mean(z**2, axis=0))
        h = 1 / (1 + np.exp(-z / rho))
    b = np.mean(h.mean(axis=0) ** 2)
    assert share == pytest.approx(1 - b / np.mean(h**2), rel=0.1)
    assert rate == pytest.approx(np.mean(np.mean((h * (1 - h)) ** 2, axis=0) / rho**2), rel=0.1)
    assert scaling_rate("tanh")[0] == pytest.approx(batch_norm_rate("tanh"), rel=1e-4)  # no mean to subtract


def test_shortcuts_without_it_grow_exponentially():
    assert shortcut_growth(3) == 8
    assert shortcut_growth(10_000, scale=0.01) == pytest.approx(np.e, rel=1e-3)


@pytest.mark.parametrize("part", ["centre", "scale"])
def test_half_a_batch_norm_agrees_with_autodiff(part):
    layer, h = HalfBatchNorm(part, "tanh"), 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (5, 6))
    v = jax.random.normal(jax.random.key(1), (2, 5, 6))
    y, point = layer.linearize({}, h)
    np.testing.assert_allclose(y, layer.apply({}, h), atol=1e-6)
    pulled, pushed = point.pull({}, point.times_slope(v)), point.times_slope(point.push({}, v))
    np.testing.assert_allclose(pulled, reference.pulled(layer, {}, h, v), atol=1e-5)
    np.testing.assert_allclose(pushed, reference.pushed(layer, {}, h, v), atol=1e-5)
    s = np.asarray(layer.preactivation({}, h))
    found = {"centre": s.mean(axis=0), "scale": np.square(s).mean(axis=0) - 1}[part]
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_a_network_that_is_normalised_once_starts_where_batch_norm_does():
    x = gc.digits().x_train
    network, params = started("batch norm once", 3, key=jax.random.key(0))
    normalised = normalised_sigmoid("batch norm", 3)
    expected = normalised.apply(normalised.init(key=jax.random.key(0)), x)
    assert not network.couples_examples
    np.testing.assert_allclose(network.apply(params, x), expected, atol=1e-4)


def test_slopes_along_a_line_are_those_of_finite_differences():
    network = gc.sequential(1, [gc.Dense(8, "tanh", initializer=gc.nn.gaussian(1.0, 1.0)), gc.Dense(1)])
    params, x = network.init(key=jax.random.key(0)), jnp.linspace(-2, 2, 401)[:, None]
    found = slopes_along_a_line(network, params, x)
    y = network.apply(params, x).ravel()
    np.testing.assert_allclose(found[1:-1], (y[2:] - y[:-2]) / 0.02, atol=2e-3)
    assert float(correlation_of_neighbours(found)) > 0.95
