r"""All singular values of the per-layer Jacobians, at any depth.

The Jacobian of a deep network has singular values that differ by hundreds of decades. Multiplied out, it keeps the
largest alone, and that one underflows too. So no product is formed here. With $J_l$, $h_l$, $x$ and $y$ as in
`measure.jacobians`, the sweep holds $\partial y / \partial h_l = U D Q$ in three parts: $Q$ has orthonormal rows
of ordinary size, $D$ is diagonal and kept as whole exponents of two, and $U$ is orthogonal and never needed. One layer
back, $D (Q J) = U' D' Q'$ is decomposed anew (`gradcourse.measure._graded` says how). Its rows differ in size by any
amount, and only $Q J$ has to be well conditioned: each layer adds a relative error of about machine epsilon times the
condition number of $Q J$, to every singular value alike. One is reported as zero, minus infinity in the log domain,
where a layer loses it to rounding: where $Q J$ has a pivot below 8 times machine epsilon of its largest. That is a
numerical rank; rounding itself was found to stay below 1 times machine epsilon.
"""

from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gradcourse._checks import known_name
from gradcourse._logdomain import LN10, Scaled, dot, finite, rescale
from gradcourse.measure._graded import ROUNDING, Spectrum, decomposed
from gradcourse.nn.layers import Layer, Shape, as_scaled
from gradcourse.nn.network import Network, Params, joined
from gradcourse.profile import Profile

__all__ = ["SUMMARIES", "backward_singular_values", "gain_variance", "layer_singular_values", "summary"]

SUMMARIES = ("spectral", "smallest", "mean", "mean_square", "frobenius", "rank")


