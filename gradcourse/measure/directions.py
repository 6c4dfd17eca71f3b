r"""The directions that a sweep carries: all of them, or random ones with an error bar.

$\|J\|_F^2 = \sum_i \|J^\top u_i\|^2$ over any orthonormal basis $u_1 \dots u_m$ of the output's space, so a sweep that
carries all $m$ of them is exact. Where $m$ is too big, it carries $k$ random orthonormal ones, and
$\frac{m}{k} \sum_{i \le k} \|J^\top u_i\|^2$ has the right mean (Hutchinson's estimator, with probes that do not repeat
one another). With $A = J J^\top$, the $k$ by $k$ matrix $P_{ij} = u_i^\top A u_j$ and $C = P - \frac{\operatorname{tr}
P}{k} I$, its variance, for directions drawn uniformly (Haar), has the unbiased estimate

$$ V = \frac{2 m (m - k)}{k (k - 1) (k + 2)} \operatorname{tr} C^2, $$

which takes all pairs of directions into account, not the spread of the $k$ values alone. It is 0 at $k = m$.
Relative to the square of the estimate less $V$, it is exact for a Jacobian of rank one, as those of deep networks
nearly are.

An error bar of $\sqrt{V}$ holds too seldom all the same, in 88 to 95 % of cases at 16 directions: where these miss a
singular value that stands out, both the estimate and $V$ are too small. How much so, $\operatorname{tr} C^3$ tells. A
part of the trace behaves as $\chi^2_\nu / \nu$, whose relative variance is

$$ \epsilon = \frac{2}{\nu} = \frac{2 (m - k)}{k (m + 2)} \cdot
\frac{k (k - 1) (\operatorname{tr} C^3)^2}{(k - 2)^2 (\operatorname{tr} C^2)^3}, $$

and $w$, the root of $V$'s share of it, is how big a part; $\epsilon$ is largest and $w = 1$ for rank one. The relative
variance is multiplied by $e^{(6 - 21 w / 4) \epsilon}$, by which 95 % of $\chi^2_\nu$'s logarithms are within 1.96
errors at either end, $w = 0$ and $w = 1$, and by $1 + 1 / k$ because $\nu$ and $w$ are not known either. Then 93 to
96.5 % of intervals hold, from 8 directions on in 40 dimensions or more (from 92 % in fewer), for spectra that are flat,
random, decaying as powers or geometrically, of low rank, or with single values above or below all others.

A *sketch* makes the variance smaller: a few directions along which the network's Jacobian is large are measured
exactly, and only what is orthogonal to them is sampled (Meyer, Musco, Musco and Woodruff's Hutch++, 2021). Where that
leaves an error below rounding's, it is rounding's that counts, which no error bar here contains.

>>> import jax
>>> keys = jax.random.split(jax.random.key(0), 4)
>>> Directions(size=1000, probes=32).frames(None, keys, jnp.float32).shape
(32, 4, 1000)
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse._logdomain import LN10, Scaled

__all__ = ["Directions", "Seen", "checked_directions"]


class Seen(NamedTuple):
    """What is kept of a sweep's vectors at one layer, per example, in units of `4 ** exponent`.

    The squared norms of the directions measured exactly, added up, and those of the random ones, if there are any;
    with the traces of the square and the cube of the matrix `C` above, for directions scaled such that `sampled` is 1.
    """

    exponent: Int[Array, "*layer batch"]
    exact: Float[Array, "*layer batch"]
    sampled: Float[Array, "*layer batch"] | None = None
    square_trace: Float[Array, "*layer batch"] | None = None
    cube_trace: Float[Array, "*layer batch"] | None = None

    @property
    def square(self) -> Float[Array, "*layer batch"]:
        """The squared norms of all directions carried, added up."""
        return self.exact if self.sampled is None else self.exact + self.sampled


@dataclass(frozen=True)
class Directions:
    """Which directions of a space of `size` dimensions: all, or `probes` random ones and a `sketch` of given ones.

    The space is each example's own, or, where examples are `coupled`, that of the whole batch.
    """

    size: int
    probes: int | None = None
    sketch: int = 0
    coupled: bool = False

    @property
    def carried(self) -> int:
        """The number of directions carried."""
        return self.size if self.probes is None else self.probes + self.sketch

    def basis(
        self, first: Int[Array, ""] | int, count: int, *, batch: int, dtype: DTypeLike
    ) -> Float[Array, "{count} batch entry"]:
        """Returns `count` unit vectors from index `first` on, for every example or all; beyond the last, zeros."""
        units = jax.nn.one_hot(first + jnp.arange(count), self.size, dtype=dtype)
        if self.coupled:
            return units.reshape(count, batch, -1)
        return jnp.broadcast_to(units[:, None], (count, batch, self.size))

    def frames(
        self, large: Float[Array, "sketch batch entry"] | None, keys: Key[Array, " batch"], dtype: DTypeLike
    ) -> Float[Array, "direction batch entry"]:
        """Returns orthonormal directions for every example, or all: those that span `large`, then random ones.

        `keys` has one key per example, so that an example's directions do not depend on its neighbours.
        """
        batch, keys = len(keys), keys[:1] if self.coupled else keys
        drawn = jax.vmap(lambda key: jax.random.normal(key, (self.size, self.probes or 0), dtype))(keys)
        if large is not None:
            drawn = jnp.concatenate([jnp.moveaxis(large.reshape(-1, *drawn.shape[:2]), 0, 2), drawn], axis=2)
        return jnp.moveaxis(jnp.linalg.qr(drawn)[0], 2, 0).reshape(self.carried, batch, -1)

    def see(self, v: Float[Array, "direction batch *shape"], exponent: Int[Array, " batch"]) -> Seen:
        """Returns what is kept of `v`, whose directions stand for `2 ** exponent` times themselves."""
        if self.probes is None:
            return Seen(exponent, jnp.sum(jnp.square(v), axis=(0, *range(2, v.ndim))))
        flat = v.reshape(*v.shape[:2], -1)
        exact, random = jnp.sum(jnp.square(flat[: self.sketch]), axis=(0, 2)), flat[self.sketch :]
        products = jnp.einsum("ibn,jbn->bij", random, random, precision="highest")
        sampled = jnp.trace(products, axis1=1, axis2=2)
        unit = jnp.where(sampled > 0, sampled, 1)[:, None, None]
        centred = products / unit - jnp.eye(self.probes, dtype=v.dtype)[None] / self.probes
        squared = jnp.matmul(centred, centred, precision="highest")
        square_trace, cube_trace = (jnp.sum(matrix, axis=(1, 2)) for matrix in (jnp.square(centred), squared * centred))
        return Seen(exponent, exact, sampled, square_trace, cube_trace)

    def estimate(self, seen: Seen) -> tuple[Scaled, Float[Array, "*layer batch"]]:
        """Returns the squared norm of the whole Jacobian, and the standard error of its log10 *root*."""
        if self.carried == self.size or seen.sampled is None or seen.square_trace is None or seen.cube_trace is None:
            return Scaled(seen.exponent, seen.square), jnp.zeros_like(seen.square)
        m, k = self.size - self.sketch, self.carried - self.sketch
        total = seen.exact + m / k * seen.sampled
        share = m / k * seen.sampled / jnp.where(total > 0, total, 1)
        variance = jnp.square(share) * 2 * k * (m - k) / (m * (k - 1) * (k + 2)) * seen.square_trace
        relative = variance / (1 - variance)
        peak = jnp.full_like(relative, 2 * (m - k) / (k * (m + 2)))  # of a Jacobian of rank one
        if k > 2:
            cube = jnp.maximum(seen.square_trace, jnp.finfo(variance.dtype).tiny ** (1 / 3)) ** 3
            shape = k * (k - 1) / (k - 2) ** 2 * jnp.square(seen.cube_trace) / cube
            peak = peak * jnp.clip(shape, 0, 1)
        part = jnp.sqrt(jnp.clip(relative / jnp.where(peak > 0, peak, 1), 0, 1))
        relative = relative * jnp.exp((6 - 5.25 * part) * peak) * (1 + 1 / k)
        return Scaled(seen.exponent, total), jnp.sqrt(relative) / (2 * LN10)


def checked_directions(
    where: str, size: int, probes: int | None, sketch: int, key: PRNGKeyArray | None, *, coupled: bool = False
) -> Directions:
    """Returns the directions at `where`, of `size` dimensions, or raises `ValueError` for what does not fit."""
    if probes is None:
        if sketch:
            raise ValueError(f"sketch={sketch!r} is accepted together with probes only; give probes=32, or sketch=0.")
        return Directions(size, coupled=coupled)
    probes = positive_integer("probes", probes)
    sketch = sketch if sketch == 0 else positive_integer("sketch", sketch)
    if probes < 2:
        raise ValueError(f"probes={probes!r} cannot tell its own error; accepted is 2 or more, better 16 or more.")
    if probes + sketch > size:
        raise ValueError(
            f"probes={probes!r} and sketch={sketch!r} are more than the {size} dimensions of {where}; "
            "leave both out for the exact norm."
        )
    if key is None:
        raise ValueError("key=None is accepted without probes only; give one, such as key=jax.random.key(0).")
    return Directions(size, probes, sketch, coupled)
