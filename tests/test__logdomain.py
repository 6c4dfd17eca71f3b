"""Numbers with exponents of their own: exact under powers of two, and the same as NumPy where that has the range."""

from math import log10

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse._logdomain import (
    LN10,
    Scaled,
    finite,
    log_ratio,
    log_root_mean_square,
    normal,
    profile_of,
    rescale,
    to_unit,
    total,
)

RANDOM = np.random.default_rng(0)


def scaled(exponents, squares):
    return Scaled(jnp.asarray(exponents, jnp.int32), jnp.asarray(squares, jnp.float32))


def log2(norms):
    """The log2 of `square * 4 ** exponent`, in float64."""
    with np.errstate(divide="ignore"):
        return 2.0 * np.asarray(norms.exponent) + np.log2(np.asarray(norms.square, np.float64))


# Vectors


@pytest.mark.parametrize("power", [-125, -100, -1, 0, 1, 64, 126])
def test_scaling_is_exact(power):
    v = jnp.asarray(RANDOM.uniform(0.5, 0.99, size=(2, 3, 4)), jnp.float32)
    unit, exponent = to_unit(v * jnp.float32(2.0**power), (0, 2))
    np.testing.assert_array_equal(exponent, power)
    np.testing.assert_array_equal(unit, v)


def test_each_example_is_scaled_alone_and_zeros_stay():
    v = jnp.stack([jnp.full(4, 2.0**-90), jnp.zeros(4), jnp.array([2.0**90, 2.0**-90, 0, -(2.0**90)])])[None]
    unit, exponent, norms = rescale(v, jnp.array([5, 6, -7]))
    np.testing.assert_array_equal(exponent, [5 - 89, 6, -7 + 91])
    np.testing.assert_array_equal(unit[0], [[0.5] * 4, [0] * 4, [0.5, 0, 0, -0.5]])  # 2 ** -181 of the rest is lost
    np.testing.assert_array_equal(norms.exponent, exponent)
    np.testing.assert_array_equal(norms.square, [1.0, 0.0, 0.5])


def test_the_largest_and_the_smallest_numbers_keep_their_digits():
    limits = jnp.finfo(jnp.float32)
    for value in (limits.max, limits.tiny, -limits.max):
        unit, exponent = to_unit(jnp.full((1, 1), value), (1,))
        assert 0.5 <= abs(unit.item()) <= 1 or abs(unit.item()) < 4
        assert float(unit.item()) * 2.0 ** exponent.item() == float(value)


def test_a_zero_has_the_exponent_that_it_is_given():
    _, exponent, norms = rescale(jnp.zeros((2, 1, 3)), jnp.array([-12345]))
    assert exponent.item() == -12345
    assert norms.square.item() == 0


# Sums


def test_normal_numbers_are_the_same_numbers():
    exponents, squares = RANDOM.integers(-(10**6), 10**6, 50), 10.0 ** RANDOM.uniform(-30, 30, 50)
    before = scaled(exponents, squares)
    after = normal(before)
    np.testing.assert_allclose(log2(after), log2(before), rtol=0, atol=1e-9)
    assert (np.asarray(after.square) >= 0.25).all()
    assert (np.asarray(after.square) < 4).all()


def test_normal_leaves_a_zero_a_zero():
    np.testing.assert_array_equal(normal(scaled([3], [0.0])).square, [0.0])


