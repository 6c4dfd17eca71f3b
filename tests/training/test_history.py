"""What a history says against the functions that measure the same one at a time."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.measure.gradients import activation_gradient_norms, parameter_gradient_norms, update_to_weight_ratios
from gradcourse.measure.units import unit_statistics
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import Network, mlp, sequential
from gradcourse.training.data import digits
from gradcourse.training.history import History, masked, snapshot
from gradcourse.training.loop import accuracy, cross_entropy

DATA, IMAGES = digits(), digits(images=True)
NETWORKS = {
    "dense": mlp(64, [12] * 4, 10, activation="sigmoid", init="glorot_uniform"),
    "conv": sequential(
        (8, 8, 1), [Conv(3, "relu", initializer="he_normal"), MaxPool(2), Conv(3, "tanh"), Flatten(), Dense(10)]
    ),
}
MOMENTUM = optax.sgd(0.1, momentum=0.9)


@partial(jax.jit, static_argnums=0)
def seen_of(network: Network, params, x, y):
    """What is seen at the start of a run."""
    return snapshot(network, params, MOMENTUM, MOMENTUM.init(params), x, y)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_quantity_is_that_of_the_function_that_measures_it(name: str) -> None:
    network, data = NETWORKS[name], DATA if name == "dense" else IMAGES
    params, x, y = network.init(key=jax.random.key(0)), data.x_train[:20], data.y_train[:20]
    seen = seen_of(network, params, x, y)
    assert float(seen["loss"]) == pytest.approx(float(cross_entropy(network, params, x, y)), rel=1e-5)
    assert float(seen["accuracy"]) == pytest.approx(float(accuracy(network, params, x, y)), rel=1e-5)
    gradient = jax.grad(partial(cross_entropy, network))(params, x, y)
    updates, _ = MOMENTUM.update(gradient, MOMENTUM.init(params))
    expected = {
        "activation_gradient": activation_gradient_norms(network, params, x, y),
        "parameter_gradient": parameter_gradient_norms(network, params, x, y),
        "update_to_weight": update_to_weight_ratios(network, params, updates),
    }
    for field, profile in expected.items():
        assert seen[field].layers == profile.layers
        np.testing.assert_allclose(seen[field].log10_norm, profile.log10_norm, atol=1e-4)
    for one, other in zip(
        jax.tree.leaves(seen["units"]), jax.tree.leaves(unit_statistics(network, params, x)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_ten_to_the_minus_200_is_seen() -> None:
    network = mlp(64, [12] * 250, 10, activation="sigmoid", init="standard")
    params, x, y = network.init(key=jax.random.key(0)), DATA.x_train[:5], DATA.y_train[:5]
    seen = seen_of(network, params, x, y)
    expected = parameter_gradient_norms(network, params, x, y).log10_norm
    assert expected[0] < -190
    np.testing.assert_allclose(seen["parameter_gradient"].log10_norm, expected, atol=1e-3)
    assert seen["update_to_weight"].log10_norm[0] == -np.inf  # what plain float32 would make of it


def test_absent_layers_are_nan_and_the_others_those_of_the_shallower_network() -> None:
    network, shallow = (mlp(64, [12] * depth, 10, activation="tanh") for depth in (4, 2))
    params, x, y = network.init(key=jax.random.key(0)), DATA.x_train[:20], DATA.y_train[:20]
    kept = (params[0], jax.tree.map(lambda leaf: leaf[:1], params[1]), params[2])
    present = (jnp.array([True]), jnp.array([True, False, False]), jnp.array([True]))
    np.testing.assert_allclose(masked(network, params, x, present), shallow.apply(kept, x), rtol=1e-5, atol=1e-6)

    seen = jax.jit(lambda: snapshot(network, params, MOMENTUM, MOMENTUM.init(params), x, y, present))()
    expected = seen_of(shallow, kept, x, y)
    there = [0, 1, 4]
    for field in ("activation_gradient", "parameter_gradient", "update_to_weight"):
        found = seen[field].log10_norm
        np.testing.assert_allclose(found[there], expected[field].log10_norm, atol=1e-4)
        assert np.isnan(found[[2, 3]]).all()
    np.testing.assert_allclose(seen["units"].spread[jnp.array(there)], expected["units"].spread, rtol=1e-4)
    assert np.isnan(seen["units"].silent[2])


def small_history(**changes) -> History:
    """Two runs of three snapshots, of which the second has diverged."""
    profile = parameter_gradient_norms(
        NETWORKS["dense"],
        NETWORKS["dense"].init(key=jax.random.key(0)),
        DATA.x_train[:2],
        DATA.y_train[:2],
    )
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, 3, *leaf.shape)), profile)
    units = unit_statistics(NETWORKS["dense"], NETWORKS["dense"].init(key=jax.random.key(0)), DATA.x_train[:2])
    history = History(
        step=jnp.array([0, 10, 20]),
        loss=jnp.array([[2.0, 1.0, 0.5], [2.0, 3.0, 3.0]]),
        accuracy=jnp.array([[0.1, 0.6, 0.5], [0.1, 0.1, 0.1]]),
        activation_gradient=many,
        parameter_gradient=many,
        update_to_weight=many,
        units=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, 3, *leaf.shape)), units),
        batch_loss=jnp.zeros((2, 20)),
        diverged_at=jnp.array([-1, 12]),
    )
    return replace(history, **changes)


def test_a_diverged_run_is_never_the_best() -> None:
    history = small_history()
    assert history.final_loss.tolist() == [0.5, np.inf]
    assert history.diverged.tolist() == [False, True]


def test_steps_to_is_the_first_snapshot_that_gets_there() -> None:
    history = small_history()
    assert history.steps_to(loss=1.0).tolist() == [10, np.inf]
    assert history.steps_to(accuracy=0.1).tolist() == [0, 0]
    assert history.steps_to(accuracy=0.55).tolist() == [10, np.inf]
    with pytest.raises(TypeError, match="accepted is exactly one of them"):
        history.steps_to()
    with pytest.raises(TypeError, match="accepted is exactly one of them"):
        history.steps_to(loss=1.0, accuracy=0.5)


def test_histories_are_joined_where_one_ends_and_the_other_begins() -> None:
    history = small_history()
    both = history.then(small_history(step=jnp.array([20, 30, 40])))
    assert both.step.tolist() == [0, 10, 20, 30, 40]
    assert both.loss.shape == (2, 5)
    assert both.batch_loss.shape == (2, 40)
    assert both.units.silent.shape == both.activation_gradient.log10_norm.shape == (2, 5, 5)
    with pytest.raises(ValueError, match="later begins at step 0; accepted is 20, where this history ends"):
        history.then(history)
