r"""What a number format does to gradients: its range, its digits, the scaling of losses, and the rounding of products.

The instrument (`measure.gradients`) is right whatever the format holds. Here is what practice does without it: the
plain gradient of a network whose numbers are float16 or bfloat16, layer by layer, and descent that follows it.

>>> import jax
>>> import gradcourse as gc
>>> data, network = gc.digits(), gc.mlp(64, [64] * 20, 10, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> half = gradient_in(network, params, data.x_train[:32], data.y_train[:32], "float16")
>>> int(layers_in_reach(half.zero))  # of 21, counted from the output
7
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import log10
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray
from scipy.stats import norm

from gradcourse._checks import known_name, positive_integer, positive_number
from gradcourse.measure.gradients import layer_squares, layers_with
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Dense, Layer
from gradcourse.nn.network import Network, Params, Stage
from gradcourse.profile import Profile
from gradcourse.training.loop import Data, accuracy, checked_every, checked_rate, cross_entropy
from gradcourse.training.runs import Optimizer, with_rate

__all__ = [
    "PRODUCTS",
    "Descent",
    "Dynamic",
    "Format",
    "FormatGradient",
    "entry_error",
    "gradient_in",
    "layers_in_reach",
    "number_format",
    "predicted_layers_in_reach",
    "round_stochastically",
    "train_in",
    "vanishing_point",
    "with_reduced_products",
]

TRAINABLE = ("float32", "bfloat16", "float16")
KEEPS = ("float32", "nearest", "stochastic")
PRODUCTS = {"float32": 23, "tensorfloat32": 10, "bfloat16": 7}  # stored binary digits of the factors; 8 exponent bits


# ---- Formats


class Format(NamedTuple):
    """A floating-point format: the ends of its range, and its `digits`, binary ones with the leading one included.

    `normal` is the smallest number with all digits, `smallest` the smallest at all (subnormal), `largest` the largest
    finite one.
    """

    name: str
    digits: int
    normal: float
    smallest: float
    largest: float

    @property
    def decades(self) -> float:
        """How many decades lie between the smallest and the largest number."""
        return log10(self.largest) - log10(self.smallest)


def number_format(dtype: Any) -> Format:
    """Returns the properties of a floating-point format that JAX knows by that name.

    >>> number_format("float16")
    Format(name='float16', digits=11, normal=6.103515625e-05, smallest=5.960464477539063e-08, largest=65504.0)
    """
    info = jnp.finfo(dtype)
    ends = (float(info.smallest_normal), float(info.smallest_subnormal), float(info.max))
    return Format(str(info.dtype), int(info.nmant) + 1, *ends)


def vanishing_point(dtype: Any) -> float:
    """Returns the power of two below which a compiled product of two numbers is 0, found by trying.

    Compiled code may treat subnormal numbers as 0: what a format promises and what a processor does are two things.
    Where it does not, a product is rounded to 0 below half of the smallest number.

    >>> number_format("float16").smallest / vanishing_point("float16")
    2.0
    """
    info = jnp.finfo(dtype)
    exponents = np.arange(int(info.minexp) - int(info.nmant) - 4, int(info.minexp) + 2)
    half = exponents // 2
    factors = [np.ldexp(1.5, half).astype(info.dtype), np.ldexp(1.0, exponents - half).astype(info.dtype)]
    products = jax.jit(jnp.multiply)(*map(jnp.asarray, factors))
    return float(np.ldexp(1.0, exponents[np.asarray(products).astype(np.float64) > 0].min()))


# ---- Gradients


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
    (exponent, square), *rest = _gradient_in(network, jnp.dtype(dtype), part, params, x, y, loss_scale)
    quantity = f"gradient with respect to each layer's {part}, in {jnp.dtype(dtype)}"
    profile = Profile(exponent, jnp.log2(square) / 2, jnp.zeros_like(square), layers, quantity)
    return FormatGradient(profile, *rest)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient_in(network: Network, dtype: Any, part: str, params: Params, x: Array, y: Array, scale: Any) -> Any:
    wide = _wide(dtype)
    scale = jnp.asarray(scale, wide)
    gradient = jax.grad(_scaled_loss, argnums=1)(network, _in(dtype, params), x.astype(dtype), y, scale)
    gradient = _in(wide, gradient)
    zero = _per_layer(network, part, gradient, lambda entries: jnp.mean(entries == 0, axis=1))
    overflowed = _per_layer(network, part, gradient, lambda entries: jnp.mean(~jnp.isfinite(entries), axis=1))
    largest = _per_layer(network, part, gradient, lambda entries: jnp.max(jnp.abs(entries), axis=1))
    scale_exponent = jnp.frexp(scale)[1]
    exponent, square = layer_squares(gradient, part)
    square = square / jnp.square(jnp.ldexp(scale, -scale_exponent))
    return (exponent - scale_exponent, square), largest, zero, overflowed


def _scaled_loss(network: Network, params: Params, x: Array, y: Array, scale: Array) -> Array:
    logits = network.apply(params, x).astype(scale.dtype)
    return scale * optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _wide(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _in(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _per_layer(network: Network, part: str, tree: Params, summary: Callable[[Array], Array]) -> Float[Array, " layer"]:
    """What `summary` makes of the entries of each layer's `part`, `(layer, entry)`."""
    found = []
    for stage, leaves in zip(network.stages, tree, strict=True):
        named = [(getattr(path[-1], "key", None), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)]
        chosen = [leaf.reshape(stage.repeats, -1) for name, leaf in named if part in ("all", name)]
        if chosen:
            found.append(summary(jnp.concatenate(chosen, axis=1)))
    return jnp.concatenate(found)


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


