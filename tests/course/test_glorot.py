"""Chapter 4's experiments: the least-squares target, the learning time and the histograms, against plain NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse.course.experiments import glorot
from gradcourse.nn.initializers import resolve
from gradcourse.nn.network import mlp
from gradcourse.training.data import digits


def white_digits(inputs: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(digits().x_train, np.float64), np.asarray(digits().y_train)
    left, _, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return left[:, :inputs] * len(x) ** 0.5, np.eye(10)[y]


def test_the_target_is_the_least_squares_solution() -> None:
    white, labels = white_digits(32)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(32), atol=1e-12)
    solution, *_ = np.linalg.lstsq(white, labels)
    target = np.asarray(glorot.whitened_solution(digits().x_train, digits().y_train, 32))
    # Singular vectors are known up to their sign.
    np.testing.assert_allclose(abs(target), abs(solution), atol=1e-4)


def test_the_learning_time_is_that_of_descent_on_the_images_themselves() -> None:
    rate = 0.25
    target = np.asarray(glorot.whitened_solution(digits().x_train, digits().y_train, 32), np.float64)
    white, labels = white_digits(32)
    white *= np.sign((white.T @ labels * target).sum(axis=1))  # the signs that the package has
    inner_key, last_key = jax.random.split(jax.random.split(jax.random.key(2014), 5)[0])
    scheme = resolve("orthogonal")
    w1 = np.asarray(scheme.weights((32, 32), key=jax.random.split(inner_key, 1)[0]), np.float64)
    w2 = np.asarray(scheme.weights((32, 10), key=last_key), np.float64)

    def loss(product: np.ndarray) -> float:
        return float(np.square(white @ product - labels).sum() / 2 / len(white))

    least = loss(target)
    enough, updates = 0.05 * (loss(0 * target) - least), 0
    while loss(w1 @ w2) - least > enough:
        gradient = white.T @ (white @ w1 @ w2 - labels) / len(white)
        w1, w2 = w1 - rate * gradient @ w2.T, w2 - rate * w1.T @ gradient
        updates += 1
    found = glorot.learning_time("orthogonal", 2, rates=(rate,), seeds=5)["updates"]
    assert found[0, 0] == updates


def test_histograms_are_shares_of_each_layer() -> None:
    network = mlp(6, [50, 50, 50], 2, activation="tanh", init="glorot_uniform")
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (20, 6))
    found = np.asarray(jax.jit(partial(glorot._histograms, network, x))(params))
    first = np.tanh(np.asarray(x @ params[0]["weight"][0]))
    expected, _ = np.histogram(first, bins=glorot.BINS, range=(-1, 1))
    assert found.shape == (3, glorot.BINS)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[0] * first.size, expected, atol=1.5)  # a value may lie on an edge
    assert jnp.isfinite(found).all()
