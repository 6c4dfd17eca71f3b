"""Singular values against dense float64 Jacobians, arbitrary precision, closed forms and one another."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import reference

from gradcourse.measure.jacobians import backward_jacobian_norms, layer_jacobian_norms
from gradcourse.measure.singular_values import (
    SUMMARIES,
    backward_singular_values,
    layer_singular_values,
    summary,
)
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential
from gradcourse.profile import Profile
from gradcourse.training.sweeps import over_seeds

MEASURES = {"backward": backward_singular_values, "layer": layer_singular_values}
NORMS = {"backward": backward_jacobian_norms, "layer": layer_jacobian_norms}


drawn = partial(reference.drawn, batch=2)


def dense_singular_values(network, params, x):
    """Returns by name the log10 singular values, per example and layer, of products multiplied out in float64."""
    result = {"backward": [], "layer": []}
    for pairs in reference.jacobians(network, params, x):
        layers = [slopes[:, None] * matrix for matrix, slopes in pairs]
        back = [layers[-1]]
        for matrix in layers[-2::-1]:
            back.append(back[-1] @ matrix)
        for name, matrices in zip(result, (back[::-1], layers), strict=True):
            result[name].append([np.linalg.svd(matrix, compute_uv=False) for matrix in matrices])
    return result


BOTTLENECK = mlp(5, [5, 2], 3, activation="tanh")
IMAGES = sequential((4, 4, 1), [Conv(2, "gelu", stride=2), Conv(2, "tanh"), MaxPool(2), Flatten()])


@pytest.mark.parametrize(("network", "dtype"), [(BOTTLENECK, "float32"), (IMAGES, "float64")], ids=["dense", "images"])
def test_shallow_networks_agree_with_dense_jacobians(network, dtype):
    params, x = drawn(network)
    expected = dense_singular_values(network, params, x)
    for name, measure in MEASURES.items():
        with jax.enable_x64(True):
            logs = measure(network, *jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))).log10_norm
        for measured, layers in zip(logs, expected[name], strict=True):
            for values, dense in zip(measured.T, layers, strict=True):
                assert np.isnan(values[len(dense) :]).all()
                zero = dense < 1e-12 * dense[0]  # the product's rank is lower than its shape
                assert np.isneginf(values[: len(dense)][zero]).all()
                tolerance = 1e-11 if dtype == "float64" else 1e-5
                np.testing.assert_allclose(values[: len(dense)][~zero], np.log10(dense[~zero]), atol=tolerance)


# Deep networks, against arbitrary precision


def exact_jacobians(network, params, x):
    """Returns the layers' Jacobians at one example in 500 digits, from the float32 parameters and input."""
    h, jacobians = mpmath.matrix(np.asarray(x, np.float64).tolist()), []
    for layer, one, _ in reference.unrolled(network, params):
        weight = mpmath.matrix(one["weight"].T.tolist())
        h = weight * h + mpmath.matrix(one["bias"].tolist())
        slopes = [mpmath.mpf(1)] * len(h)
        if layer.activation.name == "sigmoid":
            h = h.apply(lambda s: 1 / (1 + mpmath.exp(-s)))
            slopes = [y * (1 - y) for y in h]
        jacobians.append(mpmath.diag(slopes) * weight)
    return jacobians


def exact_log10_singular_values(matrix):
    square = matrix * matrix.T if matrix.rows <= matrix.cols else matrix.T * matrix
    squares = mpmath.eigsy(square, eigvals_only=True)
    return sorted((float(mpmath.log10(abs(square)) / 2) for square in squares), reverse=True)


DEEP = {activation: mlp(6, [6] * 200, 4, activation=activation) for activation in ("identity", "sigmoid")}


@pytest.mark.parametrize("activation", DEEP)
def test_deep_networks_are_right_in_float32_where_the_condition_number_is_beyond_it(activation):
    network, (params, x) = DEEP[activation], drawn(DEEP[activation], seed=1)
    backward = backward_singular_values(network, params, x).log10_norm
    with mpmath.workdps(500):
        for example in range(len(x)):
            jacobians = exact_jacobians(network, params, x[example])
            back = mpmath.eye(4)
            for count, last in enumerate(reversed(jacobians), start=1):
                back = back * last
                if count not in (2, 40, 100, 201):
                    continue
                exact = exact_log10_singular_values(back)
                np.testing.assert_allclose(backward[example, :, -count], exact, rtol=0, atol=1e-4)
            assert np.ptp(exact) > 30  # a condition number of 1e30
            assert activation == "identity" or max(exact) < -100


def test_their_squares_add_up_to_the_frobenius_norms():
    network, (params, x) = DEEP["sigmoid"], drawn(DEEP["sigmoid"], seed=1)
    values = backward_singular_values(network, params, x)
    for average in (True, False):
        frobenius = summary(values, "frobenius", average=average)
        norms = backward_jacobian_norms(network, params, x, average=average)
        np.testing.assert_allclose(frobenius.log10_norm, norms.log10_norm, rtol=0, atol=1e-4)
        np.testing.assert_allclose(frobenius.standard_error, norms.standard_error, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MEASURES)
