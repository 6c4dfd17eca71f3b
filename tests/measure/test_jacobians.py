"""Jacobian norms against dense float64 Jacobians, finite differences, closed forms and exact arithmetic."""

from dataclasses import dataclass
from fractions import Fraction
from math import fsum, log10

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference import drawn

from gradcourse.measure.jacobians import (
    backward_jacobian_norms,
    forward_jacobian_norms,
    layer_jacobian_norms,
    log_gain_split,
)
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential

MEASURES = {"backward": backward_jacobian_norms, "forward": forward_jacobian_norms, "layer": layer_jacobian_norms}
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
# An example compiles three sweeps, so there are few of them, and a failing one is not shrunk.
few_examples = settings(max_examples=3, phases=[Phase.explicit, Phase.generate])
# Their slopes are never exactly 0. Autodiff, the referee, keeps ten digits of them where arguments stay below 8 or so.
ALIVE = ["identity", "sigmoid", "tanh", "gelu", "softplus", "leaky_relu", "elu", "softsign"]


def agrees_with_dense_jacobians(network, seed, gain):
    """Each example's norms, and their root mean square, in float64."""
    params, x = drawn(network, seed, gain=gain)
    expected = reference.log10_norms(network, params, x)
    with jax.enable_x64(True):
        params, x = reference.in_float64((params, x))
        for name, measure in MEASURES.items():
            measured = measure(network, params, x, average=False).log10_norm
            np.testing.assert_allclose(measured, expected[name], rtol=0, atol=1e-10)
        averaged = backward_jacobian_norms(network, params, x).log10_norm
    np.testing.assert_allclose(averaged, reference.root_mean_square(expected["backward"]), rtol=0, atol=1e-10)


@few_examples
@given(
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    repeats=st.integers(1, 3),
    activation=st.sampled_from(ALIVE),
    gain=st.floats(0.1, 1),
    seed=st.integers(0, 1000),
)
def test_random_dense_networks_agree_with_dense_jacobians(widths, repeats, activation, gain, seed):
    network = mlp(3, [width for width in widths for _ in range(repeats)], 2, activation=activation)
    agrees_with_dense_jacobians(network, seed, gain)


@st.composite
def image_layers(draw):
    """Up to three random convolutions and pools, as the arguments they are made with."""
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 3)) == 0:
            layers.append((draw(st.sampled_from([MaxPool, AvgPool])), (2, draw(st.integers(1, 2))), {}))
            continue
        options = {
            "kernel_size": draw(st.integers(1, 3)),
            "stride": draw(st.sampled_from([1, 1, 2])),
            "padding": draw(st.sampled_from(["SAME", "CIRCULAR", "VALID"])),
        }
        layers += [(Conv, (draw(st.integers(1, 3)), draw(st.sampled_from(ALIVE))), options)] * draw(st.integers(1, 2))
    return layers


@few_examples
@given(image_layers(), st.floats(0.1, 1), st.integers(0, 1000))
def test_random_convolutional_networks_agree_with_dense_jacobians(arguments, gain, seed):
    layers, shape = [], (6, 5, 2)
    for make, args, options in arguments:
        layer = make(*args, **options)
        window = getattr(layer, "kernel_size", None) or layer.size
        if min(shape[:2]) < window:
            break
        layers.append(layer)
        shape = layer.output_shape(shape)
    agrees_with_dense_jacobians(sequential((6, 5, 2), [*layers, Flatten(), Dense(2)]), seed, gain)


NETWORK = mlp(4, [6] * 5, 3, activation="tanh")
IMAGES = sequential((4, 4, 1), [*[Conv(2, "gelu")] * 3, MaxPool(2), Flatten(), Dense(3)])
both_networks = pytest.mark.parametrize("network", [NETWORK, IMAGES], ids=["dense", "images"])


@every_measure
@pytest.mark.parametrize(
    "network", [NETWORK, IMAGES, mlp(8, [16] * 10, 3, activation="relu")], ids=["dense", "images", "relu"]
)
def test_float32_is_near_float64(measure, network):
    params, x = drawn(network)
    (name,) = (name for name, candidate in MEASURES.items() if candidate is measure)
    expected = reference.log10_norms(network, params, x)[name]
    np.testing.assert_allclose(measure(network, params, x, average=False).log10_norm, expected, rtol=0, atol=1e-5)


