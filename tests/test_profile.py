"""Profiles: exact over 20,000 decades, averaged as NumPy would, safe through jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.profile import Profile

LAYERS = ("0 conv", "1 flatten", "2 dense")
SAMPLES = np.random.default_rng(0).normal(size=(7, 3)) + np.array([-700, 0, 400])


def profile(values, layers=LAYERS, **kwargs):
    return Profile.from_log10(values, layers=layers, quantity="norm", **kwargs)


def test_log_norms_survive_over_twenty_thousand_decades():
    values = np.linspace(-1e4, 1e4, 1001)
    np.testing.assert_allclose(
        profile(values, tuple(str(i) for i in range(1001))).log10_norm, values, rtol=0, atol=1e-9
    )


def test_a_norm_is_two_to_the_exponent_plus_fraction():
    stored = profile([-3.0, 0.0, 2.5])
    np.testing.assert_allclose(2.0 ** (stored.exponent + stored.fraction), [1e-3, 1, 10**2.5], rtol=1e-12)
    assert stored.exponent.dtype == np.int32
    assert ((stored.fraction >= 0) & (stored.fraction < 1)).all()


def test_float32_shows_what_a_gradient_would_print():
    with np.errstate(all="raise"):
        np.testing.assert_allclose(profile([-46.0, -3.0, 39.0]).as_float32(), [0, 1e-3, np.inf], rtol=1e-6)
    assert profile([0.0, 0.0, 0.0]).as_float32().dtype == np.float32


def test_the_mean_is_of_the_logs():
    mean = profile(SAMPLES).mean()
    np.testing.assert_allclose(mean.log10_norm, SAMPLES.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(mean.standard_error, SAMPLES.std(axis=0, ddof=1) / np.sqrt(7), rtol=1e-9)
    assert (mean.layers, mean.quantity) == (LAYERS, "norm")


def test_the_root_mean_square_is_of_the_norms():
    mean = profile(SAMPLES).root_mean_square()
    shift = np.array([-700, 0, 400])
    squares = 10 ** (2 * (SAMPLES - shift))
    np.testing.assert_allclose(mean.log10_norm, shift + np.log10(squares.mean(axis=0)) / 2, rtol=1e-12)
    # the delta method: the relative error of the mean square, in decades of its root
    relative = squares.std(axis=0, ddof=1) / np.sqrt(7) / squares.mean(axis=0)
    np.testing.assert_allclose(mean.standard_error, relative / 2 / np.log(10), rtol=1e-9)


def test_one_sample_has_no_standard_error():
    for mean in (profile(SAMPLES[:1]).mean(), profile(SAMPLES[:1]).root_mean_square()):
        np.testing.assert_allclose(mean.log10_norm, SAMPLES[0], rtol=1e-12)
        assert np.isnan(mean.standard_error).all()


def test_averages_go_over_the_first_axis_alone():
    values = np.stack([SAMPLES, SAMPLES + 2])
    np.testing.assert_allclose(profile(values).mean().log10_norm, SAMPLES + 1, rtol=1e-12)


def test_an_exact_zero_is_minus_infinity():
    dead = profile([[-np.inf, -1, 0], [-np.inf, -np.inf, 0]])
    np.testing.assert_array_equal(dead.log10_norm[0], [-np.inf, -1, 0])
    assert dead.as_float32()[0, 0] == 0
    np.testing.assert_array_equal(dead.mean().log10_norm, [-np.inf, -np.inf, 0])
    np.testing.assert_allclose(dead.root_mean_square().log10_norm, [-np.inf, -1 - np.log10(2) / 2, 0], rtol=1e-12)


def test_the_slope_is_the_least_squares_line():
    x = np.arange(6)
    values = np.random.default_rng(1).normal(size=(5, 6))
    expected = [np.polyfit(x[1:5], row[1:5], 1)[0] for row in values]
    slope, error = profile(values, tuple(str(i) for i in x)).slope(1, 4)
    assert slope == pytest.approx(np.mean(expected))
    assert error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(5))


def test_the_slope_of_one_sample_has_no_error():
    slope, error = profile([0.0, 1.0, 2.0]).slope()
    assert slope == pytest.approx(1)
    assert np.isnan(error)


@pytest.mark.parametrize(
    ("values", "layers"),
    [
        ([-6.0, -3.0, 0.0], 2),
        ([-9.0, -3.0, 0.0], 1.5),
        ([-7.0, -12.0, 0.0], 0.5),
        ([-5.0, -3.0, 0.0], np.nan),
        ([-np.inf, 0.0, 0.0], 2),
    ],
)
def test_layers_to_lose_counts_from_the_last(values, layers):
    np.testing.assert_allclose(profile(values).layers_to_lose(1e6), layers, rtol=1e-12)


def test_layers_to_lose_keeps_the_samples():
    np.testing.assert_allclose(profile([[-6, -3, 0], [-9, -6, 0]]).layers_to_lose(1e6), [2, 1])


def test_a_profile_goes_through_jit_and_vmap():
    def made(k):
        return Profile(jnp.full(3, 5, jnp.int32), k * jnp.ones(3), jnp.zeros(3), LAYERS, "norm")

    batched = jax.jit(jax.vmap(made))(jnp.arange(4.0))
    assert batched.layers == LAYERS
    np.testing.assert_allclose(batched.log10_norm[:, 0], (5 + np.arange(4)) * np.log10(2), rtol=1e-6)
    back = jax.tree.unflatten(*reversed(jax.tree.flatten(batched)))
    np.testing.assert_array_equal(back.log10_norm, batched.log10_norm)
    assert len(jax.tree.leaves(batched)) == 3


def test_reading_inside_jit_says_what_to_do():
    with pytest.raises(
        TypeError, match=r"log10_norm was read inside jit or vmap.*return the Profile and read it outside"
    ):
        jax.jit(lambda p: p.log10_norm)(profile([0.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda p: p.mean(), "holds one sample; averaging needs a leading sample axis"),
        (lambda p: p.root_mean_square(), "holds one sample"),
        (lambda p: p.slope(2), "slope from layer 2 to 2 of 3 has fewer than two layers"),
        (lambda p: p.slope(), "exactly zero or not finite; choose first and last around it"),
        (lambda p: p.layers_to_lose(0.5), "factor=0.5 is accepted above 1"),
    ],
)
def test_impossible_questions_are_refused(ask, words):
    with pytest.raises(ValueError, match=words):
        ask(profile([-np.inf, 0.0, 1.0]))


def test_values_and_layers_must_match():
    with pytest.raises(ValueError, match=r"values have shape \(2,\) for 3 layers; accepted is \(..., 3\)"):
        profile([0.0, 1.0])
