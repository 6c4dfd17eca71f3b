"""What chapter 5 rests on: rounding's share, and descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradcourse as gc
from gradcourse.course.experiments import speed


@pytest.mark.parametrize("dtype", list(speed.MANTISSA))
@pytest.mark.parametrize("halves", [0.03, 0.3, 3.0])  # the update, in halves of the gap between neighbours at the bound
def test_share_that_moves_is_that_of_real_rounding(dtype: str, halves: float) -> None:
    digits, bound = speed.MANTISSA[dtype], 0.125
    deviation = halves * bound / 2 * 2.0**-digits
    draw = np.random.default_rng(0)
    with jax.enable_x64(True):
        before = jnp.asarray(draw.uniform(-bound, bound, 200_000), dtype)
        after = before - jnp.asarray(draw.normal(0, deviation, 200_000), dtype)
        found = float((after != before).mean())
    assert speed.share_that_moves(deviation, bound, digits) == pytest.approx(found, abs=0.004)


def test_share_that_moves_of_small_updates_is_proportional_to_them() -> None:
    small, smaller = (speed.share_that_moves(size, 0.1, 24) for size in (1e-12, 1e-13))
    assert small / smaller == pytest.approx(10, rel=0.05)
    assert speed.share_that_moves(1.0, 0.1, 24) == pytest.approx(1.0)


def test_descent_is_plain_gradient_descent() -> None:
    hidden, rate, seed, steps = 2, 0.3, 3, 4
    found = speed.first_layer_moves(hidden, rate, seed, steps=steps + 1)
    assert found["step"].tolist() == [1, 2, 3, 4]
    data, network = gc.digits(), gc.mlp(64, [64] * hidden, 10, activation="sigmoid", init="standard")
    init_key, key = jax.random.split(jax.random.key(seed))
    start = params = network.init(key=init_key)
    for step in range(steps):
        chosen = jax.random.randint(jax.random.fold_in(key, step), (32,), 0, len(data.x_train), jnp.int32)
        batch = data.x_train[chosen], data.y_train[chosen]
        gradient = jax.grad(lambda p, batch=batch: gc.training.cross_entropy(network, p, *batch))(params)
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
        loss = gc.training.cross_entropy(network, params, data.x_train, data.y_train)
        assert found["loss"][step] == pytest.approx(float(loss), rel=1e-5)
    distance = np.linalg.norm(params[0]["weight"][0] - start[0]["weight"][0])
    assert found["moved"][-1] == pytest.approx(distance / np.linalg.norm(start[0]["weight"][0]), rel=1e-3)
    readout = np.linalg.norm(params[1]["weight"]) / np.linalg.norm(start[1]["weight"])
    assert found["readout"][-1] == pytest.approx(readout, rel=1e-5)


def test_descent_stops_where_it_is_told_to() -> None:
    whole = speed.first_layer_moves(2, 0.3, 3, steps=4)
    short = speed.first_layer_moves(2, 0.3, 3, steps=4, stop_at=float(whole["loss"][1]) + 1e-6)
    assert len(short["loss"]) == int(np.argmax(whole["loss"] < whole["loss"][1] + 1e-6)) + 1
    np.testing.assert_allclose(short["loss"], whole["loss"][: len(short["loss"])], rtol=1e-6)
    assert speed.updates_to_escape(2, 0.3, 3, "sigmoid", "standard", most=4)["updates"] == np.inf


def test_a_run_that_blows_up_has_not_learned() -> None:
    found = speed.updates_to_escape(2, 1e30, 0, "sigmoid", "standard", most=4)
    assert found["updates"] == np.inf


def test_both_precisions_start_from_the_same_weights_and_minibatches() -> None:
    single, double = (speed.first_layer_moves(2, 0.1, 0, steps=4, dtype=dtype) for dtype in ("float32", "float64"))
    assert double["loss"].dtype == np.float64
    np.testing.assert_allclose(single["loss"], double["loss"], rtol=1e-5)