def test_finite_differences_agree():
    network = sequential((4, 4, 1), [Conv(2, "tanh"), Conv(2, "sigmoid", stride=2), Flatten(), Dense(3)])
    with jax.enable_x64(True):
        params, x = reference.in_float64(drawn(network, batch=1))
        steps = 1e-5 * np.eye(16).reshape(16, 4, 4, 1)
        columns = (network.apply(params, x + steps) - network.apply(params, x - steps)) / 2e-5
        expected = np.log10(np.linalg.norm(columns))
        assert backward_jacobian_norms(network, params, x).log10_norm[0] == pytest.approx(expected, abs=1e-9)
        assert forward_jacobian_norms(network, params, x).log10_norm[-1] == pytest.approx(expected, abs=1e-9)


@both_networks
def test_the_sweeps_meet_at_the_ends(network):
    params, x = drawn(network)
    back, forth, single = (measure(network, params, x, average=False).log10_norm for measure in MEASURES.values())
    np.testing.assert_allclose(back[:, 0], forth[:, -1], atol=1e-5)
    np.testing.assert_allclose(back[:, -1], single[:, -1], atol=1e-5)
    np.testing.assert_allclose(forth[:, 0], single[:, 0], atol=1e-5)


@every_measure
def test_jit_equals_eager(measure):
    network = sequential((2, 2, 1), [Conv(1, "tanh"), Flatten(), Dense(2)])
    params, x = drawn(network, batch=2)
    with jax.disable_jit():
        eager = measure(network, params, x).log10_norm
    np.testing.assert_allclose(measure(network, params, x).log10_norm, eager, atol=1e-5)
    outer = jax.jit(measure, static_argnums=0)(network, params, x)
    np.testing.assert_allclose(outer.log10_norm, eager, atol=1e-5)


@every_measure
def test_scanned_equals_unrolled(measure):
    @dataclass(frozen=True)
    class OtherDense(Dense):
        """Computes the same and equals no `Dense`, so that neighbours do not share a stage."""

    pair = [Dense(6, "tanh"), OtherDense(6, "tanh")]
    unrolled = sequential((6,), [*pair * 3, Dense(3)])
    scanned = sequential((6,), [*[Dense(6, "tanh")] * 6, Dense(3)])
    assert [len(network.stages) for network in (unrolled, scanned)] == [7, 2]
    params, x = drawn(scanned)
    split = tuple(jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], params[0]) for index in range(6))
    np.testing.assert_allclose(
        measure(unrolled, (*split, params[1]), x).log10_norm, measure(scanned, params, x).log10_norm, atol=1e-6
    )


