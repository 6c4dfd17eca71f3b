"""Chapter 9: a deep small convolutional network, with and without batch normalisation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from gradcourse.course.experiments.normalisation import all_runs, normalised_once
from gradcourse.course.recording import Experiment, grid, kept_digits
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten, Layer
from gradcourse.nn.network import Network, Params, sequential
from gradcourse.nn.normalisation import BatchNorm
from gradcourse.training.sweeps import over_seeds

__all__ = ["EXPERIMENTS", "cnn_gradients", "deep_cnn", "deep_cnns"]

RATES = (0.03, 0.1, 0.3, 1.0)
CHANNELS = 8


def deep_cnn(way: str, depth: int, padding: str = "SAME") -> Network:
    """Returns `depth` convolutions of 8 channels on digits, a max-pool to 4 x 4 after the first, and a readout.

    `way` names the activation, then the normalisation if there is one: `"sigmoid"`, `"sigmoid + BN"`, `"relu"`,
    `"relu + BN"`, or `"relu + BN + shortcut"`, whose layers after the first stand in pairs beside a shortcut.
    `"sigmoid + BN once"` is the plain sigmoid network, which only starts differently.
    """
    activation, *others = way.removesuffix(" + BN once").split(" + ")
    init = "he_normal" if activation == "relu" else "glorot_uniform"
    linear, active = (Conv(CHANNELS, name, padding=padding, initializer=init) for name in ("identity", activation))
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
    network, data = deep_cnn(way, depth), kept_digits(images=True)

    def begin(key: Any) -> tuple[Network, Params]:
        if way == "sigmoid + BN once":
            return network, normalised_once(deep_cnn("sigmoid + BN", depth), data.x_train, key=key)
        return network, network.init(key=key)

    return all_runs(begin, data, rates, seeds, steps, every, in_turn)


def cnn_gradients(way: str, padding: str, depth: int = 9, seeds: int = 5) -> dict[str, Any]:
    """Returns `log10_norm`, (seed, layer): of the loss's gradient at each input of a fresh `deep_cnn`, 64 digits."""
    data = kept_digits(images=True)
    measure = partial(activation_gradient_norms, y=data.y_train[:64])
    network, x = deep_cnn(way, depth, padding), data.x_train[:64]
    return {"log10_norm": over_seeds(measure, network, x, seeds=seeds, key=jax.random.key(1)).log10_norm}


def in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `jax.vmap` of a function of three arguments, one after another: on a CPU faster for convolutions."""
    return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)


EXPERIMENTS: tuple[Experiment, ...] = (
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
        "cnn_gradients",
        "Gradients of fresh convolutional networks, borders padded with zeros or wrapped round",
        cnn_gradients,
        (
            *grid(way=["sigmoid", "sigmoid + BN", "relu", "relu + BN", "relu + BN + shortcut"], padding=["SAME"]),
            *grid(way=["sigmoid + BN", "relu + BN"], padding=["CIRCULAR"]),
        ),
        check={"way": "sigmoid + BN", "padding": "SAME"},
    ),
)
