"""How the units of any layer stand on a batch, given its pre-activation and its activation function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gradcourse._logdomain import to_unit

__all__ = ["activation_statistics"]

TAIL = 0.05  # a unit is in its tail where its slope is below this share of the steepest
FAR = 20.0  # where an activation function that levels off has done so
NEAR = (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)  # where activation functions are steepest
REACH = 4.0  # standard deviations by which a dead unit's pre-activation may move


def activation_statistics(
    s: Float[Array, "*shape"],
    activation: Callable[[Any], Any],
    value: Float[Array, "*shape"],
    units: tuple[int, ...],
) -> dict[str, Float[Array, ""]]:
    """Returns the mean and spread of `value`, the shares of saturated, silent and dead, and whether all is finite.

    `s` is the pre-activation, `activation` an elementwise function that makes `value` of it; the units lie along the
    axes `units`. What the shares mean is said in `gradcourse.diagnosis.report.LayerReport`.

    >>> s = jnp.array([[-3.0, 1.0], [-2.9, -1.0], [-3.1, 2.0]])
    >>> found = activation_statistics(s, jax.nn.relu, jax.nn.relu(s), (1,))
    >>> float(found["silent"]), float(found["dead"]), float(found["saturated"])
    (0.5, 0.5, 0.0)
    """
    examples = tuple(axis for axis in range(s.ndim) if axis not in units)

    def slope(at: Array) -> Array:
        return jnp.abs(jax.vjp(activation, at)[1](jnp.ones_like(value))[0]).astype(jnp.float32)

    here = slope(s)
    # The function may hold parameters of the shape of `s`, so it is given that shape: the places, dealt out in turn.
    # Without the barrier the compiler would work the slopes out itself, slowly.
    places = lax.optimization_barrier(jnp.resize(jnp.array([FAR, -FAR, *NEAR], s.dtype), s.shape))
    there = slope(places)
    steepest = jnp.maximum(here.max(), there.max())
    levels_off = jnp.where(jnp.abs(places) == FAR, there, 0).max() < TAIL * steepest
    silent = (here == 0).all(axis=examples) & (steepest > 0)  # a function without a slope has no units to lose
    spread = REACH * s.std(axis=examples, keepdims=True)
    further = [s.max(axis=examples, keepdims=True) + spread, s.min(axis=examples, keepdims=True) - spread]
    dead = silent
    for place in further:
        dead = dead & (slope(jnp.broadcast_to(place, s.shape)) == 0).all(axis=examples)
    wide = value.astype(jnp.float32)
    small, exponent = to_unit(wide, tuple(range(value.ndim)))  # squares overflow where values do not
    finite = jnp.isfinite(s).all() & jnp.isfinite(value).all()
    found = {
        "mean": wide.mean(),
        "deviation": jnp.ldexp(small.std(), exponent),
        "finite": finite.astype(jnp.float32),
    }
    shares = {
        "saturated": jnp.where(levels_off, (here < TAIL * steepest).mean(), 0.0),
        "silent": silent.mean(),
        "dead": dead.mean(),
    }
    return found | {name: jnp.where(finite, share, jnp.nan) for name, share in shares.items()}
