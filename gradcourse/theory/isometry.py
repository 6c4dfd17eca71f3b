r"""Dynamical isometry: whether a deep network stretches all directions alike (Pennington, Schoenholz and Ganguli 2017).

The mean of the squared singular values of the Jacobian of output with respect to input may stay 1 at any depth, and
yet nearly all of them vanish, while a few explode. What is predicted here is their spread.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from gradcourse._checks import known_name, positive_integer
from gradcourse.nn.activations import resolve
from gradcourse.theory.quadrature import gaussian_mean

__all__ = ["gain_variance", "product_quantiles"]

ENSEMBLES = {"gaussian": -1.0, "orthogonal": 0.0}  # the first coefficient of the S-transform of W W^T


def gain_variance(activation: Any, *, q: float, depth: int, ensemble: str) -> float:
    r"""Returns the variance of the squared singular values of the Jacobian of `depth` wide critical layers.

    Relative to their mean squared, it is $L (\mu_2 / \mu_1^2 - 1 - s_1)$ with $\mu_k = \mathbb{E} f'^{2k}$ at
    pre-activation variance `q`, $s_1 = -1$ for Gaussian and 0 for orthogonal weights (Pennington et al. 2017).

    >>> [gain_variance("identity", q=1.0, depth=50, ensemble=ensemble) for ensemble in ("gaussian", "orthogonal")]
    [50.0, 0.0]
    """
    chosen, s_1 = resolve(activation), ENSEMBLES[known_name("ensemble", ensemble, ENSEMBLES)]
    first, second = (
        gaussian_mean(lambda s, power=power: chosen.slope(s) ** power, q, kinks=chosen.kinks) for power in (2, 4)
    )
    return round(positive_integer("depth", depth) * (second / first**2 - 1 - s_1), 12)


def product_quantiles(depth: int, shares: Float[np.ndarray, " share"]) -> Float[np.ndarray, " share"]:
    r"""Returns below which squared singular value lie these shares of those of `depth` wide linear Gaussian layers.

    The product of $L$ square matrices with entries of variance $1/n$ has the Fuss-Catalan law: with $0 < \varphi <
    \pi / (L + 1)$, the squared singular values and their density are

    $$ x = \frac{\sin^{L+1} (L+1) \varphi}{\sin \varphi\, \sin^L L \varphi}, \qquad
       \rho(x) = \frac{\sin^2 \varphi\, \sin^{L-1} L \varphi}{\pi \sin^L (L+1) \varphi}. $$

    The largest is $(L + 1)^{L + 1} / L^L$, the mean 1 and the variance $L$.

    >>> product_quantiles(1, np.array([1.0])).round(3)  # one layer: the largest singular value is 2
    array([4.])
    """
    size = positive_integer("depth", depth)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"shares={shares} are accepted from 0 to 1.")
    angle = np.linspace(0, np.pi / (size + 1), 100_001)[1:-1]
    outer, inner = np.sin((size + 1) * angle), np.sin(size * angle)
    x = outer ** (size + 1) / (np.sin(angle) * inner**size)
    density = np.sin(angle) ** 2 * inner ** (size - 1) / (np.pi * outer**size)
    slope = x * ((size + 1) ** 2 / np.tan((size + 1) * angle) - 1 / np.tan(angle) - size**2 / np.tan(size * angle))
    mass = -density * slope  # per angle, in which it is smooth
    above = np.concatenate([[0], np.cumsum((mass[1:] + mass[:-1]) / 2)])
    return np.interp(1 - shares, above / above[-1], x)
