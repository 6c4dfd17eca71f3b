"""Normalisation against autodiff, its projection identity and mean-field theory, and what coupling does to the rest."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import gradcourse as gc
from gradcourse.measure.jacobians import (
    backward_jacobian_norms,
    forward_jacobian_norms,
    layer_jacobian_norms,
    log_gain_split,
)
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Dense, Flatten, Pointwise
from gradcourse.nn.network import sequential
from gradcourse.nn.normalisation import BatchNorm, ChannelScale, GroupNorm, LayerNorm, WeightStandardised, at_inference

DENSE, IMAGE = (6,), (3, 4, 6)
LAYERS = {
    "batch": BatchNorm("tanh"),
    "layer": LayerNorm("tanh"),
    "group": GroupNorm(3, "tanh"),
    "scale": ChannelScale("sigmoid"),
    "pointwise": Pointwise("tanh"),
    "block": Block((LayerNorm(), Pointwise("tanh"), BatchNorm("sigmoid"))),
    "residual": Residual((BatchNorm("tanh"), LayerNorm()), scale=0.5, learned=True),
}
COUPLED = sequential(
    IMAGE,
    [
        WeightStandardised(Conv(4, stride=2, initializer="he_normal")),
        BatchNorm("tanh"),
        Residual((GroupNorm(2, "tanh"), Conv(4, initializer="he_normal"), BatchNorm("sigmoid")), learned=True),
        Flatten(),
        *[Block((Dense(4, initializer="he_normal"), BatchNorm("tanh")))] * 2,
        Dense(3, initializer="lecun_normal"),
    ],
)


def drawn(layer, shape, seed=0):
    """Parameters of which none is 0 or 1, and an input of five examples."""
    keys = iter(jax.random.split(jax.random.key(seed), 40))
    params = layer.init(shape, key=next(keys))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params)
    return params, 2.0 + 3.0 * jax.random.normal(next(keys), (5, *shape))


def whole_jacobians(network, params, x):
    """The whole batch's Jacobians in float64 by autodiff: of every layer's output, at every layer's input."""
    with jax.enable_x64(True):
        params, h = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, x))
        steps = []
        for stage, stacked in zip(network.stages, params, strict=True):
            for index in range(stage.repeats):
                p = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
                apply = partial(stage.layer.apply, p)
                jacobian = jax.jacrev(apply)(h)
                h = apply(h)
                steps.append(np.asarray(jacobian).reshape(len(x), h[0].size, len(x), -1))
    return steps


def product(left, right):
    return np.einsum("aibj,bjck->aick", left, right)


@pytest.fixture(scope="module")
def coupled():
    params = COUPLED.init(key=jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    return params, jax.random.normal(jax.random.key(1), (4, *IMAGE))


@pytest.fixture(scope="module")
def jacobians(coupled):
    return whole_jacobians(COUPLED, *coupled)


@pytest.mark.parametrize("shape", [DENSE, IMAGE], ids=["dense", "image"])
@pytest.mark.parametrize("name", LAYERS)
def test_halves_and_gradients_agree_with_autodiff(name, shape):
    layer = LAYERS[name]
    params, h = drawn(layer, shape)
    v = jax.random.normal(jax.random.key(9), (2, 5, *shape))
    y, point = layer.linearize(params, h)
    np.testing.assert_allclose(y, layer.apply(params, h), atol=1e-5)
    pulled, pushed = point.pull(params, point.times_slope(v)), point.times_slope(point.push(params, v))
    np.testing.assert_allclose(pulled, reference.pulled(layer, params, h, v), atol=2e-5)
    np.testing.assert_allclose(pushed, reference.pushed(layer, params, h, v), atol=2e-5)
    at_s = point.times_slope(v)[0]
    _, pull = jax.vjp(lambda params: layer.apply(params, h), params)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-4), layer.parameter_gradient(params, h, at_s), pull(v[0])[0]
    )


