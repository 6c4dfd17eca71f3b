"""Layers: their halves against autodiff, their shapes, their fields, and what a layer of your own needs."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gradcourse.nn.activations import Activation
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten, Layer, Pointwise
from gradcourse.nn.locally_connected import LocallyConnected
from gradcourse.nn.normalisation import BatchNorm, ChannelScale, GroupNorm, LayerNorm, WeightStandardised


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

    @jax.jit
    def halves(params, h):
        y, point = layer.linearize(params, h)
        pulled = point.pull(params, point.times_slope(cotangent))
        return y, pulled, point.times_slope(point.push(params, tangent))

    y, pulled, pushed = halves(params, h)
    np.testing.assert_allclose(y, layer.apply(params, h), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pulled, reference.pulled(layer, params, h, cotangent), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pushed, reference.pushed(layer, params, h, tangent), rtol=1e-4, atol=1e-5)


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
    params = Dense(2000, initializer="he_normal").init((30,), key=jax.random.key(0))
    assert params["weight"].shape == (30, 2000)
    assert float(jnp.var(params["weight"])) == pytest.approx(2 / 30, rel=4 * np.sqrt(2 / 60_000))
    assert not params["bias"].any()


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        (Dense(3, "tanh", initializer="he_normal"), {"width": 4, "activation": "relu"}),
        (Conv(3, "gelu", kernel_size=2, padding="VALID", initializer="orthogonal"), {"stride": 2}),
        (LocallyConnected(3, "tanh", kernel_size=2), {"channels": 2}),
        (MaxPool(2), {"stride": 1}),
        (AvgPool(3, 2), {"size": 2}),
        (Pointwise("relu"), {"activation": "tanh"}),
        (Flatten(), {}),
        (BatchNorm("tanh", epsilon=1e-3), {"epsilon": 1e-2}),
        (GroupNorm(2, "tanh"), {"groups": 3}),
        (LayerNorm("tanh"), {"activation": "relu"}),
        (ChannelScale("tanh"), {"activation": "relu"}),
        (WeightStandardised(Dense(3), gain=2.0), {"layer": Conv(3)}),
        (Block((Dense(3), BatchNorm())), {"body": Dense(4)}),
        (Residual(Dense(3, "tanh"), scale=0.5, learned=True), {"learned": False}),
    ],
    ids=lambda value: value.kind if isinstance(value, Layer) else "",
)
def test_fields_may_be_replaced(layer, changes):
    assert replace(layer) == layer
    changed = replace(layer, **changes)
    assert (changed != layer) == bool(changes)
    untouched = {field.name for field in fields(layer)} - set(changes)
    assert all(getattr(changed, name) == getattr(layer, name) for name in untouched)
    again = {name: getattr(layer, name) for name in changes}
    assert replace(changed, **again) == layer


def test_equal_layers_are_equal():
    mine = Activation("mine", jnp.sin)
    assert Dense(3, "tanh") == Dense(3, "tanh") != Dense(3, "relu")
    assert hash(Conv(3, mine)) == hash(Conv(3, mine))
    assert Conv(3) != Conv(3, stride=2)


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Dense(3, init="he_normal"), TypeError, "unexpected keyword argument 'init'"),
        (lambda: Dense(0), ValueError, "width=0 is accepted from 1 up"),
        (lambda: Dense(2.5), TypeError, "width=2.5 is a float; accepted is a whole number"),
        (lambda: Dense(3, "sigmod"), ValueError, "activation='sigmod'.*did you mean 'sigmoid'"),
        (lambda: Dense(3, initializer="xavier_normal"), ValueError, "init='xavier_normal'.*Accepted: 'standard'"),
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
        (lambda: Layer().output_shape((3,)), TypeError, "Layer is no complete layer: give it apply"),
        (lambda: Layer().apply({}, jnp.ones((1, 1))), TypeError, "Layer is no complete layer: give it apply"),
    ],
)
def test_bad_layers_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
