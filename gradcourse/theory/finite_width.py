r"""What a random rectifier network of finite width does to a norm, exactly: its drift, its spread, and its death.

Mean-field theory averages squares over infinitely many units. In a layer of $n$ units with independent Gaussian
weights of variance $\sigma_w^2 / n$ the square of a norm is multiplied by a random factor. On the way forward that is

$$\frac{\|h_{l+1}\|^2}{\|h_l\|^2} = \frac{\sigma_w^2}{n}\, \chi^2_K, \qquad K \sim \operatorname{Bin}(n, \tfrac12),$$

where $K$ counts the units that are on and $\chi^2_K$ is a sum of $K$ squared standard normals. On the way back the
factor of a vector that points anywhere with equal probability has the same distribution (Hanin and Nica 2020), and
those of different layers are independent. So the log of the squared norm is a random walk: its mean moves by
`log_gain(n).mean` per layer, its variance grows by `log_gain(n).variance`. Although the mean square is preserved with
He's weights, the log's mean falls: the typical network is not the average one.

>>> rectifier = log_gain(16)
>>> f"{rectifier.mean:.6f} and {rectifier.variance:.6f}, roughly {-5 / 32:.6f} and {5 / 16:.6f}"
'-0.176397 and 0.419593, roughly -0.156250 and 0.312500'
>>> f"{born_dead(width=3, layers=9):.4f}"
'0.6993'
"""

from math import log
from typing import NamedTuple

import numpy as np

from gradcourse._checks import known_name, positive_integer, positive_number

__all__ = ["LogGain", "born_dead", "log_gain", "typical_square"]

CRITICAL = {"relu": 2.0, "identity": 1.0}  # the weight variance that keeps the mean square


class LogGain(NamedTuple):
    """Mean and variance of the natural log of the factor by which one layer multiplies a squared norm."""

    mean: float
    variance: float


def log_gain(width: int, *, activation: str = "relu", sigma_w2: float | None = None) -> LogGain:
    r"""Returns the drift and the spread per layer of $\ln \|h\|^2$, for layers of `width` Gaussian units, no biases.

    With $\psi$ the digamma function the drift is $\mathbb{E}\, \psi(K/2) + \ln(2 \sigma_w^2 / n)$ and the spread
    $\mathbb{E}\, \psi'(K/2) + \operatorname{Var} \psi(K/2)$: about $-5/(2n)$ and $5/n$ for wide layers. For `"relu"`,
    $K \sim \operatorname{Bin}(n, 1/2)$ given that at least one unit is on (else see `born_dead`); for `"identity"`,
    $K = n$. By default `sigma_w2` is what keeps the mean square: 2 for the rectifier, 1 for the linear layer.
    """
    from scipy.special import digamma, gammaln, polygamma, softmax  # here, for they are slow to load

    width = positive_integer("width", width)
    critical = CRITICAL[known_name("activation", activation, CRITICAL)]
    sigma_w2 = critical if sigma_w2 is None else positive_number("sigma_w2", sigma_w2)
    on = np.arange(1 if activation == "relu" else width, width + 1)
    chance = softmax(-gammaln(on + 1) - gammaln(width - on + 1))  # the binomial coefficients, over their sum
    logs = digamma(on / 2)
    mean = float(chance @ logs)
    variance = float(chance @ polygamma(1, on / 2) + chance @ np.square(logs - mean))
    return LogGain(mean + log(2 * sigma_w2 / width), variance)


def typical_square(width: int, layers: int) -> float:
    r"""Returns what He's weights leave of a squared norm after $L$ `layers` in a typical network of this `width`.

    That is $e^{L \cdot \text{drift}}$: the geometric mean, and nearly the median. The mean is 1.

    >>> f"{typical_square(16, 50):.2e}"
    '1.48e-04'
    """
    return float(np.exp(layers * log_gain(width).mean))


def born_dead(width: int, layers: int) -> float:
    r"""Returns the probability that a fresh rectifier network puts out nothing: $1 - (1 - 2^{-N})^H$.

    For one input, zero biases, weights of any symmetric distribution and $H$ `layers` of $N$ units; for many inputs at
    once it is at most as likely (Lu et al. 2020). A layer is dead if all its units are off, as are all above it then.
    """
    width, layers = positive_integer("width", width), positive_integer("layers", layers)
    return float(-np.expm1(layers * np.log1p(-(2.0**-width))))
