"""Greedy pretraining against NumPy, restricted Boltzmann machines against enumeration, and what the controls keep."""

from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.course.experiments import pretraining as experiments
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential
from gradcourse.training.data import digits
from gradcourse.training.pretraining import (
    contrastive_divergence,
    denoising_loss,
    free_energy,
    pretrained,
    redrawn,
    with_centred_biases,
    with_shuffled_weights,
    with_singular_values,
)

KEY = jax.random.key(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Always:
    """Data of which every minibatch is the same: descent is then deterministic."""

    x: object

    def batch(self, size: int, *, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.x[:size], jnp.zeros(size, int)


NETWORK = mlp(5, [5, 5, 4, 3], 2, activation="sigmoid", init="lecun_normal")  # the first stage has two layers
PARAMS = NETWORK.init(key=KEY)
DATA = Always(jax.random.uniform(jax.random.key(1), (7, 5), minval=-1.0, maxval=1.0))
GIVEN = {"steps": 20, "learning_rate": 0.5, "batch_size": 7, "corruption": 0.0, "key": KEY}


def sigmoid(s: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-s))


def layers_of(params) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(w, np.float64), np.asarray(b, np.float64))
        for stage in params
        for w, b in zip(stage["weight"], stage["bias"], strict=True)
    ]


def taught_by_hand(v: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twenty updates of an autoencoder with tied weights, its gradient worked out on paper."""
    mean = v.mean(axis=0)
    c = np.log(mean / (1 - mean))
    for _ in range(20):
        h = sigmoid(v @ w + b)
        ds_back = (sigmoid(h @ w.T + c) - v) / len(v)
        ds = ds_back @ w * h * (1 - h)
        dw = v.T @ ds + ds_back.T @ h
        w, b, c = w - 0.5 * dw, b - 0.5 * ds.sum(axis=0), c - 0.5 * ds_back.sum(axis=0)
    return w, b


def test_each_layer_is_taught_on_what_the_taught_layers_below_make_of_the_data() -> None:
    params, history = pretrained(NETWORK, PARAMS, DATA, **GIVEN)
    *hidden, readout = layers_of(PARAMS)
    v = (np.asarray(DATA.x, np.float64) + 1) / 2
    # The given network for pixels from -1 to 1 is this one for pixels from 0 to 1.
    hidden[0] = 2 * hidden[0][0], hidden[0][1] - hidden[0][0].sum(axis=0)
    by_hand = []
    for w, b in hidden:
        w, b = taught_by_hand(v, w, b)
        v = sigmoid(v @ w + b)
        by_hand.append((w, b))
    w, b = by_hand[0]
    by_hand[0] = w / 2, b + w.sum(axis=0) / 2
    for (w, b), (w_hand, b_hand) in zip(layers_of(params), [*by_hand, readout], strict=True):
        np.testing.assert_allclose(w, w_hand, atol=2e-5)
        np.testing.assert_allclose(b, b_hand, atol=2e-5)
    np.testing.assert_allclose(NETWORK.apply(params, DATA.x), v @ readout[0] + readout[1], atol=2e-5)
    assert history.unexplained.shape == (4, 20)
    assert bool((history.unexplained[:, -1] < history.unexplained[:, 0]).all())


def test_a_rate_of_zero_gives_back_the_network_whatever_its_pixels() -> None:
    for pixels in ((-1.0, 1.0), (-3.0, 5.0)):
        params, _ = pretrained(NETWORK, PARAMS, DATA, **GIVEN | {"learning_rate": 0.0}, pixels=pixels)
        for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("method", ["autoencoder", "rbm"])
def test_both_methods_learn_to_reconstruct_digits_for_many_seeds_at_once(method: str) -> None:
    network = mlp(64, [16, 16], 10)

    def one(key: jax.Array):
        given = {"method": method, "steps": 200, "learning_rate": 0.3, "optimizer": optax.sgd, "key": key}
        return pretrained(network, network.init(key=key), digits(), **given)

    params, history = jax.vmap(one)(jax.random.split(KEY, 2))
    unexplained = np.asarray(history.unexplained)
    assert unexplained.shape == (2, 2, 200)
    assert (unexplained[..., -50:].mean(axis=-1) < 0.9).all()
    assert not np.allclose(params[0]["weight"][0], params[0]["weight"][1])


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


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (mlp(5, [5], 2, activation="tanh"), "has a dense layer with tanh activation; accepted for pretraining are"),
        (
            sequential((4, 4, 1), [Conv(2, "sigmoid"), Flatten(), Dense(2)]),
            "has a conv layer with sigmoid activation",
        ),
        (sequential((5,), [Dense(2)]), "at least one hidden layer"),
    ],
)
def test_other_networks_are_refused(network, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        pretrained(network, network.init(key=KEY), DATA, key=KEY)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "rbn"}, "method='rbn' is not known; did you mean 'rbm'"),
        ({"corruption": 1.0}, "corruption=1.0 is accepted from 0 up to, but not, 1"),
        ({"corruption": -0.1}, "corruption=-0.1 is not accepted"),
        ({"pixels": (1.0, -1.0)}, "is an empty range"),
        ({"steps": 0}, "steps=0 is accepted from 1 up"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 is accepted finite"),
    ],
)
def test_wrong_arguments_are_named(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pretrained(NETWORK, PARAMS, DATA, **GIVEN | given)


def test_data_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(1, 64\); accepted is \(batch, 5\)"):
        pretrained(NETWORK, PARAMS, digits(), key=KEY)


def test_the_cured_start_is_twice_a_network_of_tanh() -> None:
    x = digits().x_test[:20]
    (cured, params), (tanhs, same) = (experiments.started(start, 3, 0) for start in ("cured", "tanh"))
    np.testing.assert_allclose(cured.apply(params, x), 2 * tanhs.apply(same, x), rtol=1e-3, atol=1e-4)


def test_looks_are_those_of_a_longer_race_and_include_its_marks() -> None:
    long = experiments.looks(3000)
    assert {0, 1000, 3000} <= set(long)
    np.testing.assert_array_equal(experiments.looks(30), long[long <= 30])
    assert (np.diff(long) <= 0.08 * long[:-1] + 1).all()


def test_the_readout_by_least_squares_learns_what_is_linear_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 600)
    h = np.eye(10)[labels] @ rng.normal(size=(10, 12)) * 1e-5
    assert experiments._fitted(h, labels[:500], labels[500:]) == 1.0
    assert experiments._fitted(rng.normal(size=(600, 12)), labels[:500], labels[500:]) < 0.3