# ---- Descent


@dataclass(frozen=True)
class Dynamic:
    """A loss scale that is halved when a gradient overflows and doubled after `patience` steps without."""

    start: float = 2.0**15
    patience: int = 200


class Descent(NamedTuple):
    """A run of `train_in`, seen every so many steps.

    - `params`: at the end, in the format they are kept in;
    - `step`, `loss`, `accuracy`, `(snapshot,)`: on the examples watched, computed in float32 from the kept parameters;
    - `scale`, `skipped`, `(snapshot,)`: the loss scale, and how many steps were left out until then.
    """

    params: Any
    step: Int[Array, " snapshot"]
    loss: Float[Array, " snapshot"]
    accuracy: Float[Array, " snapshot"]
    scale: Float[Array, " snapshot"]
    skipped: Int[Array, " snapshot"]


def train_in(
    network: Network,
    params: Params,
    data: Data,
    optimizer: Optimizer,
    *,
    dtype: Any,
    learning_rate: float | Float[Array, ""] | None = None,
    steps: int,
    every: int | None = None,
    batch_size: int = 32,
    loss_scale: float | Dynamic = 1.0,
    keep: str = "float32",
    watch: tuple[Any, Any],
    key: PRNGKeyArray,
) -> Descent:
    """Returns minibatch descent from float32 `params` whose gradients are computed in the format `dtype`.

    The loss is multiplied by `loss_scale`, a power of two, and the gradient divided by it; a step whose gradient is not
    finite is left out. `keep` says in what form the weights are kept between steps: `"float32"` (master weights, cast
    to `dtype` for each gradient), or in `dtype` itself, each update rounded to `"nearest"` or, unbiased,
    `"stochastic"`. `optimizer`, `learning_rate` and `batch_size` as in `gradcourse.train`; it sees gradients in
    float32. Snapshots are taken at the start and every `every` steps (by default at the end) on `watch`.

    References: Micikevicius et al. (2018). Raises `ValueError` or `TypeError` for arguments that do not fit.
    """
    name = known_name("dtype", str(jnp.dtype(dtype)), TRAINABLE)
    known_name("keep", keep, KEEPS)
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    every, rate = checked_every(every, steps), checked_rate(optimizer, learning_rate)
    start = loss_scale.start if isinstance(loss_scale, Dynamic) else loss_scale
    if np.frexp(positive_number("loss_scale", start))[0] != 0.5:
        raise ValueError(f"loss_scale={start!r} is accepted as a power of two, so that dividing by it is exact.")
    patience = positive_integer("patience", loss_scale.patience) if isinstance(loss_scale, Dynamic) else 0
    settings = _Settings(network, optimizer, name, keep, patience, steps, every, batch_size)
    watched = network.check(params, watch[0]), jnp.asarray(watch[1])
    return _descend(settings, data, params, rate, jnp.asarray(start, jnp.float32), watched, key)


class _Settings(NamedTuple):
    """What a run's program is compiled for."""

    network: Network
    optimizer: Optimizer
    name: str
    keep: str
    patience: int
    steps: int
    every: int
    batch_size: int


