"""Chapter 9: how batch normalisation makes gradients grow per layer, and how they shatter along the input."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gradcourse._checks import known_name
from gradcourse.course.experiments._common import experiment
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Layer, Pointwise
from gradcourse.nn.network import Network, Params, sequential
from gradcourse.nn.normalisation import BatchNorm, at_inference
from gradcourse.training.sweeps import over_seeds

__all__ = ["EXPERIMENTS", "MEASURED", "correlation_of_neighbours", "line_net", "slopes_along_a_line"]

HE = "he_normal"


def growth_rates(activation: str, batch: int, seeds: int = 5) -> dict[str, Any]:
    """Returns, as `growth`, what a layer with batch norm multiplies a gradient's norm by, one value per seed.

    From 14 layers of 256 units with He's weights, on a batch of Gaussian inputs: the slope of the log norm.
    """
    width, depth = 256, 14
    block = Block((Dense(width, initializer=HE), BatchNorm(activation)))
    network = sequential(width, [block] * depth + [Dense(10)])
    x = jax.random.normal(jax.random.key(0), (batch, width))
    norms = partial(backward_jacobian_norms, probes=8, key=jax.random.key(3))
    profile = over_seeds(norms, network, x, seeds=seeds, key=jax.random.key(1))
    return {"growth": 10 ** -profile.slopes(first=1, last=depth - 1)}


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