def test_shallow_squares_add_up_to_rounding(name):
    params, x = drawn(BOTTLENECK)
    frobenius = summary(MEASURES[name](BOTTLENECK, params, x), "frobenius").log10_norm
    np.testing.assert_allclose(frobenius, NORMS[name](BOTTLENECK, params, x).log10_norm, rtol=0, atol=5e-7)


# Closed forms at depth 1000

LINEAR = mlp(4, [4] * 999, 4, activation="identity", init="orthogonal")  # one stage of equal layers
POINT = jnp.zeros((1, 4))


def linear(weights):
    """`LINEAR`'s parameters with the given weights, `(layer, in, out)`."""
    return ({"weight": jnp.asarray(weights, jnp.float32), "bias": jnp.zeros((1000, 4))},)


def test_rounding_does_not_drift():
    network = mlp(32, [32] * 99, 32, activation="tanh", init="orthogonal")
    params = network.init(key=jax.random.key(0))
    x = 0.1 * jax.random.normal(jax.random.key(1), (1, 32))
    exact = np.log10(dense_singular_values(network, params, x)["backward"][0])
    measured = backward_singular_values(network, params, x).log10_norm[0]
    np.testing.assert_allclose(measured, exact.T, rtol=0, atol=3e-5)


def test_a_thousand_orthogonal_layers_keep_all_singular_values_at_one():
    logs = backward_singular_values(LINEAR, LINEAR.init(key=jax.random.key(0)), POINT).log10_norm
    np.testing.assert_allclose(logs, 0, atol=1e-5)


def test_a_thousand_diagonal_layers_have_a_closed_form():
    diagonals = np.random.default_rng(0).uniform([0.001, 0.1, 0.9, 1], [0.01, 1, 1, 3], (1000, 4)).astype(np.float32)
    params = linear(diagonals[:, :, None] * np.eye(4))
    logs = np.log10(diagonals.astype(np.float64))
    products = np.cumsum(logs[::-1], axis=0)[::-1]
    assert products.min() < -2000
    assert products.max() > 200
    measured = backward_singular_values(LINEAR, params, POINT).log10_norm[0]
    np.testing.assert_allclose(measured, -np.sort(-products.T, axis=0), rtol=0, atol=2e-4)


def test_a_dying_direction_leaves_the_others_alone():
    diagonals = np.broadcast_to([1.0, 0.5, 0.25, 0.125], (1000, 4)).copy()
    diagonals[300, 0] = 0  # the greatest of all, after 700 layers in which it grew apart by 2 ** 700
    logs = backward_singular_values(LINEAR, linear(diagonals[:, :, None] * np.eye(4)), POINT).log10_norm[0]
    np.testing.assert_allclose(logs[:3, 0], -1000 * np.log10(2) * np.arange(1, 4), rtol=1e-6)
    np.testing.assert_allclose(logs[:, 301], -699 * np.log10(2) * np.arange(4), rtol=1e-6)
    assert np.isneginf(logs[3, :301]).all()


def test_equal_directions_that_merge_lose_one_singular_value():
    weights = np.broadcast_to(np.diag([1.0, 0.5, 0.25, 0.125]), (1000, 4, 4)).copy()
    merged = np.eye(4)
    merged[0] = [3 / 5, 4 / 5, 0, 0]  # rows of (in, out): what came back along the first two is parallel after it
    merged[1] = 0
    weights[500] = merged
    logs = backward_singular_values(LINEAR, linear(weights), POINT).log10_norm[0]
    two = np.log10(2)
    # the first input direction gets 3/5 of 1 and 4/5 of 2 ** -499; the third and fourth go on as they were
    np.testing.assert_allclose(logs[:, 0], [np.log10(3 / 5), -1998 * two, -2997 * two, -np.inf], rtol=1e-6)


def test_a_readout_scaled_by_a_power_of_two_shifts_all_exponents_alone():
    params = linear(np.random.default_rng(0).normal(size=(1000, 4, 4)) / 2)
    scaled = linear(params[0]["weight"].at[-1].multiply(2.0**70))
    before, after = (backward_singular_values(LINEAR, each, POINT) for each in (params, scaled))
    np.testing.assert_array_equal(np.asarray(after.exponent) - np.asarray(before.exponent), 70)
    np.testing.assert_array_equal(after.fraction, before.fraction)


def test_delta_orthogonal_convolutions_keep_all_singular_values_at_one():
    layers = [Conv(2, "identity", padding="CIRCULAR", initializer="delta_orthogonal")] * 3
    network = sequential((3, 3, 2), layers)
    params = network.init(key=jax.random.key(0))
    for measure in MEASURES.values():
        logs = measure(network, params, jnp.ones((1, 3, 3, 2))).log10_norm
        assert logs.shape == (1, 18, 3)
        np.testing.assert_allclose(logs, 0, atol=1e-6)


