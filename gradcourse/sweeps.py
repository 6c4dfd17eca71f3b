"""Many runs at once: seeds are an axis of one program, not a loop.

>>> import jax, jax.numpy as jnp
>>> from gradcourse.jacobians import backward_jacobian_norms
>>> from gradcourse.networks import mlp
>>> network = mlp(8, [16] * 3, 4)
>>> profile = over_seeds(backward_jacobian_norms, network, jnp.ones((5, 8)), seeds=7, key=jax.random.key(0))
>>> profile.log10_norm.shape
(7, 4)
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse.checks import positive_integer
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
) -> R:
    """Returns `measure(network, params, x)` for `seeds` draws of the parameters, along a new first axis.

    `measure` is any function of this package that takes these three, such as `backward_jacobian_norms`.
    """
    keys = jax.random.split(key, positive_integer("seeds", seeds))
    # Drawn one by one: that program is compiled once for all seeds, in a third of the time of the batched one.
    params = jax.tree.map(lambda *draws: jnp.stack(draws), *(network.init(key=one) for one in keys))
    return jax.vmap(lambda one: measure(network, one, x))(params)
