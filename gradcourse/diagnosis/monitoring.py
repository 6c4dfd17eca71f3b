r"""A monitor for training: what becomes of every layer's gradient and update while a model trains, in bounded memory.

`Monitor.optimizer` wraps an optax optimiser. The result is an optimiser like any other, whose updates are those of the
wrapped one; its state also holds the last `keep` snapshots, taken every `every` updates:

>>> import jax, optax
>>> watch = monitor(every=2, keep=100)
>>> optimizer = watch.optimizer(optax.sgd(0.1))
>>> params = {"first": {"weight": jnp.full((2, 2), 1e-3)}, "second": {"weight": jnp.ones((2, 1))}}
>>> loss = lambda params: jnp.sum(jnp.ones((1, 2)) @ params["first"]["weight"] @ params["second"]["weight"])
>>> state = optimizer.init(params)
>>> for _ in range(5):
...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
...     params = optax.apply_updates(params, updates)
>>> history = watch.history(state)
>>> history
3 snapshots of 2 layers, steps 0 to 4
layer   log10 gradient, step 0  step 2  step 4  update/weight, step 0  step 2  step 4  zeros  finite
first   0.3                     0.31    0.35    1e+02                  0.51    0.28    0%     yes
second  -2.5                    -0.25   0.061   0.0002                 0.039   0.073   0%     yes

`Monitor.wrap` wraps a whole training step, of any kind. It is the impure twin: what it sees, the loss, the time a step
takes and the size of the update, is kept in the monitor itself. Both together see everything, and cost least.

`gradcourse bench monitor` measures what it costs: a hundred steps of Adam with it, one of them a snapshot, against a
hundred without, in turn in one run. On two cores of a CPU, with steps of 4 to 7 ms, a wrapped step whose optimiser is
monitored took about 1 % more; the monitored optimiser alone, whose compiled step must be ready for a snapshot at any
time, about 12 %. So wrap the step where there is a loop in Python. About 0.02 ms a step are spent in any case, which is
much where a step takes 0.1 ms.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, lru_cache, partial, wraps
from math import log10
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gradcourse._checks import positive_integer
from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.diagnosis.parameter_groups import Group, Grouping, all_finite, log2_norms, zero_shares
from gradcourse.nn.network import Network

if TYPE_CHECKING:
    pass

__all__ = ["Monitor", "MonitorState", "monitor"]

LOG10_OF_2 = log10(2)
ROWS = 4  # of a snapshot: log10 gradient, log10 update to weight, share of zeros, finite


def monitor(
    every: int = 100, keep: int = 1000, *, network: Network | None = None, stacked: Sequence[str] = ()
) -> "Monitor":
    """Returns a monitor that looks at every `every`-th step, the first included, and keeps the last `keep` snapshots.

    A *layer* is whatever holds arrays directly: those of `params["encoder"]["dense"]` together are `encoder.dense`,
    and an array at the top of the tree is a layer by itself. Where layers of one shape are stacked in one array,
    `stacked` names these, and every entry of the first axis is a layer: `blocks.dense.0`, `blocks.dense.1`, ...; a
    `network` of this package stacks its own, and they get its layers' names.

    Raises `TypeError` or `ValueError` unless both numbers are whole and at least 1.
    """
    if isinstance(stacked, str):
        raise TypeError(f"stacked={stacked!r} is a name; accepted is a sequence of names: write [{stacked!r}].")
    names = network.layer_names if network is not None else None
    repeats = tuple(stage.repeats for stage in network.stages) if network is not None else ()
    every, keep = positive_integer("every", every), positive_integer("keep", keep)
    return Monitor(every, keep, Grouping(tuple(stacked), names, repeats))


# ---- the optimiser


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class _About:
    """What of a monitor's state is no array: it has no leaves as a pytree.

    `look` is whether to take a snapshot at this update, or `None` where the compiled program decides by its count.
    """

    every: int
    grouping: Grouping
    groups: tuple[tuple[str, Group], ...]
    look: bool | None = None

    # JAX asks for both at every call of a compiled function, and there may be hundreds of layers.
    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _About) and self._fields == other._fields)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _fields(self) -> tuple[Any, ...]:
        return self.every, self.grouping, self.groups, self.look

    @cached_property
    def _hash(self) -> int:
        return hash(self._fields)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(name for _, group in self.groups for name in group.names)


@lru_cache
def _told(about: _About, look: bool | None) -> _About:
    """The same with another `look`."""
    return _one(replace(about, look=look))


@lru_cache
def _one(about: _About) -> _About:
    """The same object for equal ones, which are then compared quickly."""
    return about


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


def _update(
    inner: optax.GradientTransformationExtraArgs, gradient: Any, state: MonitorState, params: Any = None, **extra: Any
) -> tuple[Any, MonitorState]:
    updates, inner_state = inner.update(gradient, state.inner, params, **extra)
    new = state._replace(inner=inner_state, count=optax.safe_increment(state.count))
    if (look := state.about.look) is False:
        return updates, new
    slot = state.taken % len(state.seen)
    due = jnp.asarray(True) if look else state.count % state.about.every == 0

    def snapshot() -> Any:
        return _snapshot(state.about, gradient, updates, params)

    def as_before() -> Any:
        return lax.dynamic_index_in_dim(state.seen, slot, keepdims=False)

    # Only the row of the snapshot passes the branch: the whole of `seen` would be copied at every step.
    row = snapshot() if look else lax.cond(due, snapshot, as_before)
    step = jnp.where(due, state.count, state.step[slot])
    new = new._replace(
        taken=state.taken + due.astype(jnp.int32),
        step=state.step.at[slot].set(step),
        seen=lax.dynamic_update_index_in_dim(state.seen, row, slot, 0),
    )
    return updates, new


def _snapshot(about: _About, gradient: Any, updates: Any, params: Any) -> Any:
    """One snapshot, `(4, layer)`."""
    trees = [about.grouping(tree) for tree in (gradient, updates, params)]
    columns = []
    for name, group in about.groups:
        leaves = [tree.get(name) for tree in trees]
        slope, update, weight = (log2_norms(group, one) for one in leaves)
        finite = [all_finite(group, one) for one in leaves if one]
        good = jnp.stack(finite).all(axis=0) if finite else jnp.ones(len(group.names), bool)
        rows = (slope * LOG10_OF_2, (update - weight) * LOG10_OF_2, zero_shares(group, leaves[0]), good)
        columns.append(jnp.stack([jnp.asarray(row, jnp.float32) for row in rows]))
    return jnp.concatenate(columns, axis=1)


def _state_in(tree: Any) -> MonitorState:
    """The one monitor's state in an optimiser's state."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, MonitorState))
    states = [node for node in nodes if isinstance(node, MonitorState)]
    if len(states) != 1:
        raise ValueError(
            f"optimizer_state holds the states of {len(states)} monitored optimisers; accepted is one: the state that "
            "monitor.optimizer(...) began with its init, or the part of a larger state with one of them."
        )
    return states[0]


