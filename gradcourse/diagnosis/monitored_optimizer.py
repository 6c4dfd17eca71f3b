"""An optimiser that keeps the last snapshots of its gradients and updates in its own state: pure, and of fixed size.

A *snapshot* is a few numbers per layer, which is whatever holds arrays directly, as `diagnosis.monitoring.monitor`
says. `Layers` tells of each holder which layers its arrays are: one, or several, stacked along their first axis.

>>> params = {"dense": {"bias": jnp.zeros(3), "weight": jnp.full((2, 3), 2.0)}, "blocks": jnp.ones((2, 5))}
>>> layers_of(params, ["blocks"])
(('blocks', ('blocks.0', 'blocks.1')), ('dense', ('dense',)))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gradcourse._checks import known_name
from gradcourse._logdomain import sum_of_squares
from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.nn.network import Network
from gradcourse.probes import floating
from gradcourse.profile import LOG10_OF_2, Profile

__all__ = ["Layers", "MonitorState", "arrays_by_holder", "history_of", "layers_of", "monitored", "names_of", "snapshot"]

Layers = tuple[tuple[str, tuple[str, ...]], ...]


@jax.tree_util.register_static
@dataclass(frozen=True)
class About:
    """What of a monitor's state is no array: it has no leaves as a pytree.

    `look` says whether to take a snapshot at this update; if it is `None`, the compiled program decides by its count.
    """

    every: int
    layers: Layers
    look: bool | None = None


class MonitorState(NamedTuple):
    """The state of a monitored optimiser.

    - `inner`: the wrapped optimiser's own;
    - `count`: how many updates were made; `taken`: how many snapshots;
    - `step`, `seen`: the count at each snapshot, `(keep,)`, and the snapshots, `(keep, 4, layer)`; the oldest go first;
    - `about`: the layers' names and the monitor's settings, which are no arrays.
    """

    inner: Any
    count: Any
    taken: Any
    step: Any
    seen: Any
    about: Any


def monitored(
    inner: optax.GradientTransformation, every: int, keep: int, layers_of: Callable[[Any], Layers]
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` with a `MonitorState`; `layers_of` says of which layers the parameters consist."""
    full = optax.with_extra_args_support(inner)

    def init(params: Any) -> MonitorState:
        about = About(every, layers_of(params))
        seen = jnp.full((keep, 4, len(names_of(about.layers))), jnp.nan, jnp.float32)
        count, taken, step = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(keep, jnp.int32)
        return MonitorState(full.init(params), count, taken, step, seen, about)

    def update(gradient: Any, state: MonitorState, params: Any = None, **extra: Any) -> tuple[Any, MonitorState]:
        updates, inner_state = full.update(gradient, state.inner, params, **extra)
        new = state._replace(inner=inner_state, count=optax.safe_increment(state.count))
        look = state.about.look
        if look is False:
            return updates, new
        slot = state.taken % len(state.seen)
        due = jnp.asarray(True) if look else state.count % state.about.every == 0
        now = partial(snapshot, state.about.layers, gradient, updates, params)
        as_before = partial(lax.dynamic_index_in_dim, state.seen, slot, keepdims=False)
        # Only the row of the snapshot passes the branch: the whole of `seen` would be copied at every step.
        row = now() if look else lax.cond(due, now, as_before)
        return updates, new._replace(
            taken=state.taken + due.astype(jnp.int32),
            step=state.step.at[slot].set(jnp.where(due, state.count, state.step[slot])),
            seen=lax.dynamic_update_index_in_dim(state.seen, row, slot, 0),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def history_of(tree: Any, notes: MonitorHistory | None = None) -> MonitorHistory:
    """Returns the kept snapshots in order of time, and of the notes on a step what belongs to them.

    `tree` holds the state of the monitored optimiser; raises `ValueError` unless it is one, and that of one run.
    """
    is_state = lambda node: isinstance(node, MonitorState)  # noqa: E731
    states = list(filter(is_state, jax.tree.leaves(tree, is_leaf=is_state)))
    if len(states) != 1:
        raise ValueError(
            f"optimizer_state holds the states of {len(states)} monitored optimisers; accepted is one: the state that "
            "monitor.optimizer(...) began with its init, or the part of a larger state with one of them."
        )
    state = states[0]
    # Flax NNX keeps each of these in a variable.
    taken, steps, seen = (np.asarray(jax.tree.leaves(part)[0]) for part in (state.taken, state.step, state.seen))
    if taken.ndim:
        raise ValueError(
            f"optimizer_state is of {taken.shape} runs; accepted is one run's: take it out with "
            "jax.tree.map(lambda leaf: leaf[0], optimizer_state)."
        )
    layers = names_of(state.about.layers)
    slots = np.arange(max(0, int(taken) - len(seen)), int(taken)) % len(seen)
    step, (gradient, ratio, zeros, finite) = steps[slots].astype(int), np.moveaxis(seen[slots].astype(np.float64), 1, 0)
    found = MonitorHistory(
        step,
        Profile.from_log10(ratio, layers=layers, quantity="update over weight"),
        finite == 1,
        Profile.from_log10(gradient, layers=layers, quantity="norm of the gradient"),
        zeros,
    )
    if notes is None or not len(step) or not np.isin(step, notes.step).all():
        return found
    where = np.searchsorted(notes.step, step)
    loss, seconds = (None if part is None else part[where] for part in (notes.loss, notes.seconds_per_step))
    return replace(found, loss=loss, seconds_per_step=seconds)


# ---- Layers and snapshots of them


def arrays_by_holder(tree: Any) -> dict[str, list[Any]]:
    """Returns the floating-point arrays of a tree by the name of what holds them."""
    found: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact):
            found.setdefault(_holder(path), []).append(leaf)
    return found


