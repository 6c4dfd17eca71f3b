"""Chapter 9: which half of batch normalisation rescues the sigmoid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gradcourse._checks import known_name
from gradcourse.course.recording import Experiment, grid, kept_digits
from gradcourse.nn.blocks import Block
from gradcourse.nn.layers import Activated, Dense, Layer
from gradcourse.nn.network import Network, Params, sequential
from gradcourse.nn.normalisation import BatchNorm, GroupNorm, LayerNorm, WeightStandardised, at_inference
from gradcourse.theory.normalised import centring_gain
from gradcourse.training.data import Dataset
from gradcourse.training.loop import accuracy, train

__all__ = [
    "EXPERIMENTS",
    "HIDDEN",
    "RATES",
    "HalfBatchNorm",
    "all_runs",
    "normalised_once",
    "normalised_sigmoid",
    "normalised_sigmoids",
    "started",
]

WIDTH = 64
PARTS = ("centre", "scale")


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
        known_name("part", self.part, PARTS)

    def preactivation(self, params: Any, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns what the activation is applied to."""
        axes = tuple(range(h.ndim - 1))
        if self.part == "centre":
            return h - h.mean(axis=axes, keepdims=True)
        return h * jax.lax.rsqrt(jnp.square(h).mean(axis=axes, keepdims=True) + 1e-5)


# ---- The sigmoid, normalised


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
    return network, normalised_once(normalised_sigmoid("batch norm", depth), kept_digits().x_train, key=key)


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


def all_runs(
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
    return all_runs(lambda key: started(way, depth, key=key), kept_digits(), rates, seeds, steps, every)


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
)
