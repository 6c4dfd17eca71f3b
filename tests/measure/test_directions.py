"""Random directions: frames, unbiased estimates, and error bars that hold as often as they say.

Each example of a batch draws directions of its own, so a thousand copies of one input are a thousand seeds.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gradcourse.measure.directions import Directions, checked_directions
from gradcourse.measure.jacobians import backward_jacobian_norms, forward_jacobian_norms, layer_jacobian_norms
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense
from gradcourse.nn.network import mlp, sequential

SWEEPS = {"backward": backward_jacobian_norms, "forward": forward_jacobian_norms}
both_ways = pytest.mark.parametrize("start", SWEEPS)
KEY = jax.random.key(3)

SHALLOW = mlp(64, [80], 96, activation="tanh", init="glorot_uniform")
DEEP = mlp(64, [24] * 30, 96, activation="tanh", init="glorot_uniform")  # nearly of rank one
IMAGES = sequential((4, 4, 4), [Conv(4, "gelu")] * 2)  # 64 inputs and outputs


def given(network, copies):
    """Parameters, and a batch of `copies` of one random input."""
    params = network.init(key=jax.random.key(0))
    one = jax.random.normal(jax.random.key(1), network.input_shape)
    return params, jnp.broadcast_to(one, (copies, *one.shape))


# Frames


@pytest.mark.parametrize("sketch", [0, 3])
def test_frames_are_orthonormal_and_span_the_sketch_first(sketch):
    keys = jax.random.split(KEY, 5)
    large = jax.random.normal(jax.random.key(1), (3, 5, 20)) if sketch else None
    frames = Directions(20, probes=7, sketch=sketch).frames(large, keys, jnp.float32)
    assert frames.shape == (7 + sketch, 5, 20)
    products = np.einsum("ibn,jbn->bij", frames, frames)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(7 + sketch), products.shape), atol=1e-6)
    if large is not None:
        inside = np.einsum("ibn,ibm,jbm->jbn", frames[:3], frames[:3], large)
        np.testing.assert_allclose(inside, large, atol=1e-5)


@pytest.mark.parametrize(("probes", "sketch"), [(12, 0), (8, 4)])
@both_ways
def test_as_many_directions_as_dimensions_are_exact(start, probes, sketch):
    network = mlp(12, [9], 12, activation="tanh")
    params, x = given(network, 2)
    sampled = SWEEPS[start](network, params, x, average=False, probes=probes, sketch=sketch, key=KEY)
    exact = SWEEPS[start](network, params, x, average=False)
    np.testing.assert_allclose(sampled.log10_norm, exact.log10_norm, atol=1e-5)
    assert not np.any(sampled.standard_error)


# A thousand seeds


@cache
def deviations(network, start, probes, sketch):
    """The log10 errors of a thousand estimates and their error bars, `(seed, layer)`, in float64.

    There the rounding of a deep network stays below the error that is left beside a sketch.
    """
    with jax.enable_x64(True):
        params, x = reference.in_float64(given(network, 1000))
        exact = SWEEPS[start](network, params, x[:1], average=False)
        estimates = SWEEPS[start](network, params, x, average=False, probes=probes, sketch=sketch, key=KEY)
    return estimates.log10_norm - exact.log10_norm, np.asarray(estimates.standard_error)


@pytest.mark.parametrize(
    ("network", "start", "probes", "sketch"),
    [
        (SHALLOW, "backward", 16, 0),
        (SHALLOW, "forward", 32, 8),
        *[(DEEP, start, probes, sketch) for start in SWEEPS for probes in (16, 32) for sketch in (0, 8)],
        (IMAGES, "backward", 16, 8),
        (IMAGES, "backward", 32, 0),
        (IMAGES, "forward", 16, 0),
    ],
)
def test_intervals_hold_as_often_as_they_say(network, start, probes, sketch):
    error, bar = deviations(network, start, probes, sketch)
    covered = (np.abs(error) <= 1.96 * bar).mean(axis=0)
    whole = covered[0 if start == "backward" else -1]
    assert 0.93 <= whole <= 0.97
    assert 0.93 <= covered.mean() <= 0.97
    squares = 100**error  # each with the mean 1, if the estimate of the squared norm is unbiased
    assert (np.abs(squares.mean(axis=0) - 1) < 4 * squares.std(axis=0) / np.sqrt(1000)).all()


def spectra(size):
    """Singular values, squared, from flat to a single one."""
    index = np.arange(size)
    yield from (0.1**index, 0.7**index, 1 / (1 + index) ** 2)
    yield from (np.where(index == 0, above, 1.0) for above in (0, 3, 30, 300))
    yield from (np.where(index < rank, 1.0, 0.0) for rank in (1, 2, 10))
    yield np.random.default_rng(0).normal(size=size) ** 2


@pytest.mark.parametrize("probes", [8, 16])
def test_intervals_hold_for_any_spectrum(probes):
    """Diagonal Jacobians, of which the hardest is one value that stands out a little and is missed by many."""
    directions = Directions(64, probes)

    @jax.jit
    def covered(squares):
        v = directions.frames(None, jax.random.split(KEY, 1000), jnp.float32) * jnp.sqrt(squares)
        norms, bar = directions.estimate(directions.see(v, jnp.zeros(1000, jnp.int32)))
        error = jnp.log10(norms.square / squares.sum()) / 2
        return jnp.mean(jnp.abs(error) <= 1.96 * bar)

    stacked = jnp.asarray(list(spectra(64)), jnp.float32)[:, None, None]
    shares = jax.lax.map(covered, stacked)
    assert ((shares > 0.92) & (shares < 0.975)).all()  # the truth within 93 and 96.5 %, as the module says
    assert 0.94 < shares.mean() < 0.96


def test_a_sketch_makes_errors_smaller_where_the_spectrum_decays():
    for start in SWEEPS:
        (plain, bar), (sketched, smaller) = (deviations(DEEP, start, 16, sketch) for sketch in (0, 8))
        end = 0 if start == "backward" else -1
        assert np.std(sketched[:, end]) < np.std(plain[:, end]) / 100
        assert np.median(smaller[:, end]) < np.median(bar[:, end]) / 100


def test_an_orthogonal_map_is_known_from_two_probes():
    network = mlp(40, [40] * 4, 40, activation="identity", init="orthogonal")
    params, x = given(network, 2)
    profile = backward_jacobian_norms(network, params, x, average=False, probes=2, key=KEY)
    np.testing.assert_allclose(profile.log10_norm, np.log10(40) / 2, atol=1e-5)
    assert (np.asarray(profile.standard_error) < 1e-5).all()


def test_pools_are_sampled_layer_by_layer():
    network = sequential((8, 8, 4), [Conv(4), MaxPool(2, stride=1)])
    params, x = given(network, 300)
    x = x * jnp.linspace(1, 2, 300)[:, None, None, None]  # each window keeps its largest pixel
    exact = layer_jacobian_norms(network, params, x[:1], average=False)
    sampled = layer_jacobian_norms(network, params, x, average=False, probes=16, key=KEY)
    error = sampled.log10_norm - exact.log10_norm
    assert not np.any(np.asarray(sampled.standard_error)[:, 0])
    assert 0.91 <= (np.abs(error[:, 1]) <= 1.96 * np.asarray(sampled.standard_error)[:, 1]).mean() <= 0.985


# One example, one program


@both_ways
def test_an_example_does_not_depend_on_its_neighbours(start):
    params, _ = given(SHALLOW, 1)
    x = jax.random.normal(jax.random.key(5), (3, 64))
    options = {"average": False, "probes": 4, "sketch": 2, "key": KEY}
    together = SWEEPS[start](SHALLOW, params, x, **options)
    others = SWEEPS[start](SHALLOW, params, x.at[1:].multiply(3.0), **options)
    np.testing.assert_allclose(together.log10_norm[0], others.log10_norm[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(together.standard_error[0], others.standard_error[0], rtol=1e-4)
    assert np.abs(together.log10_norm[1:] - others.log10_norm[1:]).min() > 1e-4


@both_ways
def test_the_careful_and_the_fast_way_agree(start):
    """Inside of `jit` the careful way is taken, outside the fast one."""
    params, x = given(DEEP, 2)
    options = {"average": False, "probes": 8, "sketch": 2, "key": KEY}
    fast = SWEEPS[start](DEEP, params, x, **options)
    careful = jax.jit(lambda x: SWEEPS[start](DEEP, params, x, **options))(x)
    np.testing.assert_allclose(fast.log10_norm, careful.log10_norm, rtol=0, atol=1e-5)
    np.testing.assert_allclose(fast.standard_error, careful.standard_error, rtol=0.01, atol=1e-5)


def test_jit_equals_eager():
    network = sequential(6, [Dense(6, "tanh")])
    params, x = given(network, 2)
    options = {"average": False, "probes": 3, "sketch": 1, "key": KEY}
    with jax.disable_jit():
        eager = backward_jacobian_norms(network, params, x, **options)
    compiled = backward_jacobian_norms(network, params, x, **options)
    np.testing.assert_allclose(compiled.log10_norm, eager.log10_norm, rtol=0, atol=1e-5)
    np.testing.assert_allclose(compiled.standard_error, eager.standard_error, rtol=1e-3, atol=1e-6)


def test_keys_decide_and_are_repeatable():
    params, x = given(SHALLOW, 1)
    logs = [
        backward_jacobian_norms(SHALLOW, params, x, probes=4, sketch=2, key=jax.random.key(seed)).log10_norm
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(logs[0], logs[1])
    assert (logs[0] != logs[2]).all()


@pytest.mark.parametrize("power", [-100, 100])
def test_error_bars_do_not_depend_on_the_scale(power):
    params, x = given(IMAGES, 2)
    linear = sequential((4, 4, 4), [Conv(4)] * 2)
    scaled = jax.tree.map(lambda leaf: leaf * 2.0**power, params)
    before, after = (
        backward_jacobian_norms(linear, each, 0 * x, average=False, probes=8, key=KEY) for each in (params, scaled)
    )
    shift = power * np.log10(2) * np.array([2, 1])
    np.testing.assert_allclose(after.log10_norm, before.log10_norm + shift, rtol=0, atol=2e-5)
    np.testing.assert_allclose(after.standard_error, before.standard_error, rtol=1e-4)


def test_a_dead_network_is_zero_without_doubt():
    network = mlp(8, [20], 12, activation="relu")
    params, x = given(network, 1)
    dead = ({**params[0], "bias": params[0]["bias"] - 100}, params[1])
    profile = backward_jacobian_norms(network, dead, x, average=False, probes=8, sketch=2, key=KEY)
    assert np.isneginf(profile.log10_norm[0, 0])
    assert np.asarray(profile.standard_error)[0, 0] == 0


# Bad input


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sketch": 4}, ValueError, "sketch=4 is accepted together with probes only; give probes=32, or sketch=0"),
        ({"probes": 0}, ValueError, "probes=0 is accepted from 1 up"),
        ({"probes": 1}, ValueError, "probes=1 cannot tell its own error; accepted is 2 or more, better 16"),
        ({"probes": 2.5}, TypeError, "probes=2.5 is a float"),
        ({"probes": 4, "sketch": -1}, ValueError, "sketch=-1 is accepted from 1 up"),
        (
            {"probes": 97},
            ValueError,
            "probes=97 and sketch=0 are more than the 96 dimensions of the output; leave both",
        ),
        ({"probes": 90, "sketch": 7}, ValueError, "probes=90 and sketch=7 are more than the 96 dimensions"),
        (
            {"probes": 4, "key": None},
            ValueError,
            r"key=None is accepted without probes only; .*key=jax.random.key\(0\)",
        ),
    ],
)
def test_bad_directions_are_refused(options, error, words):
    params, x = given(SHALLOW, 1)
    with pytest.raises(error, match=words):
        backward_jacobian_norms(SHALLOW, params, x, **({"key": KEY} | options))


def test_all_directions_are_the_default():
    assert checked_directions("the output", 10, None, 0, None).carried == 10
    assert checked_directions("the output", 10, 4, 3, KEY).carried == 7