# ---- the monitor


class Monitor:
    """A monitor of a training run, as `monitor` makes it: of an optimiser, of a whole step, or of both."""

    def __init__(self, every: int, keep: int, grouping: Any):
        self.every, self.keep = every, keep
        self._grouping = grouping
        self._recorder: _Recorder | None = None

    def __repr__(self) -> str:
        return f"monitor(every={self.every}, keep={self.keep})"

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        """Returns an optimiser whose updates are those of `inner` and whose state is a `MonitorState`.

        Pure: it works under `jit`, `lax.scan` and `vmap`, with donated buffers, inside and around `optax.chain` and
        the like. What is looked at are the gradients as they come in here, and the updates as they leave: wrap the
        whole chain to see the model's gradients. With `optax.MultiSteps`, which makes an update of several gradients,
        give it the monitored optimiser rather than the other way round. Pass `params` to `update`, or there are no
        weights to compare the update with. Under `vmap` over runs a snapshot's cost is paid at every step.

        Between snapshots nothing is looked at: a gradient that was not finite just once may go unseen.
        """
        if not (hasattr(inner, "init") and hasattr(inner, "update")):
            raise TypeError(
                f"inner={inner!r} is a {type(inner).__name__}; accepted is an optax optimiser: optax.adam(1e-3), ..."
            )
        full = optax.with_extra_args_support(inner)

        def init(params: Any) -> MonitorState:
            groups = tuple(self._grouping.groups(params).items())
            if not groups:
                raise ValueError("params holds no floating-point array; accepted is a pytree with at least one.")
            about = _one(_About(self.every, self._grouping, groups))
            seen = jnp.full((self.keep, ROWS, len(about.layers)), jnp.nan, jnp.float32)
            count, taken, step = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(self.keep, jnp.int32)
            return MonitorState(full.init(params), count, taken, step, seen, about)

        return optax.GradientTransformationExtraArgs(init, partial(_update, full))

    def wrap(
        self, step: Callable[..., Any], *, params: int = 0, result: int | None = 0, loss: int | None = None
    ) -> Callable[..., Any]:
        """Returns a function that does and returns what `step` does, and notes what it sees at every `every`-th call.

        `params` is the position among `step`'s arguments of the parameters, any pytree; `result` that of the new ones
        in what it returns, or `None` where it returns nothing else; `loss` that of the loss, a scalar, or `None`.
        `step` may donate its arguments: at a snapshot the parameters are copied before the call. Only there the
        device is waited for. So memory for one more copy of the parameters is needed.

        Where an argument holds the state of a monitored optimiser, by itself, in a tuple, list or dictionary, or in a
        data class with a `replace` (a train state of Flax's), the calls decide when that looks: `step` is compiled
        twice, with the looking and without, and between snapshots it costs next to nothing. Then `params` and
        `result` are not used, for the optimiser's state has it all but loss and time: see `history`.

        Not pure: the notes are in this monitor, read by `history()`. So wrap the jitted step, not what is inside
        `jit`. To wrap another step starts new notes.

        >>> import optax
        >>> watch = monitor(every=2)
        >>> step = watch.wrap(jax.jit(lambda weight, x: (weight * 0.5, weight * x)), loss=1)
        >>> weight = jnp.asarray(1.0)
        >>> for _ in range(5):
        ...     weight, loss = step(weight, 2.0)
        >>> watch.history().loss
        array([2.   , 0.5  , 0.125])
        """
        recorder = _Recorder(self.every, deque(maxlen=self.keep), self._grouping)
        self._recorder = recorder

        @wraps(step)
        def monitored(*args: Any, **kwargs: Any) -> Any:
            number = recorder.calls
            recorder.calls += 1
            due = number % self.every == 0
            args = recorder.at_arguments(args, due)
            if not due:
                return recorder.at_results(step(*args, **kwargs), None)
            watched = recorder.paths["arguments"] is not None
            before = {} if watched else recorder.copied(_taken("params", args, params))
            results = recorder.at_results(step(*args, **kwargs), None)
            after = {} if watched else results if result is None else _taken("result", results, result)
            recorder.note(number, before, after, None if loss is None else _taken("loss", results, loss), results)
            return results

        return monitored

    def history(self, optimizer_state: Any = None) -> MonitorHistory:
        """Returns what was seen: of the optimiser whose state this is, or without one of the step that was wrapped.

        The state is found anywhere in a larger one, such as that of `optax.chain` or of Flax's `nnx.Optimizer`. Where
        a wrapped step has noted the same steps, their loss and time are in it, too. Raises `ValueError` where there is
        no state of a monitored optimiser, more than one, or one of many runs under `vmap`.
        """
        notes = self._recorder.history() if self._recorder is not None else None
        if optimizer_state is not None:
            return _history(_state_in(optimizer_state), notes)
        if notes is None:
            raise ValueError(
                "optimizer_state=None asks for a wrapped step's history, and no step is wrapped; accepted is the "
                "state of monitor.optimizer(...), or wrap a step with monitor.wrap(step)."
            )
        return notes


