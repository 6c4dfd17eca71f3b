r"""Gradients of a loss, every layer, in the log domain: with respect to activations, and to parameters.

Jacobian norms (`measure.jacobians`) ask what a network could pass on; these ask what a loss $C$ does pass on, in one
backward pass with one vector per example. That vector is divided by a power of two after every half layer, so a
gradient of 1e-400 is right in float32. For a model that is no `Network`, see `gradcourse.probes`.

>>> import gradcourse as gc
>>> data, network = gc.digits(), gc.mlp(64, [30] * 600, 10, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> profile = parameter_gradient_norms(network, params, data.x_train[:20], data.y_train[:20])
>>> print(f"{profile.log10_norm[0]:.1f}")  # the first layer's, in decades
-515.3
"""

from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from gradcourse._checks import known_false, known_name
from gradcourse._logdomain import (
    NO_EXPONENT,
    Scaled,
    check_overflow,
    finite,
    profile_of,
    rescale,
    sum_of_squares,
    times_power,
    total,
)
from gradcourse.nn.layers import Layer, ScaledInput, as_scaled
from gradcourse.nn.network import Network, Params, joined
from gradcourse.profile import Profile

__all__ = [
    "CROSS_ENTROPY",
    "Loss",
    "activation_gradient_norms",
    "layer_squares",
    "layers_with",
    "parameter_gradient_norms",
    "update_to_weight_ratios",
]

Loss = Callable[[Any, Any], Any]
CROSS_ENTROPY: Loss = optax.losses.softmax_cross_entropy_with_integer_labels
PLACES = ("input", "preactivation")
CERTAIN = 2.0**28  # a label this far ahead has a gradient of 0: its exponent nears the end of int32


def activation_gradient_norms(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    y: Any,
    *,
    loss: Loss = CROSS_ENTROPY,
    at: str = "input",
    average: bool = True,
) -> Profile:
    r"""Returns $\|\partial C/\partial h_l\|$ for every layer $l$, or $\|\partial C/\partial s_l\|$.

    `loss(output, label)` is the loss $C$ of one example, a scalar; by default the cross-entropy of the softmax with an
    integer label, right however confident the network is (from a lead of 2.7e8 on, the gradient is taken to be 0). `x`
    is `(batch, *input_shape)` and `y` anything whose arrays have the batch in front. An entry is taken `at` its layer's
    `"input"` $h_l$, or at its `"preactivation"` $s_l$, where Glorot and Bengio (2010) and He et al. (2015) look; for
    layers without an activation that is their output. `average` as in `backward_jacobian_norms`: norms are per example.
    Where batch normalisation couples the examples, $C$ is the sum of all examples' losses.

    Cost: one forward and one backward pass. Raises as `backward_jacobian_norms`, for labels that do not fit, and
    `ValueError` where the gradient of `loss` itself is not finite.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(4, [4], 4, activation="identity", init="orthogonal")
    >>> params = network.init(key=jax.random.key(0))
    >>> half_square = lambda output, label: jnp.square(output - label).sum() / 2
    >>> x = jnp.eye(4)[:1]
    >>> activation_gradient_norms(network, params, x, jnp.zeros((1, 4)), loss=half_square).log10_norm.round(5) + 0
    array([0., 0.])
    """
    known_name("at", at, PLACES)
    params, x, y = _checked(network, params, x, y, loss)
    norms = _sound(_activation_norms(network, loss, at, params, x, y))
    quantity = f"gradient of the loss with respect to each layer's {at}"
    return profile_of(norms, jnp.zeros_like(norms.square), network.layer_names, quantity, average=average)


def parameter_gradient_norms(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    y: Any,
    *,
    loss: Loss = CROSS_ENTROPY,
    part: str = "all",
) -> Profile:
    r"""Returns $\|\partial \bar C/\partial \theta_l\|$ for every layer that has parameters $\theta_l$.

    $\bar C$ is the mean loss over the batch, whose gradient training follows. `part` names the parameters to take,
    such as `"weight"` or `"bias"`; the profile holds the layers that have them, under their names. Other arguments,
    cost and errors as in `activation_gradient_norms`.
    """
    params, x, y = _checked(network, params, x, y, loss)
    layers = layers_with(network, params, part)
    exponent, square = _sound(_parameter_norms(network, loss, part, params, x, y))
    quantity = f"gradient of the mean loss with respect to each layer's {_named(part)}"
    return Profile(exponent, jnp.log2(square) / 2, jnp.zeros_like(square), layers, quantity)


