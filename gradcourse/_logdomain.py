r"""Numbers that no floating-point range can hold: sums of squares with a whole exponent of their own.

Products of Jacobians leave every floating-point range, so nothing here is squared before it is scaled. A batch of
vectors is divided by a power of two, which is exact, and the whole exponent is kept:

>>> import jax.numpy as jnp
>>> v = jnp.full((1, 2, 4), 2.0**-100)  # (direction, batch, width): squared in float32, it would be 0
>>> _, exponent, norms = rescale(v, jnp.zeros(2, jnp.int32))
>>> Scaled(*(leaf[0].item() for leaf in norms))  # 4 * 2 ** -200, per example
Scaled(exponent=-99, square=1.0)
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gradcourse._checks import known_false
from gradcourse.profile import Profile

__all__ = [
    "LN10",
    "NO_EXPONENT",
    "Scaled",
    "check_overflow",
    "dot",
    "finite",
    "log2_norms",
    "log_ratio",
    "log_root_mean_square",
    "normal",
    "normal_exponent",
    "profile_of",
    "rescale",
    "share_lost",
    "sum_of_squares",
    "times_power",
    "to_unit",
    "total",
]

LN10 = 2.302585092994046
NO_EXPONENT = np.iinfo(np.int32).min


class Scaled(NamedTuple):
    """Numbers `square * 4 ** exponent`: sums of squares that no exponent range can hold."""

    exponent: Int[Array, "*sample"]
    square: Float[Array, "*sample"]


def to_unit(v: Float[Array, "*shape"], axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns `v` divided by the power of two next to its largest entry along `axes`, and that power's exponent.

    The power is kept within what is a normal number in `v`'s dtype; processors may treat smaller ones as zero.
    """
    peak = jnp.max(jnp.abs(v), axis=axes, keepdims=True)
    shift = normal_exponent(peak)
    return v * jnp.ldexp(jnp.ones_like(peak), -shift), jnp.squeeze(shift, axes)