def _taken(name: str, values: Any, index: int) -> Any:
    """One of a step's arguments or results."""
    if not isinstance(values, tuple | list) or not -len(values) <= index < len(values):
        what = f"{len(values)} values" if isinstance(values, tuple | list) else f"a {type(values).__name__}"
        raise ValueError(f"{name}={index} is accepted as a position; the step was given or returned {what}.")
    return values[index]


def _history(state: MonitorState, notes: MonitorHistory | None) -> MonitorHistory:
    """The ring in order of time, and of the notes on the step what belongs to its snapshots."""
    # Flax NNX keeps each of these in a variable.
    taken, steps, seen = (np.asarray(jax.tree.leaves(part)[0]) for part in (state.taken, state.step, state.seen))
    if taken.ndim:
        raise ValueError(
            f"optimizer_state is of {taken.shape} runs; accepted is one run's: take it out with "
            "jax.tree.map(lambda leaf: leaf[0], optimizer_state)."
        )
    keep = len(seen)
    slots = np.arange(max(0, int(taken) - keep), int(taken)) % keep
    gradient, ratio, zeros, finite = np.moveaxis(seen[slots].astype(np.float64), 1, 0)
    step = steps[slots].astype(int)
    of_step = dict(zip(notes.step.tolist(), range(len(notes.step)), strict=True)) if notes is not None else {}
    loss = seconds = None
    if notes is not None and len(step) and all(one in of_step for one in step.tolist()):
        where = [of_step[one] for one in step.tolist()]
        loss, seconds = (None if part is None else part[where] for part in (notes.loss, notes.seconds_per_step))
    with np.errstate(over="ignore"):
        ratio = 10.0**ratio
    return MonitorHistory(state.about.layers, step, ratio, finite == 1, gradient, zeros, loss, seconds)


