"""Factorial experiments: identities, toy designs whose answers are known, and intervals that hold what they promise."""

from itertools import permutations

import numpy as np
import pytest

from gradcourse.course.factorial import (
    main_effect,
    shapley_shares,
    single_changes,
    variance_components,
    variance_shares,
)
from gradcourse.course.intervals import interval

TABLE = np.random.default_rng(0).normal(size=(2, 3, 2, 4))


def test_components_add_up_to_the_variance() -> None:
    assert sum(variance_components(TABLE).values()) == pytest.approx(TABLE.var(), rel=1e-12)
    assert shapley_shares(TABLE).sum() == pytest.approx(1, rel=1e-12)


def test_the_components_of_single_factors_are_those_of_chapter_5() -> None:
    components = variance_components(TABLE)
    alone = [components[(axis,)] / TABLE.var() for axis in range(TABLE.ndim)]
    np.testing.assert_allclose(alone, variance_shares(TABLE))


def test_shares_are_shapleys_value() -> None:
    """His own definition: what a factor adds to those before it, averaged over all orders."""
    axes = range(TABLE.ndim)

    def explained(known: tuple[int, ...]) -> float:
        return TABLE.mean(axis=tuple(axis for axis in axes if axis not in known)).var() if known else 0.0

    added = np.zeros(TABLE.ndim)
    orders = list(permutations(axes))
    for order in orders:
        for place, axis in enumerate(order):
            added[axis] += explained(order[: place + 1]) - explained(order[:place])
    np.testing.assert_allclose(shapley_shares(TABLE), added / len(orders) / TABLE.var())


def test_an_additive_table_has_no_joint_components() -> None:
    table = np.array([0.0, 1.0])[:, None, None] + np.array([0.0, 3.0])[:, None] + np.zeros(2)
    components = variance_components(table)
    assert {chosen for chosen, variance in components.items() if variance > 1e-12} == {(0,), (1,)}
    np.testing.assert_allclose(shapley_shares(table), [0.1, 0.9, 0.0], atol=1e-12)
    assert main_effect(table, 0) == 1
    assert main_effect(table, 1, start=1, end=0) == -3


def test_a_conjunction_needs_every_factor_and_shows_only_from_the_full_recipe() -> None:
    table = np.zeros((2, 2, 2))
    table[1, 1, 1] = 1
    np.testing.assert_array_equal(single_changes(table, start=(0, 0, 0), end=(1, 1, 1)), [0, 0, 0])
    np.testing.assert_array_equal(single_changes(table, start=(1, 1, 1), end=(0, 0, 0)), [-1, -1, -1])
    np.testing.assert_allclose([main_effect(table, axis) for axis in range(3)], 0.25)


def test_averages_of_single_changes_are_the_main_effect() -> None:
    changes = [
        single_changes(TABLE, start=(0, *others), end=(1, *others))[0] for others in np.ndindex(*TABLE.shape[1:])
    ]
    assert np.mean(changes) == pytest.approx(main_effect(TABLE, 0))


def test_the_interval_of_an_effect_holds_it_in_95_of_100_cases() -> None:
    noise = np.random.default_rng(1)
    truth = np.array([0.0, 0.7])[:, None] + np.array([0.0, 0.2, 0.5])
    held = []
    for _ in range(1000):
        effects = [main_effect(truth + noise.normal(size=truth.shape), 0) for _ in range(5)]
        _, low, high = interval(np.array(effects))
        held.append(low <= 0.7 <= high)
    assert abs(np.mean(held) - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="table is 2 everywhere"):
        shapley_shares(np.full((2, 2), 2.0))
    with pytest.raises(ValueError, match=r"start=\(0,\) and end=\(1, 1\) are accepted with one level for each of 2"):
        single_changes(np.eye(2), start=(0,), end=(1, 1))


def test_axes_that_add_up_explain_all_of_the_variance() -> None:
    draw = np.random.default_rng(0)
    effects = draw.normal(size=3)[:, None, None] + draw.normal(size=4)[:, None] + draw.normal(size=2)
    assert variance_shares(effects).sum() == pytest.approx(1)
    joint = np.array([[1.0, -1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(variance_shares(joint), 0)
    nothing = np.broadcast_to(draw.normal(size=(3, 1)), (3, 5))
    np.testing.assert_allclose(variance_shares(nothing), [1, 0], atol=1e-12)
