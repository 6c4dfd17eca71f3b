"""Factorial experiments: what each factor does, alone and together with others, in a table of every combination.

A table has one axis per factor and one entry per level along it; every combination is there once. Then the factors are
independent by design, and effects are differences of averages. To have an interval, make one table per seed and give
the statistic of each to `gradcourse.course.intervals.interval`.

>>> trains = np.array([[0.0, 1.0], [1.0, 1.0]])  # either of two remedies is enough
>>> main_effect(trains, 0)
0.5
>>> single_changes(trains, start=(0, 0), end=(1, 1))
array([1., 1.])
>>> single_changes(trains, start=(1, 1), end=(0, 0))
array([0., 0.])
>>> shapley_shares(trains)
array([0.5, 0.5])
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float

__all__ = ["main_effect", "shapley_shares", "single_changes", "variance_components", "variance_shares"]


def main_effect(table: Float[np.ndarray, "..."], factor: int, *, start: int = 0, end: int = -1) -> float:
    """Returns by how much the average over all other factors grows as `factor` goes from level `start` to `end`."""
    levels = np.moveaxis(np.asarray(table, np.float64), factor, 0)
    return float(levels[end].mean() - levels[start].mean())


def single_changes(
    table: Float[np.ndarray, "..."], *, start: Sequence[int], end: Sequence[int]
) -> Float[np.ndarray, " factor"]:
    """Returns what changing one factor alone does, each in turn, from its level in `start` to its level in `end`.

    From a bare start this is what each addition brings; from a full recipe, what each removal costs.
    """
    table = np.asarray(table, np.float64)
    if not len(start) == len(end) == table.ndim:
        raise ValueError(
            f"start={tuple(start)} and end={tuple(end)} are accepted with one level for each of {table.ndim} factors."
        )
    changed = [(*start[:axis], end[axis], *start[axis + 1 :]) for axis in range(table.ndim)]
    return np.array([table[levels] - table[tuple(start)] for levels in changed])


def variance_components(table: Float[np.ndarray, "..."]) -> dict[tuple[int, ...], float]:
    """Returns the variance of the table that each set of factors explains jointly, beyond all smaller sets.

    The functional analysis of variance: the table is a sum of orthogonal parts, one per set of axes, and the
    components are their variances, so they add up to that of the table. Cost: one pass over the table per set.

    >>> exclusive_or = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> variance_components(exclusive_or)
    {(0,): 0.0, (1,): 0.0, (0, 1): 0.25}
    """
    table = np.asarray(table, np.float64)
    components = {}
    for size in range(1, table.ndim + 1):
        for chosen in combinations(range(table.ndim), size):
            part = table
            for axis in range(table.ndim):
                mean = part.mean(axis=axis, keepdims=True)
                part = part - mean if axis in chosen else mean
            components[chosen] = float(np.square(part).mean())
    return components


def variance_shares(table: Float[np.ndarray, "..."]) -> Float[np.ndarray, " factor"]:
    """Returns the share of a table's variance that each of its axes explains by itself.

    An axis explains the variance of the averages over all other axes. What is missing to 1 is joint effects.

    >>> variance_shares(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([0.8, 0.2])
    """
    table = np.asarray(table, np.float64)
    axes = range(table.ndim)
    means = [table.mean(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    return np.array([mean.var() for mean in means]) / table.var()


def shapley_shares(table: Float[np.ndarray, "..."]) -> Float[np.ndarray, " factor"]:
    """Returns the share of the table's variance that is due to each factor; the shares add up to 1.

    A joint component is divided equally among the factors of its set: Shapley's value of a factor (Owen, 2014). Raises
    `ValueError` for a table that is the same everywhere.
    """
    table = np.asarray(table, np.float64)
    shares = np.zeros(table.ndim)
    for chosen, variance in variance_components(table).items():
        shares[list(chosen)] += variance / len(chosen)
    if np.allclose(table, table.flat[0], rtol=1e-12, atol=0):
        raise ValueError(f"table is {table.flat[0]:g} everywhere; accepted is one that varies.")
    return shares / shares.sum()
