"""An optimiser that keeps the last snapshots of its gradients and updates in its own state: pure, and of fixed size."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.diagnosis.snapshots import ROWS, Layers, names_of, snapshot
from gradcourse.profile import Profile

__all__ = ["MonitorState", "history_of", "monitored", "state_in", "with_look"]


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
    - `step`, `seen`: the count at each snapshot, `(keep,)`, and what was seen, `(keep, 4, layer)`, the oldest
      overwritten first;
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
        seen = jnp.full((keep, ROWS, len(names_of(about.layers))), jnp.nan, jnp.float32)
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

        def now() -> Any:
            return snapshot(state.about.layers, gradient, updates, params)

        def as_before() -> Any:
            return lax.dynamic_index_in_dim(state.seen, slot, keepdims=False)

        # Only the row of the snapshot passes the branch: the whole of `seen` would be copied at every step.
        row = now() if look else lax.cond(due, now, as_before)
        return updates, new._replace(
            taken=state.taken + due.astype(jnp.int32),
            step=state.step.at[slot].set(jnp.where(due, state.count, state.step[slot])),
            seen=lax.dynamic_update_index_in_dim(state.seen, row, slot, 0),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def with_look(state: MonitorState, look: bool | None) -> MonitorState:
    """Returns the state of an optimiser that is told whether to take a snapshot at its next update."""
    return state._replace(about=replace(state.about, look=look))


def state_in(tree: Any) -> MonitorState:
    """Returns the state of the one monitored optimiser in an optimiser's state; else raises `ValueError`."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, MonitorState))
    states = [node for node in nodes if isinstance(node, MonitorState)]
    if len(states) != 1:
        raise ValueError(
            f"optimizer_state holds the states of {len(states)} monitored optimisers; accepted is one: the state that "
            "monitor.optimizer(...) began with its init, or the part of a larger state with one of them."
        )
    return states[0]


def history_of(state: MonitorState, notes: MonitorHistory | None = None) -> MonitorHistory:
    """Returns the kept snapshots in order of time, and of the notes on a step what belongs to them."""
    # Flax NNX keeps each of these in a variable.
    taken, steps, seen = (np.asarray(jax.tree.leaves(part)[0]) for part in (state.taken, state.step, state.seen))
    if taken.ndim:
        raise ValueError(
            f"optimizer_state is of {taken.shape} runs; accepted is one run's: take it out with "
            "jax.tree.map(lambda leaf: leaf[0], optimizer_state)."
        )
    keep, layers = len(seen), names_of(state.about.layers)
    slots = np.arange(max(0, int(taken) - keep), int(taken)) % keep
    gradient, ratio, zeros, finite = np.moveaxis(seen[slots].astype(np.float64), 1, 0)
    step = steps[slots].astype(int)
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
