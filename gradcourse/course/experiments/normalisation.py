"""Chapter 9: which half of batch normalisation rescues the sigmoid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gradcourse._checks import known_name
from gradcourse.course.experiments._common import all_runs, experiment
from gradcourse.course.recording import Experiment, grid
from gradcourse.nn.blocks import Block
from gradcourse.nn.layers import Activated, Dense, Layer
from gradcourse.nn.network import Network, Params, sequential
from gradcourse.nn.normalisation import BatchNorm, GroupNorm, LayerNorm, WeightStandardised, at_inference
from gradcourse.theory.normalised import centring_gain
from gradcourse.training.data import digits

__all__ = ["EXPERIMENTS", "HIDDEN", "RATES", "HalfBatchNorm", "normalised_once", "normalised_sigmoid", "started"]

WIDTH = 64


@dataclass(frozen=True)
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
    activation: Any = "identity"
    kind: ClassVar[str] = "half batch norm"
    couples_examples = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known_name("part", self.part, ("centre", "scale"))

    def preactivation(self, params: Any, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns what the activation is applied to."""
        axes = tuple(range(h.ndim - 1))
        if self.part == "centre":
            return h - h.mean(axis=axes, keepdims=True)
        return h * jax.lax.rsqrt(jnp.square(h).mean(axis=axes, keepdims=True) + 1e-5)


def _block(layer: Layer) -> Layer:
    return Block((Dense(WIDTH), layer))


HIDDEN: Mapping[str, Callable[[], Layer]] = {
    "standard": lambda: Dense(WIDTH, "sigmoid", initializer="standard"),
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
    return network, normalised_once(normalised_sigmoid("batch norm", depth), digits().x_train, key=key)


def normalised_once(normalised: Network, x: Array, *, key: Any) -> Params:
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


def normalised_sigmoids(
    way: str, depth: int, rates: Sequence[float] = RATES, seeds: int = 5, steps: int = 1000, every: int = 100
) -> dict[str, Any]:
    """Returns how `normalised_sigmoid(way, depth)` learns digits by plain descent, axes (rate, seed, time).

    `loss`: mean over the last `every` minibatches; `test_accuracy`: with the statistics of the batch of all test
    images; `inference_accuracy`: at the end, with those of the training images, fixed.
    """
    network = normalised_sigmoid(way, depth)
    return all_runs(network, lambda key: started(way, depth, key=key)[1], digits(), rates, seeds, steps, every)


EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        normalised_sigmoids,
        "Deep sigmoid networks on digits, normalised in nine ways",
        (
            *grid(depth=[12], way=HIDDEN),
            *grid(depth=[20], way=["standard", "Glorot", "centred", "scaled", "batch norm", "batch norm once"]),
        ),
        check={"way": "batch norm"},
        cheaper={"rates": RATES[:1], "seeds": 1, "steps": 100},
    ),
)
