"""Layers: what all of them offer, and the dense, the pointwise and the flattening one.

A layer is a frozen description, without parameters. It knows how to draw them (`init`), how to compute (`apply`), and
what linear map it is at a point of its input space (`linearize`, see `gradcourse.nn.linearized`).

A layer of your own needs `apply` and, if it has parameters, `init`; all else then follows by autodiff. Make it a
frozen dataclass, so that equal neighbours can share one compiled stage:

>>> @dataclass(frozen=True)
... class Gated(Layer):
...     def init(self, shape, *, key):
...         return {"gate": jax.random.normal(key, (*shape, *shape))}
...
...     def apply(self, params, h):
...         return h * jax.nn.sigmoid(h @ params["gate"])
>>> Gated().output_shape((5,))
(5,)

The other methods make measuring faster, or theory possible: `frobenius_squares` and `mean_square_map` return `None`
for a layer that has no such thing. An input is `(batch, *shape)`, an image `(batch, height, width, channel)`.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse._logdomain import Scaled, dot, times_power, to_unit, total
from gradcourse.nn import activations, initializers
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.linearized import Diagonal, Differentiated, Linearized, LinearMap

__all__ = [
    "Activated",
    "Affine",
    "Dense",
    "Flatten",
    "Layer",
    "Params",
    "Pointwise",
    "ScaledInput",
    "Shape",
    "as_scaled",
    "wait_for",
]

Params = dict[str, Any]
Shape = tuple[int, ...]
ScaledInput = tuple[Array, Array]  # (batch, *shape) and an exponent per example: `h * 2 ** exponent`


class Layer:
    """The base of all layers, with everything but `apply` in its general form."""

    kind: ClassVar[str] = "layer"
    # Whether an input twice as large has an output twice as large, and the same Jacobian.
    homogeneous: ClassVar[bool] = False
    # The parameters whose gradient is in proportion to the input; then those of the others do not depend on it.
    in_proportion: ClassVar[tuple[str, ...]] = ()
    activation: Any = None  # the `Activation` that makes outputs of pre-activations, if the layer has one
    couples_examples: bool = False  # whether an example's output depends on the others, as in batch normalisation
    draws_by_qr: bool = False  # whether `init` factorises matrices, one at a time (see `wait_for`)
    bias_variance: float = 0.0  # that biases are drawn with

    def output_shape(self, shape: Shape) -> Shape:
        """Returns the shape of one output for one input of `shape`; raises `ValueError` where that does not fit."""
        return _shape_by_tracing(self, shape)

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns parameters for inputs of `shape`; a layer without parameters returns `{}`."""
        return {}

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the layer's output."""
        raise TypeError(f"{type(self).__name__} is no complete layer: give it apply(params, h).")

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the pre-activation `s`; of a layer without an activation, the output."""
        return self.apply(params, h)

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Linearized]:
        """Returns the output, and the linear map that the layer is at this point."""
        return self.apply(params, h), Differentiated(None, h, self)

    def linearize_scaled(self, params: Params, h: ScaledInput) -> tuple[ScaledInput, Linearized]:
        """Returns the same for an input with exponents, with which activations may leave the floating-point range."""
        if self.homogeneous:
            output, point = self.linearize(params, h[0])
            return (output, h[1]), point
        output, point = self.linearize(params, times_power(*h))
        return as_scaled(output), point

    def parameter_gradient(
        self, params: Params, h: Float[Array, "batch *shape"], v: Float[Array, "batch *output"]
    ) -> Params:
        """Returns the gradient of `params` at the input `h` for the cotangent `v` on the pre-activation."""
        # Autodiff never passes the activation, whose slope it rounds to 0 in the tails.
        _, pull = jax.vjp(lambda p: self.preactivation(p, h), params)
        return pull(v)[0]

    def frobenius_squares(self, shape: Shape) -> Callable[[Params, Array], Scaled] | None:
        """Returns each example's squared norm of the Jacobian, a function of parameters and slopes, if there is one."""
        return None

    def mean_square_map(self, shape: Shape) -> Callable[[Array], Array] | None:
        r"""Returns what mean-field theory makes of this layer for inputs of `shape`, or `None` where it does not apply.

        A linear function from the mean squares of inputs over channels, `(batch, *pixels, 1)`, to those of
        pre-activations without the biases' part, on average over the weights: $\sigma_w^2$ times them, if dense.
        """
        return None

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


