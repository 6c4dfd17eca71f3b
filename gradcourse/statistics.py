"""How a network's units stand on a batch: the spread of pre-activations and the share of units in the tails.

>>> import jax
>>> from gradcourse.networks import mlp
>>> network = mlp(64, [100] * 3, 10, activation="sigmoid", init="gaussian")
>>> params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (50, 64))
>>> statistics = unit_statistics(network, params, x)
>>> statistics.layers
('0 dense', '1 dense', '2 dense', '3 dense')
>>> bool(statistics.saturated[-1] == 0)  # the readout is linear: it has no tails
True
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike as _ArrayLike
from jaxtyping import Array, ArrayLike, Float

from gradcourse.checks import positive_number
from gradcourse.layers import Conv, Dense, Layer
from gradcourse.networks import Network, Params

__all__ = ["UnitStatistics", "unit_statistics"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnitStatistics:
    """Per layer, over all units (pixels too) and examples; leading axes are samples if there are any.

    - `deviation`: root mean square of the pre-activation;
    - `mean`: mean of the layer's output;
    - `mean_square_slope`: mean of `f'(s)**2`, NaN for layers without an activation;
    - `saturated`: share of units in the tails, see `unit_statistics`.
    """

    deviation: Float[ArrayLike, "*sample layer"]
    mean: Float[ArrayLike, "*sample layer"]
    mean_square_slope: Float[ArrayLike, "*sample layer"]
    saturated: Float[ArrayLike, "*sample layer"]
    layers: tuple[str, ...] = field(metadata={"static": True})


def unit_statistics(
    network: Network, params: Params, x: Float[Array, "batch *shape"], *, tail: float = 0.05
) -> UnitStatistics:
    """Returns how the units of every layer stand on the batch `x`, `(batch, *input_shape)`.

    A unit is counted as saturated on an example where its slope is below `tail` times the steepest slope that its
    activation has; by default 5 %, which for the sigmoid means beyond 4.36 on either side. Cost: one forward pass.
    Raises as `gradcourse.jacobians.backward_jacobian_norms`.
    """
    return _unit_statistics(network, params, network.check(params, x), positive_number("tail", tail))


@partial(jax.jit, static_argnums=0)
def _unit_statistics(network: Network, params: Params, x: Array, tail: _ArrayLike) -> UnitStatistics:
    def step(layer: Layer, p: Any, h: Array) -> tuple[Array, tuple[Array, ...]]:
        h_next = layer.apply(p, h)
        if not isinstance(layer, Dense | Conv):
            return h_next, (_root_mean_square(h_next), h_next.mean(), jnp.full((), jnp.nan), jnp.zeros(()))
        slope = layer.activation.slope(s := layer.preactivation(p, h))
        saturated = jnp.abs(slope) < tail * layer.activation.derivative_bound
        return h_next, (_root_mean_square(s), h_next.mean(), jnp.square(slope).mean(), saturated.mean())

    _, collected = network.scan(step, params, x)
    deviation, mean, mean_square_slope, saturated = (jnp.concatenate(parts) for parts in zip(*collected, strict=True))
    return UnitStatistics(deviation, mean, mean_square_slope, saturated, network.layer_names)


def _root_mean_square(values: Array) -> Array:
    return jnp.sqrt(jnp.square(values).mean())
