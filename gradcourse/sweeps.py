"""Many runs at once: seeds are an axis of one program, not a loop, and split over the devices of a mesh.

>>> import jax, jax.numpy as jnp
>>> from gradcourse.jacobians import backward_jacobian_norms
>>> from gradcourse.networks import mlp
>>> network = mlp(8, [16] * 3, 4)
>>> profile = over_seeds(backward_jacobian_norms, network, jnp.ones((5, 8)), seeds=7, key=jax.random.key(0))
>>> profile.log10_norm.shape
(7, 4)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse.checks import positive_integer
from gradcourse.devices import checked_mesh, gathered
from gradcourse.networks import Network, Params

__all__ = ["over_seeds"]

R = TypeVar("R")


def over_seeds(
    measure: Callable[[Network, Params, Any], R],
    network: Network,
    x: Float[Array, "batch *shape"],
    *,
    seeds: int = 10,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
) -> R:
    """Returns `measure(network, params, x)` for `seeds` draws of the parameters, along a new first axis.

    `measure` is any function of this package that takes these three, such as `backward_jacobian_norms`. With a `mesh`
    that has an axis `"seed"`, each of its devices measures an equal share of the seeds; the result is the same, and
    whole on every device. Raises `ValueError` where the seeds cannot be shared out equally.
    """
    seeds = positive_integer("seeds", seeds)
    mesh = checked_mesh(mesh, seed=seeds)
    # Drawn one by one: that program is compiled once for all seeds, in a third of the time of the batched one.
    params = jax.tree.map(
        lambda *draws: jnp.stack(draws), *(network.init(key=one) for one in jax.random.split(key, seeds))
    )
    network.measurable(jax.tree.map(lambda leaf: leaf[0], params), x)  # where its numbers are known and can be checked
    if mesh is not None:
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
        params = jax.device_put(params, NamedSharding(mesh, _seed_axis(mesh)))
    return _over_draws(measure, network, mesh, x, params)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _over_draws(
    measure: Callable[[Network, Params, Any], R], network: Network, mesh: Mesh | None, x: Any, params: Params
) -> R:
    """`measure` of every draw: in turn on a CPU, under `vmap` elsewhere.

    On a CPU, XLA runs convolutions with many kernels at once several times slower than one kernel's after another's.
    """

    def many(x: Any, params: Params) -> R:
        one = partial(measure, network)
        if jax.default_backend() == "cpu":
            return lax.map(lambda draw: one(draw, x), params)
        return jax.vmap(lambda draw: one(draw, x))(params)

    if mesh is None:
        return many(x, params)
    shared = _seed_axis(mesh)
    # Nothing is exchanged between devices, so there is nothing to check about who holds what.
    shares = jax.shard_map(many, mesh=mesh, in_specs=(PartitionSpec(), shared), out_specs=shared, check_vma=False)
    return gathered(mesh, shares(x, params))


def _seed_axis(mesh: Mesh) -> PartitionSpec:
    return PartitionSpec("seed" if "seed" in mesh.axis_names else None)
