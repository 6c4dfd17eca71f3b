"""Training against a hand-written loop, and what it must do to a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.datasets import digits
from gradcourse.networks import mlp
from gradcourse.training import accuracy, cross_entropy, train

NETWORK = mlp(64, [16], 10, activation="tanh", init="glorot_uniform")


def test_cross_entropy_and_accuracy_are_those_of_numpy() -> None:
    data = digits()
    params = NETWORK.init(key=jax.random.key(0))
    logits = np.asarray(NETWORK.apply(params, data.x_test), np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    y = np.asarray(data.y_test)
    expected = -log_probability[np.arange(len(y)), y].mean()
    assert float(cross_entropy(NETWORK, params, data.x_test, data.y_test)) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy(NETWORK, params, data.x_test, data.y_test)) == pytest.approx((logits.argmax(1) == y).mean())


def test_the_scan_takes_the_steps_of_a_plain_loop() -> None:
    data, start, key = digits(), NETWORK.init(key=jax.random.key(0)), jax.random.key(1)
    optimizer = optax.sgd(0.1, momentum=0.9)
    trained, losses = train(NETWORK, start, data.x_train, data.y_train, optimizer, steps=5, batch_size=8, key=key)
    params, state = start, optimizer.init(start)
    for step, step_key in enumerate(jax.random.split(key, 5)):
        chosen = jax.random.randint(step_key, (8,), 0, len(data.x_train))
        loss, gradient = jax.value_and_grad(
            lambda p, x=data.x_train[chosen], y=data.y_train[chosen]: cross_entropy(NETWORK, p, x, y)
        )(params)
        assert float(loss) == pytest.approx(float(losses[step]), rel=1e-5)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    for one, other in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_training_learns_and_leaves_the_start_alone() -> None:
    data, start = digits(), NETWORK.init(key=jax.random.key(0))
    before = jax.tree.map(jnp.copy, start)
    trained, losses = train(
        NETWORK, start, data.x_train, data.y_train, optax.sgd(0.1), steps=600, key=jax.random.key(1)
    )
    assert losses[-50:].mean() < losses[:50].mean() / 3
    assert accuracy(NETWORK, trained, data.x_test, data.y_test) > 0.9
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(before), strict=True))


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("batch_size", -3)])
def test_bad_counts_are_refused(name: str, value: int) -> None:
    data, start = digits(), NETWORK.init(key=jax.random.key(0))
    counts = {"steps": 1, "batch_size": 1, name: value}
    with pytest.raises(ValueError, match=f"{name}={value} is accepted from 1 up"):
        train(NETWORK, start, data.x_train, data.y_train, optax.sgd(0.1), **counts, key=jax.random.key(1))
