r"""Per-layer Jacobian norms, all layers in one sweep, in the log domain.

Write $h_0 = x$ for the input, $h_{l+1}$ for the output of layer $l$, $y$ for the network's output, and
$J_l = \partial h_{l+1} / \partial h_l$. Then $\partial y / \partial h_l = J_{L-1} \cdots J_l$ is what back-propagation
multiplies, and $\partial h_{l+1} / \partial x = J_l \cdots J_0$.

All norms are Frobenius norms: the square root of the sum of squared entries. Each function sweeps once through the
network, whatever its depth, carrying one vector per output (or per input) and example, or random ones with an error
bar where there are too many (`measure.directions`). After every layer each example's vectors are divided by a power
of two, which is exact, and the whole exponent is kept. So a norm of 1e-600 is measured in float32 with all its digits.

Batch normalisation couples the examples of a batch. Then $y$ is the output of the *whole* batch, $x$ its whole input,
and the entry of example $b$ is the norm of $\partial (y_1, \ldots, y_B) / \partial h_{l, b}$ on the way back and of a
layer alone, of $\partial h_{l+1, b} / \partial (x_1, \ldots, x_B)$ on the way forward. The squares of a batch's entries
add up to that of the whole Jacobian's norm; it costs one pass per output entry *and example*. To measure what the
network does to single examples once its statistics are fixed, see `gradcourse.at_inference`.

Activations have exponents, too, wherever a layer is linear near 0: they may underflow, and a rectifier's may overflow.
What no exponent cures is rounding: a rectifier whose pre-activation is 0 to within it may be on in float32 and off in
float64, and from there on the two compute different networks. Parameters of bfloat16 and float16 are measured in
float32: the norms are those of the function that they define.
"""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from gradcourse._logdomain import Scaled, log_ratio, rescale, total
from gradcourse.measure._sweep import frobenius_profile, pull_through, sound, swept
from gradcourse.measure.directions import Directions, Seen, checked_directions
from gradcourse.measure.division import Blocks, checked_mesh, gathered, in_blocks, plan_blocks, split_over
from gradcourse.nn.layers import Layer, as_scaled
from gradcourse.nn.linearized import Linearized
from gradcourse.nn.network import Network, Params, joined
from gradcourse.profile import Profile

__all__ = ["GainSplit", "backward_jacobian_norms", "forward_jacobian_norms", "layer_jacobian_norms", "log_gain_split"]

DIRECTIONS_AT_ONCE = 64  # so many are pulled back at a time of layers without a closed form


class GainSplit(NamedTuple):
    """The log10 gain of every layer on the way back: of a cotangent's norm, from the layer's output to its input.

    It is the sum of that through the layer's transposed `weights` and that through the slopes of its `activation`.
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
    >>> network = mlp(8, [32] * 300, 4, activation="sigmoid", init="standard")
    >>> params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 8))
    >>> f"{backward_jacobian_norms(network, params, x).log10_norm[0]:.1f}"
    '-256.8'
    """
    return swept("output", network, params, x, average, probes, sketch, key, memory, mesh)


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
    return swept("input", network, params, x, average, probes, sketch, key, memory, mesh)


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
    params, x = network.measurable(params, x, weights=False)
    if probes is not None:
        probes = checked_directions("a layer", max(probes, 2), probes, 0, key).probes
    sizes = [
        prod(stage.layer.output_shape(stage.shape)) * (x.shape[0] if stage.layer.couples_examples else 1)
        for stage in network.stages
        if stage.layer.frobenius_squares(stage.shape) is None
    ]
    most = max(sizes, default=1)
    random = most if sizes and probes is not None else 0
    directions = min(most, DIRECTIONS_AT_ONCE if probes is None else probes)
    mesh = checked_mesh(mesh, example=x.shape[0])
    blocks = plan_blocks(network, params, x, directions, memory, mesh, random=random)
    norms, error, is_finite = _squared_norms(network, probes, blocks, mesh, params, x, key)
    return sound(network, params, x, frobenius_profile(network, norms, error, "layer", average=average), is_finite)


