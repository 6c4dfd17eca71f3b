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

from math import acos, pi, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradcourse._checks import positive_integer, positive_number
from gradcourse.nn.activations import resolve
from gradcourse.theory.criticality import mean_square, mean_square_slope
from gradcourse.theory.quadrature import gaussian_mean, gaussian_rule, panel_rule

__all__ = [
    "batch_norm_rate",
    "centring_gain",
    "layer_norm_rate",
    "scaling_rate",
    "shortcut_growth",
    "shortcut_growth_with_batch_norm",
    "variance",
]

POLAR, ANGLES = 60, 24  # nodes per panel


def variance(activation: Any, q: float = 1.0) -> float:
    """Returns the variance of `f(s)` for a Gaussian pre-activation of variance `q`."""
    f = resolve(activation)
    return mean_square(f, q) - gaussian_mean(f, q, kinks=f.kinks) ** 2


def centring_gain(activation: Any) -> float:
    """Returns the gain with which standardised weights keep a pre-activation variance of 1.

    >>> round(centring_gain("relu"), 4)  # sqrt(2 / (1 - 1 / pi)), Brock et al. (2021)
    1.7129
    """
    return 1 / sqrt(variance(activation))


def layer_norm_rate(activation: Any) -> float:
    r"""Returns $\mathbb{E} f'^2 / \mathbb{E} f^2$, the factor with normalisation over many units of one example."""
    return mean_square_slope(activation, 1.0) / mean_square(activation, 1.0)


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


@jax.enable_x64(True)
def scaling_rate(activation: Any) -> tuple[float, float]:
    r"""Returns the factor per layer with scaling but no centring over a large batch, and the share that still varies.

    Every unit is divided by the root mean square $\rho$ of its values over the batch. These are the sum of a mean
    $\sqrt{b} g$, with $g \sim N(0, 1)$ over units, and a part of variance $a - b$ that varies from example to example;
    $a$ is the mean square of the activations and $b$ their mean product for two examples. So $\rho^2 = b g^2 + a - b$,
    and $a - b$ does not vanish, for units of a mean near 0 keep what varies. At the fixed point of $(a, b)$ the factor
    is $\mathbb{E}_g \mathbb{E} f'^2 / \rho^2$, and the share $(a - b) / a$. For smooth activations.
    """
    f = resolve(activation)
    near = tuple(10.0 ** np.arange(-6, 1))  # rho is small, and not smooth, where g is
    g, weights = map(np.asarray, gaussian_rule(jnp.asarray(1.0), (*near, *(-cut for cut in near))))
    z, z_weights = np.polynomial.hermite_e.hermegauss(40)  # enough for what is smooth
    z_weights /= z_weights.sum()

    def normalised(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
        rho = np.sqrt(b * g**2 + a - b)[:, None]
        return (sqrt(b) * g[:, None] + sqrt(a - b) * z) / rho, rho

    a, b = 1.0, 0.5
    for _ in range(100):
        h = np.asarray(f(normalised(a, b)[0]))
        a, b = float(weights @ h**2 @ z_weights), float(weights @ (h @ z_weights) ** 2)
    s, rho = normalised(a, b)
    return float(weights @ (np.asarray(f.slope(s)) / rho) ** 2 @ z_weights), (a - b) / a


@jax.enable_x64(True)
def _over_a_batch(activation: Any, batch: int | None) -> tuple[float, float]:
    r"""The variance $c$ of `f` over the batch and $c$ times the rate, for infinite ones $\mathbb{E} f'^2$."""
    if batch is None:
        return variance(activation), mean_square_slope(activation, 1.0)
    size = positive_integer("batch", batch)
    if size < 4:
        raise ValueError(f"batch={batch!r} is accepted from 4 on: below, the rate is infinite.")
    f = resolve(activation)
    s, t, weights = _pairs(size, f.kinks)
    (f_s, f_t), (d_s, d_t) = ([np.asarray(g(u)) for u in (s, t)] for g in (f, f.slope))
    spread = np.sum(weights * f_s * (f_s - f_t))
    own = (size - 1) * np.sum(weights * d_s**2 * (1 - 1 / size - s**2 / size))
    others = (size - 1) / size * np.sum(weights * d_s * d_t * (1 + s * t))
    return float(spread), float(size / (size - 3) * (own + others) / (size - 1))


def _pairs(batch: int, kinks: tuple[float, ...]) -> tuple[Float[np.ndarray, "angle polar"], ...]:
    """Nodes `s` and `t`, and weights, of the mean over two entries of a vector of `batch`.

    The vector is uniform on the sphere of squared radius `batch`, in the space orthogonal to (1, ..., 1). Of the pair's
    polar coordinates the angle is uniform, and the radius is `(batch - 1)**0.5 * sin(polar)`. Panels of the radius end
    where `s` or `t` is at a kink, panels of the angle where there is no such radius any more.
    """
    tilt = acos(-1 / (batch - 1))  # by the correlation of two entries
    last = np.arccos(np.clip(np.array([0.0, *kinks]) / sqrt(batch - 1), -1, 1))
    ends = np.concatenate([turn + side * last for turn in (0.0, tilt) for side in (1, -1)]) % (2 * pi)
    angle, angle_weights = panel_rule(np.array(sorted({0.0, *ends, 2 * pi})), ANGLES)
    s, t = (sqrt(batch - 1) * np.cos(angle - turn) for turn in (0.0, tilt))
    reach = min(pi / 2, 9 / sqrt(batch - 3))  # what is beyond weighs less than 1e-16
    cuts = [np.arcsin(np.clip(kink / entry, 0, np.sin(reach))) for kink in kinks if kink for entry in (s, t)]
    polar, polar_weights = panel_rule(np.sort([0 * s, *cuts, 0 * s + reach], axis=0).T, POLAR)
    density = (batch - 3) * np.cos(polar) ** (batch - 4) * np.sin(polar) / (2 * pi)
    s, t = (entry[:, None] * np.sin(polar) for entry in (s, t))
    return s, t, angle_weights[:, None] * polar_weights * density


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
    variance over the batch of its input, which is $v_l = \text{start} + \sigma_w^2 c\, l$ at block $l$. The factor is
    $1 + \sigma_w^2 c\, r^m / v_l$ with $m$ layers, and the product grows like $L^{r^m}$.
    """
    added, _ = _over_a_batch(activation, batch)
    added *= positive_number("sigma_w2", sigma_w2)
    spread = positive_number("start", start) + added * np.arange(positive_integer("blocks", blocks))
    gain = added * batch_norm_rate(activation, batch) ** positive_integer("layers", layers)
    return np.asarray(1 + gain / spread)
