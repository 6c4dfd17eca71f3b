"""Unit statistics against NumPy on an unrolled network, and against what a wide network must show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.measure.units import silent_units, unit_statistics
from gradcourse.nn.blocks import Residual
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential
from gradcourse.theory.meanfield import mean_square_slope, preactivation_variances


def test_dense_statistics_are_those_of_numpy() -> None:
    network = mlp(6, [9, 9], 4, activation="sigmoid", init=gaussian(8.0, 0.5))
    params = network.init(key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (11, 6))
    found = unit_statistics(network, params, x)
    h = np.asarray(x, np.float64)
    for layer, (stage, index) in enumerate([(0, 0), (1, 0)]):
        s = h @ np.asarray(params[stage]["weight"][index], np.float64) + np.asarray(params[stage]["bias"][index])
        h = 1 / (1 + np.exp(-s))
        slope = h * (1 - h)
        np.testing.assert_allclose(found.preactivation_rms[layer], np.sqrt((s**2).mean()), rtol=1e-5)
        np.testing.assert_allclose(found.mean[layer], h.mean(), rtol=1e-5)
        np.testing.assert_allclose(found.spread[layer], h.std(), rtol=1e-4)
        np.testing.assert_allclose(found.mean_square_slope[layer], (slope**2).mean(), rtol=1e-5)
        np.testing.assert_allclose(found.saturated[layer], (slope < 0.05 * 0.25).mean(), rtol=1e-5)
        assert 0 < found.saturated[layer] < 1


def test_a_convolution_counts_every_pixel_and_a_flatten_has_no_slope() -> None:
    network = sequential((5, 5, 1), [Conv(3, "relu", initializer="he_normal"), Flatten(), Dense(2)])
    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 1))
    found = unit_statistics(network, network.init(key=jax.random.key(0)), x)
    assert 0.3 < found.mean_square_slope[0] < 0.7  # half of a rectifier's entries pass everything, the others nothing
    assert found.saturated[0] == 0  # it has no tails: on one side it never levels off
    assert np.isnan(found.mean_square_slope[1])


def test_silent_units_are_those_that_pass_nothing_on_any_example() -> None:
    network = sequential((5, 5, 1), [Conv(8, "relu"), Flatten(), Dense(40, "relu"), Dense(2)])
    params = network.init(key=jax.random.key(0))
    params[0]["bias"] = params[0]["bias"].at[0, 3].set(-100)
    x = jax.random.normal(jax.random.key(1), (3, 5, 5, 1))
    silent, found = silent_units(network, params, x), unit_statistics(network, params, x)
    assert silent[0].tolist() == [channel == 3 for channel in range(8)]
    h = np.maximum(np.asarray(network_until(network, params, x, 3)), 0)
    np.testing.assert_array_equal(silent[2], (h == 0).all(axis=0))
    assert 0 < silent[2].sum() < 40
    assert not silent[1].any()
    assert not silent[3].any()
    np.testing.assert_allclose(found.silent, [np.mean(units) for units in silent])
    more = jax.random.normal(jax.random.key(2), (30, 5, 5, 1))
    dead = silent[2] & silent_units(network, params, more)[2]
    assert dead.sum() < silent[2].sum()


def test_units_are_not_silent_because_activations_underflow() -> None:
    network = mlp(16, [16] * 250, 4, activation="relu", init="standard")
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (10, 16))
    assert not np.any(network.apply(params, x))
    assert 0.2 < np.mean(silent_units(network, params, x)[240]) < 0.8
    assert 0.2 < unit_statistics(network, params, x).silent[240] < 0.8


def network_until(network, params, h, stages):
    for stage, p in list(zip(network.stages, params, strict=True))[:stages]:
        h = stage.layer.apply(jax.tree.map(lambda leaf: leaf[0], p), h)
    return h


def test_the_tail_decides_who_is_saturated() -> None:
    network = mlp(5, [50], 2, activation="tanh", init=gaussian(2.0))
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (20, 5))
    shares = [float(unit_statistics(network, params, x, tail=tail).saturated[0]) for tail in (0.01, 0.1, 0.5, 1.1)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_what_is_not_known_is_nan() -> None:
    network = sequential((4, 4, 2), [MaxPool(2), Residual(Conv(2, "relu")), Flatten(), Dense(5, jnp.sin), Dense(2)])
    params = network.init(key=jax.random.key(0))
    found = unit_statistics(network, params, jnp.ones((2, 4, 4, 2)))
    for share in (found.saturated, found.silent, found.dead):
        assert np.isnan(share).tolist() == [False, True, False, False, False]
    assert found.saturated[3] == 0  # a sine does not level off


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_a_root_mean_square_is_not_squared_before_it_is_scaled(size: float) -> None:
    network = sequential(2, [Dense(2, "tanh")])
    params = ({"weight": size * jnp.eye(2)[None], "bias": jnp.zeros((1, 2))},)
    found = unit_statistics(network, params, jnp.array([[3.0, 4.0]]))
    np.testing.assert_allclose(found.preactivation_rms[0] / size, np.sqrt(12.5), rtol=1e-6)


@pytest.mark.parametrize("measure", [unit_statistics, silent_units])
def test_overflow_is_an_error(measure) -> None:
    network = mlp(4, [4] * 3, 2, activation="silu")
    params = jax.tree.map(lambda p: 1e20 * jnp.ones_like(p), network.init(key=jax.random.key(0)))
    with pytest.raises(FloatingPointError, match="this network overflows"):
        measure(network, params, jnp.ones((2, 4)))


def test_a_wide_network_stands_where_theory_says() -> None:
    network = mlp(64, [600] * 3, 2, activation="sigmoid", init=gaussian(5.0))
    x = jax.random.normal(jax.random.key(1), (50, 64))
    found = unit_statistics(network, network.init(key=jax.random.key(0)), x)
    expected = preactivation_variances(network, x)
    np.testing.assert_allclose(np.square(found.preactivation_rms[:3]), expected[:3], rtol=0.15)
    slopes = [mean_square_slope("sigmoid", q) for q in expected[:3]]
    np.testing.assert_allclose(found.mean_square_slope[:3], slopes, rtol=0.15)


def test_seeds_are_a_leading_axis() -> None:
    network, x = mlp(4, [6], 3), jnp.ones((2, 4))
    keys = jax.random.split(jax.random.key(0), 5)
    found = jax.vmap(lambda key: unit_statistics(network, network.init(key=key), x))(keys)
    assert found.saturated.shape == (5, 2)


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_bad_tail_is_refused() -> None:
    network = mlp(4, [6], 3)
    params = network.init(key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"tail=-1 is not accepted; give a finite number above zero"):
        unit_statistics(network, params, jnp.ones((2, 4)), tail=-1)
