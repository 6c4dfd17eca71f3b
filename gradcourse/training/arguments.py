"""The arguments that every kind of training takes, checked: when to look, the learning rate, what to watch.

>>> checked_looks(100, every=50)
(0, 50, 100)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import known_false, positive_integer
from gradcourse.nn.network import Network, Params
from gradcourse.training.data import Data
from gradcourse.training.runs import Optimizer

__all__ = ["checked_looks", "checked_rate", "checked_watch"]

WATCHED = 500  # examples that are watched where nobody says which


def checked_looks(steps: int, *, every: int | None = None, looks: Sequence[int] | None = None) -> tuple[int, ...]:
    """Returns the numbers of steps after which to look: `looks`, or 0 and every `every` steps, by default the end.

    Raises `ValueError` where the last of them is not `steps`, or they do not increase, and `TypeError` for both.
    """
    if looks is None:
        every = steps if every is None else positive_integer("every", every)
        if steps % every:
            raise ValueError(
                f"every={every} does not divide steps={steps}; accepted is a divisor, so that the last snapshot is the "
                "end."
            )
        return tuple(range(0, steps + 1, every))
    if every is not None:
        raise TypeError(f"every={every} and looks={looks!r} both say when to look; accepted is one of them.")
    chosen = np.asarray(looks)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(f"looks={looks!r} is accepted as a sequence of whole numbers of steps.")
    if chosen[0] < 0 or (np.diff(chosen) <= 0).any() or chosen[-1] != steps:
        raise ValueError(
            f"looks={looks!r} is accepted from 0 up, increasing, and with steps={steps} as the last, so that the last "
            "snapshot is the end."
        )
    return tuple(chosen.tolist())


def checked_rate(optimizer: Optimizer, learning_rate: Any) -> Float[Array, "..."]:
    """Returns the rates as an array, 0 for an optimiser that has its own.

    Raises `TypeError` for what is no optimiser and for a missing or superfluous rate, `ValueError` for rates below 0.
    """
    ready = isinstance(optimizer, optax.GradientTransformation)
    if not ready and not callable(optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} is a {type(optimizer).__name__}; accepted is an optax optimiser, such as "
            "optax.adam(1e-3), or a function that makes one of the learning rate, such as optax.adam."
        )
    if ready != (learning_rate is None):
        raise TypeError(
            "learning_rate is accepted with a function that makes an optimiser of it, such as optax.sgd; an optimiser "
            "such as optax.sgd(0.1) has its own."
            if ready
            else "learning_rate is missing: optimizer is a function that makes an optimiser of it."
        )
    rate = jnp.asarray(0.0 if learning_rate is None else learning_rate, float)
    if known_false(jnp.all(jnp.isfinite(rate) & (rate >= 0))):
        raise ValueError(f"learning_rate={learning_rate!r} is accepted finite, and zero or more.")
    return rate


def checked_watch(network: Network, params: Params, data: Data, watch: Any, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Returns the examples to be watched, by default 500 that the key draws from `data`.

    Raises `TypeError` or `ValueError` where they, the parameters or a minibatch do not fit the network.
    """
    if not hasattr(data, "batch"):
        raise TypeError(
            f"data is a {type(data).__name__} without a method batch(size, key=...); accepted is a Dataset, such as "
            "gradcourse.digits(), a Shapeset, or a class of yours with that method."
        )
    drawn_x, drawn_y = jax.eval_shape(lambda: data.batch(1, key=key))
    dtype = jnp.result_type(*jax.tree.leaves(params))
    if drawn_x.shape[1:] != network.input_shape or drawn_x.dtype != dtype:
        raise ValueError(
            f"data has examples of shape {drawn_x.shape[1:]} and dtype {drawn_x.dtype}; accepted for this network is "
            f"{network.input_shape} and {dtype}."
        )
    if watch is None:
        watch = data.batch(WATCHED, key=jax.random.fold_in(key, np.iinfo(np.int32).max))  # no step's number
    x, y = network.check(params, watch[0]), jnp.asarray(watch[1])
    for name, labels, shape in (("data", drawn_y, (1,)), ("watch", y, x.shape[:1])):
        if labels.shape != shape or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"{name} has labels of shape {labels.shape} and dtype {labels.dtype}; accepted is one integer each."
            )
    classes = network.output_shape[-1]
    if known_false(jnp.all((y >= 0) & (y < classes))):
        raise ValueError(
            f"watch has labels from {y.min()} to {y.max()}; accepted is 0 to {classes - 1}, for the network has "
            f"{classes} outputs."
        )
    return x, y