@every_measure
def test_seeds_under_vmap_equal_a_loop(measure):
    (_, x), seeds = drawn(NETWORK), [drawn(NETWORK, seed)[0] for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    together = jax.vmap(lambda params: measure(NETWORK, params, x))(stacked)
    alone = [measure(NETWORK, params, x).log10_norm for params in seeds]
    np.testing.assert_allclose(together.log10_norm, alone, atol=1e-5)


@every_measure
def test_one_trace_serves_all_parameters_and_inputs(measure):
    traces = []

    def counted(s):
        traces.append(s)
        return jnp.sin(s)

    network = mlp(3, [4] * 5, 2, activation=counted)
    measure(network, *drawn(network, 0))
    once = len(traces)
    measure(network, *drawn(network, 7))
    assert 0 < once == len(traces)


def test_the_standard_error_is_that_of_a_root_mean_square():
    params, x = drawn(NETWORK, batch=9)
    squares = 100 ** backward_jacobian_norms(NETWORK, params, x, average=False).log10_norm
    relative = squares.std(axis=0, ddof=1) / np.sqrt(9) / squares.mean(axis=0)
    profile = backward_jacobian_norms(NETWORK, params, x)
    np.testing.assert_allclose(profile.standard_error, relative / 2 / np.log(10), rtol=1e-4, atol=1e-7)


def test_one_example_has_no_standard_error_and_each_example_is_exact():
    params, x = drawn(NETWORK, batch=1)
    assert np.isnan(backward_jacobian_norms(NETWORK, params, x).standard_error).all()
    assert not np.any(backward_jacobian_norms(NETWORK, params, x, average=False).standard_error)


def test_profiles_name_layers_and_quantity():
    profile = backward_jacobian_norms(NETWORK, *drawn(NETWORK))
    assert profile.layers == NETWORK.layer_names
    assert profile.quantity == "Frobenius norm of the Jacobian: output with respect to each layer's input"


# Closed forms and symmetries


def without_biases(params, x):
    return tuple({**stage, "bias": jnp.zeros_like(stage["bias"])} for stage in params), x


@every_measure
def test_orthogonal_linear_networks_keep_every_norm(measure):
    network = mlp(5, [5] * 60, 5, activation="identity", init="orthogonal")
    params = network.init(key=jax.random.key(0))
    np.testing.assert_allclose(measure(network, params, jnp.ones((1, 5))).log10_norm, np.log10(5) / 2, atol=2e-5)


def test_diagonal_weights_have_a_closed_form():
    network = mlp(3, [3] * 4, 3, activation="identity")
    params, x = drawn(network)
    diagonals = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    weights = jnp.asarray(diagonals[:, :, None] * np.eye(3, dtype=np.float32))
    params = ({**params[0], "weight": weights},)
    products = np.cumprod(diagonals[::-1].astype(np.float64), axis=0)[::-1]
    np.testing.assert_allclose(
        backward_jacobian_norms(network, params, x).log10_norm, np.log10(np.linalg.norm(products, axis=1)), atol=1e-6
    )


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_doubling_a_layers_weights_shifts_the_exponent_alone(activation):
    network = mlp(6, [6] * 7, 3, activation=activation)
    params, x = without_biases(*drawn(network))
    before = backward_jacobian_norms(network, params, x)
    scaled = {**params[0], "weight": params[0]["weight"].at[4].multiply(2.0**9)}
    after = backward_jacobian_norms(network, (scaled, *params[1:]), x)
    exponents, fractions = (
        [np.asarray(part, np.float64) for part in pair]
        for pair in ((before.exponent, after.exponent), (before.fraction, after.fraction))
    )
    shift = 9 * (np.arange(8) <= 4)
    np.testing.assert_array_equal(exponents[1] - exponents[0], shift)
    np.testing.assert_array_equal(fractions[1], fractions[0])


def test_rectifiers_do_not_see_the_inputs_scale():
    network = mlp(6, [6] * 5, 3, activation="relu")
    params, x = without_biases(*drawn(network))
    small, large = (backward_jacobian_norms(network, params, factor * x) for factor in (2.0**-20, 2.0**20))
    np.testing.assert_array_equal(small.log10_norm, large.log10_norm)


def test_the_product_of_scalars_is_a_sum_of_logs():
    network = mlp(1, [1] * 400, 1, activation="sigmoid")
    params, x = drawn(network, batch=1)
    h, factors = float(x[0, 0]), []
    for layer, one, _ in reference.unrolled(network, params):
        s = h * one["weight"].item() + one["bias"].item()
        h = 1 / (1 + np.exp(-s)) if layer.activation.name == "sigmoid" else s
        factors.append(
            log10(abs(one["weight"].item())) + (log10(h * (1 - h)) if layer.activation.name == "sigmoid" else 0)
        )
    expected = [fsum(factors[index:]) for index in range(len(factors))]
    assert expected[0] < -300
    np.testing.assert_allclose(backward_jacobian_norms(network, params, x).log10_norm, expected, atol=1e-4)


def test_exact_arithmetic_agrees():
    network = mlp(2, [2] * 250, 2, activation="identity")
    params, _ = drawn(network, gain=0.05)
    product, expected = [[Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]], []
    for _, one, _ in reversed(reference.unrolled(network, params)):
        weight = [[Fraction(entry) for entry in row] for row in one["weight"].tolist()]
        product = [[sum(row[k] * weight[j][k] for k in range(2)) for j in range(2)] for row in product]
        square = sum(entry**2 for row in product for entry in row)
        expected.append((log10(square.numerator) - log10(square.denominator)) / 2)
    assert expected[-1] < -330
    measured = backward_jacobian_norms(network, params, jnp.zeros((1, 2))).log10_norm
    np.testing.assert_allclose(measured, expected[::-1], rtol=0, atol=1e-4)


# Depth 1000


def test_a_thousand_sigmoid_layers_are_right_in_float32():
    network = mlp(16, [16] * 1000, 4, activation="sigmoid", init="glorot_uniform")
    params, x = network.init(key=jax.random.key(0)), drawn(network, batch=1)[1]
    single = backward_jacobian_norms(network, params, x, average=False).log10_norm
    assert (single[:, 0] < -590).all()
    with jax.enable_x64(True):
        double = backward_jacobian_norms(network, *reference.in_float64((params, x)), average=False).log10_norm
    dense = reference.log10_norms(network, params, x)["backward"]
    np.testing.assert_allclose(double, dense, rtol=0, atol=1e-9)
    np.testing.assert_allclose(single, dense, rtol=0, atol=1e-4)


@pytest.mark.parametrize("measure", [backward_jacobian_norms, forward_jacobian_norms])
def test_a_thousand_exploding_layers_are_right_in_float32(measure):
    network = mlp(24, [24] * 1000, 4, activation="tanh")
    params, _ = without_biases(*drawn(network, gain=4.2))
    x = jnp.zeros((1, 24))  # there tanh is the identity, and activations stay at zero
    dense = reference.log10_norms(network, params, x)["backward" if measure is backward_jacobian_norms else "forward"]
    assert dense.max() > 590
    np.testing.assert_allclose(measure(network, params, x).log10_norm, dense[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "power"), [("float32", 100), ("float64", 900)])
@every_measure
def test_extreme_weights_do_not_underflow(measure, dtype, power):
    network = mlp(3, [3] * 3, 3, activation="identity", init="orthogonal")
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype) * 2.0**-power, network.init(key=jax.random.key(0)))
        measured = measure(network, params, jnp.zeros((1, 3), dtype)).log10_norm
    layers = {
        backward_jacobian_norms: [4, 3, 2, 1],
        forward_jacobian_norms: [1, 2, 3, 4],
        layer_jacobian_norms: [1] * 4,
    }
    np.testing.assert_allclose(measured, np.log10(3) / 2 - np.log10(2) * power * np.array(layers[measure]), atol=1e-4)


