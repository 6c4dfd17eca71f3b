r"""What theory says of convolutions.

- `border_factor`, `border_share`: what zero padding leaves of the mean square of a gradient.
- `wave_walk`: what a shared kernel's chance fluctuations do to a typical gradient.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log

import numpy as np
from jaxtyping import Float

from gradcourse._checks import positive_integer

__all__ = ["border_factor", "border_share", "wave_walk"]


def border_factor(size: int, *, kernel_size: int = 3) -> float:
    r"""Returns the factor per layer that zero padding leaves of a gradient's mean square, in deep critical networks.

    On average over the weights, the mean squares per pixel of an image of `size` by `size` are carried back by a
    matrix: it averages over each pixel's neighbours, and finds nothing beyond the border. Its largest eigenvalue is,
    for 3 x 3 kernels, $\left(\frac{1 + 2 \cos(\pi / (H + 1))}{3}\right)^2$. With circular padding it is 1.

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


def wave_walk(
    channels: int, side: int, layers: Sequence[int], *, sigma_w2: float = 1.0, draws: int = 500, seed: int = 0
) -> Float[np.ndarray, " place"]:
    r"""Returns the expected log10 norm of a gradient after so many linear layers of wrapped Gaussian convolutions.

    A shared kernel does the same at every position, so it acts on each spatial wave of a `side` by `side` image by one
    random matrix, `channels` by `channels`, of variance $\sigma_w^2 / c$. The matrix is complex, except for waves that
    are their own mirror image. At every layer the square of a wave's amplitude is multiplied by a factor distributed as
    $\sigma_w^2 \chi^2_{2c} / (2c)$, or $\sigma_w^2 \chi^2_c / c$ for the exceptions. The waves walk independently, and
    the squared norm is their sum. So the typical norm falls as in a layer of $2c$ units, whatever the size of image and
    kernel; the luckiest wave slows that down. `draws` random walks are averaged. Raises `ValueError` where `layers`,
    the places to report, do not increase.

    >>> wave_walk(16, 4, [10, 1000]).round(1)
    array([-0. , -5.1])
    """
    channels, side = positive_integer("channels", channels), positive_integer("side", side)
    if np.any(np.diff([0, *layers]) < 0):
        raise ValueError(f"layers={list(layers)} is accepted in increasing order, from 0 on.")
    mirrored = {(row, column): (-row % side, -column % side) for row in range(side) for column in range(side)}
    alone = np.array([wave == mirrored[wave] for wave in mirrored if wave <= mirrored[wave]])
    freedom, share = np.where(alone, channels, 2 * channels), np.where(alone, 1, 2) / side**2
    generator = np.random.default_rng(seed)
    logs, found = np.zeros((draws, len(share))), []
    for passed, place in pairwise([0, *layers]):
        for first in range(passed, place, 100):  # some at a time, to save memory
            size = (min(100, place - first), draws, len(share))
            logs += np.log(sigma_w2 * generator.chisquare(freedom, size) / freedom).sum(axis=0)
        found.append(np.logaddexp.reduce(logs + np.log(share), axis=1).mean() / log(100))
    return np.array(found)