def test_sums_are_numpys_where_it_has_the_range():
    exponents, squares = RANDOM.integers(-20, 20, (6, 5)), RANDOM.uniform(0, 1, (6, 5)).astype(np.float32)
    expected = (squares * 4.0**exponents).sum(axis=0)
    np.testing.assert_allclose(log2(total(scaled(exponents, squares))), np.log2(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [-(10**8), -3000, 10**8])
def test_sums_do_not_see_a_common_power(shift):
    exponents, squares = RANDOM.integers(-20, 20, (6, 5)), RANDOM.uniform(0, 1, (6, 5))
    before, after = (total(scaled(exponents + add, squares)) for add in (0, shift))
    np.testing.assert_array_equal(after.square, before.square)
    np.testing.assert_array_equal(after.exponent, before.exponent + shift)


@pytest.mark.parametrize("apart", [12, 100, 5000, 2 * 10**9])
def test_of_very_different_numbers_the_largest_is_left(apart):
    found = total(scaled([[0], [-apart]], [[1.0], [1.0]]))
    assert log2(found).item() == pytest.approx(np.log2(1 + 4.0 ** -min(apart, 500)), abs=1e-7)


def test_zeros_add_nothing_whatever_their_exponent():
    found = total(scaled([[9000], [-9000], [9999]], [[0.0], [1.0], [0.0]]))
    assert log2(found).item() == -18000
    assert total(scaled([[9], [-9]], [[0.0], [0.0]])).square.item() == 0


# Averages


def spread(count=7, size=3):
    """Exponents and squares of `(size, count)` numbers whose roots are within float64, and these."""
    exponents, squares = RANDOM.integers(-3, 3, (size, count)), RANDOM.uniform(0.1, 1, (size, count))
    norms = scaled(exponents, squares)
    return norms, np.asarray(norms.square, np.float64) * 4.0**exponents


def in_log10(exponent, fraction):
    return (np.asarray(exponent, np.float64) + np.asarray(fraction, np.float64)) * log10(2)


def test_root_mean_squares_and_their_errors_are_numpys():
    norms, squares = spread()
    exponent, fraction, error = log_root_mean_square(norms)
    mean = squares.mean(axis=-1)
    np.testing.assert_allclose(in_log10(exponent, fraction), np.log10(mean) / 2, atol=1e-6)
    expected = squares.std(axis=-1, ddof=1) / np.sqrt(7) / mean / 2 / np.log(10)
    np.testing.assert_allclose(error, expected, rtol=1e-5)


def test_ratios_and_their_errors_are_numpys():
    (top, above), (bottom, below) = spread(), spread()
    exponent, fraction, error = log_ratio(top, bottom)
    expected = (np.log10(above.mean(axis=-1)) - np.log10(below.mean(axis=-1))) / 2
    np.testing.assert_allclose(in_log10(exponent, fraction), expected, atol=1e-6)
    shares = above / above.mean(axis=-1, keepdims=True) - below / below.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(error, shares.std(axis=-1, ddof=1) / np.sqrt(7) / 2 / np.log(10), rtol=1e-5)


def test_the_jackknife_agrees_with_the_error_of_a_ratio():
    (top, above), (bottom, below) = spread(200, 1), spread(200, 1)
    left_out = [(np.log10(np.delete(above, i).mean()) - np.log10(np.delete(below, i).mean())) / 2 for i in range(200)]
    error = log_ratio(top, bottom)[2].item()
    assert error == pytest.approx(np.std(left_out) * np.sqrt(199), rel=0.02)


def test_a_constant_ratio_has_no_error():
    norms, _ = spread()
    larger = Scaled(norms.exponent + 700, norms.square * 2)
    exponent, fraction, error = log_ratio(larger, norms)
    np.testing.assert_allclose(in_log10(exponent, fraction), 700.5 * log10(2), rtol=0, atol=1e-4)
    np.testing.assert_allclose(error, 0, atol=1e-7)


@pytest.mark.parametrize(
    "average", [log_root_mean_square, lambda norms: log_ratio(norms, scaled([[0] * 7] * 3, 1.0 + 0 * norms.square))]
)
def test_averages_shift_with_a_common_power_exactly(average):
    norms, _ = spread()
    before, after = average(norms), average(Scaled(norms.exponent - 100_000, norms.square))
    np.testing.assert_array_equal(after[0], before[0] - 100_000)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[2], before[2])


def test_one_entry_has_no_error_and_zeros_have_no_size():
    exponent, fraction, error = log_root_mean_square(scaled([[5]], [[0.25]]))
    assert in_log10(exponent, fraction).item() == pytest.approx(4 * log10(2))
    assert np.isnan(error.item())
    exponent, fraction, _ = log_root_mean_square(scaled([[5, 6]], [[0.0, 0.0]]))
    assert fraction.item() == -np.inf
    assert exponent.item() == 0


def test_the_ratios_of_zeros():
    zero, one = scaled([[0, 0]], [[0.0, 0.0]]), scaled([[0, 0]], [[1.0, 1.0]])
    assert log_ratio(zero, one)[1].item() == -np.inf
    assert np.isnan(log_ratio(zero, zero)[1].item())


# Profiles and overflow


def test_profiles_hold_the_average_or_each_example():
    norms, squares = spread(7, 2)
    names, given = ("0 dense", "1 dense"), jnp.full((2, 7), 0.125)
    mean = profile_of(norms, given, names, "norm", average=True)
    np.testing.assert_allclose(mean.log10_norm, np.log10(squares.mean(axis=1)) / 2, atol=1e-6)
    np.testing.assert_array_equal(mean.standard_error, log_root_mean_square(norms)[2])
    each = profile_of(norms, given, names, "norm", average=False)
    np.testing.assert_allclose(each.log10_norm, np.log10(squares.T) / 2, atol=1e-6)
    np.testing.assert_array_equal(each.standard_error, np.full((7, 2), 0.125))
    assert (mean.layers, mean.quantity) == (names, "norm")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_overflow(value):
    good, bad = scaled([0, 0], [1.0, 0.0]), scaled([0, 0], [1.0, value])
    assert finite(good) is good
    with pytest.raises(FloatingPointError, match=r"overflows its floating-point range.*shrink the weights"):
        finite(bad)
    assert np.isfinite(jax.jit(lambda norms: finite(norms).square)(good)).all()  # unknown there, and let through


def test_ln10_is_the_number():
    assert np.log(10) == LN10