# Activations that leave the range of float32, on the way to a Jacobian that does not


def agrees_in_both_precisions(measure, network, params, x, tolerance=1e-5):
    single = measure(network, params, x).log10_norm
    with jax.enable_x64(True):
        double = measure(network, *reference.in_float64((params, x))).log10_norm
    np.testing.assert_allclose(single, double, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("measure", "activation", "bias"),
    [
        *[(measure, "relu", 0) for measure in MEASURES.values()],
        *[(backward_jacobian_norms, activation, bias) for activation in ("leaky_relu", "selu") for bias in (0, 1e-20)],
    ],
)
def test_activations_may_underflow(measure, activation, bias):
    network = mlp(16, [16] * 250, 4, activation=activation, init="standard")
    params, x = network.init(key=jax.random.key(0)), drawn(network)[1]
    if bias == 0 and activation != "selu":
        assert not np.any(network.apply(params, x))  # the sign of what is 0 decides on a rectifier's slope
    params = tuple(
        {**stage, "bias": bias * jnp.cos(jnp.arange(stage["bias"].size, dtype="float32")).reshape(stage["bias"].shape)}
        for stage in params
    )
    agrees_in_both_precisions(measure, network, params, x)


@every_measure
def test_a_rectifiers_activations_may_overflow(measure):
    network = mlp(16, [16] * 40, 4, activation="leaky_relu")
    params, x = drawn(network, gain=1e3)
    assert not np.isfinite(network.apply(params, x)).all()
    agrees_in_both_precisions(measure, network, params, x)


