"""Training: minibatch descent with any optax optimiser, one jitted scan per run, watched as it goes.

>>> import jax, optax, gradcourse as gc
>>> network, key = gc.mlp(64, [32], 10, activation="tanh", init="glorot_uniform"), jax.random.key(0)
>>> arguments = network, network.init(key=key), gc.digits(), optax.sgd(0.1)
>>> run, history = train(*arguments, steps=300, every=100, key=jax.random.key(1))
>>> history.step.tolist(), history.parameter_gradient.log10_norm.shape  # (snapshot, layer)
([0, 100, 200, 300], (4, 2))
>>> bool(history.accuracy[-1] > 0.8)
True
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm import tqdm

from gradcourse._checks import known_false, positive_integer, traced
from gradcourse.nn.network import Network, Params
from gradcourse.training.data import Data
from gradcourse.training.descent import all_finite, checked_looks, descend
from gradcourse.training.history import History, Present, masked, snapshot
from gradcourse.training.runs import NEVER, Optimizer, Run, checked_rate, with_rate

__all__ = ["Observe", "accuracy", "advanced", "checked_watch", "cross_entropy", "in_pieces", "train"]

WATCHED = 500  # examples that are watched where nobody says which
PIECES = 50  # of a run that shows its progress
Observe = Callable[[Network, Params, Array, Array], Any]  # of (network, params, x, y), the watched examples


@partial(jax.jit, static_argnums=0)
def cross_entropy(
    network: Network, params: Params, x: Float[Array, "batch *shape"], y: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Returns the mean cross-entropy, in nats, of the network's outputs as logits for the labels `y`."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()


@partial(jax.jit, static_argnums=0)
def accuracy(
    network: Network, params: Params, x: Float[Array, "batch *shape"], y: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Returns the share of examples whose largest output is the label's."""
    return jnp.mean(network.apply(params, x).argmax(axis=-1) == y)


def train(
    network: Network,
    start: Params | Run,
    data: Data,
    optimizer: Optimizer,
    *,
    steps: int,
    learning_rate: float | Float[Array, ""] | None = None,
    batch_size: int = 32,
    every: int | None = None,
    looks: Sequence[int] | Int[Any, " look"] | None = None,
    watch: tuple[Any, Any] | None = None,
    observe: Observe | None = None,
    key: PRNGKeyArray | None = None,
    progress: bool = True,
) -> tuple[Run, History]:
    """Returns the run after `steps` updates on random minibatches, and the history of what was seen on the way.

    `start` is parameters, with a `key` for the minibatches, or a `Run` that is to go on: it gives the same numbers as
    one that was never interrupted. `optimizer` is an optax optimiser, or a function that makes one of the learning
    rate, such as `optax.sgd`; then `learning_rate` is an argument of the compiled program, which serves every rate.
    The loss is the mean cross-entropy.

    Snapshots are taken at the start and every `every` steps (by default at the end), or after as many steps as `looks`
    says: increasing whole numbers, counted from here, of which the last is `steps`. They are taken on the examples
    `watch`, a pair `(x, y)`; by default 500 that the key draws from `data`. One costs three forward passes and a
    backward pass of these. On a terminal, not in notebooks, a bar shows the `progress`, unless there are `looks`.

    `observe(network, params, x, y)` is what else you want to see of these examples: any function of arrays, such as
    those of this package, that returns a pytree of arrays or a `Profile`. The history's `observed` holds what it gave
    at every snapshot. Give the same function each time: a new one is a new program to compile.

    >>> import jax, optax, gradcourse as gc
    >>> network, key = gc.mlp(64, [16], 10, activation="tanh", init="glorot_uniform"), jax.random.key(0)
    >>> def norm_of_weights(network, params, x, y):
    ...     return jnp.stack([jnp.linalg.norm(stage["weight"]) for stage in params])
    >>> arguments = network, network.init(key=key), gc.digits(), optax.sgd(0.1)
    >>> _, history = train(*arguments, steps=100, looks=[0, 10, 100], observe=norm_of_weights, key=key)
    >>> history.step.tolist(), history.observed.shape
    ([0, 10, 100], (3, 2))

    Raises `ValueError` where `every` does not divide `steps` or `looks` do not lead up to it, and `ValueError` or
    `TypeError` for parameters or data that do not fit the network, a missing key and a missing or superfluous learning
    rate.
    """
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    chosen = checked_looks(steps, every=every, looks=looks)
    rate = checked_rate(optimizer, learning_rate)
    run = _started(start, with_rate(optimizer, rate), key)
    watched = checked_watch(network, run.params, data, watch, run.key)

    def program(run: Run, looks: tuple[int, ...]) -> tuple[Run, History]:
        return advanced((network, optimizer, batch_size, observe, looks), data, watched, run, rate, None)

    return in_pieces(program, run, chosen, progress and looks is None and not traced((run, rate)))


