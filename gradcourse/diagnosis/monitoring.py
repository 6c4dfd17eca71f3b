"""A monitor for training: what becomes of every layer's gradient and update while a model trains, in bounded memory.

`Monitor.optimizer` wraps an optax optimiser. The result is an optimiser like any other, whose updates are those of the
wrapped one; its state also holds the last `keep` snapshots, taken every `every` updates:

>>> import jax, jax.numpy as jnp, optax
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
takes and the size of the update, is kept in the wrapped step. Both together see everything, and cost least.

`gradcourse bench monitor` measures what it costs, of a hundred steps of Adam of which one is looked at. On two cores of
a CPU, with steps of 4 to 7 ms, a wrapped step whose optimiser is monitored took about 1 % more; the monitored optimiser
alone, whose compiled step must be ready for a snapshot at any time, about 12 %: wrap the step where there is a loop in
Python. About 0.02 ms a step are spent in any case, which is much where a step takes 0.1 ms.
"""

import inspect
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradcourse._checks import known_name, positive_integer
from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.diagnosis.monitored_optimizer import (
    Layers,
    MonitorState,
    arrays_by_holder,
    history_of,
    layers_of,
    monitored,
    names_of,
    snapshot,
)
from gradcourse.nn.network import Network
from gradcourse.profile import Profile

__all__ = ["Monitor", "MonitoredStep", "monitor"]

Tell = Callable[[Any, bool | None], Any]
_copy = jax.jit(partial(jax.tree.map, jnp.copy))


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
    every, keep = positive_integer("every", every), positive_integer("keep", keep)
    return Monitor(every, keep, partial(layers_of, stacked=tuple(stacked), network=network))


@dataclass(frozen=True)
class Monitor:
    """A monitor of a training run, as `monitor` makes it: of an optimiser, of a whole step, or of both.

    It is a setting and holds nothing of a run. `layers_of` says of which layers a pytree of parameters consists.
    """

    every: int
    keep: int
    layers_of: Callable[[Any], Layers] = field(repr=False)

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
        return monitored(inner, self.every, self.keep, self.layers_of)

    def wrap(
        self,
        step: Callable[..., Any],
        *,
        params: str | None = None,
        new_params: Callable[[Any], Any] | None = None,
        loss: Callable[[Any], Any] | None = None,
    ) -> "MonitoredStep":
        """Returns a step that does and returns what `step` does, and notes what it sees at every `every`-th call.

        `params` is the name of the argument that holds the parameters, any pytree; by default it is the first.
        `new_params` and `loss` are functions of what `step` returns: one returns the new parameters, by default the
        whole or its first entry, whichever has the form of the old ones; the other returns the loss, a scalar, or is
        left out. `step` may donate its arguments: at a snapshot, where alone the device is waited for, they are copied.

        Where an argument holds the state of a monitored optimiser, by itself, in a tuple, list or dictionary, or in a
        data class with a `replace` (a train state of Flax's), the calls decide when that looks: `step` is compiled
        twice, with the looking and without, and between snapshots it costs next to nothing. Then `params` and
        `new_params` are not used, for the optimiser's state has it all but loss and time.

        Not pure: the notes are in the step that is returned, read by its `history()`, or by `history(optimizer_state)`
        together with the snapshots of the optimiser. So wrap the jitted step, not what is inside `jit`.

        >>> halving = jax.jit(lambda weight, x: (weight * 0.5, weight * x))
        >>> step = monitor(every=2).wrap(halving, loss=lambda result: result[1])
        >>> weight = jnp.asarray(1.0)
        >>> for _ in range(5):
        ...     weight, loss = step(weight, 2.0)
        >>> step.history().loss
        array([2.   , 0.5  , 0.125])
        """
        return MonitoredStep(self, step, params, new_params, loss)

    def history(self, optimizer_state: Any) -> MonitorHistory:
        """Returns what the optimiser has seen whose state this is.

        The state is found anywhere in a larger one, such as that of `optax.chain` or of Flax's `nnx.Optimizer`. Raises
        `ValueError` where there is no state of a monitored optimiser, more than one, or one of many runs under `vmap`.
        """
        return history_of(optimizer_state)


