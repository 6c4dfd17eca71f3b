"""Means over a Gaussian by quadrature, in float64 whatever jax is set to.

The textbook's rule for such means, Gauss-Hermite's, is off by several percent at a kink and for standard deviations
above 5. So the line is cut into panels at the function's kinks, and every panel gets a Gauss-Legendre rule, which then
meets nothing but smooth functions.

>>> round(gaussian_mean(jnp.abs, 2.0, kinks=(0.0,)) ** 2, 12)  # 2 q / pi
1.27323954474
"""

from functools import lru_cache
from math import pi, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gradcourse._checks import positive_number

__all__ = ["gaussian_mean", "gaussian_rule", "panel_rule"]

NODES = 40  # per panel
REACH = 12.0  # standard deviations; beyond it the Gaussian weighs less than 1e-31
KNEES = (4.0, 20.0)  # where the bend of sigmoid-like functions ends, and all that is left of it

# Gauss's nodes are eigenvalues: a tenth of a second for many of them, each time, if they are not kept.
_legendre = lru_cache(np.polynomial.legendre.leggauss)


def panel_rule(edges: Any, nodes: int) -> tuple[Any, Any]:
    """Returns nodes and weights, `(*batch, node)`, of the integral from the first of the `edges` to the last.

    Between neighbouring edges, `(*batch, edge)`, of NumPy or jax, there are so many `nodes` of Gauss and Legendre's
    rule: it is exact for functions that are a polynomial of degree `2 * nodes - 1` in every panel.

    >>> x, weights = panel_rule(np.array([-1.0, 0.0, 2.0]), 3)
    >>> round(float(weights @ abs(x)), 12)
    2.5
    """
    unit, unit_weights = (part.reshape([1] * edges.ndim + [-1]) for part in _legendre(nodes))
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    middle, half, shape = (low + high) / 2, (high - low) / 2, (*edges.shape[:-1], -1)
    return (middle + half * unit).reshape(shape), (half * unit_weights).reshape(shape)


def gaussian_rule(deviation: Float[Array, "*batch"], kinks: tuple[float, ...] = ()) -> tuple[Array, Array]:
    """Returns nodes `s` and weights, `(*batch, node)`, of the mean over a Gaussian with mean 0 and this deviation.

    The panels end at the `kinks` and where sigmoid-like functions bend; for use in float64.
    """
    cuts = sorted({0.0, *kinks, *KNEES, *(-knee for knee in KNEES)})
    inner = [jnp.clip(cut / deviation, -REACH, REACH) for cut in cuts]
    edges = [jnp.full_like(deviation, -REACH), *inner, jnp.full_like(deviation, REACH)]
    z, weights = panel_rule(jnp.stack(edges, axis=-1), NODES)
    return deviation[..., None] * z, weights * jnp.exp(-jnp.square(z) / 2) / sqrt(2 * pi)


@jax.enable_x64(True)
def gaussian_mean(function: Any, q: float, *, kinks: tuple[float, ...] = ()) -> float:
    """Returns the mean of an elementwise `function(s)` for `s` Gaussian with mean 0 and variance `q`, above zero.

    `kinks` are the points where it is not smooth.
    """
    s, weights = gaussian_rule(jnp.asarray(sqrt(positive_number("q", q))), kinks)
    return float(jnp.sum(weights * function(s)))
