"""Greedy pretraining against NumPy, and the starts that chapter 7 compares."""

from dataclasses import dataclass

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
from gradcourse.training.pretraining import pretrained

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
