r"""What theory says of convolutions, and the networks that test it.

- `border_factor`, `border_share`: what zero padding leaves of the mean square of a gradient.
- `depth_scales`: over how many layers a random network forgets its input (Schoenholz et al. 2017).
- `wave_walk`: what a shared kernel's chance fluctuations do to a typical gradient.
- `gain_variance` and `measured_gain_variance`: the spread of the squared singular values of an input-output Jacobian
  (Pennington, Schoenholz and Ganguli 2017); `product_quantiles`: their distribution for linear Gaussian layers.
- `vanilla_cnn`: the plain convolutional networks of up to ten thousand layers of Xiao et al. (2018).

>>> round(border_factor(8), 4)
0.9212
>>> scales = depth_scales("tanh", sigma_w2=2.5, sigma_b2=0.05)
>>> f"{scales.correlation:.3f} {scales.xi_c:.2f}"
'0.447 11.80'
"""

from collections.abc import Sequence
from functools import lru_cache
from math import inf, log
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy.special import logsumexp

from gradcourse._checks import known_name, positive_integer
from gradcourse.nn import activations
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import Initializer, gaussian
from gradcourse.nn.layers import Dense, Flatten, Layer
from gradcourse.nn.network import Network, joined, sequential
from gradcourse.theory import meanfield

__all__ = [
    "DepthScales",
    "border_factor",
    "border_share",
    "critical_scheme",
    "critical_variance",
    "depth_scales",
    "gain_variance",
    "measured_gain_variance",
    "product_quantiles",
    "vanilla_cnn",
    "wave_walk",
]

# ---- Zero padding


def border_factor(size: int, *, kernel_size: int = 3) -> float:
    r"""Returns the factor per layer on a gradient's mean square that zero padding costs, in deep critical networks.

    On average over the weights, the mean squares per pixel of an image of `size` by `size` are carried back by the
    matrix that averages over each pixel's neighbours and finds nothing beyond the border. What remains after many
    layers is its largest eigenvalue; for 3 x 3 kernels $\left(\frac{1 + 2 \cos(\pi / (H + 1))}{3}\right)^2$. With
    circular padding the factor is 1.

    >>> round(border_factor(4), 4)
    0.7616
    """
    size, kernel_size = positive_integer("size", size), positive_integer("kernel_size", kernel_size)
    return float(np.abs(np.linalg.eigvals(_neighbours(size, kernel_size))).max() ** 2)


def border_share(size: int, layers: int, *, kernel_size: int = 3) -> Float[np.ndarray, " layer"]:
    """Returns what zero padding leaves of a gradient's mean square after 0 to `layers` layers on its way back.

    It starts spread evenly over an image of `size` by `size`, in deep critical networks; see `border_factor`.

    >>> border_share(4, 2).round(3)
    array([1.   , 0.694, 0.522])
    """
    carried, shares = np.ones(size), []
    for _ in range(layers + 1):
        shares.append(carried.mean() ** 2)  # rows and columns lose alike
        carried = _neighbours(size, kernel_size) @ carried
    return np.array(shares)


def _neighbours(size: int, kernel_size: int) -> Float[np.ndarray, "pixel pixel"]:
    """The matrix that averages over a row's neighbouring pixels, and finds nothing beyond its ends."""
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    before = (kernel_size - 1) // 2
    return ((distance >= -before) & (distance <= kernel_size - 1 - before)) / kernel_size


# ---- How far a signal reaches


class DepthScales(NamedTuple):
    r"""The fixed point of a random network, and over how many layers it is reached.

    - `q`, `correlation`: the variance of pre-activations, and the correlation of two inputs', after many layers;
    - `chi`: the factor per layer on a gradient's mean square;
    - `xi_q`, `xi_c`: layers over which the distances from `q` and from `correlation` fall by $e$;
    - `xi_gradient`: $-1 / \ln \chi$, negative where gradients explode.
    """

    q: float
    correlation: float
    chi: float
    xi_q: float
    xi_c: float
    xi_gradient: float


