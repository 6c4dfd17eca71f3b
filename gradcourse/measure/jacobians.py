r"""Per-layer Jacobian norms, all layers in one sweep, in the log domain.

Write $h_0 = x$ for the input, $h_{l+1}$ for the output of layer $l$, $y$ for the network's output, and
$J_l = \partial h_{l+1} / \partial h_l$. Then

- `backward_jacobian_norms`: the norm of $\partial y / \partial h_l = J_{L-1} \cdots J_l$, which back-propagation
  multiplies;
- `forward_jacobian_norms`: the norm of $\partial h_{l+1} / \partial x = J_l \cdots J_0$;
- `layer_jacobian_norms`: the norm of $J_l$ alone;
- `log_gain_split`: how much of each layer's gain is due to its weights, how much to its activation.

All norms are Frobenius norms: the square root of the sum of squared entries. Each function sweeps once through the
network, whatever its depth, carrying one vector per output (or per input) and example, or random ones with an error
bar where there are too many (`measure.directions`). After every layer each example's vectors are divided by a power
of two, which is exact, and the whole exponent is kept. So a norm of 1e-600 is measured in float32 with all its digits.
Batch normalisation couples the examples of a batch: example $a$'s output depends on example $b$'s input. Then $y$ is
the output of the *whole* batch, $x$ its whole input, and the entry of example $b$ is the norm of
$\partial (y_1, \ldots, y_B) / \partial h_{l, b}$ on the way back, of $\partial h_{l+1, b} / \partial (x_1, \ldots,
x_B)$ on the way forward, and of a layer alone as on the way back. Either way the squares of a batch's entries add up to
the square of the whole Jacobian's norm. So a profile belongs to the batch that it was measured on; it costs one pass
per output entry *and example*, and without coupling it is what it was. To measure what the network does to single
examples once its statistics are fixed, see `gradcourse.at_inference`.
Activations have exponents, too, wherever a layer is linear near 0: they may underflow, and a rectifier's may overflow.
What no exponent cures is that float32 rounds them: a rectifier whose pre-activation is 0 to within rounding may be on
in float32 and off in float64, and from there on the two compute different networks.
Parameters of bfloat16 and float16 are measured in float32: the norms are those of the function that they define.

>>> import jax
>>> from gradcourse.nn.network import mlp
>>> network = mlp(8, [32] * 300, 4, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> x = jax.random.normal(jax.random.key(1), (5, 8))
>>> profile = backward_jacobian_norms(network, params, x)
>>> f"{profile.log10_norm[0]:.1f}"
'-256.8'
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import traced
from gradcourse._logdomain import Scaled, check_overflow, log_ratio, normal, profile_of, rescale, to_unit, total
from gradcourse.measure.directions import Directions, Seen, checked_directions
from gradcourse.measure.memory import Blocks, in_blocks, plan_blocks
from gradcourse.measure.mesh import checked_mesh, gathered, split_over
from gradcourse.nn.layers import Conv, Dense, Layer, as_scaled, linearized
from gradcourse.nn.network import Network, Params
from gradcourse.profile import Profile

__all__ = [
    "GainSplit",
    "backward_jacobian_norms",
    "forward_jacobian_norms",
    "layer_jacobian_norms",
    "log_gain_split",
]

R = TypeVar("R")
# Of layers without a closed form, so many directions are pulled back at a time.
DIRECTIONS_AT_ONCE = 64


class GainSplit(NamedTuple):
    """The log10 gain of every layer on the way back, in two parts that add up to the whole.

    - `weights`: the change of the cotangent's norm through the layer's transposed weights;
    - `activation`: its change through the layer's activation slopes;
    - `total`: from the layer's output to its input.
    """

    weights: Profile
    activation: Profile
    total: Profile


def backward_jacobian_norms(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    *,
    average: bool = True,
    probes: int | None = None,
    sketch: int = 0,
    key: PRNGKeyArray | None = None,
    memory: int | None = None,
    mesh: Mesh | None = None,
) -> Profile:
    r"""Returns $\|\partial y / \partial h_l\|_F$ for every layer $l$: entry $l$ is taken at its input.

    `x` is `(batch, *input_shape)`. With `average` the profile has one value per layer, the root mean square over the
    batch with its standard error over examples; without, it is `(batch, layer)`. Cost: one forward pass and one
    backward pass per output entry.

    - `probes`, with a `key`: carry so many random directions instead of one per output entry. Each example's norm then
      has a standard error; intervals of 1.96 of them hold in 95 % of cases from 16 probes on.
    - `sketch`: so many directions more, in which the network's Jacobian is large, measured exactly.
    - `memory`: bytes that the sweep may use beside `params` and `x`; it then goes through examples, and if need be
      directions, in blocks.
    - `mesh`: devices to split the work over; of its axes, `"example"` splits the batch and `"probe"` the directions.

    Raises `ValueError` or `TypeError` for parameters or inputs that do not fit or are not finite, and
    `FloatingPointError` where activations or products overflow.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(4, [4, 4], 4, activation="identity", init="orthogonal")
    >>> params = network.init(key=jax.random.key(0))
    >>> backward_jacobian_norms(network, params, jnp.ones((1, 4))).log10_norm.round(6)  # log10 of sqrt(4)
    array([0.30103, 0.30103, 0.30103])
    """
    return _swept("output", network, params, x, average, probes, sketch, key, memory, mesh)


def forward_jacobian_norms(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    *,
    average: bool = True,
    probes: int | None = None,
    sketch: int = 0,
    key: PRNGKeyArray | None = None,
    memory: int | None = None,
    mesh: Mesh | None = None,
) -> Profile:
    r"""Returns $\|\partial h_{l+1} / \partial x\|_F$ for every layer $l$: entry $l$ is taken at its output.

    Arguments and errors as in `backward_jacobian_norms`. Cost: one forward pass per input entry.
    """
    return _swept("input", network, params, x, average, probes, sketch, key, memory, mesh)


def layer_jacobian_norms(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    *,
    average: bool = True,
    probes: int | None = None,
    key: PRNGKeyArray | None = None,
    memory: int | None = None,
    mesh: Mesh | None = None,
) -> Profile:
    r"""Returns $\|\partial h_{l+1} / \partial h_l\|_F$ for every layer $l$.

    Arguments and errors as in `backward_jacobian_norms`. Cost: two forward passes, because for dense and convolutional
    layers $\|D W\|_F^2 = \sum_j f'(s_j)^2 \sum_i w_{ij}^2$ needs no Jacobian; other layers cost one pass per output
    entry, or per probe where they have more outputs than that.
    """
    params, x = network.measurable(params, x, exposed=False)
    if probes is not None:
        probes = checked_directions("a layer", max(probes, 2), probes, 0, key).probes
    sizes = [
        prod(stage.layer.output_shape(stage.shape)) * (x.shape[0] if stage.layer.couples_examples else 1)
        for stage in network.stages
        if not _has_closed_form(stage.layer, stage.shape)
    ]
    most = max(sizes, default=1)
    random = most if sizes and probes is not None else 0
    directions = min(most, DIRECTIONS_AT_ONCE if probes is None else probes)
    mesh = checked_mesh(mesh, example=x.shape[0])
    blocks = plan_blocks(network, params, x, directions, memory, mesh, random=random)
    return _finite(network, params, x, *_layer_norms(network, probes, blocks, mesh, average, params, x, key))


def log_gain_split(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> GainSplit:
    r"""Returns each layer's log10 gain on the way back, split into a weight part and an activation part.

    With $D_l$ the diagonal matrix of slopes and $W_l$ the linear map of layer $l$, $J_l = D_l W_l$, and the gain from
    $\|\partial y/\partial h_{l+1}\|$ to $\|\partial y/\partial h_l\|$ is the gain through $D_l$ times the gain through
    $W_l$. Norms are root mean squares over the batch; the standard errors are those of the ratios. Layers without
    weights (pooling, flatten) count as weights. A gain is minus infinity where the cotangent becomes exactly zero, and
    NaN where it is zero already. Arguments, cost and errors as in `backward_jacobian_norms`.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(8, [32] * 4, 4, activation="sigmoid", init="standard")
    >>> split = log_gain_split(network, network.init(key=jax.random.key(0)), jnp.ones((2, 8)))
    >>> bool(abs(split.weights.log10_norm + split.activation.log10_norm - split.total.log10_norm).max() < 1e-6)
    True
    """
    params, x = network.measurable(params, x, exposed=False)
    return _finite(network, params, x, *_gains(network, params, x))


# A sweep takes directions `v` (direction, batch, *shape) through the whole network, from the output to the input or
# the other way. It returns the vectors that arrive and, stacked over layers, what `see` keeps of them on the way:
# halfway through each layer (the careful way only) and after it; and whether all activations were in range.
See = Callable[[Array, Array], Any]
Swept = tuple[Array, tuple[Any, Any], Array]


def _pull_through(network: Network, params: Params, x: Array, v: Array, see: See, *, careful: bool) -> Swept:
    """From the output to the input, by transposed Jacobians."""
    _, forward = network.scan(partial(_linearized, careful=careful), params, as_scaled(x))
    saved, in_range = zip(*forward, strict=True)
    carry: Any = (v, _no_shift(x), _no_shift(x))
    results = []
    for stage, stage_params, stage_saved in reversed(list(zip(network.stages, params, saved, strict=True))):

        def step(carry: Any, one: Any, stage: Any = stage) -> Any:
            p, point = one
            slopes = partial(stage.layer.through_activation, point)
            weights = partial(stage.layer.pull, p, point, shape=stage.shape)
            return _step(carry, slopes, weights, see, careful=careful, together=network.couples_examples)

        carry, seen = stage.scan(step, carry, (stage_params, stage_saved), reverse=True)
        results.append(seen)
    return carry[0], jax.tree.map(lambda *stages: jnp.concatenate(stages), *reversed(results)), _all(in_range)


def _push_through(network: Network, params: Params, x: Array, v: Array, see: See, *, careful: bool) -> Swept:
    """From the input to the output, by Jacobians."""
    carry: Any = (as_scaled(x), (v, _no_shift(x), _no_shift(x)))
    results = []
    for stage, stage_params in zip(network.stages, params, strict=True):

        def step(carry: Any, p: Any, layer: Layer = stage.layer) -> Any:
            h, swept = carry
            h, (point, in_range) = _linearized(layer, p, h, careful=careful)
            weights, slopes = partial(layer.push, p, point), partial(layer.through_activation, point)
            swept, seen = _step(swept, weights, slopes, see, careful=careful, together=network.couples_examples)
            return (h, swept), (seen, in_range)

        carry, seen = stage.scan(step, carry, stage_params)
        results.append(seen)
    seen, in_range = zip(*results, strict=True)
    return carry[1][0], jax.tree.map(lambda *stages: jnp.concatenate(stages), *seen), _all(in_range)


def _linearized(layer: Layer, p: Any, h: tuple[Array, Array], *, careful: bool) -> tuple[Any, tuple[Any, Any]]:
    """The layer's output for an input `h` with exponents, what it saves, and whether the output was in range."""
    if careful:
        h, saved = linearized(layer, p, h)
        return h, (saved, None)
    output, saved = layer.linearize(p, h[0])
    return (output, h[1]), (saved, layer.in_range(output))


