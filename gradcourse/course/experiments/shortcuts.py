"""Chapter 9: fifty blocks of rectifiers with shortcuts, wired and scaled in eleven ways."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from gradcourse._checks import known_name
from gradcourse.course.experiments.normalisation import all_runs
from gradcourse.course.recording import Experiment, grid, kept_digits
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Layer, Pointwise
from gradcourse.nn.network import Network, sequential
from gradcourse.nn.normalisation import BatchNorm, GroupNorm, LayerNorm
from gradcourse.training.sweeps import over_seeds

__all__ = ["EXPERIMENTS", "deep_shortcuts", "growth_by_wiring", "shortcut_net"]

HE = "he_normal"
NARROW = 32


def _branch(last: str | float = HE, scale: float = 1.0) -> tuple[Layer, ...]:
    """Two rectifier layers in pre-activation order, as a shortcut's body; the first one's weights times `scale`."""
    first = gaussian(2**0.5 * scale)
    end = last if isinstance(last, str) else gaussian(last)
    return Pointwise("relu"), Dense(NARROW, "relu", initializer=first), Dense(NARROW, initializer=end)


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
    dense = Dense(NARROW, initializer=HE)
    relu_dense = Dense(NARROW, "relu", initializer=HE)
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
    first = Dense(NARROW, initializer="lecun_normal")
    readout = Dense(10, initializer=gaussian(0.0) if way == "Fixup" else "lecun_normal")
    return sequential(64, [first, *[body] * blocks, *ends, readout])


def growth_by_wiring(way: str, blocks: int, seeds: int = 5) -> dict[str, Any]:
    """Returns `log10_growth` of a gradient's mean square on its way back through fresh blocks of `shortcut_net`.

    Per seed, on a batch of 32 Gaussian inputs, from the last block's output to the first block's input.
    """
    *before, last = shortcut_net(way, blocks).stages
    # Fixup's own readout is 0, and so is every gradient behind it.
    readout = replace(last, layer=Dense(10, initializer="lecun_normal"))
    network, x = Network((*before, readout)), jax.random.normal(jax.random.key(0), (32, 64))
    measure = partial(backward_jacobian_norms, probes=8, key=jax.random.key(3))
    norms = over_seeds(measure, network, x, seeds=seeds, key=jax.random.key(1)).log10_norm
    return {"log10_growth": 2 * (norms[:, 1] - norms[:, 1 + blocks])}


def deep_shortcuts(
    way: str, blocks: int, rates: Sequence[float] = (0.01, 0.1), seeds: int = 5, steps: int = 200, every: int = 50
) -> dict[str, Any]:
    """Returns how `shortcut_net(way, blocks)` learns digits by plain descent, as `normalised_sigmoids` does."""
    network = shortcut_net(way, blocks)
    return all_runs(lambda key: (network, network.init(key=key)), kept_digits(), rates, seeds, steps, every)


EXPERIMENTS: tuple[Experiment, ...] = (
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
)
