"""What the chapters' experiments share: how one is listed, and descent whose draws and minibatches come from seeds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse.course.recording import Experiment
from gradcourse.nn.network import Network, Params
from gradcourse.nn.normalisation import at_inference
from gradcourse.training.data import Dataset
from gradcourse.training.history import History
from gradcourse.training.loop import accuracy, train
from gradcourse.training.runs import Optimizer, Run

__all__ = ["all_runs", "experiment", "fresh", "mean_losses", "trained"]


def experiment(
    measure: Callable[..., Mapping[str, Any]],
    about: str,
    points: tuple[Mapping[str, Any], ...],
    *,
    name: str = "",
    check: Mapping[str, Any] | None = None,
    cheaper: Mapping[str, Any] | None = None,
) -> Experiment:
    """Returns the recorded experiment of a function; its name is the function's unless another is given.

    A test repeats the first of the `points` that has the values of `check`, with the arguments that are `cheaper`.
    """
    wanted = (check or {}).items()
    repeated = next(point for point in points if wanted <= point.items())
    return Experiment(name or measure.__name__, about, measure, points, repeated, cheaper or {})


def fresh(network: Network, seed: int) -> tuple[Params, PRNGKeyArray]:
    """Returns parameters that the seed draws, and a key for the minibatches."""
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    return network.init(key=init_key), batch_key


def trained(
    network: Network, data: Dataset, seed: int, rate: float, optimizer: Optimizer = optax.sgd, **settings: Any
) -> tuple[Run, History]:
    """Returns what `train` does from a fresh draw, by default by plain descent."""
    start, key = fresh(network, seed)
    return train(network, start, data, optimizer, learning_rate=rate, key=key, **settings)


def mean_losses(history: History, updates: int) -> Float[np.ndarray, " block"]:
    """Returns the mean minibatch loss of every so many `updates`."""
    return np.asarray(history.batch_loss).reshape(-1, updates).mean(axis=1)


def all_runs(
    network: Network,
    draw: Callable[..., Params],
    data: Dataset,
    rates: Sequence[float],
    seeds: int,
    steps: int,
    every: int,
    in_turn: bool = False,
) -> dict[str, Any]:
    """Returns what plain descent from `draw(key=key)` finds every `every` updates, with axes (rate, seed, time).

    All runs are one program, which does them side by side or, what is faster for convolutions on a CPU, `in_turn`.
    """

    def one(rate: Any, start: Params, key: Any) -> tuple[Any, Any, Any]:
        settings: Any = {"steps": steps, "every": every, "watch": (data.x_test, data.y_test)}
        run, history = train(network, start, data, optax.sgd, learning_rate=rate, key=key, **settings)
        return run.params, history.accuracy[1:], history.batch_loss.reshape(-1, every).mean(axis=1)

    keys = jnp.stack([jax.random.split(jax.random.key(seed)) for seed in range(seeds)])
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(draw(key=key) for key in keys[:, 0]))
    each_rate, each_seed = jnp.repeat(jnp.asarray(rates), seeds), jnp.tile(jnp.arange(seeds), len(rates))
    every_start, every_key = jax.tree.map(lambda leaf: leaf[each_seed], (starts, keys[:, 1]))
    many: Any = partial(lax.map, lambda run: one(*run)) if in_turn else lambda runs: jax.vmap(one)(*runs)
    params, accuracies, losses = jax.jit(many)((each_rate, every_start, every_key))
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
