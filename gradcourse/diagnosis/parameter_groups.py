"""The layers of anybody's parameters: arrays that are held together, and their norms.

>>> grouping = Grouping()
>>> tree = {"dense": {"bias": jnp.zeros(3), "weight": jnp.full((2, 3), 2.0)}, "scale": jnp.ones(1)}
>>> groups = grouping.groups(tree)
>>> {name: round(float(2 ** log2_norms(group, grouping(tree)[name])[0]), 3) for name, group in groups.items()}
{'dense': 4.899, 'scale': 1.0}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse._checks import known_name
from gradcourse._logdomain import normal_exponent

__all__ = ["Group", "Grouping", "all_finite", "log2_norms", "zero_shares"]


@dataclass(frozen=True)
class Group:
    """Arrays that belong together: one layer, or `names` layers along their first axis."""

    names: tuple[str, ...]
    stacked: bool


@dataclass(frozen=True)
class Grouping:
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

    def groups(self, tree: Any) -> dict[str, Group]:
        """What a tree of parameters consists of."""
        found = self(tree)
        if self.names is not None:
            return self._stages(found)
        for name in self.stacked:
            known_name("stacked", name, found)
        return {
            name: Group(tuple(f"{name}.{index}" for index in range(len(leaves[0]))), True)
            if name in self.stacked
            else Group((name,), False)
            for name, leaves in found.items()
        }

    def _stages(self, found: Mapping[str, Any]) -> dict[str, Group]:
        """The stages of a network, each a tuple's entry; those without parameters have no arrays."""
        ends = np.cumsum(self.repeats)
        groups = {}
        for name in found:
            if not name.isdigit() or int(name) >= len(ends):
                raise ValueError(f"params has {name!r}, which is no stage of network; accepted are its own params.")
            end, repeats = int(ends[int(name)]), self.repeats[int(name)]
            groups[name] = Group((self.names or ())[end - repeats : end], True)
        return groups


def _holder(path: tuple[Any, ...]) -> str:
    """The name of what holds an array, or of the array where nothing does."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]  # Flax NNX keeps every array in a variable
    return jax.tree_util.keystr(path[:-1] or path, simple=True, separator=".") or "parameters"


def log2_norms(group: Group, leaves: list[Any] | None) -> Any:
    """The log2 norm of each layer of a group, `(layer,)`; NaN where there are no such arrays.

    Divided by the power of two next to its largest entry, no layer leaves the floating-point range when squared.
    """
    if not leaves:
        return jnp.full(len(group.names), jnp.nan, jnp.float32)
    rows = [part for leaf in leaves for part in _rows(group, leaf)]
    peak = jnp.stack([jnp.abs(row).max(axis=1, initial=0) for row in rows]).max(axis=0)
    exponent = normal_exponent(peak)
    factor = jnp.ldexp(jnp.ones_like(peak), -exponent)[:, None]
    square = jnp.stack([jnp.square(row * factor).sum(axis=1) for row in rows]).sum(axis=0)
    return exponent.astype(jnp.float32) + jnp.log2(square).astype(jnp.float32) / 2


def _rows(group: Group, leaf: Any) -> list[Any]:
    """An array as `(layer, entry)`, a complex one as two, in float32 or, if it is wider, in float64."""
    parts = (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)
    wide = jnp.float64 if jnp.finfo(leaf.dtype).bits > 32 else jnp.float32
    return [part.reshape(len(group.names), -1).astype(wide) for part in parts]


def all_finite(group: Group, leaves: list[Any]) -> Any:
    """Whether each layer of a group is finite, `(layer,)`."""
    entries = [jnp.isfinite(leaf).reshape(len(group.names), -1).all(axis=1) for leaf in leaves]
    return jnp.stack(entries).all(axis=0)


def zero_shares(group: Group, leaves: list[Any] | None) -> Any:
    """The share of exact zeros of each layer of a group, `(layer,)`."""
    if not leaves:
        return jnp.full(len(group.names), jnp.nan, jnp.float32)
    size = sum(prod(leaf.shape) for leaf in leaves) // len(group.names)
    counts = [jnp.sum(leaf.reshape(len(group.names), -1) == 0, axis=1, dtype=jnp.float32) for leaf in leaves]
    return jnp.stack(counts).sum(axis=0) / np.float32(max(size, 1))
