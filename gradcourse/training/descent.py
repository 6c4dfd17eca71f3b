"""One loop for everything that follows a gradient: so many updates, looked at now and then.

>>> halved = lambda step, x: x / 2
>>> last, seen, _ = descend(halved, jnp.float32(1), [0, 1, 3], lambda x: {"x": x})
>>> seen["x"].tolist(), float(last)
([1.0, 0.5, 0.125], 0.125)
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from gradcourse._checks import positive_integer

__all__ = ["all_finite", "checked_looks", "descend"]

S = TypeVar("S")


def descend(
    update: Callable[[Int[Array, ""], S], S],
    state: S,
    looks: Sequence[int] | Int[np.ndarray, " look"],
    observe: Callable[[S], Any],
    *,
    going: Callable[[Any], Bool[Array, ""]] | None = None,
) -> tuple[S, Any, Int[Array, ""]]:
    """Returns the state at the last look, what `observe(state)` gave at each, stacked, and how many looks there were.

    `state = update(step, state)` is done for the steps 0, 1, 2 and so on. `looks` are the numbers of updates after
    which to look, in increasing order; 0 is the start. With `going`, the descent ends early: after the first look at
    which `going(seen)` is false for what was seen there. The entries of looks that were not reached are 0.

    Both functions are compiled once, however many looks there are. Call it inside `jit`; all randomness belongs into
    the state or is folded out of the step.
    """
    stops = np.asarray(looks, np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), stops[:-1]])
    counts = {int(count) for count in stops - starts if count}
    between = jnp.asarray(starts), jnp.asarray(stops)

    def advanced(state: S, start: Array, stop: Array) -> S:
        if len(counts) != 1:
            return lax.fori_loop(start, stop, update, state)
        # The compiler may know how often this loop turns, which saves an accelerator from asking at every turn.
        (count,) = counts

        def go_on(state: S) -> S:
            return lax.fori_loop(np.int32(0), np.int32(count), lambda turn, s: update(start + turn, s), state)

        # A first look at the start is a turn that only looks: one program is compiled in two thirds of the time of two.
        return go_on(state) if starts.size and stops[0] else lax.cond(stop > start, go_on, lambda s: s, state)

    def look(state: S, between: tuple[Array, Array]) -> tuple[S, Any]:
        state = advanced(state, *between)
        return state, observe(state)

    if going is None:
        state, seen = lax.scan(look, state, between)
        return state, seen, jnp.int32(len(stops))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(observe, state))

    def look_if_going(carry: tuple[S, Array, Array], between: tuple[Array, Array]) -> tuple[Any, Any]:
        state, count, still = carry
        state, seen = lax.cond(still, look, lambda state, _: (state, nothing), state, between)
        return (state, count + still.astype(jnp.int32), still & going(seen)), seen

    (state, count, _), seen = lax.scan(look_if_going, (state, jnp.int32(0), jnp.bool_(True)), between)
    return state, seen, count


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether every number in the tree is finite."""
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))


def checked_looks(steps: int, *, every: int | None = None, looks: Sequence[int] | None = None) -> tuple[int, ...]:
    """Returns the numbers of steps after which to look: `looks`, or 0 and every `every` steps, by default the end.

    >>> checked_looks(100, every=50)
    (0, 50, 100)

    Raises `ValueError` where the last of them is not `steps`, or they do not increase, and `TypeError` for both.
    """
    if looks is None:
        every = steps if every is None else positive_integer("every", every)
        if steps % every:
            raise ValueError(
                f"every={every} does not divide steps={steps}; accepted is a divisor, so that the last snapshot is the "
                "end."
            )
        return tuple(range(0, steps + 1, every))
    if every is not None:
        raise TypeError(f"every={every} and looks={looks!r} both say when to look; accepted is one of them.")
    chosen = np.asarray(looks)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(f"looks={looks!r} is accepted as a sequence of whole numbers of steps.")
    if chosen[0] < 0 or (np.diff(chosen) <= 0).any() or chosen[-1] != steps:
        raise ValueError(
            f"looks={looks!r} is accepted from 0 up, increasing, and with steps={steps} as the last, so that the last "
            "snapshot is the end."
        )
    return tuple(chosen.tolist())