def test_activations_are_normalised_over_what_belongs_together():
    h = 5.0 + 2.0 * jax.random.normal(jax.random.key(0), (7, 4, 3, 6))
    whole = {BatchNorm(): (0, 1, 2), LayerNorm(): (1, 2, 3)}
    for layer, axes in whole.items():
        out = layer.apply(layer.init(IMAGE, key=jax.random.key(0)), h)
        np.testing.assert_allclose(out.mean(axis=axes), 0, atol=1e-6)
        np.testing.assert_allclose(out.std(axis=axes), 1, atol=1e-5)
    groups = GroupNorm(2)
    out = groups.apply(groups.init(IMAGE, key=jax.random.key(0)), h)
    np.testing.assert_allclose(out[..., :3].mean(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(out[..., 3:].std(axis=(1, 2, 3)), 1, atol=1e-5)
    one = LayerNorm().apply(LayerNorm().init(IMAGE, key=jax.random.key(0)), h)
    np.testing.assert_allclose(GroupNorm(1).apply(GroupNorm(1).init(IMAGE, key=jax.random.key(0)), h), one)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e25])
@pytest.mark.parametrize("layer", [BatchNorm(), LayerNorm(), GroupNorm(3)], ids=lambda layer: layer.kind)
def test_inputs_of_any_size_are_normalised(layer, size):
    """Also where their squares leave the range of float32; below the square root of epsilon they are only scaled."""
    params, h = layer.init(DENSE, key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (8, *DENSE))
    with jax.enable_x64(True):
        wide = jnp.asarray(h, jnp.float64) * size
        wide_params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        expected, wide_point = layer.linearize(wide_params, wide)
    found, point = layer.linearize(params, h * size)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(np.asarray(expected)).max())
    np.testing.assert_allclose(point.per_deviation, wide_point.per_deviation, rtol=1e-5)