def _all(flags: Any) -> Array:
    return jnp.all(jnp.array([jnp.all(flag) for flag in jax.tree.leaves(flags)], bool))


def _step(
    carry: tuple[Array, Array, Array], first: Any, second: Any, see: See, *, careful: bool, together: bool
) -> Any:
    """One layer, in its two halves. The carry is `(v, exponent, due)`; `v` stands for `2 ** exponent` times itself.

    The careful way divides by the largest entry after either half, so that nothing is ever lost. The fast way divides
    by the norm seen, and only when the next layer multiplies by its slopes anyway, which costs nothing: the division
    is `due`. It is right while no layer changes a norm by more than a few decades; `_swept` looks whether that was so.
    Examples that are coupled are divided `together`.
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


def _no_shift(x: Array) -> Array:
    return jnp.zeros(x.shape[0], jnp.int32)


SWEEPS = {"output": _pull_through, "input": _push_through}
QUANTITIES = {
    "output": "output with respect to each layer's input",
    "input": "each layer's output with respect to the input",
}


def _swept(
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
    """The norms that a sweep from the `start` sees."""
    params, x = network.measurable(params, x, exposed=False)
    size = prod(_shape(network, start)) * (x.shape[0] if network.couples_examples else 1)
    directions = checked_directions(f"the {start}", size, probes, sketch, key, coupled=network.couples_examples)
    mesh = checked_mesh(mesh, example=x.shape[0])
    random = 0 if directions.probes is None else directions.size
    blocks = plan_blocks(network, params, x, directions.carried, memory, mesh, random=random)
    sweep = partial(_measured, start, network, directions, blocks, mesh, average)
    if not traced((params, x, key)):
        profile, trusted = sweep(False, params, x, key)
        if trusted:
            return profile
    return _finite(network, params, x, *sweep(True, params, x, key))


def _finite(network: Network, params: Params, x: Array, measured: R, is_finite: Array) -> R:
    """Returns what was `measured`; if it `is_finite` not, raises for the parameter that made it so, or for overflow.

    So big parameters are not read once more, which would take a quarter of a sweep's time.
    """
    try:
        check_overflow(is_finite)
    except FloatingPointError:
        network.check(params, x)
        raise
    return measured


@partial(jax.jit, static_argnums=range(7))
def _measured(
    start: str,
    network: Network,
    directions: Directions,
    blocks: Blocks,
    mesh: Mesh | None,
    average: bool,
    careful: bool,
    params: Params,
    x: Array,
    key: PRNGKeyArray | None,
) -> tuple[Profile, Array]:
    """What `_swept` returns, and whether it can be trusted: the careful way, wherever it is finite."""

    def sweep(x: Array, v: Array) -> Seen:
        v = split_over(mesh, v.reshape(*v.shape[:2], *_shape(network, start)), "probe", "example")
        _, (_, seen), in_range = SWEEPS[start](network, params, x, v, directions.see, careful=careful)
        return seen._replace(exact=jnp.where(in_range, seen.exact, jnp.nan))  # which the careful way then measures

    def block(examples: tuple[Array, Array]) -> Seen:
        x, keys = examples
        x = split_over(mesh, x, "example")
        if directions.probes is not None:
            large = _large(start, network, params, x, keys, directions.sketch)
            return sweep(x, directions.frames(large, keys, x.dtype))
        firsts = jnp.arange(0, directions.size, blocks.directions)
        basis = partial(directions.basis, count=blocks.directions, batch=x.shape[0], dtype=x.dtype)
        if len(firsts) == 1:
            return sweep(x, basis(0))

        def add(so_far: Scaled, first: Array) -> tuple[Scaled, None]:
            seen = sweep(x, basis(first))
            return total(jax.tree.map(lambda *both: jnp.stack(both), so_far, Scaled(seen.exponent, seen.exact))), None

        shape = (network.depth, x.shape[0])
        nothing = Scaled(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, x.dtype))
        return Seen(*lax.scan(add, nothing, firsts)[0])

    keys = jax.random.split(jax.random.key(0) if key is None else key, x.shape[0])
    seen = gathered(mesh, in_blocks(block, (x, keys), blocks.examples))
    limit = jnp.finfo(x.dtype).tiny ** (1 / 3)  # far from where squares are lost
    trusted = jnp.isfinite(seen.square) if careful else (seen.square > limit) & (seen.square < 1 / limit)
    norms, error = directions.estimate(seen)
    return _profile(network, normal(norms), error, average, QUANTITIES[start]), trusted.all()


def _shape(network: Network, end: str) -> tuple[int, ...]:
    return network.output_shape if end == "output" else network.input_shape


def _large(start: str, network: Network, params: Params, x: Array, keys: Array, count: int) -> Array | None:
    """`count` directions at the `start`, for every example, that come out of the network's other end large."""
    if not count:
        return None
    far = "input" if start == "output" else "output"
    shape = (count, *_shape(network, far))
    drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape, x.dtype))(keys)
    v, *_ = SWEEPS[far](network, params, x, jnp.moveaxis(drawn, 1, 0), lambda v, exponent: None, careful=True)
    return v.reshape(*v.shape[:2], -1)


