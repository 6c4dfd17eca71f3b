"""Shortcuts against dense Jacobians, the halves' general forms, and what a network of them does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gradcourse.measure.gradients import parameter_gradient_norms
from gradcourse.measure.jacobians import backward_jacobian_norms, forward_jacobian_norms, layer_jacobian_norms
from gradcourse.nn.blocks import Residual
from gradcourse.nn.convolutions import AvgPool, Conv
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import sequential

BLOCK = Residual((Dense(7, "tanh", initializer="he_normal"), Dense(4, initializer="glorot_uniform")), scale=0.5)
IMAGES = Residual(Conv(2, "gelu", padding="CIRCULAR"), scale=2.0)
NETWORK = sequential((3, 4, 2), [IMAGES, Conv(1, stride=2), Flatten(), *[BLOCK] * 3, Dense(3)])


def test_all_norms_agree_with_dense_jacobians():
    params = NETWORK.init(key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 2))
    expected = reference.log10_norms(NETWORK, params, x)
    for name, measure in {
        "backward": backward_jacobian_norms,
        "forward": forward_jacobian_norms,
        "layer": layer_jacobian_norms,
    }.items():
        measured = measure(NETWORK, params, x, average=False).log10_norm
        np.testing.assert_allclose(measured, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), [(BLOCK, (4,)), (IMAGES, (3, 4, 2))], ids=["dense", "images"])
def test_both_ways_agree_with_autodiff(layer, shape):
    params = layer.init(shape, key=jax.random.key(0))
    h = jax.random.normal(jax.random.key(1), (2, *shape))
    v = jax.random.normal(jax.random.key(2), (3, 2, *shape))
    y, point = layer.linearize(params, h)
    np.testing.assert_allclose(y, layer.apply(params, h), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(point.pull(params, v), reference.pulled(layer, params, h, v), atol=1e-5)
    np.testing.assert_allclose(point.push(params, v), reference.pushed(layer, params, h, v), atol=1e-5)


def test_a_linear_body_grows_as_theory_says():
    r"""$E\|J\|_F^2 = n (1 + \beta^2)$ per block for a body of weight variance $1/n$."""
    beta, depth = 0.3, 20
    block = Residual(Dense(256, initializer=gaussian(1.0, 0.0)), scale=beta)
    network = sequential(256, [block] * depth)
    profile = forward_jacobian_norms(
        network,
        network.init(key=jax.random.key(0)),
        jnp.ones((1, 256)),
        average=False,
        probes=64,
        key=jax.random.key(1),
    )
    expected = np.log10(256 * (1 + beta**2) ** np.arange(1, depth + 1)) / 2
    np.testing.assert_allclose(profile.log10_norm[0], expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_saturated_units_inside_give_the_parameters_gradient_that_they_give_outside(scale):
    plain = Dense(3, "sigmoid")
    params = {"weight": 20 * jnp.eye(3)[None], "bias": jnp.zeros((1, 3))}

    def norm(layer, params):
        found = parameter_gradient_norms(
            sequential(3, [layer]), (params,), jnp.ones((1, 3)), jnp.zeros(1), loss=lambda output, _: output.sum()
        )
        return found.log10_norm[0]

    slope = np.exp(-20) / np.square(1 + np.exp(-20))
    assert norm(plain, params) == pytest.approx(np.log10(slope * np.sqrt(12)), abs=1e-6)
    block = Residual(plain, scale=scale)
    assert norm(block, {"0": params}) == pytest.approx(norm(plain, params) + np.log10(scale), abs=1e-6)
    assert norm(Residual(block), {"0": {"0": params}}) == pytest.approx(norm(block, {"0": params}), abs=1e-6)


@pytest.mark.parametrize(("layer", "shape"), [(BLOCK, (4,)), (IMAGES, (3, 4, 2))], ids=["dense", "images"])
def test_parameter_gradients_agree_with_autodiff(layer, shape):
    params = layer.init(shape, key=jax.random.key(0))
    h, v = (jax.random.normal(jax.random.key(seed), (2, *shape)) for seed in (1, 2))
    _, pull = jax.vjp(lambda params: layer.apply(params, h), params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), layer.parameter_gradient(params, h, v), pull(v)[0])


def test_a_body_that_is_scaled_away_leaves_the_identity():
    network = sequential(4, [Residual(Dense(4), scale=0.0)] * 5)
    profile = layer_jacobian_norms(network, network.init(key=jax.random.key(0)), jnp.ones((1, 4)), average=False)
    np.testing.assert_array_equal(profile.log10_norm, np.full((1, 5), np.log10(2.0)))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sequential(4, [Residual(Dense(5))]), ValueError, r"shape \(4,\) and its body returns \(5,\)"),
        (lambda: sequential((4, 4, 1), [Residual(AvgPool(2))]), ValueError, "accepted is a body that keeps the shape"),
        (lambda: Residual(()), ValueError, "body is empty"),
        (lambda: Residual((Dense(4), "relu")), TypeError, r"body\[1\]='relu' is a str"),
        (lambda: Residual(Dense(4), scale=-1.0), ValueError, "scale=-1.0 is not accepted"),
    ],
)
@pytest.mark.usefixtures("no_runtime_typecheck")
def test_bad_bodies_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
