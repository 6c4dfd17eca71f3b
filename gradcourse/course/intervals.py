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
    """Returns the mean of the samples and its 95 % interval as text; `form` is the format of each number.

    A single number has no interval. Several have one even where they agree: whether they do so exactly, or but for a
    rounding, depends on the machine, and the text must not.

    >>> estimate(np.array([0.84, 0.85, 0.86]), ".2f")
    '0.85 [0.83, 0.87]'
    >>> estimate(0.85, ".2f"), estimate(np.array([0.85, 0.85]), ".2f")
    ('0.85', '0.85 [0.85, 0.85]')
    """
    mean, low, high = interval(samples)
    return f"{mean:{form}}" if np.size(samples) == 1 else f"{mean:{form}} [{low:{form}}, {high:{form}}]"
