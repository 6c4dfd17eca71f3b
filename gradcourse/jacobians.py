r"""Per-layer Jacobian norms, exact, all layers in one sweep, in the log domain.

Write $h_0 = x$ for the input, $h_{l+1}$ for the output of layer $l$, $y$ for the network's output, and
$J_l = \partial h_{l+1} / \partial h_l$. Then

- `backward_jacobian_norms`: the norm of $\partial y / \partial h_l = J_{L-1} \cdots J_l$, which back-propagation
  multiplies;
- `forward_jacobian_norms`: the norm of $\partial h_{l+1} / \partial x = J_l \cdots J_0$;
- `layer_jacobian_norms`: the norm of $J_l$ alone;
- `log_gain_split`: how much of each layer's gain is due to its weights, how much to its activation.

All norms are Frobenius norms: the square root of the sum of squared entries. Each function sweeps once through the
network, whatever its depth, carrying one vector per output (or per input) and example. After every layer each
example's vectors are divided by a power of two, which is exact, and the whole exponent is kept; nothing is squared
before it is scaled. So a norm of 1e-600 is measured in float32 with all its digits.

>>> import jax
>>> from gradcourse.networks import mlp
>>> network = mlp(8, [32] * 300, 4, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> x = jax.random.normal(jax.random.key(1), (5, 8))
>>> profile = backward_jacobian_norms(network, params, x)
>>> f"{profile.log10_norm[0]:.1f}"
'-256.8'
"""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gradcourse.checks import known_false
from gradcourse.layers import Conv, Dense, Layer
from gradcourse.networks import Network, Params
from gradcourse.profile import Profile

__all__ = [
    "GainSplit",
    "backward_jacobian_norms",
    "forward_jacobian_norms",
    "layer_jacobian_norms",
    "log_gain_split",
]

LN10 = 2.302585092994046


class Scaled(NamedTuple):
    """Numbers `square * 4 ** exponent`: sums of squares that no exponent range can hold."""

    exponent: Int[Array, "*sample"]
    square: Float[Array, "*sample"]


class GainSplit(NamedTuple):
    """The log10 gain of every layer on the way back, in two parts that add up to the whole.

    - `weights`: the change of the cotangent's norm through the layer's transposed weights;
    - `activation`: its change through the layer's activation slopes;
    - `total`: from the layer's output to its input.
    """

    weights: Profile
    activation: Profile
    total: Profile


def backward_jacobian_norms(
    network: Network, params: Params, x: Float[Array, "batch *shape"], *, average: bool = True
) -> Profile:
    r"""Returns $\|\partial y / \partial h_l\|_F$ for every layer $l$: entry $l$ is taken at its input.

    `x` is `(batch, *input_shape)`. With `average` the profile has one value per layer, the root mean square over the
    batch with its standard error; without, it is `(batch, layer)`. Cost: one forward pass and one backward pass per
    output entry. Raises `ValueError` or `TypeError` for parameters or inputs that do not fit or are not finite, and
    `FloatingPointError` where activations or products overflow.

    >>> from gradcourse.networks import mlp
    >>> network = mlp(4, [4, 4], 4, activation="identity", init="orthogonal")
    >>> params = network.init(key=jax.random.key(0))
    >>> backward_jacobian_norms(network, params, jnp.ones((1, 4))).log10_norm.round(6)  # log10 of sqrt(4)
    array([0.30103, 0.30103, 0.30103])
    """
    x = network.check(params, x)
    _, norms = _backward_sweep(network, params, x)
    return _profile(network, norms, average, "output with respect to each layer's input")


def forward_jacobian_norms(
    network: Network, params: Params, x: Float[Array, "batch *shape"], *, average: bool = True
) -> Profile:
    r"""Returns $\|\partial h_{l+1} / \partial x\|_F$ for every layer $l$: entry $l$ is taken at its output.

    Arguments and errors as in `backward_jacobian_norms`. Cost: one forward pass per input entry.
    """
    x = network.check(params, x)
    return _profile(
        network, _forward_sweep(network, params, x), average, "each layer's output with respect to the input"
    )


def layer_jacobian_norms(
    network: Network, params: Params, x: Float[Array, "batch *shape"], *, average: bool = True
) -> Profile:
    r"""Returns $\|\partial h_{l+1} / \partial h_l\|_F$ for every layer $l$.

    Arguments and errors as in `backward_jacobian_norms`. Cost: two forward passes, because for dense and convolutional
    layers $\|D W\|_F^2 = \sum_j f'(s_j)^2 \sum_i w_{ij}^2$ needs no Jacobian; other layers cost one pass per output
    entry.
    """
    x = network.check(params, x)
    return _profile(network, _layer_norms(network, params, x), average, "each layer's output with respect to its input")


