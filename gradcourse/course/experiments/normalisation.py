"""Chapter 9: which half of batch normalisation rescues the sigmoid, deep shortcuts without it, and a deep small CNN."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gradcourse._checks import known_name
from gradcourse.course.recording import Experiment, grid, kept_digits
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn import activations
from gradcourse.nn.activations import ACTIVATIONS, Activation
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Activated, Conv, Dense, Flatten, Layer, MaxPool, Pointwise, Shape
from gradcourse.nn.network import Network, Params, sequential
from gradcourse.nn.normalisation import BatchNorm, GroupNorm, LayerNorm, WeightStandardised, at_inference
from gradcourse.theory.normalised import centring_gain
from gradcourse.training.data import Dataset
from gradcourse.training.loop import accuracy, train
from gradcourse.training.sweeps import over_seeds

__all__ = [
    "EXPERIMENTS",
    "HalfBatchNorm",
    "cnn_gradients",
    "correlation_of_neighbours",
    "deep_cnn",
    "deep_cnns",
    "deep_shortcuts",
    "growth_by_wiring",
    "growth_rates",
    "line_net",
    "normalised_sigmoid",
    "normalised_sigmoids",
    "shattered_gradients",
    "shortcut_net",
    "slopes_along_a_line",
    "started",
]

WIDTH = 64
PARTS = ("centre", "scale")


@dataclass(frozen=True, init=False)
class HalfBatchNorm(Activated):
    """One half of batch normalisation, without learned parameters: the batch's statistics, per channel.

    `part="centre"` subtracts the mean, `part="scale"` divides by the root mean square without subtracting anything.

    >>> h = jnp.array([[1.0], [7.0]])
    >>> HalfBatchNorm("centre").apply({}, h).ravel().tolist()
    [-3.0, 3.0]
    >>> HalfBatchNorm("scale").apply({}, h).ravel().round(1).tolist()
    [0.20000000298023224, 1.399999976158142]
    """

    part: str
    activation: Activation = field()
    kind: ClassVar[str] = "half batch norm"

    def __init__(self, part: str, activation: Any = "identity"):
        object.__setattr__(self, "part", known_name("part", part, PARTS))
        object.__setattr__(self, "activation", activations.resolve(activation))

    @property
    def couples_examples(self) -> bool:
        """True."""
        return True

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `shape`."""
        return shape

    def preactivation(self, params: Any, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns what the activation is applied to."""
        axes = tuple(range(h.ndim - 1))
        if self.part == "centre":
            return h - h.mean(axis=axes, keepdims=True)
        return h * jax.lax.rsqrt(jnp.square(h).mean(axis=axes, keepdims=True) + 1e-5)

    def linearize(self, params: Any, h: Float[Array, "batch *shape"]) -> tuple[Array, Any]:
        """Returns the output and the point at which to differentiate, with the slope there."""
        s = self.preactivation(params, h)
        return self.activation(s), (h, self.activation.slope(s))

    def through_activation(self, saved: Any, v: Float[Array, "direction batch *shape"]) -> Array:
        """Returns `v` times the slope."""
        return self.times_slope(saved[1], v)

    def pull(self, params: Any, saved: Any, v: Float[Array, "direction batch *shape"], shape: Shape) -> Array:
        """Returns the transposed Jacobian of the pre-activation, of `v`."""
        _, vjp = jax.vjp(lambda h: self.preactivation(params, h), saved[0])
        return jax.vmap(lambda cotangent: vjp(cotangent)[0])(v)

    def push(self, params: Any, saved: Any, v: Float[Array, "direction batch *shape"]) -> Array:
        """Returns the Jacobian of the pre-activation, of `v`."""
        return jax.vmap(lambda t: jax.jvp(lambda h: self.preactivation(params, h), (saved[0],), (t,))[1])(v)


# ---- The sigmoid, normalised


def _block(layer: Layer) -> Layer:
    return Block((Dense(WIDTH), layer))


HIDDEN: Mapping[str, Callable[[], Layer]] = {
    "standard": lambda: Dense(WIDTH, "sigmoid", init="standard"),
    "Glorot": lambda: Dense(WIDTH, "sigmoid"),
    "centred": lambda: _block(HalfBatchNorm("centre", "sigmoid")),
    "scaled": lambda: _block(HalfBatchNorm("scale", "sigmoid")),
    "batch norm": lambda: _block(BatchNorm("sigmoid")),
    "batch norm once": lambda: Dense(WIDTH, "sigmoid"),
    "layer norm": lambda: _block(LayerNorm("sigmoid")),
    "group norm": lambda: _block(GroupNorm(8, "sigmoid")),
    "weights standardised": lambda: WeightStandardised(Dense(WIDTH, "sigmoid"), gain=centring_gain("sigmoid")),
}


def normalised_sigmoid(way: str, depth: int) -> Network:
    """Returns `depth` sigmoid layers of 64 for digits, normalised in one of the `HIDDEN` ways, and a readout."""
    return sequential(64, [HIDDEN[known_name("way", way, HIDDEN)]()] * depth + [Dense(10)])


def started(way: str, depth: int, *, key: Any) -> tuple[Network, Params]:
    """Returns the network and fresh parameters.

    The way `"batch norm once"` draws those of `"batch norm"`, fixes the statistics to those of all training images
    and multiplies them into the weights: a plain network, normalised where it starts and never again.
    """
    network = normalised_sigmoid(way, depth)
    if way != "batch norm once":
        return network, network.init(key=key)
    return network, _normalised_once(normalised_sigmoid("batch norm", depth), kept_digits().x_train, key=key)


def _normalised_once(normalised: Network, x: Array, *, key: Any) -> Params:
    """The parameters of the plain network that a fresh network of blocks (weights, batch norm) is on the batch `x`."""
    _, fixed = at_inference(normalised, normalised.init(key=key), x)

    def folded(stage: dict[str, Any]) -> dict[str, Any]:
        if "1" not in stage:
            return stage
        (weight, bias), scale = (stage["0"][name] for name in ("weight", "bias")), stage["1"]["scale"]
        wide = scale.reshape(len(scale), *[1] * (weight.ndim - 2), -1)
        return {"weight": weight * wide, "bias": bias * scale + stage["1"]["shift"]}

    return tuple(folded(stage) for stage in fixed)


RATES = (0.1, 0.3, 1.0)
WITH_A_SMALLER = (0.03, *RATES)


def _all_runs(
    begin: Callable[[Any], tuple[Network, Params]],
    data: Dataset,
    rates: Sequence[float],
    seeds: int,
    steps: int,
    every: int,
    many: Callable[..., Any] = jax.vmap,
) -> dict[str, Any]:
    """What plain descent finds every `every` updates, each list with the axes (rate, seed, time).

    All runs are one program: side by side under `jax.vmap`, one after another under `in_turn`.
    """

    def one(rate: Any, start: Params, key: Any) -> tuple[Any, Any, Any]:
        watch = data.x_test, data.y_test
        settings: Any = {"learning_rate": rate, "steps": steps, "every": every, "watch": watch, "key": key}
        run, history = train(network, start, data, optax.sgd, **settings)
        return run.params, history.accuracy[1:], history.batch_loss.reshape(-1, every).mean(axis=1)

    keys = [jax.random.split(jax.random.key(seed)) for seed in range(seeds)]
    network = begin(keys[0][0])[0]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[begin(key)[1] for key, _ in keys])
    batch_keys = jnp.stack([key for _, key in keys])
    each_rate, each_seed = jnp.repeat(jnp.asarray(rates), seeds), jnp.tile(jnp.arange(seeds), len(rates))
    every_start, every_key = jax.tree.map(lambda leaf: leaf[each_seed], (starts, batch_keys))
    params, accuracies, losses = jax.jit(many(one))(each_rate, every_start, every_key)
    found = {"loss": losses, "test_accuracy": accuracies}
    if network.couples_examples and steps > 3 * every:  # a run that is cut short has no end in common with a whole one
        found["inference_accuracy"] = jax.jit(jax.vmap(lambda p: _at_inference(network, p, data)[None]))(params)
    return {name: values.reshape(len(rates), seeds, -1) for name, values in found.items()}


def in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `jax.vmap` of a function of three arguments, one after another: on a CPU faster for convolutions."""
    return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)


