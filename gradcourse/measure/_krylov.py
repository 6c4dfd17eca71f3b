"""The step that Lanczos's method and Golub and Kahan's share: the next vector of an orthonormal basis.

>>> import jax.numpy as jnp
>>> basis = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
>>> vector, length = next_vector(jnp.array([3.0, 4.0, 0.0]), basis, jnp.asarray(5.0))
>>> vector.tolist(), length.item()
([0.0, 1.0, 0.0], 4.0)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gradcourse._logdomain import dot

__all__ = ["ROUNDING", "next_vector"]

ROUNDING = 8  # times machine epsilon and the size of the map: a vector so short has no direction


def next_vector(
    v: Float[Array, " entry"], before: Float[Array, "row entry"], size: Float[Array, ""]
) -> tuple[Float[Array, " entry"], Float[Array, ""]]:
    """Returns the direction of what is left of `v` orthogonal to the rows `before`, and its length.

    Rows that are 0 do no harm. Where nothing but rounding is left, for a map of that `size`, the rows span an invariant
    subspace: the length is 0 then, and so is the vector.
    """
    for _ in range(2):  # twice is enough (Parlett, quoting W. Kahan)
        v = v - dot(dot(before, v), before)
    length = jnp.linalg.norm(v)
    short = length <= ROUNDING * jnp.finfo(v.dtype).eps * size
    return jnp.where(short, 0, v / jnp.where(short, 1, length)), jnp.where(short, 0, length)
