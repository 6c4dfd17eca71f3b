"""What is seen of every layer of anybody's parameters at one moment of a training run: a few numbers.

A *layer* is whatever holds arrays directly: those of `params["encoder"]["dense"]` together are `encoder.dense`, and an
array at the top of the tree is a layer by itself. What is called `Layers` here says, for each holder, which layers its
arrays are: one, or several that are stacked along their first axis.

>>> params = {"dense": {"bias": jnp.zeros(3), "weight": jnp.full((2, 3), 2.0)}, "blocks": jnp.ones((2, 5))}
>>> layers_of(params, ["blocks"])
(('blocks', ('blocks.0', 'blocks.1')), ('dense', ('dense',)))
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse._checks import known_name
from gradcourse._logdomain import sum_of_squares
from gradcourse.nn.network import Network
from gradcourse.profile import LOG10_OF_2

__all__ = ["ROWS", "Layers", "arrays_by_holder", "layers_of", "moved", "names_of", "snapshot"]

Layers = tuple[tuple[str, tuple[str, ...]], ...]
ROWS = 4  # of a snapshot


def arrays_by_holder(tree: Any) -> dict[str, list[Any]]:
    """Returns the floating-point arrays of a tree by the name of what holds them."""
    found: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact):
            found.setdefault(_holder(path), []).append(leaf)
    return found


def layers_of(params: Any, stacked: Sequence[str] = (), network: Network | None = None) -> Layers:
    """Returns the layers of a tree of parameters: of a `network` its own, else those of each holder.

    Raises `ValueError` for parameters without arrays, for `stacked` names that are not there and for parameters of
    another network.
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
        arrays = [tree.get(holder, []) for tree in trees]
        slope, update, weight = (_log2_norms(len(names), one) for one in arrays)
        finite = _all_finite(len(names), [leaf for one in arrays for leaf in one])
        rows = (slope * LOG10_OF_2, (update - weight) * LOG10_OF_2, _zero_shares(len(names), arrays[0]), finite)
        columns.append(jnp.stack([jnp.asarray(row, jnp.float32) for row in rows]))
    return jnp.concatenate(columns, axis=1)


@partial(jax.jit, static_argnums=0)
def moved(layers: Layers, before: Any, after: Any) -> tuple[Any, Any]:
    """Returns the log10 of the update's norm over that of the parameters before it, and whether both are finite.

    `before` and `after` are parameters as `arrays_by_holder` gives them; the results have the shape `(layer,)`.
    """
    ratios, finite = [], []
    for holder, names in layers:
        old, new = before[holder], after[holder]
        change = [one - other for one, other in zip(new, old, strict=True)]
        ratios.append((_log2_norms(len(names), change) - _log2_norms(len(names), old)) * LOG10_OF_2)
        finite.append(_all_finite(len(names), [*old, *new]))
    return jnp.concatenate(ratios), jnp.concatenate(finite)


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


def _log2_norms(count: int, arrays: list[Any]) -> Any:
    """The log2 norm of each of the layers that these arrays hold; NaN where there are none."""
    if not arrays:
        return jnp.full(count, jnp.nan, jnp.float32)
    parts = [part for array in arrays for part in ((array.real, array.imag) if jnp.iscomplexobj(array) else (array,))]
    wide = jnp.float64 if any(jnp.finfo(part.dtype).bits > 32 for part in parts) else jnp.float32
    exponent, square = sum_of_squares([part.reshape(count, -1).astype(wide) for part in parts], kept=1)
    return exponent.astype(jnp.float32) + jnp.log2(square).astype(jnp.float32) / 2


def _all_finite(count: int, arrays: list[Any]) -> Any:
    entries = [jnp.isfinite(array).reshape(count, -1).all(axis=1) for array in arrays]
    return jnp.stack(entries).all(axis=0) if entries else jnp.ones(count, bool)


def _zero_shares(count: int, arrays: list[Any]) -> Any:
    if not arrays:
        return jnp.full(count, jnp.nan, jnp.float32)
    size = sum(prod(array.shape) for array in arrays) // count
    zeros = [jnp.sum(array.reshape(count, -1) == 0, axis=1, dtype=jnp.float32) for array in arrays]
    return jnp.stack(zeros).sum(axis=0) / np.float32(max(size, 1))
