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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property, lru_cache, partial, wraps
from importlib import import_module
from math import log10, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Bool, Float, Int

from gradcourse.checks import known_name, positive_integer
from gradcourse.claims import Table
from gradcourse.networks import Network

if TYPE_CHECKING:
    from gradcourse.report import Finding

__all__ = ["Monitor", "MonitorHistory", "MonitorState", "monitor"]

LOG10_OF_2 = log10(2)
SHOWN = 12  # layers, in a table or a plot
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
    return Monitor(every, keep, _Grouping(tuple(stacked), names, repeats))


@dataclass(frozen=True)
class MonitorHistory:
    """What a monitor has seen, in order of time, as NumPy arrays; `None` where this kind of monitor does not look.

    - `layers`: their names; `step`: how many steps had been taken before the one that was looked at, `(snapshot,)`;
    - `log10_gradient`: the log10 norm of each layer's gradient, `(snapshot, layer)`; minus infinity where it is zero;
    - `update_to_weight`: the norm of the update over that of the parameters; infinite where those are all zero, NaN
      where the update is too or the optimiser was given no parameters;
    - `zero_share`: the share of the gradient's entries that are exactly zero;
    - `finite`: whether gradient, update and parameters were all finite;
    - `loss`: what the step returned as such, `(snapshot,)`;
    - `seconds_per_step`: from the last snapshot's end to this one's, over the steps between, `(snapshot,)`: what the
      loop takes, with all else it does. NaN at the first snapshot, where the step is compiled.

    Only a monitored optimiser knows gradients, only a monitored step knows loss and time.
    """

    layers: tuple[str, ...]
    step: Int[np.ndarray, " snapshot"]
    update_to_weight: Float[np.ndarray, "snapshot layer"]
    finite: Bool[np.ndarray, "snapshot layer"]
    log10_gradient: Float[np.ndarray, "snapshot layer"] | None = None
    zero_share: Float[np.ndarray, "snapshot layer"] | None = None
    loss: Float[np.ndarray, " snapshot"] | None = None
    seconds_per_step: Float[np.ndarray, " snapshot"] | None = None

    def __repr__(self) -> str:
        count, depth = len(self.step), len(self.layers)
        if not count:
            return f"0 snapshots of {depth} layers"
        head = f"{count} snapshot{'s'[: count != 1]} of {depth} layers, steps {self.step[0]} to {self.step[-1]}"
        when = sorted({0, count // 2, count - 1})
        columns: list[tuple[str, list[str]]] = [("layer", list(self.layers))]
        for name, values, form in (
            ("log10 gradient", self.log10_gradient, ".2g"),
            ("update/weight", self.update_to_weight, ".2g"),
        ):
            for snapshot in when if values is not None else ():
                label = f"step {self.step[snapshot]}"
                words = [f"{value:{form}}" for value in values[snapshot]] if values is not None else []
                columns.append((f"{name}, {label}" if snapshot == when[0] else label, words))
        if self.zero_share is not None:
            columns.append(("zeros", [f"{share:.0%}" for share in self.zero_share[-1]]))
        columns.append(("finite", ["yes" if good else "NO" for good in np.all(self.finite, axis=0).tolist()]))
        rows = list(zip(*(entries for _, entries in columns), strict=True))
        shown = _thinned(depth)
        lines = [head, repr(Table([heading for heading, _ in columns], [rows[index] for index in shown]))]
        if len(shown) < depth:
            lines.append(f"({depth - len(shown)} layers between these are not shown)")
        if self.loss is not None:
            lines.append("loss " + ", ".join(f"{self.loss[snapshot]:.4g}" for snapshot in when) + " at these steps")
        if self.seconds_per_step is not None and np.isfinite(self.seconds_per_step).any():
            lines.append(f"{np.nanmedian(self.seconds_per_step):.3g} seconds per step (median)")
        return "\n".join(lines)

    def plot(self, quantity: str | None = None) -> Any:
        """Returns a figure of a quantity of every layer against the step; of many layers, some.

        `quantity` is `"log10_gradient"`, `"update_to_weight"` or `"zero_share"`, by default the first that was seen.
        """
        from gradcourse.plots import layers_over_steps  # with it comes matplotlib

        words = {
            "log10_gradient": (r"$\log_{10}$ norm of the gradient", ""),
            "update_to_weight": ("update / weight", "y"),
            "zero_share": ("share of zeros in the gradient", ""),
        }
        there = [name for name in words if getattr(self, name) is not None]
        name = there[0] if quantity is None else known_name("quantity", quantity, there)
        (ylabel, log), shown = words[name], _thinned(len(self.layers))
        values = getattr(self, name)[:, shown]
        layers = [self.layers[index] for index in shown]
        values = np.where(np.isfinite(values), values, np.nan)
        return layers_over_steps(self.step, values, layers=layers, ylabel=ylabel, log=log)

    def findings(self) -> "tuple[Finding, ...]":
        """Returns what is wrong, by the rules of `gradcourse.findings`: layers that are not finite, or frozen.

        A layer is frozen whose `update_to_weight` is below the threshold at each of the last three snapshots; with
        fewer there is no telling.

        >>> history = MonitorHistory(("a", "b"), np.arange(3), np.array([[1e-3, 1e-9]] * 3), np.ones((3, 2), bool))
        >>> for finding in history.findings():
        ...     print(finding.kind, finding.layers, finding.evidence)
        frozen ('b',) at step 2 the update of b is at most 1e-09 of its weights
        """
        from gradcourse.findings import CHAPTERS, THRESHOLDS  # with them comes much of SciPy
        from gradcourse.report import Finding

        found = []
        bad = np.logical_not(np.asarray(self.finite))
        if bad.any():
            first = int(np.argmax(bad.any(axis=1)))
            names = tuple(name for name, gone in zip(self.layers, bad.any(axis=0), strict=True) if gone)
            began = [name for name, gone in zip(self.layers, bad[first], strict=True) if gone]
            evidence = f"NaN or infinity since step {self.step[first]}, first seen in {_listed(began)}"
            rule = "the gradient, the update or a parameter holds NaN or infinity at a snapshot"
            advice = "go back to a checkpoint from before that step, and diagnose it there."
            found.append(Finding("not finite", names, evidence, rule, np.nan, CHAPTERS["not finite"], advice))
        least = THRESHOLDS["frozen"]
        last = self.update_to_weight[-3:]
        names = tuple(name for name, ratio in zip(self.layers, last.T, strict=True) if np.all(ratio < least))
        if names and len(last) == 3:
            most = max(last[-1][self.layers.index(name)] for name in names)
            few = "its" if len(names) == 1 else "their"
            evidence = f"at step {self.step[-1]} the update of {_listed(names)} is at most {most:.2g} of {few} weights"
            rule = f"update over weight is below {least:g} at each of the last three snapshots"
            advice = "raise the learning rate (of these layers), or look at why their gradient is small: diagnose it."
            found.append(Finding("frozen", names, evidence, rule, least, CHAPTERS["frozen"], advice))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as lists, for JSON: infinities as words, `None` for NaN and for what was not looked at."""

        def plain(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return plain(value.tolist())
            if isinstance(value, list | tuple):
                return [plain(entry) for entry in value]
            if isinstance(value, float) and not np.isfinite(value):
                return None if np.isnan(value) else str(value)
            return value

        return {name: plain(value) for name, value in asdict(self).items()}

    def write(self, writer: Any, prefix: str = "gradcourse") -> None:
        """Writes every scalar to `writer`, which has `add_scalar(tag, value, step)`, as TensorBoard's writers do.

        Instead of a writer give a folder, and one of tensorboardX is opened there and closed again; that raises
        `ImportError` where tensorboardX is not installed. Tags are `gradcourse/log10_gradient/encoder.dense` and so
        on. All of the history is written: call it once, at the end, or with a writer of your own each time.
        """
        if isinstance(writer, str | Path):
            with _tensorboard(writer) as opened:
                return self.write(opened, prefix)
        for name in ("loss", "seconds_per_step", "log10_gradient", "update_to_weight", "zero_share", "finite"):
            values = getattr(self, name)
            for step, now in zip(self.step.tolist(), values if values is not None else (), strict=False):
                tags = [f"{prefix}/{name}"] if np.ndim(now) == 0 else [f"{prefix}/{name}/{one}" for one in self.layers]
                for tag, value in zip(tags, np.atleast_1d(now), strict=True):
                    writer.add_scalar(tag, float(value), step)
        return None


def _listed(names: Sequence[str]) -> str:
    """At most three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tensorboard(folder: str | Path) -> Any:
    try:
        return import_module("tensorboardX").SummaryWriter(str(folder))
    except ImportError:
        raise ImportError(
            f"writer={str(folder)!r} is a folder, into which tensorboardX would write, and that is not installed; "
            'accepted too is any writer with add_scalar. Write pip install "gradcourse[tensorboard]".'
        ) from None


# ---- layers of anybody's parameters


@dataclass(frozen=True)
class _Group:
    """Arrays that belong together: one layer, or `names` layers along their first axis."""

    names: tuple[str, ...]
    stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.names),) if self.stacked else ()


