r"""What theory predicts for a wide random network: variances of pre-activations, and Jacobian norms, layer by layer.

`backward_jacobian_norms`, `forward_jacobian_norms` and `layer_jacobian_norms` predict what their namesakes in
`measure.jacobians` measure, as the same `Profile`. For convolutions the mean squares are carried per pixel, so that
zero padding, strides and the image at hand are accounted for.

The theory of a single layer, in `variances` and `criticality`, is at hand here, too. All of it is computed in float64,
whatever jax is set to.

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
from jaxtyping import Array, ArrayLike, Float
from numpy.typing import NDArray

from gradcourse._checks import measurable_input
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.layers import Conv, Dense, Flatten
from gradcourse.nn.network import Network, Stage
from gradcourse.profile import Profile
from gradcourse.theory.criticality import chi_1, critical_weight_variance, depth_scale
from gradcourse.theory.quadrature import gaussian_mean
from gradcourse.theory.variances import fixed_point, mean_square, mean_square_slope, moments, variance_map

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

# Every layer has one linear map A on mean squares per pixel, `(batch, 1)` for vectors and
# `(batch, height, width, 1)` for images, and three uses of it: A carries the values' mean squares forward, its
# transpose carries a cotangent's squared norm (summed over channels) back, and A times (channels out / channels in)
# carries a tangent's squared norm forward.


@jax.enable_x64(True)
def preactivation_variances(network: Network, x: Float[ArrayLike, "batch *shape"]) -> NDArray[np.float64]:
    """Returns the predicted pre-activation variance per layer, averaged over batch and pixels, `(layer,)`.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(64, [100, 100], 10, activation="relu", init="he_normal")
    >>> preactivation_variances(network, np.ones((1, 64))).round(6)
    array([2., 2., 2.])
    """
    return np.concatenate(
        [np.asarray(q.reshape(len(q), -1).mean(axis=1)) for q, _ in _walk(network, _check(network, x))]
    )


@jax.enable_x64(True)
def backward_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the predicted root mean square, over weights and batch, of $\|\partial y / \partial h_l\|_F$.

    Each layer multiplies the square by $\sigma_w^2\, \mathbb{E} f'^2$. Covers `Dense`, `Conv` and `Flatten`; raises
    `TypeError` for other layers (pooled values are neither Gaussian nor independent).

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(64, [100] * 3, 10, activation="relu", init="he_normal")
    >>> backward_jacobian_norms(network, np.ones((1, 64))).log10_norm.round(4)  # log10 of sqrt(20)
    array([0.6505, 0.6505, 0.6505, 0.6505])
    """
    return _predicted(network, _backward(network, _check(network, x)), "output with respect to each layer's input")


@jax.enable_x64(True)
def forward_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the predicted root mean square of $\|\partial h_{l+1} / \partial x\|_F$; otherwise as above."""
    return _predicted(network, _forward(network, _check(network, x)), "each layer's output with respect to the input")


@jax.enable_x64(True)
def layer_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the predicted root mean square of $\|\partial h_{l+1} / \partial h_l\|_F$; otherwise as above."""
    return _predicted(network, _single(network, _check(network, x)), "each layer's output with respect to its input")


def _check(network: Network, x: Any) -> Array:
    for stage in network.stages:
        if not isinstance(stage.layer, Dense | Conv | Flatten):
            raise TypeError(
                f"network has a {stage.layer.kind} layer, for which there is no prediction; accepted are dense, conv "
                "and flatten layers. Measure it with gradcourse.measure.jacobians."
            )
    return measurable_input(np.asarray(x, np.float64), network.input_shape, np.float64)


def _mean_square_map(stage: Stage) -> Callable[[Array], Array]:
    """The stage's map A."""
    layer: Any = stage.layer
    if isinstance(layer, Flatten):
        return lambda m: m.reshape(len(m), -1).mean(axis=1, keepdims=True)
    moment = layer.init_scheme.second_moment(layer.weight_shape(stage.shape)) * stage.shape[-1]
    if isinstance(layer, Dense):
        return lambda m: moment * m
    kernel = jnp.asarray(moment)[..., None, None]
    return lambda m: layer.linear(kernel, m)


