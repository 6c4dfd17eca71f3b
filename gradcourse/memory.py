"""How much memory a sweep takes, and blocks of examples and directions that keep within a budget.

A sweep keeps every layer's slopes for each example of a block (`saved`), and a few vectors of the widest layer's size
for each example and direction of it (`work`). Both are known from shapes alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from gradcourse.checks import positive_integer
from gradcourse.devices import parts
from gradcourse.networks import Network

__all__ = ["Blocks", "in_blocks", "plan_blocks"]

# Vectors alive at once in one step: before, between and after its two halves, and a copy for the product.
VECTORS = 4


class Blocks(NamedTuple):
    """How many examples, and how many directions of each, are carried at once."""

    examples: int
    directions: int


def plan_blocks(
    network: Network, params: Any, x: Any, directions: int, memory: int | None, mesh: Mesh | None = None
) -> Blocks:
    """Returns the largest blocks for which a sweep of so many `directions` stays within `memory` bytes.

    Without a budget everything is one block. All directions of one example come before many examples, because every
    block of directions repeats the pass through the network that finds the slopes. On a mesh, a block is split as
    evenly as the whole. Raises `ValueError` where a single direction of a single example takes more.
    """
    batch = x.shape[0]
    if memory is None:
        return Blocks(batch, _up(directions, parts(mesh, "probe")))
    memory = positive_integer("memory", memory)
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    sizes: list[int] = [one.size]

    def step(layer: Any, p: Any, h: Any) -> Any:
        h_next, saved = layer.linearize(p, h)
        sizes.append(h_next.size)
        return h_next, saved

    _, saved = jax.eval_shape(lambda p, h: network.scan(step, p, h), params, one)
    itemsize = x.dtype.itemsize
    per_example = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))
    per_direction = VECTORS * max(sizes) * itemsize
    if memory < per_example + per_direction:
        raise ValueError(
            f"memory={memory} bytes is too little for this network: the slopes of one example take {per_example} and "
            f"one direction {per_direction}; accepted from {per_example + per_direction} up."
        )
    carried = min(directions, (memory - per_example) // per_direction)
    examples = min(batch, max(1, memory // (per_example + carried * per_direction)))
    return Blocks(_up(examples, parts(mesh, "example")), _up(carried, parts(mesh, "probe")))


def _up(size: int, multiple: int) -> int:
    return -(-int(size) // multiple) * multiple


def in_blocks(function: Callable[[Any], Any], examples: Any, size: int) -> Any:
    """Returns `function`, which maps leaves `(batch, ...)` to leaves `(layer, batch)`, of blocks of `size` examples.

    The blocks are worked off one after the other; the last is filled up with copies of the last example.
    """
    batch = jax.tree.leaves(examples)[0].shape[0]
    if size >= batch:
        return function(examples)
    count = -(-batch // size)
    index = np.minimum(np.arange(count * size), batch - 1)
    blocks = jax.tree.map(lambda leaf: leaf[index].reshape(count, size, *leaf.shape[1:]), examples)
    results = lax.map(function, blocks)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1)[:, :batch], results)