@partial(jax.jit, static_argnums=0)
def _gains(network: Network, params: Params, x: Array) -> tuple[GainSplit, Array]:
    """What `log_gain_split` returns, and whether the norms are finite; it may hold NaN, where they are zero."""
    coupled = network.couples_examples
    directions = Directions(prod(network.output_shape) * (x.shape[0] if coupled else 1), coupled=coupled)
    basis = directions.basis(0, directions.size, batch=x.shape[0], dtype=x.dtype)
    v = basis.reshape(*basis.shape[:2], *network.output_shape)
    _, (halfway, after), _ = _pull_through(network, params, x, v, directions.see, careful=True)
    halfway, after = Scaled(halfway.exponent, halfway.exact), Scaled(after.exponent, after.exact)
    start = Scaled(jnp.zeros(x.shape[0], jnp.int32), jnp.full(x.shape[0], v[0, 0].size, x.dtype))
    before = Scaled(*(jnp.concatenate([full[1:], one[None]]) for full, one in zip(after, start, strict=True)))
    parts = {"weights": (after, halfway), "activation": (halfway, before), "total": (after, before)}
    profiles = {}
    for name, (top, bottom) in parts.items():
        exponent, fraction, error = log_ratio(top, bottom)
        profiles[name] = Profile(exponent, fraction, error, network.layer_names, f"log gain on the way back, {name}")
    return GainSplit(**profiles), jnp.all(jnp.isfinite(halfway.square) & jnp.isfinite(after.square))


