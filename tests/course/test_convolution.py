"""The networks and images of chapter 8's deepest experiments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.course.experiments.convolution import scaled, small_digits, vanilla_cnn, weights_only
from gradcourse.theory.criticality import critical_point


def test_the_images_have_the_variance_at_rest():
    data = small_digits()
    assert float(jnp.mean(jnp.square(data.x_train))) == pytest.approx(
        critical_point("tanh", sigma_b2=1e-9)[1], rel=1e-5
    )
    np.testing.assert_allclose(data.x_train.mean(axis=0), 0, atol=1e-8)


def test_only_weights_are_trained_and_scaled():
    network = vanilla_cnn(5, "delta_orthogonal")
    assert [stage.repeats for stage in network.stages] == [1, 5, 1, 1]
    params = network.init(key=jax.random.key(0))
    optimizer = weights_only(0.5)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    doubled = scaled(params, 2.0)
    for update, after, before in zip(updates, doubled, params, strict=True):
        for name in before:
            moved = name == "weight"
            np.testing.assert_allclose(update[name], -0.5 * moved * before[name])
            np.testing.assert_array_equal(after[name], (2 if moved else 1) * before[name])
