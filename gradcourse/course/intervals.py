"""A number with its uncertainty: means and 95 % intervals over seeds.

>>> estimate(np.array([0.84, 0.85, 0.86]), ".2f")
'0.85 [0.83, 0.87]'
"""

from math import isclose, sqrt

import numpy as np
from jaxtyping import ArrayLike
from scipy.stats import t as student_t

__all__ = ["estimate", "interval"]

ROUNDING = 1e-5  # what float32 may lose on its way through a network, relative; next to zero a tenth of it


def interval(samples: ArrayLike) -> tuple[float, float, float]:
    """Returns the mean of the samples and the ends of its 95 % interval, by Student's t.

    One sample, or a plain number, stands for an exact value: both ends are the value itself. Raises `ValueError` for
    samples that are missing or not finite.

    >>> [round(value, 3) for value in interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    """
    values = np.asarray(samples, np.float64).ravel()
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"samples={samples!r} is accepted with at least one value, all finite.")
    mean = float(values.mean())
    if values.size == 1:
        return mean, mean, mean
    half = float(student_t.ppf(0.975, values.size - 1) * values.std(ddof=1) / sqrt(values.size))
    return mean, mean - half, mean + half


def estimate(samples: ArrayLike, form: str = "z.3f") -> str:
    """Returns the mean of the samples as text and, where they differ, its 95 % interval; `form` is that of each number.

    Samples that agree to the rounding of float32 are one number, whichever machine has computed them.

    >>> estimate(np.array([0.84, 0.85, 0.86]), ".2f")
    '0.85 [0.83, 0.87]'
    >>> estimate(np.array([0.85, 0.85, 0.85 + 1e-9]), ".2f")
    '0.85'
    """
    mean, low, high = interval(samples)
    if isclose(low, high, rel_tol=ROUNDING, abs_tol=ROUNDING / 10):
        return f"{mean:{form}}"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"
