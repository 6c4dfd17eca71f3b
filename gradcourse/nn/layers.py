"""Layers: dense, convolution, pooling, pointwise, flatten.

A layer is a frozen description, without parameters. It knows how to draw them (`init`), how to compute (`apply`), and
how to carry a cotangent back or a tangent forward through itself. These last two come in two halves, because the
course asks which half shrinks the gradient: `h -> s` (the weights) and `s -> f(s)` (the activation).

A new layer only needs `output_shape`, `apply` and, if it has parameters, `init`; the halves then fall back on
autodiff. `Dense` and `Conv` override them: they save the activation's slope on the way forward and multiply by it on
the way back, which is faster than differentiating anew.

Shapes: an input is `(batch, *shape)`, images are `(batch, height, width, channel)`; cotangents and tangents carry one
more leading axis, one entry per output or input direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gradcourse._checks import known_name, positive_integer
from gradcourse._logdomain import dot, times_power, to_unit
from gradcourse.nn import activations, initializers
from gradcourse.nn.activations import Activation
from gradcourse.nn.initializers import Initializer

__all__ = [
    "Activated",
    "Affine",
    "AvgPool",
    "Conv",
    "Dense",
    "Flatten",
    "Layer",
    "MaxPool",
    "Pointwise",
    "as_scaled",
    "linearized",
    "wait_for",
]

PADDINGS = ("SAME", "VALID", "CIRCULAR")
Params = dict[str, Any]
Shape = tuple[int, ...]
Saved = Any
ScaledInput = tuple[Array, Array]  # (batch, *shape) and an exponent per example: `h * 2 ** exponent`


class Layer:
    """The base of all layers, with everything but `output_shape` and `apply` in its general form."""

    kind: ClassVar[str] = "layer"
    # Whether an input twice as large has an output twice as large, and the same Jacobian.
    homogeneous: ClassVar[bool] = False
    activation: Any = None  # the `Activation` of the layer's units, if it has one

    @property
    def couples_examples(self) -> bool:
        """Whether an example's output depends on the other examples of its batch, as in batch normalisation."""
        return False

    @property
    def draws_by_qr(self) -> bool:
        """Whether `init` factorises matrices, which has to be done one at a time (see `gradcourse.nn.network`)."""
        return False

    def output_shape(self, shape: Shape) -> Shape:
        """Returns the shape of one output for one input of `shape`; raises `ValueError` where that does not fit."""
        raise TypeError(f"{type(self).__name__} is no complete layer: give it output_shape(shape).")

    def exposed(self, shape: Shape) -> tuple[str, ...]:
        """Returns the parameters of which a NaN or an infinity makes every norm of the layer's Jacobian one."""
        return ()

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns parameters for inputs of `shape`; a layer without parameters returns `{}`."""
        return {}

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the layer's output."""
        raise TypeError(f"{type(self).__name__} is no complete layer: give it apply(params, h).")

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the pre-activation `s`; of a layer without an activation, the output."""
        return self.apply(params, h)

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Saved]:
        """Returns the output and what the four methods below need to know of this point."""
        return self.apply(params, h), h

    def linearize_scaled(
        self, params: Params, h: Float[Array, "batch *shape"], exponent: Int[Array, " batch"]
    ) -> tuple[Array, Array, Saved]:
        """Returns the same for an input of `h * 2 ** exponent`: the output in this form, too, and what is saved.

        So activations may leave the floating-point range, small ones and, of rectifiers, large ones.
        """
        if self.homogeneous:
            output, saved = self.linearize(params, h)
            return output, exponent, saved
        output, saved = self.linearize(params, times_power(h, exponent))
        return output, jnp.zeros_like(exponent), saved

    def in_range(self, output: Float[Array, "batch *output"]) -> Array | None:
        """Returns whether slopes are right although `output` was not computed in that form; `None` if they must be."""
        return None

    def through_activation(self, saved: Saved, v: Float[Array, "direction batch *output"]) -> Array:
        """Returns `v` times the activation's slope; the same forward and back, for the matrix is diagonal."""
        return v

    def pull(self, params: Params, saved: Saved, v: Float[Array, "direction batch *output"], shape: Shape) -> Array:
        """Returns cotangents on the layer's input (of `shape`) for cotangents `v` on its pre-activation."""
        _, vjp = jax.vjp(lambda h: self.apply(params, h), saved)
        return jax.vmap(lambda cotangent: vjp(cotangent)[0])(v)

    def push(self, params: Params, saved: Saved, v: Float[Array, "direction batch *shape"]) -> Array:
        """Returns tangents on the layer's pre-activation for tangents `v` on its input."""
        return jax.vmap(lambda tangent: jax.jvp(lambda h: self.apply(params, h), (saved,), (tangent,))[1])(v)

    def parameter_gradient(
        self, params: Params, h: Float[Array, "batch *shape"], v: Float[Array, "batch *output"]
    ) -> Params:
        """Returns the gradient of `params` at the input `h` for the cotangent `v` on the pre-activation.

        Autodiff never passes the activation, whose slope it rounds to 0 in the tails.
        """
        _, pull = jax.vjp(lambda p: self.preactivation(p, h), params)
        return pull(v)[0]


