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

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm import tqdm

from gradcourse._checks import known_false, positive_integer, traced
from gradcourse.nn.network import Network, Params
from gradcourse.training.history import History, Present, masked, observe
from gradcourse.training.runs import NEVER, Optimizer, Run, with_rate

__all__ = ["Data", "accuracy", "cross_entropy", "train"]

WATCHED = 500  # examples that are watched where nobody says which
PIECES = 50  # of a run that shows its progress


@runtime_checkable
class Data(Protocol):
    """What minibatches are drawn from: a `Dataset`, a `Shapeset`, or anything of yours with this method.

    It must be a pytree; `jax.tree_util.register_static` makes one of a class that holds no arrays.
    """

    def batch(self, size: int, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Returns `size` examples and their labels, drawn by `key`."""


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
    watch: tuple[Any, Any] | None = None,
    key: PRNGKeyArray | None = None,
    progress: bool = True,
) -> tuple[Run, History]:
    """Returns the run after `steps` updates on random minibatches, and the history of what was seen on the way.

    `start` is parameters, with a `key` for the minibatches, or a `Run` that is to go on: it gives the same numbers as
    one that was never interrupted. `optimizer` is an optax optimiser, or a function that makes one of the learning
    rate, such as `optax.sgd`; then `learning_rate` is an argument of the compiled program, which serves every rate.
    The loss is the mean cross-entropy.

    Snapshots are taken at the start and every `every` steps (by default at the end), on the examples `watch`, a pair
    `(x, y)`; by default 500 that the key draws from `data`. One costs three forward passes and a backward pass of
    these. On a terminal, not in notebooks, a bar shows the `progress`.

    Raises `ValueError` where `every` does not divide `steps`, and `ValueError` or `TypeError` for parameters or data
    that do not fit the network, a missing key and a missing or superfluous learning rate.
    """
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    every = checked_every(every, steps)
    rate = checked_rate(optimizer, learning_rate)
    run = _started(start, with_rate(optimizer, rate), key)
    watched = checked_watch(network, run.params, data, watch, run.key)
    program = partial(advanced, network, optimizer, batch_size, every, False)
    shown = progress and not traced((run, rate))
    return in_pieces(lambda run, steps: program(steps, data, watched, run, rate, None), run, steps, every, shown)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def advanced(
    network: Network,
    optimizer: Optimizer,
    batch_size: int,
    every: int,
    many: bool,
    steps: int,
    data: Data,
    watched: tuple[Array, Array],
    run: Run,
    rate: Float[Array, "*run"],
    present: Present,
) -> tuple[Run, History]:
    """`train` without its checks; with `many`, `run`, `rate` and `present` have a leading axis of runs."""

    def see(run: Run, rate: Array, present: Present) -> dict[str, Any]:
        return observe(network, run.params, with_rate(optimizer, rate), run.optimizer_state, *watched, present)

    def go_on(run: Run, rate: Array, present: Present) -> tuple[Run, Array]:
        step = partial(_step, network, with_rate(optimizer, rate), data, batch_size, present)
        return lax.scan(lambda run, _: step(run), run, length=every)

    def stay(run: Run, rate: Array, present: Present) -> tuple[Run, Array]:
        return run, jnp.zeros(every, watched[0].dtype)

    def lifted(one: Callable[[Run, Array, Present], Any]) -> Callable[[Run, Array, Present], Any]:
        return jax.vmap(one) if many else one

    def block(run: Run, index: Array) -> tuple[Run, tuple[dict[str, Any], Array]]:
        seen = lifted(see)(run, rate, present)
        # The last block only looks: one program for both is compiled in two thirds of the time of two.
        run, losses = lax.cond(index < blocks, lifted(go_on), lifted(stay), run, rate, present)
        return run, (seen, losses)

    blocks = steps // every
    first = jnp.ravel(run.step)[0]
    run, (seen, losses) = lax.scan(block, run, jnp.arange(blocks + 1))
    if many:  # the runs' axis in front
        seen, losses = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (seen, losses))
    return run, History(
        step=first + every * jnp.arange(blocks + 1),
        batch_loss=losses[..., :-1, :].reshape(*run.step.shape, steps),
        diverged_at=run.diverged_at,
        **seen,
    )


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
    sound = here & jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), new))
    moving = sound & (run.diverged_at == NEVER)

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
    program: Callable[[Run, int], tuple[Run, History]], run: Run, steps: int, every: int, shown: bool
) -> tuple[Run, History]:
    """Returns what `program(run, steps)` does; where a terminal can show progress, in pieces that add up to it."""
    bar = tqdm(total=steps, unit=" steps", disable=None if shown else True, leave=False)
    blocks = steps // every
    piece = blocks if bar.disable else next(n for n in range(-(-blocks // PIECES), blocks + 1) if blocks % n == 0)
    with bar:
        run, history = program(run, piece * every)
        for _ in range(blocks // piece - 1):
            jax.block_until_ready(run)
            bar.update(piece * every)
            run, later = program(run, piece * every)
            history = history.then(later)
    return run, history


def checked_every(every: int | None, steps: int) -> int:
    """Returns `every`, by default `steps`, if it divides `steps`."""
    every = steps if every is None else positive_integer("every", every)
    if steps % every:
        raise ValueError(
            f"every={every} does not divide steps={steps}; accepted is a divisor, so that the last snapshot is the end."
        )
    return every


def checked_rate(optimizer: Optimizer, learning_rate: Any) -> Float[Array, "..."]:
    """Returns the rates as an array, 0 for an optimiser that has its own."""
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
    """Returns the examples to be watched, after checking that they and a minibatch fit the network."""
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


def _started(start: Params | Run, optimizer: optax.GradientTransformation, key: PRNGKeyArray | None) -> Run:
    if isinstance(start, Run):
        if key is not None:
            raise TypeError("key is accepted with fresh parameters only: a run that goes on has its own.")
        return start
    if key is None:
        raise TypeError("key is missing; parameters are accepted with one, to draw the minibatches: jax.random.key(0).")
    return Run.start(start, optimizer, key=key)