def backward_singular_values(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Profile:
    r"""Returns all singular values of $\partial y / \partial h_l$, `(batch, value, layer)`, the largest first.

    `x` is `(batch, *input_shape)`; entry `l` is taken at layer `l`'s input. There is one value per output; where a
    layer's input is narrower than the output, the last ones do not exist and are NaN. A direction that a single layer
    shrinks to less than 8 times machine epsilon (1e-6 in float32) of its largest is reported as an exact zero, at this
    layer and all before it. Cost: one forward and one backward pass per output entry, and per layer and example a
    few decompositions of a matrix as large as the output. Errors as in `measure.jacobians.backward_jacobian_norms`.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(3, [3, 2], 3, activation="identity", init="orthogonal")
    >>> params = network.init(key=jax.random.key(0))
    >>> backward_singular_values(network, params, jnp.ones((1, 3))).log10_norm.round(5) + 0
    array([[[  0.,   0.,   0.],
            [  0.,   0.,   0.],
            [-inf, -inf,  nan]]])
    """
    network.check_uncoupled()
    params, x = network.measurable(params, x)
    spectra, sizes = _backward_sweep(network, params, x), _sizes(network)[:-1]
    return _profile(network, spectra, sizes, "output with respect to each layer's input")


def layer_singular_values(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Profile:
    r"""Returns all singular values of each $\partial h_{l+1} / \partial h_l$, `(batch, value, layer)`, largest first.

    There are as many values as the largest of these Jacobians has; smaller ones are filled up with NaN. Values below 8
    times machine epsilon of the layer's largest are reported as exact zeros. Cost: a dense Jacobian and its
    decomposition per layer and example, one example at a time. Errors as in `backward_singular_values`.
    """
    network.check_uncoupled()
    params, x = network.measurable(params, x)
    spectra, counts = _layer_spectra(network, params, x), [min(pair) for pair in pairwise(_sizes(network))]
    return _profile(network, spectra, counts, "each layer's output with respect to its input")


def gain_variance(network: Network, params: Params, x: Float[Array, "1 *shape"]) -> Float[Array, " layer"]:
    """Returns how unequally a network stretches directions: the variance of the squared singular values.

    They are those of the Jacobian from the input to each layer's output, and the variance is relative to their mean
    squared, as `theory.isometry.gain_variance` predicts it. For a network of layers of equal size, at one input. The
    whole Jacobian is carried forward as a matrix; mean and variance are traces.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(8, [8], 8, activation="identity", init="orthogonal")
    >>> gain_variance(network, network.init(key=jax.random.key(0)), jnp.ones((1, 8))).max() < 1e-5
    Array(True, dtype=bool)
    """

    def step(layer: Layer, p: Any, carry: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        h, v = carry
        h, point = layer.linearize(p, h)
        v = point.times_slope(point.push(p, v))
        rows = v.reshape(len(v), -1)
        squares = dot(rows, rows.T)
        mean = jnp.trace(squares) / len(v)
        return (h, v), jnp.sum(jnp.square(squares)) / len(v) / jnp.square(mean) - 1

    return joined(network.scan(step, params, (x, _basis(network.input_shape, x)))[1])


def summary(values: Profile, what: str, *, average: bool = True) -> Profile:
    """Returns one number per layer for the singular values `(..., batch, value, layer)` that a function here returns.

    | `what` | per example | over the batch |
    |---|---|---|
    | `"spectral"` | the largest | root mean square |
    | `"smallest"` | the smallest, exact zeros included | root mean square |
    | `"mean"` | the mean; Glorot & Bengio 2010 report it per layer | mean |
    | `"mean_square"` | the mean of their squares, itself and not its root | mean |
    | `"frobenius"` | the root of the sum of their squares: the Frobenius norm | root mean square |
    | `"rank"` | how many are not zero | mean |

    With `average` the profile is `(..., layer)`, the average over the batch with its standard error in decades, NaN
    for a single example; without, it is `(..., batch, layer)`. All in the log domain, so nothing underflows. What was
    reported as zero is zero here: `"rank"` is a numerical rank, and `"smallest"` may be 0 where it is merely small.
    Raises `ValueError` for an unknown `what` and for a profile without those axes.

    >>> values = Profile.from_log10([[[-300.0], [-500.0]]], layers=("0 dense",), quantity="singular values")
    >>> summary(values, "mean").log10_norm.round(3)  # log10 of 1e-300 / 2
    array([-300.301])
    """
    known_name("what", what, SUMMARIES)
    logs = values.log10_norm
    if logs.ndim < 3:
        raise ValueError(
            f"values have shape {logs.shape}; accepted is (..., batch, value, layer), as these functions return."
        )
    power = 1 if what in ("mean", "rank") else 2
    root = 2 if what in ("spectral", "smallest", "frobenius") else 1
    exists = ~np.isnan(logs)
    logs = np.where(exists, logs, -np.inf)
    if what == "spectral":
        powers = 2 * logs[..., 0, :]
    elif what == "smallest":
        last = exists.sum(axis=-2, keepdims=True) - 1
        powers = 2 * np.take_along_axis(logs, last, axis=-2)[..., 0, :]
    elif what == "rank":
        with np.errstate(divide="ignore"):
            powers = np.log10((logs > -np.inf).sum(axis=-2))
    else:
        powers = _log10_sum(power * logs)
        if what != "frobenius":
            powers = powers - np.log10(exists.sum(axis=-2))
    error: Any = 0.0
    if average:
        powers, error = _log10_mean(powers)
    quantity = f"{what.replace('_', ' ')} of the {values.quantity}"
    errors = np.asarray(error) / root
    return Profile.from_log10(powers / root, layers=values.layers, quantity=quantity, standard_error=errors)


def _log10_sum(logs: np.ndarray) -> np.ndarray:
    """The log10 of the sum of `10 ** logs` over the last axis but one."""
    return np.logaddexp.reduce(LN10 * logs, axis=-2) / LN10


def _log10_mean(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log10 of the mean of `10 ** logs` over the last axis but one, and its standard error, in decades."""
    count = logs.shape[-2]
    mean = _log10_sum(logs) - np.log10(count)
    if count == 1:
        return mean, np.full(mean.shape, np.nan)
    shares = 10 ** (logs - np.where(np.isfinite(mean), mean, 0)[..., None, :])
    return mean, shares.std(axis=-2, ddof=1) / np.sqrt(count) / LN10


@partial(jax.jit, static_argnums=0)
def _backward_sweep(network: Network, params: Params, x: Array) -> Spectrum:
    """The singular values, `(layer, batch, value)`, of the output with respect to every layer's input."""
    _, points = network.scan(lambda layer, p, h: layer.linearize_scaled(p, h), params, as_scaled(x))

    def step(layer: Layer, one: Any, carry: tuple[Array, Array]) -> Any:
        (p, point), (v, exponent) = one, carry
        v, shift, _ = rescale(point.times_slope(v), jnp.zeros_like(exponent[0]))
        v, shift, _ = rescale(point.pull(p, v), shift)
        v, spectrum = decomposed(v, exponent + shift[None])
        return (v, spectrum.exponent.T), spectrum

    identity = _basis(network.output_shape, x)
    start = identity, jnp.zeros(identity.shape[:2], jnp.int32)
    return network.scan_back(step, list(zip(params, points, strict=True)), start)[1]


@partial(jax.jit, static_argnums=0)
def _layer_spectra(network: Network, params: Params, x: Array) -> Spectrum:
    """The singular values, `(layer, batch, value)`, of every layer's own Jacobian."""
    count = max(min(pair) for pair in pairwise(_sizes(network)))

    def of_one(layer: Layer, p: Any, one: tuple[Array, Array]) -> Spectrum:
        h, own = one
        (y, _), point = layer.linearize_scaled(p, (h[None], own[None]))
        back, forth = (point.times_slope, partial(point.pull, p)), (partial(point.push, p), point.times_slope)
        first, second = back if y.size <= h.size else forth
        v, shift, _ = rescale(first(_basis(y.shape[1:] if y.size <= h.size else h.shape, y)), jnp.zeros(1, jnp.int32))
        v, shift, _ = rescale(second(v), shift)
        values = jnp.linalg.svd(v.reshape(len(v), -1), compute_uv=False)
        values = jnp.where(values <= ROUNDING * jnp.finfo(values.dtype).eps * values[:1], 0, values)
        norm, exponent = jnp.frexp(jnp.pad(values, (0, count - values.size)))
        return Spectrum(exponent + shift, norm)

    def step(layer: Layer, p: Any, h: tuple[Array, Array]) -> tuple[Any, Spectrum]:
        return layer.linearize_scaled(p, h)[0], lax.map(partial(of_one, layer, p), h)

    return joined(network.scan(step, params, as_scaled(x))[1])


def _basis(shape: Shape, like: Array) -> Float[Array, "direction batch *shape"]:
    """One unit vector per entry of `shape`, for every example of `like`."""
    size = prod(shape)
    units = jnp.eye(size, dtype=like.dtype).reshape(size, 1, *shape)
    return jnp.broadcast_to(units, (size, like.shape[0], *shape))


def _sizes(network: Network) -> list[int]:
    """The sizes of $h_0$ to $h_L$."""
    return [*(prod(stage.shape) for stage in network.stages for _ in range(stage.repeats)), prod(network.output_shape)]


def _profile(network: Network, spectra: Spectrum, sizes: list[int], quantity: str) -> Profile:
    """The profile of `(layer, batch, value)` singular values, of which each layer has as many as its size."""
    finite(Scaled(spectra.exponent, spectra.norm))
    exponent, norm = (jnp.moveaxis(part, 0, 2) for part in spectra)
    exists = jnp.broadcast_to(jnp.arange(norm.shape[1])[:, None] < jnp.asarray(sizes)[None], norm.shape)
    fraction = jnp.where(exists, jnp.log2(norm), jnp.nan)
    exponent = jnp.where(exists & (norm > 0), exponent, 0)
    name = f"singular values of the Jacobian: {quantity}"
    return Profile(exponent, fraction, jnp.zeros_like(fraction), network.layer_names, name)