class Activated(Layer):
    """`f(s)` for a pre-activation `s`: what layers with an activation share, which save its slope."""

    activation: Activation

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns `f(s)`."""
        return self.activation(self.preactivation(params, h))

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Saved]:
        """Returns the output and the slope `f'(s)`."""
        s = self.preactivation(params, h)
        return self.activation(s), self.activation.slope(s)

    def in_range(self, output: Float[Array, "batch *output"]) -> Array | None:
        """Returns whether every example's largest output is far from underflow, if the sign of small ones matters."""
        if not self.activation.kinked_at_zero:
            return None
        peak = jnp.max(jnp.abs(output), axis=range(1, output.ndim))
        return jnp.all(peak > jnp.finfo(output.dtype).tiny ** 0.5)

    def through_activation(self, saved: Saved, v: Float[Array, "direction batch *output"]) -> Array:
        """Returns `v` times the slope."""
        return self.times_slope(saved, v)

    def times_slope(self, slope: Array, v: Float[Array, "direction batch *output"]) -> Array:
        """Returns `v` times the slope, which of the identity is nothing to do."""
        return v if self.activation == activations.ACTIVATIONS["identity"] else v * slope[None]

    def activated(self, s: Float[Array, "batch *output"], exponent: Int[Array, " batch"]) -> tuple[Array, Array, Array]:
        """Returns the output, its exponent and the slope for a pre-activation of `s * 2 ** exponent`.

        Where `f` is linear, next to 0 and for rectifiers everywhere, `f(s)` is `s` times the slope in any range.
        """
        reach = jnp.finfo(s.dtype).nmant + 16  # beyond, what is not linear is below rounding
        most = reach if self.activation.homogeneous else jnp.iinfo(exponent.dtype).max
        near = times_power(s, jnp.clip(exponent, -reach, most))
        slope = self.activation.slope(near)
        beyond = (exponent < -reach) | (exponent > most)
        output = jnp.where(beyond.reshape(-1, *[1] * (s.ndim - 1)), s * slope, self.activation(near))
        return output, jnp.where(beyond, exponent, 0), slope


@dataclass(frozen=True)
class Affine(Activated):
    """`f(weights applied to h + bias)`: what `Dense` and `Conv` share. Give it the linear map and its transpose."""

    activation: Activation = field()
    init_scheme: Initializer = field()

    @property
    def draws_by_qr(self) -> bool:
        """True for the orthogonal schemes."""
        return self.init_scheme.name in ("orthogonal", "delta_orthogonal")

    def exposed(self, shape: Shape) -> tuple[str, ...]:
        """Returns the weights' name: they are multiplied by every vector, and NaN times 0 is NaN."""
        return ("weight",)

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the pre-activation `s`."""
        s = self.linear(params["weight"], h)
        return s + jnp.broadcast_to(params["bias"], s.shape)

    def linearize_scaled(
        self, params: Params, h: Float[Array, "batch *shape"], exponent: Int[Array, " batch"]
    ) -> tuple[Array, Array, Saved]:
        """Returns the output, its exponent and the slope."""
        if not self.activation.linear_at_zero:
            return super().linearize_scaled(params, h, exponent)
        return self.activated(*self._scaled_preactivation(params, h, exponent))

    def _scaled_preactivation(self, params: Params, h: Array, exponent: Array) -> tuple[Array, Array]:
        """The pre-activation with each example's largest entry near 1, and its exponents."""
        axes = tuple(range(1, h.ndim))
        h, own = to_unit(h, axes)
        s, shift = to_unit(self.linear(params["weight"], h), axes)
        bias, bias_exponent = to_unit(params["bias"], (0,))
        exponent = exponent + own + shift
        larger = jnp.where(jnp.any(bias != 0), jnp.maximum(exponent, bias_exponent), exponent)
        shifted = times_power(jnp.broadcast_to(bias, s.shape), jnp.minimum(bias_exponent - larger, 0))
        s, shift = to_unit(times_power(s, exponent - larger) + shifted, axes)
        return s, larger + shift

    def pull(self, params: Params, saved: Saved, v: Float[Array, "direction batch *output"], shape: Shape) -> Array:
        """Returns the transposed linear map of `v`, all directions in one product."""
        return _unflatten(self.transpose(params["weight"], _flatten(v), shape), v.shape[:2])

    def push(self, params: Params, saved: Saved, v: Float[Array, "direction batch *shape"]) -> Array:
        """Returns the linear map of `v`, all directions in one product."""
        return _unflatten(self.linear(params["weight"], _flatten(v)), v.shape[:2])

    def linear(self, weight: Array, h: Array) -> Array:
        """Returns the weights applied to a batch."""
        raise NotImplementedError

    def transpose(self, weight: Array, v: Array, shape: Shape) -> Array:
        """Returns the transpose of `linear` applied to a batch of `v`; `shape` is the layer's input shape."""
        raise NotImplementedError

    def weight_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the weights for inputs of `shape`."""
        raise NotImplementedError

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns `{"weight", "bias"}` drawn from the layer's scheme."""
        weight_key, bias_key = jax.random.split(key)
        weight = self.init_scheme.weights(self.weight_shape(shape), key=weight_key)
        return {"weight": weight, "bias": self.init_scheme.biases(weight.shape[-1:], key=bias_key)}


