"""Blocks: a few layers that count as one, with or without a shortcut round them.

>>> from gradcourse.nn.layers import Dense
>>> from gradcourse.nn.network import sequential
>>> block = Residual((Dense(64, "relu", initializer="he_normal"), Dense(64, initializer="he_normal")), scale=0.1)
>>> network = sequential(64, [block] * 50 + [Dense(10)])
>>> network.depth, network.layer_names[0], len(network.stages)
(51, '0 residual', 2)
"""

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import positive_number
from gradcourse.nn.layers import Layer, Params, ScaledInput, Shape, wait_for
from gradcourse.nn.linearized import STATIC, Linearized

__all__ = ["Block", "Residual"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Chain(Linearized):
    """Of layers in a row; the last one's slope is the chain's own, and not kept a second time in its part."""

    parts: Any

    def pull(self, params: Params, v: Float[Array, "direction batch *output"]) -> Array:
        for index, part in reversed(list(enumerate(self.parts))):
            v = part.pull(params[str(index)], part.times_slope(v))
        return v

    def push(self, params: Params, v: Float[Array, "direction batch *shape"]) -> Array:
        for index, part in enumerate(self.parts):
            v = part.times_slope(part.push(params[str(index)], v))
        return v


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Shortcut(Linearized):
    """Of `h + scale * body(h)`, a `layer`."""

    body: Any
    layer: Any = field(metadata=STATIC)

    def pull(self, params: Params, v: Float[Array, "direction batch *shape"]) -> Array:
        return v + self.body.pull(params, self.body.times_slope(self.layer.scale_of(params) * v))

    def push(self, params: Params, v: Float[Array, "direction batch *shape"]) -> Array:
        return v + self.layer.scale_of(params) * self.body.times_slope(self.body.push(params, v))


@dataclass(frozen=True)
class Block(Layer):
    """`body`, a few layers in a row that count as one: norms are taken before and after them.

    Equal blocks that follow one another are scanned, which their layers alone, being different, would not be. Its
    activation is that of its last layer, its parameters are those of the layers, under `"0"`, `"1"` and so on.
    """

    body: Any  # a layer or a sequence of them; kept as a tuple
    kind: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        layers = (self.body,) if isinstance(self.body, Layer) else tuple(self.body)
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"body[{index}]={layer!r} is a {type(layer).__name__}; accepted are layers.")
        if not layers:
            raise ValueError("body is empty; accepted is at least one layer.")
        of_any = {name: any(getattr(layer, name) for layer in layers) for name in ("couples_examples", "draws_by_qr")}
        self._set(body=layers, activation=layers[-1].activation, **of_any)

    def output_shape(self, shape: Shape) -> Shape:
        """Returns the shape of one output of the last layer."""
        for layer in self.body:
            shape = layer.output_shape(shape)
        return shape

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns the parameters of the body's layers."""
        params: Params = {}
        for index, (layer, one) in enumerate(zip(self.body, jax.random.split(key, len(self.body)), strict=True)):
            params[str(index)] = layer.init(shape, key=wait_for(params, one))
            shape = layer.output_shape(shape)
        return params

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the last layer's output."""
        for layer, p in self._layers(params):
            h = layer.apply(p, h)
        return h

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the last layer's pre-activation."""
        *before, (last, own) = self._layers(params)
        for layer, p in before:
            h = layer.apply(p, h)
        return last.preactivation(own, h)

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Linearized]:
        """Returns the output and the chain of the layers' linear maps."""
        return self._chained(params, h, lambda layer, p, h: layer.linearize(p, h))

    def linearize_scaled(self, params: Params, h: ScaledInput) -> tuple[ScaledInput, Linearized]:
        """Returns the output with exponents and the chain of the layers' linear maps."""
        return self._chained(params, h, lambda layer, p, h: layer.linearize_scaled(p, h))

    def parameter_gradient(self, params: Params, h: Array, v: Float[Array, "batch *output"]) -> Params:
        """Returns the gradient of `params` at the input `h` for the cotangent `v` on the pre-activation."""
        inputs, parts, gradients = [h], [], {}
        for layer, p in self._layers(params):
            after, point = layer.linearize(p, inputs[-1])
            inputs.append(after)
            parts.append(point)
        for index, (layer, p) in reversed(list(enumerate(self._layers(params)))):
            gradients[str(index)] = layer.parameter_gradient(p, inputs[index], v)
            if index:
                (v,) = parts[index - 1].times_slope(parts[index].pull(p, v[None]))
        return gradients

    def _chained(self, params: Params, h: Any, linearize: Any) -> tuple[Any, Linearized]:
        parts = []
        for layer, p in self._layers(params):
            h, point = linearize(layer, p, h)
            parts.append(point)
        return h, _Chain(parts[-1].slope, (*parts[:-1], replace(parts[-1], slope=None)))

    def _layers(self, params: Params) -> list[tuple[Layer, Params]]:
        return [(layer, params[str(index)]) for index, layer in enumerate(self.body)]


@dataclass(frozen=True)
class Residual(Block):
    r"""`h + scale * body(h)`, where the body is a few layers that keep the shape.

    Its Jacobian is $I + \text{scale} \cdot J_{\text{body}}$ (He, Zhang, Ren and Sun, 2016). Put `Pointwise` behind it
    for an activation after the sum.

    With `learned`, `scale` is where a parameter `"scale"` starts; ReZero and SkipInit start it at 0 (Bachlechner et
    al., 2021; De and Smith, 2020), Fixup at 1 with last weights of 0 (Zhang, Dauphin and Ma, 2019).
    """

    _: KW_ONLY
    scale: float = 1.0
    learned: bool = False
    kind: ClassVar[str] = "residual"
    preactivation = Layer.preactivation  # the output, for the sum has no activation
    linearize_scaled = Layer.linearize_scaled  # in the general form, for a sum of two terms is of one size

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = positive_number("scale", self.scale, zero=True)
        self._set(scale=scale, learned=bool(self.learned), activation=None)

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
        return h + self.scale_of(params) * super().apply(params, h)

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Linearized]:
        """Returns the output and the linear map, the identity plus `scale` times the body's."""
        output, body = super().linearize(params, h)
        return h + self.scale_of(params) * output, _Shortcut(None, body, self)

    def parameter_gradient(self, params: Params, h: Array, v: Float[Array, "batch *shape"]) -> Params:
        """Returns the gradient of `params` at the input `h` for the cotangent `v` on the output."""
        output, body = super().linearize(params, h)
        (inner,) = body.times_slope(self.scale_of(params) * v[None])
        gradient = super().parameter_gradient(params, h, inner)
        return gradient | ({"scale": jnp.sum(v * output)} if self.learned else {})

    def scale_of(self, params: Params) -> Any:
        """Returns the scale, a parameter where it is learned."""
        return params["scale"] if self.learned else self.scale
