r"""Descent whose gradients are computed in a short number format, with loss scaling, and weights kept in one.

>>> import jax, optax, gradcourse as gc
>>> data, network = gc.digits(), gc.mlp(64, [16], 10, activation="tanh", init="glorot_uniform")
>>> arguments = network, network.init(key=jax.random.key(0)), data, optax.sgd(0.1)
>>> settings = {"steps": 100, "watch": (data.x_train[:50], data.y_train[:50]), "key": jax.random.key(0)}
>>> run = train_in(*arguments, dtype="float16", loss_scale=Dynamic(), **settings)
>>> run.step.tolist(), bool(run.loss[-1] < run.loss[0])
([0, 100], True)
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gradcourse._checks import known_name, positive_integer, positive_number
from gradcourse.nn.network import Network, Params
from gradcourse.training.data import Data
from gradcourse.training.descent import all_finite, checked_looks, descend
from gradcourse.training.formats import cast, round_stochastically
from gradcourse.training.loop import accuracy, cross_entropy
from gradcourse.training.precision import scaled_loss
from gradcourse.training.runs import Optimizer, checked_rate, with_rate

__all__ = ["Descent", "Dynamic", "train_in"]


@dataclass(frozen=True)
class Dynamic:
    """A loss scale that is halved when a gradient overflows and doubled after `patience` steps without."""

    start: float = 2.0**15
    patience: int = 200


class Descent(NamedTuple):
    """A run of `train_in`, seen every so many steps.

    - `params`: at the end, in the format they are kept in;
    - `step`, `loss`, `accuracy`, `(snapshot,)`: on the examples watched, computed in float32 from the kept parameters;
    - `scale`, `skipped`, `(snapshot,)`: the loss scale, and how many steps were left out until then.
    """

    params: Any
    step: Int[Array, " snapshot"]
    loss: Float[Array, " snapshot"]
    accuracy: Float[Array, " snapshot"]
    scale: Float[Array, " snapshot"]
    skipped: Int[Array, " snapshot"]


def train_in(
    network: Network,
    params: Params,
    data: Data,
    optimizer: Optimizer,
    *,
    dtype: Any,
    learning_rate: float | Float[Array, ""] | None = None,
    steps: int,
    every: int | None = None,
    batch_size: int = 32,
    loss_scale: float | Dynamic = 1.0,
    keep: str = "float32",
    watch: tuple[Any, Any],
    key: PRNGKeyArray,
) -> Descent:
    """Returns minibatch descent from float32 `params` whose gradients are computed in the format `dtype`.

    The loss is multiplied by `loss_scale`, a power of two, and the gradient divided by it; a step whose gradient is not
    finite is left out. `keep` says in what form the weights are kept between steps: `"float32"` (master weights, cast
    to `dtype` for each gradient), or in `dtype` itself, each update rounded to `"nearest"` or, unbiased,
    `"stochastic"`. `optimizer`, `learning_rate` and `batch_size` as in `gradcourse.train`; it sees gradients in
    float32. Snapshots are taken at the start and every `every` steps (by default at the end) on `watch`.

    References: Micikevicius et al. (2018). Raises `ValueError` or `TypeError` for arguments that do not fit.
    """
    name = known_name("dtype", str(jnp.dtype(dtype)), ("float32", "bfloat16", "float16"))
    known_name("keep", keep, ("float32", "nearest", "stochastic"))
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    looks, rate = checked_looks(steps, every=every), checked_rate(optimizer, learning_rate)
    start, patience = loss_scale, 0
    if isinstance(loss_scale, Dynamic):
        start, patience = loss_scale.start, positive_integer("patience", loss_scale.patience)
    if np.frexp(positive_number("loss_scale", start))[0] != 0.5:
        raise ValueError(f"loss_scale={start!r} is accepted as a power of two, so that dividing by it is exact.")
    watched = network.check(params, watch[0]), jnp.asarray(watch[1])
    settings = network, optimizer, jnp.dtype(name), keep, patience, batch_size, looks
    return _descended(settings, data, params, rate, jnp.asarray(start, jnp.float32), watched, key)


class _State(NamedTuple):
    kept: Params
    memory: Any  # the optimiser's
    scale: Array
    sound_steps: Array  # since the last overflow or growth of the scale
    skipped: Array


@partial(jax.jit, static_argnums=0)
def _descended(
    settings: tuple[Any, ...],
    data: Data,
    params: Params,
    rate: Array,
    scale: Array,
    watch: tuple[Array, Array],
    key: Any,
) -> Descent:
    """`train_in` without its checks; a scale without patience stays as it is."""
    network, optimizer, dtype, keep, patience, batch_size, looks = settings
    chosen = with_rate(optimizer, rate)

    def update(index: Array, state: _State) -> _State:
        batch_key, round_key = jax.random.split(jax.random.fold_in(key, index))
        x, y = data.batch(batch_size, key=batch_key)
        scaled = jax.grad(scaled_loss, argnums=1)(network, cast(state.kept, dtype), x.astype(dtype), y, state.scale)
        gradient = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / state.scale, scaled)
        wide = cast(state.kept, jnp.float32)
        updates, memory = chosen.update(gradient, state.memory, wide)
        kept = _kept(keep, dtype, optax.apply_updates(wide, updates), round_key)
        sound = all_finite(scaled)
        kept, memory = jax.tree.map(partial(jnp.where, sound), (kept, memory), (state.kept, state.memory))
        scale, sound_steps = state.scale, jnp.where(sound, state.sound_steps + 1, 0)
        if patience:
            grown = sound_steps == patience
            scale = jnp.where(sound, jnp.where(grown, 2 * scale, scale), scale / 2)
            sound_steps = jnp.where(grown, 0, sound_steps)
        return _State(kept, memory, scale, sound_steps, jnp.where(sound, state.skipped, state.skipped + 1))

    def see(state: _State) -> tuple[Array, ...]:
        wide = cast(state.kept, jnp.float32)
        return cross_entropy(network, wide, *watch), accuracy(network, wide, *watch), state.scale, state.skipped

    none = jnp.zeros((), jnp.int32)
    start = _State(params if keep == "float32" else cast(params, dtype), chosen.init(params), scale, none, none)
    last, seen, _ = descend(update, start, looks, see)
    return Descent(last.kept, jnp.asarray(looks), *seen)


def _kept(keep: str, dtype: Any, tree: Params, key: PRNGKeyArray) -> Params:
    """Updated weights in the form in which they are kept."""
    if keep == "float32":
        return tree
    if keep == "nearest":
        return cast(tree, dtype)
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    rounded = [round_stochastically(leaf, dtype, key=one) for leaf, one in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, rounded)
