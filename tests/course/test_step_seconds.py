"""The operations of an update are counted as XLA counts them, and an update is timed in three ways."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import gradcourse as gc
from gradcourse.course.experiments import devices as steps


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
    assert steps.step_operations(width, hidden) == pytest.approx(counted, rel=0.05)


def test_timings_are_refused_on_another_platform() -> None:
    with pytest.raises(ValueError, match="platform='gpu' is asked for and this is 'cpu'; record it there"):
        steps.step_seconds("gpu", 16)


def test_an_update_is_timed_in_three_ways() -> None:
    found = steps.step_seconds("cpu", 16, hidden=1, steps=5, rounds=1)
    assert set(found) == {"operations", "compile", "in_program", "returned", "called", "peak", "bandwidth"}
    assert min(found.values()) > 0
    assert found["returned"] <= found["called"]