# ---- the step


@dataclass
class _Recorder:
    """The notes on one wrapped step."""

    every: int
    notes: deque[tuple[Any, ...]]
    grouping: Grouping
    layers: tuple[str, ...] = ()
    calls: int = 0
    last: tuple[int, float] | None = None  # number and end of the last snapshot
    with_loss: bool = False
    paths: dict[str, tuple[Any, ...] | None] = field(default_factory=dict)

    def at_arguments(self, args: Any, look: bool | None) -> Any:
        """The arguments, with `look` said to the monitored optimiser whose state is among them."""
        return self._steered("arguments", args, look)

    def at_results(self, results: Any, look: bool | None) -> Any:
        """The results, likewise."""
        return self._steered("results", results, look)

    def _steered(self, side: str, tree: Any, look: bool | None) -> Any:
        if side not in self.paths:
            self.paths[side] = _path(tree)  # looked for once: it would take longer than all else here
        path = self.paths[side]
        return tree if path is None else _replaced(tree, path, look)

    def copied(self, params: Any) -> Any:
        """The parameters by layer, in memory of their own."""
        return _copy(self.grouping(params))

    def note(self, number: int, before: Any, after: Any, loss: Any, results: Any) -> None:
        """Waits for the step, and notes it."""
        jax.block_until_ready(results)
        now = time.perf_counter()
        groups, ratio, finite = self.grouping.groups(after) if before else {}, np.zeros(0), np.zeros(0, bool)
        if groups:
            ratio, finite = _moved(tuple(groups.items()), before, self.grouping(after))
        self.layers = tuple(name for group in groups.values() for name in group.names)
        seconds = (now - self.last[1]) / (number - self.last[0]) if self.last else np.nan
        self.with_loss = loss is not None
        if np.ndim(loss):
            raise ValueError(f"loss is the position of an array of shape {np.shape(loss)}; accepted is a scalar's.")
        value = float(loss) if self.with_loss else np.nan
        self.notes.append((number, np.asarray(ratio), np.asarray(finite), value, seconds))
        self.last = (number, time.perf_counter())

    def history(self) -> MonitorHistory:
        """The notes as arrays."""
        number, ratio, finite, loss, seconds = zip(*self.notes, strict=True) if self.notes else ((),) * 5
        shape = (len(self.notes), len(self.layers))
        with np.errstate(over="ignore"):
            return MonitorHistory(
                self.layers,
                np.array(number, int),
                10.0 ** np.array(ratio, np.float64).reshape(shape),
                np.array(finite, bool).reshape(shape),
                loss=np.array(loss, np.float64) if self.with_loss else None,
                seconds_per_step=np.array(seconds, np.float64),
            )


def _path(tree: Any) -> tuple[Any, ...] | None:
    """The keys that lead to a `MonitorState`, through containers in which it may be replaced.

    Named tuples are none of them: an optimiser such as `optax.MultiSteps` decides by itself when to update.
    """
    if isinstance(tree, MonitorState):
        return ()
    entries: Any = ()
    if type(tree) in (tuple, list):
        entries = enumerate(tree)
    elif type(tree) is dict:
        entries = tree.items()
    elif is_dataclass(tree) and hasattr(tree, "replace"):
        entries = ((one.name, getattr(tree, one.name)) for one in fields(tree))
    for key, entry in entries:
        if (rest := _path(entry)) is not None:
            return (key, *rest)
    return None


def _replaced(tree: Any, path: tuple[Any, ...], look: bool | None) -> Any:
    """The tree with `look` in the `MonitorState` at the end of the path."""
    if not path:
        return tree._replace(about=_told(tree.about, look))
    key, *rest = path
    if hasattr(tree, "replace"):
        return tree.replace(**{key: _replaced(getattr(tree, key), tuple(rest), look)})
    entry = _replaced(tree[key], tuple(rest), look)
    if isinstance(tree, dict):
        return tree | {key: entry}
    return type(tree)((*tree[:key], entry, *tree[key + 1 :]))


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@partial(jax.jit, static_argnums=0)
def _moved(groups: tuple[tuple[str, Group], ...], before: Any, after: Any) -> tuple[Any, Any]:
    """The log10 of the update over the weight before it, `(layer,)`, and whether both are finite."""
    ratios, finite = [], []
    for name, group in groups:
        change = [one - other for one, other in zip(after[name], before[name], strict=True)]
        ratios.append((log2_norms(group, change) - log2_norms(group, before[name])) * LOG10_OF_2)
        finite.append(all_finite(group, after[name]) & all_finite(group, before[name]))
    return jnp.concatenate(ratios), jnp.concatenate(finite)