@partial(jax.jit, static_argnums=range(4))
def _squared_norms(
    network: Network, probes: int | None, blocks: Blocks, mesh: Mesh | None, params: Params, x: Array, key: Any
) -> tuple[Scaled, Array, Bool[Array, ""]]:
    """The squared norms, `(layer, batch)`, the errors of their log10 roots, and whether all are finite."""

    def step(layer: Layer, p: Any, carry: Any) -> Any:
        h, keys = carry
        h_next, point = layer.linearize_scaled(p, h)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)  # other probes in every layer
        if (closed_form := layer.frobenius_squares(h[0].shape[1:])) is not None:
            norms = closed_form(p, point.times_slope(jnp.ones_like(h_next[0])[None])[0])
            return (h_next, keys), (norms, jnp.zeros_like(norms.square))
        return (h_next, keys), _by_directions(layer, p, point, h_next[0], probes, keys, blocks.directions)

    def block(examples: tuple[Array, Array]) -> Any:
        x, keys = examples
        return joined(network.scan(step, params, (as_scaled(split_over(mesh, x, "example")), keys))[1])

    keys = jax.random.split(jax.random.key(0) if key is None else key, x.shape[0])
    norms, error = gathered(mesh, in_blocks(block, (x, keys), blocks.examples))
    return norms, error, jnp.isfinite(norms.square).all()


def _by_directions(
    layer: Layer, p: Any, point: Linearized, output: Array, probes: int | None, keys: Array, at_once: int
) -> tuple[Scaled, Array]:
    """Squared norms and errors by pulling back every direction, some at a time, or random ones."""
    coupled, batch = layer.couples_examples, len(output)
    size = output.size if coupled else output[0].size
    directions = Directions(size, probes if probes is not None and probes < size else None, coupled=coupled)

    def pulled(v: Array) -> Seen:
        v = point.times_slope(v.reshape(-1, *output.shape))
        v, exponent, _ = rescale(v, jnp.zeros(batch, jnp.int32), together=coupled)
        v, exponent, _ = rescale(point.pull(p, v), exponent, together=coupled)
        return directions.see(v, exponent)

    if directions.probes is not None:
        return directions.estimate(pulled(directions.frames(None, keys, output.dtype)))
    count = min(size, DIRECTIONS_AT_ONCE, at_once)
    basis = partial(directions.basis, count=count, batch=batch, dtype=output.dtype)
    seen = lax.map(lambda first: pulled(basis(first)), jnp.arange(0, size, count))
    return total(Scaled(seen.exponent, seen.exact)), jnp.zeros(batch, output.dtype)


def log_gain_split(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> GainSplit:
    r"""Returns each layer's log10 gain on the way back, split into a weight part and an activation part.

    With $D_l$ the diagonal matrix of slopes and $W_l$ the linear map of layer $l$, $J_l = D_l W_l$, and the gain from
    $\|\partial y/\partial h_{l+1}\|$ to $\|\partial y/\partial h_l\|$ is that through $D_l$ times that through $W_l$.
    Norms are root mean squares over the batch; the standard errors are those of the ratios. Layers without weights
    (pooling, flatten) count as weights. A gain is minus infinity where the cotangent becomes exactly zero, and NaN
    where it is zero already. Arguments, cost and errors as in `backward_jacobian_norms`.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(8, [32] * 4, 4, activation="sigmoid", init="standard")
    >>> split = log_gain_split(network, network.init(key=jax.random.key(0)), jnp.ones((2, 8)))
    >>> bool(abs(split.weights.log10_norm + split.activation.log10_norm - split.total.log10_norm).max() < 1e-6)
    True
    """
    params, x = network.measurable(params, x, weights=False)
    return sound(network, params, x, *_gains(network, params, x))


@partial(jax.jit, static_argnums=0)
def _gains(network: Network, params: Params, x: Array) -> tuple[GainSplit, Array]:
    """What `log_gain_split` returns, and whether the norms are finite; it may hold NaN, where they are zero."""
    coupled, batch = network.couples_examples, len(x)
    directions = Directions(prod(network.output_shape) * (batch if coupled else 1), coupled=coupled)
    v = directions.basis(0, directions.size, batch=batch, dtype=x.dtype).reshape(-1, batch, *network.output_shape)
    found = pull_through(network, params, x, v, directions.see, careful=True)
    halfway, after = (Scaled(seen.exponent, seen.exact) for seen in (found.halfway, found.after))
    start = Scaled(jnp.zeros((1, batch), jnp.int32), jnp.full((1, batch), v[0, 0].size, x.dtype))
    before = Scaled(*(jnp.concatenate([full[1:], one]) for full, one in zip(after, start, strict=True)))
    parts = {"weights": (after, halfway), "activation": (halfway, before), "total": (after, before)}
    profiles = []
    for name, (top, bottom) in parts.items():
        exponent, fraction, error = log_ratio(top, bottom)
        profiles.append(Profile(exponent, fraction, error, network.layer_names, f"log gain on the way back, {name}"))
    return GainSplit(*profiles), jnp.all(jnp.isfinite(halfway.square) & jnp.isfinite(after.square))