@dataclass(frozen=True)
class _Grouping:
    """How a pytree's arrays are put together to layers."""

    stacked: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    repeats: tuple[int, ...] = ()

    def __call__(self, tree: Any) -> dict[str, list[Any]]:
        """The floating-point arrays of a tree by the name of what holds them."""
        found: dict[str, list[Any]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact):
                found.setdefault(_holder(path), []).append(leaf)
        return found

    def groups(self, tree: Any) -> dict[str, _Group]:
        """What a tree of parameters consists of."""
        found = self(tree)
        if self.names is not None:
            return self._stages(found)
        for name in self.stacked:
            known_name("stacked", name, found)
        return {
            name: _Group(tuple(f"{name}.{index}" for index in range(len(leaves[0]))), True)
            if name in self.stacked
            else _Group((name,), False)
            for name, leaves in found.items()
        }

    def _stages(self, found: Mapping[str, Any]) -> dict[str, _Group]:
        """The stages of a network, each a tuple's entry; those without parameters have no arrays."""
        ends = np.cumsum(self.repeats)
        groups = {}
        for name in found:
            if not name.isdigit() or int(name) >= len(ends):
                raise ValueError(f"params has {name!r}, which is no stage of network; accepted are its own params.")
            end, repeats = int(ends[int(name)]), self.repeats[int(name)]
            groups[name] = _Group((self.names or ())[end - repeats : end], True)
        return groups


