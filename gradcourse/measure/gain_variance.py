"""How unequally a network stretches directions: the spread of the squared singular values of its Jacobian.

`theory.isometry.gain_variance` predicts it for wide networks.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gradcourse.nn.layers import Layer
from gradcourse.nn.network import Network, joined

__all__ = ["gain_variance"]


def gain_variance(network: Network, params: Any, x: Float[Array, "1 *shape"]) -> Float[Array, " layer"]:
    """Returns the variance of the squared singular values of the Jacobian from the input to each layer's output.

    It is relative to their mean squared. For a network of layers of equal size, at one input. The whole Jacobian is
    carried forward as a matrix; the mean and the variance of its squared singular values are traces.

    >>> import jax
    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(8, [8], 8, activation="identity", init="orthogonal")
    >>> gain_variance(network, network.init(key=jax.random.key(0)), jnp.ones((1, 8))).max() < 1e-5
    Array(True, dtype=bool)
    """
    size = int(np.prod(network.input_shape))
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *network.input_shape)

    def step(layer: Layer, p: Any, carry: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        h, v = carry
        h, point = layer.linearize(p, h)
        v = point.times_slope(point.push(p, v))
        rows = v.reshape(size, -1)
        squares = jnp.matmul(rows, rows.T, precision=lax.Precision.HIGHEST)
        mean = jnp.trace(squares) / size
        return (h, v), jnp.sum(jnp.square(squares)) / size / jnp.square(mean) - 1

    return joined(network.scan(step, params, (x, basis))[1])
