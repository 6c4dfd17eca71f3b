"""A device's own short products, and what is recorded on that device alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradcourse as gc
from gradcourse.course.experiments import devices, precision, speed
from gradcourse.training.precision import with_reduced_products


@pytest.mark.parametrize(
    ("measure", "arguments"),
    [
        (devices.profile_on, ("float32", "highest")),
        (speed.escape_on, (1, 0)),
        (precision.product_error, ("highest", 4)),
        (precision.products_on, ("sigmoid", "highest")),
        (precision.reach_on, ("float32",)),
    ],
)
def test_what_belongs_on_a_gpu_is_not_recorded_elsewhere(measure: Any, arguments: tuple) -> None:
    with pytest.raises(ValueError, match="platform='gpu' is asked for and this is 'cpu'"):
        measure("gpu", *arguments)


def test_short_products_round_their_factors() -> None:
    a, one = jnp.asarray([[1 + 2.0**-8, 1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-12, 1 + 3 * 2.0**-12]]), jnp.eye(5)
    short = {
        name: precision.matrix_product(a, one, name)[0].tolist() for name in (*precision.ON_DEVICE, precision.AWAY)
    }
    assert short["highest"] == a[0].tolist()
    assert short["bfloat16"] == [1.0, 1.0, -1.0, 1.0, 1.0]  # a tie goes to the even neighbour
    assert short[precision.AWAY] == [1 + 2.0**-8, 1 + 2.0**-10, -1 - 2.0**-10, 1.0, 1 + 2.0**-10]


def test_a_network_with_a_devices_bfloat16_products_is_the_emulated_one() -> None:
    network = gc.mlp(64, [16] * 3, 10, activation="tanh", init="glorot_uniform")
    params, x = network.init(key=jax.random.key(0)), gc.digits().x_train[:4]
    own = gc.backward_jacobian_norms(precision.with_products(network, "bfloat16"), params, x).log10_norm
    emulated = gc.backward_jacobian_norms(with_reduced_products(network, "bfloat16"), params, x).log10_norm
    np.testing.assert_allclose(own, emulated, atol=1e-5)
    assert np.abs(own - gc.backward_jacobian_norms(network, params, x).log10_norm).max() > 1e-4


def test_products_are_changed_in_dense_networks_only() -> None:
    with pytest.raises(TypeError, match=r"network has layers of kind \['conv', 'dense', 'flatten'\]; accepted is"):
        precision.with_products(gc.cnn((8, 8, 1), [2], 10), "bfloat16")
    with pytest.raises(ValueError, match="products='bfloat' is not known; did you mean 'bfloat16'"):
        precision.with_products(gc.mlp(4, [4], 2), "bfloat")
