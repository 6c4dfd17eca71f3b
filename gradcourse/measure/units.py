"""How the units of a layer stand on a batch: their spread, which share of them is in the tails, and which are silent.

Each number is defined in `activation_statistics`: for a network's layers, and those of anybody's program in a report.

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

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike as _ArrayLike
from jaxtyping import Array, ArrayLike, Bool, Float

from gradcourse._checks import positive_number
from gradcourse._logdomain import check_overflow, times_power, to_unit
from gradcourse.nn.layers import Layer, ScaledInput, as_scaled
from gradcourse.nn.linearized import Linearized
from gradcourse.nn.network import Network, Params, joined

__all__ = ["TAIL", "UnitStatistics", "activation_statistics", "silent_units", "statistics_of", "unit_statistics"]

TAIL = 0.05  # a unit is in its tail where its slope is below this share of the steepest
FAR = 20.0  # where an activation function that levels off has done so
NEAR = (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)  # where activation functions are steepest
REACH = 4.0  # standard deviations by which a dead unit's pre-activation may move


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnitStatistics:
    """Per layer, over all units (pixels too) and examples; leading axes are samples if there are any.

    - `preactivation_rms`: root mean square of the pre-activation;
    - `mean`, `spread`: mean and standard deviation of what the layer puts out;
    - `mean_square_slope`: mean of `f'(s)**2`, NaN for layers without an activation;
    - `saturated`: share of entries in the tails of their activation function;
    - `silent`, `dead`: share of units that are silent on the batch, and of those that would stay so further out.

    The shares are defined in `activation_statistics`. They are 0 for layers without units of their own, such as pools,
    and NaN for layers that have parameters but no activation, such as `Residual`: their units are inside, and not
    looked at. Of a `Block` it is the units of its last layer that are.
    """

    preactivation_rms: Float[ArrayLike, "*sample layer"]
    mean: Float[ArrayLike, "*sample layer"]
    spread: Float[ArrayLike, "*sample layer"]
    mean_square_slope: Float[ArrayLike, "*sample layer"]
    saturated: Float[ArrayLike, "*sample layer"]
    silent: Float[ArrayLike, "*sample layer"]
    dead: Float[ArrayLike, "*sample layer"]
    layers: tuple[str, ...] = field(metadata={"static": True})


def activation_statistics(
    s: Float[Array, "*shape"],
    value: Float[Array, "*shape"],
    slope: Callable[[Array], Array],
    units: tuple[int, ...],
    *,
    here: Float[Array, "*shape"] | None = None,
    whole: bool = False,
    tail: _ArrayLike = TAIL,
) -> dict[str, Float[Array, ""]]:
    """Returns the statistics of one layer: `value` is what it puts out at the pre-activation `s`.

    - `mean`, `spread`: mean and standard deviation of `value`;
    - `saturated`: share of entries whose slope is below `tail` times the steepest, for functions that level off on both
      sides; others, such as rectifiers, have no tails: 0;
    - `silent`: share of units whose slope is exactly 0 on every example;
    - `dead`: share of units that would still be silent if their pre-activation went 4 of its standard deviations over
      the batch further, on either side: an estimate, from one batch, of which are silent on all data;
    - `finite`: 1 where `s` and `value` are finite everywhere, else 0. Then the shares are NaN.

    The units lie along the axes `units`. `slope` returns the slopes of the activation function at any pre-activations;
    if it is `whole`, it takes those in the shape of `s` alone. `here` are the slopes at `s`, if they are known. The
    steepest is looked for on the batch and at nine places from -20 to 20, at whose ends slopes of functions that level
    off are below 5 % of it.

    >>> s = jnp.array([[-3.0, 1.0], [-2.9, -1.0], [-3.1, 2.0]])
    >>> found = activation_statistics(s, jax.nn.relu(s), lambda s: jnp.where(s > 0, 1.0, 0.0), (1,))
    >>> float(found["silent"]), float(found["dead"]), float(found["saturated"])
    (0.5, 0.5, 0.0)
    """
    examples = tuple(axis for axis in range(s.ndim) if axis not in units)
    here = jnp.abs(slope(s) if here is None else here)
    steepest, levels_off = _range_of_slopes(here, slope, s if whole else None)
    dead = silent = (here == 0).all(axis=examples) & (steepest > 0)
    reach = REACH * s.std(axis=examples, keepdims=True)
    for place in (s.max(axis=examples, keepdims=True) + reach, s.min(axis=examples, keepdims=True) - reach):
        further = jnp.broadcast_to(place, s.shape) if whole else place
        dead &= (slope(further) == 0).all(axis=examples)
    wide = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    small, exponent = to_unit(wide, tuple(range(value.ndim)))  # squares overflow where values do not
    finite = jnp.isfinite(s).all() & jnp.isfinite(value).all()
    shares = {
        "saturated": jnp.where(levels_off, (here < tail * steepest).mean(dtype=wide.dtype), 0),
        "silent": silent.mean(dtype=wide.dtype),
        "dead": dead.mean(dtype=wide.dtype),
    }
    return {
        "mean": wide.mean(),
        "spread": jnp.ldexp(small.std(), exponent),
        "finite": finite.astype(wide.dtype),
        **{name: jnp.where(finite, share, jnp.nan) for name, share in shares.items()},
    }


def unit_statistics(
    network: Network, params: Params, x: Float[Array, "batch *shape"], *, tail: float = TAIL
) -> UnitStatistics:
    """Returns how the units of every layer stand on the batch `x`, `(batch, *input_shape)`.

    An entry is counted as saturated where its slope is below `tail` times the steepest that its activation has; by
    default 5 %, which for the sigmoid means beyond 4.36 on either side. Cost: one forward pass. Raises as
    `gradcourse.measure.jacobians.backward_jacobian_norms`.
    """
    found = statistics_of(network, *network.measurable(params, x), tail=positive_number("tail", tail))
    check_overflow(jnp.isfinite(jnp.stack([found.preactivation_rms, found.mean, found.spread])).all())
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
    tail: _ArrayLike = TAIL,
    present: tuple[Bool[Array, "..."], ...] | None = None,
) -> UnitStatistics:
    """Returns `unit_statistics` without looking at its arguments' numbers; layers not `present` hand on their input."""

    def step(layer: Layer, one: Any, scaled: ScaledInput) -> tuple[ScaledInput, dict[str, Array]]:
        p, there = one
        scaled_next, point = layer.linearize_scaled(p, scaled)
        h, h_next = times_power(*scaled), times_power(*scaled_next)
        s = h_next if layer.activation is None else layer.preactivation(p, h)
        slope, here = jnp.ones_like, jnp.ones_like(s)
        if layer.activation is not None:  # `here` is right where plain activations leave the range
            slope, here = layer.activation.slope, _slope(point, h_next)
        found = activation_statistics(s, h_next, slope, (s.ndim - 1,), here=here, tail=tail)
        del found["finite"]
        small, exponent = to_unit(s, tuple(range(s.ndim)))
        found["preactivation_rms"] = jnp.ldexp(jnp.sqrt(jnp.square(small).mean()), exponent)
        found["mean_square_slope"] = jnp.square(here).mean()
        if layer.activation is None:
            unknown = jnp.full((), nan, s.dtype)
            share = unknown if jax.tree.leaves(p) else jnp.zeros_like(unknown)
            found |= {"mean_square_slope": unknown} | dict.fromkeys(("saturated", "silent", "dead"), share)
        if there is None or scaled_next[0].shape != scaled[0].shape:
            return scaled_next, found
        return jax.tree.map(partial(jnp.where, there), scaled_next, scaled), found

    everywhere = (None,) * len(params) if present is None else present
    _, collected = network.scan(step, tuple(zip(params, everywhere, strict=True)), as_scaled(x))
    return UnitStatistics(**joined(collected), layers=network.layer_names)


