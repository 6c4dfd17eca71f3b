r"""All singular values of the per-layer Jacobians, at any depth.

The Jacobian of a deep network has singular values that differ by hundreds of decades. Multiplied out, it keeps the
largest alone, and that one underflows too. So no product is formed here. With $J_l$, $h_l$, $x$ and $y$ as in
`measure.jacobians`, the sweep holds $\partial y / \partial h_l = U D Q$ in three parts: $Q$ has orthonormal rows
of ordinary size, $D$ is diagonal and kept as whole exponents of two, and $U$ is orthogonal and never needed. One layer
back, $D (Q J) = U' D' Q'$ is decomposed anew. Its rows differ in size by any amount, and only $Q J$ has to be well
conditioned:

1. Elimination with pivoting tells the numerical rank of $Q J$, and drops what is zero.
2. Elimination again, in the order of the scaled rows, makes $D (Q J) = C Z$, where $Z$ has orthonormal rows and the
   columns of $C$, divided by their sizes, are a well-conditioned matrix; G. W. Stewart, "On graded QR decompositions
   of products of matrices", Electronic Transactions on Numerical Analysis 3 (1995).
3. Jacobi rotations make the columns of $C$ orthogonal, whose sizes then are the singular values; each with a small
   *relative* error, as J. Demmel and K. Veselić proved, "Jacobi's method is more accurate than QR", SIAM J. Matrix
   Anal. Appl. 13 (1992).

So each layer adds a relative error of about machine epsilon times the condition number of $Q J$, to every singular
value alike, however far they are apart. A singular value is reported as zero, minus infinity in the log domain, where
a layer loses it to rounding: where $Q J$ has a pivot below 8 times machine epsilon of its largest. That is a numerical
rank; rounding itself was found to stay below 1 times machine epsilon.

>>> import jax
>>> from gradcourse.nn.network import mlp
>>> network = mlp(8, [8] * 200, 3, activation="sigmoid")
>>> params = network.init(key=jax.random.key(0))
>>> values = backward_singular_values(network, params, jax.numpy.ones((1, 8)))
>>> print(values.log10_norm[0, :, 0].round(1))
[-174.5 -181.3 -189.3]
"""

from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gradcourse._checks import known_name
from gradcourse._logdomain import Scaled, dot, finite, rescale, to_unit
from gradcourse.nn.layers import Layer, Shape, as_scaled, linearized
from gradcourse.nn.network import Network, Params
from gradcourse.profile import Profile

__all__ = ["SUMMARIES", "backward_singular_values", "forward_singular_values", "layer_singular_values", "summary"]

SUMMARIES = ("spectral", "smallest", "mean", "mean_square", "frobenius", "rank")
NO_SIZE = -(2**29)  # the exponent of a row that is zero: below every other, and far from overflow
ROUNDING = 8  # times machine epsilon and the largest: what is zero
APART = 60  # columns further apart than 2 ** 60 turn as if they were infinitely far apart
SWEEPS = 30  # rotations converge quadratically, in about six sweeps over all pairs and in one or two when graded


class Spectrum(NamedTuple):
    """Singular values `norm * 2 ** exponent`, the largest first, `norm` in [0.5, 1) or exactly 0."""

    exponent: Int[Array, "*batch value"]
    norm: Float[Array, "*batch value"]


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
    sizes = [prod(shape) for shape in _shapes(network)[:-1]]
    return _profile(network, _backward_sweep(network, params, x), sizes, "output with respect to each layer's input")