@partial(jax.jit, static_argnums=range(5))
def _layer_norms(
    network: Network,
    probes: int | None,
    blocks: Blocks,
    mesh: Mesh | None,
    average: bool,
    params: Params,
    x: Array,
    key: PRNGKeyArray | None,
) -> tuple[Profile, Array]:
    """The norms of every layer's own Jacobian, and whether they are finite."""

    def step(layer: Layer, p: Any, carry: tuple[tuple[Array, Array], Array]) -> Any:
        (h, exponent), keys = carry
        (h_next, exponent), (point, _) = _linearized(layer, p, (h, exponent), careful=True)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)  # other probes in every layer
        if _has_closed_form(layer, h.shape[1:]):
            norms = _affine_norms(layer, p, point, h, h_next)
            return ((h_next, exponent), keys), (norms, jnp.zeros_like(norms.square))
        norms, error = _general_norms(layer, p, point, h, h_next, probes, keys, blocks.directions)
        return ((h_next, exponent), keys), (norms, error)

    def block(examples: tuple[Array, Array]) -> Any:
        x, keys = examples
        _, results = network.scan(step, params, (as_scaled(split_over(mesh, x, "example")), keys))
        return jax.tree.map(lambda *stages: jnp.concatenate(stages), *results)

    keys = jax.random.split(jax.random.key(0) if key is None else key, x.shape[0])
    norms, error = gathered(mesh, in_blocks(block, (x, keys), blocks.examples))
    profile = _profile(network, norms, error, average, "each layer's output with respect to its input")
    return profile, jnp.isfinite(norms.square).all()


