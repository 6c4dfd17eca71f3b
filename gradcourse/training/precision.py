r"""What a number format does to gradients: its range, its digits, the scaling of losses, and the rounding of products.

The instrument (`measure.gradients`) is right whatever the format holds. Here is what practice does without it: the
plain gradient of a network whose numbers are float16 or bfloat16, layer by layer. Descent that follows it is in
`training.mixed_precision`.

>>> import jax, gradcourse as gc
>>> data, network = gc.digits(), gc.mlp(64, [64] * 20, 10, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> half = gradient_in(network, params, data.x_train[:32], data.y_train[:32], "float16")
>>> int(layers_in_reach(half.zero))  # of 21, counted from the output
7
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from math import log10
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int
from scipy.stats import norm

from gradcourse._checks import known_name, positive_integer, positive_number
from gradcourse._logdomain import Scaled, exact_profile
from gradcourse.measure.gradients import layer_squares, layers_with
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Dense, Layer
from gradcourse.nn.network import Network, Params, Stage, joined
from gradcourse.profile import Profile
from gradcourse.training.formats import cast

__all__ = [
    "PRODUCTS",
    "FormatGradient",
    "entry_error",
    "gradient_in",
    "layers_in_reach",
    "predicted_layers_in_reach",
    "scaled_loss",
    "with_reduced_products",
]

PRODUCTS = {"float32": 23, "tensorfloat32": 10, "bfloat16": 7}  # stored binary digits of the factors; 8 exponent bits


class FormatGradient(NamedTuple):
    """The plain gradient of a loss, computed in a number format, per layer.

    - `profile`: the norms of what the format has left, taken in the log domain, the loss's scale divided out;
    - `largest`, `(layer,)`: the largest entry as the format has it, scale and all;
    - `zero`, `(layer,)`: the share of entries that are exactly 0;
    - `overflowed`, `(layer,)`: the share that is infinite or NaN.
    """

    profile: Profile
    largest: Float[Array, "*sample layer"]
    zero: Float[Array, "*sample layer"]
    overflowed: Float[Array, "*sample layer"]


def gradient_in(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    y: Int[Array, " batch"],
    dtype: Any,
    *,
    loss_scale: float | Float[Array, ""] = 1.0,
    part: str = "weight",
) -> FormatGradient:
    """Returns the gradient of the mean cross-entropy as automatic differentiation gives it in a number format.

    Parameters, activations and what is carried back are in the format `dtype`; the loss itself is taken in float32 at
    least, multiplied by `loss_scale`, as mixed-precision training does (Micikevicius et al. 2018). `part` as in
    `gradcourse.measure.gradients.parameter_gradient_norms`, which gives the true norms. Cost: one gradient.

    Raises as `network.check`, and `ValueError` for a scale that is not above zero.
    """
    network.measurable(params, x)
    if not isinstance(loss_scale, jax.Array):
        positive_number("loss_scale", loss_scale)
    layers = layers_with(network, params, part)
    norms, *rest = _gradient_in(network, jnp.dtype(dtype), part, params, x, y, loss_scale)
    quantity = f"gradient with respect to each layer's {part}, in {jnp.dtype(dtype)}"
    return FormatGradient(exact_profile(norms, layers, quantity), *rest)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient_in(network: Network, dtype: Any, part: str, params: Params, x: Array, y: Array, scale: Any) -> Any:
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    scale = jnp.asarray(scale, wide)
    gradient = jax.grad(scaled_loss, argnums=1)(network, cast(params, dtype), x.astype(dtype), y, scale)
    gradient = cast(gradient, wide)
    seen = []
    for stage in gradient:
        named = [(getattr(path[-1], "key", None), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(stage)]
        if chosen := [leaf.reshape(len(leaf), -1) for name, leaf in named if part in ("all", name)]:
            entries = jnp.concatenate(chosen, axis=1)  # (layer, entry)
            shares = (entries == 0).mean(axis=1), (~jnp.isfinite(entries)).mean(axis=1)
            seen.append((jnp.abs(entries).max(axis=1), *shares))
    (exponent, square), (fraction, power) = layer_squares(gradient, part), jnp.frexp(scale)
    return Scaled(exponent - power, square / jnp.square(fraction)), *joined(seen)


def scaled_loss(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    y: Int[Array, " batch"],
    scale: Float[Array, ""],
) -> Float[Array, ""]:
    """Returns `scale` times the mean cross-entropy, taken in the format of `scale` after a pass in that of `params`."""
    logits = network.apply(params, x).astype(scale.dtype)
    return scale * optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def layers_in_reach(zero: Float[ArrayLike, "*sample layer"], *, share: float = 0.5) -> Int[np.ndarray, "*sample"]:
    """Returns how many layers, counted from the output, come before the first with more than this `share` of zeros.

    >>> layers_in_reach(np.array([[1.0, 0.9, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    array([2, 4])
    """
    beyond = np.asarray(zero)[..., ::-1] > share
    return np.where(beyond.any(axis=-1), beyond.argmax(axis=-1), beyond.shape[-1])


def predicted_layers_in_reach(
    vanishing: float, log10_entry: Float[ArrayLike, "*sample layer"], *, added: int = 1, share: float = 0.5
) -> Any:
    """Returns how many layers come before the one at which this `share` of the entries is 0, by a straight line.

    Numbers below `vanishing` become 0. `log10_entry` is the root mean square entry of what is carried back, per layer,
    `(*sample, layer)`, the last layer being the first on the way back; entries are taken as Gaussian. A parameter's
    gradient, `added` up from so many entries (examples, and pixels of a convolution), is 0 where all of them are. The
    line is followed beyond the first layer where that is needed; infinity where it does not fall.

    >>> print(f"{predicted_layers_in_reach(0.6745e-6, np.array([-3.0, -2.0, -1.0])):.3f}")
    5.000
    """
    values = np.asarray(log10_entry)[..., ::-1] + log10(norm.ppf((1 + share ** (1 / added)) / 2))
    count = np.arange(values.shape[-1])
    steps = count - count.mean()
    slope = values @ steps / (steps @ steps)
    start = values.mean(axis=-1) - slope * count.mean()
    with np.errstate(divide="ignore"):
        return np.where(slope < 0, (log10(vanishing) - start) / slope, np.inf)


# ---- Products with rounded factors


class _Reduced:
    """Rounds both factors of every product; the sums keep the precision they have."""

    mantissa: int

    def factor(self, values: Array) -> Array:
        """Returns the values rounded."""
        return lax.reduce_precision(values, exponent_bits=8, mantissa_bits=self.mantissa)


@dataclass(frozen=True, kw_only=True)
class _ReducedDense(_Reduced, Dense):
    mantissa: int


@dataclass(frozen=True, kw_only=True)
class _ReducedConv(_Reduced, Conv):
    mantissa: int


def with_reduced_products(network: Network, products: str | int) -> Network:
    """Returns the network with every product's factors rounded, forward and back, as an accelerator would round them.

    `products` is a name in `PRODUCTS` or the number of binary digits that a factor keeps after the leading one. It is
    an emulation: a processor of that kind rounds both factors of a matrix product to a short format, multiplies
    exactly and adds up in float32; the order of its sums is its own. Every measurement of the package accepts the
    network that comes out. Layers without weights stay as they are; `TypeError` for those that have other ones.

    >>> import gradcourse as gc
    >>> rounded = with_reduced_products(gc.mlp(8, [16] * 3, 4), "tensorfloat32")
    >>> rounded.layer_names
    ('0 dense', '1 dense', '2 dense', '3 dense')
    """
    mantissa = PRODUCTS[known_name("products", products, PRODUCTS)] if isinstance(products, str) else products
    mantissa = positive_integer("products", mantissa)
    return Network(tuple(replace(stage, layer=_reduced(stage, mantissa)) for stage in network.stages))


def _reduced(stage: Stage, mantissa: int) -> Layer:
    layer = stage.layer
    if not isinstance(layer, Dense | Conv):
        if jax.tree.leaves(jax.eval_shape(lambda: layer.init(stage.shape, key=jax.random.key(0)))):
            raise TypeError(f"network has a layer of kind {layer.kind!r}; accepted here are dense and conv as weights.")
        return layer
    reduced = _ReducedDense if isinstance(layer, Dense) else _ReducedConv
    return reduced(**{one.name: getattr(layer, one.name) for one in fields(layer)}, mantissa=mantissa)


def entry_error(mantissa: int) -> float:
    r"""Returns the root mean square relative error of a number rounded to so many binary digits after the leading one.

    The error is uniform between $\pm 2^{-(p + 1)}$ in units of the leading digit, and numbers spread evenly over
    magnitudes have a mean $1 / m^2$ of $3 / (8 \ln 2)$: together $2^{-(p + 1)} \sqrt{1 / (8 \ln 2)}$.

    >>> round(entry_error(10) * 2**11, 4)
    0.4247
    """
    return float(2.0 ** -(mantissa + 1) / np.sqrt(8 * np.log(2)))
