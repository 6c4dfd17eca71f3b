r"""Normalisation: of activations, by batch, layer or group, and of weights.

A normalisation takes some of the numbers in a batch of activations, subtracts their mean $\mu$ and divides by their
standard deviation $\sigma$. Write $m$ for how many they are and $\hat h = (h - \mu) / \sqrt{\sigma^2 + \epsilon}$ for
the result; then $s = \gamma \hat h + \beta$ with a learned scale and shift per channel, and the output is $f(s)$. The
layers here differ only in which numbers they take together:

- `BatchNorm`: one channel, all examples and pixels (Ioffe and Szegedy, 2015);
- `LayerNorm`: one example, all channels and pixels (Ba, Kiros and Hinton, 2016);
- `GroupNorm`: one example, a group of channels, all pixels (Wu and He, 2018).

The Jacobian of $\hat h$ is the symmetric matrix

$$ \frac{\partial \hat h}{\partial h} = \frac{1}{\sqrt{\sigma^2 + \epsilon}}
   \left(I - \frac{1}{m} 1 1^\top - \frac{1}{m} \hat h \hat h^\top\right), $$

for $\epsilon \to 0$ the projection that takes out the mean and the component along $\hat h$, over $\sigma$ (Santurkar
et al., 2018, as an inequality). For `BatchNorm` it *couples* different examples, and what a Jacobian is then,
`measure.jacobians` says. Once a network is trained, `at_inference` fixes the statistics, and nothing is coupled.
"""

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import positive_integer, positive_number
from gradcourse.nn.blocks import Block
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Activated, Affine, Dense, Layer, Params, Shape
from gradcourse.nn.linearized import STATIC, Diagonal, Linearized, per_channel
from gradcourse.nn.network import Network
from gradcourse.nn.network import Params as NetworkParams

