"""The networks of Ciresan et al.: as many weights as published, in the same range, gradients as predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.course.experiments import record_nets as nets


def test_record_networks_have_the_published_numbers_of_weights() -> None:
    counts = {}
    for net in nets.RECORD_NETS:
        network = nets.record_network(net)
        leaves = jax.tree.leaves(jax.eval_shape(lambda network=network: network.init(key=jax.random.key(0))))
        counts[net] = sum(leaf.size for leaf in leaves)
    assert counts == {1: 1_347_510, 2: 3_269_510, 3: 6_692_010, 4: 12_115_010, 5: 8_860_010}


def test_record_networks_weights_fill_the_same_range_in_every_layer() -> None:
    network = nets.record_network(1)
    params = network.init(key=jax.random.key(0))
    for stage in params:
        assert 0.0499 < jnp.abs(stage["weight"]).max() <= 0.05
        assert not stage["bias"].any()
    s = jnp.linspace(-8, 8, 41)
    np.testing.assert_allclose(nets.SCALED_TANH.slope(s), jax.vmap(jax.grad(nets.SCALED_TANH))(s), atol=1e-6)


@pytest.mark.parametrize("scheme", ["their own", "sigmoid, standard"])
def test_record_networks_gradients_are_as_predicted(scheme: str) -> None:
    norms = np.stack([nets.record_net(1, scheme, seed)["norm"] for seed in range(3)])
    predicted = nets.predicted_record_net(1, scheme)
    assert predicted.shape == (2,)
    assert predicted[0] == pytest.approx((norms[:, 0] - norms[:, -1]).mean(), abs=0.02)
