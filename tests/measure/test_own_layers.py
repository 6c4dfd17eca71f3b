"""Layers of a user's own, with `init` and `apply` and nothing else, measured against dense autodiff."""

from dataclasses import dataclass
from functools import partial
from math import log10

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
from gradcourse.measure.singular_values import backward_singular_values, layer_singular_values
from gradcourse.measure.units import unit_statistics
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.layers import Dense, Layer
from gradcourse.nn.network import sequential


@dataclass(frozen=True)
class Gated(Layer):
    """`h * sigmoid(h @ gate)`."""

    def init(self, shape, *, key):
        return {"gate": jax.random.normal(key, (*shape, *shape))}

    def apply(self, params, h):
        return h * jax.nn.sigmoid(h @ params["gate"])


@dataclass(frozen=True)
class LowRank(Layer):
    """A linear map of low rank to another width, with a rectifier of sorts behind it."""

    width: int
    rank: int = 2

    def init(self, shape, *, key):
        down, up = jax.random.split(key)
        return {
            "down": jax.random.normal(down, (*shape, self.rank)),
            "up": jax.random.normal(up, (self.rank, self.width)),
        }

    def apply(self, params, h):
        return jax.nn.softplus(h @ params["down"] @ params["up"])


NETWORK = sequential(
    4,
    [
        *[Gated()] * 3,
        LowRank(5),
        Block((Gated(), Dense(6, "tanh"))),
        *[Residual((Dense(6, "sigmoid"), Gated()), scale=0.5)] * 2,
        Dense(3),
    ],
)
CLASSES = jnp.array([0, 2])


@pytest.fixture(scope="module")
def drawn():
    """Parameters and two inputs."""
    params = NETWORK.init(key=jax.random.key(0))
    return params, jax.random.normal(jax.random.key(1), (2, 4))


@pytest.fixture(scope="module")
def jacobians(drawn):
    """Per example and layer, the layer's Jacobian in float64."""
    with jax.enable_x64(True):
        params, x = reference.in_float64(drawn)
        found = []
        for h in x:
            found.append([])
            for layer, p in NETWORK.layers(params):
                apply = partial(lambda layer, p, h: layer.apply(p, h[None])[0], layer, p)
                found[-1].append(np.asarray(jax.jacobian(apply)(h)))
                h = apply(h)
        return found


def products(layers):
    """The output's Jacobians with respect to every layer's input, and every output's with respect to the first."""
    back, forth = [layers[-1]], [layers[0]]
    for matrix in layers[-2::-1]:
        back.append(back[-1] @ matrix)
    for matrix in layers[1:]:
        forth.append(matrix @ forth[-1])
    return back[::-1], forth


def logs(matrices):
    return np.log10([np.linalg.norm(matrix) for matrix in matrices])


def test_they_tell_their_shapes_and_share_stages():
    assert [stage.repeats for stage in NETWORK.stages] == [3, 1, 1, 2, 1]
    assert [stage.shape for stage in NETWORK.stages] == [(4,), (4,), (5,), (6,), (6,)]
    assert Gated().output_shape((3,)) == (3,)


def test_norms_agree_with_dense_jacobians(drawn, jacobians):
    back, forth = zip(*map(products, jacobians), strict=True)
    expected = {backward_jacobian_norms: back, forward_jacobian_norms: forth, layer_jacobian_norms: jacobians}
    for measure, matrices in expected.items():
        found = measure(NETWORK, *drawn, average=False).log10_norm
        np.testing.assert_allclose(found, [logs(one) for one in matrices], rtol=0, atol=1e-5)


def test_all_of_a_gain_counts_as_the_weights_but_a_last_layers_slope(drawn, jacobians):
    split = log_gain_split(NETWORK, *drawn)
    back = np.array([logs(products(layers)[0]) for layers in jacobians])
    after = reference.root_mean_square(back)
    np.testing.assert_allclose(split.total.log10_norm, after - np.append(after[1:], log10(3) / 2), atol=1e-5)
    assert (np.abs(split.activation.log10_norm) > 1e-6).tolist() == [name == "4 block" for name in NETWORK.layer_names]
    parts = split.weights.log10_norm + split.activation.log10_norm
    np.testing.assert_allclose(parts, split.total.log10_norm, atol=1e-6)


def test_singular_values_agree_with_dense_jacobians(drawn, jacobians):
    whole = backward_singular_values(NETWORK, *drawn).log10_norm
    own = layer_singular_values(NETWORK, *drawn).log10_norm
    extremes = layer_extremes(NETWORK, *drawn, steps=6, key=jax.random.key(2))
    for example, layers in enumerate(jacobians):
        for index, (product, matrix) in enumerate(zip(products(layers)[0], layers, strict=True)):
            values = np.linalg.svd(product, compute_uv=False)
            zero = values < 1e-12 * values[0]  # the low rank
            np.testing.assert_allclose(whole[example, : len(values), index][~zero], np.log10(values[~zero]), atol=1e-4)
            values = np.linalg.svd(matrix, compute_uv=False)
            kept = values > 1e-6 * values[0]
            np.testing.assert_allclose(own[example, : len(values), index][kept], np.log10(values[kept]), atol=1e-4)
            assert extremes.largest.log10_norm[example, index] == pytest.approx(np.log10(values[0]), abs=1e-4)


def test_gradients_agree_with_autodiff(drawn):
    def loss(params, x):
        logits = NETWORK.apply(params, x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), CLASSES[:, None], axis=1).sum()

    params, x = drawn
    by_input = jnp.linalg.norm(jax.grad(loss, argnums=1)(params, x), axis=1)
    found = activation_gradient_norms(NETWORK, params, x, CLASSES, average=False).log10_norm[:, 0]
    np.testing.assert_allclose(found, np.log10(by_input), rtol=0, atol=1e-5)
    gradient = jax.grad(loss)(params, x)
    squares = [sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(one)) for _, one in NETWORK.layers(gradient)]
    found = parameter_gradient_norms(NETWORK, params, x, CLASSES).log10_norm
    np.testing.assert_allclose(found, np.log10(np.sqrt(squares) / 2), rtol=0, atol=1e-5)


def test_a_broken_parameter_is_found_and_units_are_unknown(drawn):
    params, x = drawn
    broken = ({"gate": params[0]["gate"].at[1, 0, 0].set(jnp.nan)}, *params[1:])
    with pytest.raises(ValueError, match="params of layer '1 layer' contain NaN or infinity"):
        backward_jacobian_norms(NETWORK, broken, x)
    saturated = unit_statistics(NETWORK, params, x).saturated
    assert np.isnan(saturated).tolist() == [name.split()[1] in ("layer", "residual") for name in NETWORK.layer_names]


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_an_output_without_a_batch_is_refused():
    class Summed(Layer):
        def apply(self, params, h):
            return h.sum(axis=0)

    with pytest.raises(ValueError, match=r"Summed.apply returns shape \(3,\) .* accepted is \(batch, ...\)"):
        sequential(3, [Summed()])