def update_to_weight_ratios(network: Network, params: Params, updates: Params, *, part: str = "all") -> Profile:
    """Returns the norm of each layer's update divided by that of its parameters, for an optimiser's `updates`.

    `updates` is what `optimizer.update` returns, in the form of `params`; half precision is squared in float32. `part`
    and layers as in `parameter_gradient_norms`; parameters that are all zero, such as fresh biases, make the ratio
    infinite (NaN if the update is zero too). Around 1e-3 is a rule of thumb (Karpathy, makemore, part 3). Raises
    `ValueError` or `TypeError` where `updates` does not fit `params` or is not finite.

    >>> from gradcourse.nn.network import mlp
    >>> network = mlp(3, [5, 5], 2)
    >>> params = network.init(key=jax.random.key(0))
    >>> update_to_weight_ratios(network, params, jax.tree.map(lambda p: p * 1e-30, params)).log10_norm.round(3)
    array([-30., -30., -30.])
    """
    params, updates = _in_one_precision(params, _checked_updates(updates, params))
    network.check_params(params)
    layers = layers_with(network, params, part)
    update, weight = layer_squares(updates, part), layer_squares(params, part)
    if known_false((sound := jnp.isfinite(update.square)).all()):
        name = layers[int(jnp.argmin(sound))]
        raise ValueError(f"updates of layer {name!r} contain NaN or infinity; accepted are finite numbers.")
    fraction = (jnp.log2(update.square) - jnp.log2(weight.square)) / 2
    quantity = f"norm of the update of each layer's {_named(part)}, relative to them"
    return Profile(update.exponent - weight.exponent, fraction, jnp.zeros_like(fraction), layers, quantity)


# At each layer, `see` is told its parameters, its input and the cotangent on its pre-activation, both with exponents.
See = Callable[[Layer, Any, ScaledInput, Array, Array], Any]
Sound = tuple[Bool[Array, ""], Bool[Array, ""]]  # whether the outputs are finite, and the loss's gradient there


@partial(jax.jit, static_argnums=(0, 1, 2))
def _activation_norms(network: Network, loss: Loss, at: str, params: Params, x: Array, y: Any) -> tuple[Scaled, Sound]:
    (norms, _), sound = _sweep(network, loss, params, x, y, lambda *_: ())
    return norms[PLACES.index(at)], sound


@partial(jax.jit, static_argnums=(0, 1, 2))
def _parameter_norms(network: Network, loss: Loss, part: str, params: Params, x: Array, y: Any) -> tuple[Scaled, Sound]:
    """The squared norms of the mean loss's gradient with respect to each layer's `part`, for layers that have it."""

    def see(layer: Layer, p: Any, h: ScaledInput, v: Array, exponent: Array) -> Scaled:
        if not _chosen(p, part):
            return Scaled(jnp.zeros((), jnp.int32), jnp.zeros((), v.dtype))
        if not layer.in_proportion:
            return _mean_squares(layer, p, times_power(*h), v, exponent, part)
        exponents = {name: exponent + h[1] if name in layer.in_proportion else exponent for name in p}
        norms = [_mean_squares(layer, p, h[0], v, exponents[name], name) for name in p if part in ("all", name)]
        return total(jax.tree.map(lambda *parts: jnp.stack(parts), *norms))

    (_, norms), sound = _sweep(network, loss, params, x, y, see)
    return jax.tree.map(lambda leaf: leaf[np.flatnonzero(_have(network, params, part))], norms), sound


def _mean_squares(layer: Layer, p: Any, h: Array, v: Array, exponent: Array, part: str) -> Scaled:
    """The squared norm of the mean over examples of the gradients of `part`, for cotangents `v * 2 ** exponent`."""
    alive = jnp.any(v != 0, axis=range(1, v.ndim))
    shared = jnp.max(jnp.where(alive, exponent, NO_EXPONENT))
    shared = jnp.where(shared == NO_EXPONENT, 0, shared)
    gradient = layer.parameter_gradient(p, h, times_power(v, jnp.minimum(exponent - shared, 0)) / len(v))
    norm = sum_of_squares(_chosen(gradient, part))
    return Scaled(shared + norm.exponent, norm.square)


