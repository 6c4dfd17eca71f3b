"""Chapter 9: deep networks with batch normalisation and shortcuts: what trains, what grows and what shatters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gradcourse._checks import known_name
from gradcourse.course.experiments._common import all_runs, experiment
from gradcourse.course.experiments.normalisation import normalised_once
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Flatten, Layer, Pointwise
from gradcourse.nn.network import Network, Params, sequential
from gradcourse.nn.normalisation import BatchNorm, GroupNorm, LayerNorm, at_inference
from gradcourse.profile import Profile
from gradcourse.training.data import digits
from gradcourse.training.sweeps import over_seeds

__all__ = ["EXPERIMENTS", "MEASURED", "correlation_of_neighbours", "line_net", "slopes_along_a_line"]

HE, NARROW = "he_normal", 32


def _branch(last: str | float = HE, scale: float = 1.0) -> tuple[Layer, ...]:
    """Two rectifier layers in pre-activation order, as a shortcut's body; the first one's weights times `scale`."""
    first = gaussian(2**0.5 * scale)
    end = last if isinstance(last, str) else gaussian(last)
    return Pointwise("relu"), Dense(NARROW, "relu", initializer=first), Dense(NARROW, initializer=end)


LINEAR = Dense(NARROW, initializer=HE)
RELU = Dense(NARROW, "relu", initializer=HE)
BLOCKS: Mapping[str, Callable[[int], Layer]] = {  # of so many
    "plain": lambda _: Block((RELU, RELU)),
    "plain + BN": lambda _: Block((LINEAR, BatchNorm("relu"), LINEAR, BatchNorm("relu"))),
    "shortcut": lambda _: Residual(_branch()),
    "shortcut / sqrt L": lambda blocks: Residual(_branch(), scale=blocks**-0.5),
    "shortcut + BN": lambda _: Residual((BatchNorm("relu"), LINEAR) * 2),
    "shortcut + BN, post-activation": lambda _: Block(
        (Residual((LINEAR, BatchNorm("relu"), LINEAR, BatchNorm())), Pointwise("relu"))
    ),
    "shortcut + LN": lambda _: Residual((LayerNorm("relu"), LINEAR) * 2),
    "shortcut + GN": lambda _: Residual((GroupNorm(4, "relu"), LINEAR) * 2),
    "Fixup": lambda blocks: Residual(_branch(last=0.0, scale=blocks**-0.5), learned=True),
    "ReZero": lambda _: Residual((RELU, RELU), scale=0.0, learned=True),
    "SkipInit": lambda _: Residual(_branch(), scale=0.0, learned=True),
}


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
    body = BLOCKS[known_name("way", way, BLOCKS)](blocks)
    ends: list[Layer] = [Pointwise("relu")] if isinstance(body, Residual) and way != "ReZero" else []
    first = Dense(NARROW, initializer="lecun_normal")
    readout = Dense(10, initializer=gaussian(0.0) if way == "Fixup" else "lecun_normal")
    return sequential(64, [first, *[body] * blocks, *ends, readout])


def deep_shortcuts(
    way: str, blocks: int, rates: Sequence[float] = (0.01, 0.1), seeds: int = 5, steps: int = 200, every: int = 50
) -> dict[str, Any]:
    """Returns how `shortcut_net(way, blocks)` learns digits by plain descent, as `normalised_sigmoids` does."""
    network = shortcut_net(way, blocks)
    return all_runs(network, network.init, digits(), rates, seeds, steps, every)


# ---- A deep small convolutional network

RATES = (0.03, 0.1, 0.3, 1.0)


def deep_cnn(way: str, depth: int, padding: str = "SAME") -> Network:
    """Returns `depth` convolutions of 8 channels on digits, a max-pool to 4 x 4 after the first, and a readout.

    `way` names the activation, then the normalisation if there is one: `"sigmoid"`, `"sigmoid + BN"`, `"relu"`,
    `"relu + BN"`, or `"relu + BN + shortcut"`, whose layers after the first stand in pairs beside a shortcut.
    `"sigmoid + BN once"` is the plain sigmoid network, which only starts differently.
    """
    activation, *others = way.removesuffix(" + BN once").split(" + ")
    init = "he_normal" if activation == "relu" else "glorot_uniform"
    linear, active = (Conv(8, name, padding=padding, initializer=init) for name in ("identity", activation))
    if others == ["BN", "shortcut"]:
        pair = Residual((BatchNorm(activation), linear) * 2)
        layers: list[Layer] = [linear, MaxPool(2), *[pair] * ((depth - 1) // 2), BatchNorm(activation)]
    else:
        each = Block((linear, BatchNorm(activation))) if others else active
        layers = [each, MaxPool(2), *[each] * (depth - 1)]
    return sequential((8, 8, 1), [*layers, Flatten(), Dense(10)])


def deep_cnns(
    way: str, depth: int, rates: Sequence[float] = RATES, seeds: int = 5, steps: int = 400, every: int = 10
) -> dict[str, Any]:
    """Returns how `deep_cnn(way, depth)` learns digits by plain descent, as `normalised_sigmoids` does."""
    network, data = deep_cnn(way, depth), digits(images=True)
    draw: Callable[..., Params] = network.init
    if way == "sigmoid + BN once":
        draw = partial(normalised_once, deep_cnn("sigmoid + BN", depth), data.x_train)
    return all_runs(network, draw, data, rates, seeds, steps, every, in_turn=True)


def cnn_gradients(way: str, padding: str, depth: int = 9, seeds: int = 5) -> dict[str, Any]:
    """Returns `log10_norm`, (seed, layer): of the loss's gradient at each input of a fresh `deep_cnn`, 64 digits."""
    data = digits(images=True)
    measure = partial(activation_gradient_norms, y=data.y_train[:64])
    network, x = deep_cnn(way, depth, padding), data.x_train[:64]
    return {"log10_norm": over_seeds(measure, network, x, seeds=seeds, key=jax.random.key(1)).log10_norm}