def _at_inference(network: Network, params: Params, data: Dataset) -> Array:
    """The test accuracy with the training images' statistics, NaN with `HalfBatchNorm`, which has no fixed ones."""
    fixed, fixed_params = at_inference(network, params, data.x_train)
    if fixed.couples_examples:
        return jnp.full((), jnp.nan)
    return accuracy(fixed, fixed_params, data.x_test, data.y_test)


def normalised_sigmoids(
    way: str, depth: int, rates: Sequence[float] = RATES, seeds: int = 5, steps: int = 1000, every: int = 100
) -> dict[str, Any]:
    """Returns how `normalised_sigmoid(way, depth)` learns digits by plain descent, axes (rate, seed, time).

    `loss`: mean over the last `every` minibatches; `test_accuracy`: with the statistics of the batch of all test
    images; `inference_accuracy`: at the end, with those of the training images, fixed.
    """
    return _all_runs(lambda key: started(way, depth, key=key), kept_digits(), rates, seeds, steps, every)


# ---- Shortcuts

HE = "he_normal"
NARROW = 32


def _branch(last: str | float = HE, scale: float = 1.0) -> tuple[Layer, ...]:
    """Two rectifier layers in pre-activation order, as a shortcut's body; the first one's weights times `scale`."""
    first = gaussian(2**0.5 * scale)
    end = last if isinstance(last, str) else gaussian(last)
    return Pointwise("relu"), Dense(NARROW, "relu", init=first), Dense(NARROW, init=end)


