"""Gradients of a loss against `jax.grad` in float64, a NumPy sweep in the log domain, and identities."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
import reference
from reference import drawn

from gradcourse.measure.gradients import (
    activation_gradient_norms,
    parameter_gradient_norms,
    update_to_weight_ratios,
)
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.blocks import Residual
from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential
from gradcourse.training.sweeps import over_seeds

BATCH, CLASSES = 3, 3
LABELS = jnp.array([0, 2, 1])
cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


DENSE = mlp(4, [5] * 3, CLASSES, activation="tanh")
NETWORKS = {
    "dense": DENSE,
    "images": sequential(
        (6, 5, 2),
        [
            *[Conv(2, "gelu", padding="CIRCULAR")] * 2,
            Conv(3, "sigmoid", stride=2),
            MaxPool(2, 1),
            AvgPool(2, 1),
            Flatten(),
            Dense(CLASSES),
        ],
    ),
    "shortcuts": sequential(5, [Dense(5, "relu"), *[Residual((Dense(5, "softplus"), Dense(5)))] * 2, Dense(CLASSES)]),
}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def layers_of(network, params):
    return [
        (stage.layer, jax.tree.map(lambda leaf: leaf[index], stage_params))  # noqa: B023
        for stage, stage_params in zip(network.stages, params, strict=True)
        for index in range(stage.repeats)
    ]


def autodiff(network, params, x, y, loss=cross_entropy):
    """What `jax.grad` says in float64: gradients by example at inputs and pre-activations, and of the mean loss."""
    with jax.enable_x64(True):
        params, x = reference.in_float64((params, x))

        def total(layers, added_inputs, added_sums):
            h = x
            for (layer, _), p, at_input, at_sum in zip(names, layers, added_inputs, added_sums, strict=True):
                h = h + at_input
                if isinstance(layer, Dense | Conv):
                    h = layer.activation(layer.preactivation(p, h) + at_sum)
                else:
                    h = layer.apply(p, h) + at_sum
            return jax.vmap(loss)(h, y).sum()

        names = layers_of(network, params)
        shapes, h = [x.shape], x
        for layer, p in names:
            h = layer.apply(p, h)
            shapes.append(h.shape)
        zeros = [jnp.zeros(shape) for shape in shapes]
        gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))([p for _, p in names], zeros[:-1], zeros[1:])
        layers, inputs, sums = jax.tree.map(lambda leaf: np.asarray(leaf), gradients)
        return [jax.tree.map(lambda leaf: leaf / len(x), p) for p in layers], inputs, sums


def log_norm(tree):
    return np.log10(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree))) / 2


def by_example(gradients):
    return np.array([[log_norm(one[index]) for one in gradients] for index in range(BATCH)])


@every_network
def test_norms_are_those_of_autodiff(network):
    params, x = drawn(network)
    layers, inputs, sums = autodiff(network, params, x, LABELS)
    expected = {
        "input": by_example(inputs),
        "preactivation": by_example(sums),
        "parameters": [log_norm(one) for one in layers if one],
    }

    with jax.enable_x64(True):
        params, x = reference.in_float64((params, x))
        for at in ("input", "preactivation"):
            found = activation_gradient_norms(network, params, x, LABELS, at=at, average=False)
            np.testing.assert_allclose(found.log10_norm, expected[at], atol=1e-10)
            assert found.layers == network.layer_names
            assert found.quantity == f"gradient of the loss with respect to each layer's {at}"
        found = parameter_gradient_norms(network, params, x, LABELS)
        np.testing.assert_allclose(found.log10_norm, expected["parameters"], atol=1e-10)
        assert found.layers == tuple(name for name, one in zip(network.layer_names, layers, strict=True) if one)
        assert found.quantity == "gradient of the mean loss with respect to each layer's parameters"


def test_float32_is_near_float64():
    params, x = drawn(DENSE)
    layers, inputs, _ = autodiff(DENSE, params, x, LABELS)
    found = activation_gradient_norms(DENSE, params, x, LABELS, average=False)
    np.testing.assert_allclose(found.log10_norm, by_example(inputs), atol=1e-5)
    found = parameter_gradient_norms(DENSE, params, x, LABELS)
    np.testing.assert_allclose(found.log10_norm, [log_norm(one) for one in layers], atol=1e-5)
    for name in ("weight", "bias"):
        found = parameter_gradient_norms(DENSE, params, x, LABELS, part=name)
        np.testing.assert_allclose(found.log10_norm, [log_norm(one[name]) for one in layers], atol=1e-5)


def deep_reference(network, params, x, y):
    """log10 norms of a dense network, in float64 with an exponent of its own: inputs, sums, weights."""
    examples = reference.jacobians(network, params, x)
    inputs, sums, weights = [], [], []
    states = []
    for pairs, start in zip(examples, np.asarray(x, np.float64), strict=True):
        h, hs = start, []
        for (matrix, _), (layer, p, _) in zip(pairs, reference.unrolled(network, params), strict=True):
            hs.append(h)
            h = reference.values_and_slopes(layer.activation, matrix @ h + p["bias"])[0]
        share = np.exp(h - h.max())
        states.append((hs, share / share.sum()))
    vs = [share - np.eye(len(share))[label] for (_, share), label in zip(states, np.asarray(y), strict=True)]
    scales = np.zeros(len(x))
    for layer in reversed(range(network.depth)):
        vs = [v * pairs[layer][1] for v, pairs in zip(vs, examples, strict=True)]
        sums.append([scale + log_norm(v) for v, scale in zip(vs, scales, strict=True)])
        peak = scales.max()
        mean = sum(
            np.outer(hs[layer], v) * 10.0 ** (scale - peak)
            for v, scale, (hs, _) in zip(vs, scales, states, strict=True)
        )
        weights.append(peak + log_norm(mean / len(x)))
        vs = [v @ pairs[layer][0] for v, pairs in zip(vs, examples, strict=True)]
        inputs.append([scale + log_norm(v) for v, scale in zip(vs, scales, strict=True)])
        sizes = [np.abs(v).max() for v in vs]
        vs, scales = [v / size for v, size in zip(vs, sizes, strict=True)], scales + np.log10(sizes)
    return np.array(inputs[::-1]).T, np.array(sums[::-1]).T, np.array(weights[::-1])


def test_a_deep_sigmoid_network_is_right():
    network = mlp(6, [8] * 640, CLASSES, activation="sigmoid")
    params, x = drawn(network)
    inputs, sums, weights = deep_reference(network, params, x, LABELS)
    assert weights[0] < -400

    def agrees(params, x, tolerance):
        for at, expected in (("input", inputs), ("preactivation", sums)):
            found = activation_gradient_norms(network, params, x, LABELS, at=at, average=False)
            np.testing.assert_allclose(found.log10_norm, expected, rtol=0, atol=tolerance)
        found = parameter_gradient_norms(network, params, x, LABELS, part="weight")
        np.testing.assert_allclose(found.log10_norm, weights, rtol=0, atol=tolerance)

    agrees(params, x, 1e-3)
    with jax.enable_x64(True):
        agrees(*reference.in_float64((params, x)), 1e-9)


# Confidence

READOUT = sequential(2, [Dense(2)])


def with_margin(z):
    """Parameters of `READOUT` and an input whose outputs are `z` and 0."""
    return ({"weight": jnp.array([[[z, 0], [0, 1]]], jnp.float32), "bias": jnp.zeros((1, 2))},), jnp.array([[1.0, 0.0]])


@pytest.mark.parametrize("z", [-1e20, -50.0, -1.5, 0.0, 0.5, 20.0, 200.0, 12345.678, 7654321.0, 123456789.0])
def test_a_gradient_is_right_however_confident_the_prediction(z):
    params, x = with_margin(z)
    with mpmath.workdps(50):
        wrong = 1 / (1 + mpmath.exp(mpmath.mpf(float(np.float32(z)))))
        expected = float(mpmath.log10(wrong * mpmath.sqrt(2)))
    found = activation_gradient_norms(READOUT, params, x, jnp.array([0]), at="preactivation")
    np.testing.assert_allclose(found.log10_norm, expected, rtol=0, atol=1e-6)


def test_ends_of_confidence():
    found = activation_gradient_norms(READOUT, *with_margin(1e20), jnp.array([0]))
    assert found.log10_norm == -np.inf
    lone = sequential(2, [Dense(1)])
    params, x = drawn(lone)
    assert activation_gradient_norms(lone, params, x, jnp.zeros(BATCH, int)).log10_norm == -np.inf


def test_the_margin_may_lie_between_digits():
    """Among more classes than two, whose margins are no float32 numbers."""
    readout = sequential(1, [Dense(4)])
    z = jnp.array([3000.1, 0.2, -7.3, -0.9])
    params = ({"weight": z[None, None], "bias": jnp.zeros((1, 4))},)
    with mpmath.workdps(1500):
        shares = [mpmath.exp(mpmath.mpf(float(one))) for one in z]
        shares = [share / sum(shares) for share in shares]
        expected = [
            float(mpmath.log10(mpmath.norm([share - (index == label) for index, share in enumerate(shares)])))
            for label in range(4)
        ]
    for label in range(4):
        found = activation_gradient_norms(readout, params, jnp.ones((1, 1)), jnp.array([label]), at="preactivation")
        np.testing.assert_allclose(found.log10_norm, expected[label], rtol=0, atol=1e-6)


# Identities


def half_square(output, label):
    return jnp.square(output - label).sum() / 2


def test_scaling_the_loss_shifts_the_exponent_alone():
    params, x = drawn(DENSE)
    for measure in (activation_gradient_norms, parameter_gradient_norms):
        one, other = (measure(DENSE, params, x, jnp.full(BATCH, factor), loss=weighted) for factor in (1.0, 2.0**-60))
        np.testing.assert_allclose(one.log10_norm - other.log10_norm, 60 * np.log10(2), atol=1e-12)
        np.testing.assert_array_equal(one.fraction, other.fraction)


def weighted(output, factor):
    return factor * jnp.square(output).sum()


def test_the_layers_add_up_to_the_global_norm():
    params, x = drawn(DENSE)

    def mean_loss(params):
        return jax.vmap(cross_entropy)(DENSE.apply(params, x), LABELS).mean()

    total = float(optax.tree.norm(jax.grad(mean_loss)(params)))
    norms = 10 ** parameter_gradient_norms(DENSE, params, x, LABELS).log10_norm
    assert np.sqrt(np.square(norms).sum()) == pytest.approx(total, rel=1e-5)


def test_a_single_output_has_the_jacobians_norm():
    network = mlp(4, [5] * 3, 1, activation="tanh")
    params, x = drawn(network)
    found = activation_gradient_norms(network, params, x, LABELS, loss=lambda output, label: output[0])
    expected = backward_jacobian_norms(network, params, x)
    np.testing.assert_allclose(found.log10_norm, expected.log10_norm, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-3)


@pytest.mark.parametrize("measure", [activation_gradient_norms, parameter_gradient_norms])
def test_seeds_jit_and_eager_agree(measure):
    network = mlp(4, [3], CLASSES)
    params, x = drawn(network)
    found = measure(network, params, x, LABELS).log10_norm
    jitted = jax.jit(measure, static_argnums=0)(network, params, x, LABELS)
    np.testing.assert_allclose(jitted.log10_norm, found, atol=1e-5)
    with jax.disable_jit():
        eager = measure(network, params, x, LABELS)
    np.testing.assert_allclose(eager.log10_norm, found, atol=1e-5)
    seeds = over_seeds(partial(measure, y=LABELS), network, x, seeds=2, key=jax.random.key(0))
    params = network.init(key=jax.random.split(jax.random.key(0), 2)[1])
    np.testing.assert_allclose(seeds.log10_norm[1], measure(network, params, x, LABELS).log10_norm, atol=1e-5)


def test_zeros_are_exact_and_one_dead_example_is_no_matter():
    network = mlp(4, [5] * 3, CLASSES, activation="relu")
    params, x = drawn(network)
    dead = ({**params[0], "bias": params[0]["bias"] - 100}, *params[1:])
    np.testing.assert_array_equal(parameter_gradient_norms(network, dead, x, LABELS).log10_norm[0], -np.inf)
    biases = tuple({**stage, "bias": jnp.zeros_like(stage["bias"])} for stage in params)
    alone = parameter_gradient_norms(network, biases, x[:1], LABELS[:1]).log10_norm
    beside = parameter_gradient_norms(
        network, biases, jnp.stack([x[0], 0 * x[0]]), LABELS[:2], part="weight"
    ).log10_norm
    weight = parameter_gradient_norms(network, biases, x[:1], LABELS[:1], part="weight").log10_norm
    np.testing.assert_allclose(beside, weight - np.log10(2), atol=1e-6)
    assert (alone >= weight).all()


def test_ratios_are_those_of_the_updates():
    params, x = drawn(DENSE)
    y = LABELS

    def mean_loss(params):
        return jax.vmap(cross_entropy)(DENSE.apply(params, x), y).mean()

    optimizer = optax.sgd(0.1)
    updates, _ = optimizer.update(jax.grad(mean_loss)(params), optimizer.init(params))
    found = update_to_weight_ratios(DENSE, params, updates)
    expected = [
        log_norm(update) - log_norm(p)
        for (_, update), (_, p) in zip(layers_of(DENSE, updates), layers_of(DENSE, params), strict=True)
    ]
    assert found.layers == DENSE.layer_names
    np.testing.assert_allclose(found.log10_norm, expected, atol=1e-6)
    tiny = jax.tree.map(lambda leaf: leaf * 2.0**-100, updates)
    shifted = update_to_weight_ratios(DENSE, params, tiny).log10_norm
    np.testing.assert_allclose(shifted, found.log10_norm - 100 * np.log10(2), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_updates_are_squared_in_float32(dtype):
    params, _ = drawn(DENSE)
    updates = jax.tree.map(lambda p: (p * 1e-4).astype(dtype), params)
    pairs = zip(layers_of(DENSE, updates), layers_of(DENSE, params), strict=True)
    exact = [
        log_norm(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), update)) - log_norm(p)
        for (_, update), (_, p) in pairs
    ]
    np.testing.assert_allclose(update_to_weight_ratios(DENSE, params, updates).log10_norm, exact, rtol=0, atol=1e-6)


GOOD = drawn(DENSE)


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"y": jnp.array([0, 1, 3])}, ValueError, "y has labels from 0 to 3; accepted is 0 to 2"),
        ({"y": jnp.array([0, 1, -1])}, ValueError, "y has labels from -1 to 1"),
        ({"y": jnp.ones(3)}, TypeError, "y has dtype float32; the default loss accepts integer labels"),
        ({"y": None}, TypeError, "y has dtype NoneType"),
        ({"y": jnp.zeros((3, 3), int)}, ValueError, r"y has shape \(3, 3\) for 3 examples; .* accepts \(3,\)"),
        ({"y": jnp.zeros(2, int)}, ValueError, r"y has shape \(2,\) for 3 examples"),
        ({"y": jnp.zeros((2, 3)), "loss": half_square}, ValueError, r"accepted is \(batch, ...\), the batch of x"),
        ({"loss": lambda output, label: output}, ValueError, "loss returns .*; accepted is one floating-point number"),
        ({"x": jnp.ones((3, 7))}, ValueError, r"x has shape \(3, 7\); accepted is \(batch, 4\)"),
        ({"params": jax.tree.map(lambda p: p * jnp.nan, GOOD[0])}, ValueError, "'0 dense' contain NaN or infinity"),
        ({"part": "wieght"}, ValueError, "part='wieght' is not known; did you mean 'weight'"),
        ({"network": sequential((2, 2, 1), [MaxPool(2)])}, ValueError, "params have the shapes"),
    ],
)
def test_bad_arguments_are_refused(changes, error, words):
    arguments = {"network": DENSE, "params": GOOD[0], "x": GOOD[1], "y": LABELS} | changes
    with pytest.raises(error, match=words):
        parameter_gradient_norms(**arguments)


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_other_bad_arguments_are_refused():
    params, x = GOOD
    with pytest.raises(ValueError, match="at='output' is not known"):
        activation_gradient_norms(DENSE, params, x, LABELS, at="output")
    with pytest.raises(ValueError, match="updates have the shapes"):
        update_to_weight_ratios(DENSE, params, params[:1])
    with pytest.raises(TypeError, match="updates is a list; accepted is a tuple"):
        update_to_weight_ratios(DENSE, params, list(params))
    with pytest.raises(TypeError, match=r"updates\[0\]\['bias'\] has dtype int32; accepted are floating-point numbers"):
        update_to_weight_ratios(DENSE, params, jax.tree.map(lambda p: p.astype(int), params))
    broken = (*params[:-1], {**params[-1], "bias": params[-1]["bias"] * jnp.nan})
    with pytest.raises(ValueError, match="updates of layer '3 dense' contain NaN or infinity"):
        update_to_weight_ratios(DENSE, params, broken)
    with pytest.raises(ValueError, match=r"loss has a gradient .* though the outputs are finite"):
        activation_gradient_norms(DENSE, params, x, LABELS, loss=lambda output, label: jnp.sqrt(0 * output).sum())
    pool = sequential((2, 2, CLASSES), [MaxPool(2), Flatten()])
    with pytest.raises(ValueError, match="network has no parameters"):
        parameter_gradient_norms(pool, pool.init(key=jax.random.key(0)), jnp.ones((3, 2, 2, CLASSES)), LABELS)
    image = sequential((2, 2, 1), [Conv(1)])
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 2, 1\); the default loss accepts \(classes,\)"):
        activation_gradient_norms(image, *drawn(image), LABELS)
    with pytest.raises(FloatingPointError, match="overflow"):
        activation_gradient_norms(
            mlp(4, [4] * 3, CLASSES, activation="silu"),
            *drawn(mlp(4, [4] * 3, CLASSES, activation="silu"), gain=1e30),
            LABELS,
        )


@pytest.mark.parametrize("part", ["weight", "bias", "all"])
def test_gradients_of_weights_are_right_where_activations_underflow(part):
    network = mlp(16, [16] * 250, 4, activation="tanh", init="standard")
    params, x, y = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (3, 16)), jnp.arange(3)
    assert not np.any(network.apply(params, x))
    single = parameter_gradient_norms(network, params, x, y, part=part).log10_norm
    with jax.enable_x64(True):
        wide, x = jax.tree.map(lambda leaf: leaf.astype("float64"), (params, x))
        double = parameter_gradient_norms(network, wide, x, y, part=part).log10_norm
    assert single.min() < -45
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-4)
