"""Seeds as an axis give what a loop over seeds gives, without compiling for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.activations import Activation
from gradcourse.jacobians import backward_jacobian_norms, log_gain_split
from gradcourse.networks import mlp
from gradcourse.sweeps import over_seeds


def test_the_axis_is_the_loop() -> None:
    network, x = mlp(4, [6, 6], 3, activation="tanh"), jax.random.normal(jax.random.key(2), (5, 4))
    found = over_seeds(backward_jacobian_norms, network, x, seeds=3, key=jax.random.key(0))
    for row, key in zip(found.log10_norm, jax.random.split(jax.random.key(0), 3), strict=True):
        one = backward_jacobian_norms(network, network.init(key=key), x)
        np.testing.assert_allclose(row, one.log10_norm, atol=1e-6)


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_bad_input_is_named_before_anything_is_traced() -> None:
    network = mlp(4, [6], 3)
    with pytest.raises(ValueError, match="x contains NaN or infinity"):
        over_seeds(backward_jacobian_norms, network, jnp.full((2, 4), jnp.nan), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\); accepted is \(batch, 4\)"):
        over_seeds(backward_jacobian_norms, network, jnp.ones((2, 5)), key=jax.random.key(0))


def test_any_measure_will_do() -> None:
    network, x = mlp(4, [6, 6], 3), jnp.ones((2, 4))
    split = over_seeds(log_gain_split, network, x, seeds=4, key=jax.random.key(0))
    assert split.weights.log10_norm.shape == (4, 3)


def test_the_measurement_is_traced_once_for_all_seeds() -> None:
    traces = []

    def counted(s):
        traces.append(s.shape)
        return jnp.tanh(s)

    network, x = mlp(4, [6], 3, activation=Activation("counted", counted)), jnp.ones((2, 4))
    over_seeds(backward_jacobian_norms, network, x, seeds=7, key=jax.random.key(0))
    first = len(traces)
    over_seeds(backward_jacobian_norms, network, x, seeds=7, key=jax.random.key(1))
    assert len(traces) == first
    assert first < 7  # not once per seed, nor for the fast way and the careful one