def layers_of(params: Any, stacked: Sequence[str] = (), network: Network | None = None) -> Layers:
    """Returns the layers of a tree of parameters: of a `network` its own, else those of each holder.

    Raises `ValueError` for parameters without arrays or of another network, and for `stacked` names that are not there.
    """
    found = arrays_by_holder(params)
    if not found:
        raise ValueError("params holds no floating-point array; accepted is a pytree with at least one.")
    if network is not None:
        return tuple((holder, _stage(network, holder)) for holder in found)
    for name in stacked:
        known_name("stacked", name, found)
    return tuple(
        (holder, tuple(f"{holder}.{index}" for index in range(len(arrays[0]))) if holder in stacked else (holder,))
        for holder, arrays in found.items()
    )


def names_of(layers: Layers) -> tuple[str, ...]:
    """Returns all layers' names, in their order."""
    return tuple(name for _, names in layers for name in names)


def snapshot(layers: Layers, gradient: Any, updates: Any, params: Any) -> Any:
    """Returns what is seen of an optimiser's update, `(4, layer)`; `params` may be `None`.

    The rows are the log10 norm of the gradient, the log10 of the update's norm over that of the parameters, the share
    of the gradient's entries that are exactly 0, and whether all three trees are finite.
    """
    trees = [arrays_by_holder(tree) for tree in (gradient, updates, params)]
    columns = []
    for holder, names in layers:
        arrays = [[leaf.reshape(len(names), -1) for leaf in tree.get(holder, ())] for tree in trees]
        slope, update, weight = (_log2_norms(one) for one in arrays)
        finite = [jnp.isfinite(leaf).all(axis=1) for one in arrays for leaf in one]
        rows = (
            slope * LOG10_OF_2,
            (update - weight) * LOG10_OF_2,
            _zero_shares(arrays[0]),
            reduce(jnp.logical_and, finite, jnp.array(True)),
        )
        columns.append(jnp.stack([jnp.broadcast_to(jnp.asarray(row, jnp.float32), (len(names),)) for row in rows]))
    return jnp.concatenate(columns, axis=1)


def _holder(path: tuple[Any, ...]) -> str:
    """The name of what holds an array, or of the array where nothing does."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]  # Flax NNX keeps every array in a variable
    return jax.tree_util.keystr(path[:-1] or path, simple=True, separator=".") or "parameters"


def _stage(network: Network, holder: str) -> tuple[str, ...]:
    """The names of a stage's layers, whose parameters are an entry of the network's tuple."""
    if not holder.isdigit() or int(holder) >= len(network.stages):
        raise ValueError(f"params has {holder!r}, which is no stage of network; accepted are its own params.")
    ends = np.cumsum([0, *(stage.repeats for stage in network.stages)])
    return network.layer_names[ends[int(holder)] : ends[int(holder) + 1]]


def _log2_norms(arrays: list[Any]) -> Any:
    """The log2 norm of each of the layers that these arrays `(layer, entry)` hold; NaN where there are none."""
    if not arrays:
        return jnp.nan
    wide = jnp.float64 if any(jnp.finfo(array.dtype).bits > 32 for array in arrays) else jnp.float32
    exponent, square = sum_of_squares(floating(arrays, wide), kept=1)
    return exponent.astype(jnp.float32) + jnp.log2(square).astype(jnp.float32) / 2


def _zero_shares(arrays: list[Any]) -> Any:
    zeros = [jnp.sum(array == 0, axis=1, dtype=jnp.float32) for array in arrays]
    return sum(zeros) / np.float32(max(sum(array.shape[1] for array in arrays), 1)) if arrays else jnp.nan