def _holder(path: tuple[Any, ...]) -> str:
    """The name of what holds an array, or of the array where nothing does."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]  # Flax NNX keeps every array in a variable
    return jax.tree_util.keystr(path[:-1] or path, simple=True, separator=".") or "parameters"


def _log2_norms(group: _Group, leaves: list[Any] | None) -> Any:
    """The log2 norm of each layer of a group, `(layer,)`; NaN where there are no such arrays.

    Divided by the power of two next to its largest entry, no layer leaves the floating-point range when squared.
    """
    if not leaves:
        return jnp.full(len(group.names), jnp.nan, jnp.float32)
    rows = [part for leaf in leaves for part in _rows(group, leaf)]
    peak = jnp.stack([jnp.abs(row).max(axis=1, initial=0) for row in rows]).max(axis=0)
    limit = -int(jnp.finfo(peak.dtype).minexp)
    exponent = jnp.clip(jnp.frexp(peak)[1], -limit, limit)
    factor = jnp.ldexp(jnp.ones_like(peak), -exponent)[:, None]
    square = jnp.stack([jnp.square(row * factor).sum(axis=1) for row in rows]).sum(axis=0)
    return exponent.astype(jnp.float32) + jnp.log2(square).astype(jnp.float32) / 2


def _rows(group: _Group, leaf: Any) -> list[Any]:
    """An array as `(layer, entry)`, a complex one as two, in float32 or, if it is wider, in float64."""
    parts = (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)
    wide = jnp.float64 if jnp.finfo(leaf.dtype).bits > 32 else jnp.float32
    return [part.reshape(len(group.names), -1).astype(wide) for part in parts]


def _finite(group: _Group, leaves: list[Any]) -> Any:
    """Whether each layer of a group is finite, `(layer,)`."""
    entries = [jnp.isfinite(leaf).reshape(len(group.names), -1).all(axis=1) for leaf in leaves]
    return jnp.stack(entries).all(axis=0)


def _zeros(group: _Group, leaves: list[Any] | None) -> Any:
    """The share of exact zeros of each layer of a group, `(layer,)`."""
    if not leaves:
        return jnp.full(len(group.names), jnp.nan, jnp.float32)
    size = sum(prod(leaf.shape) for leaf in leaves) // len(group.names)
    counts = [jnp.sum(leaf.reshape(len(group.names), -1) == 0, axis=1, dtype=jnp.float32) for leaf in leaves]
    return jnp.stack(counts).sum(axis=0) / np.float32(max(size, 1))


# ---- the optimiser


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class _About:
    """What of a monitor's state is no array: it has no leaves as a pytree.

    `look` is whether to take a snapshot at this update, or `None` where the compiled program decides by its count.
    """

    every: int
    grouping: _Grouping
    groups: tuple[tuple[str, _Group], ...]
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
        slope, update, weight = (_log2_norms(group, one) for one in leaves)
        finite = [_finite(group, one) for one in leaves if one]
        good = jnp.stack(finite).all(axis=0) if finite else jnp.ones(len(group.names), bool)
        rows = (slope * LOG10_OF_2, (update - weight) * LOG10_OF_2, _zeros(group, leaves[0]), good)
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
    grouping: _Grouping
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
def _moved(groups: tuple[tuple[str, _Group], ...], before: Any, after: Any) -> tuple[Any, Any]:
    """The log10 of the update over the weight before it, `(layer,)`, and whether both are finite."""
    ratios, finite = [], []
    for name, group in groups:
        change = [one - other for one, other in zip(after[name], before[name], strict=True)]
        ratios.append((_log2_norms(group, change) - _log2_norms(group, before[name])) * LOG10_OF_2)
        finite.append(_finite(group, after[name]) & _finite(group, before[name]))
    return jnp.concatenate(ratios), jnp.concatenate(finite)


def _thinned(count: int) -> list[int]:
    """Indices of at most `SHOWN` of so many layers, the first and the last included."""
    return np.unique(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int)).tolist()
