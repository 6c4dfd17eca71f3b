"""Chapter 11: the factorial ablation of one convolutional network, which trains and which does not, and why.

Every network here is the same trunk on 4 x 4 maps of 8 channels. Its layers come in pairs, *activation, convolution,
activation, convolution*; what a cell of the design changes is named by its levels (`LEVELS`), and nothing else changes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gradcourse._checks import known_name
from gradcourse.course.experiments._common import experiment
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Dense, Flatten, Layer, Pointwise
from gradcourse.nn.network import Network, Params, sequential
from gradcourse.nn.normalisation import BatchNorm
from gradcourse.training.data import Dataset, digits
from gradcourse.training.descent import descend
from gradcourse.training.loop import accuracy, cross_entropy

__all__ = ["EXPERIMENTS", "LEVELS", "LOOKS", "RATES", "descended", "of_better_rate", "start", "trunk"]

CHANNELS, BATCH, SEEDS = 8, 16, 5
LOOKS = (25, 100, 400)  # updates after which a network is looked at
WATCHED = 500  # training images that are looked at
MEASURED = 100  # training images at which profiles are taken

# The factors and their levels; every combination is a cell.
LEVELS: dict[str, tuple[Any, ...]] = {
    "depth": (4, 10, 20),
    "activation": ("sigmoid", "tanh", "relu"),
    "normalisation": ("none", "batch"),
    "shortcut": ("none", "residual"),
    "optimizer": ("sgd", "adam"),
    "init": ("standard", "glorot", "matched"),
}
RATES: dict[str, tuple[float, ...]] = {"sgd": (0.03, 0.3), "adam": (0.001, 0.01)}  # of each optimiser
# The gain sigma_w that keeps the gradient's mean square where the slope is steepest; of the rectifier, on average.
MATCHED = {"sigmoid": 4.0, "tanh": 1.0, "relu": 2**0.5}


def trunk(activation: str, normalisation: str, shortcut: str, depth: int, *, padding: str = "SAME") -> Network:
    """Returns a network of the design: `depth` convolutions in pairs, between a strided first layer and a readout.

    Its weights are uniform with variance 1 / fan-in (LeCun's); `start` draws those of a cell.

    >>> trunk("relu", "batch", "residual", 10).layer_names[:3]
    ('0 conv', '1 residual', '2 residual')
    """
    for name, value in (("normalisation", normalisation), ("shortcut", shortcut)):
        known_name(name, value, LEVELS[name])
    unit: Layer = BatchNorm(activation) if normalisation == "batch" else Pointwise(activation)
    body = (unit, Conv(CHANNELS, initializer="lecun_uniform", padding=padding)) * 2
    pair = Residual(body) if shortcut == "residual" else Block(body)
    first, last = Conv(CHANNELS, stride=2, initializer="lecun_uniform"), Dense(10, initializer="lecun_uniform")
    return sequential((8, 8, 1), [first, *[pair] * (depth // 2), unit, Flatten(), last])


def start(activation: str, init: str, normalisation: str, depth: int, *, key: PRNGKeyArray) -> Params:
    """Returns parameters of a `trunk`, the same draw for every scheme but for the gain of the pairs' weights.

    The gain is 1 / sqrt(3) for the standard scheme, 1 for Glorot's (channels are as many on both sides), and what
    matches the activation: 1 for tanh, sqrt(2) for the rectifier, 4 for the sigmoid. As its output is one half on
    average, that scheme also takes half the sum of a unit's weights off its bias, as in chapter 4. The first layer and
    the readout are not scaled: they are not what is compared.
    """
    known_name("init", init, LEVELS["init"])
    gain = {"standard": 3**-0.5, "glorot": 1.0, "matched": MATCHED[activation]}[init]
    mean = 0.5 if (activation, init) == ("sigmoid", "matched") else 0.0

    def scaled(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        if "weight" not in layer:
            return layer
        weight = gain * layer["weight"]
        return {"weight": weight, "bias": layer["bias"] - mean * weight.sum(axis=(-4, -3, -2))}

    # Neither the activation nor the shortcut has parameters, so one network draws for all that have them or not.
    first, pairs, *rest = trunk("relu", normalisation, "none", depth).init(key=key)
    return (first, {index: scaled(layer) for index, layer in pairs.items()}, *rest)


def _drawn(activation: str, init: str, normalisation: str, depth: int, seeds: int) -> tuple[list[Params], Array]:
    """Each seed's fresh parameters, and its key for the minibatches; all cells share them."""
    draws, batches = (jax.random.split(key, seeds) for key in jax.random.split(jax.random.key(11)))
    return [start(activation, init, normalisation, depth, key=key) for key in draws], batches


def training(
    activation: str,
    init: str,
    normalisation: str,
    shortcut: str,
    optimizer: str,
    depth: int,
    *,
    looks: Sequence[int] = LOOKS,
    seeds: int = SEEDS,
) -> dict[str, Any]:
    """Returns how a cell's networks train on digits, on minibatches of 16, at either of its optimiser's two rates.

    `"accuracy"`, `(seed, rate, look)`: on 500 training images after so many updates; `"test_accuracy"`, `(seed, rate)`:
    of whole runs, on the 360 test images at the end. Seeds share draws and minibatches over all cells.
    """
    network, data = trunk(activation, normalisation, shortcut, depth), digits(images=True)
    draws, keys = _drawn(activation, init, normalisation, depth, seeds)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    rates, adaptive = jnp.asarray(RATES[optimizer]), jnp.asarray(optimizer == "adam")
    seen, tested = _trained(network, params, keys, rates, adaptive, tuple(looks), data)
    return {"accuracy": seen} | ({"test_accuracy": tested} if looks[-1] == LOOKS[-1] else {})


@partial(jax.jit, static_argnums=(0, 5))
def _trained(
    network: Network, params: Params, keys: Array, rates: Array, adaptive: Array, looks: tuple[int, ...], data: Dataset
) -> tuple[Float[Array, "seed rate look"], Float[Array, "seed rate"]]:
    """One run after another, for many kernels at once are slower on a CPU; one program for both optimisers."""

    def run(draw: Params, key: PRNGKeyArray, rate: Array) -> tuple[Array, Array]:
        def update(step: Array, state: Any) -> Any:
            x, y = data.batch(BATCH, key=jax.random.fold_in(key, step))
            p, mean, square = state
            gradient = jax.grad(partial(cross_entropy, network))(p, x, y)
            return descended(p, mean, square, gradient, step, rate, adaptive)

        def look(state: Any) -> Array:
            return accuracy(network, state[0], data.x_train[:WATCHED], data.y_train[:WATCHED])

        zeros = jax.tree.map(jnp.zeros_like, draw)
        (end, *_), seen, _ = descend(update, (draw, zeros, zeros), looks, look)
        return seen, accuracy(network, end, data.x_test, data.y_test)

    return lax.map(lambda one: lax.map(lambda rate: run(one[0], one[1], rate), rates), (params, keys))


def descended(
    params: Any, mean: Any, square: Any, grad: Any, step: Int[Array, ""], rate: Float[Array, ""], adam: Bool[Array, ""]
) -> tuple[Any, Any, Any]:
    """Returns parameters and running means after an update by plain descent or, if so, by `adam`.

    That is optax's (Kingma and Ba, 2015). `step` counts from 0. Which of the two it is need not be known when the
    program is compiled.
    """
    with jax.numpy_dtype_promotion("standard"):  # which optax's Adam needs
        scaled, state = optax.scale_by_adam().update(grad, optax.ScaleByAdamState(step, mean, square))
    moved = jax.tree.map(lambda p, a, g: p - rate * jnp.where(adam, a, g), params, scaled, grad)
    return moved, state.mu, state.nu


def profile(
    activation: str, init: str, normalisation: str, shortcut: str, depth: int, *, seeds: int = SEEDS
) -> dict[str, Any]:
    """Returns what is left of the gradient at initialisation, in front of each pair of layers and after the last.

    `"gradient"`, `(seed, pair)`: log10 of the root mean square over 100 training images of the norm of the gradient of
    the loss with respect to the trunk's activations there. Draws are those of `training`.
    """
    network, data = trunk(activation, normalisation, shortcut, depth), digits(images=True)
    measured = data.x_train[:MEASURED], data.y_train[:MEASURED]
    draws, _ = _drawn(activation, init, normalisation, depth, seeds)
    norms = [activation_gradient_norms(network, params, *measured).log10_norm for params in draws]
    return {"gradient": np.stack(norms)[:, 1 : depth // 2 + 2]}


def of_better_rate(accuracy: Float[np.ndarray, "*cell seed rate look"]) -> Float[np.ndarray, "*cell seed look"]:
    """Returns the accuracy at the rate that is better on average over seeds, chosen for each cell and look."""
    better = accuracy.mean(axis=-3, keepdims=True).argmax(axis=-2, keepdims=True)
    return np.take_along_axis(accuracy, better, axis=-2)[..., 0, :]


_CELLS = grid(**LEVELS)
EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        training,
        "A convolutional network trained on digits, every combination of six factors, five seeds, two rates each",
        _CELLS,
        name="ablation",
        check=dict(zip(LEVELS, (4, "relu", "none", "none", "sgd", "matched"), strict=True)),
        cheaper={"looks": (25,), "seeds": 1},
    ),
    experiment(
        profile,
        "The gradient through the same networks at initialisation, five seeds",
        grid(**{name: levels for name, levels in LEVELS.items() if name != "optimizer"}),
        name="ablation_profiles",
        cheaper={"seeds": 1},
    ),
)
