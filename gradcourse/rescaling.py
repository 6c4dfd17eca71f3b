r"""Rescaling probes: the gradients of a chain of any depth, in float32, from one ordinary `jax.grad`.

`rescale(h, p)` is `h`, as `gradcourse.probes.probe` is. On the way back it also divides the cotangent by a power of
two, so that it never leaves the floating-point range, and returns the exponent as the gradient of the dummy `p`:

>>> def loss(weights, probes, x):
...     step = lambda h, layer: (rescale(h @ layer[0], layer[1]), None)
...     return jax.lax.scan(step, x, (weights, probes))[0].sum()
>>> weights = jnp.stack([1e-3 * jnp.eye(2)] * 100)
>>> gradient, found = jax.grad(loss, argnums=(0, 1))(weights, RescalingProbe.zeros(100), jnp.ones((1, 2)))
>>> profile(found).log10_norm[[0, -1]].round(2)  # in plain float32, the first would be 0
array([-296.85,    0.15])

Like `probe`, `rescale` is a `jax.custom_vjp` function: for forward mode (`jax.jvp`), pass `None` for `p`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gradcourse._checks import known_false
from gradcourse._logdomain import Scaled, exact_profile, normal, sum_of_squares
from gradcourse.probes import Dummy, check_fitting, floating, is_floating, stacked
from gradcourse.profile import Profile

__all__ = ["RescalingProbe", "exponents", "profile", "rescale"]

H = TypeVar("H")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RescalingProbe(Dummy):
    """The dummy that `rescale` takes, with the shape `()`; as a gradient, what was divided by and what is left.

    - `exponent`: the cotangent was divided by `2 ** exponent`, a whole number;
    - `square`: the squared norm after the division;
    - `uses`: how often the probe was passed; anything but 1 makes the other two meaningless.

    For `lax.scan` put the layers in front: `RescalingProbe.zeros(depth)`.
    """

    exponent: Any  # all three Float[Array, "*sample"]; JAX also puts placeholders here, so this is not checked
    square: Any
    uses: Any


def rescale(h: H, p: RescalingProbe | None) -> H:
    r"""Returns `h`; on the way back its cotangent is divided by the power of two next to its norm.

    So the gradient of a chain of any depth stays alive in float32. All examples share one power, because their
    parameter gradients are summed: everything that lies before this point gets a gradient divided by
    `2 ** exponent`, on top of what the probes between here and the loss have divided by. `profile` adds these up for
    the cotangents, `exponents` for the gradients of parameters.

    It is valid in a plain chain alone, where everything before this point reaches the loss through this point, and
    every later probe, alone. So put it where the whole signal passes: between layers, or behind the sum of a shortcut,
    but not inside one of its branches. Parameters must belong to one layer each: neither shared between layers nor
    regularised in the loss, for such gradients would be sums of parts that were divided by different powers. Wrong uses
    raise no error and give wrong numbers; where in doubt use `gradcourse.probes.probe`, which is valid everywhere.

    Raises as `probe`, and `ValueError` unless the shape of `p` is `()`.
    """
    if p is None:
        return h
    if isinstance(p, RescalingProbe) and p.shape:
        raise ValueError(
            f"rescale got p of shape {p.shape}; accepted is (), for all examples share one power of two. "
            "Of stacked probes take one, p[index], or scan over them."
        )
    check_fitting("rescale", h, p, RescalingProbe)
    return _rescale(h, p)


def profile(
    found: Any, layers: Sequence[str] | None = None, *, axis: int = -1, quantity: str = "gradient norm at each probe"
) -> Profile:
    """Returns the profile of the gradient norms at the probes, as they are without rescaling.

    `found` is the gradient with respect to the probes: a list of them along the chain, the last one next to the loss,
    or stacked ones, whose axis `axis` runs over the layers; other axes are samples. Raises `ValueError` where a probe
    was not passed exactly once, and `TypeError` for anything else.
    """
    chain, names = _chain(found, layers, axis)
    return exact_profile(Scaled(_added_up(chain), chain.square), names, quantity)


def exponents(found: Any, *, axis: int = -1) -> Int[Array, "*sample layer"]:
    """Returns `e` per probe: gradients of what lies right before it have been divided by `2 ** e[layer]`.

    So the gradient of layer `l`, whose output passes probe `l`, is `2 ** e[l]` times the one that JAX returned.
    `found` and errors as in `profile`.
    """
    return _added_up(_chain(found, None, axis)[0])


def _chain(found: Any, layers: Sequence[str] | None, axis: int) -> tuple[RescalingProbe, tuple[str, ...]]:
    """The probes as one whose last axis runs along the chain, each passed once, and the layers' names."""
    if isinstance(found, Mapping):
        raise TypeError(
            "found is a dictionary of rescaling probes, which JAX sorts by name; accepted is a list along the chain."
        )
    parts = found if isinstance(found, list | tuple) else [found]
    if any(isinstance(one, Dummy) and not isinstance(one, RescalingProbe) for one in parts):
        raise TypeError("found holds plain probes, which rescale nothing; accepted is the gradient of RescalingProbes.")
    chain, names = stacked(found, RescalingProbe, layers, axis)
    if known_false((chain.uses == 1).all()):
        counts = np.asarray(chain.uses).reshape(-1, len(names))
        index = int((counts != 1).any(axis=0).argmax())
        raise ValueError(
            f"the rescaling probe {names[index]!r} was passed {counts[:, index].max():g} times on the way back; "
            "accepted is once. Give each place a probe of its own (a scan: RescalingProbe.zeros(depth) among its xs)."
        )
    return chain, names


def _added_up(chain: RescalingProbe) -> Int[Array, "*sample layer"]:
    """The exponents of each probe and of all behind it, in sum."""
    return jnp.flip(jnp.cumsum(jnp.flip(chain.exponent.astype(jnp.int32), -1), axis=-1), -1)


def _backward(p: RescalingProbe, cotangent: Any) -> tuple[Any, RescalingProbe]:
    norm = normal(sum_of_squares(floating(cotangent, p.dtype)))
    limit = -int(jnp.finfo(p.dtype).minexp)  # the largest power of two whose inverse is a normal number
    power = jnp.where(jnp.isfinite(norm.square), jnp.clip(norm.exponent, -limit, limit), 0)
    factor = jnp.ldexp(jnp.ones_like(p.square), -power)

    def divided(leaf: Any) -> Any:
        if not is_floating(leaf):
            return leaf
        wide = np.promote_types(leaf.dtype, p.dtype) if jnp.iscomplexobj(leaf) else p.dtype
        return (leaf.astype(wide) * factor.astype(wide)).astype(leaf.dtype)  # half precision cannot hold the power

    square = jnp.ldexp(norm.square, 2 * (norm.exponent - power))
    return jax.tree.map(divided, cotangent), RescalingProbe(power.astype(p.dtype), square, jnp.ones_like(square))


_rescale = jax.custom_vjp(lambda h, p: h)
_rescale.defvjp(lambda h, p: (h, p), _backward)