def forward_singular_values(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Profile:
    r"""Returns all singular values of $\partial h_{l+1} / \partial x$, `(batch, value, layer)`, the largest first.

    Entry `l` is taken at layer `l`'s output, and there is one value per input entry. A direction that a single layer
    shrinks to less than 8 times machine epsilon of its largest is reported as an exact zero, at this layer and all
    behind it. Otherwise as `backward_singular_values`.
    """
    network.check_uncoupled()
    params, x = network.measurable(params, x)
    sizes = [prod(shape) for shape in _shapes(network)[1:]]
    return _profile(network, _forward_sweep(network, params, x), sizes, "each layer's output with respect to the input")


def layer_singular_values(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Profile:
    r"""Returns all singular values of each $\partial h_{l+1} / \partial h_l$, `(batch, value, layer)`, largest first.

    There are as many values as the largest of these Jacobians has; smaller ones are filled up with NaN. Values below 8
    times machine epsilon (1e-6 in float32) of the layer's largest are reported as exact zeros. Cost: a dense
    Jacobian, outputs times inputs, and its decomposition per layer and example, one example at a time. Errors as in
    `gradcourse.measure.jacobians.backward_jacobian_norms`.
    """
    network.check_uncoupled()
    params, x = network.measurable(params, x)
    sizes = [prod(shape) for shape in _shapes(network)]
    counts = [min(pair) for pair in pairwise(sizes)]
    spectra = _layer_spectra(network, params, x)
    return _profile(network, spectra, counts, "each layer's output with respect to its input")


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
    for a single example; without, it is `(..., batch, layer)`. All of it is done in the log domain, so nothing
    underflows. Values that were reported as zeros because they were below rounding, 8 times machine epsilon of a
    layer's largest, are zeros here: `"rank"` is a numerical rank, and `"smallest"` may be 0 where it is merely small.
    Raises `ValueError` for an unknown `what` and for a profile without those axes.

    >>> values = Profile.from_log10([[[-300.0], [-500.0]]], layers=("0 dense",), quantity="singular values")
    >>> summary(values, "mean").log10_norm.round(3)  # log10 of 1e-300 / 2
    array([-300.301])
    """
    known_name("what", what, SUMMARIES)
    logs = values.log10_norm
    if logs.ndim < 3:
        raise ValueError(
            f"values have shape {logs.shape}; accepted is (..., batch, value, layer), "
            "as backward_singular_values returns it."
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
        powers = _log10_sum(power * logs, axis=-2)
        if what != "frobenius":
            powers = powers - np.log10(exists.sum(axis=-2))
    error: Any = 0.0
    if average:
        powers, error = _log10_mean(powers, axis=-2)
    quantity = f"{what.replace('_', ' ')} of the {values.quantity}"
    return Profile.from_log10(
        powers / root, layers=values.layers, quantity=quantity, standard_error=np.asarray(error) / root
    )


def _log10_sum(logs: np.ndarray, axis: int) -> np.ndarray:
    """The log10 of the sum of `10 ** logs`."""
    peak = logs.max(axis=axis, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0)
    with np.errstate(divide="ignore"):
        return np.log10((10 ** (logs - peak)).sum(axis=axis)) + np.squeeze(peak, axis)


def _log10_mean(logs: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The log10 of the mean of `10 ** logs` and its standard error, in decades."""
    count = logs.shape[axis]
    mean = _log10_sum(logs, axis) - np.log10(count)
    if count == 1:
        return mean, np.full(mean.shape, np.nan)
    shares = 10 ** (logs - np.expand_dims(np.where(np.isfinite(mean), mean, 0), axis))
    return mean, shares.std(axis=axis, ddof=1) / np.sqrt(count) / np.log(10)


# The sweeps


@partial(jax.jit, static_argnums=0)
def _backward_sweep(network: Network, params: Params, x: Array) -> Spectrum:
    """The singular values, `(layer, batch, value)`, of the output with respect to every layer's input."""
    _, saved = network.scan(linearized, params, as_scaled(x))
    v, exponent = _start(network.output_shape, x)
    results = []
    for stage, stage_params, stage_saved in reversed(list(zip(network.stages, params, saved, strict=True))):

        def step(carry: Any, one: Any, stage: Any = stage) -> Any:
            v, exponent = carry
            p, point = one
            v, shift, _ = rescale(stage.layer.through_activation(point, v), jnp.zeros_like(exponent[0]))
            v, shift, _ = rescale(stage.layer.pull(p, point, v, stage.shape), shift)
            v, spectrum = _decomposed(v, exponent + shift[None])
            return (v, spectrum.exponent.T), spectrum

        (v, exponent), spectra = stage.scan(step, (v, exponent), (stage_params, stage_saved), reverse=True)
        results.append(spectra)
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *reversed(results))


@partial(jax.jit, static_argnums=0)
def _forward_sweep(network: Network, params: Params, x: Array) -> Spectrum:
    """The singular values, `(layer, batch, value)`, of every layer's output with respect to the input."""
    (v, exponent), h = _start(network.input_shape, x), as_scaled(x)
    results = []
    for stage, stage_params in zip(network.stages, params, strict=True):

        def step(carry: Any, p: Any, layer: Layer = stage.layer) -> Any:
            h, v, exponent = carry
            h, point = linearized(layer, p, h)
            v, shift, _ = rescale(layer.push(p, point, v), jnp.zeros_like(exponent[0]))
            v, shift, _ = rescale(layer.through_activation(point, v), shift)
            v, spectrum = _decomposed(v, exponent + shift[None])
            return (h, v, spectrum.exponent.T), spectrum

        (h, v, exponent), spectra = stage.scan(step, (h, v, exponent), stage_params)
        results.append(spectra)
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *results)