def shortcut_net(way: str, blocks: int) -> Network:
    """Returns `blocks` blocks of two rectifier layers of 32 for digits, with the shortcut and the scaling named.

    - `"plain"`, `"plain + BN"`: no shortcuts;
    - `"shortcut"`: He's weights, unscaled; `"shortcut / sqrt L"`: branches divided by the square root of their number;
    - `"shortcut + BN"`: batch normalisation before each rectifier (He et al. 2016, pre-activation); with `LN` or `GN`
      layer or group normalisation; `"shortcut + BN, post-activation"`: behind each layer, and the last rectifier
      behind the sum;
    - `"ReZero"`: a learned scale that starts at 0; `"SkipInit"`: the same with the rectifier before both layers, as
      batch normalisation would have it; `"Fixup"`: last layers 0, first layers scaled by `blocks ** -0.5`.
    """
    dense = Dense(NARROW, init=HE)
    relu_dense = Dense(NARROW, "relu", init=HE)
    bodies: dict[str, Callable[[], Layer]] = {
        "plain": lambda: Block((relu_dense, relu_dense)),
        "plain + BN": lambda: Block((dense, BatchNorm("relu"), dense, BatchNorm("relu"))),
        "shortcut": lambda: Residual(_branch()),
        "shortcut / sqrt L": lambda: Residual(_branch(), scale=blocks**-0.5),
        "shortcut + BN": lambda: Residual((BatchNorm("relu"), dense) * 2),
        "shortcut + LN": lambda: Residual((LayerNorm("relu"), dense) * 2),
        "shortcut + GN": lambda: Residual((GroupNorm(4, "relu"), dense) * 2),
        "shortcut + BN, post-activation": lambda: Block(
            (Residual((dense, BatchNorm("relu"), dense, BatchNorm())), Pointwise("relu"))
        ),
        "Fixup": lambda: Residual(_branch(last=0.0, scale=blocks**-0.5), learned=True),
        "ReZero": lambda: Residual((relu_dense, relu_dense), scale=0.0, learned=True),
        "SkipInit": lambda: Residual(_branch(), scale=0.0, learned=True),
    }
    body = bodies[known_name("way", way, bodies)]()
    ends: list[Layer] = [Pointwise("relu")] if isinstance(body, Residual) and way != "ReZero" else []
    first = Dense(NARROW, init="lecun_normal")
    return sequential(
        64, [first] + [body] * blocks + ends + [Dense(10, init=gaussian(0.0) if way == "Fixup" else "lecun_normal")]
    )