class MonitoredStep:
    """A training step that is called like the one it wraps, and keeps notes; made by `Monitor.wrap`."""

    def __init__(self, monitor: Monitor, step: Callable[..., Any], params: str | None, new_params: Any, loss: Any):
        for name, function in (("new_params", new_params), ("loss", loss)):
            if function is not None and not callable(function):
                raise TypeError(
                    f"{name}={function!r} is a {type(function).__name__}; accepted is a function of what the step "
                    "returns, such as lambda result: result[0]."
                )
        update_wrapper(self, step, updated=())
        self._monitor, self._step = monitor, step
        self._params, self._new_params, self._loss = params, new_params, loss
        names = list(inspect.signature(step).parameters) if params is not None else []
        self._position = names.index(known_name("params", params, names)) if params is not None else 0
        # Of each call that was looked at its number, the snapshot `(4, layer)`, the loss, and the seconds per step.
        self._notes: deque[tuple[int, Any, float, float]] = deque(maxlen=monitor.keep)
        self._layers: tuple[str, ...] = ()
        self._calls = 0
        self._last: tuple[int, float] | None = None  # number and end of the last call that was looked at
        self._tellers: dict[str, Tell | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Does and returns what the step does."""
        number, self._calls = self._calls, self._calls + 1
        due = number % self._monitor.every == 0
        tell = self._teller("arguments", (args, kwargs))
        before, structure = {}, None
        if tell:  # the optimiser is told whether to look, and does it itself
            args, kwargs = tell((args, kwargs), due)
        elif due:
            given = self._given(args, kwargs)
            before, structure = _copy(arrays_by_holder(given)), jax.tree.structure(given)
        results = self._step(*args, **kwargs)
        if tell and (tell_back := self._teller("results", results)):
            results = tell_back(results, None)
        if due:
            self._note(number, before, None if structure is None else self._returned(results, structure), results)
        return results

    def history(self, optimizer_state: Any = None) -> MonitorHistory:
        """Returns the notes; with the state of a monitored optimiser, its snapshots and the notes on the same steps.

        Errors as in `Monitor.history`.
        """
        notes = tuple(self._notes)
        number, seen, loss, seconds = zip(*notes, strict=True) if notes else ((),) * 4
        rows = np.array(seen, np.float64).reshape(len(notes), 4, len(self._layers))
        found = MonitorHistory(
            np.array(number, int),
            Profile.from_log10(rows[:, 1], layers=self._layers, quantity="update over weight"),
            rows[:, 3] == 1,
            loss=None if self._loss is None else np.array(loss, np.float64),
            seconds_per_step=np.array(seconds, np.float64),
        )
        return found if optimizer_state is None else history_of(optimizer_state, found)

    def _teller(self, side: str, tree: Any) -> Tell | None:
        if side not in self._tellers:  # looked for once: it would take longer than all else here
            self._tellers[side] = _teller(tree)
        return self._tellers[side]

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._params is not None and self._params in kwargs:
            return kwargs[self._params]
        given = args if self._params is not None or args else tuple(kwargs.values())
        if self._position >= len(given):
            what = "the first argument" if self._params is None else f"the argument {self._params!r}"
            raise ValueError(f"params is {what} of the step, which was called without it; name one that it is given.")
        return given[self._position]

    def _returned(self, results: Any, structure: Any) -> Any:
        if self._new_params is not None:
            return self._new_params(results)
        first = results[0] if isinstance(results, tuple | list) and results else results
        for candidate in (results, first):
            if jax.tree.structure(candidate) == structure:
                return candidate
        raise ValueError(
            f"the step returned a {type(results).__name__}, and neither that nor its first entry has the form of the "
            "parameters that it was given; say where they are: new_params=lambda result: ..., and params= if they are "
            "not the first argument."
        )

    def _note(self, number: int, before: Any, after: Any, results: Any) -> None:
        jax.block_until_ready(results)
        now, seen = time.perf_counter(), np.zeros((4, 0))
        if before:
            layers = self._monitor.layers_of(after)
            seen, self._layers = np.asarray(_moved(layers, before, arrays_by_holder(after))), names_of(layers)
        loss = np.nan if self._loss is None else self._loss(results)
        if np.ndim(loss):
            raise ValueError(f"loss returned an array of shape {np.shape(loss)}; accepted is a scalar of the result.")
        seconds = (now - self._last[1]) / (number - self._last[0]) if self._last else np.nan
        self._notes.append((number, seen, float(loss), seconds))
        self._last = (number, time.perf_counter())


@partial(jax.jit, static_argnums=0)
def _moved(layers: Layers, before: Any, after: Any) -> Any:
    """The snapshot of a step that has moved the parameters so; of the gradient it knows nothing."""
    return snapshot(layers, None, jax.tree.map(jnp.subtract, after, before), before)


def _teller(tree: Any) -> Tell | None:
    """The function that tells the `MonitorState` in a tree of this form whether to look; `None` without such a state.

    It is looked for in containers in which it may be replaced. Named tuples are none of them: an optimiser such as
    `optax.MultiSteps` decides by itself when to update.
    """
    if isinstance(tree, MonitorState):
        return lambda state, look: state._replace(about=replace(state.about, look=look))
    entries: Any = ()
    if type(tree) in (tuple, list):
        entries = enumerate(tree)
    elif type(tree) is dict:
        entries = tree.items()
    elif is_dataclass(tree) and hasattr(tree, "replace"):
        entries = ((one.name, getattr(tree, one.name)) for one in fields(tree))
    return next((partial(_told, key, tell) for key, entry in entries if (tell := _teller(entry))), None)


def _told(key: Any, tell: Tell, tree: Any, look: bool | None) -> Any:
    if hasattr(tree, "replace"):
        return tree.replace(**{key: tell(getattr(tree, key), look)})
    entry = tell(tree[key], look)
    return tree | {key: entry} if isinstance(tree, dict) else type(tree)((*tree[:key], entry, *tree[key + 1 :]))
