"""What the controls keep of a pretrained network, and what they destroy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.training.controls import redrawn, with_centred_biases, with_shuffled_weights, with_singular_values


def a_trained_network():
    keys = jax.random.split(jax.random.key(5), 2)
    stage = {"weight": 0.3 + jax.random.normal(keys[0], (3, 8, 8)) * jnp.array([1, 2, 3.0]).reshape(3, 1, 1)}
    readout = {"weight": jax.random.normal(keys[1], (1, 8, 2)), "bias": jnp.ones((1, 2))}
    return stage | {"bias": jnp.arange(24.0).reshape(3, 8)}, readout


CONTROLS = {"shuffled": with_shuffled_weights, "redrawn": redrawn, "singular values": with_singular_values}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_keep_what_they_say_and_nothing_else(name: str) -> None:
    hidden, readout = a_trained_network()
    (new, same), (again, _) = (CONTROLS[name]((hidden, readout), key=jax.random.key(seed)) for seed in (1, 2))
    assert same is readout
    np.testing.assert_array_equal(new["bias"], hidden["bias"])
    for old, one, other in zip(hidden["weight"], new["weight"], again["weight"], strict=True):
        assert abs(np.corrcoef(old.ravel(), one.ravel())[0, 1]) < 0.5
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5
        if name == "shuffled":
            np.testing.assert_array_equal(np.sort(one.ravel()), np.sort(old.ravel()))
        elif name == "redrawn":
            np.testing.assert_allclose([one.mean(), one.std()], [old.mean(), old.std()], rtol=1e-5)
        else:
            values = [np.linalg.svd(w, compute_uv=False) for w in (one, old)]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)
    # Layers do not share a draw.
    first, second, _ = (np.asarray(w - w.mean()).ravel() for w in new["weight"])
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_centred_biases_take_out_the_mean() -> None:
    hidden, readout = with_centred_biases(a_trained_network())
    np.testing.assert_array_equal(hidden["bias"][0], 0)
    for weight, bias in [*zip(hidden["weight"][1:], hidden["bias"][1:], strict=True)]:
        np.testing.assert_allclose(jnp.full(8, 0.5) @ weight + bias, 0, atol=1e-5)
    np.testing.assert_allclose(jnp.full(8, 0.5) @ readout["weight"][0] + readout["bias"][0], 0, atol=1e-6)
