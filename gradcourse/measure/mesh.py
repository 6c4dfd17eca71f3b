"""Many devices: how an array is split over a mesh.

A mesh is an array of devices with named axes, made by jax. Three names mean something here: `"seed"`
(`gradcourse.training.sweeps`), `"example"` and `"probe"` (`gradcourse.measure.jacobians`). A mesh may have any of
them, of any size.

>>> import jax, jax.numpy as jnp
>>> mesh = checked_mesh(jax.make_mesh((1,), ("example",)), example=4)
>>> split_over(mesh, jnp.ones((4, 3)), "example").shape
(4, 3)
"""

from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

__all__ = ["checked_mesh", "gathered", "parts", "split_over"]

T = TypeVar("T")
AXES = ("seed", "example", "probe")


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