@dataclass(frozen=True, init=False)
class Dense(Affine):
    """`f(h @ weight + bias)`, weight `(in, out)`.

    >>> layer = Dense(3, "sigmoid", init="glorot_uniform")
    >>> params = layer.init((4,), key=jax.random.key(0))
    >>> layer.apply(params, jnp.zeros((2, 4)))
    Array([[0.5, 0.5, 0.5],
           [0.5, 0.5, 0.5]], dtype=float32)
    """

    width: int
    kind: ClassVar[str] = "dense"

    def __init__(self, width: int, activation: Any = "identity", *, init: str | Initializer = "glorot_uniform"):
        _set(
            self,
            width=positive_integer("width", width),
            activation=activations.resolve(activation),
            init_scheme=initializers.resolve(init),
        )

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(width,)`."""
        if len(shape) != 1:
            raise ValueError(f"Dense got an input of shape {shape}; accepted is (width,). Put Flatten() before it.")
        return (self.width,)

    def weight_shape(self, shape: Shape) -> Shape:
        """Returns `(in, out)`."""
        return (shape[0], self.width)

    def linear(self, weight: Array, h: Array) -> Array:
        """Returns `h @ weight`."""
        return dot(h, weight)

    def transpose(self, weight: Array, v: Array, shape: Shape) -> Array:
        """Returns `v @ weight.T`."""
        return dot(v, weight.T)


@dataclass(frozen=True, init=False)
class Conv(Affine):
    """`f(kernel * h + bias)`: a two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    Kernel `(kernel_size, kernel_size, in, out)`. Padding `"SAME"` adds zeros, `"CIRCULAR"` wraps the image round,
    `"VALID"` adds nothing.

    >>> layer = Conv(16, "relu", init="he_normal", stride=2)
    >>> layer.output_shape((8, 8, 1))
    (4, 4, 16)
    """

    channels: int
    kernel_size: int
    stride: int
    padding: str
    kind: ClassVar[str] = "conv"

    def __init__(
        self,
        channels: int,
        activation: Any = "identity",
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: str = "SAME",
        init: str | Initializer = "glorot_uniform",
    ):
        _set(
            self,
            channels=positive_integer("channels", channels),
            kernel_size=positive_integer("kernel_size", kernel_size),
            stride=positive_integer("stride", stride),
            padding=known_name("padding", padding, PADDINGS),
            activation=activations.resolve(activation),
            init_scheme=initializers.resolve(init),
        )

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(height, width, channels)` after padding and stride."""
        return (*_image_output("Conv", shape, self.kernel_size, self.stride, self.padding), self.channels)

    def weight_shape(self, shape: Shape) -> Shape:
        """Returns `(kernel_size, kernel_size, in, out)`."""
        return (self.kernel_size, self.kernel_size, shape[-1], self.channels)

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns `f(s)`, in a form that XLA differentiates fast: on a CPU as a product of all the windows.

        There, a training step over convolutions proper takes twelve times as long.
        """
        s = lax.platform_dependent(params["weight"], h, cpu=self._as_product, default=self.linear)
        return self.activation(s + jnp.broadcast_to(params["bias"], s.shape))

    def linear(self, weight: Array, h: Array) -> Array:
        """Returns the padded image convolved with the kernel."""
        return _convolve(weight, h, self._pads(h.shape[1:]), self.stride, wrap=self.padding == "CIRCULAR")

    def transpose(self, weight: Array, v: Array, shape: Shape) -> Array:
        """Returns the transposed convolution: XLA's own input-gradient, but `_turned` on a CPU.

        There, inside of a scan, XLA runs the latter about twenty times faster.
        """
        return lax.platform_dependent(
            weight, v, cpu=partial(self._turned, shape=shape), default=partial(self._transposed, shape=shape)
        )

    def exposed(self, shape: Shape) -> tuple[str, ...]:
        """Returns the weights' name, unless the kernel reaches so far beyond the image that a part meets no pixel."""
        return () if self.padding == "SAME" and self.kernel_size > min(shape[:2]) else super().exposed(shape)

    def _as_product(self, weight: Array, h: Array) -> Array:
        """The same as `linear`, from every window of the image as a row."""
        mode = "wrap" if self.padding == "CIRCULAR" else "constant"
        padded = jnp.pad(h, ((0, 0), *self._pads(h.shape[1:]), (0, 0)), mode=mode)
        height, width, _ = self.output_shape(h.shape[1:])
        step = self.stride
        windows = [
            padded[:, row : row + step * height : step, column : column + step * width : step]
            for row in range(self.kernel_size)
            for column in range(self.kernel_size)
        ]
        rows = jnp.concatenate(windows, axis=-1).reshape(len(h) * height * width, -1)
        return dot(rows, weight.reshape(rows.shape[-1], -1)).reshape(len(h), height, width, -1)

    def _transposed(self, weight: Array, v: Array, *, shape: Shape) -> Array:
        like = jax.ShapeDtypeStruct((v.shape[0], *shape), v.dtype)
        (pulled,) = jax.linear_transpose(lambda h: self.linear(weight, h), like)(v)
        return pulled

    def _turned(self, weight: Array, v: Array, *, shape: Shape) -> Array:
        """The transpose as a convolution of its own: the kernel turned by 180 degrees, its channels swapped.

        Zeros take the places of the pixels that a stride has left out.
        """
        gaps = [
            (0, side - (out - 1) * self.stride - 1, self.stride - 1)
            for side, out in zip(shape[:2], v.shape[1:3], strict=True)
        ]
        v = lax.pad(v, jnp.zeros((), v.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])
        turned = jnp.swapaxes(weight[::-1, ::-1], 2, 3)
        pads = [(self.kernel_size - 1 - low, low) for low, _ in self._pads(shape)]
        return _convolve(turned, v, pads, 1, wrap=self.padding == "CIRCULAR")

    def _pads(self, shape: Shape) -> Sequence[tuple[int, int]]:
        """How many pixels are added on either side, for each side of an image."""
        padding = "VALID" if self.padding == "VALID" else "SAME"
        window = (self.kernel_size, self.kernel_size)
        return lax.padtype_to_pads(shape[:2], window, (self.stride, self.stride), padding)


