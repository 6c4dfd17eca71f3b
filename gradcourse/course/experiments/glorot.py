"""Chapter 4: Glorot and Bengio's figures and table on Shapeset, and the learning time of deep linear networks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse.course.experiments._common import experiment
from gradcourse.course.recording import Experiment, grid
from gradcourse.nn.initializers import resolve
from gradcourse.nn.network import Network, Params, mlp
from gradcourse.training.data import digits
from gradcourse.training.shapeset import Shapeset
from gradcourse.training.sweeps import sweep

__all__ = ["EXPERIMENTS", "learning_time", "train_on_shapeset"]

WATCHED = 2000  # fresh images, the same for all runs, on which the error is measured
BINS = 40  # of a histogram from -1 to 1
FIRST = 100  # updates whose minibatch losses are recorded
HALVINGS = tuple(0.5**power for power in range(12))  # learning rates from 1 down


def train_on_shapeset(
    activation: str,
    init: str,
    learning_rate: float,
    *,
    depth: int = 5,
    width: int = 100,
    steps: int = 100_000,
    every: int = 5000,
    seeds: int = 5,
) -> dict[str, Any]:
    """Returns how `depth` hidden layers learn Shapeset by plain gradient descent on minibatches of 10.

    Every list has the seeds in front, then the snapshots taken every `every` updates, and of layers the hidden ones:

    - `"error"`: share of 2000 images, never trained on, that are classified wrongly; `"loss"` likewise;
    - `"mean"`, `"deviation"`: of the layer's activations on these; `"saturated"`: share of those whose slope is below
      5 % of the steepest;
    - `"weight_gradient"`: log10 norm of the gradient with respect to the layer's weights and biases;
    - `"first_losses"`: of the first 100 minibatches;
    - `"histogram"`: of the last activations, the share of each layer's that falls in each of 40 bins from -1 to 1.
    """
    data = Shapeset()
    network = mlp(1024, [width] * depth, 9, activation=activation, init=init)
    watch = data.batch(WATCHED, key=jax.random.key(4))
    settings: Any = {"seeds": seeds, "steps": steps, "every": min(every, steps), "batch_size": 10, "watch": watch}
    key = jax.random.key(2010)
    runs, history = sweep(network, data, optax.sgd, learning_rates=[learning_rate], key=key, **settings)
    kept = slice(steps // every + 1)  # a run that is cut short has only the first snapshot in common with a whole one
    units: Any = history.units
    found = {
        "error": 1 - history.accuracy[:, 0, kept],
        "loss": history.loss[:, 0, kept],
        "mean": units.mean[:, 0, kept, :depth],
        "deviation": units.spread[:, 0, kept, :depth],
        "saturated": units.saturated[:, 0, kept, :depth],
        "weight_gradient": history.parameter_gradient.log10_norm[:, 0, kept, :depth],
        "first_losses": history.batch_loss[:, 0, :FIRST],
    }
    if steps >= every:
        params = jax.tree.map(lambda leaf: leaf[:, 0], runs.params)
        found["histogram"] = jax.vmap(partial(_histograms, network, watch[0][:300]))(params)
    return found


def _histograms(network: Network, x: Array, params: Params) -> Float[Array, "layer bin"]:
    _, (*hidden, _) = network.scan(lambda layer, p, h: (layer.apply(p, h),) * 2, params, x)
    values = jnp.concatenate([stage.reshape(len(stage), -1) for stage in hidden])
    counts = jax.vmap(lambda one: jnp.histogram(one, bins=BINS, range=(-1, 1))[0])(values)
    return counts / values.shape[1]


def learning_time(
    init: str, depth: int, *, rates: Sequence[float] = HALVINGS, seeds: int = 5, most: int = 2000
) -> dict[str, Any]:
    """Returns how long deep linear networks take to learn the digits, as in Saxe et al. (2014).

    The network has `depth` layers of weights, 32 inputs that are whitened digits and ten outputs; it is trained by
    gradient descent on half the mean squared distance from the labels' indicators, over all training images at once.
    As the inputs are white, that depends only on the distance of the product of all weights from the least-squares
    solution. `"updates"`, `(seed, rate)`, counts the updates until the excess over the least-squares loss is 5 % of
    what a network of zero output has; infinite where it takes more than `most`, or diverges.
    """
    target = whitened_solution(*digits()[:2], 32)
    keys = jax.random.split(jax.random.key(2014), seeds)
    return {"updates": _learning_times(init, depth, most, jnp.asarray(rates), keys, target)}


def whitened_solution(x: Float[Array, "batch pixel"], y: Array, inputs: int) -> Float[Array, "inputs 10"]:
    """Returns the least-squares map from the first `inputs` whitened principal components to the labels' indicators."""
    left, _, _ = jnp.linalg.svd(x - x.mean(axis=0, keepdims=True), full_matrices=False)
    white = left[:, :inputs] * len(x) ** 0.5
    return white.T @ jax.nn.one_hot(y, 10) / len(x)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _learning_times(
    init: str, depth: int, most: int, rates: Array, keys: Array, target: Array
) -> Float[Array, "seed rate"]:
    inputs, outputs = target.shape
    scheme = resolve(init)
    enough = 0.05 * jnp.square(target).sum() / 2

    def excess(weights: tuple[Array, Array]) -> Array:
        inner, last = weights
        product, _ = lax.scan(lambda p, w: (p @ w, None), jnp.eye(inputs), inner)
        return jnp.square(product @ last - target).sum() / 2

    def one(key: PRNGKeyArray, rate: Array) -> Array:
        inner_key, last_key = jax.random.split(key)
        draws = [scheme.weights((inputs, inputs), key=k) for k in jax.random.split(inner_key, depth - 1)]
        start = jnp.stack(draws), scheme.weights((inputs, outputs), key=last_key)

        def going(state: tuple[Array, Array, Any]) -> Array:
            step, left, _ = state
            return (step <= most) & (left > enough) & (left < 1e6)

        def update(state: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
            step, _, weights = state
            gradient = jax.grad(excess)(weights)
            weights = jax.tree.map(lambda w, g: w - rate * g, weights, gradient)
            return step + 1, excess(weights), weights

        step, left, _ = lax.while_loop(going, update, (jnp.int32(0), excess(start), start))
        return jnp.where((left <= enough) & (step <= most), step.astype(left.dtype), jnp.inf)

    return lax.map(lambda key: lax.map(lambda rate: one(key, rate), rates), keys)


_SIGMOIDS = {"activation": ["sigmoid"], "init": ["standard"]}
_SHORT = {"steps": FIRST, "seeds": 1}
EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        train_on_shapeset,
        "five hidden layers of 100 units on Shapeset, five seeds, 100,000 updates",
        (
            *grid(activation=["softsign", "tanh"], init=["standard", "glorot_uniform"], learning_rate=[0.03]),
            *grid(**_SIGMOIDS, learning_rate=[0.03]),
        ),
        name="table1_reduced",
        cheaper=_SHORT,
    ),
    experiment(
        train_on_shapeset,
        "four and five hidden layers of 200 sigmoid units on Shapeset, 20,000 updates",
        grid(**_SIGMOIDS, learning_rate=[0.1], depth=[4, 5], width=[200], steps=[20_000], every=[1000]),
        name="figure2",
        cheaper=_SHORT,
    ),
    experiment(
        train_on_shapeset,
        "four hidden layers of 100 sigmoid units on Shapeset, 300,000 updates",
        grid(**_SIGMOIDS, learning_rate=[1.0, 0.1], depth=[4], width=[100], steps=[300_000], every=[10_000]),
        name="figure2_escape",
        cheaper=_SHORT,
    ),
    experiment(
        learning_time,
        "updates that deep linear networks need to learn whitened digits",
        grid(init=["lecun_normal", "orthogonal"], depth=[2, 4, 8, 16, 32]),
        name="depth_independence",
        check={"init": "orthogonal"},
        cheaper={"rates": HALVINGS[:2]},
    ),
)
