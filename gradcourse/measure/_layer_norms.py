"""The norm of every layer's own Jacobian: in closed form where the layer has one, else by pulling directions back."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PRNGKeyArray

from gradcourse._logdomain import Scaled, rescale, total
from gradcourse.measure.directions import Directions, Seen
from gradcourse.measure.memory import Blocks, in_blocks
from gradcourse.measure.mesh import gathered, split_over
from gradcourse.nn.layers import Layer, as_scaled, linearized
from gradcourse.nn.linearized import Linearized
from gradcourse.nn.network import Network, Params, joined

__all__ = ["DIRECTIONS_AT_ONCE", "squared_norms"]

# Of layers without a closed form, so many directions are pulled back at a time.
DIRECTIONS_AT_ONCE = 64


@partial(jax.jit, static_argnums=range(4))
def squared_norms(
    network: Network,
    probes: int | None,
    blocks: Blocks,
    mesh: Mesh | None,
    params: Params,
    x: Array,
    key: PRNGKeyArray | None,
) -> tuple[Scaled, Array, Bool[Array, ""]]:
    """Returns the squared norms, `(layer, batch)`, the errors of their log10 roots, and whether all are finite."""

    def step(layer: Layer, p: Any, carry: Any) -> Any:
        h, keys = carry
        h_next, point = linearized(layer, p, h)
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