def log_gain_split(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> GainSplit:
    r"""Returns each layer's log10 gain on the way back, split into a weight part and an activation part.

    With $D_l$ the diagonal matrix of slopes and $W_l$ the linear map of layer $l$, $J_l = D_l W_l$, and the gain from
    $\|\partial y/\partial h_{l+1}\|$ to $\|\partial y/\partial h_l\|$ is the gain through $D_l$ times the gain through
    $W_l$. Norms are root mean squares over the batch; the standard errors are those of the ratios. Layers without
    weights (pooling, flatten) count as weights. A gain is minus infinity where the cotangent becomes exactly zero, and
    NaN where it is zero already. Arguments, cost and errors as in `backward_jacobian_norms`.

    >>> from gradcourse.networks import mlp
    >>> network = mlp(8, [32] * 4, 4, activation="sigmoid", init="standard")
    >>> split = log_gain_split(network, network.init(key=jax.random.key(0)), jnp.ones((2, 8)))
    >>> bool(abs(split.weights.log10_norm + split.activation.log10_norm - split.total.log10_norm).max() < 1e-6)
    True
    """
    x = network.check(params, x)
    middle, after = map(_finite, _backward_sweep(network, params, x))
    start = Scaled(jnp.zeros(x.shape[0], jnp.int32), jnp.full(x.shape[0], prod(network.output_shape), x.dtype))
    before = Scaled(*(jnp.concatenate([full[1:], one[None]]) for full, one in zip(after, start, strict=True)))
    parts = {"weights": (after, middle), "activation": (middle, before), "total": (after, before)}
    profiles = {}
    for name, (top, bottom) in parts.items():
        exponent, fraction, error = _log_ratio(top, bottom)
        profiles[name] = Profile(exponent, fraction, error, network.layer_names, f"log gain on the way back, {name}")
    return GainSplit(**profiles)


@partial(jax.jit, static_argnums=0)
def _backward_sweep(network: Network, params: Params, x: Array) -> tuple[Scaled, Scaled]:
    """The squared norms, `(layer, batch)`, at every layer's pre-activation and at every layer's input."""
    y, saved = network.scan(lambda layer, p, h: layer.linearize(p, h), params, x)
    v, exponent = _basis(network.output_shape, y), jnp.zeros(x.shape[0], jnp.int32)
    results = []
    for stage, stage_params, stage_saved in reversed(list(zip(network.stages, params, saved, strict=True))):

        def step(carry: Any, one: Any, stage: Any = stage) -> Any:
            v, exponent = carry
            p, point = one
            v = stage.layer.through_activation(point, v)
            v, exponent, middle = _rescale(v, exponent)
            v = stage.layer.pull(p, point, v, stage.shape)
            v, exponent, after = _rescale(v, exponent)
            return (v, exponent), (middle, after)

        (v, exponent), norms = stage.scan(step, (v, exponent), (stage_params, stage_saved), reverse=True)
        results.append(norms)
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *reversed(results))


@partial(jax.jit, static_argnums=0)
def _forward_sweep(network: Network, params: Params, x: Array) -> Scaled:
    """The squared norms, `(layer, batch)`, of every layer's output with respect to the input."""
    v, exponent, h = _basis(network.input_shape, x), jnp.zeros(x.shape[0], jnp.int32), x
    results = []
    for stage, stage_params in zip(network.stages, params, strict=True):

        def step(carry: Any, p: Any, layer: Layer = stage.layer) -> Any:
            h, v, exponent = carry
            h_next, point = layer.linearize(p, h)
            v, exponent, _ = _rescale(layer.push(p, point, v), exponent)
            v, exponent, norm = _rescale(layer.through_activation(point, v), exponent)
            return (h_next, v, exponent), norm

        (h, v, exponent), norms = stage.scan(step, (h, v, exponent), stage_params)
        results.append(norms)
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *results)


