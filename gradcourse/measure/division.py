"""How work is divided: into blocks that keep within a budget of memory, and over many devices.

A sweep keeps every layer's slopes for each example of a block (`points`), a few vectors for each example and direction
of it (`work`), and the results. All are known from shapes alone.

A mesh is an array of devices with named axes, made by jax. Here it has any of three: `"seed"`
(`gradcourse.training.sweeps`), `"example"` and `"probe"` (`gradcourse.measure.jacobians`).

>>> mesh = checked_mesh(jax.make_mesh((1,), ("example",)), example=4)
>>> split_over(mesh, jnp.ones((4, 3)), "example").shape
(4, 3)
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from gradcourse._checks import positive_integer
from gradcourse.nn.network import Network

__all__ = ["Blocks", "checked_mesh", "gathered", "in_blocks", "parts", "plan_blocks", "split_over"]

T = TypeVar("T")
AXES = ("seed", "example", "probe")

# Alive at once: vectors in one step, before, between and after its two halves, and copies for the product; copies of a
# random direction while it is drawn and made orthogonal to the others; numbers kept per layer and example.
VECTORS, FRAMES, RESULTS = 6, 6, 8


class Blocks(NamedTuple):
    """How many examples, and how many directions of each, are carried at once."""

    examples: int
    directions: int


def plan_blocks(
    network: Network,
    params: Any,
    x: Any,
    directions: int,
    memory: int | None,
    mesh: Mesh | None = None,
    *,
    random: int = 0,
) -> Blocks:
    """Returns the largest blocks for which a sweep of so many `directions` stays within `memory` bytes.

    Without a budget everything is one block. All directions of one example come before many examples, for every block
    of directions finds the slopes anew. Directions drawn at random in a space of `random` dimensions stay together, for
    their error takes all pairs, and so do examples that a layer couples. On a mesh, a block is split as evenly as the
    whole. Raises `ValueError` where the least block takes more.
    """
    batch = x.shape[0]
    if memory is None:
        return Blocks(batch, _up(directions, parts(mesh, "probe")))
    memory = positive_integer("memory", memory)
    together = batch if network.couples_examples else 1
    one = jax.ShapeDtypeStruct((together, *x.shape[1:]), x.dtype)
    sizes, weights = [one.size], [0]

    def step(layer: Any, p: Any, h: Any) -> Any:
        h_next, point = layer.linearize(p, h)
        half_layers = (partial(point.push, p), h), (partial(point.pull, p), h_next)
        sizes.extend([h_next.size, *(_entries_per_direction(*half) for half in half_layers)])
        weights.append(sum(leaf.size for leaf in jax.tree.leaves(p)))
        return h_next, point

    _, points = jax.eval_shape(lambda p, h: network.scan(step, p, h), params, one)
    itemsize, vectors = x.dtype.itemsize, VECTORS * max(sizes)
    fixed = (2 * max(weights) + RESULTS * batch * network.depth) * itemsize
    per_direction = (vectors + FRAMES * random + (3 * directions if random else 0)) * itemsize
    per_example = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(points)) + vectors * itemsize
    least = directions if random else 1
    accepted = fixed + per_example + least * per_direction
    if memory < accepted:
        raise ValueError(
            f"memory={memory} bytes is too little for this network: its results and the weights of one layer take "
            f"{fixed}, the slopes of {'the batch' if together > 1 else 'one example'} {per_example} and {least} of its "
            f"directions {least * per_direction}; accepted from {accepted} up."
        )
    carried = directions if random else min(directions, (memory - fixed - per_example) // per_direction)
    examples = together * min(batch // together, (memory - fixed) // (per_example + carried * per_direction))
    even = (ceil(count / ceil(count / most)) for count, most in ((batch, examples), (directions, carried)))
    return Blocks(*(_up(size, parts(mesh, axis)) for size, axis in zip(even, ("example", "probe"), strict=True)))


def _entries_per_direction(function: Callable[[Any], Any], like: Any) -> int:
    """The entries that the biggest array inside of `function` has for each vector, such as `like`, it is given."""
    one, two = (
        list(_sizes(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((count, *like.shape), like.dtype)).jaxpr))
        for count in (1, 2)
    )
    return max(more - less for less, more in zip(one, two, strict=True))


def _sizes(jaxpr: Any) -> Iterator[int]:
    """The sizes of all arrays that a traced function makes, in the functions that it calls too."""
    yield from (variable.aval.size for variable in jaxpr.outvars)
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                yield from _sizes(getattr(inner, "jaxpr", inner))


def _up(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple


def in_blocks(function: Callable[[Any], Any], examples: Any, size: int) -> Any:
    """Returns `function`, which maps leaves `(batch, ...)` to leaves `(layer, batch)`, of blocks of `size` examples.

    The blocks are worked off one after the other; the last is filled up with copies of the last example.
    """
    batch = jax.tree.leaves(examples)[0].shape[0]
    if size >= batch:
        return function(examples)
    count = ceil(batch / size)
    index = np.minimum(np.arange(count * size), batch - 1)
    blocks = jax.tree.map(lambda leaf: leaf[index].reshape(count, size, *leaf.shape[1:]), examples)
    results = lax.map(function, blocks)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1)[:, :batch], results)


def parts(mesh: Mesh | None, axis: str) -> int:
    """Returns into how many parts `mesh` splits `axis`; 1 where there is no such axis or no mesh."""
    return 1 if mesh is None else dict(mesh.shape).get(axis, 1)


def checked_mesh(mesh: Mesh | None, **sizes: int) -> Mesh | None:
    """Returns `mesh` if it has a known axis and each of `sizes` can be split over the axis of its name.

    All its axes are made `Auto`, jax's word for meshes on which it finds the way of splitting by itself. Raises
    `TypeError` for anything but a mesh, `ValueError` where a size is no multiple of the number of devices along its
    axis.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh={mesh!r} is a {type(mesh).__name__}; accepted is what jax.make_mesh returns, or None.")
    if not set(mesh.axis_names) & set(AXES):
        raise ValueError(f"mesh has the axes {mesh.axis_names}; accepted is at least one of {AXES}.")
    for axis, size in sizes.items():
        if size % parts(mesh, axis):
            raise ValueError(
                f"mesh has {parts(mesh, axis)} devices along {axis!r} and there are {size}; accepted is a multiple. "
                f"Take as many more or fewer, or a mesh with another size of {axis!r}."
            )
    return Mesh(mesh.devices, mesh.axis_names)


def split_over(mesh: Mesh | None, array: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """Returns `array`, inside `jit`, with its leading axes split over the mesh's axes of these names."""
    if mesh is None:
        return array
    spec = PartitionSpec(*(axis if axis in mesh.axis_names else None for axis in axes))
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def gathered(mesh: Mesh | None, tree: T) -> T:
    """Returns the arrays in `tree`, inside `jit`, whole on every device, so that every process can read it."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
