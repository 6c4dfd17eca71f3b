r"""What theory predicts for wide random networks: the variance map and the Jacobian norms that follow from it.

In a wide layer with independent zero-mean weights a pre-activation is close to Gaussian. Its variance $q$ follows the
*variance map* (Poole et al. 2016, Schoenholz et al. 2017)

$$q_{l+1} = \sigma_w^2\, \mathbb{E} f(\sqrt{q_l}\, z)^2 + \sigma_b^2, \qquad z \sim N(0, 1),$$

and the mean square of a back-propagated cotangent is multiplied at every layer by
$\chi = \sigma_w^2\, \mathbb{E} f'(\sqrt{q}\, z)^2$. At the map's fixed point this factor is `chi_1`: below 1 gradients
vanish, above 1 they explode, and $\xi = -1/\ln \chi_1$ layers change the mean square by a factor $e$.

`backward_jacobian_norms`, `forward_jacobian_norms` and `layer_jacobian_norms` predict what their namesakes in
`measure.jacobians` measure, as the same `Profile`. For convolutions the mean squares are carried per pixel, so that
zero padding, strides and the image at hand are accounted for.

Everything here is computed in float64, whatever jax is set to.

>>> float(round(chi_1("tanh", sigma_w2=1.3, sigma_b2=0.05), 4))
0.8802
>>> float(round(critical_weight_variance("tanh", sigma_b2=0.05), 5))
1.76095
"""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from math import log, pi, sqrt
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float
from numpy.typing import NDArray

from gradcourse._checks import measurable_input, positive_number
from gradcourse.nn.activations import ACTIVATIONS, Activation, resolve
from gradcourse.nn.layers import Layer
from gradcourse.nn.network import Network, Stage, joined
from gradcourse.profile import Profile

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

NODES = 60  # per panel
REACH = 12.0  # standard deviations; beyond it the Gaussian weighs less than 1e-31
KNEE = 4.0  # where the bend of sigmoid-like functions ends

P = ParamSpec("P")
R = TypeVar("R")