def _sweep(network: Network, loss: Loss, params: Params, x: Array, y: Any, see: See) -> tuple[Any, Sound]:
    """The squared norms at every layer's input and pre-activation, with what `see` returned, stacked over layers."""

    def forward(layer: Layer, p: Any, h: ScaledInput) -> Any:
        h_next, point = layer.linearize_scaled(p, h)
        return h_next, (point, h)

    def back(layer: Layer, one: Any, carry: tuple[Array, Array]) -> Any:
        (p, (point, h)), (v, exponent) = one, carry
        v, exponent, halfway = rescale(point.times_slope(v), exponent, together=together)
        seen = see(layer, p, h, v[0], exponent)
        v, exponent, after = rescale(point.pull(p, v), exponent, together=together)
        return (v, exponent), ((after, halfway), seen)

    output, points = network.scan(forward, params, as_scaled(x))
    output = times_power(*output)
    if loss is CROSS_ENTROPY:
        start, exponent = _cross_entropy_gradient(output, y)
    else:
        start, exponent = as_scaled(jax.vmap(jax.grad(lambda output, label: loss(output, label)))(output, y))
    sound = jnp.isfinite(output).all(), jnp.isfinite(start).all()
    together = network.couples_examples
    v, exponent, _ = rescale(start[None], exponent, together=together)
    return network.scan_back(back, list(zip(params, points, strict=True)), (v, exponent))[1], sound


def _sound(found: tuple[Scaled, Sound]) -> Scaled:
    """The norms, or the error of whoever made them NaN: the network or the loss."""
    norms, (outputs, gradients) = found
    check_overflow(outputs)
    if known_false(gradients):
        raise ValueError(
            "loss has a gradient with respect to the network's output that is NaN or infinite, though the outputs are "
            "finite; accepted is a loss that is differentiable there. Look for roots, logarithms and divisions at 0."
        )
    return finite(norms)


def _cross_entropy_gradient(z: Float[Array, "batch classes"], label: Int[Array, " batch"]) -> ScaledInput:
    r"""The gradient of the softmax's cross-entropy, `v * 2 ** exponent`.

    The softmax minus 1 at the label would be a difference of nearly equal numbers. So, with $m$ the largest output but
    the label's, it is $e^{z_j - m}$, at the label minus the sum of these, all times $e^m / \sum_j e^{z_j}$.
    """
    if z.shape[1] == 1:
        return as_scaled(0 * z)
    own = jax.nn.one_hot(label, z.shape[1], dtype=bool)
    ahead, rest = jnp.sum(jnp.where(own, z, 0), axis=1), jnp.where(own, -jnp.inf, z)
    rival = rest.max(axis=1)
    v = jnp.exp(rest - rival[:, None])
    total = v.sum(axis=1)
    margin = ahead - rival
    taken = margin - ahead
    lost = (ahead - (margin - taken)) - (rival + taken)  # what rounding took from the margin
    octaves, left = _octaves(jnp.clip(margin, 0, CERTAIN))
    confident = jnp.exp(-left - lost) / (1 + total * jnp.exp(-margin))
    factor = jnp.where(margin > 0, confident, 1 / (total + jnp.exp(margin)))
    factor = jnp.where(margin < CERTAIN, factor, 0)
    return jnp.where(own, -total[:, None], v) * factor[:, None], -octaves


def _octaves(z: Float[Array, " batch"]) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """`e ** z` as `2 ** octaves * e ** left`, without the digits that a large `z / log(2)` has not got."""
    ln2 = np.asarray(log(2), z.dtype)
    octaves = jnp.zeros(z.shape, jnp.int32)
    for step in (2**12, 1):  # remainders are exact, and so are counts of at most half the digits
        left = jnp.fmod(z, step * ln2)
        octaves, z = octaves + step * jnp.round((z - left) / (step * ln2)).astype(jnp.int32), left
    return octaves, z + octaves.astype(z.dtype) * (float(ln2) - log(2))


