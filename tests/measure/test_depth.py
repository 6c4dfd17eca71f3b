"""Ten thousand layers: norms beyond any floating-point range, flat programs, half precision, broken parameters."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gradcourse.measure.extremes import layer_extremes
from gradcourse.measure.gradients import activation_gradient_norms, parameter_gradient_norms
from gradcourse.measure.jacobians import (
    backward_jacobian_norms,
    forward_jacobian_norms,
    layer_jacobian_norms,
    log_gain_split,
)
from gradcourse.measure.singular_values import backward_singular_values
from gradcourse.measure.units import unit_statistics
from gradcourse.nn.activations import Activation
from gradcourse.nn.blocks import Residual
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential

MEASURES = {"backward": backward_jacobian_norms, "forward": forward_jacobian_norms, "layer": layer_jacobian_norms}
DEPTH = 10_000


def drawn(network, gain, **options):
    return reference.drawn(network, gain=gain, batch=1, **options)


# Beyond 1e-10000 and 1e+10000

DENSE = {activation: mlp(4, [4] * (DEPTH - 1), 3, activation=activation) for activation in ("tanh", "identity")}
PIXELS = [Conv(2, "tanh", kernel_size=2, padding="CIRCULAR")] * (DEPTH - 2)
IMAGES = sequential((2, 2, 2), [*PIXELS, Flatten(), Dense(3)])
LINEAR = sequential((2, 2, 2), [Conv(2, kernel_size=2, padding="CIRCULAR")] * DEPTH)


def dense_factors(params, h, activation):
    """Every layer's Jacobian of a dense network, in NumPy float64."""
    for stage in params:
        for weight, bias in zip(*(np.asarray(stage[name], np.float64) for name in ("weight", "bias")), strict=True):
            s = h @ weight + bias
            last = weight.shape[1] == 3
            h, slopes = (np.tanh(s), np.cosh(s) ** -2.0) if activation == "tanh" and not last else (s, np.ones_like(s))
            yield slopes[:, None] * weight.T


def image_factors(params, h, activation):
    """The same of a convolutional one: each kernel as a matrix, put together from those of its four pixels."""
    taps = np.stack(
        [
            reference.convolution_matrix(tap.reshape(2, 2, 1, 1), (2, 2, 1), 1, "CIRCULAR")
            for tap in np.eye(4).reshape(4, 2, 2)
        ]
    )
    for weight, bias in zip(*(np.asarray(params[0][name], np.float64) for name in ("weight", "bias")), strict=True):
        matrix = np.einsum("tyx,tio->yoxi", taps, weight.reshape(4, 2, 2)).reshape(8, 8)
        s = matrix @ h + np.tile(bias, 4)
        h, slopes = (np.tanh(s), np.cosh(s) ** -2.0) if activation == "tanh" else (s, np.ones_like(s))
        yield slopes[:, None] * matrix
    for stage in params[2:]:  # after the flatten, whose Jacobian is the identity
        yield np.eye(8)
        yield np.asarray(stage["weight"][0], np.float64).T


def log10_norms(factors):
    """The log10 norms of products from the left and from the right, renormalised at every factor."""
    factors = list(factors)
    logs = {}
    for name, order in {"backward": factors[::-1], "forward": factors}.items():
        v, log, found = np.eye(order[0].shape[0 if name == "backward" else 1]), 0.0, []
        for factor in order:
            v = v @ factor if name == "backward" else factor @ v
            norm = np.linalg.norm(v)
            v, log = v / norm, log + np.log10(norm)
            found.append(log)
        logs[name] = np.array(found[::-1] if name == "backward" else found)
    return logs


