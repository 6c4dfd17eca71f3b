r"""What theory predicts for a wide random network: variances of pre-activations, and Jacobian norms, layer by layer.

`backward_jacobian_norms`, `forward_jacobian_norms` and `layer_jacobian_norms` predict what their namesakes in
`measure.jacobians` measure, as the same `Profile`. For convolutions the mean squares are carried per pixel, so that
zero padding, strides and the image at hand are accounted for.

The theory of a single layer, in `criticality`, is at hand here, too. All is in float64, whatever jax is set to.

>>> round(chi_1("tanh", sigma_w2=1.3, sigma_b2=0.05), 4)
0.8802
"""

from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float
from numpy.typing import NDArray

from gradcourse._checks import measurable_input
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.layers import Layer
from gradcourse.nn.network import Network, joined
from gradcourse.profile import Profile
from gradcourse.theory.criticality import (
    chi_1,
    critical_weight_variance,
    depth_scale,
    fixed_point,
    mean_square,
    mean_square_slope,
    moments,
    variance_map,
)
from gradcourse.theory.quadrature import gaussian_mean

__all__ = [
    "backward_jacobian_norms",
    "chi_1",
    "critical_weight_variance",
    "depth_scale",
    "fixed_point",
    "forward_jacobian_norms",
    "gaussian_mean",
    "layer_jacobian_norms",
    "mean_square",
    "mean_square_slope",
    "preactivation_variances",
    "variance_map",
]


@jax.enable_x64(True)
def preactivation_variances(network: Network, x: Float[ArrayLike, "batch *shape"]) -> NDArray[np.float64]:
    """Returns the predicted pre-activation variance per layer, averaged over batch and pixels, `(layer,)`.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(64, [100, 100], 10, activation="relu", init="he_normal")
    >>> preactivation_variances(network, np.ones((1, 64))).round(6)
    array([2., 2., 2.])
    """
    return np.asarray(joined([q.reshape(len(q), -1).mean(axis=1) for q, _ in _walk(network, _checked(network, x))]))


def backward_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the predicted root mean square, over weights and batch, of $\|\partial y / \partial h_l\|_F$.

    Each layer multiplies the square by $\sigma_w^2\, \mathbb{E} f'^2$. Covers `Dense`, `Conv`, `Flatten` and whatever
    has a `mean_square_map`; raises `TypeError` for other layers (pooled values are neither Gaussian nor independent).

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(64, [100] * 3, 10, activation="relu", init="he_normal")
    >>> backward_jacobian_norms(network, np.ones((1, 64))).log10_norm.round(4)  # log10 of sqrt(20)
    array([0.6505, 0.6505, 0.6505, 0.6505])
    """
    return _predicted(_backward, network, x, "output with respect to each layer's input")


def forward_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the same of $\|\partial h_{l+1} / \partial x\|_F$: each layer's output with respect to the input."""
    return _predicted(_forward, network, x, "each layer's output with respect to the input")


def layer_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the same of $\|\partial h_{l+1} / \partial h_l\|_F$: each layer's output with respect to its input."""
    return _predicted(_single, network, x, "each layer's output with respect to its input")


def _checked(network: Network, x: Any) -> Array:
    return measurable_input(np.asarray(x, np.float64), network.input_shape, np.float64)


@jax.enable_x64(True)
def _predicted(log_squares: Callable[[Network, Array], Array], network: Network, x: Any, quantity: str) -> Profile:
    logs = log_squares(network, _checked(network, x))  # (layer, batch)
    log_mean = jax.scipy.special.logsumexp(logs, axis=1) - log(logs.shape[1])
    return Profile.from_log10(
        np.asarray(log_mean) / (2 * log(10)),
        layers=network.layer_names,
        quantity=f"Frobenius norm of the Jacobian, mean-field prediction: {quantity}",
    )


# Every layer has one linear map A on mean squares per pixel, `(batch, 1)` for vectors and `(batch, height, width, 1)`
# for images: A carries the values' mean squares forward, its transpose a cotangent's squared norm (summed over
# channels) back, and A times (channels out / channels in) a tangent's squared norm forward.


def _maps(network: Network) -> list[Partial]:
    maps = []
    for stage in network.stages:
        if (found := stage.layer.mean_square_map(stage.shape)) is None:
            raise TypeError(
                f"network has a {stage.layer.kind} layer, for which there is no prediction; accepted are dense, conv "
                "and flatten layers. Measure it with gradcourse.measure.jacobians."
            )
        maps.append(Partial(found))
    return maps


@partial(jax.jit, static_argnums=0)
def _walk(network: Network, x: Array) -> list[tuple[Array, Array]]:
    """Per stage the pre-activation variances and mean squared slopes, `(layer, batch, *pixels)`."""

    def step(layer: Layer, forward: Any, m: Array) -> tuple[Array, tuple[Array, Array]]:
        q = forward(m) + layer.bias_variance
        m, slope2 = moments(layer.activation or ACTIVATIONS["identity"], q)
        return m, (q, slope2)

    return network.scan(step, _maps(network), jnp.mean(jnp.square(x), axis=-1, keepdims=True))[1]


@partial(jax.jit, static_argnums=0)
def _backward(network: Network, x: Array) -> Array:
    trees = []
    for stage, forward, (_, slope2) in zip(network.stages, _maps(network), _walk(network, x), strict=True):
        trees.append((slope2, Partial(jax.linear_transpose(forward, _everywhere(1, stage.shape, x)))))

    def step(layer: Layer, one: Any, carry: Any) -> Any:
        slope2, backward = one
        return _log_total(backward(slope2 * carry[0])[0], carry[1])

    shape = network.output_shape
    return network.scan_back(step, trees, (_everywhere(shape[-1], shape, x), jnp.zeros(len(x))))[1]


@partial(jax.jit, static_argnums=0)
def _forward(network: Network, x: Array) -> Array:
    trees = []
    for stage, forward, (_, slope2) in zip(network.stages, _maps(network), _walk(network, x), strict=True):
        trees.append((slope2 * stage.layer.output_shape(stage.shape)[-1] / stage.shape[-1], forward))

    def step(layer: Layer, one: Any, carry: Any) -> Any:
        factor, forward = one
        return _log_total(factor * forward(carry[0]), carry[1])

    shape = network.input_shape
    return joined(network.scan(step, trees, (_everywhere(shape[-1], shape, x), jnp.zeros(len(x))))[1])


@partial(jax.jit, static_argnums=0)
def _single(network: Network, x: Array) -> Array:
    results = []
    for stage, forward, (_, slope2) in zip(network.stages, _maps(network), _walk(network, x), strict=True):
        squares = stage.layer.output_shape(stage.shape)[-1] * slope2 * forward(_everywhere(1, stage.shape, x))[None]
        results.append(jnp.log(squares.reshape(*squares.shape[:2], -1).sum(axis=2)))
    return joined(results)


def _everywhere(value: int, shape: tuple[int, ...], x: Array) -> Array:
    return jnp.full((len(x), *shape[:-1], 1), float(value))


def _log_total(energy: Array, log_scale: Array) -> tuple[tuple[Array, Array], Array]:
    """Energies divided by each example's total, with the log of the totals so far, as the next carry; and that log."""
    total = energy.reshape(len(energy), -1).sum(axis=1)
    log_scale = log_scale + jnp.log(total)
    return (energy / total.reshape(-1, *[1] * (energy.ndim - 1)), log_scale), log_scale