# ---- Growth from layer to layer, and gradients along the input


def growth_by_wiring(way: str, blocks: int, seeds: int = 5) -> dict[str, Any]:
    """Returns `log10_growth` of a gradient's mean square on its way back through fresh blocks of `shortcut_net`.

    Per seed, on a batch of 32 Gaussian inputs, from the last block's output to the first block's input.
    """
    *before, last = shortcut_net(way, blocks).stages
    # Fixup's own readout is 0, and so is every gradient behind it.
    readout = replace(last, layer=Dense(10, initializer="lecun_normal"))
    network, x = Network((*before, readout)), jax.random.normal(jax.random.key(0), (32, 64))
    norms = _probed(network, x, seeds).log10_norm
    return {"log10_growth": 2 * (norms[:, 1] - norms[:, 1 + blocks])}


def growth_rates(activation: str, batch: int, seeds: int = 5) -> dict[str, Any]:
    """Returns, as `growth`, what a layer with batch norm multiplies a gradient's norm by, one value per seed.

    From 14 layers of 256 units with He's weights, on a batch of Gaussian inputs: the slope of the log norm.
    """
    width, depth = 256, 14
    block = Block((Dense(width, initializer=HE), BatchNorm(activation)))
    network = sequential(width, [block] * depth + [Dense(10)])
    x = jax.random.normal(jax.random.key(0), (batch, width))
    return {"growth": 10 ** -_probed(network, x, seeds).slopes(first=1, last=depth - 1)}


def _probed(network: Network, x: Array, seeds: int) -> Profile:
    measure = partial(backward_jacobian_norms, probes=8, key=jax.random.key(3))
    return over_seeds(measure, network, x, seeds=seeds, key=jax.random.key(1))


def line_net(way: str, depth: int) -> Network:
    r"""Returns `depth` rectifier layers of 200 that map a number to a number, to look at their slope along the line.

    The first layer has random biases, so that there is something to see; the others are `"plain"`, with `"batch norm"`,
    with a `"shortcut"`, $h + 0.1\, W f(h)$, or with a `"shortcut + BN"`, $h + W f(\operatorname{BN}(h))$.
    """
    width = 200
    dense = Dense(width, initializer=HE)
    bodies: dict[str, Layer] = {
        "plain": Dense(width, "relu", initializer=HE),
        "batch norm": Block((dense, BatchNorm("relu"))),
        "shortcut": Residual((Pointwise("relu"), dense), scale=0.1),
        "shortcut + BN": Residual((BatchNorm("relu"), dense)),
    }
    body = bodies[known_name("way", way, bodies)]
    first = Dense(width, "identity" if isinstance(body, Residual) else "relu", initializer=gaussian(2**0.5, 1.0))
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
    x = jnp.linspace(-2, 2, 256)[:, None]
    slopes = over_seeds(slopes_along_a_line, line_net(way, depth), x, seeds=seeds, key=jax.random.key(1))
    return {"correlation": correlation_of_neighbours(slopes)}


MEASURED = ("identity", "sigmoid", "relu")  # at all batch sizes
# At one; listed here, so that an activation more in the package asks for no new recording.
OTHERS = ("tanh", "softsign", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "erf", "hard_tanh")

EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        deep_shortcuts,
        "Rectifier networks of 50 blocks on digits, with and without shortcuts and batch normalisation",
        grid(way=["plain", "plain + BN", "shortcut", "shortcut + BN", "Fixup", "ReZero", "SkipInit"], blocks=[50]),
        check={"way": "Fixup"},
        cheaper={"rates": [0.01], "seeds": 1, "steps": 50},
    ),
    experiment(
        growth_by_wiring,
        "Growth of the gradient through 50 fresh blocks of two rectifier layers, by wiring",
        grid(way=BLOCKS, blocks=[50]),
        check={"way": "shortcut + LN"},
        cheaper={"seeds": 1},
    ),
    experiment(
        deep_cnns,
        "Deep convolutional networks on digits: sigmoid or rectifier, with and without batch normalisation",
        grid(
            way=["sigmoid", "sigmoid + BN", "sigmoid + BN once", "relu", "relu + BN", "relu + BN + shortcut"], depth=[9]
        ),
        check={"way": "relu + BN + shortcut"},
        cheaper={"rates": [0.03], "seeds": 1, "steps": 30},
    ),
    experiment(
        cnn_gradients,
        "Gradients of fresh convolutional networks, borders padded with zeros or wrapped round",
        (
            *grid(way=["sigmoid", "sigmoid + BN", "relu", "relu + BN", "relu + BN + shortcut"], padding=["SAME"]),
            *grid(way=["sigmoid + BN", "relu + BN"], padding=["CIRCULAR"]),
        ),
        check={"way": "sigmoid + BN"},
    ),
    experiment(
        growth_rates,
        "The growth of gradients per layer with batch normalisation, by activation and batch size",
        (*grid(activation=MEASURED, batch=[5, 8, 16, 32, 64, 128]), *grid(activation=OTHERS, batch=[64])),
        check={"activation": "relu", "batch": 8},
    ),
    experiment(
        shattered_gradients,
        "The correlation of gradients at neighbouring inputs, by depth",
        grid(way=["plain", "batch norm", "shortcut", "shortcut + BN"], depth=[2, 6, 12, 24, 50]),
        check={"way": "shortcut", "depth": 6},
    ),
)