@partial(jax.jit, static_argnums=0)
def _layer_spectra(network: Network, params: Params, x: Array) -> Spectrum:
    """The singular values, `(layer, batch, value)`, of every layer's own Jacobian."""
    sizes = [prod(shape) for shape in _shapes(network)]
    count = max(min(pair) for pair in pairwise(sizes))

    def of_one(layer: Layer, p: Any, one: tuple[Array, Array]) -> Spectrum:
        h, own = one
        (y, _), point = linearized(layer, p, (h[None], own[None]))
        if y.size <= h.size:
            v, shift, _ = rescale(layer.through_activation(point, _basis(y.shape[1:], y)), jnp.zeros(1, jnp.int32))
            v, shift, _ = rescale(layer.pull(p, point, v, h.shape), shift)
        else:
            v, shift, _ = rescale(layer.push(p, point, _basis(h.shape, y)), jnp.zeros(1, jnp.int32))
            v, shift, _ = rescale(layer.through_activation(point, v), shift)
        matrix = v.reshape(v.shape[0], -1)
        values = jnp.linalg.svd(matrix, compute_uv=False)
        values = jnp.where(values <= ROUNDING * jnp.finfo(values.dtype).eps * values[:1], 0, values)
        norm, exponent = jnp.frexp(jnp.pad(values, (0, count - values.size)))
        return Spectrum(exponent + shift, norm)

    def step(layer: Layer, p: Any, h: tuple[Array, Array]) -> tuple[Any, Spectrum]:
        return linearized(layer, p, h)[0], lax.map(partial(of_one, layer, p), h)

    _, spectra = network.scan(step, params, as_scaled(x))
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *spectra)


def _basis(shape: Shape, like: Array) -> Float[Array, "direction batch *shape"]:
    """One unit vector per entry of `shape`, for every example of `like`."""
    size = prod(shape)
    units = jnp.eye(size, dtype=like.dtype).reshape(size, 1, *shape)
    return jnp.broadcast_to(units, (size, like.shape[0], *shape))


def _start(shape: Shape, like: Array) -> tuple[Float[Array, "value batch *shape"], Int[Array, "value batch"]]:
    """The decomposition of the identity, with which a sweep begins: rows, and their exponents."""
    return _basis(shape, like), jnp.zeros((prod(shape), like.shape[0]), jnp.int32)


def _shapes(network: Network) -> list[Shape]:
    """The shapes of $h_0$ to $h_L$."""
    return [*(stage.shape for stage in network.stages for _ in range(stage.repeats)), network.output_shape]


def _profile(network: Network, spectra: Spectrum, sizes: list[int], quantity: str) -> Profile:
    """The profile of `(layer, batch, value)` singular values, of which each layer has as many as its size."""
    finite(Scaled(spectra.exponent, spectra.norm))
    exponent, norm = (jnp.moveaxis(part, 0, 2) for part in spectra)
    exists = jnp.arange(norm.shape[1])[:, None] < jnp.asarray(sizes)[None]
    exists = jnp.broadcast_to(exists[None], norm.shape)
    fraction = jnp.where(exists, jnp.log2(norm), jnp.nan)
    exponent = jnp.where(exists & (norm > 0), exponent, 0)
    name = f"singular values of the Jacobian: {quantity}"
    return Profile(exponent, fraction, jnp.zeros_like(fraction), network.layer_names, name)


# The decomposition of a matrix whose rows differ in size by any amount


