r"""The directions that a sweep carries: all of them, or random ones with an error bar.

$\|J\|_F^2 = \sum_i \|J^\top u_i\|^2$ over any orthonormal basis $u_1 \dots u_m$ of the output's space, so a sweep that
carries all $m$ of them is exact. Where $m$ is too big, it carries $k$ random orthonormal ones, and
$\frac{m}{k} \sum_{i \le k} \|J^\top u_i\|^2$ has the right mean (Hutchinson's estimator, with probes that do not repeat
one another). Its variance, for directions drawn uniformly (Haar), is known in closed form,

$$ \frac{2 (m - k) (m \rho - 1)}{k (m - 1) (m + 2)}, \qquad
\rho = \frac{\operatorname{tr} A^2}{(\operatorname{tr} A)^2}, \quad A = J J^\top, $$

relative to the square of the trace. It is 0 at $k = m$. $\rho$ is estimated from all pairs $(u_i^\top A u_j)^2$, not
from the spread of the $k$ values: for a Jacobian of nearly rank one, as those of deep networks are, the spread knows
too little of itself, and its intervals hold too seldom.

A *sketch* makes the variance smaller: a few directions along which the network's Jacobian is large are measured
exactly, and only what is orthogonal to them is sampled (Meyer, Musco, Musco and Woodruff's Hutch++, 2021).

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

from gradcourse.checks import positive_integer
from gradcourse.logdomain import LN10, Scaled

__all__ = ["Directions", "Seen", "checked_directions"]


class Seen(NamedTuple):
    """What is kept of a sweep's vectors at one layer, per example, in units of `4 ** exponent`.

    - `exact`: the squared norms of the directions that are measured exactly, added up;
    - `sampled`: those of the random directions, or `None` where there are none;
    - `pairs`: the squared inner products of all pairs of random directions, in units of `16 ** exponent`.
    """

    exponent: Int[Array, "*layer batch"]
    exact: Float[Array, "*layer batch"]
    sampled: Float[Array, "*layer batch"] | None = None
    pairs: Float[Array, "*layer batch"] | None = None

    @property
    def square(self) -> Float[Array, "*layer batch"]:
        """The squared norms of all directions carried, added up."""
        return self.exact if self.sampled is None else self.exact + self.sampled


@dataclass(frozen=True)
class Directions:
    """Which directions of a space of `size` dimensions: all, or `probes` random ones and a `sketch` of given ones."""

    size: int
    probes: int | None = None
    sketch: int = 0

    @property
    def carried(self) -> int:
        """The number of directions carried."""
        return self.size if self.probes is None else self.probes + self.sketch

    def basis(
        self, first: Int[Array, ""] | int, count: int, *, batch: int, dtype: DTypeLike
    ) -> Float[Array, "{count} batch {self.size}"]:
        """Returns `count` unit vectors from index `first` on, for every example; beyond the last, zeros."""
        units = jax.nn.one_hot(first + jnp.arange(count), self.size, dtype=dtype)
        return jnp.broadcast_to(units[:, None], (count, batch, self.size))

    def frames(
        self, large: Float[Array, "sketch batch size"] | None, keys: Key[Array, " batch"], dtype: DTypeLike
    ) -> Float[Array, "direction batch size"]:
        """Returns orthonormal directions for every example: those that span `large`, then random ones.

        `keys` has one key per example, so that an example's directions do not depend on its neighbours.
        """
        drawn = jax.vmap(lambda key: jax.random.normal(key, (self.size, self.probes or 0), dtype))(keys)
        if large is not None:
            drawn = jnp.concatenate([jnp.moveaxis(large, 0, 2), drawn], axis=2)
        return jnp.moveaxis(jnp.linalg.qr(drawn)[0], 2, 0)

    def see(self, v: Float[Array, "direction batch *shape"], exponent: Int[Array, " batch"]) -> Seen:
        """Returns what is kept of `v`, whose directions stand for `2 ** exponent` times themselves."""
        if self.probes is None:
            return Seen(exponent, jnp.sum(jnp.square(v), axis=(0, *range(2, v.ndim))))
        flat = v.reshape(*v.shape[:2], -1)
        exact, random = jnp.sum(jnp.square(flat[: self.sketch]), axis=(0, 2)), flat[self.sketch :]
        products = jnp.einsum("ibn,jbn->bij", random, random, precision="highest")
        return Seen(exponent, exact, jnp.trace(products, axis1=1, axis2=2), jnp.sum(jnp.square(products), axis=(1, 2)))

    def estimate(self, seen: Seen) -> tuple[Scaled, Float[Array, "*layer batch"]]:
        """Returns the squared norm of the whole Jacobian, and the standard error of its log10 *root*."""
        if self.probes is None or seen.sampled is None or seen.pairs is None or self.carried == self.size:
            return Scaled(seen.exponent, seen.square), jnp.zeros_like(seen.square)
        m, k = self.size - self.sketch, self.probes
        total = seen.exact + m / k * seen.sampled
        # The means of (sum_i A_ii)^2 and of sum_ij A_ij^2 over uniformly drawn frames are linear in (tr A)^2 and
        # tr A^2, by the second moments of a random projection; solved for these two.
        both = k * (m - k) / (m * (m - 1) * (m + 2))
        own = k / m * (k * (m + 1) - 2) / ((m - 1) * (m + 2))
        trace_squared = (own + both) * jnp.square(seen.sampled) - 2 * both * seen.pairs
        square_traced = own * seen.pairs - both * jnp.square(seen.sampled)
        rho = jnp.where(trace_squared > 0, square_traced / jnp.where(trace_squared > 0, trace_squared, 1), 1)
        relative = 2 * (m - k) * (m * jnp.clip(rho, 1 / m, 1) - 1) / (k * (m - 1) * (m + 2))
        share = m / k * seen.sampled / jnp.where(total > 0, total, 1)
        return Scaled(seen.exponent, total), share * jnp.sqrt(relative) / (2 * LN10)


def checked_directions(where: str, size: int, probes: int | None, sketch: int, key: PRNGKeyArray | None) -> Directions:
    """Returns the directions at `where`, of `size` dimensions, or raises `ValueError` for what does not fit."""
    if probes is None:
        if sketch:
            raise ValueError(f"sketch={sketch!r} is accepted together with probes only; give probes=32, or sketch=0.")
        return Directions(size)
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
    return Directions(size, probes, sketch)