@partial(jax.jit, static_argnums=0)
def _silent_units(
    network: Network, params: Params, x: Array
) -> list[tuple[Bool[Array, "layer unit"], Bool[Array, " layer"]]]:
    """Per stage, which units are silent, and whether no layer has overflowed."""

    def step(layer: Layer, p: Any, h: ScaledInput) -> tuple[ScaledInput, tuple[Array, Array]]:
        h_next, point = layer.linearize_scaled(p, h)
        if layer.activation is None:
            return h_next, (jnp.zeros(h_next[0].shape[-1], bool), jnp.isfinite(h_next[0]).all())
        here = _slope(point, h_next[0])
        steepest, _ = _range_of_slopes(here, layer.activation.slope)
        silent = (here == 0).all(axis=tuple(range(here.ndim - 1))) & (steepest > 0)
        return h_next, (silent, jnp.isfinite(here).all())

    return network.scan(step, params, as_scaled(x))[1]


def _slope(point: Linearized, h_next: Array) -> Float[Array, "batch *output"]:
    return jnp.ones_like(h_next) if point.slope is None else point.slope


def _range_of_slopes(here: Array, slope: Callable[[Array], Array], s: Array | None = None) -> tuple[Array, Array]:
    """The steepest slope of a function, 0 where it has none, and whether it levels off on both sides.

    Where `s` is given the function is evaluated in its shape: the places are dealt out in turn. Without the barrier the
    compiler would work these slopes out itself, slowly.
    """
    places = jnp.array([FAR, -FAR, *NEAR], here.dtype if s is None else s.dtype)
    if s is not None:
        places = lax.optimization_barrier(jnp.resize(places, s.shape))
    there = jnp.abs(slope(places))
    steepest = jnp.maximum(jnp.abs(here).max(), there.max())
    return steepest, jnp.where(jnp.abs(places) == FAR, there, 0).max() < TAIL * steepest
