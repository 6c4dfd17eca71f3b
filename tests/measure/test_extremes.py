"""Extreme singular values against NumPy's decomposition of dense matrices, closed forms, and a thousand starts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gradcourse.measure.extremes import golub_kahan, layer_extremes
from gradcourse.nn.blocks import Residual
from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential

KEY = jax.random.key(7)


@partial(jax.jit, static_argnames="steps")
def extremes(matrix, key, *, steps):
    """What is found for a dense matrix, taken the narrow way round; more keys, more starts."""
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    like = jnp.zeros(matrix.shape[1], matrix.dtype)
    find = partial(golub_kahan, lambda v: _product(matrix, v), lambda u: _product(u, matrix), like, steps=steps)
    return jax.vmap(lambda key: find(key=key))(key) if key.ndim else find(key=key)


def _product(a, b):
    return jnp.matmul(a, b, precision="highest")


def random(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def with_values(values, seed=0):
    """A square matrix with the given singular values."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.normal(size=(len(values), len(values))))[0] for _ in range(2))
    return (left * values @ right).astype(np.float32)


# All steps


@pytest.mark.parametrize("shape", [(12, 12), (7, 15), (15, 7), (1, 6), (1, 1)])
def test_as_many_steps_as_entries_are_exact(shape):
    matrix = random(*shape)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    found = extremes(jnp.asarray(matrix), KEY, steps=min(shape))
    rounding = 1e-5 * values[0]
    np.testing.assert_allclose([found.largest, found.smallest], [values[0], values[-1]], rtol=0, atol=rounding / 4)
    assert values[0] - rounding / 4 <= found.upper < values[0] + rounding
    assert values[-1] - rounding < found.lower <= values[-1] + rounding / 4


def test_float64_is_exact_to_its_own_rounding():
    matrix = random(20, 14).astype(np.float64)
    values = np.linalg.svd(matrix, compute_uv=False)
    with jax.enable_x64(True):
        found = extremes(jnp.asarray(matrix), KEY, steps=14)
    np.testing.assert_allclose([found.largest, found.smallest], values[[0, -1]], rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 5])
def test_a_map_of_lower_rank_has_a_smallest_of_zero(rank):
    matrix = random(12, rank) @ random(rank, 9, seed=1)
    found = extremes(jnp.asarray(matrix), KEY, steps=9)
    largest = np.linalg.norm(matrix.astype(np.float64), 2)
    np.testing.assert_allclose(found.largest, largest, rtol=2e-6)
    assert found.smallest < 2e-6 * largest
    assert found.lower == 0


def test_a_map_to_nothing_has_only_zeros():
    found = extremes(jnp.zeros((5, 5)), KEY, steps=5)
    np.testing.assert_array_equal(np.array(found), 0)


def test_equal_singular_values_are_found_in_one_step():
    turn = np.linalg.qr(random(30, 30))[0]
    found = extremes(jnp.asarray(2 * turn), KEY, steps=3)
    np.testing.assert_allclose(np.array(found), 2, rtol=1e-5)


# Few steps

MATRICES = {
    "random": random(100, 100),
    "linear": with_values(np.arange(1.0, 101.0)),
    "apart": with_values(np.linspace(1, 2, 100) + 8 * (np.arange(100) == 99) - 0.9 * (np.arange(100) == 0)),
    "decay": with_values(0.9 ** np.arange(100.0)),
}


@pytest.mark.parametrize("steps", [3, 12])
@pytest.mark.parametrize("name", MATRICES)
def test_bounds_hold_for_95_percent_of_a_thousand_starts(name, steps):
    values = np.linalg.svd(MATRICES[name].astype(np.float64), compute_uv=False)
    found = extremes(jnp.asarray(MATRICES[name]), jax.random.split(KEY, 1000), steps=steps)
    assert (np.asarray(found.largest) <= values[0] * (1 + 1e-5)).all()
    assert (np.asarray(found.smallest) >= values[-1] - 1e-5 * values[0]).all()
    assert np.mean(np.asarray(found.upper) < values[0]) <= 0.05
    assert np.mean(np.asarray(found.lower) > values[-1]) <= 0.05


def test_bounds_are_not_idle():
    """Where one value stands apart, the bounds close in; and with few steps some of the thousand do fail."""
    values = np.linalg.svd(MATRICES["apart"].astype(np.float64), compute_uv=False)
    keys = jax.random.split(KEY, 1000)
    found = extremes(jnp.asarray(MATRICES["apart"]), keys, steps=12)
    assert np.median(found.upper) < values[0] * 1.001
    few = extremes(jnp.asarray(MATRICES["random"]), keys, steps=3)
    largest = np.linalg.norm(MATRICES["random"].astype(np.float64), 2)
    assert np.median(few.largest) < 0.95 * largest < 1.5 * largest < 2 * np.median(few.upper)


# Layers


def drawn(network, batch=2):
    params = network.init(key=jax.random.key(0))
    return params, jax.random.normal(jax.random.key(1), (batch, *network.input_shape))


