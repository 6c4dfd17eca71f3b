"""How a network's units stand on a batch: their spread, the share of units in the tails, and which are silent.

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
from jaxtyping import Array, ArrayLike, Bool, Float

from gradcourse.checks import positive_number
from gradcourse.layers import Conv, Dense, Layer
from gradcourse.networks import Network, Params

__all__ = ["UnitStatistics", "silent_units", "unit_statistics"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnitStatistics:
    """Per layer, over all units (pixels too) and examples; leading axes are samples if there are any.

    - `deviation`: root mean square of the pre-activation;
    - `mean`, `variance`: of the layer's output;
    - `mean_square_slope`: mean of `f'(s)**2`, NaN for layers without an activation;
    - `saturated`: share of units in the tails, see `unit_statistics`;
    - `silent`: share of units that are silent on the batch, see `silent_units`; if it holds all data, they are dead.
    """

    deviation: Float[ArrayLike, "*sample layer"]
    mean: Float[ArrayLike, "*sample layer"]
    variance: Float[ArrayLike, "*sample layer"]
    mean_square_slope: Float[ArrayLike, "*sample layer"]
    saturated: Float[ArrayLike, "*sample layer"]
    silent: Float[ArrayLike, "*sample layer"]
    layers: tuple[str, ...] = field(metadata={"static": True})


def unit_statistics(
    network: Network, params: Params, x: Float[Array, "batch *shape"], *, tail: float = 0.05
) -> UnitStatistics:
    """Returns how the units of every layer stand on the batch `x`, `(batch, *input_shape)`.

    A unit is counted as saturated on an example where its slope is below `tail` times the steepest slope that its
    activation has; by default 5 %, which for the sigmoid means beyond 4.36 on either side. Cost: one forward pass.
    Raises as `gradcourse.jacobians.backward_jacobian_norms`.
    """
    return _unit_statistics(network, *network.measurable(params, x), positive_number("tail", tail))


def silent_units(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> tuple[Bool[Array, " unit"], ...]:
    """Returns for every layer which of its units are silent: their slope is exactly 0 on each example of `x`.

    Nothing that a silent unit does can be learned from this batch: no gradient passes it. A convolution's unit is a
    channel, silent where it is so at every pixel; layers without an activation have no silent units. A unit is *dead*
    if it is silent on all data: combine the batches with `&`. Cost and errors as in `unit_statistics`.

    >>> from gradcourse.networks import mlp
    >>> network = mlp(2, [3], 1, activation="relu")
    >>> params = network.init(key=jax.random.key(0))
    >>> params[0]["bias"] = jnp.array([[-100.0, 100.0, -100.0]])
    >>> [units.tolist() for units in silent_units(network, params, jnp.ones((5, 2)))]
    [[True, False, True], [False]]
    """
    stages = _silent_units(network, *network.measurable(params, x))
    return tuple(units for stage in stages for units in stage)


@partial(jax.jit, static_argnums=0)
def _unit_statistics(network: Network, params: Params, x: Array, tail: _ArrayLike) -> UnitStatistics:
    def step(layer: Layer, p: Any, h: Array) -> tuple[Array, dict[str, Array]]:
        h_next = layer.apply(p, h)
        found = {"mean": h_next.mean(), "variance": h_next.var()}
        if not isinstance(layer, Dense | Conv):
            nothing = jnp.zeros((), h.dtype)
            found |= {"deviation": _root_mean_square(h_next), "mean_square_slope": nothing * jnp.nan}
            return h_next, found | {"saturated": nothing, "silent": nothing}
        slope = layer.activation.slope(s := layer.preactivation(p, h))
        saturated = jnp.abs(slope) < tail * layer.activation.derivative_bound
        found |= {"deviation": _root_mean_square(s), "mean_square_slope": jnp.square(slope).mean()}
        return h_next, found | {"saturated": saturated.mean(), "silent": _silent(slope).mean()}

    _, collected = network.scan(step, params, x)
    found = jax.tree.map(lambda *stages: jnp.concatenate(stages), *collected)
    return UnitStatistics(**found, layers=network.layer_names)


@partial(jax.jit, static_argnums=0)
def _silent_units(network: Network, params: Params, x: Array) -> list[Bool[Array, "layer unit"]]:
    def step(layer: Layer, p: Any, h: Array) -> tuple[Array, Array]:
        h_next = layer.apply(p, h)
        if not isinstance(layer, Dense | Conv):
            return h_next, jnp.zeros(h_next.shape[-1], bool)
        return h_next, _silent(layer.activation.slope(layer.preactivation(p, h)))

    return network.scan(step, params, x)[1]


def _silent(slope: Float[Array, "batch *output"]) -> Bool[Array, " unit"]:
    return jnp.all(slope == 0, axis=range(slope.ndim - 1))


def _root_mean_square(values: Array) -> Array:
    return jnp.sqrt(jnp.square(values).mean())
