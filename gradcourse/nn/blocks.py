"""Blocks: a few layers that count as one, with or without a shortcut round them.

>>> from gradcourse.nn.layers import Dense
>>> from gradcourse.nn.network import sequential
>>> block = Residual((Dense(64, "relu", init="he_normal"), Dense(64, init="he_normal")), scale=0.1)
>>> network = sequential(64, [block] * 50 + [Dense(10)])
>>> network.depth, network.layer_names[0]
(51, '0 residual')
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gradcourse._checks import positive_number
from gradcourse.nn.layers import Layer, Saved, Shape, linearized, wait_for

__all__ = ["Block", "Residual"]

Params = dict[str, Any]


@dataclass(frozen=True, init=False)
class Block(Layer):
    """`body`, a few layers in a row that count as one: norms are taken before and after them.

    Equal blocks that follow one another are scanned, which their layers alone, being different, would not be. The
    block's activation is that of its last layer. Its parameters are those of the layers, under `"0"`, `"1"` and so on.

    >>> from gradcourse.nn.layers import Dense, Pointwise
    >>> from gradcourse.nn.network import sequential
    >>> block = Block((Dense(64), Pointwise("relu")))
    >>> len(sequential(64, [block] * 50).stages)
    1
    """

    body: tuple[Layer, ...]
    kind: ClassVar[str] = "block"

    def __init__(self, body: Sequence[Layer] | Layer):
        layers = (body,) if isinstance(body, Layer) else tuple(body)
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"body[{index}]={layer!r} is a {type(layer).__name__}; accepted are layers.")
        if not layers:
            raise ValueError("body is empty; accepted is at least one layer.")
        object.__setattr__(self, "body", layers)

    def with_body(self, body: Sequence[Layer]) -> "Block":
        """Returns the same with other layers."""
        return Block(body)

    @property
    def activation(self) -> Any:
        """That of the last layer."""
        return self.body[-1].activation

    @property
    def draws_by_qr(self) -> bool:
        """True if a layer of the body does."""
        return any(layer.draws_by_qr for layer in self.body)

    @property
    def couples_examples(self) -> bool:
        """True if a layer of the body does."""
        return any(layer.couples_examples for layer in self.body)

    def shapes(self, shape: Shape) -> list[Shape]:
        """Returns the shape of one input of each of the body's layers."""
        shapes = [shape]
        for layer in self.body:
            shapes.append(layer.output_shape(shapes[-1]))
        return shapes[:-1]

    def output_shape(self, shape: Shape) -> Shape:
        """Returns the shape of one output of the last layer."""
        return self.body[-1].output_shape(self.shapes(shape)[-1])

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns the parameters of the body's layers."""
        params: Params = {}
        keys = jax.random.split(key, len(self.body))
        for index, (layer, inner) in enumerate(zip(self.body, self.shapes(shape), strict=True)):
            params[str(index)] = layer.init(inner, key=wait_for(params, keys[index]))
        return params

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the last layer's output."""
        for index, layer in enumerate(self.body):
            h = layer.apply(params[str(index)], h)
        return h

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the last layer's pre-activation."""
        *before, last = enumerate(self.body)
        for index, layer in before:
            h = layer.apply(params[str(index)], h)
        return last[1].preactivation(params[str(last[0])], h)

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Saved]:
        """Returns the output and what the body's layers save."""
        saved = []
        for index, layer in enumerate(self.body):
            h, point = layer.linearize(params[str(index)], h)
            saved.append(point)
        return h, saved

    def linearize_scaled(
        self, params: Params, h: Float[Array, "batch *shape"], exponent: Int[Array, " batch"]
    ) -> tuple[Array, Array, Saved]:
        """Returns the output, its exponent and what the body's layers save."""
        saved, scaled = [], (h, exponent)
        for index, layer in enumerate(self.body):
            scaled, point = linearized(layer, params[str(index)], scaled)
            saved.append(point)
        return *scaled, saved

    def in_range(self, output: Float[Array, "batch *output"]) -> Array | None:
        """Returns what the last layer does."""
        return self.body[-1].in_range(output)

    def through_activation(self, saved: Saved, v: Float[Array, "direction batch *output"]) -> Array:
        """Returns `v` times the slope of the last layer's activation."""
        return self.body[-1].through_activation(saved[-1], v)

    def pull(self, params: Params, saved: Saved, v: Float[Array, "direction batch *output"], shape: Shape) -> Array:
        """Returns cotangents on the block's input for cotangents `v` on its pre-activation."""
        shapes = self.shapes(shape)
        for index in reversed(range(len(self.body))):
            v = self.body[index].pull(params[str(index)], saved[index], v, shapes[index])
            if index:
                v = self.body[index - 1].through_activation(saved[index - 1], v)
        return v

    def push(self, params: Params, saved: Saved, v: Float[Array, "direction batch *shape"]) -> Array:
        """Returns tangents on the block's pre-activation for tangents `v` on its input."""
        for index, layer in enumerate(self.body):
            if index:
                v = self.body[index - 1].through_activation(saved[index - 1], v)
            v = layer.push(params[str(index)], saved[index], v)
        return v

    def parameter_gradient(
        self, params: Params, h: Float[Array, "batch *shape"], v: Float[Array, "batch *output"]
    ) -> Params:
        """Returns the gradient of `params` at the input `h` for the cotangent `v` on the pre-activation."""
        inputs, saved, gradients = [h], [], {}
        for index, layer in enumerate(self.body):
            after, point = layer.linearize(params[str(index)], inputs[-1])
            inputs.append(after)
            saved.append(point)
        for index, layer in reversed(list(enumerate(self.body))):
            p = params[str(index)]
            gradients[str(index)] = layer.parameter_gradient(p, inputs[index], v)
            if index:
                (v,) = layer.pull(p, saved[index], v[None], inputs[index].shape[1:])
                (v,) = self.body[index - 1].through_activation(saved[index - 1], v[None])
        return gradients


