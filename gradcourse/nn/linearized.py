r"""A layer at one point of its input space, where it is a linear map.

`layer.linearize(params, h)` returns the output and a `Linearized`. With the pre-activation $s$ and the output $f(s)$,
the layer's Jacobian there is $\operatorname{diag}(f'(s)) \cdot \partial s / \partial h$, and a `Linearized` has the two
factors apart, because the course asks which of them shrinks a gradient: `slope` is $f'(s)$, `push` and `pull` multiply
by $\partial s / \partial h$ and by its transpose.

It holds no parameters, for a forward pass keeps those of all layers, and copies of all weights would cost more than
the pass. So `push` and `pull` are given the layer's parameters.

Cotangents and tangents are `(direction, batch, *shape)`, one entry of `direction` per output or input direction.

>>> import jax, jax.numpy as jnp
>>> from gradcourse.nn.layers import Dense
>>> layer = Dense(3, "tanh")
>>> params, h = layer.init((2,), key=jax.random.key(0)), jnp.ones((1, 2))
>>> output, point = layer.linearize(params, h)
>>> cotangents = jnp.eye(3)[:, None]  # one per output, for a batch of one example
>>> jacobian = point.pull(params, point.times_slope(cotangents))[:, 0]
>>> bool(jnp.allclose(jacobian, jax.jacobian(lambda h: layer.apply(params, h[None])[0])(h[0]), atol=1e-6))
True
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

__all__ = ["STATIC", "Diagonal", "Differentiated", "LinearMap", "Linearized", "per_channel"]

STATIC = {"static": True}  # what belongs to the form of a pytree, not to its arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linearized:
    """The base of all kinds: `slope` is `(batch, *output)`, or `None` where it is 1 everywhere."""

    slope: Any  # JAX puts placeholders in a pytree's fields, so arrays are not checked here

    def times_slope(self, v: Float[Array, "direction batch *output"]) -> Float[Array, "direction batch *output"]:
        """Returns `v` times the slope, forward or back: that factor is diagonal."""
        return v if self.slope is None else v * self.slope[None]

    def pull(self, params: Any, v: Float[Array, "direction batch *output"]) -> Float[Array, "direction batch *shape"]:
        """Returns cotangents on the layer's input for cotangents `v` on its pre-activation."""
        raise NotImplementedError

    def push(self, params: Any, v: Float[Array, "direction batch *shape"]) -> Float[Array, "direction batch *output"]:
        """Returns tangents on the layer's pre-activation for tangents `v` on its input."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Differentiated(Linearized):
    """Of any layer: its pre-activation, differentiated by autodiff at the input `h`."""

    h: Any
    layer: Any = field(metadata=STATIC)

    def pull(self, params: Any, v: Float[Array, "direction batch *output"]) -> Float[Array, "direction batch *shape"]:
        """Returns the transposed Jacobian of each `v`."""
        _, vjp = jax.vjp(partial(self.layer.preactivation, params), self.h)
        return jax.vmap(lambda cotangent: vjp(cotangent)[0])(v)

    def push(self, params: Any, v: Float[Array, "direction batch *shape"]) -> Float[Array, "direction batch *output"]:
        """Returns the Jacobian of each `v`."""
        function = partial(self.layer.preactivation, params)
        return jax.vmap(lambda tangent: jax.jvp(function, (self.h,), (tangent,))[1])(v)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinearMap(Linearized):
    """Of a layer that has its linear map and the transpose itself, for inputs of `shape`."""

    layer: Any = field(metadata=STATIC)
    shape: Any = field(metadata=STATIC)

    def pull(self, params: Any, v: Float[Array, "direction batch *output"]) -> Float[Array, "direction batch *shape"]:
        """Returns the transposed map of `v`, all directions in one product."""
        pulled = self.layer.transpose(params["weight"], v.reshape(-1, *v.shape[2:]), self.shape)
        return pulled.reshape(*v.shape[:2], *pulled.shape[1:])

    def push(self, params: Any, v: Float[Array, "direction batch *shape"]) -> Float[Array, "direction batch *output"]:
        """Returns the linear map of `v`, all directions in one product."""
        pushed = self.layer.linear(params["weight"], v.reshape(-1, *v.shape[2:]))
        return pushed.reshape(*v.shape[:2], *pushed.shape[1:])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagonal(Linearized):
    """Of a layer that multiplies each channel by its entry of `params["scale"]`, or by 1 if it has none."""

    def pull(self, params: Any, v: Float[Array, "direction batch *shape"]) -> Float[Array, "direction batch *shape"]:
        """Returns `scale * v`."""
        return v * per_channel(params["scale"], v) if "scale" in params else v

    push = pull


def per_channel(values: Float[Array, " channel"], like: Array) -> Array:
    """Returns `values` with as many axes as `like`, channels last."""
    return values.reshape(*[1] * (like.ndim - 1), -1)
