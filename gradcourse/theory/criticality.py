r"""Where the gradients of a wide random network vanish, where they explode, and the critical line between.

In a wide layer with independent zero-mean weights a pre-activation is close to Gaussian. Its variance $q$ follows the
*variance map* (Poole et al. 2016, Schoenholz et al. 2017)

$$q_{l+1} = \sigma_w^2\, \mathbb{E} f(\sqrt{q_l}\, z)^2 + \sigma_b^2, \qquad z \sim N(0, 1),$$

and after many layers rests at a fixed point $q^*$ of it, if there is one. There the mean square of a back-propagated
cotangent is multiplied at every layer by $\chi_1 = \sigma_w^2\, \mathbb{E} f'(\sqrt{q^*} z)^2$. Below 1 gradients
vanish, and all inputs become alike (the *ordered* phase); above 1 gradients explode, and inputs however near one
another part (the *chaotic* phase). Over how many layers that happens are the depth scales (Schoenholz et al. 2017).

>>> round(fixed_point("tanh", sigma_w2=2.0, sigma_b2=0.05), 4)
0.7218
"""

from functools import partial
from math import exp, inf, log, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gradcourse._checks import positive_number
from gradcourse.nn.activations import Activation, resolve
from gradcourse.theory.quadrature import gaussian_rule

__all__ = [
    "DepthScales",
    "chi_1",
    "critical_point",
    "critical_weight_variance",
    "depth_scale",
    "depth_scales",
    "fixed_point",
    "mean_square",
    "mean_square_slope",
    "moments",
    "variance_map",
]

DEGREE = 100  # of the correlation map's power series


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

    def moving(state: Any) -> Array:
        layer, q, change = state
        return (layer < 100_000) & (change > 1e-13 * q) & (q >= 1e-300) & (q <= 1e30)

    def one_layer(state: Any) -> Any:
        layer, previous, _ = state
        q = sigma_w2 * moments(activation, previous)[0] + sigma_b2
        return layer + 1, q, jnp.abs(q - previous)

    _, q, change = jax.lax.while_loop(moving, one_layer, (jnp.asarray(0), jnp.asarray(start), jnp.asarray(jnp.inf)))
    return q, change


