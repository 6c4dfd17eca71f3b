"""The spread of squared singular values against NumPy's, and of what changes no length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.measure.singular_values import gain_variance, layer_singular_values
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense
from gradcourse.nn.network import sequential


def test_the_measured_gain_variance_is_that_of_the_singular_values():
    network = sequential(12, [Dense(12, "tanh", initializer=gaussian(1.5, 0.3))] * 3)
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (1, 12))
    jacobian = jax.jacfwd(lambda x: network.apply(params, x[None])[0])(x[0])
    squares = np.linalg.svd(np.asarray(jacobian), compute_uv=False) ** 2
    found = gain_variance(network, params, x)
    assert found.shape == (3,)
    assert float(found[-1]) == pytest.approx(np.var(squares) / np.mean(squares) ** 2, rel=1e-4)


def test_a_wrapped_delta_orthogonal_convolution_is_an_isometry():
    network = sequential((6, 6, 8), [Conv(8, padding="CIRCULAR", initializer="delta_orthogonal")])
    params, x = network.init(key=jax.random.key(0)), jnp.ones((1, 6, 6, 8))
    values = layer_singular_values(network, params, x).log10_norm
    assert values.shape == (1, 288, 1)
    np.testing.assert_allclose(values, 0, atol=1e-6)
    np.testing.assert_allclose(gain_variance(network, params, x), 0, atol=1e-5)
