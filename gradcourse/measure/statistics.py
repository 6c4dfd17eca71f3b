"""How a network's units stand on a batch: their spread, the share of units in the tails, and which are silent.

>>> import jax
>>> from gradcourse.nn.network import mlp
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
from math import isnan, nan
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike as _ArrayLike
from jaxtyping import Array, ArrayLike, Bool, Float

from gradcourse._checks import positive_number
from gradcourse._logdomain import check_overflow, times_power, to_unit
from gradcourse.nn.layers import Layer, ScaledInput, as_scaled, linearized
from gradcourse.nn.linearized import Linearized
from gradcourse.nn.network import Network, Params, joined

__all__ = ["UnitStatistics", "silent_units", "statistics_of", "unit_statistics"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnitStatistics:
    """Per layer, over all units (pixels too) and examples; leading axes are samples if there are any.

    - `deviation`: root mean square of the pre-activation;
    - `mean`, `variance`: of the layer's output;
    - `mean_square_slope`: mean of `f'(s)**2`, NaN for layers without an activation;
    - `saturated`: share of units in the tails, see `unit_statistics`;
    - `silent`: share of units that are silent on the batch, see `silent_units`; if it holds all data, they are dead.

    The last two are 0 for layers without units of their own, such as pools, and NaN for layers that have parameters
    but no activation, such as `Residual`: their units are inside, and not looked at. Of a `Block` it is the units of
    its last layer that are.
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
    activation has; by default 5 %, which for the sigmoid means beyond 4.36 on either side. For the rectifiers that is
    all of the lower half, `leaky_relu` with its slope of 1 % included. The share is NaN for an activation of yours
    whose `derivative_bound` is not known. Cost: one forward pass. Raises as
    `gradcourse.measure.jacobians.backward_jacobian_norms`, also where a variance overflows.
    """
    found = statistics_of(network, *network.measurable(params, x), tail=positive_number("tail", tail))
    check_overflow(jnp.isfinite(jnp.stack([found.deviation, found.mean, found.variance])).all())
    return found


def silent_units(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> tuple[Bool[Array, " unit"], ...]:
    """Returns for every layer which of its units are silent: their slope is exactly 0 on each example of `x`.

    Nothing that a silent unit does can be learned from this batch: no gradient passes it. A convolution's unit is a
    channel, silent where it is so at every pixel; layers without an activation have no silent units, and those inside
    of a `Residual` are not looked at. A unit is *dead* if it is silent on all data: combine the batches with `&`. Cost
    and errors as in `unit_statistics`.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(2, [3], 1, activation="relu")
    >>> params = network.init(key=jax.random.key(0))
    >>> params[0]["bias"] = jnp.array([[-100.0, 100.0, -100.0]])
    >>> [units.tolist() for units in silent_units(network, params, jnp.ones((5, 2)))]
    [[True, False, True], [False]]
    """
    stages = _silent_units(network, *network.measurable(params, x))
    check_overflow(jnp.stack([finite.all() for _, finite in stages]).all())
    return tuple(units for silent, _ in stages for units in silent)


@partial(jax.jit, static_argnums=0)
def statistics_of(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    *,
    tail: _ArrayLike = 0.05,
    present: tuple[Bool[Array, "..."], ...] | None = None,
) -> UnitStatistics:
    """Returns `unit_statistics` without looking at its arguments' numbers; layers not `present` hand on their input."""

    def step(layer: Layer, one: Any, scaled: ScaledInput) -> tuple[ScaledInput, dict[str, Array]]:
        p, there = one
        scaled_next, found = looked_at(layer, p, scaled)
        if there is None or scaled_next[0].shape != scaled[0].shape:
            return scaled_next, found
        return jax.tree.map(partial(jnp.where, there), scaled_next, scaled), found

    def looked_at(layer: Layer, p: Any, scaled: ScaledInput) -> tuple[ScaledInput, dict[str, Array]]:
        scaled_next, point = linearized(layer, p, scaled)
        h, h_next = times_power(*scaled), times_power(*scaled_next)
        found = {"mean": h_next.mean(), "variance": h_next.var()}
        if layer.activation is None:
            unknown = jnp.full((), nan, h.dtype)
            share = unknown if jax.tree.leaves(p) else jnp.zeros_like(unknown)
            found |= {"deviation": _root_mean_square(h_next), "mean_square_slope": unknown}
            return scaled_next, found | {"saturated": share, "silent": share}
        bound, slope = layer.activation.derivative_bound, _slope(point, h_next)
        saturated = (jnp.abs(slope) < tail * bound).mean()
        deviation = _root_mean_square(layer.preactivation(p, h))
        found |= {"deviation": deviation, "mean_square_slope": jnp.square(slope).mean()}
        found |= {"saturated": saturated * nan if isnan(bound) else saturated}  # nothing is below NaN
        return scaled_next, found | {"silent": _silent(slope).mean()}

    everywhere = (None,) * len(params) if present is None else present
    _, collected = network.scan(step, tuple(zip(params, everywhere, strict=True)), as_scaled(x))
    return UnitStatistics(**joined(collected), layers=network.layer_names)


@partial(jax.jit, static_argnums=0)
def _silent_units(
    network: Network, params: Params, x: Array
) -> list[tuple[Bool[Array, "layer unit"], Bool[Array, " layer"]]]:
    """Per stage, which units are silent, and whether no layer has overflowed."""

    def step(layer: Layer, p: Any, h: ScaledInput) -> tuple[ScaledInput, tuple[Array, Array]]:
        h_next, point = linearized(layer, p, h)
        if layer.activation is None:
            return h_next, (jnp.zeros(h_next[0].shape[-1], bool), jnp.isfinite(h_next[0]).all())
        slope = _slope(point, h_next[0])
        return h_next, (_silent(slope), jnp.isfinite(slope).all())

    return network.scan(step, params, as_scaled(x))[1]


def _slope(point: Linearized, h_next: Array) -> Float[Array, "batch *output"]:
    return point.times_slope(jnp.ones_like(h_next)[None])[0]


def _silent(slope: Float[Array, "batch *output"]) -> Bool[Array, " unit"]:
    return jnp.all(slope == 0, axis=range(slope.ndim - 1))


def _root_mean_square(values: Array) -> Array:
    values, exponent = to_unit(values, tuple(range(values.ndim)))
    return jnp.ldexp(jnp.sqrt(jnp.square(values).mean()), exponent)