@partial(jax.jit, static_argnums=0)
def _layer_norms(network: Network, params: Params, x: Array) -> Scaled:
    """The squared norms, `(layer, batch)`, of every layer's own Jacobian."""

    def step(layer: Layer, p: Any, h: Array) -> tuple[Array, Scaled]:
        h_next, point = layer.linearize(p, h)
        zero = jnp.zeros(h.shape[0], jnp.int32)
        if not isinstance(layer, Dense | Conv):
            v, exponent, _ = _rescale(layer.through_activation(point, _basis(h_next.shape[1:], h_next)), zero)
            return h_next, _rescale(layer.pull(p, point, v, h.shape[1:]), exponent)[2]
        weight, weight_exponent = _to_unit(p["weight"], tuple(range(p["weight"].ndim)))
        row_squares = layer.linear(jnp.square(weight), jnp.ones_like(h))
        slopes, exponent, _ = _rescale(layer.through_activation(point, jnp.ones_like(h_next)[None]), zero)
        square = (jnp.square(slopes[0]) * row_squares).reshape(h.shape[0], -1).sum(axis=1)
        return h_next, Scaled(exponent + weight_exponent, square)

    _, norms = network.scan(step, params, x)
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *norms)


def _basis(shape: tuple[int, ...], like: Array) -> Array:
    """One unit vector per entry of `shape`, for every example: `(direction, batch, *shape)`."""
    size = prod(shape)
    units = jnp.eye(size, dtype=like.dtype).reshape(size, 1, *shape)
    return jnp.broadcast_to(units, (size, like.shape[0], *shape))


def _rescale(v: Array, exponent: Array) -> tuple[Array, Array, Scaled]:
    """`v`, `(direction, batch, *shape)`, with each example's largest entry brought near 1 by a power of two.

    Returns it with the exponents it now stands for, and its squared norm per example.
    """
    axes = (0, *range(2, v.ndim))
    v, shift = _to_unit(v, axes)
    exponent = exponent + shift
    return v, exponent, Scaled(exponent, jnp.sum(jnp.square(v), axis=axes))


def _to_unit(v: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """`v` divided by the power of two next to its largest entry along `axes`, and that power's exponent.

    The power is kept within what is a normal number in `v`'s dtype; processors may treat smaller ones as zero.
    """
    peak = jnp.max(jnp.abs(v), axis=axes, keepdims=True)
    limit = -int(jnp.finfo(v.dtype).minexp)
    shift = jnp.clip(jnp.frexp(peak)[1], -limit, limit)
    return v * jnp.ldexp(jnp.ones_like(peak), -shift), jnp.squeeze(shift, axes)


def _mean_square(norms: Scaled) -> tuple[Array, Array, Array]:
    """The mean over the batch of `(layer, batch)` squares: its exponent, its value, and each example's share of it."""
    exponent = jnp.max(jnp.where(norms.square > 0, norms.exponent, jnp.iinfo(jnp.int32).min), axis=1)
    exponent = jnp.where(exponent == jnp.iinfo(jnp.int32).min, 0, exponent)
    squares = jnp.ldexp(norms.square, 2 * jnp.clip(norms.exponent - exponent[:, None], -1000, 0))
    mean = squares.mean(axis=1)
    return exponent, mean, squares / jnp.where(mean == 0, 1, mean)[:, None]


def _log_error(influence: Array) -> Array:
    """The standard error of a log10 root mean square (or ratio of two) from each example's influence on it."""
    count = influence.shape[1]
    if count == 1:
        return jnp.full(influence.shape[0], jnp.nan, influence.dtype)
    return influence.std(axis=1, ddof=1) / (2 * LN10 * count**0.5)


@jax.jit
def _log_root_mean_square(norms: Scaled) -> tuple[Array, Array, Array]:
    exponent, mean, share = _mean_square(norms)
    return exponent, jnp.log2(mean) / 2, _log_error(share)


@jax.jit
def _log_ratio(top: Scaled, bottom: Scaled) -> tuple[Array, Array, Array]:
    (top_exponent, top_mean, top_share), (exponent, mean, share) = _mean_square(top), _mean_square(bottom)
    return top_exponent - exponent, (jnp.log2(top_mean) - jnp.log2(mean)) / 2, _log_error(top_share - share)


def _profile(network: Network, norms: Scaled, average: bool, quantity: str) -> Profile:
    if average:
        exponent, fraction, error = _log_root_mean_square(_finite(norms))
    else:
        exponent, square = _finite(norms).exponent.T, norms.square.T
        fraction, error = jnp.log2(square) / 2, jnp.zeros_like(square)
    return Profile(exponent, fraction, error, network.layer_names, f"Frobenius norm of the Jacobian: {quantity}")


def _finite(norms: Scaled) -> Scaled:
    """`norms` itself, unless one is not finite: from finite parameters and inputs that only comes by overflow."""
    if known_false(jnp.isfinite(norms.square).all()):
        raise FloatingPointError(
            "this network overflows its floating-point range, so its Jacobian cannot be evaluated; "
            "shrink the weights (init's scale), the depth or the input, or use a bounded activation."
        )
    return norms
