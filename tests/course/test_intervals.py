"""Intervals hold what they promise, and whether one is shown does not hang on a rounding."""

import numpy as np
import pytest
from scipy import stats

from gradcourse.course.intervals import estimate, interval


def test_the_interval_is_students() -> None:
    samples = np.array([0.3, 1.2, 0.7, 2.0])
    expected = stats.t.interval(0.95, 3, samples.mean(), stats.sem(samples))
    np.testing.assert_allclose(interval(samples), (samples.mean(), *expected))


def test_the_interval_holds_the_mean_in_95_of_100_cases() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    held = [low <= 3.0 <= high for _, low, high in map(interval, draws)]
    assert abs(np.mean(held) - 0.95) < 4 * (0.95 * 0.05 / 4000) ** 0.5


def test_samples_that_differ_by_a_rounding_print_the_same() -> None:
    same, nearly = np.full(5, 0.3), np.array([0.3, 0.3, 0.3, 0.3, np.nextafter(0.3, 1)])
    single = np.array([0.3, 0.3, np.nextafter(np.float32(0.3), np.float32(1))], np.float32)
    assert {estimate(one, ".2f") for one in (same, nearly, single)} == {"0.30 [0.30, 0.30]"}
    assert estimate(np.zeros(3)) == estimate(np.array([0.0, -1e-17, 1e-7])) == "0.000 [0.000, 0.000]"
    assert estimate(1e6 * nearly, ".0f") == "300000 [300000, 300000]"


def test_a_single_number_has_no_interval() -> None:
    assert estimate(0.3, ".2f") == estimate(np.array([0.3]), ".2f") == "0.30"


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_samples_must_be_there_and_finite(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value, all finite"):
        interval(samples)