@partial(jax.jit, static_argnums=1)
def layer_squares(tree: Params, part: str = "all") -> Scaled:
    """Returns the squared norms, `(layer,)`, of each layer's `part` of `tree`, for the layers that have it."""
    chosen = [_chosen(stage, part) for stage in tree]
    return joined([sum_of_squares(leaves, kept=1) for leaves in chosen if leaves])


def _chosen(tree: Any, part: str) -> list[Any]:
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if part in ("all", _name(path))]


def _name(path: Any) -> str:
    return str(getattr(path[-1], "key", path[-1]))


def _named(part: str) -> str:
    return "parameters" if part == "all" else part


def layers_with(network: Network, params: Params, part: str) -> tuple[str, ...]:
    """Returns the names of the layers that have parameters called `part`; raises `ValueError` where none has."""
    names = dict.fromkeys(_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    if not names:
        raise ValueError("network has no parameters; accepted is one with at least one layer that has, such as Dense.")
    known_name("part", part, ("all", *names))
    return tuple(name for name, has in zip(network.layer_names, _have(network, params, part), strict=True) if has)


def _have(network: Network, params: Params, part: str) -> list[bool]:
    return [
        bool(_chosen(p, part)) for p, stage in zip(params, network.stages, strict=True) for _ in range(stage.repeats)
    ]


def _checked_updates(updates: Any, params: Params) -> Params:
    if not isinstance(updates, tuple):
        raise TypeError(f"updates is a {type(updates).__name__}; accepted is a tuple of dictionaries, as params is.")
    given, expected = (jax.tree.map(jnp.shape, tree) for tree in (updates, params))
    if given != expected:
        raise ValueError(f"updates have the shapes {given}; accepted are those of params, {expected}.")
    updates = jax.tree.map(jnp.asarray, updates)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jax.tree_util.keystr(path)
            raise TypeError(f"updates{where} has dtype {leaf.dtype}; accepted are floating-point numbers.")
    return updates


def _in_one_precision(*trees: Any) -> Any:
    dtype = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(trees)) else jnp.float32
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, trees)


def _checked(network: Network, params: Params, x: Any, y: Any, loss: Loss) -> tuple[Params, Array, Any]:
    params, x = network.measurable(params, x)
    y = jax.tree.map(jnp.asarray, y)
    if loss is CROSS_ENTROPY:
        y = _checked_labels(y, network.output_shape, len(x))
    for leaf in jax.tree.leaves(y):
        if leaf.shape[:1] != (len(x),):
            raise ValueError(
                f"y has shape {leaf.shape} for {len(x)} examples; accepted is (batch, ...), the batch of x."
            )
    output = jax.ShapeDtypeStruct((len(x), *network.output_shape), x.dtype)
    result = jax.eval_shape(jax.vmap(loss), output, y)
    if getattr(result, "shape", None) != (len(x),) or not jnp.issubdtype(result.dtype, jnp.floating):
        raise ValueError(
            f"loss returns {result} for a batch; accepted is one floating-point number per example: "
            "loss(output, label) is given a single example."
        )
    return params, x, y


def _checked_labels(y: Any, output_shape: tuple[int, ...], batch: int) -> Int[Array, " batch"]:
    if len(output_shape) != 1:
        raise ValueError(
            f"network has outputs of shape {output_shape}; the default loss accepts (classes,). Give a loss of yours."
        )
    if not isinstance(y, jax.Array) or not jnp.issubdtype(y.dtype, jnp.integer):
        found = y.dtype if isinstance(y, jax.Array) else type(y).__name__
        raise TypeError(
            f"y has dtype {found}; the default loss accepts integer labels. One-hot? Use y.argmax(axis=-1)."
        )
    if y.shape != (batch,):
        raise ValueError(f"y has shape {y.shape} for {batch} examples; the default loss accepts ({batch},).")
    if known_false(((y >= 0) & (y < output_shape[0])).all()):
        raise ValueError(
            f"y has labels from {int(y.min())} to {int(y.max())}; accepted is 0 to {output_shape[0] - 1}, for the "
            f"network has {output_shape[0]} outputs."
        )
    return y
