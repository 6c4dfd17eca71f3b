"""Convolutions without weight sharing, against the convolutions that compute the same."""

from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.measure.jacobians import backward_jacobian_norms, forward_jacobian_norms
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.locally_connected import LocallyConnected, untied
from gradcourse.nn.network import sequential


@pytest.fixture(scope="module")
def pair():
    """Two wrapped convolutions and their parameters, and the same without sharing."""
    shared = sequential((4, 5, 2), [Conv(3, "tanh", padding="CIRCULAR")] * 2)
    local = sequential((4, 5, 2), [LocallyConnected(3, "tanh")] * 2)
    params = shared.init(key=jax.random.key(0))
    return shared, local, params, untied(shared, params)


def test_untied_it_computes_the_same_and_its_gradients_add_up(pair):
    shared, local, params, loose = pair
    x = jax.random.normal(jax.random.key(1), (6, 4, 5, 2))
    np.testing.assert_allclose(local.apply(loose, x), shared.apply(params, x), rtol=1e-5, atol=1e-6)

    def loss(network, p):
        return jnp.sum(jnp.square(network.apply(p, x)))

    whole = jax.grad(lambda p: loss(shared, p))(params)
    parts = jax.grad(lambda p: loss(local, p))(loose)
    for one, many in zip(whole, parts, strict=True):
        kernel = one["weight"]
        np.testing.assert_allclose(many["weight"].sum(axis=(1, 2)).reshape(kernel.shape), kernel, rtol=1e-4, atol=1e-5)


def test_untied_it_has_the_same_jacobians(pair):
    shared, local, params, loose = pair
    x = jax.random.normal(jax.random.key(2), (2, 4, 5, 2))
    for measure in (backward_jacobian_norms, forward_jacobian_norms):
        expected, found = (measure(network, p, x).log10_norm for network, p in ((shared, params), (local, loose)))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_kernels_at_different_places_are_drawn_independently():
    weight = LocallyConnected(3, initializer=gaussian(2.0)).init((8, 8, 10), key=jax.random.key(0))["weight"]
    assert weight.shape == (8, 8, 90, 3)
    assert 90 * float(jnp.var(weight)) == pytest.approx(4, rel=0.05)
    kernels = np.asarray(weight).reshape(64, -1)
    correlations = np.corrcoef(kernels)[np.triu_indices(64, 1)]
    assert np.abs(correlations).max() < 6 / sqrt(270)


def test_what_cannot_be_untied_is_refused():
    padded = sequential((4, 4, 2), [Conv(2)])
    with pytest.raises(ValueError, match="accepted are stride=1 and padding='CIRCULAR'"):
        untied(padded, padded.init(key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"input of shape \(4,\); accepted are \(height, width, channel\)"):
        LocallyConnected(2).output_shape((4,))
