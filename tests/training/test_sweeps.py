"""Seeds, rates and depths as axes give what loops give, without compiling for each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.measure.jacobians import backward_jacobian_norms, log_gain_split
from gradcourse.nn.activations import Activation
from gradcourse.nn.network import mlp
from gradcourse.training.data import digits
from gradcourse.training.loop import train
from gradcourse.training.sweeps import over_seeds, sweep

DATA = digits()
DEEP = mlp(64, [8] * 4, 10, activation="tanh", init="glorot_uniform")


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


SMALL = {"steps": 40, "every": 20, "batch_size": 8, "watch": (DATA.x_test[:50], DATA.y_test[:50]), "progress": False}


@pytest.fixture(scope="module")
def swept():
    """Two seeds, two rates and three depths."""
    return sweep(
        DEEP, DATA, optax.sgd, learning_rates=[0.1, 0.5], seeds=2, depths=[5, 2, 4], key=jax.random.key(0), **SMALL
    )


def test_a_sweep_is_the_runs_one_by_one(swept) -> None:
    runs, history = swept
    assert history.loss.shape == (2, 2, 3, 3)
    assert history.step.tolist() == [0, 20, 40]
    assert history.units.silent.shape == (2, 2, 3, 3, 5)
    init_key, train_key, _ = jax.random.split(jax.random.key(0), 3)
    for seed, (init, minibatches) in enumerate(
        zip(jax.random.split(init_key, 2), jax.random.split(train_key, 2), strict=True)
    ):
        params = DEEP.init(key=init)
        run, single = train(DEEP, params, DATA, optax.sgd, learning_rate=0.5, key=minibatches, **SMALL)
        np.testing.assert_allclose(history.loss[seed, 1, 0], single.loss, rtol=1e-3)
        np.testing.assert_allclose(
            history.parameter_gradient.log10_norm[seed, 1, 0], single.parameter_gradient.log10_norm, atol=1e-3
        )
        weights = runs.params[-1]["weight"][seed, 1, 0]
        np.testing.assert_allclose(weights, run.params[-1]["weight"], rtol=1e-3, atol=1e-5)


def test_a_shallower_network_of_a_sweep_is_the_shallower_network(swept) -> None:
    init_key, train_key, _ = jax.random.split(jax.random.key(0), 3)
    params = DEEP.init(key=jax.random.split(init_key, 2)[1])
    shallow = mlp(64, [8] * 3, 10, activation="tanh", init="glorot_uniform")
    kept = (params[0], jax.tree.map(lambda leaf: leaf[:2], params[1]), params[2])
    key = jax.random.split(train_key, 2)[1]
    _, single = train(shallow, kept, DATA, optax.sgd, learning_rate=0.1, key=key, **SMALL)
    _, history = swept
    np.testing.assert_allclose(history.loss[1, 0, 2], single.loss, rtol=1e-3)
    np.testing.assert_allclose(
        history.activation_gradient.log10_norm[1, 0, 2][:, [0, 1, 2, 4]],
        single.activation_gradient.log10_norm,
        atol=1e-3,
    )


def test_what_a_shallower_network_leaves_out_never_moves(swept) -> None:
    runs, _ = swept
    start = DEEP.init(key=jax.random.split(jax.random.split(jax.random.key(0), 3)[0], 2)[0])
    moved = jnp.abs(runs.params[1]["weight"][0, 1] - start[1]["weight"][None]).max(axis=(2, 3))  # (depth, layer)
    assert (moved > 0).tolist() == [[True, True, True], [False, False, False], [True, True, False]]


def test_the_devices_of_a_mesh_share_a_sweep(swept) -> None:
    mesh = jax.make_mesh((2,), ("seed",))
    arguments = {"learning_rates": [0.1, 0.5], "seeds": 2, "depths": [5, 2, 4], "key": jax.random.key(0)}
    runs, history = sweep(DEEP, DATA, optax.sgd, mesh=mesh, **arguments, **SMALL)
    np.testing.assert_allclose(history.loss, swept[1].loss, rtol=1e-4)
    np.testing.assert_allclose(runs.params[0]["weight"], swept[0].params[0]["weight"], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="2 devices along 'seed' and there are 3; accepted is a multiple"):
        sweep(DEEP, DATA, optax.sgd, mesh=mesh, **arguments | {"seeds": 3}, **SMALL)


def test_a_diverged_run_does_not_touch_its_neighbours() -> None:
    network = mlp(64, [8] * 2, 10, activation="relu", init="he_normal")
    rates, key = [0.05, 1e30], jax.random.key(0)
    _, both = sweep(network, DATA, optax.sgd, learning_rates=rates, seeds=2, key=key, **SMALL)
    _, sound = sweep(network, DATA, optax.sgd, learning_rates=rates[:1], seeds=2, key=key, **SMALL)
    assert both.diverged.tolist() == [[False, True]] * 2
    np.testing.assert_allclose(both.loss[:, 0], sound.loss[:, 0], rtol=1e-4)
    assert np.isinf(both.final_loss[:, 1]).all()


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("learning_rates=0.1 is accepted as a sequence", {"learning_rates": 0.1}),
        (r"learning_rates=\[\] is accepted as a sequence", {"learning_rates": []}),
        (r"depths=\[1\] has 1; accepted here is 2 to 5 layers", {"depths": [1]}),
        (r"depths=\[2, 6\] has 6", {"depths": [2, 6]}),
        ("of this one .* 0 stages could be left out", {"depths": [2], "network": mlp(64, [8], 10)}),
        ("seeds=0", {"seeds": 0}),
        ("every=7 does not divide", {"every": 7}),
    ],
)
def test_bad_sweeps_are_refused(words: str, arguments: dict) -> None:
    usual = {"network": DEEP, "learning_rates": [0.1], "key": jax.random.key(0)}
    settings = SMALL | usual | arguments
    with pytest.raises(ValueError, match=words):
        sweep(settings.pop("network"), DATA, optax.sgd, **settings)