@partial(jax.jit, static_argnums=0)
def advanced(
    settings: tuple[Any, ...], data: Data, watched: tuple[Array, Array], run: Run, rate: Array, present: Present
) -> tuple[Run, History]:
    """Returns what `train` does, without its checks; layers that are not `present` hand on what they are given.

    `settings` are the network, the optimiser, the batch size, what to observe, and when to look.
    """
    network, optimizer, batch_size, observe, looks = settings
    rule = with_rate(optimizer, rate)

    def update(index: Array, state: tuple[Run, Array]) -> tuple[Run, Array]:
        """One update, unless that gives anything that is not finite; the loss before it is noted."""
        run, losses = state
        x, y = data.batch(batch_size, key=jax.random.fold_in(run.key, run.step))

        def mean_loss(params: Params) -> Array:
            logits = masked(network, params, x, present)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(run.params)
        updates, memory = rule.update(gradient, run.optimizer_state, run.params)
        new = optax.apply_updates(run.params, updates)
        here = jnp.isfinite(loss)
        moving = here & all_finite(new) & (run.diverged_at == NEVER)

        def chosen(condition: Array, one: Any, other: Any) -> Any:
            return jax.tree.map(partial(jnp.where, condition), one, other)

        stand_still = chosen(here, run.params, run.previous)
        run = Run(
            params=chosen(moving, new, stand_still),
            optimizer_state=chosen(moving, memory, run.optimizer_state),
            previous=chosen(moving, run.params, stand_still),
            key=run.key,
            step=run.step + 1,
            diverged_at=jnp.where(moving | (run.diverged_at != NEVER), run.diverged_at, run.step),
        )
        return run, lax.dynamic_update_index_in_dim(losses, jnp.where(here, loss, jnp.inf), index, axis=0)

    def see(state: tuple[Run, Array]) -> dict[str, Any]:
        run, _ = state
        seen = snapshot(network, run.params, rule, run.optimizer_state, *watched, present)
        return seen | {"observed": None if observe is None else observe(network, run.params, *watched)}

    losses = jnp.zeros(looks[-1], watched[0].dtype)
    (last, losses), seen, _ = descend(update, (run, losses), looks, see)
    return last, History(step=run.step + jnp.asarray(looks), batch_loss=losses, diverged_at=last.diverged_at, **seen)


def in_pieces(
    program: Callable[[Run, tuple[int, ...]], tuple[Run, History]], run: Run, looks: tuple[int, ...], shown: bool
) -> tuple[Run, History]:
    """Returns `program(run, looks)`; if it is `shown` on a terminal, in equal pieces that add up to it.

    Then the looks have to be evenly spaced, so that one program serves all pieces.
    """
    steps, blocks = looks[-1], len(looks) - 1
    bar = tqdm(total=steps, unit=" steps", disable=None if shown else True, leave=False)
    if bar.disable:
        return program(run, looks)
    piece = next(n for n in range(-(-blocks // PIECES), blocks + 1) if blocks % n == 0)
    with bar:
        run, history = program(run, looks[: piece + 1])
        for _ in range(blocks // piece - 1):
            jax.block_until_ready(run)
            bar.update(looks[piece])
            run, later = program(run, looks[: piece + 1])
            history = history.then(later)
    return run, history


def _started(start: Params | Run, optimizer: optax.GradientTransformation, key: PRNGKeyArray | None) -> Run:
    if isinstance(start, Run):
        if key is not None:
            raise TypeError("key is accepted with fresh parameters only: a run that goes on has its own.")
        return start
    if key is None:
        raise TypeError("key is missing; parameters are accepted with one, to draw the minibatches: jax.random.key(0).")
    return Run.start(start, optimizer, key=key)


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
    for name, labels, count in (("data", drawn_y, 1), ("watch", y, len(x))):
        if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
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