def _has_closed_form(layer: Layer, shape: tuple[int, ...]) -> bool:
    """Whether squared weights add up to the squared norm: not where a kernel wraps round to meet a pixel twice."""
    if isinstance(layer, Conv):
        return layer.padding != "CIRCULAR" or layer.kernel_size <= min(shape[:2])
    return isinstance(layer, Dense)


def _affine_norms(layer: Any, p: Any, point: Array, h: Array, h_next: Array) -> Scaled:
    """Unit by unit (a convolution's are its channels), for units may differ by more than squares can."""
    weight, weight_exponent = to_unit(p["weight"], tuple(range(p["weight"].ndim - 1)))
    row_squares = layer.linear(jnp.square(weight), jnp.ones_like(h))
    pixels = tuple(range(1, h_next.ndim - 1))
    slopes, exponent = to_unit(layer.through_activation(point, jnp.ones_like(h_next)[None])[0], pixels)
    squares = jnp.sum(jnp.square(slopes) * row_squares, axis=pixels)
    return total(Scaled((exponent + weight_exponent[None]).T, squares.T))


def _general_norms(
    layer: Layer, p: Any, point: Any, h: Array, h_next: Array, probes: int | None, keys: Array, at_once: int
) -> tuple[Scaled, Array]:
    """By pulling back every direction, some at a time, or random ones."""
    coupled, batch = layer.couples_examples, h.shape[0]
    size = h_next.size if coupled else h_next[0].size
    directions = Directions(size, probes if probes is not None and probes < size else None, coupled=coupled)

    def pulled(v: Array) -> Seen:
        v = layer.through_activation(point, v.reshape(-1, *h_next.shape))
        v, exponent, _ = rescale(v, jnp.zeros(batch, jnp.int32), together=coupled)
        v, exponent, _ = rescale(layer.pull(p, point, v, h.shape[1:]), exponent, together=coupled)
        return directions.see(v, exponent)

    if directions.probes is not None:
        return directions.estimate(pulled(directions.frames(None, keys, h.dtype)))
    count = min(size, DIRECTIONS_AT_ONCE, at_once)
    basis = partial(directions.basis, count=count, batch=batch, dtype=h.dtype)
    seen = lax.map(lambda first: pulled(basis(first)), jnp.arange(0, size, count))
    return total(Scaled(seen.exponent, seen.exact)), jnp.zeros(batch, h.dtype)


def _profile(network: Network, norms: Scaled, error: Array, average: bool, quantity: str) -> Profile:
    quantity = f"Frobenius norm of the Jacobian: {quantity}"
    return profile_of(norms, error, network.layer_names, quantity, average=average)