@pytest.mark.parametrize(
    ("network", "factors", "activation", "gain"),
    [
        (DENSE["tanh"], dense_factors, "tanh", 0.05),
        (DENSE["identity"], dense_factors, "identity", 8.0),
        (IMAGES, image_factors, "tanh", 0.03),
        (LINEAR, image_factors, "identity", 6.0),
    ],
    ids=["dense-vanishing", "dense-exploding", "images-vanishing", "images-exploding"],
)
def test_ten_thousand_layers_are_right_in_float32(network, factors, activation, gain):
    """With positive weights: a product of so many small random matrices is otherwise ill-conditioned in any format."""
    params, x = drawn(network, gain, bias=0.2 if activation == "tanh" else 0.0, positive=True)
    x = x if activation == "tanh" else 0 * x  # so that activations stay finite where gradients explode
    expected = log10_norms(factors(params, np.asarray(x, np.float64).ravel(), activation))
    for name in ("backward", "forward"):
        measured = MEASURES[name](network, params, x, average=False).log10_norm[0]
        assert measured.shape == (DEPTH,)
        assert measured.min() < -10_000 if activation == "tanh" else measured.max() > 10_000
        np.testing.assert_allclose(measured, expected[name], rtol=0, atol=1e-4)


# Programs that do not grow


def program(measure, depth):
    """The program of a network of `depth` equal layers, as handed to the compiler, without its numbers."""
    network = sequential(4, [Dense(4, "tanh")] * depth)
    shapes = jax.eval_shape(lambda: network.init(key=jax.random.key(0))), jax.ShapeDtypeStruct((2, 4), jnp.float32)
    text = jax.jit(lambda params, x: measure(network, params, x)).lower(*shapes).as_text()
    return re.sub(r"\d+", "0", text)


SAMPLED = {"probes": 2, "key": jax.random.key(0)}


@pytest.mark.parametrize(
    "measure",
    [
        *MEASURES.values(),
        log_gain_split,
        lambda *given: backward_jacobian_norms(*given, **SAMPLED),
        lambda *given: backward_jacobian_norms(*given, memory=10**8),
    ],
    ids=[*MEASURES, "split", "sampled", "budget"],
)
def test_the_program_for_8192_layers_is_that_for_8(measure):
    assert program(measure, 8192) == program(measure, 8)


def test_one_trace_of_a_layer_serves_any_depth():
    def traces(depth):
        seen = []

        def counted(s):
            seen.append(s)
            return jnp.sin(s)

        network = sequential(3, [Dense(3, counted)] * depth)
        backward_jacobian_norms(network, *drawn(network, 1.0))
        return len(seen)

    assert traces(5000) == traces(5)


# Half precision

SHORT = sequential((4, 4, 1), [Conv(2, "gelu"), MaxPool(2), Flatten(), Residual(Dense(8, "tanh")), Dense(3)])
LABELS = jnp.array([2])
ALL = MEASURES | {
    "split": lambda *given: log_gain_split(*given).weights,
    "sampled": lambda *given: backward_jacobian_norms(*given, **SAMPLED),
    "singular values": backward_singular_values,
    "largest": lambda *given: layer_extremes(*given, steps=2, key=jax.random.key(0)).largest,
    "activation gradients": lambda *given: activation_gradient_norms(*given, LABELS),
    "parameter gradients": lambda *given: parameter_gradient_norms(*given, LABELS),
}


@cache
def rounded(dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), drawn(SHORT, 1.0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ALL)
def test_short_parameters_are_the_float32_network_that_they_define(name, dtype):
    params, x = rounded(dtype)
    single = jax.tree.map(lambda leaf: leaf.astype("float32"), (params, x))
    short, long = ALL[name](SHORT, params, x), ALL[name](SHORT, *single)
    np.testing.assert_array_equal(short.log10_norm, long.log10_norm)
    np.testing.assert_array_equal(short.standard_error, long.standard_error)
    mixed = ALL[name](SHORT, params, single[1])  # a float32 input into bfloat16 parameters
    np.testing.assert_array_equal(mixed.log10_norm, long.log10_norm)


def test_unit_statistics_of_short_parameters_are_float32s():
    params, x = rounded("bfloat16")
    single = jax.tree.map(lambda leaf: leaf.astype("float32"), (params, x))
    found = [jax.tree.leaves(unit_statistics(SHORT, *given)) for given in ((params, x), single)]
    for short, long in zip(*found, strict=True):
        np.testing.assert_array_equal(short, long)


