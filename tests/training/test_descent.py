"""The one loop against a plain one: looks of any spacing, the start among them or not, and ends that come early."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.training.descent import all_finite, descend


def update(step, state):
    """Something that depends on every step and on their order."""
    return {"x": jnp.cos(3 * state["x"]) + step.astype(jnp.float32), "count": state["count"] + 1}


START = {"x": jnp.float32(0.3), "count": jnp.int32(0)}
LOOKS = [(0,), (4,), (0, 4), (0, 2, 4, 6), (2, 4, 6), (1, 2, 3), (0, 1, 2), (0, 1, 5, 6), (3, 5, 100), range(0, 9, 4)]


@pytest.mark.parametrize("looks", LOOKS, ids=str)
def test_it_is_the_plain_loop(looks) -> None:
    last, seen, count = jax.jit(lambda start: descend(update, start, looks, lambda state: state))(START)
    state, step, expected = START, 0, []
    for look in looks:
        while step < look:
            state, step = update(jnp.int32(step), state), step + 1
        expected.append(state)
    assert int(count) == len(looks)
    np.testing.assert_array_equal(seen["count"], looks)
    np.testing.assert_allclose(seen["x"], [float(one["x"]) for one in expected], rtol=1e-4)
    np.testing.assert_allclose(last["x"], expected[-1]["x"], rtol=1e-4)


@pytest.mark.parametrize("looks", [(1, 2, 5, 9), (2, 4, 6, 8), (0, 3, 6, 9)], ids=str)
def test_it_ends_after_the_first_look_that_says_so(looks) -> None:
    def going(seen):
        return seen < looks[1]

    last, seen, count = jax.jit(lambda start: descend(update, start, looks, lambda state: state["count"], going=going))(
        START
    )
    assert int(count) == 2
    assert int(last["count"]) == looks[1]
    np.testing.assert_array_equal(seen, [*looks[:2], 0, 0])


def test_each_function_is_traced_once_whatever_the_looks() -> None:
    traces = []

    def counted(step, x):
        traces.append("update")
        return x / 2

    def look(x):
        traces.append("look")
        return x

    for looks in (range(0, 100, 10), (1, 5, 20, 90)):
        jax.jit(lambda x, looks=looks: descend(counted, x, looks, look))(jnp.float32(1))
        assert sorted(traces) == ["look", "update"]
        traces.clear()


def test_many_runs_are_the_runs_one_by_one() -> None:
    starts = {"x": jnp.array([0.1, 0.2, 0.7]), "count": jnp.zeros(3, jnp.int32)}

    def run(start):
        return descend(update, start, (0, 1, 4), lambda state: state["x"], going=lambda x: x < 3)

    together = jax.jit(jax.vmap(run))(starts)
    for index in range(3):
        one = jax.jit(run)(jax.tree.map(lambda leaf, index=index: leaf[index], starts))
        for all_, single in zip(jax.tree.leaves(together), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(all_[index], single, rtol=1e-4)


def test_one_number_that_is_not_finite_is_found() -> None:
    tree = {"weight": jnp.ones((2, 3)), "bias": [jnp.zeros(2)]}
    assert bool(all_finite(tree))
    for bad in (jnp.nan, jnp.inf):
        assert not bool(all_finite(tree | {"bias": [jnp.array([0.0, bad])]}))