def test_pools_pass_small_activations_on():
    layers = [*[Conv(2, "relu")] * 30, AvgPool(2), Flatten(), Dense(3)]
    network = sequential((4, 4, 2), layers)
    params, x = network.init(key=jax.random.key(0)), jnp.abs(drawn(network)[1])
    params = jax.tree.map(lambda leaf: jnp.abs(leaf) / 100, params)  # positive: rounding cannot turn a unit off
    assert not np.any(network.apply(params, x))
    agrees_in_both_precisions(backward_jacobian_norms, network, params, x)


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"sigmoid", "tanh", "softsign", "erf", "hard_tanh"}))
def test_overflow_is_measured_or_refused(activation):
    """Never is it taken for a slope; bounded activations do not overflow."""
    network = mlp(4, [4] * 3, 4, activation=activation)
    params, x = drawn(network, gain=1e30)
    for measure in (*MEASURES.values(), log_gain_split):
        try:
            measure(network, params, x)
        except FloatingPointError:
            assert not ACTIVATIONS[activation].homogeneous
        else:
            assert ACTIVATIONS[activation].homogeneous


def test_a_kernel_may_wrap_round_an_image_smaller_than_itself():
    network = sequential((2, 3, 2), [Conv(2, "tanh", kernel_size=5, padding="CIRCULAR"), Flatten(), Dense(2)])
    params, x = drawn(network)
    measured = layer_jacobian_norms(network, params, x, average=False).log10_norm
    np.testing.assert_allclose(measured, reference.log10_norms(network, params, x)["layer"], atol=1e-5)


def test_units_of_very_different_weights():
    network = mlp(2, [2], 1, activation="relu")
    params, _ = without_biases(*drawn(network))
    weight = jnp.array([[[-1e15, 1e-15], [-1e15, 1e-15]]])  # the first unit is dead
    params = ({**params[0], "weight": weight}, *params[1:])
    measured = layer_jacobian_norms(network, params, jnp.ones((1, 2))).log10_norm[0]
    assert measured == pytest.approx(log10(2) / 2 - 15, abs=1e-6)


# The split of each layer's gain


@both_networks
def test_the_split_is_the_hand_made_one(network):
    params, x = drawn(network)
    split = log_gain_split(network, params, x)
    expected = reference.log10_norms(network, params, x)
    after, middle = (reference.root_mean_square(expected[name]) for name in ("backward", "middle"))
    before = np.append(after[1:], log10(3) / 2)
    np.testing.assert_allclose(split.weights.log10_norm, after - middle, atol=1e-4)
    np.testing.assert_allclose(split.activation.log10_norm, middle - before, atol=1e-4)
    np.testing.assert_allclose(split.total.log10_norm, after - before, atol=1e-4)


def test_the_parts_of_the_split_add_up():
    network = mlp(8, [8] * 300, 4, activation="sigmoid")
    params, x = drawn(network)
    split = log_gain_split(network, params, x)
    np.testing.assert_allclose(
        split.weights.log10_norm + split.activation.log10_norm, split.total.log10_norm, rtol=0, atol=1e-6
    )
    profile = backward_jacobian_norms(network, params, x)
    assert split.total.log10_norm.sum() == pytest.approx(profile.log10_norm[0] - log10(4) / 2, abs=1e-4)


def test_a_sigmoid_never_gains_and_an_identity_neither_gains_nor_loses():
    sigmoid = mlp(4, [6] * 5, 3, activation="sigmoid")
    assert (log_gain_split(sigmoid, *drawn(sigmoid)).activation.log10_norm[:-1] < log10(0.25)).all()
    linear = mlp(4, [6] * 5, 3, activation="identity")
    np.testing.assert_allclose(log_gain_split(linear, *drawn(linear)).activation.log10_norm, 0, atol=1e-6)


def test_the_splits_error_is_that_of_a_ratio():
    params, x = drawn(NETWORK, batch=9)
    squares = 100 ** backward_jacobian_norms(NETWORK, params, x, average=False).log10_norm
    shares = squares / squares.mean(axis=0)
    expected = (shares[:, :-1] - shares[:, 1:]).std(axis=0, ddof=1) / np.sqrt(9) / 2 / np.log(10)
    np.testing.assert_allclose(log_gain_split(NETWORK, params, x).total.standard_error[:-1], expected, rtol=2e-3)


# Zeros, overflow and bad input


def dead_network():
    """Three hidden layers of which the first outputs zeros alone; a rectifier's slope at zero is zero."""
    network = mlp(4, [5] * 3, 2, activation="relu")
    params, x = without_biases(*drawn(network))
    return network, ({**params[0], "bias": params[0]["bias"] - 100}, *params[1:]), x


