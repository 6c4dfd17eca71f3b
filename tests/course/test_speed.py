"""What chapter 5 rests on: rounding's share, operations counted, shares of a variance, the record networks, descent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradcourse as gc
from gradcourse.course.experiments import precision, speed
from gradcourse.training.precision import with_reduced_products


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


def test_operations_are_those_that_xla_counts() -> None:
    width, hidden = 256, 3
    network = gc.mlp(64, [width] * hidden, 10, activation="identity")
    params = jax.eval_shape(lambda: network.init(key=jax.random.key(0)))
    x, y = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)

    def loss(params: Any, x: Any, y: Any) -> Any:  # layer by layer: XLA counts the body of a scan once
        layers = [jax.tree.map(lambda leaf: leaf[0], params[0])]
        layers += [jax.tree.map(lambda leaf, i=i: leaf[i], params[1]) for i in range(hidden - 1)]
        layers += [jax.tree.map(lambda leaf: leaf[0], params[2])]
        for p in layers:
            x = x @ p["weight"] + p["bias"][None]
        return optax.losses.softmax_cross_entropy_with_integer_labels(x, y).mean()

    counted = (jax.jit(jax.grad(loss)).lower(params, x, y).cost_analysis() or {})["flops"]
    assert speed.step_operations(width, hidden) == pytest.approx(counted, rel=0.05)


def test_timings_are_refused_on_another_platform() -> None:
    with pytest.raises(ValueError, match="platform='gpu' is asked for and this is 'cpu'; record it there"):
        speed.step_seconds("gpu", 16)


@pytest.mark.parametrize(
    ("measure", "arguments"),
    [
        (speed.profile_on, ("float32", "highest")),
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


def test_an_update_is_timed_in_three_ways() -> None:
    found = speed.step_seconds("cpu", 16, hidden=1, steps=5, rounds=1)
    assert set(found) == {"operations", "compile", "in_program", "returned", "called", "peak", "bandwidth"}
    assert min(found.values()) > 0
    assert found["returned"] <= found["called"]


def test_axes_that_add_up_explain_all_of_the_variance() -> None:
    draw = np.random.default_rng(0)
    effects = draw.normal(size=3)[:, None, None] + draw.normal(size=4)[:, None] + draw.normal(size=2)
    assert speed.variance_shares(effects).sum() == pytest.approx(1)
    joint = np.array([[1.0, -1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(speed.variance_shares(joint), 0)
    nothing = np.broadcast_to(draw.normal(size=(3, 1)), (3, 5))
    np.testing.assert_allclose(speed.variance_shares(nothing), [1, 0], atol=1e-12)


def test_record_networks_have_the_published_numbers_of_weights() -> None:
    counts = {}
    for net in speed.RECORD_NETS:
        network = speed.record_network(net)
        leaves = jax.tree.leaves(jax.eval_shape(lambda network=network: network.init(key=jax.random.key(0))))
        counts[net] = sum(leaf.size for leaf in leaves)
    assert counts == {1: 1_347_510, 2: 3_269_510, 3: 6_692_010, 4: 12_115_010, 5: 8_860_010}


def test_record_networks_weights_fill_the_same_range_in_every_layer() -> None:
    network = speed.record_network(1)
    params = network.init(key=jax.random.key(0))
    for stage in params:
        assert 0.0499 < jnp.abs(stage["weight"]).max() <= 0.05
        assert not stage["bias"].any()
    s = jnp.linspace(-8, 8, 41)
    np.testing.assert_allclose(speed.SCALED_TANH.slope(s), jax.vmap(jax.grad(speed.SCALED_TANH))(s), atol=1e-6)


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


@pytest.mark.parametrize("scheme", ["their own", "sigmoid, standard"])
def test_record_networks_gradients_are_as_predicted(scheme: str) -> None:
    norms = np.stack([speed.record_net(1, scheme, seed)["norm"] for seed in range(3)])
    predicted = speed.predicted_record_net(1, scheme)
    assert predicted.shape == (2,)
    assert predicted[0] == pytest.approx((norms[:, 0] - norms[:, -1]).mean(), abs=0.02)