def growth_by_wiring(way: str, blocks: int, seeds: int = 5) -> dict[str, Any]:
    """Returns `log10_growth` of a gradient's mean square on its way back through fresh blocks of `shortcut_net`.

    Per seed, on a batch of 32 Gaussian inputs, from the last block's output to the first block's input.
    """
    *before, last = shortcut_net(way, blocks).stages
    readout = replace(last, layer=Dense(10, init="lecun_normal"))  # Fixup's is 0, and so is every gradient behind it
    network, x = Network((*before, readout)), jax.random.normal(jax.random.key(0), (32, 64))
    measure = partial(backward_jacobian_norms, probes=8, key=jax.random.key(3))
    norms = over_seeds(measure, network, x, seeds=seeds, key=jax.random.key(1)).log10_norm
    return {"log10_growth": 2 * (norms[:, 1] - norms[:, 1 + blocks])}


def deep_shortcuts(
    way: str,
    blocks: int,
    rates: Sequence[float] = (0.01, 0.1),
    seeds: int = 5,
    steps: int = 200,
    every: int = 50,
) -> dict[str, Any]:
    """Returns how `shortcut_net(way, blocks)` learns digits by plain descent, as `normalised_sigmoids` does."""
    network = shortcut_net(way, blocks)
    return _all_runs(lambda key: (network, network.init(key=key)), kept_digits(), rates, seeds, steps, every)


# ---- A deep small convolutional network

CHANNELS = 8


