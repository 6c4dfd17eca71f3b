"""Locally connected layers: convolutions without weight sharing, a kernel of its own at every position.

With `untied` the parameters of a convolution become those of the locally connected layer that computes the same, whose
gradients are the terms that the convolution's gradient is the sum of.

>>> from gradcourse.nn.network import sequential
>>> shared = sequential((4, 4, 3), [Conv(8, padding="CIRCULAR")])
>>> local = sequential((4, 4, 3), [LocallyConnected(8)])
>>> params, x = shared.init(key=jax.random.key(0)), jnp.ones((1, 4, 4, 3))
>>> bool(jnp.allclose(local.apply(untied(shared, params), x), shared.apply(params, x), atol=1e-6))
True
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse.nn.convolutions import Conv, windows
from gradcourse.nn.layers import Affine, Shape
from gradcourse.nn.network import Network, Params

__all__ = ["LocallyConnected", "untied"]


@dataclass(frozen=True)
class LocallyConnected(Affine):
    """`f(kernel_p * h + bias)` with a kernel of its own at every position `p`, and the borders wrapped round.

    Weight `(height, width, kernel_size ** 2 * in, out)`, every position's kernel drawn as that of a convolution.
    """

    channels: int
    activation: Any = "identity"
    _: KW_ONLY
    kernel_size: int = 3
    initializer: Any = "glorot_uniform"
    kind: ClassVar[str] = "locally connected"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(**{name: positive_integer(name, getattr(self, name)) for name in ("channels", "kernel_size")})

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(height, width, channels)`."""
        if len(shape) != 3:
            raise ValueError(f"LocallyConnected got an input of shape {shape}; accepted are (height, width, channel).")
        return (*shape[:2], self.channels)

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> dict[str, Any]:
        """Returns `{"weight", "bias"}` drawn from the layer's scheme."""
        height, width, channels = shape
        weight_key, bias_key = jax.random.split(key)
        kernel = (self.kernel_size, self.kernel_size, channels, self.channels)
        draw = jax.vmap(lambda key: self.initializer.weights(kernel, key=key))
        weight = draw(jax.random.split(weight_key, height * width)).reshape(height, width, -1, self.channels)
        return {"weight": weight, "bias": self.initializer.biases((self.channels,), key=bias_key)}

    def linear(self, weight: Array, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns every window times the kernel of its position."""
        before = (self.kernel_size - 1) // 2
        reach = (before, self.kernel_size - 1 - before)
        padded = jnp.pad(self.factor(h), ((0, 0), reach, reach, (0, 0)), mode="wrap")
        rows = windows(padded, self.kernel_size, *h.shape[1:3])
        return jnp.einsum("bhwi,hwio->bhwo", rows, self.factor(weight), precision="highest")


def untied(network: Network, params: Params) -> Params:
    """Returns the parameters of the network that has `LocallyConnected` layers in place of wrapped `Conv` ones.

    Both compute the same, for each position's kernel is a copy of the shared one. Raises `ValueError` for convolutions
    with strides or without wrapped borders.
    """
    loose = []
    for stage, stage_params in zip(network.stages, params, strict=True):
        layer = stage.layer
        if isinstance(layer, Conv):
            if (layer.stride, layer.padding) != (1, "CIRCULAR"):
                raise ValueError(f"network has the layer {layer!r}; accepted are stride=1 and padding='CIRCULAR'.")
            kernel = stage_params["weight"]
            window = kernel.reshape(len(kernel), 1, 1, -1, layer.channels)
            shape = (len(kernel), *stage.shape[:2], *window.shape[3:])
            stage_params = stage_params | {"weight": jnp.broadcast_to(window, shape)}
        loose.append(stage_params)
    return tuple(loose)
