"""Networks: scanned stages compute what unrolled layers compute, and nothing unfit gets in."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten, Layer
from gradcourse.nn.network import Network, Stage, cnn, joined, mlp, sequential

DENSE = mlp(4, [5] * 6 + [3], 2, activation="tanh", init="glorot_normal")
IMAGES = sequential(
    (6, 7, 1),
    [
        *[Conv(3, "gelu", padding="CIRCULAR")] * 3,
        MaxPool(2),
        *[Conv(3, "gelu")] * 2,
        AvgPool(2, 1),
        Flatten(),
        Dense(2),
    ],
)


@pytest.mark.parametrize("network", [DENSE, IMAGES], ids=["dense", "images"])
def test_scanned_equals_unrolled(network):
    params = network.init(key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, *network.input_shape))
    h = np.asarray(x, np.float64)
    for layer, layer_params, shape in reference.unrolled(network, params):
        h = np.stack([reference.differentiate(layer, layer_params, one.reshape(shape))[0] for one in h])
    np.testing.assert_allclose(network.apply(params, x), h, rtol=1e-4, atol=1e-6)


def test_equal_neighbours_share_a_stage():
    assert [stage.repeats for stage in DENSE.stages] == [1, 5, 1, 1]
    assert [stage.repeats for stage in IMAGES.stages] == [1, 2, 1, 2, 1, 1, 1]
    assert DENSE.depth == 8
    assert DENSE.layer_names == tuple(f"{index} dense" for index in range(8))
    assert IMAGES.layer_names[-3:] == ("6 average pool", "7 flatten", "8 dense")
    assert (IMAGES.input_shape, IMAGES.output_shape) == ((6, 7, 1), (2,))


def test_a_key_decides_the_parameters():
    first, again, other = (DENSE.init(key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))
    assert (first[1]["weight"] != other[1]["weight"]).all()
    layers = first[1]["weight"]
    assert len(np.unique(layers)) == layers.size  # every layer of a stage is drawn for itself


def test_one_trace_serves_all_keys_and_parameters():
    traces = []

    def counted(s):
        traces.append(s)
        return jnp.tanh(s)

    network = mlp(3, [4] * 5, 2, activation=counted)
    x = jnp.ones((2, 3))
    network.apply(network.init(key=jax.random.key(0)), x)
    once = len(traces)
    network.apply(network.init(key=jax.random.key(1)), 2 * x)
    assert 0 < once == len(traces)


def test_many_orthogonal_networks_are_drawn_at_once():
    code = """
import jax
from gradcourse.nn.network import cnn
network = cnn((4, 4, 2), [4] * 3 + [6] * 2, 3, init="delta_orthogonal")
draw = jax.jit(jax.vmap(lambda key: network.init(key=key)))
jax.block_until_ready(draw(jax.random.split(jax.random.key(0), 40)))
print("drawn")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "drawn\n", done.stderr


def test_a_layer_of_your_own_needs_a_formula():
    class Square(Layer):
        def apply(self, params, h):
            return h**2

    network = sequential(3, [Square(), Square()])
    np.testing.assert_array_equal(network.apply(network.init(key=jax.random.key(0)), 2 * jnp.ones((1, 3))), 16.0)


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: mlp(4, [], 2), ValueError, r"widths=\[\] makes a network of depth 0; accepted is at least one"),
        (lambda: cnn((8, 8, 1), [], 2), ValueError, r"channels=\[\] makes a network of depth 0"),
        (lambda: sequential((4,), []), ValueError, "layers is empty, a network of depth 0"),
        (lambda: mlp(4, 10, 2), TypeError, r"widths=10 is one number; .*such as \[10\] \* 10"),
        (lambda: mlp(4, [3, 0], 2), ValueError, r"widths\[1\]=0 is accepted from 1 up"),
        (lambda: mlp(4, [3, 2.5], 2), TypeError, r"widths\[1\]=2.5 is a float"),
        (lambda: mlp(0, [3], 2), ValueError, "inputs=0"),
        (lambda: mlp(4, [3], 0), ValueError, "width=0"),
        (lambda: mlp(4, [3], 2, activation="rleu"), ValueError, "activation='rleu'.*did you mean 'relu'"),
        (lambda: mlp(4, [3], 2, init="he_normel"), ValueError, "init='he_normel'.*did you mean 'he_normal'"),
        (lambda: cnn((8, 8, 1), [3], 2, padding="valid?"), ValueError, "padding='valid.'.*did you mean 'VALID'"),
        (lambda: cnn((8, 8), [3], 2), ValueError, r"Conv got an input of shape \(8, 8\); accepted are images"),
        (lambda: cnn((4, 4, 1), [3] * 3, 2, padding="VALID"), ValueError, "smaller than its window of 3 pixels"),
        (lambda: sequential((4, 0, 1), [Flatten()]), ValueError, "input_shape=0"),
        (
            lambda: sequential((4,), [Dense]),
            TypeError,
            r"layers\[0\]=.*Dense.* accepted are layers such as Dense\(10\)",
        ),
        (lambda: sequential((4, 4, 1), [Dense(3)]), ValueError, "Put Flatten"),
    ],
)
def test_bad_networks_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_stage_of_one_layer_may_change_the_shape():
    stage = Stage(Dense(2), 1, (3,))
    carry, results = stage.scan(lambda h, p: (h @ p, h), jnp.ones((1, 3)), jnp.ones((1, 3, 2)))
    assert carry.shape == (1, 2)
    assert results.shape == (1, 1, 3)
    assert Network((stage,)).depth == 1


def test_a_scan_back_undoes_what_a_scan_has_done_and_results_are_in_the_layers_order():
    network = mlp(3, [3] * 4 + [5], 2)
    depths = network.parted(jnp.arange(6))
    assert [depth.tolist() for depth in depths] == [[0, 1, 2, 3], [4], [5]]

    def step(layer, depth, carry):
        return 10 * carry + depth, carry

    forward, collected = network.scan(step, depths, jnp.asarray(0))
    assert (int(forward), joined(collected).tolist()) == (12345, [0, 0, 1, 12, 123, 1234])
    back, seen = network.scan_back(step, depths, jnp.asarray(0))
    assert (int(back), seen.tolist()) == (543210, [54321, 5432, 543, 54, 5, 0])
