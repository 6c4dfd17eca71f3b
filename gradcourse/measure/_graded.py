r"""The singular values of a matrix whose rows differ in size by any amount, each to a small *relative* error.

The matrix is $D A$ with $D$ diagonal, kept as whole exponents of two, and $A$ of ordinary size and well conditioned:

1. Elimination with pivoting tells the numerical rank of $A$, and drops what is zero.
2. Elimination again, in the order of the scaled rows, makes $D A = C Z$, where $Z$ has orthonormal rows and the
   columns of $C$, divided by their sizes, are a well-conditioned matrix; G. W. Stewart, "On graded QR decompositions
   of products of matrices", Electronic Transactions on Numerical Analysis 3 (1995).
3. Jacobi rotations make the columns of $C$ orthogonal, whose sizes then are the singular values; each with a small
   *relative* error, as J. Demmel and K. Veselić proved, "Jacobi's method is more accurate than QR", SIAM J. Matrix
   Anal. Appl. 13 (1992).

The error is about machine epsilon times the condition number of $A$, for every singular value alike.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gradcourse._logdomain import dot, to_unit

__all__ = ["ROUNDING", "Spectrum", "decomposed"]

NO_SIZE = -(2**29)  # the exponent of a row that is zero: below every other, and far from overflow
ROUNDING = 8  # times machine epsilon and the largest: what is zero
APART = 60  # columns further apart than 2 ** 60 turn as if they were infinitely far apart
SWEEPS = 30  # rotations converge quadratically, in about six sweeps over all pairs and in one or two when graded

# Columns with exponents, and the orthonormal vectors that they are multiplied by.
Columns = tuple[Float[Array, "rank value"], Int[Array, " rank"], Float[Array, "rank rank"]]


class Spectrum(NamedTuple):
    """Singular values `norm * 2 ** exponent`, the largest first, `norm` in [0.5, 1) or exactly 0."""

    exponent: Int[Array, "*batch value"]
    norm: Float[Array, "*batch value"]


def decomposed(
    v: Float[Array, "value batch *shape"], exponent: Int[Array, "value batch"]
) -> tuple[Float[Array, "value batch *shape"], Spectrum]:
    """Returns orthogonal rows of the same span, `(value, batch, *shape)`, and the singular values `(batch, value)`.

    The matrix has the rows `v * 2 ** exponent`. Up to an orthogonal factor on the left it is the matrix of the rows
    returned times two to the power of the exponents returned.
    """
    rows = jnp.moveaxis(v, 1, 0).reshape(v.shape[1], v.shape[0], -1)
    spectrum, rows = jax.vmap(_graded_decomposition)(rows, exponent.T)
    return jnp.moveaxis(rows, 0, 1).reshape(v.shape), spectrum


def _graded_decomposition(rows: Float[Array, "value width"], exponent: Array) -> tuple[Spectrum, Array]:
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


def _eliminated(rows: Float[Array, "value rank"], exponent: Int[Array, " value"], rounding: Array) -> Columns:
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


def _rotated(columns: Array, exponent: Array, turn: Array) -> Columns:
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

    def next_pairs(_: Any, state: Any) -> Any:
        """Rotates, and orders the columns for the next round: the first stays, the others move on by one."""
        return tuple(jnp.concatenate([part[:1], part[-1:], part[1:-1]]) for part in _rotate(*state))

    def sweep(state: Any) -> Any:
        """All pairs, half as many at a time as there are columns, paired like the players of a tournament."""
        count, columns, exponent, turn = state
        columns, shift = to_unit(columns, (1,))
        state = columns, jnp.where(exponent > NO_SIZE, exponent + shift, NO_SIZE), turn
        return (count + 1, *lax.fori_loop(1, len(columns), next_pairs, state))

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

    def turned(p: Array, q: Array, p_gains: Array, q_gains: Array) -> Array:
        p, q = cosine[:, None] * (p + p_gains[:, None] * q), cosine[:, None] * (q + q_gains[:, None] * p)
        return jnp.concatenate([p, q[::-1]])

    lesser, greater = u, -(share**2) * u
    columns = turned(p, q, jnp.where(first, greater, lesser), jnp.where(first, lesser, greater))
    tangent = jnp.where(first, -share * u, share * u)
    return columns, exponent, turned(p_turn, q_turn, tangent, -tangent)