@dataclass(frozen=True)
class _Pool(Layer):
    """What `MaxPool` and `AvgPool` share: square windows of `size` pixels a side, without padding.

    One every `stride` pixels; by default every `size`, so that they tile the image.
    """

    homogeneous: ClassVar[bool] = True
    size: int = 2
    stride: int | None = None

    def __post_init__(self) -> None:
        size = positive_integer("size", self.size)
        stride = size if self.stride is None else positive_integer("stride", self.stride)
        _set(self, size=size, stride=stride)

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(height, width, channel)` after pooling."""
        return (*_image_output(type(self).__name__, shape, *self._window, "VALID"), shape[2])

    @property
    def _window(self) -> tuple[int, int]:
        return self.size, self.stride or self.size

    def _reduce(self, h: Array, start: float, combine: Any) -> Array:
        size, stride = self._window
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(h, np.asarray(start, h.dtype), combine, window, strides, "VALID")


@dataclass(frozen=True)
class MaxPool(_Pool):
    """The largest value in each window; the gradient goes to that one pixel alone."""

    kind: ClassVar[str] = "max pool"

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the pooled images."""
        return self._reduce(h, -jnp.inf, lax.max)


@dataclass(frozen=True)
class AvgPool(_Pool):
    """The mean of each window; the gradient is spread over all its pixels."""

    kind: ClassVar[str] = "average pool"

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the pooled images."""
        return self._reduce(h, 0.0, lax.add) / self.size**2


@dataclass(frozen=True, init=False)
class Pointwise(Activated):
    """`f(h)`: an activation as a layer of its own, for where it does not follow a layer's weights.

    >>> Pointwise("relu").apply({}, jnp.array([[-1.0, 2.0]]))
    Array([[0., 2.]], dtype=float32)
    """

    activation: Activation = field()
    kind: ClassVar[str] = "pointwise"

    def __init__(self, activation: Any):
        _set(self, activation=activations.resolve(activation))

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `shape`."""
        return shape

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns `h`."""
        return h

    def linearize_scaled(
        self, params: Params, h: Float[Array, "batch *shape"], exponent: Int[Array, " batch"]
    ) -> tuple[Array, Array, Saved]:
        """Returns the output, its exponent and the slope."""
        if not self.activation.linear_at_zero:
            return super().linearize_scaled(params, h, exponent)
        h, own = to_unit(h, tuple(range(1, h.ndim)))
        return self.activated(h, exponent + own)

    def pull(self, params: Params, saved: Saved, v: Float[Array, "direction batch *output"], shape: Shape) -> Array:
        """Returns `v`."""
        return v

    def push(self, params: Params, saved: Saved, v: Float[Array, "direction batch *shape"]) -> Array:
        """Returns `v`."""
        return v


@dataclass(frozen=True)
class Flatten(Layer):
    """An image as one long vector, so that a dense layer can read it."""

    kind: ClassVar[str] = "flatten"
    homogeneous: ClassVar[bool] = True

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(height * width * channel,)`."""
        return (prod(shape),)

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the flattened batch."""
        return h.reshape(h.shape[0], -1)


