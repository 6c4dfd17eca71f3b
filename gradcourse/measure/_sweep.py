"""The sweep: directions carried through a whole network, layer by layer, in the log domain.

A sweep takes directions `v`, `(direction, batch, *shape)`, from the output to the input by transposed Jacobians, or
from the input to the output by Jacobians. After every layer each example's vectors are divided by a power of two, which
is exact, and the exponents are kept. There are two ways:

- the *careful* one divides by the largest entry after either half of a layer, so that nothing is ever lost;
- the fast one divides by the norm seen, and only when the next layer multiplies by its slopes anyway, so that it costs
  nothing. It is right while no layer changes a norm by more than a few decades; `swept` looks whether that was so, and
  else measures the careful way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from gradcourse._checks import known_false, traced
from gradcourse._logdomain import Scaled, check_overflow, normal, profile_of, rescale, total
from gradcourse.measure.directions import Directions, Seen, checked_directions
from gradcourse.measure.division import Blocks, checked_mesh, gathered, in_blocks, plan_blocks, split_over
from gradcourse.nn.layers import Layer, ScaledInput, as_scaled
from gradcourse.nn.network import Network, Params, joined
from gradcourse.profile import Profile

__all__ = ["Plan", "Swept", "frobenius_profile", "pull_through", "sound", "swept"]

R = TypeVar("R")
See = Callable[[Array, Array], Any]  # what is kept of directions and their exponents


@dataclass(frozen=True)
class Plan:
    """How a measurement is to be made, known before any number is: what a compiled program is chosen by."""

    start: str  # "output" or "input", where the sweep starts
    directions: Directions
    blocks: Blocks
    mesh: Mesh | None
    average: bool
    careful: bool = False


class Swept(NamedTuple):
    """The vectors that arrive, what was seen on the way, and whether all activations were in range for their slopes.

    `halfway` through each layer is seen the careful way only; it and what was seen `after` are stacked over layers.
    """

    v: Float[Array, "direction batch *shape"]
    halfway: Any
    after: Any
    in_range: Bool[Array, ""]


def pull_through(network: Network, params: Params, x: Array, v: Array, see: See, *, careful: bool) -> Swept:
    """Returns the sweep from the output to the input, by transposed Jacobians."""
    _, forward = network.scan(partial(_forward_step, careful), params, as_scaled(x))
    points, in_range = zip(*forward, strict=True)

    def step(layer: Layer, one: Any, carry: Any) -> Any:
        p, point = one
        return _step(carry, point.times_slope, partial(point.pull, p), see, careful, network.couples_examples)

    start = v, *[jnp.zeros(len(x), jnp.int32)] * 2
    (v, *_), (halfway, after) = network.scan_back(step, list(zip(params, points, strict=True)), start)
    return Swept(v, halfway, after, _all(in_range))


def push_through(network: Network, params: Params, x: Array, v: Array, see: See, *, careful: bool) -> Swept:
    """Returns the sweep from the input to the output, by Jacobians."""

    def step(layer: Layer, p: Any, carry: Any) -> Any:
        h, swept = carry
        h, (point, in_range) = _forward_step(careful, layer, p, h)
        swept, seen = _step(swept, partial(point.push, p), point.times_slope, see, careful, network.couples_examples)
        return (h, swept), (seen, in_range)

    start = as_scaled(x), (v, *[jnp.zeros(len(x), jnp.int32)] * 2)
    (_, (v, *_)), results = network.scan(step, params, start)
    seen, in_range = zip(*results, strict=True)
    halfway, after = joined(seen)
    return Swept(v, halfway, after, _all(in_range))


def _forward_step(careful: bool, layer: Layer, p: Any, h: ScaledInput) -> tuple[ScaledInput, tuple[Any, Any]]:
    """The layer's output for an input with exponents, its linear map, and whether no example's output underflows."""
    if careful:
        h, point = layer.linearize_scaled(p, h)
        return h, (point, None)
    output, point = layer.linearize(p, h[0])
    in_range = None
    if layer.activation is not None and layer.activation.kinked_at_zero:  # so that the sign of small ones matters
        peak = jnp.max(jnp.abs(output), axis=range(1, output.ndim))
        in_range = jnp.all(peak > jnp.finfo(output.dtype).tiny ** 0.5)
    return (output, h[1]), (point, in_range)


def _all(flags: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.array([jnp.all(flag) for flag in jax.tree.leaves(flags)], bool))


def _step(carry: tuple[Array, Array, Array], first: Any, second: Any, see: See, careful: bool, together: bool) -> Any:
    """One layer, in its two halves; examples that are coupled are divided `together`.

    Of the carry `(v, exponent, due)`, `due` is the exponent of the division that the fast way leaves to the next layer.
    """
    v, exponent, due = carry
    if careful:
        v, exponent, _ = rescale(first(v), exponent, together=together)
        halfway = see(v, exponent)
        v, exponent, _ = rescale(second(v), exponent, together=together)
        return (v, exponent, due), (halfway, see(v, exponent))
    scale = jnp.ldexp(jnp.ones(due.shape, v.dtype), -due)
    exponent = exponent + due
    v = second(first(v * scale.reshape(1, -1, *[1] * (v.ndim - 2))))
    seen = see(v, exponent)
    due = jnp.frexp(seen.square)[1] // 2
    return (v, exponent, jnp.broadcast_to(due.max(), due.shape) if together else due), (None, seen)


SWEEPS = {"output": pull_through, "input": push_through}
QUANTITIES = {
    "output": "output with respect to each layer's input",
    "input": "each layer's output with respect to the input",
    "layer": "each layer's output with respect to its input",
}


def swept(
    start: str,
    network: Network,
    params: Params,
    x: Array,
    average: bool,
    probes: int | None,
    sketch: int,
    key: PRNGKeyArray | None,
    memory: int | None,
    mesh: Mesh | None,
) -> Profile:
    """Returns the norms that a sweep from the `start` sees, for the arguments of `backward_jacobian_norms`."""
    params, x = network.measurable(params, x, weights=False)
    size = prod(_shape(network, start)) * (x.shape[0] if network.couples_examples else 1)
    directions = checked_directions(f"the {start}", size, probes, sketch, key, coupled=network.couples_examples)
    mesh = checked_mesh(mesh, example=x.shape[0])
    random = 0 if directions.probes is None else directions.size
    blocks = plan_blocks(network, params, x, directions.carried, memory, mesh, random=random)
    plan = Plan(start, directions, blocks, mesh, average)
    if not traced((params, x, key)):
        profile, trusted = _measured(network, plan, params, x, key)
        if trusted:
            return profile
    return sound(network, params, x, *_measured(network, replace(plan, careful=True), params, x, key))


def sound(network: Network, params: Params, x: Array, measured: R, is_finite: Bool[Array, ""]) -> R:
    """Returns what was `measured`; if it `is_finite` not, raises for the parameter that made it so, or for overflow."""
    if known_false(is_finite):
        network.check(params, x)
    check_overflow(is_finite)
    return measured


@partial(jax.jit, static_argnums=(0, 1))
def _measured(network: Network, plan: Plan, params: Params, x: Array, key: Any) -> tuple[Profile, Bool[Array, ""]]:
    """What `swept` returns, and whether it can be trusted: the careful way, wherever it is finite."""
    directions, mesh = plan.directions, plan.mesh

    def sweep(x: Array, v: Array) -> Seen:
        v = split_over(mesh, v.reshape(*v.shape[:2], *_shape(network, plan.start)), "probe", "example")
        found = SWEEPS[plan.start](network, params, x, v, directions.see, careful=plan.careful)
        seen = found.after  # a NaN in it makes the careful way measure again
        return seen._replace(exact=jnp.where(found.in_range, seen.exact, jnp.nan))

    def block(examples: tuple[Array, Array]) -> Seen:
        x, keys = examples
        x = split_over(mesh, x, "example")
        if directions.probes is not None:
            large = _large(plan.start, network, params, x, keys, directions.sketch)
            return sweep(x, directions.frames(large, keys, x.dtype))
        firsts = jnp.arange(0, directions.size, plan.blocks.directions)
        basis = partial(directions.basis, count=plan.blocks.directions, batch=x.shape[0], dtype=x.dtype)
        if len(firsts) == 1:
            return sweep(x, basis(0))

        def add(so_far: Scaled, first: Array) -> tuple[Scaled, None]:
            seen = sweep(x, basis(first))
            return total(jax.tree.map(lambda *both: jnp.stack(both), so_far, Scaled(seen.exponent, seen.exact))), None

        nothing = (jnp.zeros((network.depth, len(x)), dtype) for dtype in (jnp.int32, x.dtype))
        return Seen(*lax.scan(add, Scaled(*nothing), firsts)[0])

    keys = jax.random.split(jax.random.key(0) if key is None else key, x.shape[0])
    seen = gathered(mesh, in_blocks(block, (x, keys), plan.blocks.examples))
    limit = jnp.finfo(x.dtype).tiny ** (1 / 3)  # far from where squares are lost
    trusted = jnp.isfinite(seen.square) if plan.careful else (seen.square > limit) & (seen.square < 1 / limit)
    norms, error = directions.estimate(seen)
    return frobenius_profile(network, normal(norms), error, plan.start, average=plan.average), trusted.all()


def _shape(network: Network, end: str) -> tuple[int, ...]:
    return network.output_shape if end == "output" else network.input_shape


def _large(start: str, network: Network, params: Params, x: Array, keys: Array, count: int) -> Array | None:
    """`count` directions at the `start`, for every example, that come out of the network's other end large."""
    if not count:
        return None
    far = "input" if start == "output" else "output"
    shape = (count, *_shape(network, far))
    drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape, x.dtype))(keys)
    v = SWEEPS[far](network, params, x, jnp.moveaxis(drawn, 1, 0), lambda v, exponent: None, careful=True).v
    return v.reshape(*v.shape[:2], -1)


def frobenius_profile(network: Network, norms: Scaled, error: Array, which: str, *, average: bool) -> Profile:
    """Returns the profile of `(layer, batch)` squared norms; the rest as in `profile_of`."""
    quantity = f"Frobenius norm of the Jacobian: {QUANTITIES[which]}"
    return profile_of(norms, error, network.layer_names, quantity, average=average)