def _decomposed(
    v: Float[Array, "value batch *shape"], exponent: Int[Array, "value batch"]
) -> tuple[Float[Array, "value batch *shape"], Spectrum]:
    """Returns orthogonal rows of the same span, `(value, batch, *shape)`, and the singular values `(batch, value)`.

    The matrix has the rows `v * 2 ** exponent`. Up to an orthogonal factor on the left it is the matrix of the rows
    returned times two to the power of the exponents returned.
    """
    rows = jnp.moveaxis(v, 1, 0).reshape(v.shape[1], v.shape[0], -1)
    spectrum, rows = jax.vmap(_graded_decomposition)(rows, exponent.T)
    return jnp.moveaxis(rows, 0, 1).reshape(v.shape), spectrum


def _graded_decomposition(
    rows: Float[Array, "value width"], exponent: Int[Array, " value"]
) -> tuple[Spectrum, Float[Array, "value width"]]:
    """The singular values of `rows * 2 ** exponent`, and its right singular vectors times their `norm`."""
    right, left = jnp.linalg.qr(rows.T)  # rows = left.T @ right.T
    rounding = ROUNDING * jnp.finfo(rows.dtype).eps * jnp.linalg.norm(rows, axis=1).max()
    reduced, _, basis = _eliminated(left.T, jnp.zeros_like(exponent), rounding)
    columns, exponent, turn = _eliminated(reduced.T, exponent, rounding)
    columns, exponent, turn = _rotated(columns, exponent, turn)
    norm, shift = jnp.frexp(jnp.linalg.norm(columns, axis=1))
    norm = jnp.where(jnp.isfinite(rounding), norm, jnp.nan)  # an overflow is to be found out, not to look like zero
    exponent = jnp.where(norm == 0, NO_SIZE, exponent + shift)
    order = jnp.lexsort((-norm, -exponent))
    turned = norm[order, None] * dot(dot(turn[order], basis), right.T)
    missing = len(rows) - len(norm)
    exponent = jnp.pad(exponent[order], (0, missing), constant_values=NO_SIZE)
    return Spectrum(exponent, jnp.pad(norm[order], (0, missing))), jnp.pad(turned, ((0, missing), (0, 0)))


def _eliminated(
    rows: Float[Array, "value rank"], exponent: Int[Array, " value"], rounding: Float[Array, ""]
) -> tuple[Float[Array, "rank value"], Int[Array, " rank"], Float[Array, "rank rank"]]:
    """Returns `rows * 2 ** exponent` as columns, each with its exponent, times orthonormal vectors.

    At every step the largest scaled row becomes a vector, and its direction is taken out of all rows. So no entry of
    a column exceeds the one it was made of. What is below `rounding` is zero.
    """
    rank = rows.shape[1]

    def step(index: Any, carry: Any) -> Any:
        rows, columns, chosen, vectors = carry
        norms = jnp.linalg.norm(rows, axis=1)
        rows = jnp.where(norms[:, None] > rounding, rows, 0)
        size = jnp.where(norms > rounding, exponent.astype(norms.dtype) + jnp.log2(norms), -jnp.inf)
        pivot = jnp.argmax(size)
        some = norms[pivot] > rounding
        vector = rows[pivot] / jnp.where(some, norms[pivot], 1)
        vector = vector - dot(dot(vectors, vector), vectors)  # orthogonal to rounding, though the rest may be small
        vector = vector / jnp.where(some, jnp.linalg.norm(vector), 1)
        parts = dot(rows, vector)
        column = jnp.ldexp(parts, jnp.clip(exponent - exponent[pivot], -APART, APART))
        return (
            (rows - parts[:, None] * vector[None]).at[pivot].set(0),
            columns.at[index].set(column),
            chosen.at[index].set(jnp.where(some, exponent[pivot], NO_SIZE)),
            vectors.at[index].set(vector),
        )

    columns, chosen = jnp.zeros_like(rows.T), jnp.full((rank,), NO_SIZE, exponent.dtype)
    vectors = jnp.zeros((rank, rank), rows.dtype)
    _, columns, chosen, vectors = lax.fori_loop(0, rank, step, (rows, columns, chosen, vectors))
    return columns, chosen, vectors