def test_examples_of_very_different_size_do_not_disturb_one_another():
    params = LayerNorm().init(DENSE, key=jax.random.key(0))
    h = jax.random.normal(jax.random.key(1), (2, *DENSE)) * jnp.array([[1e30], [1.0]])
    apart = [LayerNorm().apply(params, h[i : i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(LayerNorm().apply(params, h), jnp.stack(apart), rtol=1e-5)


def test_batch_norm_projects_the_gradient():
    r"""Santurkar et al.'s inequality is an identity for the layer itself.

    $\|\partial L/\partial h\|^2 = (\gamma/\sigma)^2
    (\|g\|^2 - \langle 1, g\rangle^2/m - \langle g, \hat h\rangle^2/m)$.
    """
    layer = BatchNorm(epsilon=1e-12)
    params, h = drawn(layer, DENSE)
    g = jax.random.normal(jax.random.key(4), h.shape)
    pulled = layer.linearize(params, h)[1].pull(params, g[None])[0]
    h, g = np.asarray(h), np.asarray(g)
    normalised = (h - h.mean(axis=0)) / h.std(axis=0)
    square = np.square(g).sum(axis=0) - g.sum(axis=0) ** 2 / 5 - (g * normalised).sum(axis=0) ** 2 / 5
    expected = np.square(np.asarray(params["scale"]) / h.std(axis=0)) * square
    np.testing.assert_allclose(jnp.square(pulled).sum(axis=0), expected, rtol=1e-4)


def test_norms_of_coupled_examples_agree_with_the_whole_batchs_jacobian(coupled, jacobians):
    def per_example(jacobian, axis):
        return np.log10(np.sum(jacobian**2, axis=tuple(i for i in range(4) if i != axis))) / 2

    back, ahead = [jacobians[-1]], [jacobians[0]]
    for jacobian in reversed(jacobians[:-1]):
        back.append(product(back[-1], jacobian))
    for jacobian in jacobians[1:]:
        ahead.append(product(jacobian, ahead[-1]))
    expected = {
        backward_jacobian_norms: [per_example(jacobian, 2) for jacobian in reversed(back)],
        forward_jacobian_norms: [per_example(jacobian, 0) for jacobian in ahead],
        layer_jacobian_norms: [per_example(jacobian, 2) for jacobian in jacobians],
    }
    for measure, norms in expected.items():
        found = measure(COUPLED, *coupled, average=False).log10_norm
        np.testing.assert_allclose(found, np.array(norms).T, rtol=0, atol=2e-5, err_msg=measure.__name__)


def test_the_careful_way_and_blocks_of_directions_agree(coupled):
    whole = backward_jacobian_norms(COUPLED, *coupled, average=False)
    for more in ({"memory": 60_000}, {"mesh": jax.make_mesh((1,), ("example",))}):
        again = backward_jacobian_norms(COUPLED, *coupled, average=False, **more)
        np.testing.assert_allclose(again.log10_norm, whole.log10_norm, rtol=0, atol=1e-6)
    careful = jax.jit(partial(backward_jacobian_norms, COUPLED))(*coupled)
    np.testing.assert_allclose(
        careful.log10_norm, backward_jacobian_norms(COUPLED, *coupled).log10_norm, rtol=0, atol=1e-6
    )
    split = log_gain_split(COUPLED, *coupled)
    np.testing.assert_allclose(
        split.weights.log10_norm + split.activation.log10_norm, split.total.log10_norm, atol=1e-5
    )
    ends = split.total.log10_norm.sum(), backward_jacobian_norms(COUPLED, *coupled).log10_norm[0] - np.log10(3) / 2
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


@pytest.mark.parametrize("sketch", [0, 3])
def test_random_directions_hold_the_truth_within_their_error(coupled, sketch):
    measure = jax.jit(
        jax.vmap(
            lambda key: backward_jacobian_norms(COUPLED, *coupled, average=False, probes=6, sketch=sketch, key=key)
        )
    )
    found = measure(jax.random.split(jax.random.key(2), 60))
    truth = backward_jacobian_norms(COUPLED, *coupled, average=False).log10_norm
    apart = (found.log10_norm - truth) / np.asarray(found.standard_error)
    assert 0.85 < np.mean(np.abs(apart) < 1.96) <= 1
    assert np.asarray(found.standard_error).max() < 0.5


def test_gradients_of_the_loss_agree_with_autodiff(coupled):
    params, x = coupled
    y = jnp.array([0, 1, 2, 0])

    def loss(params, x):
        return optax.losses.softmax_cross_entropy_with_integer_labels(COUPLED.apply(params, x), y)

    at_input = gc.activation_gradient_norms(COUPLED, params, x, y, average=False).log10_norm[:, 0]
    expected = jax.grad(lambda x: loss(params, x).sum())(x)
    np.testing.assert_allclose(at_input, np.log10(np.sqrt(np.sum(expected**2, axis=(1, 2, 3)))), atol=1e-5)
    norms = gc.parameter_gradient_norms(COUPLED, params, x, y)
    gradient = jax.grad(lambda params: loss(params, x).mean())(params)
    squares = [
        sum(float(np.sum(np.square(leaf[index]))) for leaf in jax.tree.leaves(stage))
        for stage in gradient
        for index in range(len(jax.tree.leaves(stage)[0]) if stage else 0)
    ]
    np.testing.assert_allclose(norms.log10_norm, np.log10(squares) / 2, atol=1e-5)


def test_singular_values_are_those_of_examples_that_have_a_jacobian_of_their_own(coupled):
    params, x = coupled
    for measure in (
        gc.measure.backward_singular_values,
        gc.measure.layer_singular_values,
        partial(gc.measure.layer_extremes, key=jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match=r"couples the examples .* gradcourse\.at_inference"):
            measure(COUPLED, params, x)
    fixed, fixed_params = at_inference(COUPLED, params, x)
    values = gc.measure.backward_singular_values(fixed, fixed_params, x)
    total = np.log10((10 ** (2 * values.log10_norm[:, :, 0])).sum(axis=1)) / 2
    norms = backward_jacobian_norms(fixed, fixed_params, x, average=False)
    np.testing.assert_allclose(total, norms.log10_norm[:, 0], atol=1e-5)


def test_fixed_statistics_leave_the_outputs_of_their_batch_and_couple_nothing(coupled):
    params, x = coupled
    fixed, fixed_params = at_inference(COUPLED, params, x)
    assert COUPLED.couples_examples
    assert not fixed.couples_examples
    assert [stage.repeats for stage in fixed.stages] == [stage.repeats for stage in COUPLED.stages]
    out = fixed.apply(fixed_params, x)
    np.testing.assert_allclose(out, COUPLED.apply(params, x), atol=1e-4)
    np.testing.assert_allclose(fixed.apply(fixed_params, x[:1]), out[:1], atol=1e-5)
    again, again_params = at_inference(fixed, fixed_params, x)
    assert again == fixed
    jax.tree.map(np.testing.assert_array_equal, again_params, fixed_params)


def test_batch_norm_explodes_at_the_exact_rate_of_linear_networks():
    r"""$\mathbb{E}\|J^\top v\|^2$ grows by $(B - 2)/(B - 3)$ per layer (Yang et al., 2019), whatever the width."""
    batch, width, depth = 16, 256, 8
    network = sequential(width, [Block((Dense(width, initializer="lecun_normal"), BatchNorm(epsilon=1e-9)))] * depth)
    norms = partial(gc.backward_jacobian_norms, probes=64, key=jax.random.key(3))
    x = jax.random.normal(jax.random.key(0), (batch, width))
    profiles = gc.over_seeds(norms, network, x, seeds=4, key=jax.random.key(1))
    settled = profiles.slope(first=2)[0]  # the first layers' inputs are no deep layer's outputs
    assert 2 * settled == pytest.approx(-np.log10((batch - 2) / (batch - 3)), rel=0.1)


def test_standardised_weights_are_and_their_gradient_passes_through():
    layer = WeightStandardised(Conv(4, "tanh", initializer="he_normal"), gain=1.5)
    params, h = drawn(layer, IMAGE)
    weight = layer.standardised(params)["weight"].reshape(-1, 4)
    np.testing.assert_allclose(weight.mean(axis=0), 0, atol=1e-7)
    np.testing.assert_allclose(jnp.square(weight).sum(axis=0), 1.5**2, rtol=1e-5)
    y, point = layer.linearize(params, h)
    np.testing.assert_allclose(y, layer.apply(params, h), atol=1e-5)
    v = jax.random.normal(jax.random.key(9), y.shape)
    _, pull = jax.vjp(lambda params: layer.apply(params, h), params)
    found = layer.parameter_gradient(params, h, point.times_slope(v[None])[0])
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), found, pull(v)[0])
    shifted = params | {"weight": 7.0 * params["weight"] + 2.0}
    np.testing.assert_allclose(layer.apply(shifted, h), y, atol=1e-4)


def test_units_of_normalised_layers_and_blocks_are_looked_at():
    network = sequential(DENSE, [Block((Dense(50), BatchNorm("relu"))), LayerNorm("sigmoid"), Residual(Dense(50))])
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (200, *DENSE))
    found = gc.measure.unit_statistics(network, params, x)
    np.testing.assert_allclose(found.preactivation_rms[:2], 1, atol=1e-3)
    assert found.mean_square_slope[0] == pytest.approx(0.5, abs=0.05)
    assert found.silent[:2].tolist() == [0, 0]
    assert np.isnan(found.silent[2])
    assert [len(units) for units in gc.measure.silent_units(network, params, x)] == [50, 50, 50]


def test_a_deep_sigmoid_network_trains_with_batch_norm():
    network = sequential(64, [Block((Dense(32), BatchNorm("sigmoid")))] * 6 + [Dense(10)])
    params, data = network.init(key=jax.random.key(0)), gc.digits()
    run, history = gc.train(network, params, data, optax.sgd(0.5), steps=300, key=jax.random.key(1))
    assert history.accuracy[-1] > 0.7
    fixed, fixed_params = at_inference(network, run.params, data.x_train)
    assert gc.training.accuracy(fixed, fixed_params, data.x_test, data.y_test) > 0.7


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: BatchNorm("relu", epsilon=0.0), ValueError, "epsilon=0.0 is not accepted"),
        (lambda: sequential(6, [GroupNorm(4)]), ValueError, "groups=4 do not divide the 6 channels"),
        (lambda: GroupNorm(0), ValueError, "groups=0"),
        (lambda: WeightStandardised(Flatten()), TypeError, "accepted is a Dense or a Conv"),
        (lambda: WeightStandardised(Dense(3), gain=0.0), ValueError, "gain=0.0"),
        (lambda: sequential(1, [WeightStandardised(Dense(3))]), ValueError, "a fan-in of 1"),
        (lambda: BatchNorm("relo"), ValueError, "did you mean 'relu'"),
        (lambda: Block(()), ValueError, "body is empty"),
    ],
)
@pytest.mark.usefixtures("no_runtime_typecheck")
def test_bad_settings_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_batch_of_one_is_refused():
    network = sequential(DENSE, [Dense(4), BatchNorm()])
    params = network.init(key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"one value per channel, .* at_inference"):
        backward_jacobian_norms(network, params, jnp.ones((1, *DENSE)))