@dataclass(frozen=True, init=False)
class Residual(Block):
    r"""`h + scale * body(h)`, where the body is a few layers that keep the shape.

    Its Jacobian is $I + \text{scale} \cdot J_{\text{body}}$, and it counts as one layer: a norm is taken before and
    after it, for only there do all paths to the output meet. (He, Zhang, Ren and Sun, 2016.) Put `Pointwise` behind it
    for an activation after the sum.

    With `learned`, `scale` is where a parameter `"scale"` starts; ReZero and SkipInit start it at 0 (Bachlechner et
    al., 2021; De and Smith, 2020), Fixup at 1 with last weights of 0 (Zhang, Dauphin and Ma, 2019).
    """

    scale: float
    learned: bool
    kind: ClassVar[str] = "residual"

    def __init__(self, body: Sequence[Layer] | Layer, *, scale: float = 1.0, learned: bool = False):
        super().__init__(body)
        object.__setattr__(self, "scale", positive_number("scale", scale, zero=True))
        object.__setattr__(self, "learned", bool(learned))

    def with_body(self, body: Sequence[Layer]) -> "Residual":
        """Returns the same with other layers."""
        return Residual(body, scale=self.scale, learned=self.learned)

    @property
    def activation(self) -> Any:
        """None: the sum has no activation, whatever the body's last layer has."""
        return None

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `shape`; raises `ValueError` where the body does not keep it."""
        after = super().output_shape(shape)
        if after != shape:
            raise ValueError(
                f"Residual got an input of shape {shape} and its body returns {after}; accepted is a body that keeps "
                "the shape. Change widths outside of shortcuts."
            )
        return shape

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns the parameters of the body's layers, and the scale's if it is learned."""
        return super().init(shape, key=key) | ({"scale": jnp.asarray(self.scale, float)} if self.learned else {})

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns `h + scale * body(h)`."""
        return h + self._scale(params) * super().apply(params, h)

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns the output: the sum has no activation."""
        return self.apply(params, h)

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Saved]:
        """Returns the output and what the body's layers save."""
        out, saved = super().linearize(params, h)
        return h + self._scale(params) * out, saved

    def linearize_scaled(
        self, params: Params, h: Float[Array, "batch *shape"], exponent: Int[Array, " batch"]
    ) -> tuple[Array, Array, Saved]:
        """Returns the output, its exponent and what the body's layers save."""
        return Layer.linearize_scaled(self, params, h, exponent)

    def in_range(self, output: Float[Array, "batch *shape"]) -> Array | None:
        """Returns `None`."""
        return None

    def through_activation(
        self, saved: Saved, v: Float[Array, "direction batch *shape"]
    ) -> Float[Array, "direction batch *shape"]:
        """Returns `v`."""
        return v

    def pull(
        self, params: Params, saved: Saved, v: Float[Array, "direction batch *shape"], shape: Shape
    ) -> Float[Array, "direction batch *shape"]:
        """Returns `v + scale * (the body's transposed Jacobian of v)`."""
        inner = super().through_activation(saved, self._scale(params) * v)
        return v + super().pull(params, saved, inner, shape)

    def push(
        self, params: Params, saved: Saved, v: Float[Array, "direction batch *shape"]
    ) -> Float[Array, "direction batch *shape"]:
        """Returns `v + scale * (the body's Jacobian of v)`."""
        return v + self._scale(params) * super().through_activation(saved, super().push(params, saved, v))

    def parameter_gradient(
        self, params: Params, h: Float[Array, "batch *shape"], v: Float[Array, "batch *shape"]
    ) -> Params:
        """Returns the gradient of `params` at the input `h` for the cotangent `v` on the output."""
        out, saved = super().linearize(params, h)
        (inner,) = super().through_activation(saved, self._scale(params) * v[None])
        gradient = super().parameter_gradient(params, h, inner)
        return gradient | ({"scale": jnp.sum(v * out)} if self.learned else {})

    def _scale(self, params: Params) -> Any:
        return params["scale"] if self.learned else self.scale
