"""Denoising autoencoders against NumPy, and restricted Boltzmann machines against enumeration."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse.training.pretraining import contrastive_divergence, denoising_loss, free_energy


def sigmoid(s: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-s))


def test_the_reconstruction_is_of_the_clean_input_from_the_noisy_one() -> None:
    machine = machine_of(3, 2)
    v, noisy = jnp.array([[0.2, 0.9, 0.4]]), jnp.array([[0.2, 0.0, 0.4]])
    w, b, c = (np.asarray(machine[name]) for name in ("weight", "bias", "visible_bias"))
    z = sigmoid(sigmoid(np.asarray(noisy) @ w + b) @ w.T + c)
    expected = -(np.asarray(v) * np.log(z) + (1 - np.asarray(v)) * np.log(1 - z)).sum()
    loss, reconstruction = denoising_loss(machine, v, noisy)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(reconstruction, z, rtol=1e-5)


def machine_of(visible: int, hidden: int) -> dict[str, jax.Array]:
    w_key, b_key, c_key = jax.random.split(jax.random.key(2), 3)
    return {
        "weight": 1.5 * jax.random.normal(w_key, (visible, hidden)),
        "bias": jax.random.normal(b_key, (hidden,)),
        "visible_bias": jax.random.normal(c_key, (visible,)),
    }


def states(units: int) -> jax.Array:
    return jnp.array(list(product([0.0, 1.0], repeat=units)))


def test_the_free_energy_is_what_the_hidden_units_leave_when_summed_out() -> None:
    machine = machine_of(3, 2)
    v, h = states(3), states(2)
    joint = jnp.exp(v @ machine["weight"] @ h.T + (h @ machine["bias"])[None] + (v @ machine["visible_bias"])[:, None])
    np.testing.assert_allclose(jnp.exp(-free_energy(machine, v)), joint.sum(axis=1), rtol=1e-5)


def averaged(machine, v, sweeps: int, draws: int = 10_000):
    """The estimate's mean over many keys, with its standard error."""
    keys = jax.random.split(jax.random.key(3), draws)
    estimates = jax.vmap(lambda key: contrastive_divergence(machine, v, sweeps=sweeps, key=key)[0])(keys)
    return jax.tree.map(lambda leaf: (leaf.mean(axis=0), leaf.std(axis=0) / draws**0.5), estimates)


def furthest(estimate, exact) -> float:
    """The largest distance, in standard errors."""
    return max(float((abs(mean - exact[name]) / error).max()) for name, (mean, error) in estimate.items())


def test_contrastive_divergence_has_the_mean_that_enumeration_gives() -> None:
    machine, data, v = machine_of(3, 2), jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), states(3)

    def negative_log_likelihood(machine):
        return (free_energy(machine, data) + jax.nn.logsumexp(-free_energy(machine, v))).mean()

    likelihood = jax.grad(negative_log_likelihood)(machine)
    # One sweep: every hidden state and every visible state that can follow.
    h = states(2)

    def chances(units, mean):  # (state of the one side, state of the other)
        return jnp.prod(jnp.where(units[None] == 1, mean[:, None], 1 - mean[:, None]), axis=-1)

    up = chances(h, jax.nn.sigmoid(data @ machine["weight"] + machine["bias"][None]))
    down = chances(v, jax.nn.sigmoid(h @ machine["weight"].T + machine["visible_bias"][None]))
    one_sweep = jax.grad(
        lambda machine: free_energy(machine, data).mean() - ((up @ down) @ free_energy(machine, v)).mean()
    )(machine)
    short, long = averaged(machine, data, 1), averaged(machine, data, 40)
    assert furthest(short, one_sweep) < 4.5
    assert furthest(long, likelihood) < 4.5
    assert furthest(short, likelihood) > 10  # one sweep is biased