def dense_extremes(network, params, x):
    """Returns the log10 largest and smallest singular values, `(batch, layer)`, of dense float64 Jacobians."""
    values = [
        [np.linalg.svd(slopes[:, None] * matrix, compute_uv=False)[[0, -1]] for matrix, slopes in pairs]
        for pairs in reference.jacobians(network, params, x)
    ]
    with np.errstate(divide="ignore"):
        return np.moveaxis(np.log10(values), 2, 0)


BODY = (Conv(3, "gelu", padding="CIRCULAR"), Conv(2))
LAYERS = [Residual(BODY, scale=0.5), *[Conv(2, "tanh")] * 2, Conv(3, "sigmoid", stride=2, padding="VALID"), AvgPool(2)]
IMAGES = sequential((5, 5, 2), [*LAYERS, Flatten(), Dense(5, "elu"), Dense(3)])


def test_layers_agree_with_dense_jacobians():
    params, x = drawn(IMAGES)
    found = layer_extremes(IMAGES, params, x, steps=50, key=KEY)
    largest, smallest = dense_extremes(IMAGES, params, x)
    np.testing.assert_allclose(found.largest.log10_norm, largest, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.smallest.log10_norm, smallest, rtol=0, atol=3e-4)
    assert found.largest.layers == IMAGES.layer_names
    assert (np.asarray(found.largest.standard_error) < 1e-4).all()


@pytest.mark.parametrize("power", [-100, 100])  # 1e-30 and 1e30
def test_maps_of_any_size_are_scaled_first(power):
    network = mlp(8, [8] * 2, 5, activation="identity")
    params, x = drawn(network)
    scaled = jax.tree.map(lambda leaf: leaf * 2.0**power, params)
    before, after = (layer_extremes(network, each, 0 * x, steps=8, key=KEY) for each in (params, scaled))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other.log10_norm, one.log10_norm + power * np.log10(2), rtol=0, atol=1e-5)
        np.testing.assert_allclose(other.standard_error, one.standard_error, rtol=1e-3, atol=1e-6)


def test_the_interval_in_decades_reaches_the_truth():
    network = sequential((6, 6, 2), [Conv(2, "tanh", padding="CIRCULAR")] * 2)
    params, x = drawn(network, batch=40)
    found = layer_extremes(network, params, x, steps=4, key=KEY)
    largest, smallest = dense_extremes(network, params, x)
    short = largest - found.largest.log10_norm
    assert (short > -1e-5).all()
    assert np.mean(short <= 1.96 * np.asarray(found.largest.standard_error)) >= 0.95
    assert np.isinf(found.smallest.standard_error).all()  # four steps say nothing of the smallest
    assert (smallest <= found.smallest.log10_norm).all()


def test_silent_units_make_the_smallest_zero_to_rounding():
    network = sequential(6, [Dense(6, "relu")])
    params, x = drawn(network)
    params[0]["bias"] = params[0]["bias"].at[0, 2].set(-100)
    found = layer_extremes(network, params, x, steps=6, key=KEY).smallest
    assert np.isneginf(found.log10_norm).all()
    assert np.isinf(found.standard_error).all()


def test_it_runs_inside_jit_and_keys_decide():
    network = sequential(9, [Dense(9, "tanh")])
    params, x = drawn(network, batch=1)
    measure = partial(layer_extremes, network, params, x, steps=2)
    alone = measure(key=KEY).largest.log10_norm
    outer = jax.jit(lambda key: measure(key=key).largest)(KEY)
    np.testing.assert_allclose(outer.log10_norm, alone, atol=1e-6)
    assert abs(measure(key=jax.random.key(8)).largest.log10_norm - alone) > 1e-3


# Bad input


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        (0, ValueError, "steps=0 is accepted from 1 up"),
        (-3, ValueError, "steps=-3 is accepted from 1 up"),
        (1.5, TypeError, "steps=1.5 is a float; accepted is a whole number from 1 up"),
    ],
)
def test_bad_steps_are_refused(steps, error, words):
    network = mlp(3, [3], 3)
    with pytest.raises(error, match=words):
        layer_extremes(network, *drawn(network), steps=steps, key=KEY)
    with pytest.raises(error, match=words):
        golub_kahan(lambda v: v, lambda u: u, jnp.zeros(3), steps=steps, key=KEY)


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_bad_parameters_and_inputs_are_refused():
    network = mlp(3, [3] * 3, 3, activation="silu")
    params, x = drawn(network)
    with pytest.raises(ValueError, match="params of layer '3 dense' contain NaN or infinity"):
        layer_extremes(network, (params[0], {**params[1], "weight": params[1]["weight"] * jnp.nan}), x, key=KEY)
    with pytest.raises(ValueError, match=r"x has shape \(2, 2\); accepted is \(batch, 3\)"):
        layer_extremes(network, params, x[:, :2], key=KEY)
    with pytest.raises(FloatingPointError, match=r"overflow.*shrink the weights"):
        layer_extremes(network, jax.tree.map(lambda leaf: leaf * 1e30, params), x, key=KEY)


def test_max_pools_pass_on_what_they_choose():
    network = sequential((4, 4, 1), [MaxPool(2)])
    found = layer_extremes(network, *drawn(network), steps=4, key=KEY)
    for profile in found:
        np.testing.assert_allclose(profile.log10_norm, 0, atol=1e-6)