def chi_1(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    r"""Returns $\chi_1 = \sigma_w^2\, \mathbb{E} f'(\sqrt{q^*} z)^2$, the factor per layer on a squared cotangent."""
    q_star = fixed_point(activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return sigma_w2 * mean_square_slope(activation, q_star)


def depth_scale(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    r"""Returns $\xi = -1 / \ln \chi_1$: over how many layers a cotangent's mean square falls by $e$; below 0, it grows.

    >>> round(depth_scale("tanh", sigma_w2=1.3, sigma_b2=0.05), 3)
    7.834
    """
    return _layers(chi_1(activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2))


def _layers(factor: float) -> float:
    logarithm = log(factor)
    return -1 / logarithm if abs(logarithm) > 1e-12 else inf  # 1e-12: what rounding leaves of 0


class DepthScales(NamedTuple):
    r"""The fixed point of a random network, and over how many layers it is reached.

    - `q`, `correlation`: the variance of pre-activations, and the correlation of two inputs', after many layers;
    - `chi`: the factor per layer on a gradient's mean square;
    - `xi_q`, `xi_c`, `xi_gradient`: layers over which the distances from `q` and from `correlation`, and a gradient's
      mean square, fall by $e$; the last is $-1 / \ln \chi$, negative where gradients explode.
    """

    q: float
    correlation: float
    chi: float
    xi_q: float
    xi_c: float
    xi_gradient: float


def depth_scales(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0) -> DepthScales:
    r"""Returns the depth scales of Schoenholz et al. (2017) for weights and biases of these variances.

    In the ordered phase the correlation is 1 and $\xi_c = \xi_{\text{gradient}}$; in the chaotic phase it is below 1.
    For smooth activations. Raises `ValueError` where the variance has no fixed point or that is 0.

    >>> scales = depth_scales("tanh", sigma_w2=1.3, sigma_b2=0.05)
    >>> f"{scales.chi:.4f} {scales.xi_q:.3f} {scales.xi_c:.3f} {scales.xi_gradient:.3f}"
    '0.8802 1.785 7.834 7.834'
    """
    from scipy.optimize import brentq  # here, for it is slow to load

    variances = {"sigma_w2": sigma_w2, "sigma_b2": sigma_b2}
    q = fixed_point(activation, **variances)
    if q < 1e-200:
        raise ValueError(
            f"sigma_w2={sigma_w2!r}, sigma_b2={sigma_b2!r} let the variance fall to 0, where no correlation is "
            "defined; accepted are settings with a positive fixed point, such as any with biases."
        )
    step = 1e-4 * q
    above, below = (variance_map(activation, q + side * step, **variances) for side in (1, -1))
    chi = chi_1(activation, **variances)
    correlation, slope = 1.0, chi
    mapped = _correlation_map(activation, q, **variances)
    if chi > 1 and mapped(almost := 1 - 1e-6) < almost:
        correlation = brentq(lambda c: mapped(c) - c, 0, almost)
        slope = mapped.deriv()(correlation)
    return DepthScales(q, correlation, chi, *map(_layers, ((above - below) / (2 * step), slope, chi)))


@jax.enable_x64(True)
def _correlation_map(activation: Any, q: float, sigma_w2: float, sigma_b2: float) -> np.polynomial.Polynomial:
    r"""The correlation of two inputs' pre-activations of variance `q`, as a function of that in the layer below.

    By Mehler's formula, with the coefficients of $f$ in normalised Hermite polynomials, $\mathbb{E} f(u) f(v) = \sum_k
    a_k^2 c^k$ for $u$, $v$ of correlation $c$.
    """
    f = resolve(activation)
    s, weights = gaussian_rule(jnp.asarray(sqrt(q)), f.kinks)
    z, weighted = np.asarray(s) / sqrt(q), np.asarray(weights * f(s))
    before, hermite, coefficients = np.zeros_like(z), np.ones_like(z), []
    for k in range(DEGREE + 1):
        coefficients.append(weighted @ hermite)
        before, hermite = hermite, (z * hermite - sqrt(k) * before) / sqrt(k + 1)
    return (sigma_w2 * np.polynomial.Polynomial(np.square(coefficients)) + sigma_b2) / q


@jax.enable_x64(True)
def critical_point(activation: Any, *, sigma_b2: float = 0.0) -> tuple[float, float]:
    r"""Returns the weight variance $\sigma_w^2$ at which `chi_1` is 1, and the variance $q^*$ at rest there.

    There both $\sigma_w^2 = 1 / \mathbb{E} f'^2$ and $q = \sigma_w^2\, \mathbb{E} f^2 + \sigma_b^2$ hold; they are
    solved for $q$, which the variance map might take hundreds of thousands of layers to reach. Without biases it is 0
    for most activations; for scale-free ones any $q$ is at rest, and 0 is returned. Raises `ValueError` where there is
    no solution (a rectifier with biases, softplus) or the variance runs away from it (gelu or silu with small biases).

    >>> critical_point("relu")
    (2.0, 0.0)
    """
    from scipy.optimize import brentq  # here, for it is slow to load

    f, sigma_b2 = resolve(activation), positive_number("sigma_b2", sigma_b2, zero=True)

    def excess(log_q: float) -> float:
        q = exp(log_q)
        square, slope2 = moments(f, jnp.asarray(q))
        return float(square / slope2) + sigma_b2 - q

    low, high = log(1e-24), log(1e4)
    at_low = excess(low)
    at_zero = abs(at_low) < 1e-33  # q* = 0 lies on the line; 1e-33: what rounding leaves of 0
    if at_zero or at_low > 0 > excess(high):
        q = 0.0 if at_zero else exp(brentq(excess, low, high, xtol=1e-14))
        sigma_w2 = round(1 / mean_square_slope(f, q), 13)
        above = max(1.01 * q, 0.01)
        if variance_map(f, above, sigma_w2=sigma_w2, sigma_b2=sigma_b2) <= above * (1 + 1e-9):
            return sigma_w2, q
    raise ValueError(
        f"sigma_b2={sigma_b2!r} gives {f.name} no critical weight variance at which the variance settles; accepted are "
        "activations that saturate (tanh, erf, sigmoid, ...) at any sigma_b2, and scale-free ones (relu, leaky_relu, "
        "identity) at sigma_b2=0."
    )


def critical_weight_variance(activation: Any, *, sigma_b2: float = 0.0) -> float:
    r"""Returns the weight variance $\sigma_w^2$ of the `critical_point`; errors as there.

    >>> round(critical_weight_variance("sigmoid"), 2)
    103.01
    """
    return critical_point(activation, sigma_b2=sigma_b2)[0]
