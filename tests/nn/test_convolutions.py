"""Convolutions and pools against explicit matrices, shifts and what JAX transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool


@st.composite
def convolutions(draw):
    """Arguments of a `Conv` of random size, stride and padding, and the shape of an image that it fits."""
    padding, size = draw(st.sampled_from(["SAME", "VALID", "CIRCULAR"])), draw(st.integers(1, 4))
    smallest = size if padding == "VALID" else 1
    shape = (draw(st.integers(smallest, 6)), draw(st.integers(smallest, 6)), draw(st.integers(1, 3)))
    stride, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return {"channels": channels, "kernel_size": size, "stride": stride, "padding": padding}, shape


def whole_numbers(seed, *shape):
    """Small whole numbers, of which float32 sums are exact."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), jnp.float32)


@given(convolutions())
def test_a_convolution_is_its_matrix_and_its_transpose_is_the_transposed_one(case):
    layer, shape = Conv(**case[0]), case[1]
    kernel = whole_numbers(0, *layer.weight_shape(shape))
    x, y = whole_numbers(1, 2, *shape), whole_numbers(2, 2, *layer.output_shape(shape))
    matrix = reference.convolution_matrix(np.asarray(kernel), shape, layer.stride, layer.padding)
    forward = layer.linear(kernel, x)
    assert forward.shape == y.shape
    np.testing.assert_array_equal(forward.reshape(2, -1), x.reshape(2, -1) @ matrix.T)
    np.testing.assert_array_equal(layer.transpose(kernel, y, shape).reshape(2, -1), y.reshape(2, -1) @ matrix)


@given(convolutions())
def test_a_convolution_and_its_transpose_are_adjoint(case):
    layer, shape = Conv(**case[0]), case[1]
    kernel = whole_numbers(0, *layer.weight_shape(shape))
    x, y = whole_numbers(1, 2, *shape), whole_numbers(2, 2, *layer.output_shape(shape))
    assert np.vdot(layer.linear(kernel, x), y) == np.vdot(x, layer.transpose(kernel, y, shape))


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize(("size", "stride"), [(4, 1), (3, 2), (2, 3)])
def test_the_turned_kernel_gives_what_jax_transposes(padding, size, stride):
    layer, shape = Conv(4, kernel_size=size, stride=stride, padding=padding), (5, 7, 2)
    kernel = whole_numbers(0, *layer.weight_shape(shape))
    y = whole_numbers(1, 3, *layer.output_shape(shape))
    turned, transposed = layer._turned(kernel, y, shape=shape), layer._transposed(kernel, y, shape=shape)
    np.testing.assert_array_equal(turned, transposed)
    np.testing.assert_array_equal(layer.transpose(kernel, y, shape), transposed)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize(("size", "stride"), [(4, 1), (3, 2), (2, 3)])
def test_what_training_differentiates_is_the_same_convolution(padding, size, stride):
    layer, shape = Conv(4, "relu", kernel_size=size, stride=stride, padding=padding), (5, 7, 2)
    params = {"weight": whole_numbers(0, *layer.weight_shape(shape)), "bias": whole_numbers(1, 4)}
    x, y = whole_numbers(2, 3, *shape), whole_numbers(3, 3, *layer.output_shape(shape))
    trained, pull = jax.vjp(layer.apply, params, x)
    measured, other_pull = jax.vjp(lambda p, x: layer.linearize(p, x)[0], params, x)
    np.testing.assert_array_equal(trained, measured)
    for one, other in zip(jax.tree.leaves(pull(y)), jax.tree.leaves(other_pull(y)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_circular_convolutions_commute_with_shifts():
    layer, x = Conv(3, "tanh", padding="CIRCULAR"), whole_numbers(0, 1, 5, 6, 2)
    params = layer.init((5, 6, 2), key=jax.random.key(0))
    shifted = layer.apply(params, jnp.roll(x, (2, 3), axis=(1, 2)))
    np.testing.assert_allclose(shifted, np.roll(layer.apply(params, x), (2, 3), axis=(1, 2)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [MaxPool(2), AvgPool(2), MaxPool(3, 1), AvgPool(3, 2)], ids=str)
def test_pooling_is_its_matrix(layer):
    h = jax.random.normal(jax.random.key(0), (2, 5, 6, 2))
    pooled = layer.apply({}, h)
    assert pooled.shape[1:] == layer.output_shape(h.shape[1:])
    v = whole_numbers(1, 3, *pooled.shape)
    pulled = layer.linearize({}, h)[1].pull({}, v)
    for b in range(2):
        matrix = reference.pooling_matrix(layer, np.asarray(h[b]))
        np.testing.assert_allclose(pooled[b].ravel(), matrix @ h[b].ravel(), atol=1e-6)
        np.testing.assert_allclose(pulled[:, b].reshape(3, -1), v[:, b].reshape(3, -1) @ matrix, atol=1e-6)


def test_a_tie_has_one_winner_in_both_directions():
    _, point = MaxPool(2).linearize({}, jnp.zeros((1, 4, 6, 1)))
    pulled = np.asarray(point.pull({}, jnp.ones((1, 1, 2, 3, 1))))[0, 0, :, :, 0]
    windows = pulled.reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    assert (np.sort(windows) == [0, 0, 0, 1]).all()
    pushed = point.push({}, jnp.asarray(pulled)[None, None, :, :, None])
    np.testing.assert_array_equal(pushed, np.ones((1, 1, 2, 3, 1)))