def _rotated(
    columns: Float[Array, "rank value"], exponent: Int[Array, " rank"], turn: Float[Array, "rank rank"]
) -> tuple[Float[Array, "rank value"], Int[Array, " rank"], Float[Array, "rank rank"]]:
    """Returns the columns, `columns * 2 ** exponent`, made orthogonal by rotations, which `turn` undergoes too."""
    rank = columns.shape[0]
    if rank == 1:
        return columns, exponent, turn
    columns, turn = (jnp.pad(part, ((0, rank % 2), (0, 0))) for part in (columns, turn))  # they turn in pairs
    exponent = jnp.pad(exponent, (0, rank % 2), constant_values=NO_SIZE)

    def oblique(state: Any) -> Bool[Array, ""]:
        """Whether two columns are not orthogonal to rounding."""
        count, columns, *_ = state
        norms = jnp.linalg.norm(columns, axis=1, keepdims=True)
        units = columns / jnp.where(norms > 0, norms, 1)
        cosines = jnp.abs(dot(units, units.T)) * (1 - jnp.eye(len(units), dtype=units.dtype))
        return (count < SWEEPS) & (cosines.max() > 4 * len(units) ** 0.5 * jnp.finfo(units.dtype).eps)

    def sweep(state: Any) -> Any:
        """All pairs, half as many at a time as there are columns, paired like the players of a tournament."""
        count, columns, exponent, turn = state
        columns, shift = to_unit(columns, (1,))
        state = columns, jnp.where(exponent > NO_SIZE, exponent + shift, NO_SIZE), turn
        return (count + 1, *lax.fori_loop(1, len(columns), lambda _, state: _next_pairs(*_rotate(*state)), state))

    state = lax.while_loop(oblique, sweep, (0, columns, exponent, turn))
    columns, exponent, turn = state[1:]
    # Each rotation lengthens by rounding, most of them in the same direction, and layers add that up.
    lengths = jnp.linalg.norm(turn, axis=1, keepdims=True)
    columns, turn = (part / jnp.where(lengths > 0, lengths, 1) for part in (columns, turn))
    return columns[:rank], exponent[:rank], turn[:rank, :rank]


def _rotate(columns: Array, exponent: Array, turn: Array) -> tuple[Array, Array, Array]:
    """Rotates the first column with the last, the second with the last but one, and so on, until orthogonal.

    With the lesser column's share `s`, at most 1, of the greater one's scale, the tangent of the angle is `s * u`;
    `u`, computed from the columns without their scales, is what the lesser one receives of the greater.
    """
    half = len(columns) // 2
    (p, q), (p_exponent, q_exponent), (p_turn, q_turn) = ((a[:half], a[half:][::-1]) for a in (columns, exponent, turn))
    apart = q_exponent - p_exponent
    share = jnp.ldexp(jnp.ones_like(p[:, 0]), -jnp.minimum(jnp.abs(apart), APART))
    first = apart <= 0  # the greater one
    p_square, q_square, inner = jnp.sum(p * p, axis=1), jnp.sum(q * q, axis=1), jnp.sum(p * q, axis=1)
    difference = jnp.where(first, 1, share**2) * p_square - jnp.where(first, share**2, 1) * q_square
    difference = jnp.where(first, difference, -difference)
    root = jnp.hypot(difference, 2 * share * inner)
    length = jnp.abs(difference) + root
    u = -2 * inner * jnp.where(difference < 0, -1, 1) / jnp.where(length > 0, length, 1)
    cosine = 1 / jnp.hypot(1, share * u)

    def turned(one: Array, other: Array, one_gains: Array, other_gains: Array) -> tuple[Array, Array]:
        """The pair after the rotation, and the order of the columns for the next one."""
        return (
            cosine[:, None] * (one + one_gains[:, None] * other),
            cosine[:, None] * (other + other_gains[:, None] * one),
        )

    lesser, greater = u, -(share**2) * u
    p, q = turned(p, q, jnp.where(first, greater, lesser), jnp.where(first, lesser, greater))
    tangent = jnp.where(first, -share * u, share * u)
    p_turn, q_turn = turned(p_turn, q_turn, tangent, -tangent)
    return jnp.concatenate([p, q[::-1]]), exponent, jnp.concatenate([p_turn, q_turn[::-1]])


def _next_pairs(*parts: Array) -> tuple[Array, ...]:
    """The columns in the next round's order: the first stays, the others move on by one."""
    return tuple(jnp.concatenate([part[:1], part[-1:], part[1:-1]]) for part in parts)