def depth_scales(activation: Any, *, sigma_w2: float, sigma_b2: float = 0.0) -> DepthScales:
    r"""Returns the depth scales of Schoenholz et al. (2017) for weights and biases of these variances.

    In the ordered phase ($\chi < 1$) all inputs become alike, with correlation 1 and $\xi_c = \xi_{\text{gradient}}$;
    in the chaotic phase they come to rest at a correlation below 1. Raises `ValueError` where the variance has no fixed
    point or that is 0. For activations that are smooth.

    >>> scales = depth_scales("tanh", sigma_w2=1.3, sigma_b2=0.05)
    >>> f"{scales.chi:.4f} {scales.xi_q:.3f} {scales.xi_c:.3f} {scales.xi_gradient:.3f}"
    '0.8802 1.785 7.834 7.834'
    """
    chosen = activations.resolve(activation)
    q = meanfield.fixed_point(chosen, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    if q < 1e-200:
        raise ValueError(
            f"sigma_w2={sigma_w2!r}, sigma_b2={sigma_b2!r} let the variance fall to 0, where no correlation is "
            "defined; accepted are settings with a positive fixed point, such as any with biases."
        )
    chi = meanfield.chi_1(chosen, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    step = 1e-4 * q
    maps = [meanfield.variance_map(chosen, q + side * step, sigma_w2=sigma_w2, sigma_b2=sigma_b2) for side in (1, -1)]
    correlation, slope = 1.0, chi
    if chi > 1:
        correlation = _resting_correlation(chosen, q, sigma_w2, sigma_b2)
        slope = sigma_w2 * _pair_mean(chosen.slope, q, correlation)
    return DepthScales(
        q, correlation, chi, *(_scale(factor) for factor in ((maps[0] - maps[1]) / (2 * step), slope, chi))
    )


def _scale(factor: float) -> float:
    logarithm = log(factor)
    return inf if abs(logarithm) < 1e-12 else -1 / logarithm


def _resting_correlation(activation: Any, q: float, sigma_w2: float, sigma_b2: float) -> float:
    """The stable fixed point below 1 of the correlation map, by bisection: above it the map is below the diagonal."""
    low, high = 0.0, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        grows = sigma_w2 * _pair_mean(activation, q, middle) + sigma_b2 > middle * q
        low, high = (middle, high) if grows else (low, middle)
    return low


def _pair_mean(function: Any, q: float, correlation: float) -> float:
    """The mean of `function(u) * function(v)` for Gaussian `u`, `v` of variance `q` with this correlation."""
    nodes, weights = _hermite_rule()
    u = np.sqrt(q) * nodes
    v = correlation * u[:, None] + np.sqrt(1 - correlation**2) * u[None]
    with jax.enable_x64(True):
        values = np.asarray(function(jnp.asarray(u)))[:, None] * np.asarray(function(jnp.asarray(v)))
    return float(weights @ values @ weights)


@lru_cache
def _hermite_rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the mean of a function of a standard Gaussian; to find them takes milliseconds."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    return nodes, weights / weights.sum()


def wave_walk(
    channels: int, side: int, layers: Sequence[int], *, sigma_w2: float = 1.0, draws: int = 500, seed: int = 0
) -> Float[np.ndarray, " place"]:
    r"""Returns the expected log10 norm of a gradient after so many linear layers of wrapped Gaussian convolutions.

    A shared kernel does the same at every position, so it acts on each spatial wave of a `side` by `side` image by one
    random matrix, `channels` by `channels`, of variance $\sigma_w^2 / c$; complex, but for waves that are their own
    mirror image. The square of a wave's amplitude is multiplied at every layer by a factor distributed as
    $\sigma_w^2 \chi^2_{2c} / (2c)$, or $\sigma_w^2 \chi^2_c / c$ for the exceptions. The waves walk independently, and
    the norm adds them up. So the typical norm falls as in a layer of $2c$ units, whatever the size of image and
    kernel, but for the waves that are lucky. Estimated from `draws` random walks. Raises
    `ValueError` where `layers` do not increase.

    >>> wave_walk(16, 4, [10, 1000]).round(1)
    array([-0. , -5.1])
    """
    channels, side = positive_integer("channels", channels), positive_integer("side", side)
    if np.any(np.diff([0, *layers]) < 0):
        raise ValueError(f"layers={list(layers)} is accepted in increasing order, from 0 on.")
    wave = {min((row, column), (-row % side, -column % side)) for row in range(side) for column in range(side)}
    alone = np.array([(-row % side, -column % side) == (row, column) for row, column in sorted(wave)])
    freedom, share = np.where(alone, channels, 2 * channels), np.where(alone, 1, 2) / side**2
    generator = np.random.default_rng(seed)
    logs, passed, found = np.zeros((draws, len(share))), 0, []
    for place in layers:
        for first in range(passed, place, 100):  # some at a time, to save memory
            size = (min(100, place - first), draws, len(share))
            logs += np.log(sigma_w2 * generator.chisquare(freedom, size) / freedom).sum(axis=0)
        passed = place
        found.append((logsumexp(logs, axis=1, b=share)).mean() / log(100))
    return np.array(found)


# ---- Dynamical isometry

ENSEMBLES = {"gaussian": -1.0, "orthogonal": 0.0}  # the first coefficient of the S-transform of W W^T


def gain_variance(activation: Any, *, q: float, depth: int, ensemble: str) -> float:
    r"""Returns the variance of the squared singular values of the Jacobian of `depth` wide critical layers.

    Relative to their mean squared, it is $L (\mu_2 / \mu_1^2 - 1 - s_1)$ with $\mu_k = \mathbb{E} f'^{2k}$ at
    pre-activation variance `q`, $s_1 = -1$ for Gaussian and 0 for orthogonal weights (Pennington et al. 2017).

    >>> gain_variance("relu", q=1.0, depth=4, ensemble="orthogonal")
    4.0
    """
    chosen, s_1 = activations.resolve(activation), ENSEMBLES[known_name("ensemble", ensemble, ENSEMBLES)]
    first, second = (
        meanfield.gaussian_mean(lambda s, power=power: chosen.slope(s) ** power, q, kinks=chosen.kinks)
        for power in (2, 4)
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


def measured_gain_variance(network: Network, params: Any, x: Float[Array, "1 *shape"]) -> Float[Array, " layer"]:
    """Returns the same for a network of layers of equal size, after each layer, from the whole Jacobian at one input.

    The Jacobian is carried forward as a matrix; the mean and the variance of its squared singular values are traces.
    """
    size = int(np.prod(network.input_shape))
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *network.input_shape)

    def step(layer: Layer, p: Any, carry: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        h, v = carry
        h, point = layer.linearize(p, h)
        v = point.times_slope(point.push(p, v))
        rows = v.reshape(size, -1)
        squares = jnp.matmul(rows, rows.T, precision=lax.Precision.HIGHEST)
        mean = jnp.trace(squares) / size
        return (h, v), jnp.sum(jnp.square(squares)) / size / jnp.square(mean) - 1

    return joined(network.scan(step, params, (x, basis))[1])


# ---- Ten thousand plain layers

SIGMA_B2 = 1e-9


def critical_scheme(name: str, *, sigma_b2: float = SIGMA_B2) -> Initializer:
    """Returns the scheme `name`, such as `"delta_orthogonal"`, on tanh's critical line for this bias variance.

    >>> round(critical_scheme("gaussian", sigma_b2=0.05).scale ** 2, 5)
    1.76095
    """
    sigma_w2 = meanfield.critical_weight_variance("tanh", sigma_b2=sigma_b2)
    return Initializer(name, sigma_w2**0.5, sigma_b2**0.5)


def critical_variance(*, sigma_b2: float = SIGMA_B2) -> float:
    """Returns the pre-activation variance at rest on tanh's critical line, where the weights undo the slopes.

    The variance map would take hundreds of thousands of layers to get there; bisection does not.

    >>> round(critical_variance(sigma_b2=0.05), 3)
    0.57
    """
    sigma_w2 = meanfield.critical_weight_variance("tanh", sigma_b2=sigma_b2)
    low, high = 1e-12, 1e3
    for _ in range(100):
        middle = (low * high) ** 0.5
        grows = sigma_w2 * meanfield.mean_square_slope("tanh", middle) > 1
        low, high = (middle, high) if grows else (low, middle)
    return low


def vanilla_cnn(depth: int, init: str, *, channels: int = 16, sigma_b2: float = SIGMA_B2) -> Network:
    """Returns a plain convolutional tanh network for digits, after Xiao et al. (2018): no shortcuts, no normalisation.

    A convolution of stride 2 is followed by `depth` equal ones of 4 x 4 pixels, wrapped round, whose weights are drawn
    by `init` (`"delta_orthogonal"` or `"gaussian"`) on tanh's critical line; then a readout. With these tiny biases the
    variance at rest is small and tanh nearly linear. Inputs should have that mean square, `critical_variance()`; the
    readout undoes the scale.

    >>> vanilla_cnn(10_000, "delta_orthogonal").depth
    10003
    """
    q = critical_variance(sigma_b2=sigma_b2)
    first = Conv(channels, "tanh", stride=2, initializer=gaussian(1.0))
    scheme = critical_scheme(init, sigma_b2=sigma_b2)
    layer = Conv(channels, "tanh", padding="CIRCULAR", initializer=scheme)
    readout = Dense(10, initializer=gaussian(q**-0.5))
    return sequential((8, 8, 1), [first, *[layer] * positive_integer("depth", depth), Flatten(), readout])