def _in_float64(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def in_float64(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return in_float64


@lru_cache
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(NODES)


def _quadrature(kinks: tuple[float, ...], deviation: Array) -> tuple[Array, Array]:
    """Nodes `z` and weights, `(*deviation, node)`, with which a sum is the mean of a function of `deviation * z`.

    The textbook's Gauss-Hermite rule is off by several percent at a kink and for deviations above 5. Here the line is
    cut at the function's kinks and at its knees, and each panel gets a Gauss-Legendre rule; where Gauss-Hermite is
    good both agree.
    """
    unit, unit_weights = (jnp.asarray(part).reshape([1] * (deviation.ndim + 1) + [-1]) for part in _legendre())
    cuts = sorted({*kinks, -KNEE, 0.0, KNEE})
    inner = [jnp.clip(cut / deviation, -REACH, REACH) for cut in cuts]
    edges = jnp.stack([jnp.full_like(deviation, -REACH), *inner, jnp.full_like(deviation, REACH)], axis=-1)
    half, middle = jnp.diff(edges)[..., None] / 2, (edges[..., 1:] + edges[..., :-1])[..., None] / 2
    nodes = middle + half * unit
    weights = half * unit_weights * jnp.exp(-jnp.square(nodes) / 2) / sqrt(2 * pi)
    return nodes.reshape(*deviation.shape, -1), weights.reshape(*deviation.shape, -1)


@partial(jax.jit, static_argnums=0)
def _moments(activation: Activation, q: Array) -> tuple[Array, Array]:
    """The means of `f**2` and `f'**2` at pre-activation variances `q`, elementwise."""
    deviation = jnp.sqrt(jnp.maximum(q, 1e-300))
    nodes, weights = _quadrature(activation.kinks, deviation)
    s = deviation[..., None] * nodes
    return (
        jnp.sum(weights * jnp.square(activation(s)), axis=-1),
        jnp.sum(weights * jnp.square(activation.slope(s)), axis=-1),
    )


@_in_float64
def gaussian_mean(function: Any, q: float, *, kinks: tuple[float, ...] = ()) -> float:
    """Returns the mean of `function(s)` for `s` Gaussian with mean 0 and variance `q`, by quadrature in float64.

    `function` is elementwise; `kinks` are the points where it is not smooth.

    >>> round(gaussian_mean(jnp.square, 0.7), 12)
    0.7
    """
    deviation = jnp.asarray(sqrt(positive_number("q", q)))
    nodes, weights = _quadrature(kinks, deviation)
    return float(jnp.sum(weights * function(deviation * nodes)))


@_in_float64
def mean_square(activation: Any, q: float) -> float:
    """Returns the mean of `f(s)**2` for a Gaussian pre-activation of variance `q`."""
    return float(_moments(resolve(activation), jnp.asarray(positive_number("q", q, zero=True)))[0])


@_in_float64
def mean_square_slope(activation: Any, q: float) -> float:
    """Returns the mean of `f'(s)**2` for a Gaussian pre-activation of variance `q`.

    >>> round(mean_square_slope("sigmoid", 1.0), 6)
    0.044836
    """
    return float(_moments(resolve(activation), jnp.asarray(positive_number("q", q, zero=True)))[1])


def variance_map(activation: Any, q: float, *, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    r"""Returns the next layer's pre-activation variance, $\sigma_w^2\, \mathbb{E} f(\sqrt{q} z)^2 + \sigma_b^2$."""
    sigma_w2 = positive_number("sigma_w2", sigma_w2)
    return sigma_w2 * mean_square(activation, q) + positive_number("sigma_b2", sigma_b2, zero=True)


@_in_float64
def fixed_point(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0, start: float = 1.0) -> float:
    r"""Returns `q_star`, where the variance map started from `start` comes to rest.

    Raises `ValueError` where it does not within 100,000 layers: the variance then grows without bound (a rectifier with
    $\sigma_w^2 > 2$) or creeps to 0 along the critical line.

    >>> round(fixed_point("tanh", sigma_w2=2.0, sigma_b2=0.05), 4)
    0.7218
    """
    start = positive_number("start", start)
    sigma_w2, sigma_b2 = positive_number("sigma_w2", sigma_w2), positive_number("sigma_b2", sigma_b2, zero=True)
    q, change = map(float, _settle(resolve(activation), start, sigma_w2, sigma_b2))
    if change <= 1e-13 * q or q < 1e-300:
        return q
    raise ValueError(
        f"sigma_w2={sigma_w2!r}, sigma_b2={sigma_b2!r} give {resolve(activation).name} no fixed point that is reached "
        f"from {start!r} (the variance stands at {q:.3g}); accepted are settings where it settles. Use "
        "preactivation_variances for a finite depth."
    )


@partial(jax.jit, static_argnums=0)
def _settle(activation: Activation, start: Array, sigma_w2: Array, sigma_b2: Array) -> tuple[Array, Array]:
    """The variance where the map from `start` settles, leaves every range or is given up on, and its last change."""

    def moving(state: tuple[Array, Array, Array]) -> Array:
        layer, q, change = state
        return (layer < 100_000) & (change > 1e-13 * q) & (q >= 1e-300) & (q <= 1e30)

    def one_layer(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        layer, previous, _ = state
        q = sigma_w2 * _moments(activation, previous)[0] + sigma_b2
        return layer + 1, q, jnp.abs(q - previous)

    _, q, change = jax.lax.while_loop(moving, one_layer, (jnp.asarray(0), jnp.asarray(start), jnp.asarray(jnp.inf)))
    return q, change


def chi_1(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    r"""Returns $\chi_1 = \sigma_w^2\, \mathbb{E} f'(\sqrt{q^*} z)^2$, the factor per layer on a squared cotangent."""
    q_star = fixed_point(activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return sigma_w2 * mean_square_slope(activation, q_star)


def depth_scale(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    r"""Returns $\xi = -1 / \ln \chi_1$: the layers over which a cotangent's mean square falls by $e$.

    Negative where it grows.

    >>> round(depth_scale("tanh", sigma_w2=1.3, sigma_b2=0.05), 3)
    7.834
    """
    log_chi = log(chi_1(activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2))
    return -1 / log_chi if abs(log_chi) > 1e-12 else float("inf")  # 1e-12: what rounding leaves of 0


def critical_weight_variance(activation: Any, *, sigma_b2: float = 0.0) -> float:
    r"""Returns the weight variance $\sigma_w^2$ on the critical line, where `chi_1` is 1, for a bias variance.

    On the line both $\sigma_w^2 = 1 / \mathbb{E} f'^2$ and $q = \sigma_w^2\, \mathbb{E} f^2 + \sigma_b^2$ hold; this
    solves them for $q$ by bisection. Raises `ValueError` where they have no solution (a rectifier with biases,
    softplus) or one from which the variance runs away (gelu or silu with small biases).

    >>> critical_weight_variance("relu")
    2.0
    >>> round(critical_weight_variance("sigmoid"), 2)
    103.01
    """
    positive_number("sigma_b2", sigma_b2, zero=True)

    def excess(q: float) -> float:
        return mean_square(activation, q) / mean_square_slope(activation, q) + sigma_b2 - q

    low, high = 1e-24, 1e4
    at_low = excess(low)
    at_zero = abs(at_low) < 1e-9 * low  # q_star = 0 (or any q, for scale-free functions) lies on the line
    if at_zero or at_low > 0 > excess(high):
        for _ in range(0 if at_zero else 200):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        q = low
        sigma_w2 = round(1 / mean_square_slope(activation, q), 13)
        above = max(1.01 * q, 0.01)
        if variance_map(activation, above, sigma_w2=sigma_w2, sigma_b2=sigma_b2) <= above * (1 + 1e-9):
            return sigma_w2
    raise ValueError(
        f"sigma_b2={sigma_b2!r} gives {resolve(activation).name} no critical weight variance at which the variance "
        "settles; accepted are activations that saturate (tanh, erf, sigmoid, ...) at any sigma_b2, and scale-free "
        "ones (relu, leaky_relu, identity) at sigma_b2=0."
    )


# Predictions for a network. Every layer has one linear map A on mean squares per pixel, `(batch, 1)` for vectors and
# `(batch, height, width, 1)` for images, and three uses of it: A carries the values' mean squares forward, its
# transpose carries a cotangent's squared norm (summed over channels) back, and A times (channels out / channels in)
# carries a tangent's squared norm forward.


@_in_float64
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


@_in_float64
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


@_in_float64
def forward_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the predicted root mean square of $\|\partial h_{l+1} / \partial x\|_F$; otherwise as above."""
    return _predicted(network, _forward(network, _check(network, x)), "each layer's output with respect to the input")


@_in_float64
def layer_jacobian_norms(network: Network, x: Float[ArrayLike, "batch *shape"]) -> Profile:
    r"""Returns the predicted root mean square of $\|\partial h_{l+1} / \partial h_l\|_F$; otherwise as above."""
    return _predicted(network, _single(network, _check(network, x)), "each layer's output with respect to its input")


def _check(network: Network, x: Any) -> Array:
    for stage in network.stages:
        if stage.layer.mean_square_map(stage.shape) is None:
            raise TypeError(
                f"network has a {stage.layer.kind} layer, for which there is no prediction; accepted are dense, conv "
                "and flatten layers. Measure it with gradcourse.measure.jacobians."
            )
    return measurable_input(np.asarray(x, np.float64), network.input_shape, np.float64)


def _mean_square_map(stage: Stage) -> Callable[[Array], Array]:
    """The stage's map A, which `_check` has found to exist."""
    found = stage.layer.mean_square_map(stage.shape)
    assert found is not None
    return found


def _pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], 1)


@partial(jax.jit, static_argnums=0)
def _walk(network: Network, x: Array) -> list[tuple[Array, Array]]:
    """Per stage the pre-activation variances and mean squared slopes, `(layer, batch, *pixels)`."""
    m, results = jnp.mean(jnp.square(x), axis=-1, keepdims=True), []
    for stage in network.stages:
        forward = _mean_square_map(stage)
        activation = stage.layer.activation or ACTIVATIONS["identity"]
        sigma_b2 = stage.layer.bias_variance

        def step(
            m: Array, _: Any, forward: Any = forward, activation: Any = activation, sigma_b2: Any = sigma_b2
        ) -> Any:
            q = forward(m) + sigma_b2
            m, slope2 = _moments(activation, q)
            return m, (q, slope2)

        m, result = stage.scan(step, m, None)
        results.append(result)
    return results


@partial(jax.jit, static_argnums=0)
def _backward(network: Network, x: Array) -> Array:
    """The log of the squared norms, `(layer, batch)`."""
    size = network.output_shape[-1]
    carry = jnp.full((len(x), *_pixels(network.output_shape)), float(size)), jnp.zeros(len(x))
    trees = []
    for stage, (_, slope2) in zip(network.stages, _walk(network, x), strict=True):
        like = jax.ShapeDtypeStruct((len(x), *_pixels(stage.shape)), jnp.float64)
        trees.append((slope2, Partial(jax.linear_transpose(_mean_square_map(stage), like))))

    def step(layer: Layer, one: Any, carry: Any) -> Any:
        slope2, backward = one
        return _log_total(backward(slope2 * carry[0])[0], carry[1])

    return network.scan_back(step, trees, carry)[1]


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
    return joined(results)


@partial(jax.jit, static_argnums=0)
def _single(network: Network, x: Array) -> Array:
    """The log of the squared norms, `(layer, batch)`."""
    results = []
    for stage, (_, slope2) in zip(network.stages, _walk(network, x), strict=True):
        rows = _mean_square_map(stage)(jnp.ones((len(x), *_pixels(stage.shape))))
        squares = stage.layer.output_shape(stage.shape)[-1] * slope2 * rows[None]
        results.append(jnp.log(squares.reshape(*squares.shape[:2], -1).sum(axis=2)))
    return joined(results)


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