class Activated(Layer):
    """`f(s)`: what layers with an activation share. A subclass has the field `activation` and the pre-activation."""

    def __post_init__(self) -> None:
        self._set(activation=activations.resolve(self.activation))

    def apply(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns `f(s)`."""
        return self.activation(self.preactivation(params, h))

    def linearize(self, params: Params, h: Float[Array, "batch *shape"]) -> tuple[Array, Linearized]:
        """Returns the output and the linear map, with the slope `f'(s)`."""
        s = self.preactivation(params, h)
        return self.activation(s), self.at(h, self.kept(self.activation.slope(s)))

    def at(self, h: Float[Array, "batch *shape"], slope: Float[Array, "batch *output"] | None) -> Linearized:
        """Returns the linear map at the input `h`, where the slope is this one."""
        return Differentiated(slope, h, self)

    def kept(self, slope: Float[Array, "batch *output"]) -> Array | None:
        """Returns `slope`, or `None` if it is the identity's."""
        return None if self.activation == ACTIVATIONS["identity"] else slope

    def scaled_preactivation(self, params: Params, h: ScaledInput) -> ScaledInput | None:
        """Returns the pre-activation with exponents for an input with exponents, or `None` if there is no such form."""
        return None

    def linearize_scaled(self, params: Params, h: ScaledInput) -> tuple[ScaledInput, Linearized]:
        """Returns the output with exponents and the linear map; in range only, unless `f` is linear next to 0."""
        scaled = self.scaled_preactivation(params, h) if self.activation.linear_at_zero else None
        if scaled is None:
            return super().linearize_scaled(params, h)
        s, exponent = scaled
        reach = jnp.finfo(s.dtype).nmant + 16  # beyond, what is not linear is below rounding
        most = reach if self.activation.homogeneous else jnp.iinfo(exponent.dtype).max
        near = times_power(s, jnp.clip(exponent, -reach, most))
        slope = self.activation.slope(near)
        beyond = (exponent < -reach) | (exponent > most)
        # Where `f` is linear, next to 0 and for rectifiers everywhere, it is `s` times the slope in any range.
        output = jnp.where(beyond.reshape(-1, *[1] * (s.ndim - 1)), s * slope, self.activation(near))
        return (output, jnp.where(beyond, exponent, 0)), self.at(h[0], self.kept(slope))


class Affine(Activated):
    """`f(weights applied to h + bias)`: what `Dense` and `Conv` share, who give it the linear map."""

    in_proportion: ClassVar[tuple[str, ...]] = ("weight",)
    initializer: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        scheme = initializers.resolve(self.initializer)
        self._set(initializer=scheme, bias_variance=scheme.sigma_b**2, draws_by_qr="orthogonal" in scheme.name)

    def factor(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns weights, inputs or cotangents as they enter a product, for a subclass to round: here as they are."""
        return values

    def linear(self, weight: Array, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the weights applied to a batch."""
        raise NotImplementedError

    def transpose(self, weight: Array, v: Float[Array, "batch *output"], shape: Shape) -> Array:
        """Returns the transpose of `linear` applied to a batch of `v`; `shape` is the layer's input shape."""
        like = jax.ShapeDtypeStruct((len(v), *shape), v.dtype)
        return jax.linear_transpose(partial(self.linear, weight), like)(v)[0]

    def weight_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the weights for inputs of `shape`."""
        raise NotImplementedError

    def init(self, shape: Shape, *, key: PRNGKeyArray) -> Params:
        """Returns `{"weight", "bias"}` drawn from the layer's scheme."""
        weight_key, bias_key = jax.random.split(key)
        weight = self.initializer.weights(self.weight_shape(shape), key=weight_key)
        return {"weight": weight, "bias": self.initializer.biases(weight.shape[-1:], key=bias_key)}

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the linear map of `h`, plus the bias."""
        s = self.linear(params["weight"], h)
        return s + jnp.broadcast_to(params["bias"], s.shape)

    def at(self, h: Float[Array, "batch *shape"], slope: Float[Array, "batch *output"] | None) -> Linearized:
        """Returns the linear map with this slope."""
        return LinearMap(slope, self, h.shape[1:])

    def scaled_preactivation(self, params: Params, h: ScaledInput) -> ScaledInput:
        """Returns the pre-activation with each example's largest entry near 1, and its exponents."""
        near, exponent = h
        axes = tuple(range(1, near.ndim))
        near, own = to_unit(near, axes)
        s, shift = to_unit(self.linear(params["weight"], near), axes)
        bias, bias_exponent = to_unit(params["bias"], (0,))
        exponent = exponent + own + shift
        larger = jnp.where(jnp.any(bias != 0), jnp.maximum(exponent, bias_exponent), exponent)
        shifted = times_power(jnp.broadcast_to(bias, s.shape), jnp.minimum(bias_exponent - larger, 0))
        s, shift = to_unit(times_power(s, exponent - larger) + shifted, axes)
        return s, larger + shift

    def _sum_of_squares(self, shape: Shape, params: Params, slope: Array) -> Scaled:
        r"""$\sum_j f'(s_j)^2 \sum_i w_{ij}^2$, right where no entry of the linear map is a sum of several weights."""
        # Unit by unit (a convolution's are its channels), for units may differ by more than squares can.
        weight, weight_exponent = to_unit(params["weight"], tuple(range(params["weight"].ndim - 1)))
        row_squares = self.linear(jnp.square(weight), jnp.ones((1, *shape), weight.dtype))
        pixels = tuple(range(1, slope.ndim - 1))
        slope, exponent = to_unit(slope, pixels)
        squares = jnp.sum(jnp.square(slope) * row_squares, axis=pixels)
        return total(Scaled((exponent + weight_exponent[None]).T, squares.T))


@dataclass(frozen=True)
class Dense(Affine):
    """`f(h @ weight + bias)`, weight `(in, out)`.

    >>> layer = Dense(3, "sigmoid", initializer="glorot_uniform")
    >>> params = layer.init((4,), key=jax.random.key(0))
    >>> layer.apply(params, jnp.zeros((2, 4)))
    Array([[0.5, 0.5, 0.5],
           [0.5, 0.5, 0.5]], dtype=float32)
    """

    width: int
    activation: Any = "identity"
    _: KW_ONLY
    initializer: Any = "glorot_uniform"
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(width=positive_integer("width", self.width))

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `(width,)`."""
        if len(shape) != 1:
            raise ValueError(f"Dense got an input of shape {shape}; accepted is (width,). Put Flatten() before it.")
        return (self.width,)

    def weight_shape(self, shape: Shape) -> Shape:
        """Returns `(in, out)`."""
        return (shape[0], self.width)

    def linear(self, weight: Array, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns `h @ weight`."""
        return dot(self.factor(h), self.factor(weight))

    def transpose(self, weight: Array, v: Float[Array, "batch *output"], shape: Shape) -> Array:
        """Returns `v @ weight.T`."""
        return dot(self.factor(v), self.factor(weight).T)

    def frobenius_squares(self, shape: Shape) -> Callable[[Params, Array], Scaled]:
        """Returns the closed form."""
        return partial(self._sum_of_squares, shape)

    def mean_square_map(self, shape: Shape) -> Callable[[Array], Array]:
        r"""Returns the product with $\sigma_w^2$."""
        moment = self.initializer.second_moment(self.weight_shape(shape)) * shape[-1]
        return lambda m: moment * m


@dataclass(frozen=True)
class Pointwise(Activated):
    """`f(h)`: an activation as a layer of its own.

    >>> Pointwise("relu").apply({}, jnp.array([[-1.0, 2.0]]))
    Array([[0., 2.]], dtype=float32)
    """

    activation: Any
    kind: ClassVar[str] = "pointwise"

    def output_shape(self, shape: Shape) -> Shape:
        """Returns `shape`."""
        return shape

    def preactivation(self, params: Params, h: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns `h`."""
        return h

    def at(self, h: Float[Array, "batch *shape"], slope: Float[Array, "batch *output"] | None) -> Linearized:
        """Returns the identity with this slope."""
        return Diagonal(slope)

    def scaled_preactivation(self, params: Params, h: ScaledInput) -> ScaledInput:
        """Returns `h` with each example's largest entry near 1, and its exponents."""
        s, shift = to_unit(h[0], tuple(range(1, h[0].ndim)))
        return s, h[1] + shift


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

    def mean_square_map(self, shape: Shape) -> Callable[[Array], Array]:
        """Returns the mean over pixels."""
        return lambda m: m.reshape(len(m), -1).mean(axis=1, keepdims=True)


def as_scaled(h: Float[Array, "batch *shape"]) -> ScaledInput:
    """Returns `h` with an exponent of 0 for each example."""
    return h, jnp.zeros(h.shape[0], jnp.int32)


def wait_for(drawn: Any, key: PRNGKeyArray) -> PRNGKeyArray:
    """Returns a key that depends on the parameters drawn so far, in form but not in value: layers wait for others."""
    # XLA's CPU back end deadlocks on two independent QR factorisations in one program, which is what orthogonal schemes
    # ask for under `vmap` (seen with jaxlib 0.10.2 on two cores).
    leaves = jax.tree.leaves(drawn)
    return jax.random.fold_in(key, jnp.isnan(leaves[-1]).any()) if leaves else key


@lru_cache(maxsize=1024)
def _shape_by_tracing(layer: Layer, shape: Shape) -> Shape:
    """The shape of an output, of a batch of two examples: some layers have no output for a single one."""
    found = jax.eval_shape(
        lambda key: layer.apply(layer.init(shape, key=key), jnp.zeros((2, *shape))), jax.random.key(0)
    )
    if found.shape[:1] != (2,):
        raise ValueError(
            f"{type(layer).__name__}.apply returns shape {found.shape} for a batch of 2 inputs of shape {shape}; "
            "accepted is (batch, ...)."
        )
    return found.shape[1:]