def as_scaled(h: Float[Array, "batch *shape"]) -> ScaledInput:
    """Returns `h` with an exponent of 0 for each example."""
    return h, jnp.zeros(h.shape[0], jnp.int32)


def linearized(layer: Layer, params: Params, h: ScaledInput) -> tuple[ScaledInput, Saved]:
    """Returns the output of a layer for an input with exponents, and what it saves: a step of a forward pass."""
    output, exponent, saved = layer.linearize_scaled(params, *h)
    return (output, exponent), saved


def wait_for(drawn: Any, key: PRNGKeyArray) -> PRNGKeyArray:
    """Returns a key that depends on the parameters drawn so far, in form but not in value.

    It makes layers be drawn one after the other. XLA's CPU back end deadlocks on two independent QR factorisations in
    one program, which is what orthogonal schemes ask for under `vmap` (seen with jaxlib 0.10.2 on two cores).
    """
    leaves = jax.tree.leaves(drawn)
    return jax.random.fold_in(key, jnp.isnan(leaves[-1]).any()) if leaves else key


def _set(layer: Layer, **fields: Any) -> None:
    """Fills a frozen layer; its own `__init__` takes names where its fields hold what they stand for."""
    for name, value in fields.items():
        object.__setattr__(layer, name, value)


def _flatten(v: Array) -> Array:
    return v.reshape(-1, *v.shape[2:])


def _unflatten(v: Array, leading: Shape) -> Array:
    return v.reshape(*leading, *v.shape[1:])


def _convolve(weight: Array, h: Array, pads: Any, stride: int, *, wrap: bool) -> Array:
    if wrap:
        h = jnp.pad(h, ((0, 0), *pads, (0, 0)), mode="wrap")
        pads = [(0, 0), (0, 0)]
    return lax.conv_general_dilated(
        h,
        weight,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _image_output(layer: str, shape: Shape, window: int, stride: int, padding: str) -> Shape:
    """The height and width that a window of that size leaves, after checking that `shape` is an image it fits."""
    if len(shape) != 3:
        raise ValueError(f"{layer} got an input of shape {shape}; accepted are images (height, width, channel).")
    if padding != "VALID":
        return tuple(-(-size // stride) for size in shape[:2])
    if min(shape[:2]) < window:
        raise ValueError(
            f"{layer} got an input of shape {shape}, smaller than its window of {window} pixels. "
            "Use fewer strides or pools before it, a smaller window, or padding='SAME'."
        )
    return tuple((size - window) // stride + 1 for size in shape[:2])
