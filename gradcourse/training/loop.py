"""Training: minibatch descent with any optax optimiser, one jitted scan per run, watched as it goes.

>>> import jax, optax
>>> from gradcourse.training.data import digits
>>> from gradcourse.nn.network import mlp
>>> network = mlp(64, [32], 10, activation="tanh", init="glorot_uniform")
>>> params = network.init(key=jax.random.key(0))
>>> run, history = train(
...     network, params, digits(), optax.sgd, learning_rate=0.1, steps=300, every=100, key=jax.random.key(1)
... )
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
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm import tqdm

from gradcourse._checks import positive_integer, traced
from gradcourse.nn.network import Network, Params
from gradcourse.training.arguments import checked_looks, checked_rate, checked_watch
from gradcourse.training.data import Data
from gradcourse.training.descent import all_finite, descend
from gradcourse.training.history import History, Present, masked, snapshot
from gradcourse.training.runs import NEVER, Optimizer, Run, with_rate

__all__ = ["Observe", "accuracy", "advanced", "cross_entropy", "in_pieces", "train"]

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

    >>> from gradcourse.nn.network import mlp
    >>> from gradcourse.training.data import digits
    >>> network, key = mlp(64, [16], 10, activation="tanh", init="glorot_uniform"), jax.random.key(0)
    >>> def norm_of_weights(network, params, x, y):
    ...     return jnp.stack([jnp.linalg.norm(stage["weight"]) for stage in params])
    >>> arguments = network, network.init(key=key), digits(), optax.sgd(0.1)
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
    program = partial(advanced, network, optimizer, batch_size, False, observe)
    shown = progress and looks is None and not traced((run, rate))
    return in_pieces(lambda run, looks: program(looks, data, watched, run, rate, None), run, chosen, shown)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def advanced(
    network: Network,
    optimizer: Optimizer,
    batch_size: int,
    many: bool,
    observe: Observe | None,
    looks: tuple[int, ...],
    data: Data,
    watched: tuple[Array, Array],
    run: Run,
    rate: Float[Array, "*run"],
    present: Present,
) -> tuple[Run, History]:
    """Returns what `train` does, without its checks; with `many`, `run`, `rate` and `present` have an axis of runs."""

    def see(run: Run, rate: Array, present: Present) -> dict[str, Any]:
        seen = snapshot(network, run.params, with_rate(optimizer, rate), run.optimizer_state, *watched, present)
        return seen | {"observed": None if observe is None else observe(network, run.params, *watched)}

    def step(run: Run, rate: Array, present: Present) -> tuple[Run, Array]:
        return _step(network, with_rate(optimizer, rate), data, batch_size, present, run)

    def of_all(one: Callable[[Run, Array, Present], Any], run: Run) -> Any:
        return (jax.vmap(one) if many else one)(run, rate, present)

    def update(index: Array, state: tuple[Run, Array]) -> tuple[Run, Array]:
        run, losses = state
        run, loss = of_all(step, run)
        return run, lax.dynamic_update_index_in_dim(losses, loss, index, axis=losses.ndim - 1)

    losses = jnp.zeros((*run.step.shape, looks[-1]), watched[0].dtype)
    (last, losses), seen, _ = descend(update, (run, losses), looks, lambda state: of_all(see, state[0]))
    if many:  # the runs' axis in front
        seen = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), seen)
    first = jnp.ravel(run.step)[0]
    return last, History(step=first + jnp.asarray(looks), batch_loss=losses, diverged_at=last.diverged_at, **seen)


def _step(
    network: Network,
    optimizer: optax.GradientTransformation,
    data: Data,
    batch_size: int,
    present: Present,
    run: Run,
) -> tuple[Run, Array]:
    """One update and the loss before it; none where that gives anything that is not finite."""
    x, y = data.batch(batch_size, key=jax.random.fold_in(run.key, run.step))

    def mean_loss(params: Params) -> Array:
        logits = masked(network, params, x, present)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, gradient = jax.value_and_grad(mean_loss)(run.params)
    updates, state = optimizer.update(gradient, run.optimizer_state, run.params)
    new = optax.apply_updates(run.params, updates)
    here = jnp.isfinite(loss)
    moving = here & all_finite(new) & (run.diverged_at == NEVER)

    def chosen(condition: Array, one: Any, other: Any) -> Any:
        return jax.tree.map(partial(jnp.where, condition), one, other)

    stand_still = chosen(here, run.params, run.previous)
    return Run(
        params=chosen(moving, new, stand_still),
        optimizer_state=chosen(moving, state, run.optimizer_state),
        previous=chosen(moving, run.params, stand_still),
        key=run.key,
        step=run.step + 1,
        diverged_at=jnp.where(moving | (run.diverged_at != NEVER), run.diverged_at, run.step),
    ), jnp.where(here, loss, jnp.inf)


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
