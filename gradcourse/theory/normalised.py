r"""What theory predicts for wide random networks with normalisation or shortcuts: the growth of gradients per layer.

Let $s$ be a Gaussian pre-activation of variance 1, as a normalisation makes it, and $f(s)$ what it hands on. The next
layer's weights have the variance $\sigma_w^2 / n$, and what comes out of them is divided by its deviation. Over a large
*batch* that is $\sigma_w \sqrt{\operatorname{Var} f}$; over the *units* of one example it is $\sigma_w
\sqrt{\mathbb{E} f^2}$, for random projections have the mean 0. So per layer a gradient's mean square grows by

$$ \frac{\mathbb{E} f'(s)^2}{\operatorname{Var} f(s)} \quad\text{(batch norm)}, \qquad
   \frac{\mathbb{E} f'(s)^2}{\mathbb{E} f(s)^2} \quad\text{(layer norm)}, \qquad s \sim N(0, 1), $$

whatever the weights. The first is never below 1: that is the Gaussian Poincaré inequality, with equality for linear $f$
only. So batch normalisation lets no gradient vanish, and every activation that is not linear makes it explode.

For a small batch see `batch_norm_rate`, which is exact for infinitely wide layers (Yang et al., 2019).

>>> round(batch_norm_rate("relu"), 4)  # pi / (pi - 1)
1.4669
>>> round(batch_norm_rate("identity", batch=8), 4)  # (8 - 2) / (8 - 3)
1.2
>>> round(layer_norm_rate("sigmoid"), 3)
0.153
"""

from functools import lru_cache
from itertools import pairwise
from math import acos, pi, sqrt
from typing import Any

import numpy as np
from jaxtyping import Float

from gradcourse._checks import positive_integer, positive_number
from gradcourse.nn.activations import resolve
from gradcourse.theory import meanfield

__all__ = [
    "batch_norm_rate",
    "centring_gain",
    "layer_norm_rate",
    "scaling_rate",
    "shortcut_growth",
    "shortcut_growth_with_batch_norm",
    "variance",
]

NODES = 40  # per panel
RADII, ANGLES = 400, 12  # the latter per panel


def _mean(activation: Any, q: float) -> float:
    f = resolve(activation)
    return meanfield.gaussian_mean(f, q, kinks=f.kinks)


def variance(activation: Any, q: float = 1.0) -> float:
    """Returns the variance of `f(s)` for a Gaussian pre-activation of variance `q`."""
    return meanfield.mean_square(activation, q) - _mean(activation, q) ** 2


def centring_gain(activation: Any) -> float:
    """Returns the gain with which standardised weights keep a pre-activation variance of 1.

    >>> round(centring_gain("relu"), 4)  # sqrt(2 / (1 - 1 / pi)), Brock et al. (2021)
    1.7129
    """
    return 1 / sqrt(variance(activation))


def layer_norm_rate(activation: Any) -> float:
    r"""Returns $\mathbb{E} f'^2 / \mathbb{E} f^2$, the factor with normalisation over many units of one example."""
    return meanfield.mean_square_slope(activation, 1.0) / meanfield.mean_square(activation, 1.0)


def batch_norm_rate(activation: Any, batch: int | None = None) -> float:
    r"""Returns the factor per layer on a gradient's mean square, with batch normalisation of `batch` examples.

    Without `batch`, for infinitely many. A unit's normalised pre-activations $\hat s$ are uniform on the sphere of
    radius $\sqrt B$ orthogonal to $(1, \ldots, 1)$, and with $D = \operatorname{diag} f'(\hat s)$, the projections $P$
    off $\{1, \hat s\}$ and $G$ off $1$, and $c = \mathbb{E} f(\hat s_1)^2 - \mathbb{E} f(\hat s_1) f(\hat s_2)$,

    $$ \frac{B}{(B - 3)\, c}\; \frac{\mathbb{E} \operatorname{tr} P D G D P}{B - 1}. $$

    Inputs are taken to be equally far from one another, as the network makes them. Raises `ValueError` below 4
    examples, where the mean of $1 / \sigma^2$ is infinite.
    """
    spread, slope = _over_a_batch(activation, batch)
    return slope / spread


def scaling_rate(activation: Any) -> tuple[float, float]:
    r"""Returns the factor per layer with scaling but no centring over a large batch, and the share that still varies.

    Every unit is divided by the root mean square $\rho$ of its values over the batch. These are a mean $\sqrt{b} g$,
    with $g \sim N(0, 1)$ over units, and a part of variance $a - b$ that varies from example to example; $a$ is the
    mean square of the activations and $b$ their mean product for two examples. So $\rho^2 = b g^2 + a - b$. Units whose
    mean is near 0 are not drowned by it: they keep $a - b$ from vanishing. At the fixed point of $(a, b)$ the factor is
    $\mathbb{E}_g \mathbb{E} f'^2 / \rho^2$, and the share $(a - b) / a$.
    """
    f = resolve(activation)
    nodes, node_weights = _legendre(NODES)
    edges = [0.0, *np.geomspace(1e-6, 9.0, 24)]
    g = np.concatenate([(u + v) / 2 + (v - u) / 2 * nodes for u, v in pairwise(edges)])
    weights = np.concatenate([(v - u) / 2 * node_weights for u, v in pairwise(edges)])
    weights *= np.exp(-(g**2) / 2) / sqrt(2 * pi)
    g, weights = np.concatenate([-g, g]), np.concatenate([weights, weights])
    z, z_weights = np.polynomial.hermite_e.hermegauss(NODES)
    z_weights /= sqrt(2 * pi)
    a, b, rate = 1.0, 0.5, 0.0
    for _ in range(100):
        rho = np.sqrt(b * g**2 + a - b)
        s = ((sqrt(b) * g)[:, None] + sqrt(a - b) * z) / rho[:, None]
        h, slope = (np.asarray(function(s), np.float64) for function in (f, f.slope))
        rate = float(weights @ (slope**2 @ z_weights / rho**2))
        a, b = float(weights @ (h**2 @ z_weights)), float(weights @ (h @ z_weights) ** 2)
    return rate, (a - b) / a


