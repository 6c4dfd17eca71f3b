"""Layers against explicit matrices, shapes, shifts and the general, differentiated forms of their halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from gradcourse.nn.activations import Activation
from gradcourse.nn.layers import AvgPool, Conv, Dense, Flatten, Layer, MaxPool


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


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Dense(4, "gelu"), (3,)),
        (Conv(3, "tanh", stride=2), (5, 6, 2)),
        (Conv(3, "silu", kernel_size=2, padding="CIRCULAR"), (4, 5, 2)),
        (Conv(2, "sigmoid", padding="VALID"), (4, 5, 2)),
    ],
    ids=["dense", "strided", "circular", "valid"],
)
def test_both_halves_agree_with_autodiff(layer, shape):
    params = layer.init(shape, key=jax.random.key(0))
    h = jax.random.normal(jax.random.key(1), (2, *shape))
    cotangent = jax.random.normal(jax.random.key(2), (3, 2, *layer.output_shape(shape)))
    tangent = jax.random.normal(jax.random.key(3), (3, 2, *shape))
    y, saved = layer.linearize(params, h)
    np.testing.assert_allclose(y, layer.apply(params, h), rtol=1e-5, atol=1e-6)
    pulled = layer.pull(params, saved, layer.through_activation(saved, cotangent), shape)
    np.testing.assert_allclose(pulled, Layer.pull(layer, params, h, cotangent, shape), rtol=1e-4, atol=1e-5)
    pushed = layer.through_activation(saved, layer.push(params, saved, tangent))
    np.testing.assert_allclose(pushed, Layer.push(layer, params, h, tangent), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [MaxPool(2), AvgPool(2), MaxPool(3, 1), AvgPool(3, 2)], ids=str)
def test_pooling_is_its_matrix(layer):
    h = jax.random.normal(jax.random.key(0), (2, 5, 6, 2))
    pooled = layer.apply({}, h)
    assert pooled.shape[1:] == layer.output_shape(h.shape[1:])
    v = whole_numbers(1, 3, *pooled.shape)
    pulled = layer.pull({}, h, v, h.shape[1:])
    for b in range(2):
        matrix = reference.pooling_matrix(layer, np.asarray(h[b]))
        np.testing.assert_allclose(pooled[b].ravel(), matrix @ h[b].ravel(), atol=1e-6)
        np.testing.assert_allclose(pulled[:, b].reshape(3, -1), v[:, b].reshape(3, -1) @ matrix, atol=1e-6)


def test_a_tie_has_one_winner_in_both_directions():
    layer, h = MaxPool(2), jnp.zeros((1, 4, 6, 1))
    pulled = np.asarray(layer.pull({}, h, jnp.ones((1, 1, 2, 3, 1)), (4, 6, 1)))[0, 0, :, :, 0]
    windows = pulled.reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    assert (np.sort(windows) == [0, 0, 0, 1]).all()
    pushed = layer.push({}, h, jnp.asarray(pulled)[None, None, :, :, None])
    np.testing.assert_array_equal(pushed, np.ones((1, 1, 2, 3, 1)))


@pytest.mark.parametrize(
    ("layer", "shape", "output"),
    [
        (Dense(7), (3,), (7,)),
        (Conv(5), (4, 6, 2), (4, 6, 5)),
        (Conv(5, stride=2), (5, 6, 2), (3, 3, 5)),
        (Conv(5, kernel_size=2, padding="VALID"), (5, 6, 2), (4, 5, 5)),
        (MaxPool(2), (5, 6, 2), (2, 3, 2)),
        (AvgPool(3, 1), (5, 6, 2), (3, 4, 2)),
        (Flatten(), (5, 6, 2), (60,)),
    ],
    ids=str,
)
def test_output_shapes_are_the_actual_ones(layer, shape, output):
    params = layer.init(shape, key=jax.random.key(0))
    actual = jax.eval_shape(layer.apply, params, jax.ShapeDtypeStruct((2, *shape), jnp.float32)).shape
    assert actual == (2, *output)
    assert layer.output_shape(shape) == output


def test_parameters_follow_the_scheme():
    params = Dense(2000, init="he_normal").init((30,), key=jax.random.key(0))
    assert params["weight"].shape == (30, 2000)
    assert float(jnp.var(params["weight"])) == pytest.approx(2 / 30, rel=4 * np.sqrt(2 / 60_000))
    assert not params["bias"].any()


def test_equal_layers_are_equal():
    mine = Activation("mine", jnp.sin)
    assert Dense(3, "tanh") == Dense(3, "tanh") != Dense(3, "relu")
    assert hash(Conv(3, mine)) == hash(Conv(3, mine))
    assert Conv(3) != Conv(3, stride=2)


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Dense(0), ValueError, "width=0 is accepted from 1 up"),
        (lambda: Dense(2.5), TypeError, "width=2.5 is a float; accepted is a whole number"),
        (lambda: Dense(3, "sigmod"), ValueError, "activation='sigmod'.*did you mean 'sigmoid'"),
        (lambda: Dense(3, init="xavier_normal"), ValueError, "init='xavier_normal'.*Accepted: 'standard'"),
        (lambda: Conv(0), ValueError, "channels=0"),
        (lambda: Conv(1, kernel_size=0), ValueError, "kernel_size=0"),
        (lambda: Conv(1, stride=0), ValueError, "stride=0"),
        (lambda: Conv(1, padding="circle"), ValueError, "padding='circle'.*did you mean 'CIRCULAR'"),
        (lambda: MaxPool(0), ValueError, "size=0"),
        (lambda: AvgPool(2, 0), ValueError, "stride=0"),
        (
            lambda: Dense(3).output_shape((4, 4, 1)),
            ValueError,
            r"shape \(4, 4, 1\); accepted is \(width,\). Put Flatten",
        ),
        (lambda: Conv(3).output_shape((4,)), ValueError, r"Conv got an input of shape \(4,\); accepted are images"),
        (lambda: MaxPool(3).output_shape((2, 9, 1)), ValueError, "MaxPool .*smaller than its window of 3 pixels. Use"),
        (lambda: Layer().output_shape((3,)), TypeError, "Layer is no complete layer: give it output_shape"),
        (lambda: Layer().apply({}, jnp.ones((1, 1))), TypeError, "Layer is no complete layer: give it apply"),
    ],
)
def test_bad_layers_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