@partial(jax.jit, static_argnums=0)
def _descend(
    to: _Settings, data: Data, params: Params, rate: Array, scale: Array, watch: tuple[Array, Array], key: PRNGKeyArray
) -> Descent:
    dtype, optimizer = jnp.dtype(to.name), with_rate(to.optimizer, rate)

    def step(state: Any, index: Array) -> tuple[Any, None]:
        kept, memory, scale, sound_steps, skipped = state
        batch_key, round_key = jax.random.split(jax.random.fold_in(key, index))
        x, y = data.batch(to.batch_size, key=batch_key)
        scaled = jax.grad(_scaled_loss, argnums=1)(to.network, _in(dtype, kept), x.astype(dtype), y, scale)
        gradient = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / scale, scaled)
        wide = _in(jnp.float32, kept)
        updates, new_memory = optimizer.update(gradient, memory, wide)
        new = _kept(to.keep, dtype, optax.apply_updates(wide, updates), round_key)
        sound = _all_finite(scaled)
        kept, memory = jax.tree.map(partial(jnp.where, sound), (new, new_memory), (kept, memory))
        sound_steps = jnp.where(sound, sound_steps + 1, 0)
        if to.patience:
            grown = sound_steps == to.patience
            scale = jnp.where(sound, jnp.where(grown, 2 * scale, scale), scale / 2)
            sound_steps = jnp.where(grown, 0, sound_steps)
        return (kept, memory, scale, sound_steps, jnp.where(sound, skipped, skipped + 1)), None

    def see(state: Any) -> Any:
        kept, _, scale, _, skipped = state
        wide = _in(jnp.float32, kept)
        return cross_entropy(to.network, wide, *watch), accuracy(to.network, wide, *watch), scale, skipped

    def block(state: Any, first: Array) -> tuple[Any, Any]:
        seen = see(state)
        return lax.scan(step, state, first + jnp.arange(to.every))[0], seen

    none = jnp.zeros((), jnp.int32)
    kept = params if to.keep == "float32" else _in(dtype, params)
    state, seen = lax.scan(
        block, (kept, optimizer.init(params), scale, none, none), to.every * jnp.arange(to.steps // to.every)
    )
    seen = jax.tree.map(lambda so_far, last: jnp.concatenate([so_far, last[None]]), seen, see(state))
    return Descent(state[0], to.every * jnp.arange(to.steps // to.every + 1), *seen)


def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))


def _kept(keep: str, dtype: Any, tree: Any, key: PRNGKeyArray) -> Any:
    if keep == "float32":
        return tree
    if keep == "nearest":
        return _in(dtype, tree)
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    rounded = [round_stochastically(leaf, dtype, key=one) for leaf, one in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, rounded)


def round_stochastically(values: Float[Array, "*shape"], dtype: Any, *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """Returns float32 `values` in the format `dtype`, each as one of its two neighbours there, right on average.

    A value a tenth of the way from one neighbour to the next becomes the next one in a tenth of the cases.

    >>> rounded = round_stochastically(jnp.full(10_000, 1 + 2.0**-10), "bfloat16", key=jax.random.key(0))
    >>> sorted({float(value) for value in rounded}), bool(abs(rounded.astype(float).mean() - 1 - 2.0**-10) < 1e-4)
    ([1.0, 1.0078125], True)
    """
    near = values.astype(dtype)
    left = values - near.astype(values.dtype)
    towards = jnp.where(left > 0, jnp.inf, -jnp.inf).astype(dtype)
    other = jnp.nextafter(near, towards)
    gap = jnp.abs(other.astype(values.dtype) - near.astype(values.dtype))
    chance = jnp.where(left == 0, 0, jnp.abs(left) / gap)
    return jnp.where(jax.random.uniform(key, values.shape) < chance, other, near)


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

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(8, [16] * 3, 4)
    >>> rounded = with_reduced_products(network, "tensorfloat32")
    >>> rounded.layer_names == network.layer_names
    True
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
    return reduced(**vars(layer), mantissa=mantissa)


def entry_error(mantissa: int) -> float:
    r"""Returns the root mean square relative error of a number rounded to so many binary digits after the leading one.

    The error is uniform between $\pm 2^{-(p + 1)}$ in units of the leading digit, and numbers spread evenly over
    magnitudes have a mean $1 / m^2$ of $3 / (8 \ln 2)$: together $2^{-(p + 1)} \sqrt{1 / (8 \ln 2)}$.

    >>> round(entry_error(10) * 2**11, 4)
    0.4247
    """
    return float(2.0 ** -(mantissa + 1) / np.sqrt(8 * np.log(2)))