__all__ = ["BatchNorm", "ChannelScale", "GroupNorm", "LayerNorm", "WeightStandardised", "at_inference"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Normalised(Linearized):
    """Of a normalisation: what its Jacobian is made of, the normalised input and 1 / deviation."""

    normalised: Any
    per_deviation: Any
    layer: Any = field(metadata=STATIC)

    def pull(self, params: Params, v: Float[Array, "direction batch *shape"]) -> Float[Array, "direction batch *shape"]:
        return self._projected(v * per_channel(params["scale"], v))

    def push(self, params: Params, v: Float[Array, "direction batch *shape"]) -> Float[Array, "direction batch *shape"]:
        return self._projected(v) * per_channel(params["scale"], v)

    def _projected(self, v: Array) -> Array:
        normalised, mean = self.normalised[None], partial(self.layer._together, jnp.mean, leading=2)
        return (v - mean(v) - normalised * mean(normalised * v)) * self.per_deviation[None]


class _Scaled(Activated):
    """`f(scale * ... + shift)`, with one scale and shift per channel, which start at 1 and 0."""

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `shape`."""
        return shape

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns `{"scale": ones, "shift": zeros}`, one entry per channel."""
        return {"scale": jnp.ones(shape[-1]), "shift": jnp.zeros(shape[-1])}


class _Normalisation(_Scaled):
    """`f(scale * normalised + shift)`. Give it `_together` and the field `epsilon`."""

    epsilon: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(epsilon=positive_number("epsilon", self.epsilon))

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns `s = scale * normalised + shift`."""
        return _affine(params, self._normalised(h)[0])

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Linearized]:
        """Returns the output and the linear map."""
        normalised, per_deviation = self._normalised(h)
        s = _affine(params, normalised)
        return self.activation(s), _Normalised(self.kept(self.activation.slope(s)), normalised, per_deviation, self)

    def _together(self, reduce: Any, h: Array, leading: int = 1) -> Array:
        """What `reduce`, such as `jnp.mean`, makes of what belongs together; `batch` is axis `leading - 1`."""
        raise NotImplementedError

    def _normalised(self, h: Array) -> tuple[Array, Array]:
        """The normalised input and 1 / deviation, right for numbers whose squares overflow, too."""
        octaves = jnp.maximum(jnp.frexp(self._together(jnp.max, jnp.abs(h)))[1], 0)
        h = h * jnp.ldexp(jnp.ones(octaves.shape, h.dtype), -octaves)
        centred = h - self._together(jnp.mean, h)
        floor = jnp.ldexp(jnp.full(octaves.shape, self.epsilon, h.dtype), -2 * octaves)
        variance = self._together(jnp.mean, jnp.square(centred)) + jnp.maximum(floor, jnp.finfo(h.dtype).tiny)
        per_deviation = jax.lax.rsqrt(variance)
        return centred * per_deviation, jnp.ldexp(per_deviation, -octaves)


@dataclass(frozen=True)
class BatchNorm(_Normalisation):
    """Batch normalisation with the statistics of the batch, as in training; for fixed ones see `at_inference`.

    Raises `ValueError` for a batch with a single value per channel, whose deviation is 0.

    >>> h = jnp.array([[0.0, 10.0], [2.0, 30.0]])
    >>> layer = BatchNorm()
    >>> layer.apply(layer.init((2,), key=jax.random.key(0)), h).round(3)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """

    activation: Any = "identity"
    _: KW_ONLY
    epsilon: float = 1e-5
    kind: ClassVar[str] = "batch norm"
    couples_examples = True

    def _together(self, reduce: Any, h: Array, leading: int = 1) -> Array:
        axes = tuple(range(leading - 1, h.ndim - 1))
        if prod(h.shape[axis] for axis in axes) < 2:
            raise ValueError(
                f"BatchNorm got a batch of shape {h.shape[leading - 1 :]}, one value per channel, which has no spread; "
                "accepted are two examples or more. To measure them one by one, fix the statistics: at_inference."
            )
        return reduce(h, axis=axes, keepdims=True)


@dataclass(frozen=True)
class GroupNorm(_Normalisation):
    """Group normalisation: each example's channels in `groups` of neighbours, normalised over pixels and channels."""

    groups: int
    activation: Any = "identity"
    _: KW_ONLY
    epsilon: float = 1e-5
    kind: ClassVar[str] = "group norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(groups=positive_integer("groups", self.groups))

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `shape`; raises `ValueError` where the groups do not divide its channels."""
        if shape[-1] % self.groups:
            raise ValueError(
                f"groups={self.groups} do not divide the {shape[-1]} channels of an input of shape {shape}; accepted "
                "is a divisor."
            )
        return shape

    def _together(self, reduce: Any, h: Array, leading: int = 1) -> Array:
        split = h.reshape(*h.shape[:leading], -1, self.groups, h.shape[-1] // self.groups)
        reduced = reduce(split, axis=(leading, leading + 2), keepdims=True)
        return jnp.broadcast_to(reduced, split.shape).reshape(h.shape)


@dataclass(frozen=True)
class LayerNorm(GroupNorm):
    """Layer normalisation: each example's channels and pixels, all together.

    >>> layer = LayerNorm()
    >>> layer.apply(layer.init((2,), key=jax.random.key(0)), jnp.array([[3.0, 5.0]])).round(3)
    Array([[-1.,  1.]], dtype=float32)
    """

    groups: int = field(default=1, init=False)
    kind: ClassVar[str] = "layer norm"


@dataclass(frozen=True)
class ChannelScale(_Scaled):
    """`f(scale * h + shift)` with one scale and shift per channel: what a `BatchNorm` with fixed statistics is."""

    activation: Any = "identity"
    kind: ClassVar[str] = "channel scale"

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """Returns `s = scale * h + shift`."""
        return _affine(params, h)

    def at(self, h: Float[Array, "batch *shape"], slope: Float[Array, "batch *shape"] | None) -> Linearized:
        """Returns the scales with this slope."""
        return Diagonal(slope)


@dataclass(frozen=True)
class WeightStandardised(Affine):
    r"""A `Dense` or `Conv` layer whose weights are standardised each time they are used.

    With $n$ the fan-in, each unit's weights have their mean subtracted and are divided by $\sqrt{n}$ times their
    standard deviation, so that their squares add up to 1, and multiplied by `gain`. (Qiao et al., 2019; with the
    factor, Brock et al., 2021, whose gain for rectifiers is $\sqrt{2 / (1 - 1/\pi)}$.) Parameters are the layer's.

    >>> layer = WeightStandardised(Dense(3), gain=2.0)
    >>> params = layer.init((10,), key=jax.random.key(0))
    >>> jnp.square(layer.standardised(params)["weight"]).sum(axis=0).round(3)
    Array([4., 4., 4.], dtype=float32)
    """

    layer: Dense | Conv
    gain: float = 1.0
    kind: ClassVar[str] = "standardised"
    in_proportion: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.layer, Dense | Conv):
            raise TypeError(f"layer={self.layer!r} is a {type(self.layer).__name__}; accepted is a Dense or a Conv.")
        gain = positive_number("gain", self.gain)
        self._set(gain=gain, activation=self.layer.activation, initializer=self.layer.initializer)
        super().__post_init__()

    def standardised(self, params: Params) -> Params:
        """Returns the parameters that the layer is given."""
        weight = params["weight"]
        fan_in = weight.size // weight.shape[-1]
        axes = tuple(range(weight.ndim - 1))
        centred = weight - weight.mean(axis=axes, keepdims=True)
        variance = jnp.square(centred).mean(axis=axes, keepdims=True) + jnp.finfo(weight.dtype).tiny
        return params | {"weight": centred * (self.gain * jax.lax.rsqrt(variance * fan_in))}

    def output_shape(self, shape: Shape) -> Shape:
        """Returns the layer's; raises `ValueError` for a fan-in of 1, whose only weight would be standardised to 0."""
        if prod(self.layer.weight_shape(shape)[:-1]) < 2:
            raise ValueError(f"WeightStandardised got an input of shape {shape}, a fan-in of 1; accepted is 2 or more.")
        return self.layer.output_shape(shape)

    def weight_shape(self, shape: Shape) -> Shape:
        """Returns the layer's."""
        return self.layer.weight_shape(shape)

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the layer's output with standardised weights."""
        return self.layer.apply(self.standardised(params), h)

    def linear(self, weight: Array, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the standardised weights applied to `h`."""
        return self.layer.linear(self.standardised({"weight": weight})["weight"], h)

    def transpose(self, weight: Array, v: Float[Array, "batch *output"], shape: Shape) -> Array:
        """Returns the transpose of `linear`."""
        return self.layer.transpose(self.standardised({"weight": weight})["weight"], v, shape)


def at_inference(
    network: Network, params: NetworkParams, x: Float[Array, "batch *shape"]
) -> tuple[Network, NetworkParams]:
    """Returns the network and its parameters with every `BatchNorm`'s statistics fixed to those of the batch `x`.

    Each becomes a `ChannelScale`, so examples are no longer coupled. Of all training data, or a large part of it, these
    are the population's statistics (Ioffe and Szegedy, 2015, algorithm 2). On `x` itself the outputs stay what they
    were. Raises as `measure.jacobians.backward_jacobian_norms`.

    >>> import gradcourse as gc
    >>> network = gc.sequential(64, [Block((Dense(32), BatchNorm("sigmoid")))] * 3 + [Dense(10)])
    >>> params, x = network.init(key=jax.random.key(0)), gc.digits().x_train
    >>> fixed, fixed_params = at_inference(network, params, x)
    >>> network.couples_examples, fixed.couples_examples, fixed.apply(fixed_params, x[:1]).shape
    (True, False, (1, 10))
    """
    params, x = network.measurable(params, x)

    _, fixed = network.scan(lambda layer, p, h: (layer.apply(p, h), _fixed_params(layer, p, h)), params, x)
    return Network(tuple(replace(stage, layer=_fixed(stage.layer)) for stage in network.stages)), tuple(fixed)


def _fixed(layer: Layer) -> Layer:
    if isinstance(layer, Block):
        return replace(layer, body=[_fixed(inner) for inner in layer.body])
    return ChannelScale(layer.activation) if isinstance(layer, BatchNorm) else layer


def _fixed_params(layer: Layer, params: Params, h: Array) -> Params:
    """The parameters of `_fixed(layer)` with the statistics of the input `h`."""
    if isinstance(layer, BatchNorm):
        scale = params["scale"] * layer._normalised(h)[1].ravel()
        return {"scale": scale, "shift": params["shift"] - scale * layer._together(jnp.mean, h).ravel()}
    fixed = dict(params)
    for index, inner in enumerate(layer.body if isinstance(layer, Block) else ()):
        fixed[str(index)] = _fixed_params(inner, params[str(index)], h)
        h = inner.apply(params[str(index)], h)
    return fixed


def _affine(params: Params, h: Array) -> Array:
    return h * per_channel(params["scale"], h) + per_channel(params["shift"], h)