def _pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], 1)


@partial(jax.jit, static_argnums=0)
def _walk(network: Network, x: Array) -> list[tuple[Array, Array]]:
    """Per stage the pre-activation variances and mean squared slopes, `(layer, batch, *pixels)`."""
    m, results = jnp.mean(jnp.square(x), axis=-1, keepdims=True), []
    for stage in network.stages:
        forward = _mean_square_map(stage)
        activation = stage.layer.activation or ACTIVATIONS["identity"]
        sigma_b = stage.layer.init_scheme.sigma_b if hasattr(stage.layer, "init_scheme") else 0.0

        def step(m: Array, _: Any, forward: Any = forward, activation: Any = activation, sigma_b: Any = sigma_b) -> Any:
            q = forward(m) + sigma_b**2
            m, slope2 = moments(activation, q)
            return m, (q, slope2)

        m, result = stage.scan(step, m, None)
        results.append(result)
    return results


@partial(jax.jit, static_argnums=0)
def _backward(network: Network, x: Array) -> Array:
    """The log of the squared norms, `(layer, batch)`."""
    size = network.output_shape[-1]
    carry = jnp.full((len(x), *_pixels(network.output_shape)), float(size)), jnp.zeros(len(x))
    results = []
    for stage, (_, slope2) in reversed(list(zip(network.stages, _walk(network, x), strict=True))):
        like = jax.ShapeDtypeStruct((len(x), *_pixels(stage.shape)), jnp.float64)
        backward = jax.linear_transpose(_mean_square_map(stage), like)

        def step(carry: Any, slope2: Array, backward: Any = backward) -> Any:
            return _log_total(backward(slope2 * carry[0])[0], carry[1])

        carry, result = stage.scan(step, carry, slope2, reverse=True)
        results.append(result)
    return jnp.concatenate(results[::-1])


@partial(jax.jit, static_argnums=0)
def _forward(network: Network, x: Array) -> Array:
    """The log of the squared norms, `(layer, batch)`."""
    size = network.input_shape[-1]
    carry = jnp.full((len(x), *_pixels(network.input_shape)), float(size)), jnp.zeros(len(x))
    results = []
    for stage, (_, slope2) in zip(network.stages, _walk(network, x), strict=True):
        forward, widening = _mean_square_map(stage), stage.layer.output_shape(stage.shape)[-1] / stage.shape[-1]

        def step(carry: Any, slope2: Array, forward: Any = forward, widening: float = widening) -> Any:
            return _log_total(widening * slope2 * forward(carry[0]), carry[1])

        carry, result = stage.scan(step, carry, slope2)
        results.append(result)
    return jnp.concatenate(results)


@partial(jax.jit, static_argnums=0)
def _single(network: Network, x: Array) -> Array:
    """The log of the squared norms, `(layer, batch)`."""
    results = []
    for stage, (_, slope2) in zip(network.stages, _walk(network, x), strict=True):
        rows = _mean_square_map(stage)(jnp.ones((len(x), *_pixels(stage.shape))))
        squares = stage.layer.output_shape(stage.shape)[-1] * slope2 * rows[None]
        results.append(jnp.log(squares.reshape(*squares.shape[:2], -1).sum(axis=2)))
    return jnp.concatenate(results)


def _log_total(energy: Array, log_scale: Array) -> tuple[tuple[Array, Array], Array]:
    """The next carry, energies divided by each example's total and the log of the totals so far; and that log."""
    total = energy.reshape(len(energy), -1).sum(axis=1)
    log_scale = log_scale + jnp.log(total)
    return (energy / total.reshape(-1, *[1] * (energy.ndim - 1)), log_scale), log_scale


def _predicted(network: Network, log_squares: Array, quantity: str) -> Profile:
    log_mean = jax.scipy.special.logsumexp(log_squares, axis=1) - log(log_squares.shape[1])
    return Profile.from_log10(
        np.asarray(log_mean) / (2 * log(10)),
        layers=network.layer_names,
        quantity=f"Frobenius norm of the Jacobian, mean-field prediction: {quantity}",
    )