def deep_cnn(way: str, depth: int, padding: str = "SAME") -> Network:
    """Returns `depth` convolutions of 8 channels on digits, a max-pool to 4 x 4 after the first, and a readout.

    `way` names the activation, then the normalisation if there is one: `"sigmoid"`, `"sigmoid + BN"`, `"relu"`,
    `"relu + BN"`, or `"relu + BN + shortcut"`, whose layers after the first stand in pairs beside a shortcut.
    `"sigmoid + BN once"` is the plain sigmoid network, which only starts differently.
    """
    activation, *others = way.removesuffix(" + BN once").split(" + ")
    init = HE if activation == "relu" else "glorot_uniform"
    conv = Conv(CHANNELS, padding=padding, init=init)
    if others == ["BN", "shortcut"]:
        pair = Residual((BatchNorm(activation), conv, BatchNorm(activation), conv))
        layers: list[Layer] = [conv, MaxPool(2), *[pair] * ((depth - 1) // 2), BatchNorm(activation)]
    else:
        each = (
            Block((conv, BatchNorm(activation))) if others else Conv(CHANNELS, activation, padding=padding, init=init)
        )
        layers = [each, MaxPool(2), *[each] * (depth - 1)]
    return sequential((8, 8, 1), [*layers, Flatten(), Dense(10)])


def deep_cnns(
    way: str, depth: int, rates: Sequence[float] = WITH_A_SMALLER, seeds: int = 5, steps: int = 400, every: int = 10
) -> dict[str, Any]:
    """Returns how `deep_cnn(way, depth)` learns digits by plain descent, as `normalised_sigmoids` does."""
    network, data = deep_cnn(way, depth), kept_digits(images=True)

    def begin(key: Any) -> tuple[Network, Params]:
        if way == "sigmoid + BN once":
            return network, _normalised_once(deep_cnn("sigmoid + BN", depth), data.x_train, key=key)
        return network, network.init(key=key)

    return _all_runs(begin, data, rates, seeds, steps, every, in_turn)


def cnn_gradients(way: str, padding: str, depth: int = 9, seeds: int = 5) -> dict[str, Any]:
    """Returns `log10_norm`, (seed, layer): of the loss's gradient at each input of a fresh `deep_cnn`, 64 digits."""
    data = kept_digits(images=True)
    measure = partial(activation_gradient_norms, y=data.y_train[:64])
    network, x = deep_cnn(way, depth, padding), data.x_train[:64]
    return {"log10_norm": over_seeds(measure, network, x, seeds=seeds, key=jax.random.key(1)).log10_norm}


# ---- At initialisation: growth per layer, and gradients as functions of the input

GROWTH = 256, 14  # units of a layer, layers


def growth_rates(activation: str, batch: int, seeds: int = 5) -> dict[str, Any]:
    """Returns, as `growth`, what a layer with batch norm multiplies a gradient's norm by, one value per seed.

    From 14 layers of 256 units with He's weights, on a batch of Gaussian inputs: the slope of the log norm.
    """
    width, depth = GROWTH
    block = Block((Dense(width, init=HE), BatchNorm(activation)))
    network = sequential(width, [block] * depth + [Dense(10)])
    x = jax.random.normal(jax.random.key(0), (batch, width))
    norms = partial(backward_jacobian_norms, probes=8, key=jax.random.key(3))
    profile = over_seeds(norms, network, x, seeds=seeds, key=jax.random.key(1))
    return {"growth": 10 ** -profile.slopes(first=1, last=depth - 1)}


LINE = 256  # points between -2 and 2


def line_net(way: str, depth: int) -> Network:
    r"""Returns `depth` rectifier layers of 200 that map a number to a number, to look at their slope along the line.

    The first layer has random biases, so that there is something to see; the others are `"plain"`, with `"batch norm"`,
    with a `"shortcut"`, $h + 0.1\, W f(h)$, or with a `"shortcut + BN"`, $h + W f(\operatorname{BN}(h))$.
    """
    width = 200
    dense = Dense(width, init=HE)
    bodies: dict[str, Layer] = {
        "plain": Dense(width, "relu", init=HE),
        "batch norm": Block((dense, BatchNorm("relu"))),
        "shortcut": Residual((Pointwise("relu"), dense), scale=0.1),
        "shortcut + BN": Residual((BatchNorm("relu"), dense)),
    }
    body = bodies[known_name("way", way, bodies)]
    first = Dense(width, "identity" if isinstance(body, Residual) else "relu", init=gaussian(2**0.5, 1.0))
    ends = [Pointwise("relu")] if isinstance(body, Residual) else []
    return sequential(1, [first, *[body] * (depth - 1), *ends, Dense(1)])


def slopes_along_a_line(network: Network, params: Params, x: Float[Array, "batch one"]) -> Float[Array, " batch"]:
    """Returns the derivative of the output with respect to the input at every point, statistics held constant."""
    fixed, fixed_params = at_inference(network, params, x)
    return jax.jvp(lambda x: fixed.apply(fixed_params, x), (x,), (jnp.ones_like(x),))[1].ravel()


def correlation_of_neighbours(values: Float[Array, "*sample point"]) -> Float[Array, "*sample"]:
    """Returns the autocorrelation at a distance of one point.

    >>> float(correlation_of_neighbours(jnp.array([1.0, -1.0] * 8)).round(2))
    -0.94
    """
    values = values - values.mean(axis=-1, keepdims=True)
    return (values[..., 1:] * values[..., :-1]).sum(axis=-1) / jnp.square(values).sum(axis=-1)


def shattered_gradients(way: str, depth: int, seeds: int = 10) -> dict[str, Any]:
    """Returns the `correlation` of the slopes of `line_net` at neighbouring points, one value per seed."""
    x = jnp.linspace(-2, 2, LINE)[:, None]
    slopes = over_seeds(slopes_along_a_line, line_net(way, depth), x, seeds=seeds, key=jax.random.key(1))
    return {"correlation": correlation_of_neighbours(slopes)}


MEASURED = ("identity", "sigmoid", "relu")  # at all batch sizes

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "normalised_sigmoids",
        "Deep sigmoid networks on digits, normalised in nine ways",
        normalised_sigmoids,
        (
            *grid(depth=[12], way=HIDDEN),
            *grid(depth=[20], way=["standard", "Glorot", "centred", "scaled", "batch norm", "batch norm once"]),
        ),
        check={"depth": 12, "way": "batch norm"},
        cheaper={"rates": RATES[:1], "seeds": 1, "steps": 100},
    ),
    Experiment(
        "deep_shortcuts",
        "Rectifier networks of 50 blocks on digits, with and without shortcuts and batch normalisation",
        deep_shortcuts,
        grid(way=["plain", "plain + BN", "shortcut", "shortcut + BN", "Fixup", "ReZero", "SkipInit"], blocks=[50]),
        check={"way": "Fixup", "blocks": 50},
        cheaper={"rates": [0.01], "seeds": 1, "steps": 50},
    ),
    Experiment(
        "growth_by_wiring",
        "Growth of the gradient through 50 fresh blocks of two rectifier layers, by wiring",
        growth_by_wiring,
        grid(
            way=[
                "plain",
                "plain + BN",
                "shortcut",
                "shortcut / sqrt L",
                "shortcut + BN",
                "shortcut + BN, post-activation",
                "shortcut + LN",
                "shortcut + GN",
                "Fixup",
                "ReZero",
                "SkipInit",
            ],
            blocks=[50],
        ),
        check={"way": "shortcut + LN", "blocks": 50},
        cheaper={"seeds": 1},
    ),
    Experiment(
        "deep_cnns",
        "Deep convolutional networks on digits: sigmoid or rectifier, with and without batch normalisation",
        deep_cnns,
        grid(
            way=["sigmoid", "sigmoid + BN", "sigmoid + BN once", "relu", "relu + BN", "relu + BN + shortcut"], depth=[9]
        ),
        check={"way": "relu + BN + shortcut", "depth": 9},
        cheaper={"rates": [0.03], "seeds": 1, "steps": 30},
    ),
    Experiment(
        "growth_rates",
        "The growth of gradients per layer with batch normalisation, by activation and batch size",
        growth_rates,
        (
            *grid(activation=MEASURED, batch=[5, 8, 16, 32, 64, 128]),
            *grid(activation=[name for name in ACTIVATIONS if name not in MEASURED], batch=[64]),
        ),
        check={"activation": "relu", "batch": 8},
    ),
    Experiment(
        "shattered_gradients",
        "The correlation of gradients at neighbouring inputs, by depth",
        shattered_gradients,
        grid(way=["plain", "batch norm", "shortcut", "shortcut + BN"], depth=[2, 6, 12, 24, 50]),
        check={"way": "shortcut", "depth": 6},
    ),
    Experiment(
        "cnn_gradients",
        "Gradients of fresh convolutional networks, borders padded with zeros or wrapped round",
        cnn_gradients,
        (
            *grid(
                way=["sigmoid", "sigmoid + BN", "relu", "relu + BN", "relu + BN + shortcut"],
                padding=["SAME"],
            ),
            *grid(way=["sigmoid + BN", "relu + BN"], padding=["CIRCULAR"]),
        ),
        check={"way": "sigmoid + BN", "padding": "SAME"},
    ),
)
