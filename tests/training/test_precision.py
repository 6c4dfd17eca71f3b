"""What formats do to gradients: zeros, how far they reach, loss scaling, rounded products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradcourse as gc
from gradcourse.training import precision
from gradcourse.training.formats import vanishing_point

KEY = jax.random.key(0)
NETWORK = gc.mlp(64, [64] * 20, 10, activation="sigmoid", init="standard")
DATA = gc.digits()
X, Y = DATA.x_train[:32], DATA.y_train[:32]


@pytest.fixture(scope="module")
def params() -> Any:
    return NETWORK.init(key=KEY)


# ---- Gradients


def test_where_nothing_underflows_the_norms_are_the_true_ones(params: Any) -> None:
    found = precision.gradient_in(NETWORK, params, X, Y, "float32")
    true = gc.parameter_gradient_norms(NETWORK, params, X, Y, part="weight")
    assert found.profile.layers == true.layers
    assert found.profile.log10_norm == pytest.approx(true.log10_norm, abs=1e-4)
    assert not found.zero.any()
    assert not found.overflowed.any()


def test_a_format_reaches_as_many_layers_as_the_straight_line_says(params: Any) -> None:
    profile = gc.activation_gradient_norms(NETWORK, params, X, Y, at="preactivation")
    entry = profile.log10_norm[:-1] - np.log10(32 * 8)
    limit = vanishing_point("float16")
    for scale in (1.0, 2.0**10):
        half = precision.gradient_in(NETWORK, params, X, Y, "float16", loss_scale=scale)
        predicted = precision.predicted_layers_in_reach(limit / scale, entry, added=32)
        assert precision.layers_in_reach(half.zero[:-1]) == pytest.approx(float(predicted), abs=1)


def test_the_scale_is_divided_out_of_the_norms_and_overflow_is_told(params: Any) -> None:
    one, scaled = (
        precision.gradient_in(NETWORK, params, X, Y, "float16", loss_scale=scale) for scale in (2.0**6, 2.0**10)
    )
    assert scaled.profile.log10_norm[-4:] == pytest.approx(one.profile.log10_norm[-4:], abs=2e-3)
    assert scaled.largest[-1] == pytest.approx(float(one.largest[-1]) * 16, rel=2e-3)
    assert float(precision.gradient_in(NETWORK, params, X, Y, "float16", loss_scale=2.0**40).overflowed[-1]) > 0


def test_reach_is_counted_from_the_output() -> None:
    zero = np.array([[1.0, 0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert precision.layers_in_reach(zero).tolist() == [1, 1, 3]
    assert precision.layers_in_reach(zero, share=0.75).tolist() == [2, 1, 3]


def test_a_sum_of_many_entries_reaches_farther_and_a_flat_profile_for_ever() -> None:
    entry = np.array([-3.0, -2.0, -1.0])
    one, many = (float(precision.predicted_layers_in_reach(1e-6, entry, added=added)) for added in (1, 100))
    draws = np.abs(np.random.default_rng(0).normal(size=(2000, 100)))
    shift = np.log10(np.median(draws.max(axis=1)) / np.median(draws))
    assert many - one == pytest.approx(shift, abs=0.02)
    assert precision.predicted_layers_in_reach(1e-6, np.zeros(3)) == np.inf


# ---- Products


def test_all_digits_change_nothing_and_fewer_digits_change_more(params: Any) -> None:
    exact = gc.backward_jacobian_norms(NETWORK, params, X[:2]).log10_norm
    apart = {
        name: np.abs(
            gc.backward_jacobian_norms(precision.with_reduced_products(NETWORK, name), params, X[:2]).log10_norm - exact
        ).max()
        for name in precision.PRODUCTS
    }
    assert apart["float32"] == 0
    assert 0 < apart["tensorfloat32"] < apart["bfloat16"] < 0.01


def test_both_factors_are_rounded_forward_and_back() -> None:
    layer = precision.with_reduced_products(gc.mlp(3, [4], 2), 2).stages[0].layer
    weight, h, v = (jnp.full(shape, 1.3) for shape in ((3, 4), (1, 3), (1, 4)))  # 1.25 with two stored digits
    assert layer.linear(weight, h).tolist() == [[3 * 1.25**2] * 4]
    assert layer.transpose(weight, v, (3,)).tolist() == [[4 * 1.25**2] * 3]


def test_a_convolution_is_rounded_however_it_is_computed() -> None:
    network = gc.cnn((4, 4, 1), [2], 3, activation="identity")
    params, x = network.init(key=KEY), jax.random.normal(KEY, (1, 4, 4, 1))
    layer = precision.with_reduced_products(network, 3).stages[0].layer
    first = jax.tree.map(lambda leaf: leaf[0], params[0])
    assert np.asarray(layer.apply(first, x)) == pytest.approx(np.asarray(layer.linearize(first, x)[0]), abs=1e-6)
    assert float(jnp.abs(layer.apply(first, x) - network.stages[0].layer.apply(first, x)).max()) > 1e-3


def test_weights_that_would_not_be_rounded_are_refused() -> None:
    block = gc.nn.Residual([gc.Dense(8, "relu")])
    with pytest.raises(TypeError, match="accepted here are dense and conv"):
        precision.with_reduced_products(gc.sequential((8,), [block]), "bfloat16")
    with pytest.raises(ValueError, match="did you mean 'bfloat16'"):
        precision.with_reduced_products(gc.mlp(64, [16], 10), "bfloat")


@pytest.mark.parametrize("mantissa", [7, 10])
def test_the_error_of_an_entry_is_that_of_real_rounding(mantissa: int) -> None:
    values = np.exp(np.random.default_rng(0).uniform(-20, 20, 200_000)).astype("float32")
    rounded = np.asarray(jax.lax.reduce_precision(values, 8, mantissa), "float64")
    error = np.sqrt(np.mean((rounded / values - 1) ** 2))
    assert precision.entry_error(mantissa) == pytest.approx(error, rel=0.01)
