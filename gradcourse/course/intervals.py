"""A number with its uncertainty: means and 95 % intervals over seeds.

>>> estimate(np.array([0.84, 0.85, 0.86]), ".2f")
'0.85 [0.83, 0.87]'
"""

from math import sqrt

import numpy as np
from jaxtyping import ArrayLike
from scipy.stats import t as student_t

__all__ = ["estimate", "interval"]


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
    """Returns the mean of the samples as text, and its 95 % interval where there are several, each number by `form`.

    Samples that are all the same have an interval too, of no width: whether it is shown must not hang on a rounding.

    >>> estimate(np.array([0.84, 0.85, 0.86]), ".2f")
    '0.85 [0.83, 0.87]'
    >>> estimate(0.85, ".2f")
    '0.85'
    """
    mean, low, high = (f"{value:{form}}" for value in interval(samples))
    return mean if np.size(samples) == 1 else f"{mean} [{low}, {high}]"