def test_a_dead_network_has_norms_of_exactly_zero():
    dead = dead_network()
    for measure in MEASURES.values():
        log_norm = measure(*dead).log10_norm
        np.testing.assert_array_equal(log_norm[:3], -np.inf)
        assert np.isfinite(log_norm[3]) == (measure is not forward_jacobian_norms)


def test_one_dead_example_leaves_the_others_mean():
    network = mlp(1, [1], 1, activation="relu")
    params, _ = drawn(network)
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.ndim == 3), params)  # weights 1, biases 0
    profile = backward_jacobian_norms(network, params, jnp.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(profile.log10_norm, [-log10(2) / 2, 0], atol=1e-6)


def test_the_split_of_a_dead_network_says_where_it_died():
    split = log_gain_split(*dead_network())
    np.testing.assert_array_equal(split.activation.log10_norm, [np.nan, np.nan, -np.inf, 0])
    assert np.isnan(split.weights.log10_norm[:3]).all()
    assert np.isfinite(split.weights.log10_norm[3])


@pytest.mark.parametrize("measure", [*MEASURES.values(), log_gain_split], ids=[*MEASURES, "split"])
def test_overflow_is_an_error_not_a_number(measure):
    network = mlp(4, [4] * 3, 4, activation="silu")
    with pytest.raises(FloatingPointError, match=r"overflow.*shrink the weights"):
        measure(network, *drawn(network, gain=1e30))


def broken(layer=0, value=np.nan):
    """`NETWORK`'s parameters with one weight of `layer` spoiled."""
    params, _ = drawn(NETWORK)
    stage, index = (0, 0) if layer == 0 else (1, layer - 1) if layer < 5 else (2, 0)
    spoiled = {**params[stage], "weight": params[stage]["weight"].at[index, 0, 0].set(value)}
    return (*params[:stage], spoiled, *params[stage + 1 :])


GOOD = drawn(NETWORK)


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize("measure", [*MEASURES.values(), log_gain_split], ids=[*MEASURES, "split"])
@pytest.mark.parametrize(
    ("params", "x", "error", "words"),
    [
        (
            GOOD[0],
            jnp.ones((2, 3, 4)),
            ValueError,
            r"x has shape \(2, 3, 4\), that is rank 3; accepted is \(batch, 4\)",
        ),
        (GOOD[0], jnp.ones(4), ValueError, r"One example\? Write x\[None\]"),
        (GOOD[0], jnp.ones((2, 5)), ValueError, r"x has shape \(2, 5\); accepted is \(batch, 4\).*input_shape"),
        (GOOD[0], jnp.ones((2, 4), int), TypeError, r"x has dtype int32 .*Write x.astype\('float32'\)"),
        (GOOD[0], jnp.ones((0, 4)), ValueError, "empty batch; accepted is at least one example"),
        (GOOD[0], jnp.full((2, 4), jnp.nan), ValueError, "x contains NaN or infinity; accepted are finite numbers"),
        (broken(3), GOOD[1], ValueError, "params of layer '3 dense' contain NaN or infinity; .*earlier checkpoint"),
        (broken(0, np.inf), GOOD[1], ValueError, "params of layer '0 dense' contain NaN or infinity"),
        (broken(5), GOOD[1], ValueError, "params of layer '5 dense' contain NaN or infinity"),
        (GOOD[0][:-1], GOOD[1], ValueError, r"params have the shapes .* accepted are those of this network.*init\(key"),
        (drawn(IMAGES)[0], GOOD[1], ValueError, "params have the shapes"),
        (
            jax.tree.map(lambda leaf: leaf.astype("int32"), GOOD[0]),
            GOOD[1],
            TypeError,
            r"params have dtype int32; accepted here are float32 and float64. .*astype\('float32'\)",
        ),
    ],
    ids=[
        "rank",
        "one-example",
        "width",
        "integers",
        "empty",
        "nan-x",
        "nan-3",
        "inf-0",
        "nan-5",
        "missing",
        "other",
        "integer-params",
    ],
)
def test_bad_input_is_refused(measure, params, x, error, words):
    with pytest.raises(error, match=words):
        measure(NETWORK, params, x)