def normal_exponent(peak: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Returns the exponent of the power of two next to each number, kept within what is normal in its dtype."""
    limit = -int(jnp.finfo(peak.dtype).minexp)
    return jnp.clip(jnp.frexp(peak)[1], -limit, limit)


def sum_of_squares(arrays: Sequence[Array], kept: int = 0) -> Scaled:
    """Returns the sum of the squares of all entries, of any magnitude; the first `kept` axes, common to all, are kept.

    >>> exponent, square = sum_of_squares([jnp.full((2, 3), 2.0**-100), jnp.zeros((2, 5))], kept=1)
    >>> exponent.tolist(), square.tolist()  # 3 * 2 ** -200, twice
    ([-99, -99], [0.75, 0.75])
    """
    rows = [array.reshape(*array.shape[:kept], -1) for array in arrays]
    peaks = [jnp.max(jnp.abs(row), axis=-1, initial=0) for row in rows]
    exponent = normal_exponent(reduce(jnp.maximum, peaks))
    factor = jnp.ldexp(jnp.ones(exponent.shape, rows[0].dtype), -exponent)[..., None]
    return Scaled(exponent, reduce(jnp.add, [jnp.sum(jnp.square(row * factor), axis=-1) for row in rows]))


def log2_norms(norms: Scaled) -> Any:
    """Returns the binary logarithms of the norms in float64, outside of `jit`; minus infinity for 0."""
    exponent, square = (np.asarray(part, np.float64) for part in norms)
    with np.errstate(divide="ignore", invalid="ignore"):
        return exponent + np.log2(square) / 2


def share_lost(plain: Any, true: Any) -> Any:
    """Returns the share of norms that underflow has cost, both given as binary logarithms; 0 where they are 0.

    >>> float(share_lost(-101.0, -100.0)), float(share_lost(-np.inf, -100.0)), float(share_lost(-np.inf, -np.inf))
    (0.5, 1.0, 0.0)
    """
    with np.errstate(invalid="ignore"):
        share = 1 - np.exp2(np.minimum(np.subtract(plain, true), 0))
    return np.where(np.isfinite(true), share, 0.0)


def times_power(h: Float[Array, "batch *shape"], exponent: Int[Array, " batch"]) -> Float[Array, "batch *shape"]:
    """Returns `h * 2 ** exponent`, example by example; 0 or infinity beyond the format, however big the exponent."""
    power = jnp.ldexp(jnp.ones(exponent.shape, h.dtype), jnp.clip(exponent, -2000, 2000))
    return h * power.reshape(-1, *[1] * (h.ndim - 1))


def dot(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `a @ b` in the full precision of its format, on accelerators too."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def rescale(
    v: Float[Array, "direction batch *shape"], exponent: Int[Array, " batch"], *, together: bool = False
) -> tuple[Float[Array, "direction batch *shape"], Int[Array, " batch"], Scaled]:
    """Returns `v` with each example's largest entry brought near 1 by a power of two.

    With it come the exponents it now stands for, and its squared norm per example. With `together` all examples have
    the same exponent, the largest, so that they can be added up.
    """
    axes = (0, *range(2, v.ndim))
    v, shift = to_unit(v, axes)
    exponent = exponent + shift
    norms = Scaled(exponent, jnp.sum(jnp.square(v), axis=axes))
    if together:
        shared = jnp.broadcast_to(_common_exponent(norms, axis=0), exponent.shape)
        v = jnp.swapaxes(times_power(jnp.swapaxes(v, 0, 1), jnp.minimum(exponent - shared, 0)), 0, 1)
        exponent = shared
    return v, exponent, norms


def normal(norms: Scaled) -> Scaled:
    """Returns the same numbers with every square brought next to 1, so that its exponent tells its size."""
    shift = jnp.frexp(norms.square)[1] // 2
    return Scaled(norms.exponent + shift, jnp.ldexp(norms.square, -2 * shift))


def total(norms: Scaled) -> Scaled:
    """Returns the sums over the first axis."""
    exponent = _common_exponent(norms, axis=0)
    return Scaled(exponent, _shifted(norms, exponent[None]).sum(axis=0))


@jax.jit
def log_root_mean_square(norms: Scaled) -> tuple[Array, Array, Array]:
    """Returns the log2 root mean square over the last axis: exponent, fraction, and the error of its log10.

    The error is the standard error that the spread over that axis tells; NaN for a single entry.
    """
    exponent, mean, share = _mean_square(norms)
    return exponent, jnp.log2(mean) / 2, _log_error(share)


@jax.jit
def log_ratio(top: Scaled, bottom: Scaled) -> tuple[Array, Array, Array]:
    """Returns the log2 ratio of two root mean squares over the last axis, as `log_root_mean_square` does.

    Its error takes into account that both come from the same examples.
    """
    (top_exponent, top_mean, top_share), (exponent, mean, share) = _mean_square(top), _mean_square(bottom)
    return top_exponent - exponent, (jnp.log2(top_mean) - jnp.log2(mean)) / 2, _log_error(top_share - share)


def profile_of(
    norms: Scaled, error: Float[Array, "layer batch"], layers: tuple[str, ...], quantity: str, *, average: bool
) -> Profile:
    """Returns the profile of `(layer, batch)` squared norms: their root mean square, or one `(batch, layer)`.

    `error` is the standard error of each norm's log10; that of the root mean square comes from the spread over the
    batch, which contains it.
    """
    if average:
        exponent, fraction, error = log_root_mean_square(norms)
    else:
        exponent, fraction, error = norms.exponent.T, jnp.log2(norms.square.T) / 2, error.T
    return Profile(exponent, fraction, error, layers, quantity)


def finite(norms: Scaled) -> Scaled:
    """Returns `norms`, or raises as `check_overflow` where they are not finite."""
    check_overflow(jnp.isfinite(norms.square).all())
    return norms


def check_overflow(finite: Bool[Array, ""]) -> None:
    """Raises `FloatingPointError` unless `finite`: from finite parameters and inputs, only overflow makes NaN."""
    if known_false(finite):
        raise FloatingPointError(
            "this network overflows its floating-point range, so its Jacobian cannot be evaluated; "
            "shrink the weights (init's scale), the depth or the input, or use a bounded activation."
        )


def _common_exponent(norms: Scaled, axis: int) -> Array:
    """The largest exponent along `axis` of a square that is not 0; 0 where all are."""
    exponent = jnp.max(jnp.where(norms.square > 0, norms.exponent, NO_EXPONENT), axis=axis)
    return jnp.where(exponent == NO_EXPONENT, 0, exponent)


def _shifted(norms: Scaled, exponent: Array) -> Array:
    """The squares in units of `4 ** exponent`, which none of theirs exceeds."""
    return jnp.ldexp(norms.square, 2 * jnp.clip(norms.exponent - exponent, -1000, 0))


def _mean_square(norms: Scaled) -> tuple[Array, Array, Array]:
    """The mean over the last axis: its exponent, its value, and each entry's share of it."""
    exponent = _common_exponent(norms, axis=-1)
    squares = _shifted(norms, exponent[..., None])
    mean = squares.mean(axis=-1)
    return exponent, mean, squares / jnp.where(mean == 0, 1, mean)[..., None]


def _log_error(influence: Array) -> Array:
    """The standard error of a log10 root mean square (or ratio of two) from each example's influence on it."""
    count = influence.shape[-1]
    if count == 1:
        return jnp.full(influence.shape[:-1], jnp.nan, influence.dtype)
    return influence.std(axis=-1, ddof=1) / (2 * LN10 * count**0.5)
