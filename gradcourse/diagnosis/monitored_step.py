"""A training step that keeps notes on itself: its loss, the time it takes, and how far it moves the parameters."""

import inspect
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import update_wrapper
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse._checks import known_name
from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.diagnosis.monitored_optimizer import MonitorState, history_of, state_in, with_look
from gradcourse.diagnosis.snapshots import Layers, arrays_by_holder, moved, names_of
from gradcourse.profile import Profile

__all__ = ["MonitoredStep"]


class Note(NamedTuple):
    """What one call has left: its number, and per layer how far it has moved the parameters, in decades of them."""

    number: int
    log10_ratio: Any
    finite: Any
    loss: float
    seconds: float


class MonitoredStep:
    """A training step that is called like the one it wraps, and keeps notes; made by `Monitor.wrap`."""

    def __init__(
        self,
        step: Callable[..., Any],
        every: int,
        keep: int,
        layers_of: Callable[[Any], Layers],
        *,
        params: str | None = None,
        new_params: Callable[[Any], Any] | None = None,
        loss: Callable[[Any], Any] | None = None,
    ):
        for name, function in (("new_params", new_params), ("loss", loss)):
            if function is not None and not callable(function):
                raise TypeError(
                    f"{name}={function!r} is a {type(function).__name__}; accepted is a function of what the step "
                    "returns, such as lambda result: result[0]."
                )
        update_wrapper(self, step, updated=())
        self._step, self._every, self._layers_of = step, every, layers_of
        self._params, self._new_params, self._loss = params, new_params, loss
        names = list(inspect.signature(step).parameters) if params is not None else []
        self._position = names.index(known_name("params", params, names)) if params is not None else 0
        self._notes: deque[Note] = deque(maxlen=keep)
        self._layers: tuple[str, ...] = ()
        self._calls = 0
        self._last: tuple[int, float] | None = None  # number and end of the last call that was looked at
        self._paths: dict[str, Path | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Does and returns what the step does."""
        number, self._calls = self._calls, self._calls + 1
        due = number % self._every == 0
        path = self._path("arguments", (args, kwargs))
        if path is not None:  # the optimiser is told whether to look, and does it itself
            args, kwargs = _replaced((args, kwargs), path, due)
        before, structure = {}, None
        if due and path is None:
            given = self._given(args, kwargs)
            before, structure = _copy(arrays_by_holder(given)), jax.tree.structure(given)
        results = self._step(*args, **kwargs)
        if path is not None and (back := self._path("results", results)) is not None:
            results = _replaced(results, back, None)
        if due:
            self._note(number, before, None if structure is None else self._returned(results, structure), results)
        return results

    def history(self, optimizer_state: Any = None) -> MonitorHistory:
        """Returns the notes; with the state of a monitored optimiser, its snapshots and the notes on the same steps.

        Errors as in `Monitor.history`.
        """
        notes = tuple(self._notes)
        number, ratio, finite, loss, seconds = zip(*notes, strict=True) if notes else ((),) * 5
        shape = (len(notes), len(self._layers))
        found = MonitorHistory(
            np.array(number, int),
            Profile.from_log10(
                np.array(ratio, np.float64).reshape(shape), layers=self._layers, quantity="update over weight"
            ),
            np.array(finite, bool).reshape(shape),
            loss=None if self._loss is None else np.array(loss, np.float64),
            seconds_per_step=np.array(seconds, np.float64),
        )
        return found if optimizer_state is None else history_of(state_in(optimizer_state), found)

    def _path(self, side: str, tree: Any) -> "Path | None":
        """The path to the state, looked for once: it would take longer than all else here."""
        if side not in self._paths:
            self._paths[side] = _path_to_state(tree)
        return self._paths[side]

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The parameters among the step's arguments."""
        if self._params is not None and self._params in kwargs:
            return kwargs[self._params]
        given = args if self._params is not None or args else tuple(kwargs.values())
        if self._position >= len(given):
            what = "the first argument" if self._params is None else f"the argument {self._params!r}"
            raise ValueError(f"params is {what} of the step, which was called without it; name one that it is given.")
        return given[self._position]

    def _returned(self, results: Any, structure: Any) -> Any:
        """The new parameters in what the step has returned."""
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
        """Waits for the step, and notes it."""
        jax.block_until_ready(results)
        now = time.perf_counter()
        ratio, finite = np.zeros(0), np.zeros(0, bool)
        if before:
            layers = self._layers_of(after)
            ratio, finite = moved(layers, before, arrays_by_holder(after))
            self._layers = names_of(layers)
        loss = np.nan if self._loss is None else self._loss(results)
        if np.ndim(loss):
            raise ValueError(f"loss returned an array of shape {np.shape(loss)}; accepted is a scalar of the result.")
        seconds = (now - self._last[1]) / (number - self._last[0]) if self._last else np.nan
        self._notes.append(Note(number, np.asarray(ratio), np.asarray(finite), float(loss), seconds))
        self._last = (number, time.perf_counter())


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


# ---- A monitored optimiser's state among the arguments

Path = tuple[Any, ...]


def _path_to_state(tree: Any) -> Path | None:
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
        if (rest := _path_to_state(entry)) is not None:
            return (key, *rest)
    return None


def _replaced(tree: Any, path: Path, look: bool | None) -> Any:
    """The tree with `look` in the `MonitorState` at the end of the path."""
    if not path:
        return with_look(tree, look)
    key, *rest = path
    if hasattr(tree, "replace"):
        return tree.replace(**{key: _replaced(getattr(tree, key), tuple(rest), look)})
    entry = _replaced(tree[key], tuple(rest), look)
    if isinstance(tree, dict):
        return tree | {key: entry}
    return type(tree)((*tree[:key], entry, *tree[key + 1 :]))
