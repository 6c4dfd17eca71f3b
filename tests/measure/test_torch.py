"""Norms against PyTorch's autograd: another framework's layers and derivatives, in float64, on random networks."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gradcourse.measure.gradients import parameter_gradient_norms
from gradcourse.measure.jacobians import backward_jacobian_norms, forward_jacobian_norms, layer_jacobian_norms
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten, Pointwise
from gradcourse.nn.network import mlp, sequential
from gradcourse.nn.normalisation import BatchNorm, ChannelScale, GroupNorm, LayerNorm, WeightStandardised

torch = pytest.importorskip("torch", reason="PyTorch is not installed; it comes with the extra: gradcourse[bench]")
functional = torch.nn.functional

MEASURES = {"backward": backward_jacobian_norms, "forward": forward_jacobian_norms, "layer": layer_jacobian_norms}
THEIRS = {
    "identity": torch.clone,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": functional.softsign,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "erf": torch.erf,
    "hard_tanh": functional.hardtanh,
}
CLASSES, BATCH = 3, 2


def few_examples(count):
    """An example compiles four sweeps, so there are few of them, and a failing one is not shrunk."""
    return settings(max_examples=count, phases=[Phase.explicit, Phase.generate])


# The same networks in PyTorch


def padded(layer, h):
    """Images `(batch, channel, height, width)` with the pixels that our layer's padding adds."""
    if layer.padding == "VALID":
        return h
    for axis in (2, 3):
        side = h.shape[axis]
        total = max((-(-side // layer.stride) - 1) * layer.stride + layer.kernel_size - side, 0)
        index = torch.arange(-(total // 2), side + total - total // 2)
        inside = (index >= 0) & (index < side) | (layer.padding == "CIRCULAR")
        h = h.index_select(axis, index % side) * inside.reshape(-1, *[1] * (3 - axis))
    return h


def through(layer, p, h):
    """The layer's output, `(batch, *output)`, images with their channels last."""
    if isinstance(layer, Flatten):
        return h.flatten(1)
    if isinstance(layer, Block):
        out = h
        for index, inner in enumerate(layer.body):
            out = through(inner, p[str(index)], out)
        return h + p.get("scale", layer.scale) * out if isinstance(layer, Residual) else out
    if isinstance(layer, Pointwise):
        return THEIRS[layer.activation.name](h)
    if isinstance(layer, WeightStandardised):
        deviation, mean = torch.std_mean(p["weight"].flatten(0, -2), dim=0, correction=0)
        fan_in = p["weight"].flatten(0, -2).shape[0]
        weight = layer.gain * (p["weight"] - mean) / (deviation * fan_in**0.5)
        return through(layer.layer, p | {"weight": weight}, h)
    if isinstance(layer, BatchNorm | GroupNorm | ChannelScale):
        return THEIRS[layer.activation.name](normalised(layer, p, h.movedim(-1, 1)).movedim(1, -1))
    if isinstance(layer, Dense):
        return THEIRS[layer.activation.name](functional.linear(h, p["weight"].T, p["bias"]))
    h = h.permute(0, 3, 1, 2)
    if isinstance(layer, Conv):
        kernel = p["weight"].permute(3, 2, 0, 1).contiguous()  # which its CPU kernels need on the way back
        s = functional.conv2d(padded(layer, h), kernel, p["bias"], stride=layer.stride)
        return THEIRS[layer.activation.name](s).permute(0, 2, 3, 1)
    pool = functional.max_pool2d if isinstance(layer, MaxPool) else functional.avg_pool2d
    return pool(h, layer.size, layer.stride).permute(0, 2, 3, 1)


def normalised(layer, p, h):
    """What PyTorch's normalisations do, with channels at axis 1."""
    if isinstance(layer, BatchNorm):
        return functional.batch_norm(h, None, None, p["scale"], p["shift"], training=True, eps=layer.epsilon)
    if isinstance(layer, GroupNorm):
        return functional.group_norm(h, layer.groups, p["scale"], p["shift"], eps=layer.epsilon)
    return (h.movedim(1, -1) * p["scale"] + p["shift"]).movedim(-1, 1)


def through_all(layers, h):
    for layer, p in layers:
        h = through(layer, p, h)
    return h


def log_norm(function, h):
    """The log10 norm of the Jacobian of `function` at one example."""
    norm = torch.linalg.vector_norm(torch.autograd.functional.jacobian(function, h[None]))
    return norm.log10().item()


def jacobian_norms(layers, x):
    """Returns by name the log10 norms, `(batch, layer)`, each of a Jacobian made for itself."""
    result = {"backward": [], "forward": [], "layer": []}
    for example in x:
        hs = [example]
        for layer, p in layers:
            hs.append(through(layer, p, hs[-1][None])[0])
        ends = list(enumerate(pairwise(hs)))
        result["backward"].append([log_norm(lambda h, at=at: through_all(layers[at:], h), h) for at, (h, _) in ends])
        result["forward"].append(
            [log_norm(lambda h, at=at: through_all(layers[: at + 1], h), example) for at, _ in ends]
        )
        result["layer"].append([log_norm(lambda h, at=at: through(*layers[at], h), h) for at, (h, _) in ends])
    return result


def coupled_jacobian_norms(layers, x):
    """The same for layers that couple the examples of a batch: of the whole batch's outputs, or inputs."""
    hs = [x]
    for layer, p in layers:
        hs.append(through(layer, p, hs[-1]))

    def norms(function, h, over):
        jacobian = torch.autograd.functional.jacobian(function, h.detach())
        entries = jacobian.reshape(BATCH, -1, BATCH, h[0].numel()).square()
        return entries.sum(dim=tuple(axis for axis in range(4) if axis != over)).log10().numpy() / 2

    ends = range(len(layers))
    result = {
        "backward": [norms(lambda h, at=at: through_all(layers[at:], h), hs[at], 2) for at in ends],
        "forward": [norms(lambda h, at=at: through_all(layers[: at + 1], h), x, 0) for at in ends],
        "layer": [norms(lambda h, at=at: through(*layers[at], h), hs[at], 2) for at in ends],
    }
    return {name: np.transpose(values) for name, values in result.items()}


def gradient_norms(layers, x, y):
    """Returns the log10 norms of the mean cross-entropy's gradient, for every layer that has parameters."""
    loss = functional.cross_entropy(through_all(layers, x), y)
    norms = []
    for _, p in layers:
        if leaves := jax.tree.leaves(p):
            parts = torch.autograd.grad(loss, leaves, retain_graph=True)
            norms.append(sum(part.square().sum() for part in parts).log10().item() / 2)
    return norms


def agrees_with_autograd(network, seed, gain):
    """All norms of random weights of variance `gain**2 / fan_in` and small random biases."""
    generator = np.random.default_rng(seed)

    def drawn(leaf):
        fan_in = leaf.shape[1:-1]
        scale = gain / np.sqrt(np.prod(fan_in)) if fan_in else 0.2
        return scale * generator.normal(size=leaf.shape)

    arrays = jax.tree.map(drawn, jax.eval_shape(lambda: network.init(key=jax.random.key(0))))
    inputs, labels = generator.normal(size=(BATCH, *network.input_shape)), generator.integers(CLASSES, size=BATCH)
    layers = [
        (layer, jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), p))
        for layer, p, _ in reference.unrolled(network, arrays)
    ]
    found = coupled_jacobian_norms if network.couples_examples else jacobian_norms
    expected = found(layers, torch.tensor(inputs))
    gradients = gradient_norms(layers, torch.tensor(inputs), torch.tensor(labels))
    with jax.enable_x64(True):
        params, x, y = jax.tree.map(jnp.asarray, (arrays, inputs, labels))
        for name, measure in MEASURES.items():
            measured = measure(network, params, x, average=False).log10_norm
            np.testing.assert_allclose(measured, expected[name], rtol=0, atol=1e-10, err_msg=name)
        measured = parameter_gradient_norms(network, params, x, y).log10_norm
        np.testing.assert_allclose(measured, gradients, rtol=0, atol=1e-10)


# Random architectures. The first example has the first of everything, so what is rarer comes first.

some_activation = st.sampled_from(["relu", *THEIRS])


@st.composite
def image_layers(draw):
    """Two blocks of random convolutions, a pool and a shortcut, as the arguments they are made with."""
    layers = []
    for _ in range(2):
        options = {
            "kernel_size": draw(st.sampled_from([3, 2, 1])),
            "stride": draw(st.sampled_from([2, 1, 1])),
            "padding": draw(st.sampled_from(["CIRCULAR", "SAME", "VALID"])),
        }
        convolution = Conv, (draw(st.sampled_from([2, 1, 3])), draw(some_activation)), options
        layers += [convolution] * draw(st.sampled_from([1, 1, 2]))
        if draw(st.sampled_from([True, False])):
            layers.append((draw(st.sampled_from([MaxPool, AvgPool])), (2, draw(st.integers(1, 2))), {}))
        if draw(st.sampled_from([True, False])):
            body = draw(some_activation), draw(st.sampled_from([3, 2])), draw(st.sampled_from(["SAME", "CIRCULAR"]))
            layers.append((Residual, body, {"scale": draw(st.sampled_from([0.5, 2.0]))}))
    return layers


def made(arguments, shape):
    """The layers for images of `shape`, but those whose window no longer fits."""
    layers = []
    for make, args, options in arguments:
        if make is Residual:
            activation, size, padding = args
            same = {"kernel_size": size, "padding": padding}
            layer = make([Conv(2, activation, **same), Conv(shape[2], **same)], **options)
        else:
            layer = make(*args, **options)
        if min(shape[:2]) < (getattr(layer, "kernel_size", None) or getattr(layer, "size", 1)):
            continue
        layers.append(layer)
        shape = layer.output_shape(shape)
    return layers


@few_examples(2)
@given(
    widths=st.lists(st.integers(2, 5), min_size=2, max_size=3),
    repeats=st.sampled_from([2, 1, 3]),
    activation=some_activation,
    gain=st.floats(0.1, 1.5),
    seed=st.integers(0, 1000),
)
def test_random_dense_networks_agree_with_autograd(widths, repeats, activation, gain, seed):
    network = mlp(4, [width for width in widths for _ in range(repeats)], CLASSES, activation=activation)
    agrees_with_autograd(network, seed, gain)


@few_examples(3)
@given(image_layers(), st.floats(0.1, 1.5), st.integers(0, 1000))
def test_random_convolutional_networks_agree_with_autograd(arguments, gain, seed):
    network = sequential((9, 8, 2), [*made(arguments, (9, 8, 2)), Flatten(), Dense(CLASSES)])
    agrees_with_autograd(network, seed, gain)


def test_shortcuts_of_shortcuts_agree_with_autograd():
    block = Residual([Dense(6, "silu"), Residual(Dense(6, "relu"), scale=0.5), Dense(4)], scale=2.0)
    agrees_with_autograd(sequential(4, [*[block] * 3, Dense(CLASSES, "hard_tanh")]), seed=0, gain=1.0)


def test_normalised_networks_agree_with_autograd():
    """Every kind of normalisation, in blocks, in shortcuts and alone, with and without coupled examples."""
    images = [
        WeightStandardised(Conv(4, "silu", stride=2), gain=1.3),
        GroupNorm(2, "tanh"),
        Residual([LayerNorm("relu"), Conv(4, padding="CIRCULAR")], learned=True),
        Flatten(),
        ChannelScale("gelu"),
        Pointwise("softplus"),
    ]
    coupled = [
        BatchNorm("tanh"),
        *[Residual([BatchNorm("relu"), Conv(2), BatchNorm("sigmoid"), Conv(2)])] * 2,
        Flatten(),
        *[Block([Dense(5), BatchNorm("elu")])] * 2,
    ]
    for layers, shape in ((images, (5, 4, 2)), (coupled, (3, 4, 2))):
        agrees_with_autograd(sequential(shape, [*layers, Dense(CLASSES)]), seed=0, gain=1.0)


def test_every_activation_has_a_counterpart():
    assert set(THEIRS) == set(ACTIVATIONS)
