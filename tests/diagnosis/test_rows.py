"""One definition of each statistic: what the measurement says of units, and what a report's rows say of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.diagnosis.api import diagnose
from gradcourse.measure.units import unit_statistics
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import sequential


def assert_same(network, params, model):
    """The measurement on a network, and the report on the network or on the same one as a plain function."""
    x, y = jax.random.normal(jax.random.key(1), (4, *network.input_shape)), jnp.zeros(4, int)
    statistics = unit_statistics(network, params, x)
    for share in (statistics.silent, statistics.saturated):  # there is something to compare
        assert np.any(np.asarray(share) > 0)
    with jax.numpy_dtype_promotion("standard"):
        report = diagnose(model, params, (x, y), directions=1)
    has = [bool(p) for _, p in network.layers(params)] if model is not network else [True] * network.depth
    for field in ("mean", "spread", "saturated", "silent", "dead"):
        expected = np.asarray(getattr(statistics, field))[np.array(has)]
        np.testing.assert_allclose(report.of(field), expected, rtol=1e-4, atol=1e-5, err_msg=field)


def test_measurement_and_report_say_the_same_of_every_activation():
    network = sequential((12,), [Dense(12, name, initializer=gaussian(1.5, 1.0)) for name in ACTIVATIONS])
    assert_same(network, network.init(key=jax.random.key(0)), network.apply)


@pytest.mark.parametrize("traced", [False, True])
def test_measurement_and_report_say_the_same_of_convolutions(traced):
    network = sequential((4, 4, 2), [Conv(5, "relu"), Conv(4, "tanh"), Flatten(), Dense(3)])
    params = network.init(key=jax.random.key(0))
    for stage, bias in ((0, -100.0), (1, 5.0)):  # a channel is silent, another saturated
        params[stage]["bias"] = params[stage]["bias"].at[0, 0].set(bias)
    assert_same(network, params, network.apply if traced else network)


def test_rows_hold_plain_numbers_in_the_order_of_the_program():
    params = {"b": jnp.ones((3, 2)), "a": jnp.ones((2, 2))}
    report = diagnose(lambda p, x: jnp.sum(jnp.tanh(x @ p["b"]) @ p["a"]), params, (jnp.ones((4, 3)),), directions=1)
    assert [row.name for row in report.layers] == ["b", "a"]
    for row in report.layers:
        for name, value in vars(row).items():
            assert type(value) in (str, tuple, int, float, bool), name
