"""What the chapters' experiments share: how one is listed, and descent whose every draw comes from one seed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from gradcourse.course.recording import Experiment
from gradcourse.nn.network import Network, Params
from gradcourse.training.data import Dataset
from gradcourse.training.history import History
from gradcourse.training.loop import train
from gradcourse.training.runs import Optimizer, Run

__all__ = ["experiment", "fresh", "mean_losses", "trained"]


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