def test_dead_units_are_zeros_at_the_right_count():
    network = mlp(8, [8] * 12, 8, activation="relu")
    params, x = drawn(network, batch=16, gain=1.4)
    alive = [[np.count_nonzero(slopes) for _, slopes in pairs] for pairs in reference.jacobians(network, params, x)]
    expected = np.minimum.accumulate(np.array(alive)[:, ::-1], axis=1)[:, ::-1]
    values = backward_singular_values(network, params, x)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal((values.log10_norm > -np.inf).sum(axis=1), expected)
    np.testing.assert_allclose(10 ** summary(values, "rank").log10_norm, expected.mean(axis=0), rtol=1e-12)
    dead = ({**params[0], "bias": params[0]["bias"] - 100}, *params[1:])
    assert np.isneginf(backward_singular_values(network, dead, x).log10_norm[..., :12]).all()


# Transformations


@pytest.mark.parametrize("name", MEASURES)
def test_jit_equals_eager(name):
    network = sequential(2, [Dense(2, "tanh")])
    params, x = drawn(network, batch=1)
    with jax.disable_jit():
        eager = MEASURES[name](network, params, x).log10_norm
    outer = jax.jit(MEASURES[name], static_argnums=0)(network, params, x).log10_norm
    np.testing.assert_allclose(outer, eager, atol=1e-5)


def test_seeds_under_vmap_equal_a_loop():
    x, key = jnp.ones((2, 5)), jax.random.key(0)
    together = over_seeds(backward_singular_values, BOTTLENECK, x, seeds=3, key=key).log10_norm
    assert together.shape == (3, 2, 3, 3)
    for seed, one in enumerate(jax.random.split(key, 3)):
        alone = backward_singular_values(BOTTLENECK, BOTTLENECK.init(key=one), x).log10_norm
        np.testing.assert_allclose(together[seed], alone, atol=1e-5)


# Summaries


def example_values():
    """Two examples, three singular values (the second layer has two), two layers."""
    values = np.array([[[3.0, 4.0], [2.0, 3.0], [1.0, np.nan]], [[6.0, 8.0], [3.0, 0.0], [0.0, np.nan]]])
    with np.errstate(divide="ignore"):
        logs = np.log10(values) - 700
    return values, Profile.from_log10(logs, layers=("0 dense", "1 dense"), quantity="singular values of the Jacobian")


@pytest.mark.parametrize(
    ("what", "of_one", "power"),
    [
        ("spectral", lambda values: values.max(), 2),
        ("smallest", lambda values: values.min(), 2),
        ("mean", lambda values: values.mean(), 1),
        ("mean_square", lambda values: (values**2).mean(), 1),
        ("frobenius", lambda values: np.linalg.norm(values), 2),
        ("rank", lambda values: np.count_nonzero(values), 1),
    ],
)
def test_summaries_are_the_hand_made_ones(what, of_one, power):
    values, profile = example_values()
    each = np.array([[of_one(one[~np.isnan(one)]) for one in example.T] for example in values])
    shift = {"mean_square": 1400, "rank": 0}.get(what, 700)
    with np.errstate(divide="ignore"):
        one_by_one = summary(profile, what, average=False)
        np.testing.assert_allclose(one_by_one.log10_norm + shift, np.log10(each), rtol=0, atol=1e-11)
        average = summary(profile, what)
        mean = (each**power).mean(axis=0)
        np.testing.assert_allclose(average.log10_norm + shift, np.log10(mean) / power, rtol=0, atol=1e-11)
    with np.errstate(invalid="ignore"):
        error = (each**power).std(axis=0, ddof=1) / np.sqrt(2) / mean / np.log(10) / power
    np.testing.assert_allclose(average.standard_error, np.nan_to_num(error), rtol=1e-9)
    assert not one_by_one.standard_error.any()
    assert average.layers == profile.layers
    assert average.quantity == f"{what.replace('_', ' ')} of the singular values of the Jacobian"


def test_one_example_has_no_standard_error():
    _, profile = example_values()
    one = jax.tree.map(lambda leaf: leaf[:1], profile)
    assert all(np.isnan(summary(one, what).standard_error).all() for what in SUMMARIES)


# Bad input


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_bad_input_is_refused(measure):
    params, x = drawn(BOTTLENECK)
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\); accepted is \(batch, 5\)"):
        measure(BOTTLENECK, params, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="params of layer '0 dense' contain NaN or infinity"):
        measure(BOTTLENECK, jax.tree.map(lambda leaf: leaf * jnp.nan, params), x)


@pytest.mark.parametrize("name", MEASURES)
def test_overflow_is_an_error_not_a_number(name):
    network = sequential(2, [Dense(2, "silu")] * 3)
    with pytest.raises(FloatingPointError, match=r"overflow.*shrink the weights"):
        MEASURES[name](network, *drawn(network, gain=1e30))


def test_an_unknown_summary_and_a_profile_without_values_are_refused():
    _, profile = example_values()
    with pytest.raises(ValueError, match=r"what='spectrl' is not known; did you mean 'spectral'\?"):
        summary(profile, "spectrl")
    with pytest.raises(ValueError, match=r"values have shape \(2,\); accepted is \(\.\.\., batch, value, layer\)"):
        summary(Profile.from_log10([0.0, 1.0], layers=("0 dense", "1 dense"), quantity="norm"), "mean")
