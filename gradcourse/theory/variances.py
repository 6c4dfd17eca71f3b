r"""The variance of pre-activations, from layer to layer of a wide random network.

In a wide layer with independent zero-mean weights a pre-activation is close to Gaussian. Its variance $q$ follows the
*variance map* (Poole et al. 2016, Schoenholz et al. 2017)

$$q_{l+1} = \sigma_w^2\, \mathbb{E} f(\sqrt{q_l}\, z)^2 + \sigma_b^2, \qquad z \sim N(0, 1),$$

and after many layers rests at a fixed point of it, if there is one.

>>> round(fixed_point("tanh", sigma_w2=2.0, sigma_b2=0.05), 4)
0.7218
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gradcourse._checks import positive_number
from gradcourse.nn.activations import Activation, resolve
from gradcourse.theory.quadrature import gaussian_rule

__all__ = ["fixed_point", "mean_square", "mean_square_slope", "moments", "variance_map"]


@partial(jax.jit, static_argnums=0)
def moments(activation: Activation, q: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Returns the means of `f(s)**2` and of `f'(s)**2` for Gaussian pre-activations of variances `q`; for float64."""
    s, weights = gaussian_rule(jnp.sqrt(jnp.maximum(q, 1e-300)), activation.kinks)
    square, slope2 = (jnp.sum(weights * jnp.square(f(s)), axis=-1) for f in (activation, activation.slope))
    return square, slope2


@jax.enable_x64(True)
def mean_square(activation: Any, q: float) -> float:
    """Returns the mean of `f(s)**2` for a Gaussian pre-activation of variance `q`."""
    return float(moments(resolve(activation), jnp.asarray(positive_number("q", q, zero=True)))[0])


@jax.enable_x64(True)
def mean_square_slope(activation: Any, q: float) -> float:
    """Returns the mean of `f'(s)**2` for a Gaussian pre-activation of variance `q`.

    >>> round(mean_square_slope("sigmoid", 1.0), 6)
    0.044836
    """
    return float(moments(resolve(activation), jnp.asarray(positive_number("q", q, zero=True)))[1])


def variance_map(activation: Any, q: float, *, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    r"""Returns the next layer's pre-activation variance, $\sigma_w^2\, \mathbb{E} f(\sqrt{q} z)^2 + \sigma_b^2$."""
    sigma_w2 = positive_number("sigma_w2", sigma_w2)
    return sigma_w2 * mean_square(activation, q) + positive_number("sigma_b2", sigma_b2, zero=True)


@jax.enable_x64(True)
def fixed_point(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0, start: float = 1.0) -> float:
    r"""Returns $q^*$, where the variance map started from `start` comes to rest.

    Raises `ValueError` where it does not within 100,000 layers: the variance then grows without bound (a rectifier with
    $\sigma_w^2 > 2$) or creeps to 0 along the critical line.
    """
    start = positive_number("start", start)
    sigma_w2, sigma_b2 = positive_number("sigma_w2", sigma_w2), positive_number("sigma_b2", sigma_b2, zero=True)
    q, change = map(float, _settle(resolve(activation), start, sigma_w2, sigma_b2))
    if change <= 1e-13 * q or q < 1e-300:
        return q
    raise ValueError(
        f"sigma_w2={sigma_w2!r}, sigma_b2={sigma_b2!r} give {resolve(activation).name} no fixed point that is reached "
        f"from {start!r} (the variance stands at {q:.3g}); accepted are settings where it settles. Use "
        "preactivation_variances for a finite depth."
    )


@partial(jax.jit, static_argnums=0)
def _settle(activation: Activation, start: Array, sigma_w2: Array, sigma_b2: Array) -> tuple[Array, Array]:
    """The variance where the map from `start` settles, leaves every range or is given up on, and its last change."""

    def moving(state: tuple[Array, Array, Array]) -> Array:
        layer, q, change = state
        return (layer < 100_000) & (change > 1e-13 * q) & (q >= 1e-300) & (q <= 1e30)

    def one_layer(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        layer, previous, _ = state
        q = sigma_w2 * moments(activation, previous)[0] + sigma_b2
        return layer + 1, q, jnp.abs(q - previous)

    _, q, change = jax.lax.while_loop(moving, one_layer, (jnp.asarray(0), jnp.asarray(start), jnp.asarray(jnp.inf)))
    return q, change
