"""Errors that name the argument, the value received, what is accepted and the way out.

The checks that several modules need; a check that only one needs stands there, in the same form.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["is_from", "known_false", "known_name", "measurable_input", "positive_integer", "positive_number", "traced"]


def known_name(argument: str, value: Any, accepted: Iterable[str]) -> str:
    """Returns `value` if it is one of the `accepted` names.

    Raises `TypeError` if it is no string, `ValueError` with the nearest match if it is unknown.

    >>> known_name("init", "he_norml", ["he_normal", "he_uniform"])
    Traceback (most recent call last):
    ...
    ValueError: init='he_norml' is not known; did you mean 'he_normal'? Accepted: 'he_normal', 'he_uniform'.
    """
    names = list(accepted)
    listing = ", ".join(repr(name) for name in names)
    if not isinstance(value, str):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}, not a name. Accepted: {listing}.")
    if value in names:
        return value
    folded = {name.lower(): name for name in names}
    near = get_close_matches(value.lower().replace(" ", "_").replace("-", "_"), folded, n=1, cutoff=0.4)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else "."
    raise ValueError(f"{argument}={value!r} is not known{hint} Accepted: {listing}.")


def is_from(library: str, value: Any) -> bool:
    """Returns whether one of the value's classes is of that library, without importing it.

    >>> is_from("numpy", 1.0), is_from("jax", jnp.ones(1))
    (False, True)
    """
    return any(f"{kind.__module__}.".startswith(f"{library}.") for kind in type(value).__mro__)


def positive_integer(argument: str, value: Any) -> int:
    """Returns `value` as an `int` if it is a whole number of at least 1.

    >>> positive_integer("width", 0)
    Traceback (most recent call last):
    ...
    ValueError: width=0 is accepted from 1 up.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}; accepted is a whole number from 1 up.")
    if value < 1:
        raise ValueError(f"{argument}={value!r} is accepted from 1 up.")
    return int(value)


def positive_number(argument: str, value: Any, *, zero: bool = False) -> float:
    """Returns `value` as a `float` if it is finite and above zero (or zero too, where `zero` is true)."""
    accepted = "a finite number, zero or more" if zero else "a finite number above zero"
    try:
        number = float("no number" if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}; accepted is {accepted}.") from None
    if not (0 <= number < float("inf")) or (number == 0 and not zero):
        raise ValueError(f"{argument}={value!r} is not accepted; give {accepted}.")
    return number


def measurable_input(x: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns `x` as an array after checking that it is a non-empty, finite batch for a network.

    Shapes: `x` is `(batch, *shape)`; `dtype` is the parameters'. Raises `ValueError` for a wrong rank, width or
    batch and for NaN or infinity, `TypeError` for a wrong dtype. Inside `jit` or `vmap` the values are not known
    yet; there only shapes and dtypes are checked.

    >>> import jax.numpy as jnp
    >>> measurable_input(jnp.ones((5, 3)), (4,), jnp.float32)
    Traceback (most recent call last):
    ...
    ValueError: x has shape (5, 3); accepted is (batch, 4). Its last axes must be the network's input_shape.
    """
    x, dtype = jnp.asarray(x), jnp.dtype(dtype)
    expected = "(batch, " + ", ".join(str(size) for size in shape) + ")"
    if x.ndim != len(shape) + 1:
        hint = " One example? Write x[None]." if x.shape == shape else ""
        raise ValueError(f"x has shape {x.shape}, that is rank {x.ndim}; accepted is {expected}.{hint}")
    if x.shape[1:] != shape:
        raise ValueError(
            f"x has shape {x.shape}; accepted is {expected}. Its last axes must be the network's input_shape."
        )
    if x.shape[0] == 0:
        raise ValueError(f"x has shape {x.shape}, an empty batch; accepted is at least one example.")
    if x.dtype != dtype:
        raise TypeError(
            f"x has dtype {x.dtype} and the parameters have {dtype}; accepted is the same floating dtype for both. "
            f"Write x.astype('{dtype}'), or convert the parameters with jax.tree.map."
        )
    if known_false(_all_finite(x)):
        raise ValueError("x contains NaN or infinity; accepted are finite numbers. Look at where x was made.")
    return x


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def traced(tree: Any) -> bool:
    """Returns whether an array in `tree` is being traced by `jit` or `vmap`, so that its numbers are not known yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def known_false(condition: jax.Array) -> bool:
    """Returns whether `condition` is false here and now; a value still being traced by `jit` or `vmap` is not known."""
    try:
        return not bool(condition)
    except jax.errors.ConcretizationTypeError:
        return False
