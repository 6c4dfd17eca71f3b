"""Shortcuts: layers with an identity path round them.

>>> from gradcourse.layers import Dense
>>> from gradcourse.networks import sequential
>>> block = Residual((Dense(64, "relu", init="he_normal"), Dense(64, init="he_normal")), scale=0.1)
>>> network = sequential(64, [block] * 50 + [Dense(10)])
>>> network.depth, network.layer_names[0]
(51, '0 residual')
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse.checks import positive_number
from gradcourse.layers import Layer, Saved, Shape, wait_for

__all__ = ["Residual", "parameter_gradient"]


@dataclass(frozen=True, init=False)
class Residual(Layer):
    r"""`h + scale * body(h)`, where the body is a few layers that keep the shape.

    Its Jacobian is $I + \text{scale} \cdot J_{\text{body}}$, and it counts as one layer: a norm is taken before and
    after it, for only there do all paths to the output meet. Its parameters are those of the body's layers, under
    `"0"`, `"1"` and so on. (He, Zhang, Ren and Sun, 2016.)
    """

    body: tuple[Layer, ...]
    scale: float
    kind: ClassVar[str] = "residual"

    def __init__(self, body: Sequence[Layer] | Layer, *, scale: float = 1.0):
        layers = (body,) if isinstance(body, Layer) else tuple(body)
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"body[{index}]={layer!r} is a {type(layer).__name__}; accepted are layers.")
        if not layers:
            raise ValueError("body is empty; accepted is at least one layer that keeps the shape.")
        object.__setattr__(self, "body", layers)
        object.__setattr__(self, "scale", positive_number("scale", scale, zero=True))

    @property
    def draws_by_qr(self) -> bool:
        """True if a layer of the body does."""
        return any(layer.draws_by_qr for layer in self.body)

    def shapes(self, shape: Shape) -> list[Shape]:
        """Returns the shape of one input of each of the body's layers."""
        shapes = [shape]
        for layer in self.body:
            shapes.append(layer.output_shape(shapes[-1]))
        return shapes[:-1]

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `shape`; raises `ValueError` where the body does not keep it."""
        after = self.body[-1].output_shape(self.shapes(shape)[-1])
        if after != shape:
            raise ValueError(
                f"Residual got an input of shape {shape} and its body returns {after}; accepted is a body that keeps "
                "the shape. Change widths outside of shortcuts."
            )
        return shape

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> dict[str, Any]:
        """Returns the parameters of the body's layers."""
        params: dict[str, Any] = {}
        keys = jax.random.split(key, len(self.body))
        for index, (layer, inner) in enumerate(zip(self.body, self.shapes(shape), strict=True)):
            params[str(index)] = layer.init(inner, key=wait_for(params, keys[index]))
        return params

    def apply(self, params: dict[str, Any], h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns `h + scale * body(h)`."""
        out = h
        for index, layer in enumerate(self.body):
            out = layer.apply(params[str(index)], out)
        return h + self.scale * out

    def linearize(self, params: dict[str, Any], h: Float[Array, "batch *shape"]) -> tuple[Array, Saved]:
        """Returns the output and what the body's layers save."""
        out, saved = h, []
        for index, layer in enumerate(self.body):
            out, point = layer.linearize(params[str(index)], out)
            saved.append(point)
        return h + self.scale * out, saved

    def pull(
        self, params: dict[str, Any], saved: Saved, v: Float[Array, "direction batch *shape"], shape: Shape
    ) -> Float[Array, "direction batch *shape"]:
        """Returns `v + scale * (the body's transposed Jacobian of v)`."""
        out = self.scale * v
        for index, (layer, inner) in reversed(list(enumerate(zip(self.body, self.shapes(shape), strict=True)))):
            out = layer.pull(params[str(index)], saved[index], layer.through_activation(saved[index], out), inner)
        return v + out

    def parameter_gradient(
        self, params: dict[str, Any], h: Float[Array, "batch *shape"], v: Float[Array, "batch *shape"]
    ) -> dict[str, Any]:
        """Returns the gradient of `params` at the input `h` for the cotangent `v` on the output."""
        inputs, saved, gradients = [h], [], {}
        for index, layer in enumerate(self.body):
            after, point = layer.linearize(params[str(index)], inputs[-1])
            inputs.append(after)
            saved.append(point)
        out = self.scale * v[None]
        for index, (layer, inner) in reversed(list(enumerate(zip(self.body, self.shapes(h.shape[1:]), strict=True)))):
            p, point = params[str(index)], saved[index]
            out = layer.through_activation(point, out)
            gradients[str(index)] = parameter_gradient(layer, p, inputs[index], out[0])
            out = layer.pull(p, point, out, inner)
        return gradients

    def push(
        self, params: dict[str, Any], saved: Saved, v: Float[Array, "direction batch *shape"]
    ) -> Float[Array, "direction batch *shape"]:
        """Returns `v + scale * (the body's Jacobian of v)`."""
        out = self.scale * v
        for index, layer in enumerate(self.body):
            out = layer.through_activation(saved[index], layer.push(params[str(index)], saved[index], out))
        return v + out


def parameter_gradient(
    layer: Layer, params: dict[str, Any], h: Float[Array, "batch *shape"], v: Float[Array, "batch *output"]
) -> dict[str, Any]:
    """Returns the gradient of a layer's `params` at the input `h` for the cotangent `v` on its pre-activation.

    For layers without an activation, `Residual` among them, `v` is the cotangent on the output. Autodiff never passes
    an activation of `Dense` or `Conv`, whose slope it rounds to 0 in the tails.
    """
    if isinstance(layer, Residual):
        return layer.parameter_gradient(params, h, v)
    _, pull = jax.vjp(lambda p: getattr(layer, "preactivation", layer.apply)(p, h), params)
    return pull(v)[0]
