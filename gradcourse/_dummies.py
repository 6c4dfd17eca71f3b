"""What the two kinds of probe have in common: dummies made of zeros, checked where they are passed, stacked to be read.

>>> import jax
>>> from gradcourse.probes import Probe
>>> found, names = stacked([Probe.zeros(), Probe.zeros()], Probe, layers=None, axis=-1)
>>> found.shape, names
((2,), ('0 probe', '1 probe'))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

__all__ = ["Dummy", "check_fitting", "floating", "is_floating", "stacked"]

P = TypeVar("P", bound="Dummy")


@dataclass(frozen=True)
class Dummy:
    """Arrays of one shape, made of zeros and indexed together."""

    @classmethod
    def zeros(cls: type[P], *shape: int, dtype: DTypeLike | None = None) -> P:
        """Returns fresh probes of `shape`; `dtype` is float32, or float64 if JAX's 64-bit mode is on."""
        return cls(*(jnp.zeros(shape, jnp.result_type(float) if dtype is None else dtype) for _ in fields(cls)))

    def __getitem__(self: P, index: Any) -> P:
        return jax.tree.map(lambda leaf: leaf[index], self)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all its arrays have."""
        return jnp.shape(jax.tree.leaves(self)[0])

    @property
    def dtype(self) -> np.dtype:
        """The dtype that all its arrays have."""
        return jnp.result_type(jax.tree.leaves(self)[0])


def is_floating(leaf: Any) -> bool:
    """Returns whether an array holds real or complex floating-point numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def floating(tree: Any, dtype: Any) -> list[Array]:
    """Returns the tree's floating-point arrays in `dtype`, a complex one as its real and its imaginary part."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    parts = [(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,) for leaf in leaves]
    return [jnp.asarray(part).astype(dtype) for pair in parts for part in pair]


def check_fitting(function: str, h: Any, p: Any, kind: type[Dummy]) -> None:
    """Raises `TypeError` or `ValueError` where `p` is no probe of that kind for `h`."""
    if not isinstance(p, kind):
        raise TypeError(f"{function} got p={p!r}, a {type(p).__name__}; accepted is {kind.__name__}.zeros() or None.")
    leaves = [leaf for leaf in jax.tree.leaves(h) if is_floating(leaf)]
    if not leaves:
        raise TypeError(f"{function} got no floating-point array in h, so there is no gradient to look at.")
    widest = max(jnp.finfo(jnp.result_type(leaf)).bits for leaf in leaves)
    if p.dtype not in (jnp.float32, jnp.float64) or jnp.finfo(p.dtype).bits < widest:
        dtype = "float64" if widest == 64 else "float32"
        raise TypeError(
            f"{function} got p of dtype {p.dtype} for h with {widest} bits; accepted is {kind.__name__}.zeros("
            f"dtype={dtype!r})."
        )
    for leaf in leaves:
        if jnp.shape(leaf)[: len(p.shape)] != p.shape:
            raise ValueError(
                f"{function} got p of shape {p.shape} for h of shape {jnp.shape(leaf)}; accepted are (), for one norm, "
                f"or leading axes of h, such as {jnp.shape(leaf)[:1]}. Make it with {kind.__name__}.zeros(...)."
            )


def stacked(found: Any, kind: type[P], layers: Sequence[str] | None, axis: int) -> tuple[P, tuple[str, ...]]:
    """Returns the probes as one whose last axis runs over the layers, and the layers' names.

    `found` is a list of probes, a dictionary of them, from which `layers` picks, or one whose `axis` runs over the
    layers. Raises `TypeError` for anything else, `ValueError` for shapes or names that do not fit.
    """
    if isinstance(found, Mapping):
        layers = tuple(found) if layers is None else tuple(layers)
        if unknown := [name for name in layers if name not in found]:
            raise ValueError(f"layers names {unknown[0]!r}, which found does not have; it has {tuple(found)}.")
        found = [found[name] for name in layers]
    if isinstance(found, kind):
        if not found.shape:
            raise ValueError("found is a single probe without an axis of layers; accepted is a list: write [found].")
        one = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, -1), found)
    elif isinstance(found, list | tuple) and found and all(isinstance(probe, kind) for probe in found):
        if len(shapes := {probe.shape for probe in found}) != 1:
            raise ValueError(
                f"found holds probes of the shapes {sorted(shapes)}; accepted are probes of one shape, one per layer. "
                "Read those that two scans have stacked in two calls."
            )
        one = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-1), *found)
    else:
        raise TypeError(
            f"found={found!r} is not accepted; give what jax.grad returned for the probes: a list of {kind.__name__}, "
            "or stacked ones."
        )
    depth = one.shape[-1]
    names = tuple(f"{index} probe" for index in range(depth)) if layers is None else tuple(layers)
    if len(names) != depth:
        raise ValueError(f"layers has {len(names)} names for {depth} probes; accepted is one name per probe.")
    return one, names