def _over_a_batch(activation: Any, batch: int | None) -> tuple[float, float]:
    r"""The variance $c$ over the batch of `f`, and the rate times $c$: the factor where the weights keep variances.

    For an infinite batch $\operatorname{Var} f$ and $\mathbb{E} f'^2$.
    """
    if batch is None:
        return variance(activation), meanfield.mean_square_slope(activation, 1.0)
    size = positive_integer("batch", batch)
    if size < 4:
        raise ValueError(f"batch={batch!r} is accepted from 4 on: below, the rate is infinite.")
    f = resolve(activation)
    s, t, weights = _pairs(size)
    (f_s, f_t), (d_s, d_t) = ([np.asarray(g(u), np.float64) for u in (s, t)] for g in (f, f.slope))
    spread = np.sum(weights * f_s * (f_s - f_t))
    own = (size - 1) * np.sum(weights * d_s**2 * (1 - 1 / size - s**2 / size))
    others = (size - 1) / size * np.sum(weights * d_s * d_t * (1 + s * t))
    return float(spread), float(size / (size - 3) * (own + others) / (size - 1))


def shortcut_growth(blocks: int, *, scale: float = 1.0) -> float:
    r"""Returns what `blocks` blocks $h + \beta W f(h)$ multiply a gradient's mean square by, $(1 + \beta^2)^L$.

    For rectifiers with He's weights, which keep a mean square in the branch; `scale` is $\beta$.

    >>> round(shortcut_growth(50, scale=50**-0.5), 2)
    2.69
    """
    return float((1 + positive_number("scale", scale, zero=True) ** 2) ** positive_integer("blocks", blocks))


def shortcut_growth_with_batch_norm(
    activation: Any, blocks: int, *, sigma_w2: float, layers: int = 1, start: float = 1.0, batch: int | None = None
) -> Float[np.ndarray, " block"]:
    r"""Returns what each of `blocks` blocks multiplies a gradient's mean square by, with batch norm in the branch.

    A branch has `layers` layers in pre-activation order: batch norm, activation, weights. With $c$ the variance over
    the batch of the activations and $r$ the rate, both as in `batch_norm_rate`, every branch adds $\sigma_w^2 c$ to the
    variance over the batch of its input. That is `start` at the first block, $v_l = \text{start} + \sigma_w^2 c\, l$ at
    block $l$, and the factor is $1 + \sigma_w^2 c\, r^m / v_l$ with $m$ layers. For large $l$ that is a power law: the
    product grows like $L^{r^m}$.
    """
    added, _ = _over_a_batch(activation, batch)
    added *= positive_number("sigma_w2", sigma_w2)
    spread = positive_number("start", start) + added * np.arange(positive_integer("blocks", blocks))
    gain = added * batch_norm_rate(activation, batch) ** positive_integer("layers", layers)
    return np.asarray(1 + gain / spread)


# Gauss's nodes are eigenvalues: a tenth of a second each time, if they are not kept.
_legendre = lru_cache(np.polynomial.legendre.leggauss)


@lru_cache
def _pairs(
    batch: int,
) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
    """Nodes and weights for the mean over two entries of a vector of `batch`, uniform on its sphere and of mean 0.

    In polar coordinates: radius squared is Beta distributed, and the angle is uniform; kinks at 0 are straight lines.
    """
    # r^2 = 1 - w^(2 / (batch - 3)) with w uniform on (0, 1)
    unit, unit_weights = _legendre(RADII)
    uniform, radius_weights = (unit + 1) / 2, unit_weights / 2
    radius = np.sqrt((batch - 1) * (1 - uniform ** (2 / (batch - 3))))
    lean = -1 / (batch - 1)  # the correlation of two entries
    tilt = acos(lean)
    # s = radius cos(angle), t = radius cos(angle - tilt)
    cuts = sorted({0.0, pi / 2, 3 * pi / 2, (tilt + pi / 2) % (2 * pi), (tilt + 3 * pi / 2) % (2 * pi), 2 * pi})
    nodes, panel_weights = _legendre(ANGLES)
    angles = np.concatenate([(a + b) / 2 + (b - a) / 2 * nodes for a, b in pairwise(cuts)])
    angle_weights = np.concatenate([(b - a) / 2 * panel_weights for a, b in pairwise(cuts)]) / (2 * pi)
    s, t = (radius[:, None] * np.cos(angles - turn)[None] for turn in (0.0, tilt))
    return s.ravel(), t.ravel(), (radius_weights[:, None] * angle_weights).ravel()
