"""Number formats: where their range ends, on paper and on this processor, and how numbers are brought into them.

>>> number_format("float16").largest, number_format("bfloat16").digits
(65504.0, 8)
"""

from math import log10
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["Format", "cast", "number_format", "round_stochastically", "vanishing_point"]


class Format(NamedTuple):
    """A floating-point format: the ends of its range, and its `digits`, binary ones with the leading one included.

    `normal` is the smallest number with all digits, `smallest` the smallest at all (subnormal), `largest` the largest
    finite one.
    """

    name: str
    digits: int
    normal: float
    smallest: float
    largest: float

    @property
    def decades(self) -> float:
        """How many decades lie between the smallest and the largest number."""
        return log10(self.largest) - log10(self.smallest)


def number_format(dtype: Any) -> Format:
    """Returns the properties of a floating-point format that JAX knows by that name.

    >>> number_format("float16")
    Format(name='float16', digits=11, normal=6.103515625e-05, smallest=5.960464477539063e-08, largest=65504.0)
    """
    info = jnp.finfo(dtype)
    ends = (float(info.smallest_normal), float(info.smallest_subnormal), float(info.max))
    return Format(str(info.dtype), int(info.nmant) + 1, *ends)


def vanishing_point(dtype: Any) -> float:
    """Returns the power of two below which a compiled product of two numbers is 0, found by trying.

    Compiled code may treat subnormal numbers as 0: what a format promises and what a processor does are two things.
    Where it does not, a product is rounded to 0 below half of the smallest number.

    >>> number_format("float16").smallest / vanishing_point("float16")
    2.0
    """
    info = jnp.finfo(dtype)
    exponents = np.arange(int(info.minexp) - int(info.nmant) - 4, int(info.minexp) + 2)
    half = exponents // 2
    factors = [np.ldexp(1.5, half).astype(info.dtype), np.ldexp(1.0, exponents - half).astype(info.dtype)]
    products = jax.jit(jnp.multiply)(*map(jnp.asarray, factors))
    return float(np.ldexp(1.0, exponents[np.asarray(products).astype(np.float64) > 0].min()))


def cast(tree: Any, dtype: Any) -> Any:
    """Returns the tree with all its arrays in the format `dtype`, rounded to nearest."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def round_stochastically(values: Float[Array, "*shape"], dtype: Any, *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """Returns float32 `values` in the format `dtype`, each as one of its two neighbours there, right on average.

    A value a tenth of the way from one neighbour to the next becomes the next one in a tenth of the cases.

    >>> rounded = round_stochastically(jnp.full(10_000, 1 + 2.0**-10), "bfloat16", key=jax.random.key(0))
    >>> sorted({float(value) for value in rounded}), bool(abs(rounded.astype(float).mean() - 1 - 2.0**-10) < 1e-4)
    ([1.0, 1.0078125], True)
    """
    near = values.astype(dtype)
    left = values - near.astype(values.dtype)
    towards = jnp.where(left > 0, jnp.inf, -jnp.inf).astype(dtype)
    other = jnp.nextafter(near, towards)
    gap = jnp.abs(other.astype(values.dtype) - near.astype(values.dtype))
    chance = jnp.where(left == 0, 0, jnp.abs(left) / gap)
    return jnp.where(jax.random.uniform(key, values.shape) < chance, other, near)
