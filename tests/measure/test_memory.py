"""A memory budget changes no number, and the compiled program keeps within it."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.measure.directions import Directions
from gradcourse.measure.division import Blocks, in_blocks, plan_blocks
from gradcourse.measure.jacobians import backward_jacobian_norms, forward_jacobian_norms, layer_jacobian_norms
from gradcourse.nn.blocks import Residual
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import cnn, mlp, sequential

MEASURES = {"backward": backward_jacobian_norms, "forward": forward_jacobian_norms, "layer": layer_jacobian_norms}
SAMPLED = {"probes": 8, "key": jax.random.key(0)}
BATCH = 13

DENSE = mlp(20, [24] * 60, 20, activation="tanh")
WRAPPED = [Conv(4, "tanh", padding="CIRCULAR")] * 20
IMAGES = sequential((8, 8, 4), [*WRAPPED, MaxPool(2), Residual(Conv(4)), Conv(4, stride=2), Flatten(), Dense(20)])
NETWORKS = {"dense": DENSE, "images": IMAGES}
every_network = pytest.mark.parametrize("name", NETWORKS)


def shapes(network, batch):
    """Parameters and a batch, as shapes alone."""
    params = jax.eval_shape(lambda: network.init(key=jax.random.key(0)))
    return params, jax.ShapeDtypeStruct((batch, *network.input_shape), jnp.float32)


def temporary(measure, network, batch, **options):
    """The bytes that a measurement's compiled program uses beside parameters, inputs and results."""
    compiled = jax.jit(lambda params, x: measure(network, params, x, average=False, **options))
    return compiled.lower(*shapes(network, batch)).compile().memory_analysis().temp_size_in_bytes


def least(measure, network, batch, **options):
    """The smallest budget that is accepted, as the error tells it."""
    with pytest.raises(ValueError, match="memory=1 bytes is too little for this network") as error:
        jax.eval_shape(lambda *given: measure(network, *given, memory=1, **options), *shapes(network, batch))
    return int(str(error.value).rsplit("accepted from ", 1)[1].split()[0])


# The same numbers


def batch_of(network, batch=BATCH):
    return network.init(key=jax.random.key(1)), jax.random.normal(jax.random.key(2), (batch, *network.input_shape))


@cache
def unbounded(name, measure, sampled):
    return MEASURES[measure](NETWORKS[name], *batch_of(NETWORKS[name]), average=False, **(SAMPLED if sampled else {}))


@pytest.mark.parametrize(
    ("measure", "sampled", "times"),
    [
        ("backward", False, 1),
        ("backward", False, 12),
        ("backward", True, 5),
        ("forward", False, 1),
        ("layer", False, 3),
    ],
)
@every_network
def test_a_budget_changes_no_number(name, measure, sampled, times):
    """Of `times` the smallest budget: blocks of directions at 1, then of examples; 13 is a multiple of neither."""
    options = SAMPLED if sampled else {}
    network = NETWORKS[name]
    memory = times * least(MEASURES[measure], network, BATCH, **options)
    found = MEASURES[measure](network, *batch_of(network), average=False, memory=memory, **options)
    expected = unbounded(name, measure, sampled)
    np.testing.assert_allclose(found.log10_norm, expected.log10_norm, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=2e-3, atol=1e-6)


def test_averages_are_over_the_whole_batch():
    params, x = batch_of(DENSE)
    memory = 4 * least(backward_jacobian_norms, DENSE, BATCH)
    whole, parts = (backward_jacobian_norms(DENSE, params, x, memory=budget) for budget in (None, memory))
    np.testing.assert_allclose(parts.log10_norm, whole.log10_norm, rtol=0, atol=2e-6)
    np.testing.assert_allclose(parts.standard_error, whole.standard_error, rtol=1e-4, atol=1e-7)


# The budget


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@every_network
def test_programs_keep_within_the_budget(name, sampled, measure):
    network = NETWORKS[name]
    options = {} if not sampled else SAMPLED if measure == "layer" else SAMPLED | {"sketch": 4}
    minimum = least(MEASURES[measure], network, BATCH, **options)
    for memory in (minimum,) if sampled else (minimum, 3 * minimum):
        assert temporary(MEASURES[measure], network, BATCH, memory=memory, **options) <= memory


def test_a_bigger_budget_is_used():
    sizes = [temporary(backward_jacobian_norms, DENSE, 64, memory=memory) for memory in (2 * 10**5, 10**6, 10**7)]
    assert 3 * sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] == temporary(backward_jacobian_norms, DENSE, 64)


@pytest.mark.parametrize("network", [mlp(64, [64] * 2000, 10, activation="tanh"), cnn((8, 8, 4), [4] * 500, 10)])
def test_a_sweep_takes_less_than_twice_what_a_forward_pass_stores(network):
    """The parameters, and the input of every layer."""
    params, _ = shapes(network, 32)
    stored = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    stored += 4 * 32 * sum(stage.repeats * np.prod(stage.shape) for stage in network.stages)
    for measure in (backward_jacobian_norms, layer_jacobian_norms):
        assert temporary(measure, network, 32) < 2 * stored


# Plans


def test_without_a_budget_all_is_one_block():
    assert plan_blocks(DENSE, *shapes(DENSE, 13), 20, None) == Blocks(13, 20)
    assert plan_blocks(DENSE, *shapes(DENSE, 13), 20, 10**12) == Blocks(13, 20)


def test_examples_come_apart_before_directions_and_blocks_are_even():
    plans = [plan_blocks(DENSE, *shapes(DENSE, 13), 20, memory) for memory in range(40_000, 500_000, 3000)]
    assert all(plan.examples == 1 for plan in plans if plan.directions < 20)
    assert sorted(plans) == plans
    assert len(set(plans)) > 5
    assert {plan.examples for plan in plans} <= {1, 2, 3, 4, 5, 7, 13}  # 13 in as few blocks, as even as can be
    random = [plan_blocks(DENSE, *shapes(DENSE, 13), 12, memory, random=20) for memory in (2 * 10**5, 4 * 10**5, 10**7)]
    assert {plan.directions for plan in random} == {12}


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_too_small_budgets_are_refused():
    params, x = batch_of(DENSE, 2)
    needed = least(backward_jacobian_norms, DENSE, 2)
    words = rf"memory={needed - 1} bytes is too little .*accepted from {needed} up"
    with pytest.raises(ValueError, match=words):
        backward_jacobian_norms(DENSE, params, x, memory=needed - 1)
    with pytest.raises(ValueError, match="memory=0 is accepted from 1 up"):
        backward_jacobian_norms(DENSE, params, x, memory=0)
    assert least(backward_jacobian_norms, DENSE, 2, **SAMPLED) > needed  # random directions stay together


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 9])
def test_blocks_are_put_together_in_order(size):
    examples = {"a": jnp.arange(7.0), "b": jnp.arange(14.0).reshape(7, 2)}
    seen = []

    def function(block):
        seen.append(block["a"].shape[0])
        return block["a"][None] + block["b"].T  # (layer, batch)

    found = in_blocks(function, examples, size)
    np.testing.assert_array_equal(found, examples["a"][None] + examples["b"].T)
    assert seen == [min(size, 7)]


def test_a_basis_beyond_the_last_direction_is_zero():
    basis = partial(Directions(5).basis, count=3, batch=2, dtype=jnp.float32)
    np.testing.assert_array_equal(basis(3)[:, 1], np.eye(8)[3:6, :5])
