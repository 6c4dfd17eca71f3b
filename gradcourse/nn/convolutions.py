"""Convolutions and pools: layers of images, `(batch, height, width, channel)`.

>>> MaxPool(2).output_shape((4, 4, 16))
(2, 2, 16)
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gradcourse._checks import known_name, positive_integer
from gradcourse._logdomain import Scaled, dot
from gradcourse.nn.layers import Affine, Layer, Params, Shape

__all__ = ["AvgPool", "Conv", "MaxPool", "windows"]

PADDINGS = ("SAME", "VALID", "CIRCULAR")


@dataclass(frozen=True)
class Conv(Affine):
    """`f(kernel * h + bias)`: a two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    Kernel `(kernel_size, kernel_size, in, out)`. Padding `"SAME"` adds zeros, `"CIRCULAR"` wraps the image round,
    `"VALID"` adds nothing.

    >>> layer = Conv(16, "relu", initializer="he_normal", stride=2)
    >>> layer.output_shape((8, 8, 1))
    (4, 4, 16)
    """

    channels: int
    activation: Any = "identity"
    _: KW_ONLY
    kernel_size: int = 3
    stride: int = 1
    padding: str = "SAME"
    initializer: Any = "glorot_uniform"
    kind: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {name: positive_integer(name, getattr(self, name)) for name in ("channels", "kernel_size", "stride")}
        self._set(**sizes, padding=known_name("padding", self.padding, PADDINGS))

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(height, width, channels)` after padding and stride."""
        return (*_image_output("Conv", shape, self.kernel_size, self.stride, self.padding), self.channels)

    def weight_shape(self, shape: Shape) -> Shape:
        """Returns `(kernel_size, kernel_size, in, out)`."""
        return (self.kernel_size, self.kernel_size, shape[-1], self.channels)

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns `f(s)`; on a CPU from a product of all windows, for XLA differentiates that twelve times faster."""
        s = lax.platform_dependent(params["weight"], h, cpu=self._as_product, default=self.linear)
        return self.activation(s + jnp.broadcast_to(params["bias"], s.shape))

    def linear(self, weight: Array, h: Array) -> Array:
        """Returns the padded image convolved with the kernel."""
        return self._convolved(self.factor(weight), self.factor(h))

    def transpose(self, weight: Array, v: Array, shape: Shape) -> Array:
        """Returns XLA's own input-gradient, but `_turned` on a CPU, twenty times faster there inside of a scan."""
        turned, transposed = partial(self._turned, shape=shape), partial(self._transposed, shape=shape)
        return lax.platform_dependent(self.factor(weight), self.factor(v), cpu=turned, default=transposed)

    def frobenius_squares(self, shape: Shape) -> Callable[[Params, Array], Scaled] | None:
        """Returns the closed form, or `None` where the kernel wraps round to meet a pixel twice."""
        twice = self.padding == "CIRCULAR" and self.kernel_size > min(shape[:2])
        return None if twice else partial(self._sum_of_squares, shape)

    def mean_square_map(self, shape: Shape) -> Callable[[Array], Array]:
        """Returns the convolution of mean squares with the scheme's mean squared kernel."""
        moment = self.initializer.second_moment(self.weight_shape(shape)) * shape[-1]
        return partial(self.linear, jnp.asarray(moment)[..., None, None])

    def _convolved(self, weight: Array, h: Array) -> Array:
        return _convolve(weight, h, self._pads(h.shape[1:]), self.stride, wrap=self.padding == "CIRCULAR")

    def _as_product(self, weight: Array, h: Array) -> Array:
        """The same as `linear`, from every window of the image as a row."""
        mode = "wrap" if self.padding == "CIRCULAR" else "constant"
        padded = jnp.pad(self.factor(h), ((0, 0), *self._pads(h.shape[1:]), (0, 0)), mode=mode)
        height, width, _ = self.output_shape(h.shape[1:])
        rows = windows(padded, self.kernel_size, height, width, self.stride).reshape(len(h) * height * width, -1)
        return dot(rows, self.factor(weight).reshape(rows.shape[-1], -1)).reshape(len(h), height, width, -1)

    def _transposed(self, weight: Array, v: Array, *, shape: Shape) -> Array:
        like = jax.ShapeDtypeStruct((len(v), *shape), v.dtype)
        return jax.linear_transpose(partial(self._convolved, weight), like)(v)[0]

    def _turned(self, weight: Array, v: Array, *, shape: Shape) -> Array:
        """The transpose as a convolution of its own: the kernel turned by 180 degrees, its channels swapped.

        Zeros take the places of the pixels that a stride has left out.
        """
        gap = self.stride - 1
        gaps = [(0, side - (out - 1) * self.stride - 1, gap) for side, out in zip(shape[:2], v.shape[1:3], strict=True)]
        v = lax.pad(v, jnp.zeros((), v.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])
        turned = jnp.swapaxes(weight[::-1, ::-1], 2, 3)
        pads = [(self.kernel_size - 1 - low, low) for low, _ in self._pads(shape)]
        return _convolve(turned, v, pads, 1, wrap=self.padding == "CIRCULAR")

    def _pads(self, shape: Shape) -> Sequence[tuple[int, int]]:
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
    stride: Any = None

    def __post_init__(self) -> None:
        size = positive_integer("size", self.size)
        stride = size if self.stride is None else positive_integer("stride", self.stride)
        self._set(size=size, stride=stride)

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(height, width, channel)` after pooling."""
        return (*_image_output(type(self).__name__, shape, self.size, self.stride, "VALID"), shape[2])

    def _reduce(self, h: Array, start: float, combine: Any) -> Array:
        window, strides = ((1, side, side, 1) for side in (self.size, self.stride))
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


def windows(h: Float[Array, "batch *image"], size: int, height: int, width: int, stride: int = 1) -> Array:
    """Returns the `height` by `width` windows of `size` by `size` pixels of `h`, as `(batch, height, width, entry)`."""
    parts = [
        h[:, row : row + stride * height : stride, column : column + stride * width : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(parts, axis=-1)


def _convolve(weight: Array, h: Array, pads: Any, stride: int, *, wrap: bool) -> Array:
    if wrap:
        h = jnp.pad(h, ((0, 0), *pads, (0, 0)), mode="wrap")
        pads = [(0, 0), (0, 0)]
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        h, weight, (stride, stride), pads, dimension_numbers=axes, precision=lax.Precision.HIGHEST
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