def test_float16_does_not_underflow_where_float32_does_not():
    network = mlp(4, [4] * 100, 4, activation="tanh")
    params, x = drawn(network, 1e-3)
    params, x = jax.tree.map(lambda leaf: leaf.astype("float16"), (params, x))
    found = backward_jacobian_norms(network, params, x, average=False).log10_norm[0]
    expected = log10_norms(
        slopes[:, None] * matrix for matrix, slopes in reference.jacobians(network, params, x.astype("float32"))[0]
    )
    np.testing.assert_allclose(found, expected["backward"], rtol=0, atol=1e-4)
    assert found[0] < -290


# Parameters that are not finite

HIDING = Activation("hiding", lambda s: jnp.where(jnp.isfinite(s), s, 0), lambda s: jnp.isfinite(s).astype(s.dtype))
TAIL = [MaxPool(2), Flatten(), Dense(2)]
BREAKABLE = {
    "dense": lambda f: mlp(3, [3, 3], 2, activation=f),
    "images": lambda f: sequential((4, 4, 1), [*[Conv(2, f)] * 2, *TAIL]),
    "unused pixels": lambda f: sequential(
        (5, 5, 2), [Conv(2, f, kernel_size=1, stride=2), Conv(2, f, padding="VALID")]
    ),
    "kernel beyond the image": lambda f: sequential((2, 2, 1), [Conv(1, f, kernel_size=7), Flatten(), Dense(2)]),
    "shortcut": lambda f: sequential(3, [Residual((Dense(3, f), Dense(3))), Residual(Dense(3, f), scale=0.0)]),
}
LOOKS = [*MEASURES.values(), log_gain_split]


def spoiled(params):
    """Each array's first and last entry in turn made NaN or infinite: parameters, stage, and place in it."""
    leaves, tree = jax.tree.flatten(params)
    stages = [path[0].idx for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for index, leaf in enumerate(leaves):
        for value, place in zip((np.nan, np.inf, -np.inf), (0, -1, 0), strict=True):
            broken = np.array(leaf)
            broken.flat[place] = value
            yield tree.unflatten([*leaves[:index], jnp.asarray(broken), *leaves[index + 1 :]]), stages[index], place


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        *[("dense", activation) for activation in ("relu", "hard_tanh", "sigmoid", HIDING)],
        *[
            ("images", "relu"),
            ("unused pixels", HIDING),
            ("kernel beyond the image", "relu"),
            ("shortcut", "hard_tanh"),
        ],
    ],
)
def test_a_parameter_that_is_not_finite_is_told_by_its_layers_name(name, activation):
    """Whatever hides it: zero inputs, silent and saturated units, pixels left out, parts scaled away."""
    network = BREAKABLE[name](activation)
    params, x = drawn(network, 1.0)
    first, *rest = params
    silent = (jax.tree.map(lambda leaf: leaf - 100 if leaf.ndim == 2 else leaf, first), *rest)  # biases
    for good, point in ((params, x), (silent, x), (params, 0 * x)):
        for broken, stage, place in spoiled(good):
            before = sum(each.repeats for each in network.stages[:stage])
            layer = before + (0 if place == 0 else network.stages[stage].repeats - 1)
            words = f"params of layer '{network.layer_names[layer]}' contain NaN or infinity"
            for look in LOOKS:
                with pytest.raises(ValueError, match=words):
                    look(network, broken, point)


def test_a_function_of_ones_own_called_identity_is_not_taken_for_it():
    def identity(s):
        return 3 * s

    network = sequential(2, [Dense(2, identity)])
    params, x = drawn(network, 1.0)
    weight = np.asarray(params[0]["weight"][0], np.float64)
    for measure in MEASURES.values():
        found = measure(network, params, x, average=False).log10_norm[0, 0]
        np.testing.assert_allclose(found, np.log10(3 * np.linalg.norm(weight)), atol=1e-6)
